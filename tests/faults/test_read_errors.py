"""A file that cannot be read is not a file that is gone, or another one."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from index_fakes import FakeEmbedder, make_photo

from simclr_hub.errors import PruneRefusedError, UnreadableImageError
from simclr_hub.index import SimilarityIndex, sync


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Callable[[set[str], int], None]:
    """Let reading these names fail, as a disk does that answers with errors (root reads whatever its mode is)."""
    real = sync.read_file

    def set_broken(names: set[str], code: int = errno.EIO) -> None:
        def read_file(path: bytes, **settings: bool) -> object:
            if os.path.basename(os.fsdecode(path)) in names:
                raise UnreadableImageError(f"{os.fsdecode(path)}: {os.strerror(code)}") from OSError(code, "x")
            return real(path, **settings)

        monkeypatch.setattr(sync, "read_file", read_file)

    return set_broken


def touched(folder: Path) -> None:
    """Change all stamps, as chmod does."""
    for path in folder.rglob("*.png"):
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 10**9))


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.EPERM, errno.ETIMEDOUT, errno.ESTALE])
@pytest.mark.parametrize("names", [{"a.png"}, {"a.png", "b.png", "c.png", "d.png"}])
def test_what_cannot_be_read_stays_and_is_found(
    index: SimilarityIndex,
    photos: Path,
    embedder: FakeEmbedder,
    broken: Callable[..., None],
    code: int,
    names: set[str],
) -> None:
    index.sync(photos)
    before = index.vectors()
    touched(photos)
    broken(names, code)
    report = index.sync(photos)
    assert (report.found, report.failed, report.missing) == (4, len(names), 0)
    assert {Path(path).name for path, _ in index.failures()} == names
    after = index.vectors()
    assert after[0] == before[0] and np.array_equal(after[1], before[1])
    assert len(index.search(photos / "a.png", with_self=True)) == 4
    assert index.prune() == 0 and index.status()["vectors"] == 4
    assert index.check().sound
    broken(set())
    embedder.embedded = 0
    assert (index.sync(photos).unchanged, embedder.embedded, index.failures()) == (4, 0, [])


def test_what_was_missing_and_is_there_unreadable_comes_back(
    index: SimilarityIndex, photos: Path, broken: Callable[..., None]
) -> None:
    index.sync(photos)
    (photos / "a.png").rename(photos.parent / "a.png")
    index.sync(photos)
    (photos.parent / "a.png").rename(photos / "a.png")
    touched(photos)
    broken({"a.png"})
    assert (index.sync(photos).came_back, index.missing(), len(index)) == (1, [], 4)


def test_other_content_is_embedded_once_it_can_be_read(
    index: SimilarityIndex, photos: Path, embedder: FakeEmbedder, broken: Callable[..., None]
) -> None:
    index.sync(photos)
    make_photo(photos / "a.png", 50)
    broken({"a.png"})
    index.sync(photos)
    broken(set())
    embedder.embedded = 0
    assert index.sync(photos).embedded == embedder.embedded == 1


def test_content_that_was_read_and_is_damaged_replaces_it_but_prune_asks(
    index: SimilarityIndex, tmp_path: Path
) -> None:
    folder = tmp_path / "many"
    for seed in range(20):
        make_photo(folder / f"{seed}.png", seed)
    index.sync(folder)
    for seed in range(3):
        (folder / f"{seed}.png").write_bytes(b"\0" * 100)  # what a failing disk may give
    assert (index.sync(folder).failed, len(index)) == (3, 17)
    with pytest.raises(PruneRefusedError, match="3 can no longer be decoded"):
        index.prune()
    assert index.status()["vectors"] == 20
    index.prune(force=True)
    assert index.status()["vectors"] == 17


def test_each_of_equal_files_is_named_in_its_own_failure(index: SimilarityIndex, photos: Path) -> None:
    for name in ("x.png", "y.png", "z.png"):
        (photos / name).write_bytes(b"no image")
    index.sync(photos)
    assert all(why.startswith(path) for path, why in index.failures()) and len(index.failures()) == 3


@pytest.mark.parametrize("away", ["renamed", "an empty mount point"])
def test_a_copy_of_a_root_that_is_not_there_is_a_copy(index: SimilarityIndex, photos: Path, away: str) -> None:
    index.sync(photos)
    copy = photos.parent / "copy"
    shutil.copytree(photos, copy)
    photos.rename(photos.parent / "unplugged")
    if away != "renamed":
        photos.mkdir()
    report = index.sync(copy)
    assert (report.copied, report.renamed) == (4, 0)
    if away != "renamed":
        photos.rmdir()
    (photos.parent / "unplugged").rename(photos)
    assert index.sync(photos).found == 4 and len(index) == 8


def test_a_copy_of_a_disk_inside_a_root_that_is_not_there_is_a_copy(index: SimilarityIndex, photos: Path) -> None:
    root, copy = photos.parent / "root", photos.parent / "copy"
    shutil.copytree(photos, root / "disk/album")
    shutil.copytree(photos, copy)
    (root / "notes.txt").write_text("the root itself is there")
    index.sync(root)
    (root / "disk").rename(photos.parent / "unplugged")
    (root / "disk").mkdir()
    report = index.sync(copy)
    assert (report.copied, report.renamed) == (4, 0) and len(index) == 8


def test_a_photo_that_moved_to_another_root_is_renamed(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    other = photos.parent / "other"
    other.mkdir()
    (photos / "a.png").rename(other / "a.png")
    assert index.sync(other).renamed == 1
