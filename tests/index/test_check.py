"""Checking: a sound index passes and is left alone, every kind of damage is told, and so is what was not verified."""

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import FakeEmbedder, make_photo

from simclr_hub.embedder import Failure
from simclr_hub.errors import CorruptImageError, IndexLockedError, IndexMismatchError, IndexNotFoundError
from simclr_hub.images import read_file
from simclr_hub.index import SimilarityIndex, check, check_index
from simclr_hub.index.store import STORE_NAME, Store, checksum


@pytest.fixture
def directory(index: SimilarityIndex, photos: Path, settled: None) -> Path:
    """A closed index of four photos, a copy and a failure."""
    make_photo(photos / "copy of a.png", 0)
    (photos / "broken.jpg").write_bytes(b"no image")
    index.sync(photos)
    hashes = [photo.content_hash for photo in index._store.photos() if photo.content_hash]
    with index._store.writing(), index._store.transaction():
        index._store.put_distinct(hashes[0], hashes[1])
    index.close()
    return index._store.file.parent


def execute(directory: Path, sql: str, *values: object) -> None:
    with closing(sqlite3.connect(directory / STORE_NAME)) as db, db:
        db.execute(sql, values)


def test_a_sound_index(directory: Path) -> None:
    before = (directory / STORE_NAME).read_bytes(), sorted(os.listdir(directory))
    report = check_index(directory, repair=True)
    assert report.sound and report.repair is None and report.notes == []
    assert report.verified.pop("pages") == len(before[0]) / 16384
    assert report.verified.pop("changes", 0) == 0
    assert report.verified == {
        "meta": 3, "roots": 1, "vectors": 4, "photos": 6, "details": 4, "distinct_pairs": 1,
        "photos with a vector": 5, "search cache": 1,
    }  # fmt: skip
    assert report.unverified == ["the photos themselves: a deep check reads them again"]
    assert ((directory / STORE_NAME).read_bytes(), sorted(os.listdir(directory))) == before


DAMAGE = {
    "a vector": ("UPDATE vectors SET vector = zeroblob(20) WHERE rowid = 3", "vectors: .*does not match its checksum"),
    "a photo": ("UPDATE photos SET settled = 1 - settled", "photos: a.png: does not match its checksum"),
    "a root": ("UPDATE roots SET path = x'2f78'", "roots: /x: does not match its checksum"),
    "details": ("UPDATE details SET info = '{}x'", "details: .*: does not match its checksum"),
    "a pair": ("UPDATE distinct_pairs SET crc = 0", "distinct_pairs: .*: does not match its checksum"),
    "a photo is lost": (
        "DELETE FROM photos WHERE path = (SELECT max(path) FROM photos)",
        "5 photos are there, 6 were",
    ),
    "a vector is lost": ("DELETE FROM vectors WHERE rowid = 3", "rows refer to others that are not there"),
    "a change": ("INSERT INTO changes VALUES (1, 7, x'00')", "changes: .*does not match its checksum"),
    "a record": ("UPDATE meta SET crc = 0 WHERE key = 'state'", "meta: state: does not match its checksum"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_each_kind_of_damage_is_told(directory: Path, what: str) -> None:
    statement, expected = DAMAGE[what]
    execute(directory, statement)
    report = check_index(directory)
    assert not report.sound and any(re.search(expected, problem) for problem in report.problems), report.problems


@pytest.mark.parametrize(
    ("vector", "why"),
    [([3, 4, 0, 0, 0], "of length 5, not 1"), ([np.nan] * 5, "not finite"), ([1, 0], "8 bytes, not 20")],
)
def test_a_vector_that_was_recorded_wrong(directory: Path, vector: list[float], why: str) -> None:
    with closing(sqlite3.connect(directory / STORE_NAME)) as db:
        (content_hash,) = db.execute("SELECT content_hash FROM vectors WHERE rowid = 1").fetchone()
    data = np.array(vector, "<f4").tobytes()
    execute(directory, "UPDATE vectors SET vector = ?, crc = ? WHERE rowid = 1", data, checksum(content_hash, data))
    report = check_index(directory)
    assert len(report.problems) == 1 and report.problems[0].endswith(why)


def test_pages_that_are_damaged(directory: Path) -> None:
    with open(directory / STORE_NAME, "r+b") as file:
        file.seek(16384 * 4)
        file.write(bytes(100))
    report = check_index(directory)
    assert report.problems and "pages" not in report.verified
    assert report.unverified[0] == "the rows: SQLite cannot be relied on to find them"


def test_many_damaged_rows_are_told_in_a_few_lines(directory: Path) -> None:
    execute(directory, "UPDATE photos SET crc = 0")
    problems = [problem for problem in check_index(directory).problems if problem.startswith("photos: ")]
    assert len(problems) == 4 and problems[-1] == "photos: 3 more rows like these"


def test_a_cache_that_does_not_fit_is_no_damage(directory: Path) -> None:
    for file in directory.glob("*.cache"):
        file.unlink()
    report = check_index(directory)
    assert report.sound and "search cache" not in report.verified
    assert report.notes == ["the search cache does not fit; the next sync makes it anew, a search does without"]


def test_nothing_there_newer_and_locked(directory: Path, tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError):
        check_index(tmp_path)
    with SimilarityIndex.open(directory) as index, index._store.writing():
        with pytest.raises(IndexLockedError, match=f"process {os.getpid()} writes"):
            check_index(directory)
    execute(directory, "PRAGMA user_version = 99")
    with pytest.raises(IndexMismatchError, match="newer"):
        check_index(directory, repair=True)


def test_the_locks_of_an_open_store_outlive_a_check(directory: Path) -> None:
    """A file opened and closed outside SQLite would drop them, and a second writer could get in."""
    with closing(Store(directory / STORE_NAME)) as store, store.reading():
        store.photos()
        with pytest.MonkeyPatch.context() as patch:
            real = open

            def watch(file: Any, *args: Any, **kwargs: Any) -> Any:
                assert not str(file).endswith(STORE_NAME)  # its journal has no locks
                return real(file, *args, **kwargs)

            patch.setattr("builtins.open", watch)
            assert check_index(directory).sound
        code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], timeout=0); db.execute('BEGIN EXCLUSIVE')"
        import subprocess
        import sys

        other = subprocess.run([sys.executable, "-c", code, store.file], capture_output=True, text=True)
        assert "database is locked" in other.stderr


def deep(directory: Path, **options: Any) -> Any:
    return check_index(directory, deep=True, model=FakeEmbedder(), **options)


def test_photos_read_again(directory: Path, photos: Path) -> None:
    report = deep(directory)
    assert report.sound and report.unverified == []
    assert report.photos == {"same": 5, "changed": 0, "missing": 0, "unreadable": 0, "damaged": 0}
    assert report.verified["vectors embedded again"] == 5
    (photos / "a.png").unlink()
    make_photo(photos / "b.png", 77)
    (photos / "copy of a.png").unlink()
    (photos / "copy of a.png").mkdir()
    damaged = photos / "below/c.png"
    before = damaged.stat()
    data = bytearray(damaged.read_bytes())
    data[-20] ^= 1
    damaged.write_bytes(data)
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.MonkeyPatch.context() as patch:  # what a failing disk does: not even the ctime changes
        recorded = {p.path: p.stat for p in closed_photos(directory)}
        patch.setattr("simclr_hub.index.check.FileStat.of", lambda stat: recorded[b"below/c.png"])
        report = deep(directory)
    assert report.photos == {"same": 1, "changed": 1, "missing": 1, "unreadable": 1, "damaged": 1}
    assert report.sound and report.damaged_photos == [str(damaged)]
    assert deep(directory).photos["changed"] == 2  # its ctime tells that a program wrote it


def closed_photos(directory: Path) -> list[Any]:
    with closing(Store(directory / STORE_NAME)) as store:
        return store.photos()


def test_a_deep_check_goes_on_where_it_was_stopped(
    directory: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "PAGE", 2)
    read: list[str] = []
    stop_at = 2

    def reading(path: bytes, **options: Any) -> Any:
        if len(read) >= stop_at:
            raise KeyboardInterrupt
        read.append(os.path.relpath(os.fsdecode(path), photos))
        return read_file(path, **options)

    monkeypatch.setattr(check, "read_file", reading)
    seen: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        deep(directory, progress=lambda *now: seen.append(now))
    assert read == ["a.png", "b.png"] and seen == [(2, 5)]
    stop_at = 100
    report = deep(directory, progress=lambda *now: seen.append(now))
    assert read[2:5] == ["below/c.png", "below/d.png", "copy of a.png"] and seen[1:] == [(4, 5), (5, 5)]
    assert report.photos["same"] == 5 and "went on" in report.notes[0]
    assert not (directory / check.POSITION_NAME).exists()
    (directory / check.POSITION_NAME).write_text("{")  # a position that cannot be read begins anew
    assert deep(directory).photos["same"] == 5


def test_another_model_does_not_give_the_vectors_again(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Turned(FakeEmbedder):
        def stream(self, sources: Any) -> Any:
            for item in super().stream(sources):
                item.vector[0] += 0.02
                yield item

    report = check_index(directory, deep=True, model=Turned())
    assert len(report.problems) == 1 and "does not give the recorded vector again, cosine 0.9" in report.problems[0]
    report = check_index(directory, deep=True)  # made by a model that cannot be loaded by its name
    assert report.sound and report.unverified[0].startswith("whether the model still gives the same vectors: ")
    assert report.photos["same"] == 5


def test_an_index_checks_itself(directory: Path) -> None:
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        assert index.check(deep=True).verified["vectors embedded again"] == 5
        execute(directory, "UPDATE vectors SET crc = crc + 1 WHERE rowid = 2")
        assert index.check().problems
        report = index.check(repair=True)
        assert report.sound and report.repair is not None
        assert len(index) < 5  # of the new store, open already


def test_a_read_only_index_is_checked(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simclr_hub.index.check.os.access", lambda path, mode: False)
    before = sorted(os.listdir(directory))
    os.unlink(directory / "writer.lock")
    assert check_index(directory).sound
    assert sorted(os.listdir(directory)) == [name for name in before if name != "writer.lock"]


def test_a_young_file_that_changed_was_edited(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)  # at once: a change may have come within the tick of the recorded stamp
    stamp = next(photo.stat for photo in index._store.photos() if photo.path == b"a.png")
    index.close()
    make_photo(photos / "a.png", 77)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simclr_hub.index.check.FileStat.of", lambda stat: stamp)
        report = deep(index._store.file.parent)
    assert (report.photos["changed"], report.photos["damaged"]) == (1, 0)


def test_a_photo_that_is_known_to_be_missing_is_not_counted(directory: Path, photos: Path) -> None:
    (photos / "a.png").unlink()
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        index.sync(photos)
    assert deep(directory).photos == {"same": 4, "changed": 0, "missing": 0, "unreadable": 0, "damaged": 0}


def test_only_so_many_damaged_photos_are_named(directory: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        make_photo(photos / name, 77)
    recorded = iter([photo.stat for photo in closed_photos(directory) if photo.path in (b"a.png", b"b.png")])
    pool = check.Pool
    monkeypatch.setattr(check, "Pool", lambda *_: pool(1, "one"))  # in order
    monkeypatch.setattr("simclr_hub.index.check.FileStat.of", lambda stat: next(recorded))
    monkeypatch.setattr(check, "NAMED", 1)
    report = deep(directory)
    assert report.photos["damaged"] == 2 and report.damaged_photos == [str(photos / "a.png")]


def test_the_sample_goes_past_photos_that_cannot_be_read(
    directory: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "SAMPLE", 1)
    with closing(Store(directory / STORE_NAME)) as store:
        (first,) = store.sample(1)
    (photos / os.fsdecode(first.path)).unlink()
    report = deep(directory)
    assert report.unverified == [] and report.verified["vectors embedded again"] == 1


def test_a_known_photo_that_the_model_fails_on_is_a_problem(directory: Path) -> None:
    class Failing(FakeEmbedder):
        def stream(self, sources: Any, **options: Any) -> Any:
            for position, source in enumerate(sources):
                yield Failure(position, source, CorruptImageError("no"))

    report = check_index(directory, deep=True, model=Failing())
    assert len(report.problems) == 1 and "does not give the recorded vector again" in report.problems[0]


def test_an_unreadable_photo_that_went_away_is_no_damage(tmp_path: Path) -> None:
    photos, index = tmp_path / "photos", SimilarityIndex.create(tmp_path / "i", FakeEmbedder())
    make_photo(photos / "good.png", 0)
    (photos / "bad.png").write_bytes(b"no image")
    with index:
        index.sync(photos)
        (photos / "bad.png").unlink()
        index.sync(photos)
        assert index.missing() == [str(photos / "bad.png")] and index.failures() == []
        assert index.check(deep=True).problems == []
        assert index.export(tmp_path / "x.parquet") == 1
        assert index.prune(force=True) == 1 and index.check().problems == []
