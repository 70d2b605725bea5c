"""One file, several spellings: upper and lower case, composed and decomposed letters; found by what the disk lists.

Unusual: no rule about a file system is assumed. A name that its folder does not list but that opens is looked for by
its inode; one that does not open, by its letters in the other Unicode form.
"""

import os
import unicodedata
from collections.abc import Iterable
from contextlib import suppress

from .records import Root


def on_disk(path: str | os.PathLike[str]) -> bytes:
    """The real absolute path, each name spelled as its folder lists it; what is nowhere stays as it was given."""
    real = os.path.realpath(os.path.expanduser(path))
    drive, rest = os.path.splitdrive(real)
    spelled = os.fsencode(drive + os.sep)
    for name in os.fsencode(rest).split(os.fsencode(os.sep)):
        if name:
            spelled = os.path.join(spelled, _listed(spelled, name))
    return spelled


def openable(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """A path as it was given; if nothing is there, as it is spelled on disk."""
    if not os.path.lexists(path):
        spelled = os.fsdecode(on_disk(path))
        if os.path.lexists(spelled):
            return spelled
    return path


def as_recorded(path: bytes, roots: Iterable[Root]) -> bytes:
    """A path that lies in or below a root under another name of the root (by the inode), with the root's own name."""
    places = {}
    for root in roots:
        with suppress(OSError):
            found = os.stat(root.path)
            places[found.st_dev, found.st_ino] = root.path
    above, below = path, b""
    while places:
        with suppress(OSError):
            found = os.stat(above)
            if (known := places.get((found.st_dev, found.st_ino))) is not None:
                return os.path.join(known, below) if below else known
        above, name = os.path.split(above)
        if not name:
            break
        below = os.path.join(name, below) if below else name
    return path


def forms(path: bytes) -> set[bytes]:
    """A path, and the same with all letters composed or all decomposed."""
    text = os.fsdecode(path)
    return {path} | {os.fsencode(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}


def _listed(folder: bytes, name: bytes) -> bytes:
    """How `folder` lists `name`."""
    try:
        names = os.listdir(folder)
    except OSError:
        return name
    if name in names:
        return name
    path = os.path.join(folder, name)
    like = [other for other in names if letters(other).casefold() == letters(name).casefold()]
    if os.path.lexists(path):
        found = [other for other in like if _same(path, os.path.join(folder, other))]
    else:
        found = [other for other in like if letters(other) == letters(name)]
    return found[0] if len(found) == 1 else name


def letters(name: bytes) -> str:
    """A name in the one form that all its Unicode spellings have."""
    return unicodedata.normalize("NFC", os.fsdecode(name))


def _same(one: bytes, other: bytes) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False
