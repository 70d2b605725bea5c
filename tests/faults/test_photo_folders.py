"""Folders that change while they are read, clocks that are wrong, and folders that nothing may be written to."""

import os
import shutil
import threading
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder, check_index, make_photo, tree_state

from simclr_hub.index import SimilarityIndex
from simclr_hub.scan import GRANULARITY_NS, FileStat


def while_it_changes(index: SimilarityIndex, folder: Path, change: object, syncs: int) -> None:
    """Sync while a thread changes the folder; then it rests, and the index must be as the folder is."""
    stop = threading.Event()

    def go_on() -> None:
        n = 0
        while not stop.is_set():
            change(n)  # type: ignore[operator]
            n += 1

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for _ in range(syncs):
            report = index.sync(folder)
            parts = report.embedded + report.unchanged + report.renamed + report.copied + report.failed
            assert report.found == parts
    finally:
        stop.set()
        thread.join()
    index.sync(folder)
    there = [path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink()]
    assert check_index(index) == [str(path) for path in there]


def swap(folder: Path, number: int, syncs: int, index: SimilarityIndex) -> None:
    secret = make_photo(folder.parent / "secret.png", 999_999)
    for i in range(number):
        make_photo(folder / f"{i}.png", i)

    def change(n: int) -> None:
        path = folder / f"{n * 7 % number}.png"
        new = folder.parent / "new.png"
        if n % 3 == 0:
            new.symlink_to(secret)
        else:
            make_photo(new, 10_000 + n)
        os.replace(new, path)

    while_it_changes(index, folder, change, syncs)
    content = {photo.content_hash for photo in index._store.photos()}
    import hashlib

    assert hashlib.sha256(secret.read_bytes()).digest() not in content  # no link was followed


def test_photos_swapped_for_others_and_for_links(index: SimilarityIndex, tmp_path: Path) -> None:
    swap(tmp_path / "photos", 20, 3, index)


@pytest.mark.slow
def test_a_thousand_photos_swapped(index: SimilarityIndex, tmp_path: Path) -> None:
    swap(tmp_path / "photos", 1000, 3, index)


def test_photos_deleted_while_it_runs(index: SimilarityIndex, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for i in range(60):
        make_photo(folder / f"{i}.png", i)

    def change(n: int) -> None:
        if n < 30:
            (folder / f"{2 * n}.png").unlink()

    while_it_changes(index, folder, change, 2)
    assert index.failures() == [] and len(index) == 30


@pytest.mark.parametrize("seconds", [-3_000_000_000, -1, 0, 4_000_000_000, 2**33])
def test_any_time_of_a_file(index: SimilarityIndex, photos: Path, seconds: int) -> None:
    """Before 1970, at 1970, in the future: times are compared, never ordered."""
    try:
        os.utime(photos / "a.png", (seconds, seconds))
    except OSError:
        pytest.skip("the file system has no such time")
    assert index.sync(photos).embedded == 4
    assert index.sync(photos).unchanged == 4
    make_photo(photos / "a.png", 77)
    os.utime(photos / "a.png", (seconds, seconds))
    report = index.sync(photos)
    assert (report.embedded, report.unchanged) == (1, 3) and len(check_index(index)) == 4


def test_a_clock_that_was_set_back(index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scan's time lies before the files': none is trusted, and an edit within one tick is seen."""
    monkeypatch.setattr("simclr_hub.index.sync.time.time_ns", lambda: 0)
    index.sync(photos)
    assert not any(photo.settled for photo in index._store.photos())
    before = (photos / "a.png").stat()
    make_photo(photos / "a.png", 78)
    os.utime(photos / "a.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert index.sync(photos).embedded == 1


def test_a_tick_of_two_seconds() -> None:
    """FAT's: what was written in the tick of the scan may change again under the same stamp."""
    second = 10**9
    for mtime, scan, trusted in ((10, 11, False), (10, 12, False), (10, 13, True)):
        assert FileStat(1, mtime * second, 0, 1).settled(scan * second) == trusted
    assert GRANULARITY_NS == 2 * second


@pytest.mark.usefixtures("settled")
def test_copies_with_their_times(index: SimilarityIndex, photos: Path, embedder: FakeEmbedder) -> None:
    """`cp -p` and replacing a file by one of the same size and time: the inode and the ctime tell."""
    index.sync(photos)
    shutil.copy2(photos / "a.png", photos / "copy.png")
    report = index.sync(photos)
    assert (report.copied, report.unchanged, embedder.embedded) == (1, 4, 4)
    other = make_photo(photos.parent / "other.png", 5)
    data = other.read_bytes()
    before = (photos / "b.png").stat()
    other.write_bytes(data + b"\0" * (before.st_size - len(data)) if len(data) < before.st_size else data)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(other, photos / "b.png")
    assert index.sync(photos).embedded == 1 and len(check_index(index)) == 5


def test_nothing_is_written_below_the_photos(
    photos: Path, tmp_path: Path, tiny_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By no command, and the results of all of them inside the folder change nothing for the next sync."""
    from simclr_hub.cli import main

    before = tree_state(photos)
    own = tmp_path / "i"
    for arguments in (
        ["index", photos, "-o", own, "--model", tiny_dir],
        ["search", own, photos / "a.png", "--html", tmp_path / "found.html"],
        ["status", own],
        ["failures", own],
        ["check", own, "--deep", "--repair"],
        ["export", own, tmp_path / "out.parquet"],
        ["import", tmp_path / "out.parquet", tmp_path / "j"],
        ["prune", own, "--force"],
        ["embed", photos, "-o", tmp_path / "features.npz", "--model", tiny_dir],
    ):
        with pytest.raises(SystemExit) as exit:
            main([str(argument) for argument in arguments])
        assert exit.value.code == 0, capsys.readouterr()
        assert tree_state(photos) == before, arguments


def test_results_inside_the_folder_are_not_indexed(photos: Path, embedder: FakeEmbedder) -> None:
    with SimilarityIndex.create(photos / "own.index", model=embedder) as index:
        index.sync(photos)
        index.export(photos / "out.parquet")
        (photos / "gallery.html").write_text("<img src='a.png'>")
        index.check(deep=True)
        report = index.sync(photos)
    assert (report.found, report.embedded, report.unchanged) == (4, 0, 4)
    assert report.skipped == {"the index itself": 1, "not an image by its name": 2}
