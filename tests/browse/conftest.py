"""An index's page, served."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browse_client import Client
from index.index_fakes import FakeEmbedder, make_photo

from simclr_hub import SimilarityIndex
from simclr_hub.browse.server import serving


@pytest.fixture(autouse=True)
def own_thumbnails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep them apart from those of other tests, whose photos may hold the same."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture
def index(tmp_path: Path, photos: Path) -> Iterator[SimilarityIndex]:
    with SimilarityIndex.create(tmp_path / "photos.index", FakeEmbedder()) as made:
        made.sync(photos)
        yield made


@pytest.fixture
def client(index: SimilarityIndex) -> Iterator[Client]:
    with serving(index) as address:
        yield Client(address)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server that is only asked, so that one does for all tests of a module."""
    folder = tmp_path_factory.mktemp("asked")
    for seed in range(6):
        make_photo(folder / "photos" / f"{seed}.png", seed)
    with SimilarityIndex.create(folder / "photos.index", FakeEmbedder()) as made:
        made.sync(folder / "photos")
        with serving(made) as address:
            yield Client(address)
