"""What a sync leaves out of a folder, as the index remembers it."""

from pathlib import Path

import pytest
from index_fakes import FakeEmbedder, make_photo

from simclr_hub.errors import RootUnavailableError
from simclr_hub.index import SimilarityIndex
from simclr_hub.scan import FileStat


def live(index: SimilarityIndex, folder: Path) -> list[str]:
    return [str(Path(path).relative_to(folder)) for path in index.vectors()[0]]


def test_rules_are_remembered_until_others_are_given(index: SimilarityIndex, photos: Path, tmp_path: Path) -> None:
    make_photo(photos / ".hidden.png", 10)
    assert index.sync(photos).skipped == {"hidden": 1}
    report = index.sync(photos, exclude="below", include_hidden=True)
    assert (report.missing, report.skipped) == (2, {"folder: excluded": 1})
    assert live(index, photos) == [".hidden.png", "a.png", "b.png"]
    with SimilarityIndex.open(index._store.file.parent, model=FakeEmbedder()) as again:
        assert again.sync(photos).skipped == {"folder: excluded": 1}
        assert (again.status()["exclude"], again.status()["include_hidden"]) == (["below"], True)
        assert again.sync(photos, exclude=[]).came_back == 2
        assert again.sync(photos, include_hidden=False).missing == 1
        assert again.check().sound


def test_a_pattern_that_is_none_changes_nothing(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos, exclude=["b.*"])
    with pytest.raises(ValueError, match="exclude="):
        index.sync(photos, exclude=["[z-a]"])
    assert index.status()["exclude"] == ["b.*"] and len(index) == 3


def test_rules_of_a_folder_that_is_not_there_are_not_remembered(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos, exclude=["b.*"])
    with pytest.raises(RootUnavailableError, match="nothing was changed"):
        index.sync(photos / "nowhere", exclude=["a.*"], include_hidden=True)
    assert (index.status()["exclude"], index.status()["include_hidden"]) == (["b.*"], False)


def test_rules_go_with_an_export(index: SimilarityIndex, photos: Path, tmp_path: Path) -> None:
    index.sync(photos, exclude=["b.*"], include_hidden=True)
    index.export(tmp_path / "photos.parquet")
    with SimilarityIndex.from_export(tmp_path / "photos.parquet", tmp_path / "other", FakeEmbedder()) as other:
        assert (other.status()["exclude"], other.status()["include_hidden"]) == (["b.*"], True)


@pytest.mark.usefixtures("settled")
def test_inodes_that_a_mount_gives_anew_cost_nothing(
    index: SimilarityIndex, photos: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(20):
        make_photo(photos / f"{seed}.png", seed + 20)
    index.sync(photos)
    embedder.embedded = 0
    real = FileStat.of
    read: list[bytes] = []
    from simclr_hub.index import sync

    read_file = sync.read_file
    monkeypatch.setattr(sync, "read_file", lambda path, **k: read.append(path) or read_file(path, **k))
    for mount in (1, 2):
        shift = mount * 10**6
        monkeypatch.setattr(FileStat, "of", lambda st, s=shift: real(st)._replace(inode=real(st).inode + s))
        report = index.sync(photos)
        assert (report.unchanged, report.embedded, read) == (24, 0, [])
    make_photo(photos / "0.png", 99)
    assert index.sync(photos).embedded == 1 and len(read) == 1


def test_a_home_folder_is_expanded(index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(photos.parent))
    assert index.sync("~/photos").found == 4


def test_the_copy_in_the_trash_is_not_the_one_to_keep(index: SimilarityIndex, photos: Path) -> None:
    make_photo(photos / ".old" / "a.png", 0)  # the same bytes, older, with the shorter name in its folder
    index.sync(photos, include_hidden=True)
    (group,) = index.duplicates(["same-bytes"])
    assert group.keep.path == str(photos / "a.png") and "hidden, trash or system folder" in group.why
