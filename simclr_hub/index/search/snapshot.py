"""The live photos of one generation, as a search sees them while a sync goes on."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from ...errors import IndexDamagedError
from ...whitening import Whitening
from ..store import Store
from .ann import CosineSample
from .arrays import DamagedArraysError
from .photo_table import HASH
from .segments import SHAPE, Segment, make_segment, read_cache

_T = TypeVar("_T")


@dataclass(frozen=True)
class Snapshot:
    """The live photos of one generation; never changed.

    It numbers the rows and the photos of its segments through all of them.

    Attributes:
        version: of the store, `Store.version`.
        segments: a later one overrides the earlier ones.
        allowed: for each, which rows are not overridden, bool (N,); None for all.
        roots: the root folders by id, each with a separator at its end.
        damaged: makes the error that says so.
        whitening: the vectors' whitening; None for as the model gave them.
    """

    version: tuple[int, int]
    segments: Sequence[Segment]
    allowed: Sequence[np.ndarray | None]
    roots: Mapping[int, bytes]
    damaged: Callable[[str], IndexDamagedError]
    whitening: Whitening | None = None

    @cached_property
    def cosines(self) -> CosineSample:
        """Sample the cosines between its photos."""
        return max(self.segments, key=lambda segment: len(segment.vectors)).cosines

    @cached_property
    def starts(self) -> list[int]:
        """Return where the rows of each segment begin, and where the last one's end."""
        return [0, *itertools.accumulate(len(segment.photos) for segment in self.segments)]

    @cached_property
    def photo_starts(self) -> list[int]:
        """Return where the photos of each segment begin, and where the last one's end."""
        return [0, *itertools.accumulate(segment.photos.photo_count for segment in self.segments)]

    def _split(self, starts: list[int], numbers: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Yield each segment's number, which of these rows or photos (M,) are its, and their numbers in it."""
        if len(self.segments) == 1:
            yield 0, np.arange(len(numbers)), numbers
            return
        for number, (start, end) in enumerate(itertools.pairwise(starts)):
            mine = np.flatnonzero((numbers >= start) & (numbers < end))
            yield number, mine, numbers[mine] - start

    def photos_of(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the first photo of each row, and the one after its last: (M,) each."""
        bounds = np.empty((2, len(rows)), np.int64)
        for number, mine, here in self._split(self.starts, rows):
            bounds[:, mine] = self.segments[number].photos.first.bounds(here)
            bounds[:, mine] += self.photo_starts[number]
        return bounds[0], bounds[1]

    def rows_of(self, photos: np.ndarray) -> np.ndarray:
        """Return the rows of photos (M,)."""
        rows = np.empty(len(photos), np.int64)
        for number, mine, here in self._split(self.photo_starts, photos):
            rows[mine] = np.searchsorted(self.segments[number].photos.first.all(), here, "right") - 1
            rows[mine] += self.starts[number]
        return rows

    def shapes(self, rows: np.ndarray) -> np.ndarray:
        """Return the shapes of rows (M,), int8 (M, 63)."""
        shapes = np.empty((len(rows), SHAPE), np.int8)
        for number, mine, here in self._split(self.starts, rows):
            shapes[mine] = self.segments[number].shapes.take(here)
        return shapes

    def hashes(self, rows: np.ndarray) -> list[bytes]:
        """Return the content hashes of rows (M,)."""
        parts = [
            (mine, self.segments[number].photos.hashes_of(here))
            for number, mine, here in self._split(self.starts, rows)
        ]
        return _merged(parts)

    def paths(self, photos: np.ndarray) -> list[str]:
        """Return the absolute paths of photos (M,)."""
        encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # as os.fsdecode, at once
        parts = []
        for number, mine, here in self._split(self.photo_starts, photos):
            table = self.segments[number].photos
            roots, paths = table.roots.take(here).tolist(), table.paths.take(here)
            try:
                found = [
                    (self.roots[root] + path).decode(encoding, errors) for root, path in zip(roots, paths, strict=True)
                ]
            except KeyError:
                raise self.damaged("a photo without a root folder") from None
            parts.append((mine, found))
        return _merged(parts)

    def root_and_path(self, photo: int) -> tuple[int, bytes]:
        """Return the root folder's id of a photo, and its path below it."""
        number = int(np.searchsorted(self.photo_starts, photo, "right")) - 1
        table, here = self.segments[number].photos, np.array([photo - self.photo_starts[number]])
        return int(table.roots.take(here)[0]), table.paths.take(here)[0]

    def metadata(self, row: int, photo: int) -> dict[str, Any]:
        """Return the metadata of a photo of this row."""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        table = self.segments[number].photos
        return table.metadata_of(row - self.starts[number], photo - self.photo_starts[number])

    def verify_metadata(self, rows: np.ndarray, photos: np.ndarray) -> None:
        """Compare the metadata of photos, of these rows, (M,) each, with its checksums."""
        for number, mine, here in self._split(self.photo_starts, photos):
            table = self.segments[number].photos
            table.metadata.verify(here)
            table.info.verify(rows[mine] - self.starts[number])

    def verify_paths(self, photos: np.ndarray) -> None:
        """Compare the paths of photos (M,) with their checksums."""
        for number, _, here in self._split(self.photo_starts, photos):
            table = self.segments[number].photos
            table.roots.rows(here)
            table.paths.verify(here)

    def find(self, content: bytes, root: int, path: bytes) -> Iterator[tuple[int, int]]:
        """Yield the row and the photo that are this file with this content, if it is live."""
        for number, (segment, allowed) in enumerate(zip(self.segments, self.allowed, strict=True)):
            table = segment.photos
            for here in table.find(np.array([content], HASH)).tolist():
                if allowed is None or allowed[here]:
                    photos = np.arange(*(int(bound[0]) for bound in table.first.bounds(np.array([here]))))
                    roots, paths = table.roots.take(photos).tolist(), table.paths.take(photos)
                    for photo, *place in zip(photos.tolist(), roots, paths, strict=True):
                        if place == [root, path]:
                            yield self.starts[number] + here, self.photo_starts[number] + photo

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """Return the photos' paths, sorted, and their vectors (P, D)."""
        parts = []
        for number, (segment, allowed) in enumerate(zip(self.segments, self.allowed, strict=True)):
            rows = segment.photos.row_of_photo()
            photos = np.arange(len(rows)) if allowed is None else np.flatnonzero(allowed[rows])
            parts.append((segment.vectors.all(), rows[photos], photos + self.photo_starts[number]))
        paths = self.paths(np.concatenate([photos for *_, photos in parts]))
        order = np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        whole = np.empty((len(paths), parts[0][0].shape[1]), np.float32)
        start = 0
        for values, rows, _ in parts:
            for at in range(0, len(rows), 1 << 14):
                some = rows[at : at + (1 << 14)]
                whole[place[start + at : start + at + len(some)]] = values[some]
            start += len(rows)
        return [paths[i] for i in order.tolist()], whole

    def contents(self) -> tuple[list[bytes], np.ndarray, list[list[str]]]:
        """Return the live contents' hashes, their vectors (N, D), and the paths of the photos of each."""
        rows, vectors = [], []
        for start, segment, allowed in zip(self.starts, self.segments, self.allowed, strict=False):
            here = np.arange(len(segment.photos)) if allowed is None else np.flatnonzero(allowed)
            rows.append(here + start)
            vectors.append(segment.vectors.all()[here])
        every = np.concatenate(rows)
        first, last = self.photos_of(every)
        counts = last - first
        photos = np.arange(counts.sum()) + np.repeat(first - np.cumsum(counts) + counts, counts)
        self.verify_paths(photos)
        paths, ends = self.paths(photos), np.cumsum(counts).tolist()
        of_each = [paths[a:b] for a, b in zip([0, *ends], ends, strict=False)]
        return self.hashes(every), np.concatenate(vectors), of_each


def _merged(parts: list[tuple[np.ndarray, list[_T]]]) -> list[_T]:
    """Put the items of several segments at their places."""
    if len(parts) == 1:
        return parts[0][1]
    items = list(itertools.chain.from_iterable(some for _, some in parts))
    return [items[i] for i in np.argsort(np.concatenate([places for places, _ in parts])).tolist()]


def take_snapshot(store: Store, previous: Snapshot | None = None, *, cached: bool = True) -> Snapshot:
    """Take the present generation, from `previous` or, if `cached`, the cache, and what changed since.

    Raises:
        IndexDamagedError: a row does not match its checksum, or one is not there.
    """
    with store.reading():
        try:
            return _take(store, previous, cached)
        except DamagedArraysError:
            return _take(store, None, False)


def _take(store: Store, previous: Snapshot | None, cached: bool) -> Snapshot:
    version = store.version()
    segments: list[Segment] | None = None
    since = -1
    if previous is not None and previous.version[1] == version[1]:
        segments, since = list(previous.segments), previous.version[0]
    elif cached:
        segments, since = read_cache(store, previous.segments if previous else ()), version[1]
    changed = store.changes(since) if segments is not None else None
    if segments is None or changed is None:
        segments = [make_segment(store)]
    elif changed:
        contents = set(changed)
        # Small deltas are read again with the new one, so that there are few, and each content is read seldom.
        while segments and segments[-1].file is None and len(segments[-1].photos) <= 2 * len(contents):
            contents.update(segments.pop().photos.content_hashes())
        segments.append(make_segment(store, sorted(contents), segments[0].ivf if segments else None))
    allowed = _not_overridden(segments)
    live = sum(
        segment.photos.photo_count if a is None else int(np.diff(segment.photos.first.all())[a].sum())
        for segment, a in zip(segments, allowed, strict=True)
    )
    if live != store.live():
        raise store.damaged(f"{live} photos are there, {store.live()} were recorded")
    roots = {root.id: os.path.join(root.path, b"") for root in store.roots().values()}
    return Snapshot(version, segments, allowed, roots, store.damaged, store.whitening())


def _not_overridden(segments: Sequence[Segment]) -> list[np.ndarray | None]:
    """Return, for each, which rows no later one tells of; None for all."""
    allowed: list[np.ndarray | None] = []
    for i, segment in enumerate(segments):
        told = [segment.photos.find(later.photos.contents) for later in segments[i + 1 :]]
        rows = np.concatenate([np.empty(0, np.int64), *told])
        mask = None
        if len(rows):
            mask = np.ones(len(segment.photos), bool)
            mask[rows] = False
        allowed.append(mask)
    return allowed
