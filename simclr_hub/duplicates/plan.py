"""Plans to move copies out of photo folders, as scripts that a person reads and runs.

This package itself moves nothing.
"""

import csv
import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from .._files import Kind, check_place, write_output
from ..errors import OutputError
from ..images import describe
from .find import DuplicateGroup

#: How a script of this package begins, by the suffix of its name.
_HEADS = {
    ".sh": b"#!/bin/sh\n# Written by simclr-hub",
    ".ps1": b"\xef\xbb\xbf# Written by simclr-hub",  # Windows PowerShell takes what has no mark for its old code page
    ".csv": b"move,to,sha256,keep,keep_sha256,relation\r\n",
}


def _is_plan(path: Path) -> bool:
    head = _HEADS.get(path.suffix.lower(), b"?")
    try:
        with open(path, "rb") as file:
            return file.read(len(head)) == head
    except OSError:
        return False


#: The kind of file that a plan is, see `_files.check_output`.
PLAN = Kind("a plan", tuple(_HEADS), _is_plan)


@dataclass(frozen=True)
class Move:
    """Describe a file that goes, and the one that stays for it.

    Attributes:
        path: of the file that is moved, absolute.
        sha256: of its bytes when it was indexed, in hexadecimal.
        keep: the file that stays.
        keep_sha256: of the bytes of that.
        relation: "same bytes" or "same picture".
    """

    path: str
    sha256: str
    keep: str
    keep_sha256: str
    relation: str


@dataclass(frozen=True)
class Rules:
    """Decide which file of a group is kept, before what `find.preference` says.

    Attributes:
        never_from: folders from which nothing is moved.
        prefer: folders whose files are kept, the first the most.
    """

    never_from: Sequence[str] = ()
    prefer: Sequence[str] = ()

    def rank(self, path: str) -> tuple[bool, int]:
        """Return a key that sorts the file to keep first, the same for those of which no rule tells."""
        wanted = (at for at, folder in enumerate(self.prefer) if is_inside(path, folder))
        return not self.protects(path), next(wanted, len(self.prefer))

    def protects(self, path: str) -> bool:
        """Tell whether a file is never to be moved."""
        return any(is_inside(path, folder) for folder in self.never_from)


def is_inside(path: str, folder: str) -> bool:
    """Tell whether a path lies below a folder, by their names."""
    return PurePath(folder) in PurePath(path).parents


def moves_of(group: DuplicateGroup, rules: Rules | None = None) -> list[Move]:
    """Return what may go of a group, and what stays for each: nothing of a similar one.

    A rule may choose another file to keep. Then only what was compared with that one goes: files of its bytes and the
    group's first. Of a RAW file and its JPEG both stay, and so do further names of one file.
    """
    rules = rules or Rules()
    if group.tier == "similar":
        return []
    files = [group.keep, *group.others]
    keep = min(files, key=lambda file: (rules.rank(file.path), files.index(file)))
    moves = []
    for file in files:
        if file is keep or file.same_file or file.pair or rules.protects(file.path):
            continue
        same_bytes = file.sha256 == keep.sha256
        if same_bytes or group.keep.sha256 in (file.sha256, keep.sha256):
            relation = "same bytes" if same_bytes else "same picture"
            moves.append(Move(file.path, file.sha256, keep.path, keep.sha256, relation))
    return moves


def check_target(target: str, photos: Iterable[str | os.PathLike[str]]) -> str:
    """Return where moved files go, absolute.

    Raises:
        OutputError: no absolute path, a file, or below a photo folder, where the next sync would find them again.
    """
    path = Path(target).expanduser()
    if not target or not path.is_absolute() or "\0" in target:
        raise OutputError(f"{describe(target) or 'no folder'}: give the whole path of the folder to move to")
    check_place(path, photos)
    if path.exists() and not path.is_dir():
        raise OutputError(f"{describe(target)}: a file, where a folder is needed")
    return os.path.normpath(path)


def format_plan(moves: Sequence[Move], target: str, kind: str) -> bytes:
    """Return a plan as a file.

    Each file goes to its own path below `target`, so that nothing meets there. A script moves only a regular file
    that holds the bytes it was indexed with, while the one to keep is there, is another file, and holds its own. It
    replaces nothing, says what it refuses, and ends with 1 if it refused any. `undo` moves back what it moved.

    Args:
        moves: what goes.
        target: see `check_target`.
        kind: ".sh" for POSIX shells, ".ps1" for PowerShell, ".csv" for other programs.

    Raises:
        OutputError: a file that is to be moved is also one to keep, or a file is to be moved twice.
        ValueError: another kind.
    """
    gone = [move.path for move in moves]
    if len(set(gone)) != len(gone) or set(gone) & {move.keep for move in moves}:
        raise OutputError("a file is to be moved and to be kept, or moved twice: untick one")
    if kind not in _WRITERS:
        raise ValueError(f"{kind!r}: a plan is one of {', '.join(_WRITERS)}")
    return _WRITERS[kind](moves, target)


def write_plan(path: Path, moves: Sequence[Move], target: str, *, force: bool = False) -> None:
    """Write a plan of the kind that its name tells.

    Args:
        path: ends in .sh, .ps1 or .csv.
        moves: what goes.
        target: see `check_target`.
        force: also replace a file that this package did not write.

    Raises:
        OutputError: see `format_plan` and `_files.check_output`.
        FileExistsError: something else is there.
    """
    plan = format_plan(moves, target, path.suffix.lower())
    write_output(path, lambda file: file.write(plan), PLAN, force=force)


def _destination(target: str, path: str) -> str:
    pure = PurePath(path)
    drive = pure.drive.strip("\\/:").replace("\\", "_").replace(":", "")
    return os.path.join(target, *([drive] if drive else []), *pure.parts[1:])


def _template(name: str, moves: Sequence[Move]) -> str:
    text = (Path(__file__).parents[1] / "templates" / name).read_text(encoding="utf-8")
    return text.replace("NUMBER", f"{len(moves):,}", 1)


def _shell(moves: Sequence[Move], target: str) -> bytes:
    def quoted(text: str) -> bytes:
        return b"'" + os.fsencode(text).replace(b"'", b"'\\''") + b"'"

    lines = [_template("plan.sh", moves).encode()]
    for move in moves:
        words = (move.path, move.sha256, _destination(target, move.path), move.keep, move.keep_sha256)
        lines.append(b"each " + b" ".join(map(quoted, words)) + b"\n")
    return b"".join([*lines, b"finish\n"])


def _powershell(moves: Sequence[Move], target: str) -> bytes:
    def quoted(text: str) -> str:
        for quote in "'\u2018\u2019\u201a\u201b":  # all of them end a string
            text = text.replace(quote, quote * 2)
        return f"'{text}'"

    lines = [_template("plan.ps1", moves)]
    for move in moves:
        words = (move.path, move.sha256, _destination(target, move.path), move.keep, move.keep_sha256)
        lines.append(f"Each {' '.join(map(quoted, words))}\n")
    return _HEADS[".ps1"][:3] + "".join([*lines, "Finish\n"]).encode("utf-8", "surrogatepass")


def _table(moves: Sequence[Move], target: str) -> bytes:
    text = io.StringIO(newline="")
    rows = csv.writer(text)
    for move in moves:
        to = _destination(target, move.path)
        rows.writerow([move.path, to, move.sha256, move.keep, move.keep_sha256, move.relation])
    return _HEADS[".csv"] + text.getvalue().encode("utf-8", "surrogateescape")


_WRITERS: Mapping[str, Callable[[Sequence[Move], str], bytes]] = {
    ".sh": _shell,
    ".ps1": _powershell,
    ".csv": _table,
}
