"""A photo folder, an embedder and an empty index for each test, for the conftest.py of those that want them."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder, make_photo

from simclr_hub.index import SimilarityIndex
from simclr_hub.scan import FileStat


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory if there is such a place: kills and failures do not need a disk, and fsync is slow on one."""
    memory = Path("/dev/shm")
    path = Path(tempfile.mkdtemp(prefix="simclr-hub-test-", dir=memory if memory.is_dir() else None)).resolve()
    yield path
    shutil.rmtree(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a.png, b.png, below/c.png, below/d.png"""
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "b.png", "below/c.png", "below/d.png")):
        make_photo(folder / name, seed)
    return folder


@pytest.fixture
def embedder() -> FakeEmbedder:
    return FakeEmbedder()


@pytest.fixture
def index(tmp_path: Path, embedder: FakeEmbedder) -> Iterator[SimilarityIndex]:
    with SimilarityIndex.create(tmp_path / "photos.index", model=embedder) as index:
        yield index


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust stamps at once, as if every file had been written long ago."""
    monkeypatch.setattr(FileStat, "settled", lambda self, scan_time_ns: True)


__all__ = ["embedder", "index", "photos", "settled", "tmp_path"]
