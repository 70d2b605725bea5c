"""What to do with what was observed, given what is recorded: pure functions, no file and no clock.

Unusual: a photo that is not there is marked, never dropped; and only what the listing could see is judged.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from ..scan import Listing
from .records import SEPARATOR, Photo, Root, Stamp, is_below

#: Share of a root's photos that have new inodes where its file system numbers them anew; of so many at least.
RENUMBERED, FEWEST_RENUMBERED = 0.9, 10


@dataclass(frozen=True)
class Plan:
    """Every observed photo is in one of the first four, a recorded one that was not observed in the last or nowhere.

    Attributes:
        unchanged: same stamp, and the stamp is trusted; with the inode that it has now, see `_has_new_inodes`.
        came_back: the same, of photos that were missing.
        rehash: recorded, but the stamp differs or is too young to be trusted: read, and embed only other content.
        new: not recorded under this path: read; the content may be known.
        missing: recorded, judged, not there: to be marked. Those that were missing already are not listed.
    """

    unchanged: list[Photo]
    came_back: list[Photo]
    rehash: list[bytes]
    new: list[bytes]
    missing: list[Photo]


def make_plan(listing: Listing, recorded: Mapping[bytes, Photo], folder: bytes = b"") -> Plan:
    """Compare a listing with the records of its root.

    Args:
        listing: what a scan of `folder` saw.
        recorded: all photos of the root, or at least those below `folder`, by path.
        folder: what was scanned, relative to the root; photos outside are not judged.
    """
    plan = Plan([], [], [], [], [])
    has_new_inodes = _has_new_inodes(listing, recorded)
    for path, stamp in sorted(listing.photos.items()):
        photo = recorded.get(path)
        if has_new_inodes and photo and photo.settled and photo.stamp != stamp and _same_file(photo.stamp, stamp):
            photo = replace(photo, stamp=stamp)
        if photo is None:
            plan.new.append(path)
        elif photo.stamp != stamp or not photo.settled:
            plan.rehash.append(path)
        elif photo.state == "missing":
            plan.came_back.append(photo)
        else:
            plan.unchanged.append(photo)
    for path, photo in sorted(recorded.items()):
        judged = is_below(path, folder) and not _unknown(path, listing.errors)
        if judged and photo.state != "missing" and path not in listing.photos:
            plan.missing.append(photo)
    return plan


def _has_new_inodes(listing: Listing, recorded: Mapping[bytes, Photo]) -> bool:
    """Return whether nearly all files of unchanged size and times have other inodes than they had.

    One such file was replaced by another of the same size and time, and is to be read. That all were is not to be
    believed: exFAT, sshfs and others number their files anew at each mount.
    """
    pairs = [(photo.stamp, listing.photos[path]) for path, photo in recorded.items() if path in listing.photos]
    other = [(old, new) for old, new in pairs if old != new]
    renumbered = sum(_same_file(old, new) for old, new in other)
    same = len(pairs) - len(other) + renumbered
    return same >= FEWEST_RENUMBERED and renumbered >= RENUMBERED * same


def _same_file(old: Stamp, new: Stamp) -> bool:
    return old._replace(inode=0) == new._replace(inode=0)


def _unknown(path: bytes, errors: Mapping[bytes, str]) -> bool:
    """Whether the path or a folder above it could not be examined."""
    if not errors:
        return False
    parts = path.split(SEPARATOR)
    return any(SEPARATOR.join(parts[:n]) in errors for n in range(1, len(parts) + 1))


@dataclass(frozen=True)
class Place:
    """Where a folder belongs among the recorded roots.

    Attributes:
        root: the root that contains it, None if it becomes one.
        folder: its path relative to that root, b"" for the root itself.
        absorbed: roots below it, which become part of it, so that no photo is recorded twice.
    """

    root: Root | None
    folder: bytes
    absorbed: list[Root]


def place(folder: bytes, roots: Iterable[Root]) -> Place:
    """Find the place of an absolute path; roots never contain one another."""
    roots = list(roots)
    for root in roots:
        if is_below(folder, root.path):
            return Place(root, folder[len(root.path) :].lstrip(SEPARATOR), [])
    return Place(None, b"", [root for root in roots if is_below(root.path, folder)])
