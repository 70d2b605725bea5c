"""One generation of the index, never changed: what a search runs on while a sync goes on.

Unusual: it is made of segments, of which a later one overrides the earlier ones; a new generation adds one for what
changed and shares the others.
"""

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ...errors import IndexDamagedError
from ...whitening import Whitening
from ..store import Store
from . import faiss_cache
from .approximate import Near
from .arrays import DamagedArraysError
from .exact import keep_best
from .filters import Condition
from .match import Match
from .segment import Segment, make_segment

#: Queries that are searched for at once.
QUERIES = 4096


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

    def search(self, queries: np.ndarray, k: int, condition: Condition | None = None) -> list[list[Match]]:
        """For each query (Q, D) of length 1, the k photos (or all, if there are fewer) of the highest cosine.

        With a condition exactly those k; without, most of them where `Segment.approximate` is there.
        """
        parts = (queries[start : start + QUERIES] for start in range(0, len(queries), QUERIES))
        return [matches for part in parts for matches in self._search(part, k, condition)]

    def _search(self, queries: np.ndarray, k: int, condition: Condition | None) -> list[list[Match]]:
        scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        photos: list[np.ndarray | None] = []
        near, start = self._near(queries, k) if condition is None else None, 0
        for segment, allowed in zip(self.segments, self.allowed, strict=True):
            passing = segment.passing(condition, self.roots) if condition else None
            photos.append(passing)
            if passing is not None:
                met = np.logical_or.reduceat(passing, segment.catalog.first.all()[:-1]) if len(passing) else passing
                allowed = met if allowed is None else met & allowed
            most = min(k, len(segment.vectors) if allowed is None else int(np.count_nonzero(allowed)))
            if most:
                found = segment.search(queries, most, allowed, near)
                found_rows = np.where(found[1] >= 0, found[1] + start, -1)
                scores, rows = np.concatenate([scores, found[0]], 1), np.concatenate([rows, found_rows], 1)
            start += len(segment.vectors)
        if rows.shape[1] > k or len(self.segments) > 1:
            scores, rows = keep_best(scores, rows, min(k, rows.shape[1]))
        return self._matches(scores, rows, k, photos)

    def _near(self, queries: np.ndarray, k: int) -> Near | None:
        """Which lists hold the k best; None if the first segment has none, or not so many rows that are left."""
        first, allowed = self.segments[0], self.allowed[0]
        left = len(first.vectors) if allowed is None else np.count_nonzero(allowed)
        return first.approximate.near(queries, k) if first.approximate and k <= left else None

    def _matches(
        self, scores: np.ndarray, rows: np.ndarray, k: int, photos: Sequence[np.ndarray | None]
    ) -> list[list[Match]]:
        """The first k photos of each line of rows (Q, R), which count through all segments; -1 is none."""
        hits = np.flatnonzero(rows >= 0)  # in rows.ravel()
        hit_rows, hit_scores = rows.ravel()[hits], np.minimum(scores.ravel()[hits], 1)
        matches: list[Match] = []
        places: list[np.ndarray] = []  # of each match, among the hits
        start = 0
        for segment, passing in zip(self.segments, photos, strict=True):
            catalog, size = segment.catalog, len(segment.catalog)
            mine = np.flatnonzero((hit_rows >= start) & (hit_rows < start + size))
            own = hit_rows[mine] - start
            start += size
            ranges = catalog.first.rows(own, own + 2)
            first, count = ranges[own], ranges[own + 1] - ranges[own]
            if passing is None:
                count = np.minimum(count, k)
            which = np.repeat(np.arange(len(mine)), count)
            numbers = np.arange(len(which)) + (first - np.cumsum(count) + count)[which]
            if passing is not None:
                which, numbers = which[passing[numbers]], numbers[passing[numbers]]
            known = catalog.metadata_later(own[which], numbers)
            matches += map(Match, self._paths(segment, numbers), hit_scores[mine[which]].tolist(), known)
            places.append(mine[which])
        place = np.concatenate(places)
        if len(self.segments) > 1:
            order = np.argsort(place, kind="stable")
            matches, place = [matches[i] for i in order.tolist()], place[order]
        ends = np.searchsorted(hits[place], np.arange(len(rows) + 1) * rows.shape[1]).tolist()
        return [matches[a : min(b, a + k)] for a, b in itertools.pairwise(ends)]

    def _paths(self, segment: Segment, photos: np.ndarray) -> list[str]:
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
            paths += self._paths(segment, photos)
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
