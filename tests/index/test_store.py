import hashlib
import multiprocessing
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simclr_hub.errors import (
    IndexDamagedError,
    IndexError_,
    IndexLockedError,
    IndexMismatchError,
    IndexWriteError,
)
from simclr_hub.index import sqlite
from simclr_hub.index.search.snapshot import take_snapshot
from simclr_hub.index.store import STORE_NAME, About, Photo, Store
from simclr_hub.scan import FileStat

STAMP = FileStat(2**70, -5, 2**64, 2**64 - 1)  # larger than SQLite's integers


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A store with one root and two photos of one content."""
    path = tmp_path / "i" / STORE_NAME
    path.parent.mkdir()
    Store.create(path, About({"model": "m", "weights": "w"}, 3))
    with closing(Store(path)) as store, store.writing(), store.transaction():
        root = store.put_root(b"/photos\xff", "ok")
        store.put_vector(b"h", np.array([0.6, 0.8, 0], np.float32))
        for path_in_root in (b"a\xff\n", b"b"):
            store.put(Photo(root.id, path_in_root, STAMP, True, b"h", "live", metadata='{"x": 1}'))
    return path


def test_what_is_put_is_read_back(file: Path) -> None:
    with closing(Store(file)) as store:
        assert store.about == About({"model": "m", "weights": "w"}, 3, "cosine")
        first, _ = store.photos()
        assert first == Photo(1, b"a\xff\n", STAMP, True, b"h", "live", None, '{"x": 1}')
        assert store.photo(1, b"b") == store.photos_with(b"h")[1]
        assert store.roots()[1].path == b"/photos\xff"
        np.testing.assert_array_equal(store.vector(b"h"), np.array([0.6, 0.8, 0], np.float32))
        assert store.counts() == {"live": 2, "missing": 0, "failed": 0, "with content": 2, "vectors": 1}


def test_durability_settings(file: Path) -> None:
    with closing(Store(file)) as store:
        pragmas = {
            p: store._rows(f"PRAGMA {p}")[0][0] for p in "journal_mode synchronous page_size foreign_keys".split()
        }
    assert pragmas == {"journal_mode": "delete", "synchronous": 3, "page_size": 16384, "foreign_keys": 1}


def test_the_generation_grows_with_what_a_search_can_see(file: Path) -> None:
    with closing(Store(file)) as store, store.writing():

        def generation_after(*photos: Photo) -> int:
            with store.transaction():
                for photo in photos:
                    store.put(photo)
            return store.generation()

        photo = Photo(1, b"b", STAMP, True, b"h", "live", metadata='{"x": 1}')
        before = store.generation()
        assert generation_after(photo) == before
        assert (
            generation_after(Photo(1, b"b", STAMP._replace(inode=1), False, b"h", "live", None, '{"x": 1}')) == before
        )
        assert generation_after(Photo(1, b"b", STAMP, True, b"h", "missing")) == before + 1
        assert generation_after(Photo(1, b"c", STAMP, True, None, "failed", "why")) == before + 2
        with store.transaction():
            store.forget(photo)
        assert store.generation() == before + 3


def test_a_transaction_is_all_or_nothing(file: Path) -> None:
    with closing(Store(file)) as store, store.writing():
        before = (store.generation(), store.photos())
        with pytest.raises(KeyboardInterrupt), store.transaction():
            store.put(Photo(1, b"c", STAMP, True, b"h", "live"))
            raise KeyboardInterrupt
        assert (store.generation(), store.photos()) == before
        with pytest.raises(IndexDamagedError, match="FOREIGN KEY"), store.transaction():
            store.put(Photo(1, b"c", STAMP, True, b"without a vector", "live"))
        assert (store.generation(), store.photos()) == before


def test_writing_needs_the_lock(file: Path) -> None:
    with closing(Store(file)) as store, pytest.raises(RuntimeError), store.transaction():
        pass


def test_a_second_writer_is_told_who_writes(file: Path) -> None:
    code = f"""if True:
        import filelock, os, pathlib
        lock = filelock.FileLock({str(file.with_name("writer.lock"))!r}, timeout=0)
        lock.acquire()
        pathlib.Path(lock.lock_file).write_text(str(os.getpid()))
        print("locked", flush=True)
        input()
    """
    with closing(Store(file)) as store:
        with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
            assert other.stdout is not None and other.stdin is not None
            other.stdout.readline()
            with pytest.raises(IndexLockedError, match=f"process {other.pid} writes"), store.writing():
                pass
            assert len(store.photos()) == 2  # reading goes on
            other.kill()
        with store.writing():  # a killed writer leaves no lock, though its pid is still in the file
            assert file.with_name("writer.lock").read_text() == str(os.getpid())


def test_a_second_writer_in_this_process(file: Path) -> None:
    with closing(Store(file)) as store, closing(Store(file)) as other, store.writing():
        for second in (store, other):
            with pytest.raises(IndexLockedError, match=str(os.getpid())), second.writing():
                pass


def test_racing_writers_lose_nothing(file: Path) -> None:
    """Threads with a store of their own each, fighting for the lock; every acknowledged row must be there."""
    acknowledged: list[bytes] = []

    def write(name: int) -> None:
        with closing(Store(file)) as store:
            for i in range(15):
                try:
                    with store.writing():
                        with store.transaction():
                            store.put(Photo(1, b"%d-%d" % (name, i), STAMP, True, b"h", "live"))
                        acknowledged.append(b"%d-%d" % (name, i))
                except IndexLockedError:
                    pass

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with closing(Store(file)) as store:
        assert acknowledged and {p.path for p in store.photos()} == {*acknowledged, b"a\xff\n", b"b"}


def test_a_reader_sees_one_state(file: Path) -> None:
    with closing(Store(file)) as reader, closing(Store(file)) as writer:
        with reader.reading():
            before = reader.photos()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sqlite, "COMMIT_SECONDS", 0.0)
                writer._db.execute("PRAGMA busy_timeout = 50")  # type: ignore[union-attr]
                with pytest.raises(IndexLockedError), writer.writing(), writer.transaction():
                    writer.put(Photo(1, b"c", STAMP, True, b"h", "live"))
            assert reader.photos() == before
        with writer.writing(), writer.transaction():
            writer.put(Photo(1, b"c", STAMP, True, b"h", "live"))
        assert len(reader.photos()) == 3


@pytest.mark.parametrize("what", ["move", "delete", "replace"])
def test_a_file_that_is_moved_deleted_or_replaced_is_not_committed_to(file: Path, what: str) -> None:
    copy = shutil.copy(file, file.with_name("copy"))
    with closing(Store(file)) as store, store.writing():
        for when in ("inside", "before"):
            with pytest.raises(IndexDamagedError, match=f"{STORE_NAME}: moved, removed or replaced"):
                if when == "before":
                    with store.transaction():
                        pytest.fail("began")
                with store.transaction():
                    store.put(Photo(1, b"c", STAMP, True, b"h", "live"))
                    if what == "delete":
                        file.unlink()
                    else:
                        os.replace(*((file, file.with_name("moved")) if what == "move" else (copy, file)))
    if what == "replace":
        with closing(Store(file)) as store:
            assert len(store.photos()) == 2


def test_a_newer_layout_is_refused(file: Path) -> None:
    with closing(sqlite3.connect(file)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(IndexMismatchError, match="layout 99, made by a newer simclr_hub"):
        Store(file)


@pytest.mark.parametrize("change", ["not SQLite", "empty", "another application", "another table", "WAL"])
def test_what_is_not_a_store_is_refused(file: Path, change: str) -> None:
    if change in ("not SQLite", "empty"):
        file.write_bytes(b"hello" * 9999 if change == "not SQLite" else b"")
    else:
        statement = {
            "another application": "PRAGMA application_id = 7",
            "another table": "CREATE TABLE other (x)",
            "WAL": "PRAGMA journal_mode = WAL",
        }[change]
        with closing(sqlite3.connect(file)) as db:
            db.execute(statement)
    with pytest.raises(IndexDamagedError, match=re.escape(str(file))):
        Store(file)


def test_read_only(file: Path) -> None:
    with closing(Store(file, read_only=True)) as store:
        assert len(store.photos()) == 2
        with pytest.raises(IndexWriteError, match="read-only here; only searching works"), store.writing():
            pass


def test_a_closed_store_says_so(file: Path) -> None:
    store = Store(file)
    store.close()
    store.close()
    with pytest.raises(IndexError_, match="closed; open it again"):
        store.generation()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_may_not_use_the_store_and_does_it_no_harm(file: Path) -> None:
    def use(pipe: "multiprocessing.connection.Connection") -> None:
        for call in (store.generation, lambda: store.writing().__enter__()):
            try:
                call()
                pipe.send("worked")
            except IndexError_ as e:
                pipe.send(str(e))
        store.close()

    with closing(Store(file)) as store, store.writing():
        ours, theirs = multiprocessing.Pipe()
        # A thread is in the middle of a transaction when this one forks.
        began, done = threading.Event(), threading.Event()

        def commit() -> None:
            with store.transaction():
                store.put(Photo(1, b"c", STAMP, True, b"h", "live"))
                began.set()
                done.wait(0.2)

        thread = threading.Thread(target=commit)
        thread.start()
        began.wait()
        child = multiprocessing.get_context("fork").Process(target=use, args=(theirs,))
        child.start()
        child.join(20)
        child.kill()
        thread.join()
        assert child.exitcode == 0  # it did not wait for a lock that nobody gives back
        for _ in range(2):
            assert f"opened by process {os.getpid()}" in ours.recv()
        with store.transaction():  # the lock and the connection are still ours
            store.put(Photo(1, b"d", STAMP, True, b"h", "live"))
        assert len(store.photos()) == 4
        with closing(Store(file)) as other, pytest.raises(IndexLockedError), other.writing():
            pass


@pytest.mark.parametrize("where", [{}, {"root_id": 1}, {"state": "live"}])
def test_a_photo_that_is_gone_is_damage(file: Path, where: dict[str, Any]) -> None:
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("DELETE FROM photos WHERE path = ?", (b"b",))
    with closing(Store(file)) as store, pytest.raises(IndexDamagedError, match="1 photos are there, 2 were recorded"):
        store.photos(**where)


def test_no_damage_is_read_as_something_else(tmp_path: Path) -> None:
    """Flipped bytes, pages lost and exchanged: what is read is as before, or the damage is named; and no crash."""
    mutate(tmp_path, mutants=250, seed=0)


@pytest.mark.slow
def test_no_damage_of_many_is_read_as_something_else(tmp_path: Path) -> None:
    mutate(tmp_path, mutants=5000, seed=1)


def mutate(tmp_path: Path, mutants: int, seed: int) -> None:
    file = tmp_path / "whole" / STORE_NAME
    file.parent.mkdir()
    Store.create(file, About({"model": "m", "weights": "w"}, 3))
    with closing(Store(file)) as store, store.writing(), store.transaction():
        for root in (store.put_root(b"/a", "ok"), store.put_root(b"/b", "ok")):
            for i in range(150):  # several pages of each table
                content = hashlib.sha256(b"%d" % i).digest()
                store.put_vector(content, np.random.default_rng(i).normal(size=3).astype(np.float32))
                store.put(Photo(root.id, b"photo %d" % i, STAMP, True, content, "missing" if i % 5 == 0 else "live"))

    def contents(path: Path) -> object:
        with closing(Store(path)) as store:
            paths, vectors = take_snapshot(store).vectors()
            return store.about, store.roots(), store.photos(), paths, vectors.tobytes()

    expected, data, page = contents(file), file.read_bytes(), 16384
    random = np.random.default_rng(seed)
    used = [i for i, byte in enumerate(data) if byte]  # most of the pages is empty
    noticed = 0
    for n in range(mutants):
        damaged = bytearray(data)
        start, other = (page * int(i) for i in random.integers(len(data) // page, size=2))
        match n % 5:
            case 0:
                damaged[used[random.integers(len(used))]] ^= int(random.integers(1, 256))
            case 1 | 2:  # where a page says what is where
                damaged[start + int(random.integers(100))] ^= int(random.integers(1, 256))
            case 3:
                damaged[start : start + page], damaged[other : other + page] = (
                    damaged[other : other + page],
                    damaged[start : start + page],
                )
            case 4:
                del damaged[random.integers(len(data)) :]
        mutant = tmp_path / "mutant" / STORE_NAME
        mutant.parent.mkdir()
        mutant.write_bytes(damaged)
        try:
            assert contents(mutant) == expected
        except (IndexDamagedError, IndexMismatchError, IndexWriteError) as e:
            assert STORE_NAME in str(e)
            noticed += 1
        shutil.rmtree(mutant.parent)
    assert noticed > mutants // 3


def test_details_and_distinct_pairs(file: Path) -> None:
    with closing(Store(file)) as store:
        assert store.details_of(b"h") is None and store.without_details()
        before = store.generation()
        with store.writing(), store.transaction():
            store.put_details(b"h", {"width": 3, "gps": [1.0, 2.0]}, b"s")
            store.put_distinct(b"z", b"h")
            store.put_distinct(b"h", b"z")
        assert store.details_of(b"h") == ({"width": 3}, b"s") and not store.without_details()
        assert store.distinct() == {(b"h", b"z")}
        assert store.generation() == before + 1
    for table, column in (("details", "signature"), ("distinct_pairs", "b")):
        with closing(sqlite3.connect(file)) as db:
            db.execute(f"UPDATE {table} SET {column} = x'00'")
            db.commit()
    with closing(Store(file)) as store:
        with pytest.raises(IndexDamagedError, match="details of a photo"):
            store.details_of(b"h")
        with pytest.raises(IndexDamagedError, match="pair of different pictures"):
            store.distinct()


def test_a_commit_waits_for_a_reader_who_takes_long(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.05)
    with closing(Store(file)) as store, closing(Store(file, read_only=True)) as other:
        begun = threading.Event()

        def read() -> None:
            with other.reading():
                before = other.live()
                begun.set()
                time.sleep(0.5)  # ten times as long as SQLite waits
                assert other.live() == before

        reader = threading.Thread(target=read)
        reader.start()
        begun.wait()
        with store.writing(), store.transaction():
            store.put_root(b"/while it is read", "ok")
        reader.join()
        assert b"/while it is read" in {root.path for root in store.roots().values()}
