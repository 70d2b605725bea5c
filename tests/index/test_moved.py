"""Folders that moved as a whole, and folders with two spellings: no photo twice, no photo embedded again."""

import os
import shutil
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder, check_index, make_photo

from simclr_hub.errors import RootUnavailableError
from simclr_hub.index import SimilarityIndex, sync
from simclr_hub.index.paths import as_recorded, on_disk, openable, relocate_roots


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "read_file", lambda *_, **__: pytest.fail("read"))


@pytest.mark.usefixtures("settled")
def test_another_mount_point_reads_and_embeds_nothing(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(photos)
    _, before = index.vectors()
    moved = photos.rename(photos.parent / "elsewhere")  # the same file system: stamps stay
    forbid_reading(monkeypatch)
    report = index.sync(moved, moved_from=photos)
    assert (report.unchanged, report.embedded, report.missing) == (4, 0, 0)
    paths, after = index.vectors()
    assert [os.path.relpath(path, moved) for path in paths] == ["a.png", "b.png", "below/c.png", "below/d.png"]
    assert (before == after).all() and index.status()["roots"] == [str(moved)]
    assert [match.path for match in index.search(after[0], k=1)] == [paths[0]]


@pytest.mark.usefixtures("settled")
def test_another_disk_embeds_nothing(index: SimilarityIndex, photos: Path, embedder: FakeEmbedder) -> None:
    index.sync(photos)
    copy = Path(shutil.copytree(photos, photos.parent / "copy"))  # other inodes
    shutil.rmtree(photos)
    embedder.embedded = 0
    report = index.sync(copy, moved_from=photos)
    assert (report.unchanged, embedder.embedded, report.missing) == (4, 0, 0)
    assert len(check_index(index)) == 4


@pytest.mark.usefixtures("settled")
def test_all_roots_below_move(index: SimilarityIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("disk/one", "disk/two", "disks/three"):
        make_photo(tmp_path / name / "a.png", len(name))
        index.sync(tmp_path / name)
    with index._store.writing(), index._store.transaction():
        index._store.put_in_flight([bytes(tmp_path / "disk/two/a.png"), bytes(tmp_path / "disks/three/a.png")])
    (tmp_path / "disk").rename(tmp_path / "mnt")
    forbid_reading(monkeypatch)
    monkeypatch.setattr(sync, "decode_sandboxed", lambda paths: {})
    assert index.sync(tmp_path / "mnt/one", moved_from=tmp_path / "disk/one").unchanged == 1
    assert index.status()["roots"] == [str(tmp_path / name) for name in ("disk/two", "disks/three", "mnt/one")]
    assert index.sync(tmp_path / "mnt/two", moved_from=f"{tmp_path}/disk/two/").unchanged == 1
    assert check_index(index) == [str(tmp_path / name / "a.png") for name in ("disks/three", "mnt/one", "mnt/two")]
    assert index._store.in_flight() == {bytes(tmp_path / "disks/three/a.png")}


@pytest.mark.usefixtures("settled")
def test_a_folder_above_the_roots(index: SimilarityIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("disk/one", "disk/two"):
        make_photo(tmp_path / name / "a.png", len(name))
        index.sync(tmp_path / name)
    (tmp_path / "disk").rename(tmp_path / "mnt")
    forbid_reading(monkeypatch)
    assert index.sync(tmp_path / "mnt", moved_from=tmp_path / "disk").unchanged == 2
    assert index.status()["roots"] == [str(tmp_path / "mnt")]


def test_what_cannot_have_moved_changes_nothing(index: SimilarityIndex, photos: Path, tmp_path: Path) -> None:
    index.sync(photos)
    (tmp_path / "new").mkdir()
    make_photo(tmp_path / "other/x.png", 9)
    index.sync(tmp_path / "other")
    before = index._store.roots(), index._store.photos()
    with pytest.raises(RootUnavailableError, match=f"nowhere: not a photo folder of this index; it has: .*{photos}"):
        index.sync(tmp_path / "new", moved_from=tmp_path / "nowhere")
    with pytest.raises(RootUnavailableError, match="gone: No such file.*nothing was changed"):
        index.sync(tmp_path / "gone", moved_from=photos)
    for new in (tmp_path / "other", tmp_path):
        with pytest.raises(RootUnavailableError, match="recorded already, as .*other"):
            index.sync(new, moved_from=photos)
    assert (index._store.roots(), index._store.photos()) == before


@pytest.mark.usefixtures("settled")
def test_decomposed_names_are_found_by_composed_ones(index: SimilarityIndex, tmp_path: Path) -> None:
    name = "Été à Málaga"
    for form, other in (("NFC", "NFD"), ("NFD", "NFC")):
        folder = tmp_path / form / unicodedata.normalize(form, name)
        photo = make_photo(folder / unicodedata.normalize(form, "é.png"), 1)
        asked = tmp_path / form / unicodedata.normalize(other, name)
        assert not asked.exists()
        assert index.sync(asked).found == 1
        assert os.fsdecode(on_disk(asked)) == str(folder)
        assert index.sync(folder).unchanged == 1 and str(folder) in index.status()["roots"]
        assert index.search(asked / unicodedata.normalize(other, "é.png"), k=1, with_self=True)[0].score > 0.999
        assert str(photo) in check_index(index)
    assert len(index) == 2


@contextmanager
def like_a_mac() -> Iterator[None]:
    """Names open in any case, but are listed as they were made; for what opens and examines them here."""

    def insensitive(real: Callable[..., object]) -> Callable[..., object]:
        def call(path: str | bytes | Path, *args: object, **kwargs: object) -> object:
            spelled = found(os.fsencode(path))
            return real(spelled if isinstance(path, bytes) else os.fsdecode(spelled), *args, **kwargs)

        return call

    def found(path: bytes) -> bytes:
        here = b"/"
        for name in path.split(b"/")[1:]:
            try:
                like = [n for n in real_listdir(here) if n.lower() == name.lower()]
            except OSError:
                like = []
            here = os.path.join(here, like[0] if like and name not in like else name)
        return here

    real_listdir = os.listdir
    with pytest.MonkeyPatch.context() as patch:
        for name in ("stat", "lstat", "scandir", "open", "listdir"):
            patch.setattr(os, name, insensitive(getattr(os, name)))
        yield


@pytest.mark.usefixtures("settled")
def test_a_folder_in_another_case_is_the_same_folder(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    for other in (photos.with_name("PHOTOS"), photos / "BELOW"):
        with like_a_mac():
            report = index.sync(other)
        assert report.unchanged in (4, 2) and report.embedded == report.missing == report.copied == 0
    assert len(index) == 4 and index.status()["roots"] == [str(photos)]


@pytest.mark.usefixtures("settled")
def test_a_photo_whose_name_changed_its_case_is_renamed(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    (photos / "a.png").rename(photos / "A.png")
    with like_a_mac():
        report = index.sync(photos)
    assert (report.renamed, report.unchanged, report.embedded, report.missing) == (1, 3, 0, 0)
    assert len(index) == 4


@pytest.mark.usefixtures("settled")
def test_a_hard_link_is_a_copy_not_a_rename(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    os.link(photos / "a.png", photos / "linked.png")
    report = index.sync(photos)  # the ctime of both changed
    assert (report.copied, report.unchanged, report.renamed, report.missing) == (1, 4, 0, 0)


def test_a_root_under_another_name(index: SimilarityIndex, photos: Path, tmp_path: Path) -> None:
    """Such as a second mount of the same disk: the inode is the same."""
    index.sync(photos)
    (tmp_path / "again").symlink_to(photos)
    roots = index._store.roots().values()
    assert as_recorded(bytes(tmp_path / "again"), roots) == bytes(photos)
    assert as_recorded(bytes(tmp_path / "again/below"), roots) == bytes(photos / "below")
    assert as_recorded(bytes(tmp_path), roots) == bytes(tmp_path)
    assert as_recorded(b"/", []) == b"/"


def test_what_is_nowhere_stays_as_given(tmp_path: Path) -> None:
    for name in ("nowhere", "é", "a/b"):
        assert on_disk(tmp_path / name) == bytes(tmp_path / name)
    (tmp_path / "Photos").mkdir()
    (tmp_path / "pHOTOS").mkdir()
    assert on_disk(tmp_path / "photos") == bytes(tmp_path / "photos")  # a case of its own, here
    assert on_disk("/") == b"/"
    assert openable("https://example.org/a.jpg") == "https://example.org/a.jpg"


def test_the_old_folder_s_name_in_the_other_unicode_form(index: SimilarityIndex, tmp_path: Path) -> None:
    old = tmp_path / unicodedata.normalize("NFC", "Fotos Zoë")
    make_photo(old / "a.png", 1)
    index.sync(old)
    old.rename(tmp_path / "moved")
    report = index.sync(tmp_path / "moved", moved_from=unicodedata.normalize("NFD", str(old)) + os.sep)
    assert (report.unchanged, report.embedded, report.missing) == (1, 0, 0)


def test_photos_that_were_being_decoded_move_too(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    store, moved = index._store, photos.rename(photos.parent / "elsewhere")
    with store.writing():
        with store.transaction():
            store.put_in_flight([bytes(photos / "below/c.png"), b"/other/d.png"])
        assert relocate_roots(store, photos, bytes(moved)) == 1
    assert store.in_flight() == {bytes(moved / "below/c.png"), b"/other/d.png"}
