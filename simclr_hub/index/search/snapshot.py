"""One generation of the index, never changed: what a search runs on while a sync goes on.

Unusual: it is made of segments, of which a later one overrides the earlier ones; a new generation adds one for what
changed and shares the others.
"""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ...errors import IndexDamagedError
from ...whitening import Whitening
from ..store import Store
from . import faiss_cache
from .arrays import DamagedArraysError
from .pairs import Pairs
from .segment import Segment, make_segment


@dataclass(frozen=True)
class Snapshot:
    """The live photos of one generation.

    Attributes:
        version: of the store, `Store.version`.
        segments: a later one overrides the earlier ones.
        allowed: for each, which rows are not overridden, bool (N,); None for all.
        roots: the root folders by id, each with a separator at its end.
        damaged: makes the error that says so.
        whitening: what the vectors were whitened with; None for as the model gave them.
    """

    version: tuple[int, int]
    segments: Sequence[Segment]
    allowed: Sequence[np.ndarray | None]
    roots: Mapping[int, bytes]
    damaged: Callable[[str], IndexDamagedError]
    whitening: Whitening | None = None

    @cached_property
    def pairs(self) -> Pairs:
        """How near its photos come to one another."""
        return max(self.segments, key=lambda segment: len(segment.vectors)).pairs

    @cached_property
    def starts(self) -> list[int]:
        """Where the rows of each segment begin, and the last one's end, if they are counted through all of them."""
        return [0, *itertools.accumulate(len(segment.catalog) for segment in self.segments)]

    def of_segments(self, rows: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """For each segment its number, which of rows (M,), counted through all, are its, and what they are in it."""
        for number, (start, end) in enumerate(itertools.pairwise(self.starts)):
            mine = np.flatnonzero((rows >= start) & (rows < end))
            yield number, mine, rows[mine] - start

    def paths(self, segment: Segment, photos: np.ndarray) -> list[str]:
        """The absolute paths of these photos of a segment."""
        roots = segment.catalog.roots.rows(photos)[photos].tolist()
        paths = segment.catalog.paths.some(photos)
        encoding, errors = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()  # as os.fsdecode, at once
        try:
            return [
                (self.roots[root] + path).decode(encoding, errors) for root, path in zip(roots, paths, strict=True)
            ]
        except KeyError:
            raise self.damaged("a photo without a root folder") from None

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """The photos' paths, sorted, and their vectors (P, D)."""
        paths: list[str] = []
        vectors = []
        for segment, allowed in zip(self.segments, self.allowed, strict=True):
            rows = segment.catalog.row_of_photo()
            photos = np.arange(len(rows)) if allowed is None else np.flatnonzero(allowed[rows])
            paths += self.paths(segment, photos)
            vectors.append((segment.vectors.all(), rows[photos]))
        order = np.array(sorted(range(len(paths)), key=paths.__getitem__), np.int64)
        whole = np.empty((len(paths), vectors[0][0].shape[1]), np.float32)
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        start = 0
        for values, rows in vectors:
            for at in range(0, len(rows), 1 << 14):
                some = rows[at : at + (1 << 14)]
                whole[place[start + at : start + at + len(some)]] = values[some]
            start += len(rows)
        return [paths[i] for i in order.tolist()], whole


def take_snapshot(store: Store, previous: Snapshot | None = None, *, cached: bool = True) -> Snapshot:
    """The present generation, made from `previous` or, if `cached`, the cache, and what changed since.

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
    generation, cache_generation = version
    segments: list[Segment] | None = None
    since = -1
    if previous is not None and previous.version[1] == cache_generation:
        segments, since = list(previous.segments), previous.version[0]
    elif cached:
        segments, since = faiss_cache.read(store, previous.segments if previous else ()), cache_generation
    changed = store.changes(since) if segments is not None else None
    if segments is None or changed is None:
        segments = [make_segment(store)]
    elif changed:
        contents = set(changed)
        # Small ones are read again with the new one, so that there are few and each is read seldom.
        while segments and segments[-1].file is None and len(segments[-1].catalog) <= 2 * len(contents):
            contents.update(segments.pop().catalog.content_hashes())
        beside = segments[0].approximate if segments else None
        segments.append(make_segment(store, sorted(contents), beside))
    allowed = _overridden(segments)
    live = sum(
        segment.catalog.photos if a is None else int(np.diff(segment.catalog.first.all())[a].sum())
        for segment, a in zip(segments, allowed, strict=True)
    )
    if live != store.live():
        raise store.damaged(f"{live} photos are there, {store.live()} were recorded")
    roots = {root.id: os.path.join(root.path, b"") for root in store.roots().values()}
    return Snapshot(version, segments, allowed, roots, store.damaged, store.whitening())


def _overridden(segments: Sequence[Segment]) -> list[np.ndarray | None]:
    """For each, which rows no later one tells of."""
    allowed: list[np.ndarray | None] = []
    for i, segment in enumerate(segments):
        told = [segment.catalog.find(later.catalog.contents) for later in segments[i + 1 :]]
        rows = np.concatenate(told) if told else np.empty(0, np.int64)
        mask = None
        if len(rows):
            mask = np.ones(len(segment.catalog), bool)
            mask[rows] = False
        allowed.append(mask)
    return allowed
