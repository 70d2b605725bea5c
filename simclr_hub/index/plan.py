"""What to do with what was observed, given what is recorded: pure functions, no file and no clock.

Unusual: a photo that is not there is marked, never dropped; and only what the listing could see is judged.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .records import SEPARATOR, Photo, Root, is_below
from .scan import Listing


@dataclass(frozen=True)
class Plan:
    """Every observed photo is in one of the first four, a recorded one that was not observed in the last or nowhere.

    Attributes:
        unchanged: same stamp, and the stamp is trusted.
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
    for path, stamp in sorted(listing.photos.items()):
        photo = recorded.get(path)
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
