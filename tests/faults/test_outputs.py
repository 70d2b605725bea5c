"""What a user names as an output destroys nothing: no file of theirs is replaced, nothing is written among photos."""

import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import make_photo, tree_state

from simclr_hub import SimilarityIndex, _files
from simclr_hub._files import FOLDER, Kind, check_output, check_place, new_directory, write_file, write_output
from simclr_hub.errors import OutputError
from simclr_hub.index.store import STORE_NAME
from simclr_hub.pages import PAGE, write_gallery, write_review
from simclr_hub.whitening import Whitening

Run = Callable[..., tuple[int, str, str]]
NOTES = b"my own words"
needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")


@pytest.fixture
def index(run: Run, photos: Path, tiny_dir: Path) -> str:
    """`photos.index` of the photos, in the current folder."""
    assert run("index", photos, "--model", tiny_dir)[0] == 0
    return "photos.index"


def page(path: Path) -> None:
    write_gallery(path, [], title="t")


def review(path: Path) -> None:
    write_review(path, [], title="t")


def whitening(path: Path) -> None:
    learnt = Whitening.learn(np.random.default_rng(0).normal(size=(120, 4)).astype(np.float32), learnt_from="x")
    learnt.save(path)


@pytest.mark.parametrize(
    ("write", "name"), [(page, "p.html"), (page, "P.HTM"), (review, "r.html"), (whitening, "w.safetensors")]
)
def test_only_what_this_package_wrote_is_replaced(write: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    write(path)
    written = path.read_bytes()
    write(path)
    assert path.read_bytes() == written
    for foreign in (NOTES, b"", written[:20], b"\n" + written):
        path.write_bytes(foreign)
        with pytest.raises(FileExistsError, match=f"{name} exists already and is not a .* that simclr-hub wrote"):
            write(path)
        assert path.read_bytes() == foreign and os.listdir(tmp_path) == [name]


def test_force_replaces_a_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "p.html").write_bytes(NOTES)
    write_gallery(tmp_path / "p.html", [], title="t", force=True)
    write_review(tmp_path / "p.html", [], title="t", force=True)
    assert b"simclr-hub" in (tmp_path / "p.html").read_bytes()
    photo = make_photo(tmp_path / "photo.jpg", 1)
    (tmp_path / "folder.html").mkdir()
    (tmp_path / "link.html").symlink_to(photo)
    (tmp_path / "dangling.html").symlink_to(tmp_path / "nothing.html")
    before = tree_state(tmp_path)
    for name, told in (
        ("photo.jpg", "must end in .html or .htm"),
        ("photo.html.jpg", "must end in .html or .htm"),
        ("html", "must end in .html or .htm"),
        ("folder.html", "a folder"),
        ("link.html", "a symbolic link"),
        ("dangling.html", "a symbolic link"),
        ("no/p.html", "there is no folder .*no; make it first"),
        ("p.html/p.html", "there is no folder .*p.html; make it first"),
    ):
        for write in (write_gallery, write_review):
            with pytest.raises(OSError, match=told):
                write(tmp_path / name, [], title="t", force=True)
    assert tree_state(tmp_path) == before


@needs_pipes
def test_a_pipe_is_not_waited_for_and_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p.html")
    with pytest.raises(FileExistsError, match="a pipe, a device or the like"):
        write_gallery(tmp_path / "p.html", [], title="t", force=True)
    assert stat.S_ISFIFO(os.lstat(tmp_path / "p.html").st_mode)


def test_a_hard_link_to_a_photo_is_no_page(tmp_path: Path) -> None:
    photo = make_photo(tmp_path / "photo.jpg", 1)
    os.link(photo, tmp_path / "p.html")
    with pytest.raises(FileExistsError):
        page(tmp_path / "p.html")
    with pytest.raises(OutputError, match="the same as .*photo.jpg"):
        check_output(tmp_path / "p.html", PAGE, force=True, photos=[photo])


def test_places_among_photos_however_they_are_spelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = tmp_path / "photos"
    (photos / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(photos / "below")
    (tmp_path / "other").mkdir()
    (tmp_path / "target.html").symlink_to(photos / "p.html")
    monkeypatch.chdir(photos / "below")
    for path in (
        photos,
        photos / "p.html",
        photos / "no/such/p.html",
        tmp_path / "link/p.html",
        tmp_path / "other/../photos/p.html",
        tmp_path / "target.html",
        Path("p.html"),
        Path("../p.html"),
    ):
        for folder in (photos, tmp_path / "other/../photos", tmp_path / "link/.."):
            with pytest.raises(OutputError, match="in the photo folder .*, where nothing is written"):
                check_place(path, [tmp_path / "nowhere", folder])
    check_place(tmp_path / "photos.html", [photos])
    check_place(tmp_path / "other/p.html", [photos, "https://example.org/photos"])
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(OutputError):
        check_place(photos / "p.html", ["~/photos"])
    (photos / "below").rmdir()
    photos.rmdir()  # a disk that is not plugged in
    with pytest.raises(OutputError, match="in the photo folder|the same as"):
        check_place(tmp_path / "photos/p.html", [photos])


def test_nothing_is_written_into_an_index(tmp_path: Path) -> None:
    assert _files.INDEX_FILE == STORE_NAME
    own = tmp_path / "i.index"
    (own / "below").mkdir(parents=True)
    (own / STORE_NAME).touch()
    (tmp_path / "link").symlink_to(own)
    for path in (own / "p.html", own / "below/p.html", tmp_path / "link/p.html"):
        with pytest.raises(OutputError, match="inside the index"):
            page(path)
    with pytest.raises(OutputError, match="inside the index"), new_directory(own / "new"):
        pass
    assert sorted(os.listdir(own)) == ["below", STORE_NAME]


def test_a_folder_is_made_only_where_nothing_is(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_bytes(NOTES)
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("full", "full/notes.txt", "dangling", "link"):
        with pytest.raises(FileExistsError, match="exists already"):
            check_output(tmp_path / name, FOLDER)
    with pytest.raises(OutputError, match=r"there is no folder .*notes\.txt"):
        check_output(tmp_path / "full/notes.txt/a/b", FOLDER)
    for name in ("empty", "new/below"):
        with new_directory(tmp_path / name) as folder:
            (folder / "file").touch()
        assert os.listdir(tmp_path / name) == ["file"]


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)
    with pytest.raises(OutputError, match=f"the folder {tmp_path} cannot be written to"):
        page(tmp_path / "p.html")
    with pytest.raises(OutputError, match=f"the folder {tmp_path} cannot be written to"):
        check_output(tmp_path / "a/b", FOLDER)


def test_what_comes_there_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "p.html"

    def write(file: Any) -> None:
        file.write(b"new")
        path.write_bytes(NOTES)

    with pytest.raises(FileExistsError):
        write_output(path, write, PAGE)
    assert path.read_bytes() == NOTES and os.listdir(tmp_path) == ["p.html"]
    path.unlink()
    with pytest.raises(OSError), new_directory(tmp_path / "new"):
        (tmp_path / "new").symlink_to(tmp_path)
    with pytest.raises(OSError), new_directory(tmp_path / "full"):
        (tmp_path / "full").mkdir()
        (tmp_path / "full/notes.txt").write_bytes(NOTES)
    assert sorted(os.listdir(tmp_path)) == ["full", "new"] and (tmp_path / "full/notes.txt").read_bytes() == NOTES


def test_long_names_and_names_that_are_no_text(tmp_path: Path) -> None:
    for name in ("a" * 250 + ".html", "\u00e9" * 125 + ".html", os.fsdecode(b"\xff\x1b.html")):
        page(tmp_path / name)
        assert (tmp_path / name).exists()
    (tmp_path / "\x1b[2J.html").write_bytes(NOTES)
    with pytest.raises(FileExistsError, match=r"\\x1b\[2J.html exists") as caught:
        page(tmp_path / "\x1b[2J.html")
    assert "\x1b" not in str(caught.value)


# -- the commands


def test_no_command_replaces_what_is_not_its_own(run: Run, index: str, photos: Path, tmp_path: Path) -> None:
    photo = next(photos.rglob("*.png"))
    for name in ("notes.html", "notes.npz", "notes.parquet", "notes.safetensors", "notes.txt"):
        (tmp_path / name).write_bytes(NOTES)
    np.savez(tmp_path / "own.npz", paths=np.array(["a"]), vectors=np.zeros((1, 2), np.float32))
    (tmp_path / "folder.npz").mkdir()
    before = {path: tree_state(path) for path in (photos, tmp_path / "folder.npz")}
    kept = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    for arguments, code, told in (
        (["search", index, photo, "--html", "notes.html"], 1, "notes.html exists already and is not a page"),
        (["search", index, photo, "--html", photo], 2, "must end in .html"),
        (["search", index, photo, "--html", "notes.txt", "--force"], 2, "must end in .html"),
        (["search", index, photo, "--html", photos / "p.html", "--force"], 2, "in the photo folder"),
        (["search", index, "notes.html", "--html", "notes.html", "--force"], 2, "the same as notes.html"),
        (["search", index, photo, "--html", f"{index}/p.html"], 2, "inside the index"),
        (["search", index, photo, "--html", "no/p.html"], 2, "there is no folder no"),
        (["duplicates", index, "--html", "notes.html"], 1, "notes.html exists already and is not a page"),
        (["duplicates", index, "--html", photos / "p.html", "--force"], 2, "in the photo folder"),
        (["embed", photos, "-o", "notes.npz"], 1, "notes.npz exists already and is not a file of features"),
        (["embed", photos, "-o", "own.npz"], 1, "own.npz exists already and is not a file of features"),
        (["embed", photos, "-o", "notes.parquet"], 1, "notes.parquet exists already"),
        (["embed", photos, "-o", "folder.npz", "--force"], 1, "folder.npz exists already, a folder"),
        (["embed", photos, "-o", photo, "--force"], 2, "must end in .npz or .parquet"),
        (["embed", photos, "-o", photos / "f.npz", "--force"], 2, "in the photo folder"),
        (["embed", "notes.npz", "-o", "notes.npz", "--force"], 2, "the same as notes.npz"),
        (["embed", photo, "-o", "/dev/null"], 2, "must end in .npz or .parquet"),
        (["export", index, "notes.parquet"], 1, "notes.parquet exists already"),
        (["export", index, "notes.txt"], 2, "must end in .parquet"),
        (["export", index, photos / "out.parquet"], 2, "in the photo folder"),
        (["whiten", photos, "-o", "notes.safetensors"], 1, "notes.safetensors exists already"),
        (["whiten", photos, "-o", photos / "w.safetensors"], 2, "in the photo folder"),
        (["index", photos, "-o", photos], 2, "in the photo folder"),
        (["index", photos, "-o", photos / "i.index"], 2, "in the photo folder"),
        (["index", photos, "-o", "notes.txt"], 1, "notes.txt exists already, a file"),
        (["index", tmp_path / "folder.npz", "-o", photos], 1, "exists already, a folder"),
        (["import", "notes.parquet", "notes.txt"], 1, "notes.txt exists already, a file"),
        (["convert", "none", "notes.txt"], 1, "notes.txt exists already, a file"),
        (["demo", "-o", "notes.txt"], 1, "notes.txt"),
    ):
        found, _, err = run(*arguments)
        assert found == code and told in err and len(err.splitlines()) == 1, (arguments, found, err)
        assert {path: tree_state(path) for path in before} == before, arguments
        assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == kept, arguments


def test_outputs_are_refused_before_the_work(
    run: Run, index: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("it began to work")

    monkeypatch.setattr("simclr_hub.embedder.Embedder", work)
    monkeypatch.setattr(SimilarityIndex, "search", work)
    monkeypatch.setattr(SimilarityIndex, "duplicates", work)
    monkeypatch.setattr(SimilarityIndex, "not_duplicates", work)
    for arguments in (
        ["embed", photos, "-o", photos / "f.npz"],
        ["search", index, "x.jpg", "--html", "x.jpg"],
        ["duplicates", index, "--html", "no/p.html", "--not-duplicate", "a", "b"],
    ):
        assert run(*arguments)[0] == 2, arguments


def test_what_the_commands_wrote_they_replace(run: Run, index: str, photos: Path, tiny_dir: Path) -> None:
    photo = next(photos.rglob("*.png"))
    for arguments in (
        ["search", index, photo, "--html", "P.HTML"],
        ["duplicates", index, "--html", "P.HTML"],
        ["embed", photo, "-o", "F.NPZ", "--model", tiny_dir],
        ["embed", photo, "-o", "f.parquet", "--model", tiny_dir],
    ):
        for _ in range(2):
            assert run(*arguments)[0] == 0, arguments
    with np.load("F.NPZ") as saved:
        assert sorted(saved) == ["paths", "vectors"]
    for name in ("F.NPZ", "P.HTML"):
        Path(name).write_bytes(NOTES)
    assert run("embed", photo, "-o", "F.NPZ", "--model", tiny_dir, "--force")[0] == 0
    assert run("search", index, photo, "--html", "P.HTML", "--force")[0] == 0


def test_the_demo_takes_no_other_file_or_index_for_its_own(
    run: Run, index: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/gallery.html").write_bytes(NOTES)
    code, _, err = run("demo", "-o", "a")
    assert code == 1 and "gallery.html exists already" in err and os.listdir(tmp_path / "a") == ["gallery.html"]
    (tmp_path / "b").mkdir()
    (tmp_path / index).rename(tmp_path / "b/demo.index")
    before = tree_state(tmp_path / "b")
    code, _, err = run("demo", "-o", "b")
    assert code == 2 and "demo.index holds other photos than the sample photos" in err
    assert tree_state(tmp_path / "b") == before


def test_an_index_that_is_joined_is_named_before_the_work(
    run: Run, index: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photo(tmp_path / "more/1.png", 1)
    code, _, err = run("index", tmp_path / "more")
    assert code == 0 and err.startswith("photos.index holds photos; ") and "more is added to it" in err
    for again in (photos, tmp_path / "more", next(path for path in photos.iterdir()).parent):
        assert run("index", again)[2] == ""
    Path("empty").mkdir()
    assert run("index", photos, "-o", "empty", "--json")[0] == 0  # an empty folder becomes the index


# -- the umask


def modes(folder: Path) -> list[int]:
    return [stat.S_IMODE(path.stat().st_mode) for path in sorted(folder.rglob("*"))]


@pytest.mark.skipif(os.name == "nt", reason="no modes here")
@pytest.mark.parametrize(
    ("umask", "file", "folder"), [(0o077, 0o600, 0o700), (0o022, 0o644, 0o755), (0o002, 0o664, 0o775)]
)
def test_the_kernel_applies_the_umask(
    umask: int, file: int, folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", None)  # which is one for all threads: it is never touched
            write_file(tmp_path / "a", lambda file: file.write(b"x"))
            with new_directory(tmp_path / "b") as new:
                (new / "c").touch(mode=0o600)  # as safetensors does
                (new / "d").mkdir()
    finally:
        os.umask(before)
    assert modes(tmp_path) == [file, folder, file, folder]


@pytest.mark.skipif(os.name == "nt", reason="no modes here")
def test_files_of_other_threads_keep_their_modes(tmp_path: Path) -> None:
    stop, found = threading.Event(), set()

    def go_on() -> None:
        while not stop.is_set():
            (tmp_path / "other").touch()
            found.add(stat.S_IMODE((tmp_path / "other").stat().st_mode))
            (tmp_path / "other").unlink()

    before = os.umask(0o077)
    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        for i in range(50):
            write_file(tmp_path / str(i % 5), lambda file: file.write(b"x"))
            with new_directory(tmp_path / f"folder {i}") as folder:
                (folder / "a").touch()
    finally:
        stop.set()
        thread.join()
        os.umask(before)
    assert found == {0o600}


def test_a_kind_without_a_mark_is_never_replaced(tmp_path: Path) -> None:
    kind = Kind("a thing", (".x",))
    write_output(tmp_path / "a.x", lambda file: file.write(b"1"), kind)
    with pytest.raises(FileExistsError, match="exists already, a file; choose another name$"):
        write_output(tmp_path / "a.x", lambda file: file.write(b"2"), kind)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="a place that nobody may write to")
def test_a_place_that_cannot_be_written_to_is_named_as_it_was_given(run: Run, index: str) -> None:
    with pytest.raises(OutputError, match="^/proc/p.html: No such file or directory; choose another place"):
        page(Path("/proc/p.html"))
    for command in (("embed", "photos", "-o", "/proc/x.npz"), ("export", index, "/proc/x.parquet")):
        code, _, err = run(*command)
        assert code == 2 and err.splitlines()[-1].startswith(
            f"error: {command[-1]}: No such file or directory; choose"
        )
    assert run("export", index, "x.parquet")[0] == 0
    for command in (("import", "x.parquet", "/proc/i"), ("index", "photos", "-o", "/proc/i")):
        code, _, err = run(*command)
        assert code == 2 and "/proc/i: No such file or directory; choose" in err, err
