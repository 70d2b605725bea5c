"""Plans: what may go, and that a script moves exactly that and brings it back."""

import csv
import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder
from tiny import SAMPLE_PHOTOS

from simclr_hub import SimilarityIndex
from simclr_hub.cli import main
from simclr_hub.duplicates.find import DuplicateGroup, Member
from simclr_hub.duplicates.plan import Move, Rules, check_target, format_plan, moves_of
from simclr_hub.errors import OutputError

SHELLS = [name for name in ("dash", "bash", "sh") if shutil.which(name)]
#: File names that a careless script would run, split or lose.
NAMES = ["it's.jpg", 'a "b".jpg', "$(touch owned).jpg", "line\nend.jpg", "-rf.jpg", "back\\slash.jpg", "é ü.jpg"]


def member(path: str, content: str, tier: str = "same-bytes", **others: object) -> Member:
    return Member(path, tier, 1.0, {}, content * 64, **others)  # type: ignore[arg-type]


def group(*files: Member, tier: str = "same-picture") -> DuplicateGroup:
    return DuplicateGroup(tier, files[0], "", list(files[1:]))  # type: ignore[arg-type]


def gone(moves: list[Move]) -> list[str]:
    return [move.path for move in moves]


def test_every_copy_of_the_first_goes() -> None:
    files = group(member("/a/1", "a"), member("/b/1", "a"), member("/c/1", "b", "same-picture"))
    moves = moves_of(files)
    assert [(move.path, move.keep, move.relation) for move in moves] == [
        ("/b/1", "/a/1", "same bytes"),
        ("/c/1", "/a/1", "same picture"),
    ]


def test_nothing_goes_that_is_only_similar_a_pair_or_one_more_name() -> None:
    assert moves_of(group(member("/a", "a"), member("/b", "b", "similar"), tier="similar")) == []
    assert moves_of(group(member("/a", "a"), member("/b", "a", same_file="/a"))) == []
    assert moves_of(group(member("/a", "a"), member("/b", "b", "same-picture", pair="/b.raw"))) == []


def test_a_rule_chooses_another_to_keep_and_then_only_what_was_compared_with_it_goes() -> None:
    files = group(
        member("/a/1", "a"),
        member("/a/2", "a"),
        member("/best/1", "b", "same-picture"),
        member("/b/2", "b", "same-picture"),
        member("/c/1", "c", "same-picture"),  # a crop like the kept one, perhaps of another part
    )
    moves = moves_of(files, Rules(prefer=["/best"]))
    assert gone(moves) == ["/a/1", "/a/2", "/b/2"] and {move.keep for move in moves} == {"/best/1"}
    assert gone(moves_of(files, Rules(never_from=["/a", "/b"]))) == ["/best/1", "/c/1"]
    assert gone(moves_of(files, Rules(never_from=["/"]))) == []
    assert gone(moves_of(files, Rules(never_from=["/c/1"]))) == gone(moves_of(files))  # a file is no folder


@pytest.mark.parametrize("target", ["", "moved", "/x\0y"])
def test_a_target_that_is_no_whole_path_is_refused(target: str) -> None:
    with pytest.raises(OutputError, match="whole path"):
        check_target(target, [])


def test_a_target_among_the_photos_or_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(OutputError, match="a folder is needed"):
        check_target(str(tmp_path / "file"), [])
    for place in (tmp_path, tmp_path / "new", tmp_path / "link" / "new"):
        with pytest.raises(OutputError, match="photo folder"):
            check_target(str(place), [tmp_path])


def test_a_file_is_never_moved_twice_or_both_moved_and_kept() -> None:
    one, back = Move("/a", "0", "/b", "0", "same bytes"), Move("/b", "0", "/a", "0", "same bytes")
    for moves in ([one, back], [one, one]):
        with pytest.raises(OutputError, match="untick"):
            format_plan(moves, "/t", ".sh")
    with pytest.raises(ValueError, match="a plan is one of"):
        format_plan([one], "/t", ".exe")


class Album:
    """Copies of odd names beside what is to be kept, with the script that moves them."""

    def __init__(self, folder: Path):
        self.photos, self.target, self.script = folder / "photos", folder / "gone away", folder / "plan.sh"
        (self.photos / "sub").mkdir(parents=True)
        moves = []
        for number, name in enumerate(NAMES):
            data = f"photo {number}".encode()
            keep, copy = self.photos / f"{number}.jpg", self.photos / "sub" / name
            keep.write_bytes(data)
            copy.write_bytes(data)
            digest = hashlib.sha256(data).hexdigest()
            moves.append(Move(str(copy), digest, str(keep), digest, "same bytes"))
        self.moves = moves
        self.script.write_bytes(format_plan(moves, str(self.target), ".sh"))

    def run(self, *arguments: str, shell: str = "sh") -> tuple[int, str, str]:
        run = subprocess.run([shell, self.script, *arguments], capture_output=True, text=True, cwd=self.photos.parent)
        return run.returncode, run.stdout.splitlines()[-1] if run.stdout else "", run.stderr

    def state(self) -> dict[str, tuple[bytes, int]]:
        files = (path for path in self.photos.rglob("*") if path.is_file())
        return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


@pytest.fixture
def album(tmp_path: Path) -> Album:
    return Album(tmp_path)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_moves_and_undo_brings_back_byte_for_byte(album: Album, shell: str) -> None:
    before = album.state()
    assert album.run("check", shell=shell)[:2] == (0, f"{len(NAMES)} would be moved, 0 left alone")
    assert album.state() == before and not album.target.exists()
    assert album.run(shell=shell) == (0, f"{len(NAMES)} moved, 0 left alone", "")
    assert not any((album.photos / "sub").iterdir())
    assert len([path for path in album.target.rglob("*") if path.is_file()]) == len(NAMES)
    assert album.run(shell=shell)[:2] == (0, "0 moved, 0 left alone")  # again: nothing more to do
    assert album.run("undo", shell=shell) == (0, f"{len(NAMES)} moved back, 0 left alone", "")
    assert album.state() == before
    assert album.run("undo", shell=shell)[:2] == (0, "0 moved back, 0 left alone")
    assert not list(album.photos.parent.glob("**/owned"))
    assert album.run("now", shell=shell)[0] == 2


def test_a_script_leaves_alone_what_is_not_as_it_was(album: Album) -> None:
    changed, linked, lost, occupied, alone = (Path(move.path) for move in album.moves[:5])
    changed.write_bytes(b"edited since")
    linked.unlink()
    linked.symlink_to(album.moves[1].keep)
    Path(album.moves[2].keep).unlink()
    there = album.target.joinpath(*occupied.parts[1:])
    there.parent.mkdir(parents=True)
    there.write_bytes(b"somebody's")
    Path(album.moves[4].keep).write_bytes(b"not what was compared")
    code, last, errors = album.run()
    assert code == 1 and last == f"{len(NAMES) - 5} moved, 5 left alone"
    for path, why in (
        (changed, "changed since it was indexed"),
        (linked, "changed since it was indexed"),
        (lost, "the copy to keep is gone or changed"),
        (occupied, "something is at"),
        (alone, "the copy to keep is gone or changed"),
    ):
        assert path.exists() and f"left alone: {path}: {why}" in errors
    assert there.read_bytes() == b"somebody's"
    lost.unlink()  # was not moved: a new file at its place is not touched by undo
    assert album.run("undo")[1] == f"{len(NAMES) - 5} moved back, 1 left alone"  # where somebody's file is


def test_undo_replaces_nothing_and_brings_back_nothing_changed(album: Album) -> None:
    album.run()
    first, second = (Path(move.path) for move in album.moves[:2])
    first.write_bytes(b"new")
    album.target.joinpath(*second.parts[1:]).write_bytes(b"edited")
    code, last, errors = album.run("undo")
    assert code == 1 and last == f"{len(NAMES) - 2} moved back, 2 left alone"
    assert first.read_bytes() == b"new" and not second.exists() and "changed since it was moved" in errors


def test_the_same_file_under_two_names_stays(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    os.link(tmp_path / "a", tmp_path / "b")
    digest = hashlib.sha256(b"x").hexdigest()
    script = tmp_path / "plan.sh"
    move = Move(str(tmp_path / "b"), digest, str(tmp_path / "a"), digest, "same bytes")
    script.write_bytes(format_plan([move], str(tmp_path / "t"), ".sh"))
    run = subprocess.run(["sh", script], capture_output=True, text=True)
    assert run.returncode == 1 and "the same file" in run.stderr and (tmp_path / "b").exists()


def test_a_list_names_both_files_and_their_hashes() -> None:
    move = Move('/a/it\'s, "odd"', "0" * 64, "/b", "1" * 64, "same picture")
    rows = list(csv.DictReader(format_plan([move], "/t", ".csv").decode().splitlines()))
    assert rows == [
        {"move": move.path, "to": f"/t{move.path}", "sha256": "0" * 64, "keep": "/b", "keep_sha256": "1" * 64}
        | {"relation": "same picture"}
    ]


NAMES = [
    "plain.jpg",
    "it's.jpg",
    "\u2018all\u2019 \u201aof\u201b them.jpg",
    "'; Remove-Item x #.jpg",
    "'$(Remove-Item x)'.jpg",
    "$env:HOME ${x} $x.jpg",
    "back`tick `n `.jpg",
    "[a-z]*?.jpg",
    "two\nlines\r\n.jpg",
    'double "quotes".jpg',
    "-Hash.jpg",
    "@{a=1} @(1) %x% & | ; , # <# #>.jpg",
    "dots...",
    "space ",
    "\u00fcn\u0131 \U0001f98a.jpg",
]


def powershell_words(line: str) -> list[str]:
    """Read single-quoted words as PowerShell's tokenizer does: two quotes of any kind are the first of them."""
    quotes = "'\u2018\u2019\u201a\u201b"
    words, at = [], 0
    while at < len(line):
        assert line[at] in quotes, line[at:]
        at, word = at + 1, ""
        while line[at] not in quotes or line[at + 1 : at + 2] in tuple(quotes):
            word, at = word + line[at], at + (2 if line[at] in quotes else 1)
        words.append(word)
        assert line[at + 1 : at + 2] in (" ", "")
        at += 2
    return words


def test_powershell_gets_every_name_as_it_is() -> None:
    moves = [Move(f"/a/{name}", "0" * 64, f"/b/{name}", "1" * 64, "same bytes") for name in NAMES]
    plan = format_plan(moves, "/t", ".ps1")
    assert plan.startswith(b"\xef\xbb\xbf#")  # Windows PowerShell reads what has no mark as its old code page
    head, *calls = plan.decode("utf-8-sig").split("\nEach ")
    calls[-1] = calls[-1].removesuffix("\nFinish\n")
    assert [powershell_words(call) for call in calls] == [
        [move.path, move.sha256, f"/t{move.path}", move.keep, move.keep_sha256] for move in moves
    ]
    assert "Each '" not in head and "2,0" not in head


def test_powershell_takes_paths_literally_and_replaces_nothing() -> None:
    """What the template must keep to; there is no PowerShell here that could run it."""
    text = format_plan([Move("/a", "0", "/b", "0", "same bytes")], "/t", ".ps1").decode("utf-8-sig")
    code = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for command in re.findall(r"(?:Test-Path|Get-Item|Get-FileHash|Get-ChildItem|Resolve-Path)\b[^)}]*", code):
        assert "-LiteralPath $" in command, command  # else brackets are a pattern
    assert not re.search(r"Move-Item|Copy-Item|Remove-Item|Invoke-|-Force\b(?!\))|\$true\)", code)
    assert re.findall(r"\[IO\.File\]::\w+\([^)]*\)", code) == ["[IO.File]::Move($From, $To)"]  # which never replaces
    assert code.count("{") == code.count("}") and code.count("(") == code.count(")")
    assert "-NoProfile" in text and "-ExecutionPolicy Bypass" in text


@pytest.fixture
def indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an index of a photo, its copy and its copy's copy."""
    (tmp_path / "photos" / "old").mkdir(parents=True)
    for name in ("cat.jpg", "cat (1).jpg", "old/cat.jpg"):
        shutil.copy(SAMPLE_PHOTOS / "cat_1.jpg", tmp_path / "photos" / name)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as index:
        index.sync(tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exit:
        main(list(arguments))
    return int(exit.value.code or 0)


def test_the_command_writes_a_script_that_works(indexed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("duplicates", "i", "--script", "plan.sh", "--never-from", "photos/old") == 0
    assert "it moves 2 files" in capsys.readouterr().out
    subprocess.run(["sh", "plan.sh"], check=True, capture_output=True)
    assert [str(path.relative_to(indexed)) for path in (indexed / "photos").rglob("*.jpg")] == ["photos/old/cat.jpg"]
    assert run("duplicates", "i", "--script", "plan.sh") == 0  # its own file is replaced
    (indexed / "mine.sh").write_text("echo mine")
    assert run("duplicates", "i", "--script", "mine.sh") == 1
    assert (indexed / "mine.sh").read_text() == "echo mine"


def test_the_command_refuses_places_among_photos_and_rules_without_a_script(indexed: Path) -> None:
    assert run("duplicates", "i", "--script", "photos/plan.sh") == 2
    assert run("duplicates", "i", "--script", "plan.sh", "--to", "photos/new") == 2
    assert run("duplicates", "i", "--script", "plan.txt") == 2
    assert run("duplicates", "i", "--prefer", "photos") == 2
    assert not (indexed / "plan.sh").exists()
