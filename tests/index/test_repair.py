"""Repair: what is sound of a damaged store is saved, the damaged file stays, a kill leaves the one or the other."""

import itertools
import os
import random
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import FakeEmbedder, make_photo
from index_fakes import check_index as check_contents

from simclr_hub.errors import IndexDamagedError, IndexWriteError
from simclr_hub.index import SimilarityIndex, check_index, repair
from simclr_hub.index.store import STORE_NAME, About, Photo, Store
from simclr_hub.scan import FileStat

PAGE, N, WIDTH = 16384, 500, 64


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("whole") / STORE_NAME)


def make_store(file: Path) -> Path:
    """A store with several pages in each table: 500 photos below two roots, 480 contents."""
    draw = np.random.default_rng(0)
    Store.create(file, About({"model": "fake", "weights": "w1"}, WIDTH))
    with closing(Store(file)) as store, store.writing(), store.transaction():
        roots = [store.put_root(path, "ok") for path in (b"/a", b"/b")]
        contents = [draw.bytes(32) for _ in range(480)]
        for content in contents:
            vector = draw.normal(size=WIDTH)
            store.put_vector(content, (vector / np.linalg.norm(vector)).astype(np.float32))
            store.put_details(content, {"format": "JPEG", "camera": "c" * 50}, draw.bytes(20))
        for i in range(N):
            path = b"a name of some length, to fill pages %03d" % i
            stat = FileStat(i, i, i, i)
            if i % 50 == 7:
                store.put(Photo(roots[i % 2].id, path, stat, True, None, "failed", "no image"))
            else:
                state = "missing" if i % 50 == 3 else "live"
                store.put(Photo(roots[i % 2].id, path, stat, True, contents[i % 480], state, None, '{"bytes": 1}'))
        for i in range(0, 480, 2):
            store.put_distinct(contents[i], contents[i + 1])
    return file


@pytest.fixture
def file(whole: Path, tmp_path: Path) -> Path:
    (tmp_path / "i").mkdir()
    return Path(shutil.copy(whole, tmp_path / "i"))


def contents(file: Path) -> dict[str, set[Any]]:
    """The rows of each table."""
    with closing(sqlite3.connect(file)) as db:
        return {
            table: set(db.execute(f"SELECT * FROM {table}"))
            for table in ("roots", "photos", "vectors", "details", "distinct_pairs")
        }


def pages_of(file: Path, name: str) -> list[int]:
    """The numbers of a table's or an index's pages, the root first."""
    with closing(sqlite3.connect(file)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    data = file.read_bytes()
    pages = [root]
    for page in pages:
        start = (page - 1) * PAGE
        kind, cells = data[start], int.from_bytes(data[start + 3 : start + 5], "big")
        if kind in (2, 5):  # interior
            for cell in range(cells):
                at = start + int.from_bytes(data[start + 12 + 2 * cell :][:2], "big")
                pages.append(int.from_bytes(data[at : at + 4], "big"))
            pages.append(int.from_bytes(data[start + 8 : start + 12], "big"))
    return pages


def damage(file: Path, *pages: int, fill: int = 0) -> None:
    with open(file, "r+b") as raw:
        for page in pages:
            raw.seek((page - 1) * PAGE)
            raw.write(bytes([fill]) * PAGE)


def repaired(file: Path) -> dict[str, set[Any]]:
    report = check_index(file.parent, repair=True)
    assert report.sound and report.repair, report
    rows = contents(file)
    assert {table: len(found) for table, found in rows.items()} == report.repair.saved
    assert report.repair.lost_photos == N - len(rows["photos"])
    return rows


@pytest.mark.parametrize("table", ["vectors", "photos", "details", "distinct_pairs"])
def test_a_page_that_is_lost_costs_its_own_rows(whole: Path, file: Path, table: str) -> None:
    expected, data = contents(whole), whole.read_bytes()
    root, *leaves = pages_of(whole, table)
    assert len(leaves) >= 2
    most = {
        table: 2 * len(rows) // len(leaves) for table, rows in expected.items()
    }  # a page may be fuller than others
    for page in leaves:
        file.write_bytes(data)
        damage(file, page)
        rows = repaired(file)
        for name in expected:
            assert rows[name] <= expected[name]
            if name == table:
                assert 0 < len(expected[name] - rows[name]) <= most[name]
            elif (table, name) not in (("vectors", "photos"), ("vectors", "details")):  # those refer to vectors
                assert rows[name] == expected[name]


@pytest.mark.parametrize("name", ["photos_by_content", "sqlite_autoindex_vectors_1", "sqlite_autoindex_roots_1"])
def test_an_index_that_is_lost_costs_nothing(whole: Path, file: Path, name: str) -> None:
    damage(file, *pages_of(whole, name))
    assert repaired(file) == contents(whole)


@pytest.mark.parametrize("table", ["vectors", "photos"])
def test_rows_between_two_lost_pages_are_saved(whole: Path, file: Path, table: str) -> None:
    leaves = pages_of(whole, table)[1:]
    assert len(leaves) >= 4
    damage(file, leaves[0], leaves[-1])
    lost = len(contents(whole)[table]) - len(repaired(file)[table])
    assert 0 < lost < len(contents(whole)[table]) * 3 / len(leaves)


def test_the_index_is_followed_from_its_end_too(whole: Path, file: Path) -> None:
    leaves, by_content = pages_of(whole, "photos")[1:], pages_of(whole, "photos_by_content")[1:]
    assert len(by_content) >= 2
    damage(file, leaves[0], leaves[-1], by_content[0])
    assert len(repaired(file)["photos"]) > 100


def test_the_first_page_is_lost(whole: Path, file: Path) -> None:
    """The one that says what is where; a new store's is the same."""
    for fill in (0, 255):
        shutil.copy(whole, file)
        damage(file, 1, fill=fill)
        assert repaired(file) == contents(whole)


def test_the_end_is_lost(whole: Path, file: Path) -> None:
    os.truncate(file, file.stat().st_size * 2 // 3 // PAGE * PAGE)
    expected, rows = contents(whole), repaired(file)
    assert all(rows[name] <= expected[name] for name in expected)
    assert sum(map(len, rows.values())) > 0


def test_what_is_lost_is_completed_by_a_sync(tmp_path: Path) -> None:
    directory, photos = tmp_path / "i", tmp_path / "photos"
    for i in range(20):
        make_photo(photos / f"{i}.png", i)
    with SimilarityIndex.create(directory, model=FakeEmbedder()) as index:
        index.sync(photos)
    with closing(sqlite3.connect(directory / STORE_NAME)) as db, db:
        db.execute("UPDATE vectors SET vector = zeroblob(20) WHERE rowid <= 5")
    assert check_index(directory, repair=True).sound
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        report = index.sync(photos)
        assert (report.embedded, report.unchanged) == (5, 15) and len(check_contents(index)) == 20


@pytest.mark.parametrize("table", ["roots", "photos"])
def test_vectors_whose_photos_are_lost_save_the_embedding(tmp_path: Path, photos: Path, table: str) -> None:
    directory = tmp_path / "i"
    with SimilarityIndex.create(directory, model=FakeEmbedder()) as index:
        index.sync(photos)
    with closing(sqlite3.connect(directory / STORE_NAME)) as db, db:
        db.execute(f"UPDATE {table} SET crc = crc + 1")
    report = check_index(directory, repair=True)
    assert report.repair and (report.repair.lost_photos, report.repair.saved["vectors"]) == (4, 4)
    embedder = FakeEmbedder()
    with SimilarityIndex.open(directory, model=embedder) as index:
        assert index.sync(photos).copied == 4 and embedder.embedded == 0
        assert len(check_contents(index)) == 4


@pytest.mark.parametrize("what", ["about", "empty", "not SQLite"])
def test_without_what_made_it_nothing_is_saved(file: Path, what: str) -> None:
    if what == "about":
        with closing(sqlite3.connect(file)) as db, db:
            db.execute("UPDATE meta SET crc = 0 WHERE key = 'about'")
    else:
        file.write_bytes(b"hello" * 99999 if what == "not SQLite" else b"")
    data, names = file.read_bytes(), set(os.listdir(file.parent))
    with pytest.raises(IndexDamagedError, match="nothing can be saved; create the index anew"):
        check_index(file.parent, repair=True)
    assert file.read_bytes() == data and set(os.listdir(file.parent)) <= names | {"writer.lock"}


def test_damaged_files_are_kept_and_a_journal_with_them(whole: Path, file: Path) -> None:
    kept = []
    for _ in range(2):
        shutil.copy(whole, file)
        damage(file, 1)
        data = file.read_bytes()
        file.with_name(f"{STORE_NAME}-journal").write_bytes(b"no journal of SQLite")
        report = check_index(file.parent, repair=True).repair
        assert report and Path(report.kept_as).read_bytes() == data
        kept.append(Path(report.kept_as))
    assert kept[0] != kept[1] and kept[0].exists()
    assert not file.with_name(f"{STORE_NAME}-journal").exists()
    assert sorted(p.name for p in file.parent.iterdir() if ".repair" in p.name) == []


def test_where_hard_links_are_unknown(file: Path, whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    damage(file, pages_of(whole, "vectors")[1])
    monkeypatch.setattr(repair.os, "link", link)
    data = file.read_bytes()
    repaired(file)
    (kept,) = file.parent.glob("*.damaged-*")
    assert kept.read_bytes() == data


@pytest.mark.parametrize("call", ["Store.create", "_copy", "_replace_store", "_files.fsync_directory"])
def test_a_repair_that_fails_changes_nothing(
    file: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    damage(file, pages_of(whole, "vectors")[1])
    data = file.read_bytes()

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(f"simclr_hub.index.repair.{call}", fail)
        last = call == "_files.fsync_directory"
        with pytest.raises(IndexWriteError, match="repaired, but a power cut" if last else "device.*as it was"):
            check_index(file.parent, repair=True)
    if call != "_files.fsync_directory":  # the last step: done, though not known to be durable
        assert file.read_bytes() == data
        repaired(file)


STEPS = ["Store.create", "_copy", "_put_state", "_replace_store", "os.link", "os.replace", "_files.fsync_directory"]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_kill_leaves_the_damaged_or_the_repaired(file: Path, whole: Path, step: str, when: str) -> None:
    damage(file, pages_of(whole, "vectors")[1])
    data = file.read_bytes()
    child = os.fork()
    if child == 0:
        try:
            owner: Any = repair
            *parts, name = step.split(".")
            for part in parts:
                owner = getattr(owner, part)
            real = getattr(owner, name)

            def die(*args: Any) -> Any:
                if when == "after":
                    real(*args)
                os.kill(os.getpid(), signal.SIGKILL)

            setattr(owner, name, die)
            check_index(file.parent, repair=True)
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    if file.read_bytes() == data:
        rows = repaired(file)
    else:
        assert check_index(file.parent).sound
        rows = contents(file)
    assert 0 < len(contents(whole)["vectors"]) - len(rows["vectors"]) < 150
    assert sorted(p.name for p in file.parent.iterdir() if ".repair" in p.name) in ([], [".store.sqlite3.repair"])


def test_a_schema_that_is_no_text(whole: Path, file: Path) -> None:
    """Python's sqlite3 itself cannot quote it."""
    data = whole.read_bytes()
    file.write_bytes(data.replace(b"CREATE TABLE photos (", b"CREATE TABLE \xc3hotos (", 1))
    assert repaired(file) == contents(whole)


def test_every_table_has_its_ways(whole: Path) -> None:
    with closing(sqlite3.connect(whole)) as db:
        assert repair._WAYS.keys() == repair.checked_tables(db).keys() - {"changes"}


def mutate(whole: Path, file: Path, mutants: int, seed: int) -> None:
    """Whatever is damaged: no crash, no hang, and nothing is saved that was not there."""
    expected, data = contents(whole), whole.read_bytes()
    draw = random.Random(seed)
    used = [i for i, byte in enumerate(data) if byte]
    saved = sound = 0
    for n in range(mutants):
        damaged = bytearray(data)
        start, other = (PAGE * draw.randrange(len(data) // PAGE) for _ in range(2))
        match n % 6:
            case 0:
                for _ in range(draw.choice([1, 10, 100])):
                    damaged[draw.choice(used)] ^= draw.randrange(1, 256)
            case 1 | 2:  # where a page says what is where
                damaged[start + draw.randrange(100)] ^= draw.randrange(1, 256)
            case 3:
                damaged[start : start + PAGE], damaged[other : other + PAGE] = (
                    damaged[other : other + PAGE],
                    damaged[start : start + PAGE],
                )
            case 4:
                del damaged[draw.randrange(len(data)) :]
            case 5:
                damaged[start : start + PAGE] = bytes(PAGE)
        file.write_bytes(damaged)
        try:
            report = check_index(file.parent, repair=True)
        except Exception as e:
            assert isinstance(e, (IndexDamagedError, IndexWriteError)) or "newer" in str(e), e
            continue
        assert report.sound, report
        sound += report.repair is None
        saved += report.repair is not None
        rows = contents(file)
        for name in expected:
            assert rows[name] <= expected[name], name
        for kept in file.parent.glob("*.damaged-*"):
            kept.unlink()
    assert saved > mutants / 4, (saved, sound)


def test_mutants(whole: Path, file: Path) -> None:
    mutate(whole, file, mutants=18, seed=0)


@pytest.mark.slow
def test_many_mutants(whole: Path, file: Path) -> None:
    mutate(whole, file, mutants=300, seed=1)


def test_a_journal_of_the_damaged_store_is_not_left_for_the_new_one(file: Path, tmp_path: Path) -> None:
    partial = Path(shutil.copy(file, tmp_path / "partial"))
    journal = file.with_name(f"{STORE_NAME}-journal")
    journal.write_bytes(b"of the old one")
    kept = repair._replace_store(file, partial)
    assert not journal.exists() and kept.with_name(f"{kept.name}-journal").read_bytes() == b"of the old one"


def test_a_repaired_store_is_of_a_later_generation(file: Path) -> None:
    """Or a search cache of the damaged one would pass for its own."""
    with closing(Store(file)) as store:
        before, _ = store.version()
    repair.repair_store(file.parent)
    with closing(Store(file)) as store:
        assert store.version()[0] > before


def test_rows_that_go_round_in_a_circle_end() -> None:
    class Circle:
        def execute(self, sql: str, values: object) -> Any:
            return itertools.cycle([(1, "a"), (2, "b"), (3, "c")] if "DESC" not in sql else [(2, "b"), (1, "a")])

    db: Any = Circle()
    assert list(repair._until_damage(db, "ORDER BY n", 1)) == [("a",), ("b",), ("c",)]
    assert list(repair._until_damage(db, "ORDER BY n DESC", 1)) == [("b",), ("a",)]
