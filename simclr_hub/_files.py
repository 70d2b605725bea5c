"""The one way a file or directory is published: write, fsync, rename, fsync the directory.

After a kill or a power loss there is the old one or the new one, never half of either. Also the one keeper of what
users name as outputs: nothing that this package did not write is replaced, and nothing is written below photos.
"""

import errno
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ._text import shown
from .errors import OutputError, SimCLRHubError

#: Errors of a place that no name would mend there.
_FULL = {errno.ENOSPC, errno.EROFS, getattr(errno, "EDQUOT", errno.ENOSPC)}

#: The file that makes a folder an index, see `index.store`.
INDEX_FILE = "store.sqlite3"


@dataclass(frozen=True)
class Kind:
    """Describe what a user may name an output.

    Attributes:
        what: in words, "a page".
        suffixes: its names end in one of them, in upper or lower case; () for a folder.
        is_own: whether the regular file at a path is one that this package wrote, which is then replaced; None: what
            exists is never replaced.
    """

    what: str
    suffixes: tuple[str, ...] = ()
    is_own: Callable[[Path], bool] | None = None


#: A new folder, or one that is empty.
FOLDER = Kind("a folder")


def check_output(
    path: Path, kind: Kind, *, force: bool | None = None, photos: Iterable[str | os.PathLike[str]] = ()
) -> None:
    """Refuse a name for an output, before any work is done.

    Args:
        path: what a user named.
        kind: what is to be written there.
        force: replace a regular file that this package did not write; None: there is no such choice.
        photos: folders below which nothing is written, and files that are none of the outputs.

    Raises:
        FileExistsError: something is there that is not replaced.
        OutputError: a wrong suffix, below photos or inside an index, or its folder is missing or read-only.
    """
    name = _name(path)
    if kind.suffixes and path.suffix.lower() not in kind.suffixes:
        raise OutputError(f"{name}: the name of {kind.what} must end in {' or '.join(kind.suffixes)}")
    check_place(path, photos)
    parent = path.parent
    while not kind.suffixes and not parent.exists() and parent != parent.parent:  # a folder's are made
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"{name}: there is no folder {_name(parent)}; make it first, or choose another name")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"{name}: the folder {_name(parent)} cannot be written to; choose another name")
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if kind.suffixes and stat.S_ISREG(mode) and (force or (kind.is_own and kind.is_own(path))):
        return
    if not kind.suffixes and stat.S_ISDIR(mode) and not any(path.iterdir()):
        return
    forcing = "" if force is None or not stat.S_ISREG(mode) else ", or replace it with --force (force=True)"
    regular = f" and is not {kind.what} that simclr-hub wrote" if kind.is_own else ", a file"
    kinds = ((stat.S_ISLNK, ", a symbolic link"), (stat.S_ISDIR, ", a folder"), (stat.S_ISREG, regular))
    it = next((words for is_kind, words in kinds if is_kind(mode)), ", a pipe, a device or the like")
    raise FileExistsError(f"{name} exists already{it}; choose another name{forcing}")


def check_place(path: Path, photos: Iterable[str | os.PathLike[str]] = ()) -> None:
    """Refuse a path that is one of the `photos`, or below one of them or inside an index, whatever links lead there.

    Raises:
        OutputError: it is.
    """
    places = {os.path.realpath(path), os.path.join(os.path.realpath(path.parent), path.name)}
    above = {str(p): _identity(p) for place in places for p in (Path(place), *Path(place).parents)}
    for folder in above:
        if folder not in places and os.path.lexists(os.path.join(folder, INDEX_FILE)):
            raise OutputError(f"{_name(path)}: inside the index {shown(folder)}; give a name outside of it")
    known = set(above.values()) - {None}
    for photo in map(os.path.expanduser, photos):
        if os.path.realpath(photo) in above or _identity(photo) in known:
            it = "in the photo folder" if os.path.isdir(photo) else "the same as"
            raise OutputError(f"{_name(path)}: {it} {_name(photo)}, where nothing is written; choose another place")


def _identity(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return what a path's other spellings, hard links and mounts have in common with it, if something is there."""
    with suppress(OSError, ValueError):
        found = os.stat(path)
        return found.st_dev, found.st_ino
    return None


def _name(path: str | os.PathLike[str]) -> str:
    return shown(os.fsdecode(path))


def fsync_directory(path: Path) -> None:
    """Make a rename in `path` durable; a no-op where directories cannot be opened (Windows)."""
    try:
        fd = os.open(path, os.O_RDONLY)
    except PermissionError:
        if os.name == "nt":
            return
        raise
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Make the bytes of `path` durable."""
    fd = os.open(path, os.O_RDWR)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_file(path: Path, write: Callable[[IO[bytes]], object], check: Callable[[], object] | None = None) -> None:
    """Replace `path` by what `write` puts into the binary file it is given.

    Args:
        path: the file.
        write: called with an open file.
        check: called right before the rename; what it raises, such as `check_output` does, leaves `path` as it is.

    Raises:
        OSError: it could not be written; `path` is as before.
    """
    name = _beside(path)
    try:
        with open(name, "x+b") as file:  # 0666, of which the kernel takes the umask: nobody else can do so safely
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check()
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def write_output(path: Path, write: Callable[[IO[bytes]], object], kind: Kind, *, force: bool | None = None) -> None:
    """Write a file that a user named, see `write_file`, unless `check_output` refuses it, before or after writing."""
    check_output(path, kind, force=force)
    with _placing(path):
        write_file(path, write, lambda: check_output(path, kind, force=force))


@contextmanager
def new_directory(path: Path) -> Iterator[Path]:
    """Give a temporary directory beside `path` to fill; it becomes `path` when the block ends well.

    Raises:
        FileExistsError: there is something at `path` that is not an empty directory.
        OutputError: see `check_output`.
    """
    check_output(path, FOLDER)
    partial = _beside(path)
    with _placing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()  # 0777, of which the kernel takes the umask
    try:
        yield partial
        mode = stat.S_IMODE(partial.stat().st_mode) & 0o666
        for file in partial.rglob("*"):
            if file.is_file():
                file.chmod(mode)  # safetensors writes 0600
                fsync_file(file)
            else:
                fsync_directory(file)
        fsync_directory(partial)
        if path.exists():
            path.rmdir()
        os.replace(partial, path)
    except BaseException as e:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(e, OSError) and e.errno in _FULL and not isinstance(e, SimCLRHubError):
            raise OutputError(f"{_name(path)}: {e.strerror}; choose another place") from e
        raise
    fsync_directory(path.parent)


@contextmanager
def _placing(path: Path) -> Iterator[None]:
    """Name a path that a user gave where it cannot be written to: the system names what lies beside it meanwhile.

    Raises:
        OutputError: it cannot.
    """
    try:
        yield
    except OSError as e:
        if isinstance(e, (FileExistsError, SimCLRHubError)):  # which name what they are about
            raise
        raise OutputError(f"{_name(path)}: {e.strerror or e}; choose another place") from e


def _beside(path: Path) -> Path:
    """Return a name of nothing in the same folder, not longer than names may be."""
    return path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}")
