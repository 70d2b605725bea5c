"""Photo folders that are not there, or only seem empty: nothing is forgotten."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder, check_index, make_photo

from simclr_hub.errors import PruneRefusedError, RootUnavailableError
from simclr_hub.index import SimilarityIndex

pytestmark = pytest.mark.usefixtures("settled")


def mount(*arguments: object) -> None:
    """Mount, or skip the test where that is not allowed."""
    if subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A mounted disk with 20 photos."""
    place = tmp_path / "disk"
    place.mkdir()
    mount("-t", "tmpfs", "-o", "size=4m", "none", place)
    for i in range(20):
        make_photo(place / f"{i}.png", i)
    yield place
    subprocess.run(["umount", "-l", place], check=False, capture_output=True)


def test_an_unmounted_disk(index: SimilarityIndex, disk: Path, embedder: FakeEmbedder) -> None:
    index.sync(disk)
    disk.with_name("elsewhere").mkdir()
    subprocess.run(["mount", "--bind", disk, disk.with_name("elsewhere")], check=True)
    subprocess.run(["umount", disk], check=True)
    try:
        report = index.sync(disk)  # the mount point, empty
        assert (report.found, report.missing) == (0, 20)
        with pytest.raises(PruneRefusedError, match="20 of 20 photos are missing.*is a disk unplugged"):
            index.prune()
    finally:
        subprocess.run(["mount", "--bind", disk.with_name("elsewhere"), disk], check=True)
        subprocess.run(["umount", disk.with_name("elsewhere")], check=True)
    report = index.sync(disk)
    assert (report.unchanged, report.came_back, report.embedded) == (20, 20, 0)
    assert len(check_index(index)) == 20


@pytest.mark.parametrize("what", ["gone", "a file", "a dangling link", "not permitted"])
def test_a_root_that_cannot_be_listed(
    index: SimilarityIndex, photos: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(photos)
    before = index._store.photos()
    photos.rename(photos.with_name("away"))
    if what == "a file":
        photos.write_bytes(b"")
    elif what == "a dangling link":
        photos.symlink_to(photos)
    elif what == "not permitted":
        photos.mkdir()
        real = os.scandir

        def scandir(path: bytes) -> object:
            if path == bytes(photos):
                raise PermissionError(13, "Permission denied", path)
            return real(path)

        monkeypatch.setattr("simclr_hub.scan.os.scandir", scandir)
    with pytest.raises(RootUnavailableError, match="nothing was changed"):
        index.sync(photos)
    assert index._store.photos() == before and len(index) == 4
    with pytest.raises(PruneRefusedError, match="could not be listed"):
        index.prune()
