"""Paths of photos: one file under several spellings, and root folders that are somewhere else now."""

import os
import unicodedata
from collections.abc import Iterable
from contextlib import suppress

from ..errors import RootUnavailableError
from ..images import describe
from ..scan import SEPARATOR
from .store import Root, Store


def is_below(path: bytes, folder: bytes) -> bool:
    """Return whether `path` is `folder` or lies below it; everything lies below b""."""
    return not folder or path == folder or path.startswith(folder.rstrip(SEPARATOR) + SEPARATOR)


def on_disk(path: str | os.PathLike[str]) -> bytes:
    """Return the real absolute path, each name spelled as its folder lists it, as it was given where nothing is."""
    real = os.path.realpath(os.path.expanduser(path))
    drive, rest = os.path.splitdrive(real)
    spelled = os.fsencode(drive + os.sep)
    for name in os.fsencode(rest).split(os.fsencode(os.sep)):
        if name:
            spelled = os.path.join(spelled, _listed(spelled, name))
    return spelled


def _listed(folder: bytes, name: bytes) -> bytes:
    """Return how `folder` lists `name`."""
    # No rule about a file system is assumed: a name that is not listed but opens is looked for by its inode; one that
    # does not open, by its letters in the other Unicode form.
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


def _same(one: bytes, other: bytes) -> bool:
    try:
        return os.path.samestat(os.lstat(one), os.lstat(other))
    except OSError:
        return False


def letters(name: bytes) -> str:
    """Return a name in the one form that all its Unicode spellings have."""
    return unicodedata.normalize("NFC", os.fsdecode(name))


def openable(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return a path as it was given; if nothing is there, as it is spelled on disk."""
    if not os.path.lexists(path):
        spelled = os.fsdecode(on_disk(path))
        if os.path.lexists(spelled):
            return spelled
    return path


def as_recorded(path: bytes, roots: Iterable[Root]) -> bytes:
    """Return a path in or below a root, whatever name of the root (by the inode) it has, with the root's own name."""
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


def relocate_roots(store: Store, old: str | os.PathLike[str], new: bytes) -> int:
    """Record that the folder `old` is at `new` now, its root and all roots below it; return how many.

    Args:
        store: inside `writing`; no photo's row changes, so that file stats which still match save reading the files.
        old: as it was recorded, or a folder above recorded ones; it need not exist.
        new: real absolute path, which must be there.

    Raises:
        RootUnavailableError: `new` cannot be listed, `old` has no root, or `new` is recorded already.
    """
    there = describe(os.fsdecode(new))
    try:
        with os.scandir(new):
            pass
    except OSError as e:
        why = f"{e.strerror or e}; nothing was changed. Is the disk plugged in and mounted?"
        raise RootUnavailableError(f"{there}: {why}") from e
    roots = store.roots().values()
    names: set[bytes] = set()
    for path in map(os.fsencode, (old, os.path.abspath(old), os.path.realpath(old))):
        names |= _forms(path) | _forms(path.rstrip(b"/\\") or path)
    names.discard(b"")
    # The longest of the names that a root is or lies below.
    above = ((root, [name for name in names if is_below(root.path, name)]) for root in roots)
    moved = [(root, max(found, key=len)) for root, found in above if found]
    if not moved:
        known = ", ".join(describe(os.fsdecode(root.path)) for root in roots) or "none"
        raise RootUnavailableError(f"{describe(old)}: not a photo folder of this index; it has: {known}")
    paths = {root.id: new + root.path[len(name) :] for root, name in moved}
    for root in roots:
        if root.id not in paths and any(is_below(root.path, p) or is_below(p, root.path) for p in paths.values()):
            known = describe(os.fsdecode(root.path))
            raise RootUnavailableError(
                f"{there}: recorded already, as {known}; sync it as it is: photos are recognised by their content"
            )
    suspects = store.in_flight()
    with store.transaction():
        for root, name in moved:
            store.relocate_root(root, paths[root.id])
            below = [path for path in suspects if is_below(path, root.path)]
            store.forget_in_flight(below)
            store.put_in_flight([new + path[len(name) :] for path in below])
    return len(paths)


def _forms(path: bytes) -> set[bytes]:
    """Return a path, and the same with all letters composed or all decomposed."""
    text = os.fsdecode(path)
    return {path} | {os.fsencode(unicodedata.normalize(form, text)) for form in ("NFC", "NFD")}
