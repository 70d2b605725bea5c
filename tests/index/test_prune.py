import os
import shutil
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder, check_index, make_photo, tree_state

from simclr_hub import scan as scan_module
from simclr_hub.errors import PruneRefusedError, RootUnavailableError
from simclr_hub.index import SimilarityIndex


@pytest.fixture
def many(tmp_path: Path, index: SimilarityIndex) -> Path:
    """20 photos that are indexed."""
    for i in range(20):
        make_photo(tmp_path / f"many/{i}.png", i)
    index.sync(tmp_path / "many")
    return tmp_path / "many"


def test_forgets_the_missing_and_their_vectors(index: SimilarityIndex, many: Path) -> None:
    (many / "0.png").unlink()
    shutil.copy(many / "1.png", many / "copy.png")
    index.sync(many)
    (many / "1.png").unlink()  # its content is still there
    index.sync(many)
    assert index.missing() == [str(many / "0.png"), str(many / "1.png")]
    before = tree_state(many)
    assert index.prune() == 2
    assert index.missing() == [] and index.status()["vectors"] == 19 and len(check_index(index)) == 19
    assert tree_state(many) == before
    assert index.prune() == 0


def test_refused_when_much_is_missing(index: SimilarityIndex, many: Path) -> None:
    for i in range(3):
        (many / f"{i}.png").unlink()
    index.sync(many)
    with pytest.raises(PruneRefusedError, match="3 of 20 photos are missing, more than 10%"):
        index.prune()
    assert len(index.missing()) == 3
    assert index.prune(force=True) == 3


def test_refused_when_a_listing_failed(index: SimilarityIndex, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photo(many / "below/x.png", 99)
    index.sync(many)
    (many / "0.png").unlink()
    real = os.scandir

    def scandir(path: bytes) -> object:
        if os.fsencode(path).endswith(b"/below"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    with monkeypatch.context() as patch:
        patch.setattr(scan_module.os, "scandir", scandir)
        index.sync(many)
    with pytest.raises(PruneRefusedError, match="many could not be listed in full"):
        index.prune()
    index.sync(many / "below")  # tells nothing about the rest
    with pytest.raises(PruneRefusedError):
        index.prune()
    index.sync(many)
    assert index.prune() == 1


def test_a_root_that_is_gone_for_good_needs_force(
    index: SimilarityIndex, many: Path, photos: Path, embedder: FakeEmbedder
) -> None:
    index.sync(photos)
    shutil.rmtree(photos)
    with pytest.raises(RootUnavailableError):
        index.sync(photos)
    with pytest.raises(PruneRefusedError):
        index.prune()
    assert len(index) == 24 and index.missing() == []  # no sync could mark them
    assert index.prune(force=True) == 4
    assert index.status()["roots"] == [str(many)] and len(check_index(index)) == 20


def test_force_spares_a_root_that_is_there_again(index: SimilarityIndex, many: Path) -> None:
    many.rename(many.with_name("away"))
    with pytest.raises(RootUnavailableError):
        index.sync(many)
    many.with_name("away").rename(many)
    assert index.prune(force=True) == 0 and len(index) == 20


def test_a_tenth_may_be_missing(index: SimilarityIndex, many: Path) -> None:
    for i in range(2):
        (many / f"{i}.png").unlink()
    index.sync(many)
    assert index.prune() == 2 and len(index) == 18


def test_a_folder_without_photos_that_is_gone_does_not_refuse(index: SimilarityIndex, many: Path) -> None:
    with index._store.writing(), index._store.transaction():
        index._store.put_root(b"/no photos", "unavailable")
    (many / "0.png").unlink()
    index.sync(many)
    assert index.prune() == 1 and index.status()["roots"] == [str(many)]
