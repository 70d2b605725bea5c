import os
import socket
from pathlib import Path

import pytest
from index_fakes import make_photo

from simclr_hub.errors import RootUnavailableError
from simclr_hub.index import scan as scan_module
from simclr_hub.index.records import Stamp
from simclr_hub.index.scan import scan


def root_of(path: Path) -> bytes:
    return os.fsencode(path)


def test_lists_images_below_with_their_stamps(photos: Path) -> None:
    listing = scan(root_of(photos))
    assert list(listing.photos) == [b"a.png", b"b.png", b"below/c.png", b"below/d.png"]
    assert listing.photos[b"a.png"] == Stamp.of((photos / "a.png").stat())
    assert (listing.skipped, listing.errors) == ({}, {})


def test_a_subfolder_is_listed_relative_to_the_root(photos: Path) -> None:
    assert list(scan(root_of(photos), b"below").photos) == [b"below/c.png", b"below/d.png"]


def test_counts_what_it_skips_by_reason(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (photos / "notes.txt").write_text("no photo")
    (photos / "loop").symlink_to(photos)
    (photos / "link.png").symlink_to(photos / "a.png")
    os.mkfifo(photos / "fifo.png")
    with socket.socket(socket.AF_UNIX) as server:
        monkeypatch.chdir(photos)  # a socket's path must be short
        server.bind("socket.jpg")
    own = photos / "own.index"
    make_photo(own / "thumbnail.png", 9)
    make_photo(photos / ".hidden.png", 10)
    exclude = {(own.stat().st_dev, own.stat().st_ino)}
    listing = scan(root_of(photos), exclude=exclude)
    assert b".hidden.png" in listing.photos and len(listing.photos) == 5
    assert listing.skipped == {
        "not an image by its name": 1,
        "symbolic link": 2,
        "not a regular file": 2,
        "the index itself": 1,
    }


def test_names_are_bytes(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path)
    names = [b"\xff\xfe.png", b"new\nline.png", b"\x1b[31m.png", "\u202e.png".encode(), b"a" * 250 + b".png"]
    for name in names:
        with open(os.path.join(folder, name), "wb"):
            pass
    assert sorted(scan(folder).photos) == sorted(names)


def test_deep_folders_are_listed_or_reported(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(30):  # longer than PATH_MAX
            os.mkdir("d" * 200, dir_fd=here)
            below = os.open("d" * 200, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
    finally:
        os.close(here)
    listing = scan(root_of(tmp_path))
    assert list(listing.errors.values()) == ["File name too long"]


@pytest.mark.parametrize("what", ["missing", "a file", "unreadable"])
def test_a_root_that_cannot_be_listed_is_an_error(photos: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root = {"missing": photos / "nowhere", "a file": photos / "a.png", "unreadable": photos}[what]
    if what == "unreadable":
        fail_listing(monkeypatch, photos)
    with pytest.raises(RootUnavailableError, match=f"{root.name}: .*; nothing was changed"):
        scan(root_of(root))


def test_a_folder_that_cannot_be_listed_is_an_observation(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_listing(monkeypatch, photos / "below")
    listing = scan(root_of(photos))
    assert list(listing.photos) == [b"a.png", b"b.png"]
    assert listing.errors == {b"below": "Permission denied"}


def test_a_file_that_cannot_be_examined_is_an_observation(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.stat

    def stat(path: bytes, **kwargs: bool) -> os.stat_result:
        if path.endswith(b"a.png"):
            raise OSError(5, "Input/output error")
        if path.endswith(b"b.png"):
            raise FileNotFoundError(2, "gone")
        return real(path, **kwargs)

    monkeypatch.setattr(scan_module.os, "stat", stat)
    listing = scan(root_of(photos))
    assert list(listing.photos) == [b"below/c.png", b"below/d.png"]
    assert listing.errors == {b"a.png": "Input/output error"}  # b.png is simply gone


def fail_listing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As chmod 000 does to everyone but root."""
    real = os.scandir

    def scandir(path: bytes) -> object:
        if os.fsencode(path).rstrip(b"/") == os.fsencode(folder):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(scan_module.os, "scandir", scandir)
