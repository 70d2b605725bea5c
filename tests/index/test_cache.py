import errno
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import DIM, FakeEmbedder, check_index, make_photo

from simclr_hub import _files
from simclr_hub.errors import IndexDamagedError
from simclr_hub.index import SimilarityIndex, faiss_cache


@pytest.fixture
def file(index: SimilarityIndex, photos: Path) -> Path:
    """The cache file of an index of four photos."""
    index.sync(photos)
    return index._store.file.with_name("vectors.faiss")


def reopen(file: Path) -> SimilarityIndex:
    return SimilarityIndex.open(file.parent, model=FakeEmbedder())


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of what FAISS is given to read from now on."""
    reads: list[int] = []
    faiss = faiss_cache._faiss()
    real = faiss.deserialize_index

    def deserialize(data: np.ndarray) -> Any:
        reads.append(len(data))
        return real(data)

    monkeypatch.setattr(faiss, "deserialize_index", deserialize)
    return reads


def test_a_sync_writes_it_and_the_next_process_reads_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = count_reads(monkeypatch)
    monkeypatch.setattr(faiss_cache, "build", lambda vectors: pytest.fail("built anew"))
    with reopen(file) as index:
        assert len(index.search(np.ones(DIM))) == 4
    assert reads == [file.stat().st_size]


def test_an_index_of_another_generation_is_not_read(file: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = file.read_bytes()
    make_photo(photos / "new.png", 9)
    with reopen(file) as index:
        index.sync(photos)
    file.write_bytes(old)
    reads = count_reads(monkeypatch)
    with reopen(file) as index:
        assert len(index.search(np.ones(DIM))) == 5
    assert reads == []


def test_no_damaged_file_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Flips, cuts, additions: the result is always that of the store."""
    data, random = file.read_bytes(), np.random.default_rng(0)
    reads = count_reads(monkeypatch)
    with reopen(file) as index:
        expected = index.search(np.ones(DIM))
        assert reads.pop()
        for n in range(200):
            damaged = bytearray(data)
            if n < 150:
                damaged[random.integers(len(data))] ^= int(random.integers(1, 256))
            elif n < 175:
                del damaged[random.integers(len(data)) :]
            else:
                damaged += bytes(random.integers(1, 100))
            file.write_bytes(damaged)
            index._snapshot = None
            assert index.search(np.ones(DIM)) == expected
        file.unlink()
        index._snapshot = None
        assert index.search(np.ones(DIM)) == expected
    assert reads == []


@pytest.mark.parametrize("damage", ["flip", "remove"])
def test_a_sync_repairs_it(file: Path, photos: Path, damage: str) -> None:
    data = file.read_bytes()
    if damage == "flip":
        file.write_bytes(data[:-1] + b"x")
    else:
        file.unlink()
    with reopen(file) as index:
        index.sync(photos)
    assert file.read_bytes() == data


@pytest.mark.parametrize("call", ["mkstemp", "fsync", "replace"])
def test_a_full_disk_costs_only_the_cache(
    index: SimilarityIndex, photos: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_files.tempfile if call == "mkstemp" else _files.os, call, fail)
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
        (file.parent / "vectors.faiss").unlink()
        with SimilarityIndex.open(mount, model=FakeEmbedder()) as index:
            assert index._store.read_only
            assert index.search(photos / "a.png", k=1)[0].path == str(photos / "a.png")
    finally:
        subprocess.run(["umount", mount], check=True)
