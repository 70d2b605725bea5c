import hashlib
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from index_fakes import FakeEmbedder, check_index, make_photo, store_file, tree_state

from simclr_hub import images
from simclr_hub import scan as scan_module
from simclr_hub.errors import IndexLockedError, IndexMismatchError, IndexWriteError, RootUnavailableError
from simclr_hub.index import SimilarityIndex, SyncReport, sync
from simclr_hub.signature import is_signature


def counts(report: SyncReport) -> dict[str, int]:
    """The counts that are not 0; `found` must be their sum."""
    parts = {name: getattr(report, name) for name in ("embedded", "unchanged", "renamed", "copied", "failed")}
    assert report.found == sum(parts.values())
    parts |= {name: getattr(report, name) for name in ("vanished", "missing", "came_back")}
    return {name: n for name, n in parts.items() if n}


def names(index: SimilarityIndex, photos: Path) -> list[str]:
    return [os.path.relpath(path, photos) for path in check_index(index)]


def test_a_first_and_a_second_sync(index: SimilarityIndex, photos: Path, embedder: FakeEmbedder) -> None:
    before = tree_state(photos)
    assert counts(index.sync(photos)) == {"embedded": 4}
    assert len(index) == 4 and names(index, photos) == ["a.png", "b.png", "below/c.png", "below/d.png"]
    assert counts(index.sync(photos)) == {"unchanged": 4}  # young files: hashed again
    assert embedder.embedded == 4
    assert tree_state(photos) == before


def test_trusted_stamps_save_reading(
    index: SimilarityIndex, photos: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(photos)
    monkeypatch.setattr(sync, "read_file", lambda *_, **__: pytest.fail("read"))
    assert counts(index.sync(photos)) == {"unchanged": 4}


def test_every_kind_of_change_at_once(
    index: SimilarityIndex, photos: Path, settled: None, embedder: FakeEmbedder
) -> None:
    make_photo(photos / "edited.png", 10)
    make_photo(photos / "deleted.png", 11)
    index.sync(photos)
    make_photo(photos / "new.png", 12)
    make_photo(photos / "edited.png", 13)
    (photos / "deleted.png").unlink()
    (photos / "a.png").rename(photos / "below/renamed.png")
    shutil.copy(photos / "b.png", photos / "copy.png")
    (photos / "broken.jpg").write_bytes(b"no image")
    embedder.embedded = 0
    report = index.sync(photos)
    assert counts(report) == {
        "embedded": 2,
        "unchanged": 3,
        "renamed": 1,
        "copied": 1,
        "failed": 1,
        "missing": 1,
    }
    assert embedder.embedded == 2
    expected = ["b.png", "below/c.png", "below/d.png", "below/renamed.png", "copy.png", "edited.png", "new.png"]
    assert names(index, photos) == expected
    assert index.missing() == [str(photos / "deleted.png")]
    ((failed, why),) = index.failures()
    assert failed == str(photos / "broken.jpg") and "not an image of a supported format" in why


@pytest.mark.slow
def test_a_thousand_renames_cost_no_embedding(
    index: SimilarityIndex, tmp_path: Path, embedder: FakeEmbedder, settled: None
) -> None:
    photos = tmp_path / "many"
    for i in range(1000):
        make_photo(photos / f"old/{i}.png", i)
    index.sync(photos)
    (photos / "old").rename(photos / "new")
    embedder.embedded = 0
    assert counts(index.sync(photos)) == {"renamed": 1000}
    assert embedder.embedded == 0 and len(index) == 1000 and index.missing() == []


def test_copies_in_one_sync_are_embedded_once(index: SimilarityIndex, tmp_path: Path, embedder: FakeEmbedder) -> None:
    for i in range(200):  # more than a batch
        make_photo(tmp_path / f"copies/{i}.png", i % 3)
    assert counts(index.sync(tmp_path / "copies")) == {"embedded": 3, "copied": 197}
    assert embedder.embedded == 3 and index.status()["vectors"] == 3
    assert len(index.search(tmp_path / "copies/0.png", k=1000, all_copies=True, with_self=True)) == 200


def test_a_photo_renamed_over_another(index: SimilarityIndex, photos: Path, embedder: FakeEmbedder) -> None:
    index.sync(photos)
    (photos / "a.png").rename(photos / "b.png")
    embedder.embedded = 0
    assert counts(index.sync(photos)) == {"unchanged": 2, "renamed": 1}
    assert names(index, photos) == ["b.png", "below/c.png", "below/d.png"] and embedder.embedded == 0


def test_two_photos_that_swap_names(index: SimilarityIndex, photos: Path, embedder: FakeEmbedder) -> None:
    index.sync(photos)
    (photos / "a.png").rename(photos / "x")
    (photos / "b.png").rename(photos / "a.png")
    (photos / "x").rename(photos / "b.png")
    embedder.embedded = 0
    assert counts(index.sync(photos)) == {"unchanged": 2, "copied": 2}
    assert len(names(index, photos)) == 4 and embedder.embedded == 0


def test_an_edit_taken_back_costs_no_embedding(index: SimilarityIndex, photos: Path, embedder: FakeEmbedder) -> None:
    index.sync(photos)
    make_photo(photos / "a.png", 77)
    index.sync(photos)
    make_photo(photos / "a.png", 0)
    embedder.embedded = 0
    assert counts(index.sync(photos)) == {"unchanged": 3, "copied": 1} and embedder.embedded == 0


def test_a_file_replaced_with_its_old_time_and_size(index: SimilarityIndex, photos: Path, settled: None) -> None:
    """As cp -p does: ctime and inode tell."""
    index.sync(photos)
    a, b = photos / "a.png", photos / "b.png"
    size = max(a.stat().st_size, b.stat().st_size)
    for path in (a, b):
        path.write_bytes(path.read_bytes().ljust(size, b"\0"))
        os.utime(path, ns=(10**18, 10**18))
    index.sync(photos)
    shutil.copy2(b, a)
    assert a.stat().st_mtime_ns == 10**18 and a.stat().st_size == size
    assert counts(index.sync(photos)) == {"unchanged": 3, "copied": 1}
    check_index(index)


def test_touched_or_copied_in_place_is_hashed_not_embedded(
    index: SimilarityIndex, photos: Path, settled: None, embedder: FakeEmbedder
) -> None:
    index.sync(photos)
    os.utime(photos / "a.png", ns=(1, -(10**18)))  # before 1970
    (photos / "b.png").chmod(0o600)
    shutil.copy2(photos / "below/c.png", photos / "tmp")
    os.replace(photos / "tmp", photos / "below/c.png")
    embedder.embedded = 0
    assert counts(index.sync(photos)) == {"unchanged": 4} and embedder.embedded == 0


def test_an_unplugged_root_changes_nothing_and_comes_back(
    index: SimilarityIndex, photos: Path, embedder: FakeEmbedder, settled: None
) -> None:
    index.sync(photos)
    photos.rename(photos.with_name("unplugged"))
    with pytest.raises(RootUnavailableError, match="photos: No such file or directory; nothing was changed"):
        index.sync(photos)
    assert len(index) == 4 and index.missing() == []
    photos.mkdir()  # the mount point, empty
    assert counts(index.sync(photos)) == {"missing": 4}
    assert len(index) == 0 and len(index.missing()) == 4
    photos.rmdir()
    photos.with_name("unplugged").rename(photos)
    assert counts(index.sync(photos)) == {"unchanged": 4, "came_back": 4}
    assert len(names(index, photos)) == 4 and embedder.embedded == 4


def test_failed_photos_come_back_as_failed(index: SimilarityIndex, photos: Path, settled: None) -> None:
    (photos / "broken.jpg").write_bytes(b"no image")
    index.sync(photos)
    (photos / "broken.jpg").rename(photos.with_name("away.jpg"))
    assert counts(index.sync(photos)) == {"unchanged": 4, "missing": 1}
    photos.with_name("away.jpg").rename(photos / "broken.jpg")
    report = index.sync(photos)
    assert (report.failed, report.came_back) == (1, 1) and len(index.failures()) == 1


def test_a_failed_photo_is_tried_again_only_when_it_changes(
    index: SimilarityIndex, photos: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = photos / "broken.jpg"
    broken.write_bytes(b"no image")
    assert counts(index.sync(photos)) == {"embedded": 4, "failed": 1}
    with monkeypatch.context() as patch:
        patch.setattr(sync, "read_file", lambda *_, **__: pytest.fail("read"))
        assert counts(index.sync(photos)) == {"unchanged": 4, "failed": 1}
    make_photo(broken, 5)
    assert counts(index.sync(photos)) == {"embedded": 1, "unchanged": 4}
    assert index.failures() == []


def test_what_could_not_be_read_is_tried_again(
    index: SimilarityIndex, photos: Path, settled: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        refuse(patch, photos / "a.png", PermissionError(13, "Permission denied"))
        assert counts(index.sync(photos)) == {"embedded": 3, "failed": 1}
        assert index.failures() == [(str(photos / "a.png"), f"{photos / 'a.png'}: Permission denied")]
    assert counts(index.sync(photos)) == {"embedded": 1, "unchanged": 3}


def test_a_file_that_vanishes_between_listing_and_reading(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(photos)
    make_photo(photos / "new.png", 9)
    refuse(monkeypatch, photos / "a.png", FileNotFoundError(2, "No such file"))
    refuse(monkeypatch, photos / "new.png", FileNotFoundError(2, "No such file"))
    assert counts(index.sync(photos)) == {"unchanged": 3, "vanished": 2, "missing": 1}
    assert index.failures() == [] and index.missing() == [str(photos / "a.png")]


def test_a_symlink_swapped_in_is_not_followed(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = scan_module.scan

    def scan_and_swap(*args: object, **kwargs: object) -> scan_module.Listing:
        listing = real(*args, **kwargs)  # type: ignore[arg-type]
        (photos / "a.png").unlink()
        (photos / "a.png").symlink_to("/etc/passwd")
        return listing

    monkeypatch.setattr("simclr_hub.index.sync.scan", scan_and_swap)
    assert counts(index.sync(photos)) == {"embedded": 3, "failed": 1}
    assert "symbolic links" in index.failures()[0][1]


def test_an_unreadable_folder_keeps_its_photos(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    index.sync(photos)
    (photos / "a.png").unlink()
    real = os.scandir

    def scandir(path: bytes) -> object:
        if os.fsencode(path).endswith(b"/below"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(scan_module.os, "scandir", scandir)
    report = index.sync(photos)
    assert counts(report) == {"unchanged": 1, "missing": 1}
    assert report.listing_errors == [f"{photos / 'below'}: Permission denied"]
    assert names(index, photos) == ["b.png", "below/c.png", "below/d.png"]


def test_a_subfolder_is_judged_alone(index: SimilarityIndex, photos: Path, settled: None) -> None:
    index.sync(photos)
    (photos / "a.png").unlink()
    (photos / "below/c.png").unlink()
    assert counts(index.sync(photos / "below")) == {"unchanged": 1, "missing": 1}
    assert index.missing() == [str(photos / "below/c.png")]
    assert index.status()["roots"] == [str(photos)]


def test_a_second_root_is_judged_alone(index: SimilarityIndex, photos: Path, tmp_path: Path) -> None:
    index.sync(photos)
    make_photo(tmp_path / "photos2/e.png", 20)
    shutil.rmtree(photos / "below")
    assert counts(index.sync(tmp_path / "photos2")) == {"embedded": 1}
    assert index.missing() == [] and len(index) == 5


def test_a_parent_takes_its_roots_over(index: SimilarityIndex, photos: Path, embedder: FakeEmbedder) -> None:
    make_photo(photos / "other/e.png", 20)
    index.sync(photos / "below")
    index.sync(photos / "other")
    (photos / "other/e.png").unlink()
    embedder.embedded = 0
    assert counts(index.sync(photos)) == {"embedded": 2, "unchanged": 2, "missing": 1}
    assert index.status()["roots"] == [str(photos)] and embedder.embedded == 2
    assert names(index, photos) == ["a.png", "b.png", "below/c.png", "below/d.png"]
    assert counts(index.sync(photos / "below")) == {"unchanged": 2}


def test_a_moved_tree_costs_no_embedding(index: SimilarityIndex, photos: Path, embedder: FakeEmbedder) -> None:
    index.sync(photos)
    moved = photos.rename(photos.with_name("moved"))
    embedder.embedded = 0
    # The old folder may be on a disk that is not plugged in: only --moved-from says that it is this one.
    assert counts(index.sync(moved)) == {"copied": 4}
    assert embedder.embedded == 0 and len(index) == 8


def test_a_root_through_a_symlink_is_the_same_root(index: SimilarityIndex, photos: Path) -> None:
    photos.with_name("link").symlink_to(photos)
    index.sync(photos)
    assert counts(index.sync(photos.with_name("link"))) == {"unchanged": 4}
    assert index.status()["roots"] == [str(photos)]


def test_an_index_inside_the_folder_is_not_indexed(photos: Path, embedder: FakeEmbedder) -> None:
    with SimilarityIndex.create(photos / "own.index", model=embedder) as index:
        make_photo(photos / "own.index/thumbnail.png", 50)
        index.sync(photos)
        report = index.sync(photos)
    assert counts(report) == {"unchanged": 4} and report.skipped == {"the index itself": 1}


def test_hostile_names(index: SimilarityIndex, photos: Path) -> None:
    hostile = [b"\xff\xfe.png", b"new\nline.png", b"\x1b[31mred.png", "\u202egnp.png".encode(), b"' OR 1=1 --.png"]
    for i, name in enumerate(hostile):
        os.rename(make_photo(photos / "x", 30 + i), os.path.join(os.fsencode(photos), name))
    with open(os.path.join(os.fsencode(photos), b"\xff\x1bbroken.jpg"), "wb") as file:
        file.write(b"no image")
    assert counts(index.sync(photos)) == {"embedded": 9, "failed": 1}
    found = {os.fsencode(path) for path in check_index(index)}
    assert {os.path.join(os.fsencode(photos), name) for name in hostile} <= found
    ((path, why),) = index.failures()
    assert os.fsencode(path).endswith(b"/\xff\x1bbroken.jpg") and why.isprintable()
    assert counts(index.sync(photos)) == {"unchanged": 9, "failed": 1}


def test_photos_without_features_fail(index: SimilarityIndex, photos: Path) -> None:
    from PIL import Image

    Image.new("RGB", (4, 4)).save(photos / "black.png")  # the fake embedder's zero vector
    assert counts(index.sync(photos)) == {"embedded": 4, "failed": 1}
    assert index.failures()[0][1].endswith("black.png: its features are zero or not finite")


def test_progress_counts_what_has_to_be_read(index: SimilarityIndex, photos: Path, settled: None) -> None:
    calls: list[tuple[int, int]] = []
    (photos / "broken.jpg").write_bytes(b"no image")
    index.sync(photos, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(n, 5) for n in range(1, 6)]
    calls.clear()
    index.sync(photos, progress=lambda done, total: calls.append((done, total)))
    assert calls == []


def test_an_interrupted_sync_keeps_what_it_did(
    index: SimilarityIndex, tmp_path: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "BATCH_PHOTOS", 8)
    for i in range(50):
        make_photo(tmp_path / f"many/{i}.png", i)

    def interrupt(done: int, total: int) -> None:
        if done == 30:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        index.sync(tmp_path / "many", progress=interrupt)
    assert len(index) == 30 and index._store.in_flight() == set()
    check_index(index)
    assert counts(index.sync(tmp_path / "many")) == {"embedded": 20, "unchanged": 30}


def test_a_sync_with_nothing_new_needs_no_model(tmp_path: Path, photos: Path, embedder: FakeEmbedder) -> None:
    with SimilarityIndex.create(tmp_path / "i", model=embedder) as index:
        index.sync(photos)
    with SimilarityIndex.open(tmp_path / "i") as index:  # "fake" cannot be loaded
        assert counts(index.sync(photos)) == {"unchanged": 4}
        make_photo(photos / "new.png", 9)
        with pytest.raises(IndexMismatchError, match="the model that made it cannot be loaded: fake"):
            index.sync(photos)
        assert index._store.in_flight() == set()


def test_another_model_is_refused(tmp_path: Path, photos: Path, embedder: FakeEmbedder) -> None:
    SimilarityIndex.create(tmp_path / "i", model=embedder).close()
    with pytest.raises(
        IndexMismatchError, match=r"made by fake \(dim 5, weights w1\), but given other \(dim 5, weights w2"
    ):
        SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder(model="other", weights="w2"))
    with pytest.raises(IndexMismatchError, match="decoder None.*decoder fast"):
        SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder(decoder="fast"))
    SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder(model="the same under another name")).close()


def test_one_sync_at_a_time(index: SimilarityIndex, photos: Path) -> None:
    errors: list[BaseException] = []

    def second(done: int, total: int) -> None:
        if not errors:
            thread = threading.Thread(target=attempt)
            thread.start()
            thread.join()

    def attempt() -> None:
        try:
            index.sync(photos)
        except IndexLockedError as e:
            errors.append(e)

    index.sync(photos, progress=second)
    assert len(errors) == 1


def test_read_only_index(
    tmp_path: Path, photos: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SimilarityIndex.create(tmp_path / "i", model=embedder) as index:
        index.sync(photos)
        for cache in store_file(index).parent.glob("*.cache"):
            cache.unlink()
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    with SimilarityIndex.open(tmp_path / "i", model=embedder) as index:
        assert len(index.search(photos / "a.png")) == 3
        assert index.search(photos / "a.png", with_self=True)[0].path == str(photos / "a.png")
        for call in (lambda: index.sync(photos), index.prune):
            with pytest.raises(IndexWriteError, match="read-only here"):
                call()
    assert not list((tmp_path / "i").glob("*.cache"))


def refuse(monkeypatch: pytest.MonkeyPatch, photo: Path, error: OSError) -> None:
    """Opening this photo fails."""
    real = images.os.open

    def fail(path: object, *args: int, **kwargs: int) -> int:
        if path == os.fsencode(photo):
            raise error
        return real(path, *args, **kwargs)  # type: ignore[call-overload, no-any-return]

    monkeypatch.setattr(images.os, "open", fail)


def test_vectors_are_of_length_one(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    paths, vectors = index.vectors()
    assert paths == [str(photos / n) for n in ("a.png", "b.png", "below/c.png", "below/d.png")]
    assert vectors.shape == (4, 5) and vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("gps", [False, True])
def test_details_are_recorded_with_the_vector(
    gps: bool, tmp_path: Path, photos: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "read_info", lambda image: {"width": image.width, "gps": [52.5, 13.4]})
    with SimilarityIndex.create(tmp_path / "i", model=embedder, gps=gps) as index:
        index.sync(photos)
        store = index._store
        with store.reading():
            found = dict(store.details())
        assert len(found) == 4
        for content_hash, (info, signature) in found.items():
            assert info == {"width": 4, **({"gps": [52.5, 13.4]} if gps else {})}
            assert is_signature(signature)
            assert store.details_of(content_hash) == (info, signature)
        (photos / "a.png").unlink()
        index.sync(photos)
        assert index.prune(force=True) == 1
        with store.reading():
            assert len(dict(store.details())) == 3


def test_a_photo_is_hashed_once(tmp_path: Path, photos: Path, tiny_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [path.read_bytes() for path in sorted(photos.rglob("*.png"))]
    hashed = []

    def sha256(data: bytes = b"", **options: bool) -> "hashlib._Hash":
        hashed.append(data)
        return original(data, **options)

    original = hashlib.sha256
    with SimilarityIndex.create(tmp_path / "real.index", model=tiny_dir) as index:
        monkeypatch.setattr(hashlib, "sha256", sha256)
        assert counts(index.sync(photos)) == {"embedded": 4}
        assert [hashed.count(data) for data in files] == [1, 1, 1, 1]
    assert images.load_image(images.FileBytes("a", files[0])).content_hash == original(files[0]).digest()


def test_files_wait_for_the_embedder_within_a_limit_of_bytes(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    put = index._store.put_in_flight
    monkeypatch.setattr(index._store, "put_in_flight", lambda paths: (given.append(len(paths)), put(paths)))
    monkeypatch.setattr(sync, "BATCH_BYTES", max(p.stat().st_size for p in photos.rglob("*.png")) + 1)
    assert counts(index.sync(photos)) == {"embedded": 4}
    assert [n for n in given if n] == [2, 2]


@pytest.mark.parametrize(("most", "seconds"), [(1, 1e9), (10**6, 0.0)])
def test_a_transaction_is_bounded_in_photos_and_in_time(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch, most: int, seconds: float
) -> None:
    index.sync(photos)
    monkeypatch.setattr(sync, "BATCH_PHOTOS", most)
    monkeypatch.setattr(sync, "BATCH_SECONDS", seconds)
    events: list[str] = []
    store, put, end = index._store, index._store.put, index._store.put_in_flight
    monkeypatch.setattr(store, "put", lambda photo: (events.append("put"), put(photo)))
    monkeypatch.setattr(store, "put_in_flight", lambda paths: (events.append("end"), end(paths)))
    assert counts(index.sync(photos)) == {"unchanged": 4}  # young files, read again
    assert events == ["put", "end"] * 4


def test_a_copy_of_what_waits_for_its_commit_is_not_embedded(
    index: SimilarityIndex, photos: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sync, "BATCH_BYTES", 1)  # the first is embedded before the second is looked at
    for name in ("a copy.png", "z copy.png"):
        shutil.copy(photos / "a.png", photos / name)
    assert counts(index.sync(photos)) == {"embedded": 4, "copied": 2}
    assert embedder.embedded == 4


def test_of_two_that_are_gone_the_one_of_the_same_name_was_renamed(index: SimilarityIndex, photos: Path) -> None:
    for name in ("one/x.png", "one/y.png"):
        make_photo(photos / name, 50)
    index.sync(photos)
    (photos / "two").mkdir()
    (photos / "one/x.png").rename(photos / "two/x.png")
    (photos / "one/y.png").unlink()
    assert counts(index.sync(photos)) == {"unchanged": 4, "renamed": 1, "missing": 1}
    assert index.missing() == [str(photos / "one/y.png")]


def test_a_photo_that_cannot_be_asked_for_is_not_gone(
    index: SimilarityIndex, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(photos)
    (tmp_path / "other").mkdir()
    shutil.copy(photos / "a.png", tmp_path / "other")
    real = os.lstat

    def failing(path: bytes, **options: int) -> os.stat_result:
        if os.fsdecode(path) == str(photos / "a.png"):
            raise OSError(5, "Input/output error")
        return real(path, **options)

    monkeypatch.setattr(sync.os, "lstat", failing)
    assert counts(index.sync(tmp_path / "other")) == {"copied": 1}
    assert len(index) == 5


def test_each_vector_is_written_once(index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "BATCH_PHOTOS", 1)
    written: list[bytes] = []
    put = index._store.put_vector
    monkeypatch.setattr(index._store, "put_vector", lambda key, vector: (written.append(key), put(key, vector)))
    assert counts(index.sync(photos)) == {"embedded": 4}
    assert len(written) == len(set(written)) == 4
