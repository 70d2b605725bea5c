"""Photos that were moved as a whole: another mount point, drive letter or disk; only the roots' paths change."""

import os

from ...errors import RootUnavailableError
from ...images import describe
from ..records import is_below
from ..spelling import forms
from ..store import Store


def move_roots(store: Store, old: str | os.PathLike[str], new: bytes) -> int:
    """Record that the folder `old` is at `new` now: its root and all roots below it; how many; inside `Store.writing`.

    Args:
        store: where; no photo's row changes, so that stamps which still match save reading the files.
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
        names |= forms(path) | forms(path.rstrip(b"/\\") or path)
    moved = [(root, name) for root in roots for name in [_above(root.path, names)] if name is not None]
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
            store.move_root(root, paths[root.id])
            below = [path for path in suspects if is_below(path, root.path)]
            store.forget_in_flight(below)
            store.put_in_flight([new + path[len(name) :] for path in below])
    return len(paths)


def _above(path: bytes, names: set[bytes]) -> bytes | None:
    """The longest of some folders that a path is or lies below."""
    return max((name for name in names if name and is_below(path, name)), key=len, default=None)
