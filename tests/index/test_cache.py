import errno
import os
import subprocess
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from index_fakes import DIM, FakeEmbedder, check_index, make_photo, put_vectors

from simclr_hub import _files
from simclr_hub.errors import IndexDamagedError
from simclr_hub.index import SimilarityIndex
from simclr_hub.index.search import ann, segments, snapshot
from simclr_hub.index.search.arrays import BLOCK


@pytest.fixture(params=["exact", "approximate"])
def file(
    index: SimilarityIndex, photos: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The cache file of an index, of either kind."""
    if request.param == "approximate":
        monkeypatch.setattr(ann, "MAX_EXACT", 0)
        put_vectors(index, 296)
    index.sync(photos)
    (file,) = caches(index)
    return file


def caches(index: SimilarityIndex) -> list[Path]:
    return sorted(index._store.file.parent.glob("search-*.cache"))


def reopen(file: Path) -> SimilarityIndex:
    return SimilarityIndex.open(file.parent, model=FakeEmbedder())


def count_rebuilds(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """An item for each time that a search reads photos from the store."""
    calls: list[object] = []
    real = snapshot.make_segment

    def make(*args: object) -> object:
        calls.append(args[1:])
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot, "make_segment", make)
    return calls


def test_a_sync_writes_it_and_the_next_process_reads_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rebuilds = count_rebuilds(monkeypatch)
    with reopen(file) as index:
        assert len(index.search(np.ones(DIM), k=4)) == 4
        with index._store.reading():
            (segment,) = segments.read_cache(index._store) or []
        assert (segment.ivf is not None) == (len(segment.vectors) == 300)
    assert rebuilds == []


def test_an_import_writes_it_and_the_next_process_reads_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reopen(file) as index:
        index.export(tmp_path / "out.parquet")
    SimilarityIndex.from_export(tmp_path / "out.parquet", tmp_path / "imported").close()
    rebuilds = count_rebuilds(monkeypatch)
    with SimilarityIndex.open(tmp_path / "imported", model=FakeEmbedder()) as index:
        assert len(index.search(np.ones(DIM), k=4)) == 4
        with index._store.reading():
            (segment,) = segments.read_cache(index._store) or []
        assert (segment.ivf is not None) == (len(segment.vectors) == 300)
    assert rebuilds == []


def test_an_index_of_another_generation_is_not_read(file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = file.read_bytes()
    with reopen(file) as index:
        put_vectors(index, 100, seed=1)  # too many to be written beside it
        index.sync(photos)
        (new,) = caches(index)
        number = len(index)
    assert new != file
    new.write_bytes(old)
    rebuilds = count_rebuilds(monkeypatch)
    with reopen(file) as index:
        assert len(index.search(np.ones(DIM), k=1000)) == number
    assert len(rebuilds) == 1


@pytest.mark.parametrize("mutants", [24, pytest.param(400, marks=pytest.mark.slow)])
def test_no_damaged_file_is_used(file: Path, mutants: int) -> None:
    """Flips, cuts, additions: what is found is always what the store has."""
    data, random = file.read_bytes(), np.random.default_rng(0)
    queries = list(random.normal(size=(3, DIM)))
    with reopen(file) as index:
        expected = index.search(queries, k=1000)
        approximate = index.search(queries, k=10)
    for n in range(mutants):
        damaged = bytearray(data)
        if n % 8 < 6:
            damaged[random.integers(len(data))] ^= int(random.integers(1, 256))
        elif n % 8 == 6:
            del damaged[random.integers(len(data)) :]
        else:
            damaged += bytes(random.integers(1, 100))
        file.write_bytes(damaged)
        with reopen(file) as index:
            assert not segments.cache_fits(index._store)
            assert index.search(queries, k=1000) == expected if n % 2 else True
            assert index.search(queries, k=10) in ([found[:10] for found in expected], approximate)
            assert len(index.search(queries[0], k=3, path="**/*.png")) == 3
    file.unlink()
    with reopen(file) as index:
        assert index.search(queries, k=1000) == expected


def test_only_what_a_search_uses_is_compared(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening and a search do not read a large file as a whole."""
    monkeypatch.setattr(ann, "MAX_EXACT", 0)
    monkeypatch.setattr("simclr_hub.index.search.arrays.BLOCK", 64)
    put_vectors(index, 1000)
    index.sync(photos)
    with reopen(caches(index)[0]) as other:
        other.search(np.ones(DIM), k=1)
        file = other._current().segments[0].file
        assert file is not None and file._good.any() and not file._good.all()
        good = file._good.sum()
        other.search(np.ones(DIM), k=1)
        assert file._good.sum() == good
    assert BLOCK == 1 << 15


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_sync_repairs_it(file: Path, photos: Path, damage: str) -> None:
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(b"x" + data[1:])
    else:
        file.unlink()
    with reopen(file) as index:
        index.sync(photos)
        assert segments.cache_fits(index._store)
    assert file.read_bytes() == data


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_a_full_disk_costs_only_the_cache(
    index: SimilarityIndex, photos: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_files if call == "open" else _files.os, call, fail, raising=False)
        index.sync(photos)
    directory = index._store.file.parent
    assert sorted(os.listdir(directory)) == ["store.sqlite3", "writer.lock"]
    assert len(index.search(np.ones(DIM))) == 4 and len(check_index(index)) == 4


def test_a_search_writes_nothing(file: Path) -> None:
    file.unlink()
    before = {p.name: p.stat().st_mtime_ns for p in file.parent.iterdir()}
    with reopen(file) as index:
        index.search(np.ones(DIM))
    assert {p.name: p.stat().st_mtime_ns for p in file.parent.iterdir()} == before


def test_a_sync_removes_what_is_of_no_use(file: Path, photos: Path) -> None:
    for name in ("vectors.faiss", ".vectors.faiss.abc", ".search-7.cache.abc", "search-0.cache", "mine.cache"):
        (file.parent / name).write_bytes(b"x")
    make_photo(photos / "new.png", 9999)
    with reopen(file) as index:
        index.sync(photos)
        used = {path.name for path in caches(index)}
    assert {p.name for p in file.parent.iterdir()} == {"store.sqlite3", "writer.lock", "mine.cache", *used}


def test_a_vector_that_is_gone_is_damage(file: Path) -> None:
    file.unlink()
    with reopen(file) as index:
        with index._store.lock:
            db = index._store._connection()
            db.execute("PRAGMA foreign_keys = OFF")
            db.execute("DELETE FROM vectors WHERE rowid = 2")
        with pytest.raises(IndexDamagedError, match="1 photos without a vector"):
            index.search(np.ones(DIM))


def test_on_a_read_only_mount(file: Path, photos: Path, tmp_path: Path) -> None:
    """A real one, where the system allows to make one."""
    mount = tmp_path / "mount"
    mount.mkdir()
    made = subprocess.run(["mount", "--bind", file.parent, mount], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("mounting needs root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", mount], check=True, capture_output=True)
        file.unlink()
        with SimilarityIndex.open(mount, model=FakeEmbedder()) as index:
            assert index._store.read_only
            assert index.search(photos / "a.png", k=1, with_self=True)[0].path == str(photos / "a.png")
    finally:
        subprocess.run(["umount", mount], check=True)


def test_its_build_takes_little_memory_a_photo(index: SimilarityIndex) -> None:
    def most(number: int, seed: int) -> int:
        put_vectors(index, number, seed=seed)
        with index._store.writing():
            tracemalloc.start()
            assert segments.update_cache(index._store)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak

    few, many = most(1_000, 0), most(7_000, 1)
    assert many - few < 7_000 * 450  # a list of Python objects would be a kilobyte each
