"""An index's page, served."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browse_client import Client
from index.index_fakes import FakeEmbedder

from simclr_hub import SimilarityIndex
from simclr_hub.browse.server import serving


@pytest.fixture
def index(tmp_path: Path, photos: Path) -> Iterator[SimilarityIndex]:
    with SimilarityIndex.create(tmp_path / "photos.index", FakeEmbedder()) as made:
        made.sync(photos)
        yield made


@pytest.fixture
def client(index: SimilarityIndex) -> Iterator[Client]:
    with serving(index) as address:
        yield Client(address)
