import os
import re
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from simclr_hub import scan as scan_module
from simclr_hub.errors import RootUnavailableError
from simclr_hub.scan import FileStat, Rules, lies_aside, scan, scan_whole, translate_pattern


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two photos and two in a folder below."""
    for name in ("a.png", "b.png", "below/c.png", "below/d.png"):
        make_photo(tmp_path / "photos" / name)
    return tmp_path / "photos"


def make_photo(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (2, 2)).save(path, "PNG")


def root_of(path: Path) -> bytes:
    return os.fsencode(path)


def test_lists_images_below_with_their_stamps(photos: Path) -> None:
    listing = scan(root_of(photos))
    assert list(listing.photos) == [b"a.png", b"b.png", b"below/c.png", b"below/d.png"]
    assert listing.photos[b"a.png"] == FileStat.of((photos / "a.png").stat())
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
    make_photo(own / "thumbnail.png")
    make_photo(photos / ".hidden.png")
    exclude = {(own.stat().st_dev, own.stat().st_ino)}
    listing = scan(root_of(photos), exclude=exclude)
    assert len(listing.photos) == 4
    assert listing.skipped == {
        "hidden": 1,
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


def test_a_whole_listing_names_what_it_lacks(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(scan_whole(photos)[1].photos) == list(scan(root_of(photos)).photos)
    with pytest.raises(RootUnavailableError, match="nowhere: No such file or directory$"):
        scan_whole(photos / "nowhere")
    fail_listing(monkeypatch, photos / "below")
    with pytest.raises(RootUnavailableError, match="photos/below: Permission denied"):
        scan_whole(photos)


def fail_listing(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """As chmod 000 does to everyone but root."""
    real = os.scandir

    def scandir(path: bytes) -> object:
        if os.fsencode(path).rstrip(b"/") == os.fsencode(folder):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(scan_module.os, "scandir", scandir)


LEFT_OUT = {
    "folder: in a trash folder": [
        ".Trash-1000/files/a.jpg", ".trash/a.jpg", ".Trashes/501/a.jpg", "$RECYCLE.BIN/S-1-5/a.jpg", "RECYCLER/a.jpg",
        "#recycle/a.jpg", "@Recycle/a.jpg", ".dtrash/files/a.jpg", ".stversions/a~2020.jpg", "x/.Trash/a.jpg",
    ],
    "folder: in a folder of thumbnails or previews": [
        "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", ".thumbnails/normal/a.png", ".@__thumb/a.jpg", "Previews.lrdata/1/a.jpg",
    ],
    "folder: in a system folder": [
        ".snapshot/1/a.jpg", ".snapshots/1/snapshot/a.jpg", "lost+found/a.jpg", "__MACOSX/a.jpg",
        "node_modules/x/a.png", "System Volume Information/a.jpg", ".zfs/snapshot/a.jpg",
    ],
    "folder: in a photo library beside its originals": [
        "new.photoslibrary/resources/derivatives/a.jpg", "old.aplibrary/Thumbnails/a.jpg",
    ],
    "AppleDouble file": ["._a.jpg", "x/._b.heic"],
    "hidden": [".a.jpg", "x/.b.png"],
    "folder: hidden": [".git/a.png", ".cache/x/a.jpg", "x/.secret/a.jpg"],
}  # fmt: skip
KEPT = [
    "Trash talk/a.jpg", "recycle/a.jpg", "new.photoslibrary/originals/0/a.jpg", "old.aplibrary/Masters/a.jpg",
    "thumbnails/a.jpg", "[2019] Trip/a.jpg", "train/a.jpg", "snapshots/a.jpg", "Trash/a.jpg", "a.photos/x/a.jpg",
]  # fmt: skip


@pytest.mark.parametrize("reason", LEFT_OUT)
def test_what_is_no_part_of_a_collection_is_left_out_and_counted(tmp_path: Path, reason: str) -> None:
    names = LEFT_OUT[reason]
    for name in (*names, *KEPT):
        make_photo(tmp_path / name)
    listing = scan(root_of(tmp_path))
    assert sorted(map(os.fsdecode, listing.photos)) == sorted(KEPT)
    assert listing.skipped == {reason: len(names)}


def test_a_folder_that_is_named_is_entered_whatever_it_is_called(tmp_path: Path) -> None:
    for name in (".photos/a.jpg", ".Trash-1000/files/b.jpg", "x.photoslibrary/originals/c.jpg"):
        make_photo(tmp_path / name)
    make_photo(tmp_path / "x.photoslibrary/resources/d.jpg")
    assert list(scan(root_of(tmp_path / ".photos")).photos) == [b"a.jpg"]
    assert list(scan(root_of(tmp_path / ".Trash-1000")).photos) == [b"files/b.jpg"]
    assert list(scan(root_of(tmp_path), b".photos").photos) == [b".photos/a.jpg"]
    assert list(scan(root_of(tmp_path / "x.photoslibrary") + b"/").photos) == [b"originals/c.jpg"]


def test_hidden_ones_may_be_included_but_no_trash(tmp_path: Path) -> None:
    names = [".a.jpg", ".git/b.png", "c.jpg"]
    for name in (*names, ".Trash-0/d.jpg", ".thumbnails/e.jpg", "._f.jpg", ".local/share/Trash/files/g.jpg"):
        make_photo(tmp_path / name)
    listing = scan(root_of(tmp_path), rules=Rules(include_hidden=True))
    assert sorted(map(os.fsdecode, listing.photos)) == names
    assert sum(listing.skipped.values()) == 4


@pytest.mark.parametrize(
    ("pattern", "left"),
    [
        ("Screenshots", ["2019/a.jpg", "2019/raw/b.png", "c.png"]),
        ("*.png", ["2019/a.jpg", "2019/Screenshots/d.jpg"]),
        ("2019", ["c.png"]),
        ("/2019/raw/", ["2019/Screenshots/d.jpg", "2019/a.jpg", "c.png"]),
        ("2019/*/*.jpg", ["2019/a.jpg", "2019/raw/b.png", "c.png"]),
        ("**/raw/**", ["2019/Screenshots/d.jpg", "2019/a.jpg", "c.png"]),
        ("raw/b.png", ["2019/Screenshots/d.jpg", "2019/a.jpg", "2019/raw/b.png", "c.png"]),
        ("[ab].*", ["2019/Screenshots/d.jpg", "c.png"]),
    ],
)
def test_patterns_leave_out_names_anywhere_and_paths_below_the_root(
    tmp_path: Path, pattern: str, left: list[str]
) -> None:
    for name in ("2019/a.jpg", "2019/raw/b.png", "2019/Screenshots/d.jpg", "c.png"):
        make_photo(tmp_path / name)
    listing = scan(root_of(tmp_path), rules=Rules(exclude=(pattern, "unmatched")))
    assert sorted(map(os.fsdecode, listing.photos)) == sorted(left)


def test_a_pattern_matches_either_form_of_unicode(tmp_path: Path) -> None:
    make_photo(tmp_path / "Café.png")
    assert not scan(root_of(tmp_path), rules=Rules(exclude=("Café.png",))).photos


@pytest.mark.parametrize("pattern", ["", "/", "[z-a]"])
def test_a_pattern_that_is_none_is_named(pattern: str) -> None:
    with pytest.raises(ValueError, match="exclude="):
        Rules(exclude=(pattern,))


def test_what_lies_aside_is_told_by_its_path() -> None:
    for names in LEFT_OUT.values():
        for name in names:
            if not name.rpartition("/")[2].startswith("."):
                assert lies_aside(f"/home/me/{name}"), name
    assert not [name for name in KEPT if lies_aside(f"/home/me/{name}")]


def naive(pattern: list[str], path: list[str]) -> bool:
    """Folder by folder, trying everything."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        if len(pattern) == 1:
            return bool(path)
        return any(naive(pattern[1:], path[i:]) for i in range(len(path)))
    return bool(path) and naive_name(pattern[0], path[0]) and naive(pattern[1:], path[1:])


def naive_name(pattern: str, name: str) -> bool:
    if not pattern:
        return not name
    if pattern[0] == "*":
        return any(naive_name(pattern[1:], name[i:]) for i in range(len(name) + 1))
    return bool(name) and pattern[0] in ("?", name[0]) and naive_name(pattern[1:], name[1:])


NAMES = st.text("ab*?", min_size=1, max_size=4).filter(lambda name: name != "**")
FOLDERS = st.lists(st.one_of(NAMES, st.just("**")), min_size=1, max_size=5)


@settings(max_examples=300, derandomize=True, deadline=None)
@given(FOLDERS, st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=6))
def test_equals_trying_everything(pattern: list[str], path: list[str]) -> None:
    expected = naive(pattern, path)
    found = re.compile(translate_pattern("/".join(pattern)), re.DOTALL).match("/".join(path))
    assert bool(found) == expected


@pytest.mark.parametrize("name", ["*a" * 40 + "b", "a*?" * 40 + "b", "*a*"])
@pytest.mark.parametrize("joint", ["/**/", "/"])
def test_time_grows_linearly_whatever_the_pattern(name: str, joint: str) -> None:
    pattern = re.compile(translate_pattern(joint.join([name] * 10) + "/**/x/**/*y*z"), re.DOTALL)
    started = time.process_time()
    for path in ("a" * 5000, "/".join(["a" * 250] * 16), "a/" * 2000, "x/" * 2000 + "y" * 100):
        assert not pattern.match(path)
    assert time.process_time() - started < 0.5
