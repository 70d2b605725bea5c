"""The photos of an index as a page needs them: by id, in an order, in parts."""

import glob
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from ..images import describe
from ..index import Match, SimilarityIndex
from ..index.queries import IndexedPhoto
from ..index.search.filters import Condition
from ..index.search.photo_table import HASH
from ..index.search.snapshot import Snapshot
from .orders import ORDERS, Order, Sort, live_photos, numbers_of, times_of

#: What a photo's id looks like: the SHA-256 of its bytes, then 8 bytes that tell files of the same bytes apart.
ID = re.compile(r"[0-9a-f]{80}")
#: Orders that are kept, of 8 MB each where there are a million photos.
KEPT = 8


class UnknownPhotoError(LookupError):
    """No photo of the index has this id, or not any more."""


class Place(NamedTuple):
    """Tell where a photo's file was recorded, and where it stands in a snapshot."""

    path: str  # absolute
    indexed: IndexedPhoto
    row: int
    photo: int


def photo_id(content_hash: bytes, path: str) -> str:
    """Return the id of a file with this content: it tells nothing of the path, and outlives restarts and syncs."""
    return content_hash.hex() + blake2b(os.fsencode(path), digest_size=8).hexdigest()


def filter_arguments(
    *,
    folder: str | None = None,
    path: str | None = None,
    camera: str | None = None,
    taken: tuple[str | None, str | None] = (None, None),
    min_side: int | None = None,
    min_bytes: int | None = None,
) -> dict[str, Any]:
    """Return a page's filters, each of which may be None, as `path` and `where` of a search.

    Raises:
        ValueError: a folder and a pattern at once.
    """
    if folder and path:
        raise ValueError("give a folder or a pattern, not both")
    where: dict[str, Any] = {}
    if camera:
        where["camera"] = camera
    if any(taken):
        where["taken"] = tuple(end or None for end in taken)
    if min_side:
        where |= {"width": (min_side, None), "height": (min_side, None)}
    if min_bytes:
        where["bytes"] = (min_bytes, None)
    pattern = os.path.join(glob.escape(folder), "**").replace(os.sep, "/") if folder else path or None
    return {"path": pattern, "where": where}


class Library:
    """Give what the page shows of an index; every method may be called from any thread.

    Args:
        index: open; stays the caller's.
    """

    def __init__(self, index: SimilarityIndex):
        self.index = index
        self._orders: OrderedDict[object, Order] = OrderedDict()
        self._lock = threading.Lock()
        self._status: tuple[tuple[int, int], float, dict[str, Any]] | None = None

    def status(self) -> dict[str, Any]:
        """Return the index's status, as it was a moment ago: a million photos are counted in half a second."""
        version, now = self.index.store.version(), time.monotonic()
        known = self._status
        if known is None or known[0] != version or now > known[1]:
            status = self.index.status()
            took = time.monotonic() - now
            known = self._status = version, now + 20 * took, status
        return known[2]

    def root(self, wanted: int) -> str:
        """Return the path of a root folder.

        Raises:
            ValueError: there is none of this id.
        """
        found = self.index.store.roots().get(wanted)
        if found is None:
            raise ValueError("the index was made of no such folder")
        return os.fsdecode(found.path)

    def find(self, wanted: str) -> Place:
        """Return the photo of an id.

        Raises:
            UnknownPhotoError: there is none.
        """
        return self.index.use_snapshot(lambda snapshot: _find(snapshot, wanted))

    def details(self, wanted: str) -> dict[str, Any]:
        """Return all that is known of a photo, and its exact copies.

        Raises:
            UnknownPhotoError: there is none.
        """

        def read(snapshot: Snapshot) -> dict[str, Any]:
            place = _find(snapshot, wanted)
            content = place.indexed.content_hash
            _, photos = _with_content(snapshot, content)
            copies = [path for path in snapshot.paths(photos) if path != place.path]
            return named(content, place.path) | {
                "path": describe(place.path),
                "sha256": content.hex(),
                "metadata": snapshot.metadata(place.row, place.photo),
                "copies": [named(content, path) for path in copies],
            }

        return self.index.use_snapshot(read)

    def paths_of(self, wanted: str) -> list[str]:
        """Return the paths of all live files with a photo's content, its own first.

        Raises:
            UnknownPhotoError: there is none.
        """

        def read(snapshot: Snapshot) -> list[str]:
            place = _find(snapshot, wanted)
            _, photos = _with_content(snapshot, place.indexed.content_hash)
            return sorted(snapshot.paths(photos), key=lambda path: path != place.path)

        return self.index.use_snapshot(read)

    def order(self, sort: Sort, condition: Condition | None = None, *, reverse: bool = False) -> Order:
        """Return the photos that meet a condition in an order; kept for the next time."""
        return self.index.use_snapshot(lambda snapshot: self._order(snapshot, sort, condition, reverse))

    def _order(self, snapshot: Snapshot, sort: Sort, condition: Condition | None, reverse: bool) -> Order:
        key = snapshot.version, sort, condition, reverse
        with self._lock:
            if key in self._orders:
                self._orders.move_to_end(key)
                return self._orders[key]
        photos = live_photos(snapshot, condition)
        order = ORDERS[sort](snapshot, photos, reverse)
        with self._lock:
            self._orders[key] = order
            while len(self._orders) > KEPT:
                self._orders.popitem(last=False)
        return order

    def page(
        self, sort: Sort, condition: Condition | None, *, reverse: bool = False, offset: int = 0, limit: int = 200
    ) -> dict[str, Any]:
        """Return photos from a place on, with how many there are."""

        def read(snapshot: Snapshot) -> dict[str, Any]:
            order = self._order(snapshot, sort, condition, reverse)
            photos = order.photos[offset : offset + limit]
            items = describe_photos(snapshot, photos)
            for place, item in enumerate(items, offset):
                item["group"] = order.group(place)
            return {"total": len(order.photos), "offset": offset, "version": list(order.version), "photos": items}

        return self.index.use_snapshot(read)

    def of_contents(self, contents: Sequence[bytes]) -> list[dict[str, Any] | None]:
        """Return a file of each content as the page names it, None where none is live."""

        def read(snapshot: Snapshot) -> list[dict[str, Any] | None]:
            found: list[dict[str, Any] | None] = [None] * len(contents)
            place = {content: at for at, content in enumerate(contents)}
            wanted = np.array(list(contents), HASH)
            for number, (segment, allowed) in enumerate(zip(snapshot.segments, snapshot.allowed, strict=True)):
                rows = segment.photos.find(wanted) if len(wanted) else np.empty(0, np.int64)
                if allowed is not None:
                    rows = rows[allowed[rows]]
                rows = rows + snapshot.starts[number]
                first, last = snapshot.photos_of(rows)
                rows, first = rows[last > first], first[last > first]
                for content, path in zip(snapshot.hashes(rows), snapshot.paths(first), strict=True):
                    found[place[content]] = named(content, path)
            return found

        return self.index.use_snapshot(read)

    @staticmethod
    def named_match(match: Match) -> dict[str, Any]:
        """Return a match for the page."""
        info = match.metadata
        return named(match.content_hash, match.path) | {
            "score": match.score,
            "closer_than": match.closer_than,
            "width": info.get("width"),
            "height": info.get("height"),
            "date": str(info.get("taken") or "")[:10],
            "copies": len(match.copies),
        }


def _find(snapshot: Snapshot, wanted: str) -> Place:
    if not ID.fullmatch(wanted):
        raise UnknownPhotoError(f"{wanted[:100]!r} is no photo's id")
    content = bytes.fromhex(wanted[:64])
    row, photos = _with_content(snapshot, content)
    for photo, path in zip(photos.tolist(), snapshot.paths(photos), strict=True):
        if photo_id(content, path) == wanted:
            root, below = snapshot.root_and_path(photo)
            return Place(path, IndexedPhoto(content, root, below), row, photo)
    raise UnknownPhotoError("this photo is not in the index any more; load the page again")


def _with_content(snapshot: Snapshot, content: bytes) -> tuple[int, np.ndarray]:
    """Return the row of a content, -1 for none, with its live photos."""
    for number, (segment, allowed) in enumerate(zip(snapshot.segments, snapshot.allowed, strict=True)):
        for here in segment.photos.find(np.array([content], HASH)).tolist():
            if allowed is None or allowed[here]:
                row = here + snapshot.starts[number]
                (first,), (last,) = snapshot.photos_of(np.array([row]))
                return row, np.arange(first, last)
    return -1, np.empty(0, np.int64)


def describe_photos(snapshot: Snapshot, photos: np.ndarray) -> list[dict[str, Any]]:
    """Return what a grid shows of photos (M,), in their order."""
    rows = snapshot.rows_of(photos)
    sides = [numbers_of(snapshot, key)[photos] for key in ("width", "height")]
    days = np.datetime_as_string(times_of(snapshot)[photos].astype("datetime64[s]"), unit="D").tolist()
    return [
        named(content, path) | {"width": _whole(width), "height": _whole(height), "date": "" if day == "NaT" else day}
        for content, path, width, height, day in zip(
            snapshot.hashes(rows), snapshot.paths(photos), *(side.tolist() for side in sides), days, strict=True
        )
    ]


def named(content_hash: bytes, path: str) -> dict[str, Any]:
    """Return a file's id, name and folder, as they may be shown."""
    folder, name = os.path.split(path)
    return {"id": photo_id(content_hash, path), "name": describe(name), "folder": describe(folder)}


def _whole(number: float) -> int | None:
    return None if np.isnan(number) else int(number)
