"""Measure how much of the truth a server finds, by queries like photos that it does not have, compared with all here.

A search for an image that is in a graph is too easy: it starts among its own neighbours, and at 100,000 vectors found
99.0 % where new images found 96.0 %. So each query is an image moved as its two nearest differ, which lies as far from
all as a new one: there 95.6 % (benchmarks/RESULTS.md).
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ..parts.storage import Folder
from ..whitening import unit_rows
from .rows import part_names, read_ids, read_vectors
from .server import Comparison, Progress, Setting, VectorServer

#: What a search must find of the true nearest, on average, as in an index; and more than that where it is measured.
RECALL, MARGIN = 0.95, 0.015
K, QUERIES = 10, 100
#: Shares of the images to which conditions are measured: what they let pass is drawn by ids, which are hashes.
SHARES = (0.5, 0.02, 0.001)
_TUNED_SHARES = (0.5, 0.2, 0.1, 0.05, 0.02)
_TUNED_BREADTHS = (16, 24, 40, 64, 100, 160, 250, 400, 700, 1000)
#: Nearest of which the exact score is known: beyond them a score that the server tells is believed.
_KEPT = 5 * K
_NOISE = 1e-5  # of scores
#: How far a query is moved, as a share of what its two nearest differ by.
_SPREAD = 0.7


@dataclass(frozen=True)
class Truth:
    """Hold the exact nearest of some queries among the images of the parts, for each share that passes.

    Attributes:
        queries: float32 (Q, D).
        nearest: by share, for each query, scores of the nearest by id.
        lost: which part of the nearest K numbers of 16 bits alone lose, if they were asked for.
    """

    queries: np.ndarray
    nearest: dict[float, list[dict[bytes, float]]]
    lost: float = 0.0

    def recall(self, server: VectorServer, share: float, setting: Setting | None = None) -> tuple[float, float]:
        """Return which part of the nearest K the server finds, and which part of its answers were exact."""
        hits = wanted = exact = 0
        for query, known in zip(self.queries, self.nearest[share], strict=True):
            found = server.search(query, K, passing(share), setting)
            best = heapq.nlargest(K, known.values())
            # By their exact scores: copies have equal ones, and any of them will do.
            hits += sum(known.get(hit.id, hit.score) >= best[-1] - _NOISE for hit in found.hits[: len(best)])
            wanted += len(best)
            exact += found.exact
        return hits / wanted if wanted else 1.0, exact / max(len(self.queries), 1)


def passing(share: float) -> tuple[Comparison, ...]:
    """Return the condition that so large a share of all images meets, whatever they show."""
    return () if share >= 1 else (Comparison("id", "<", _bound(share).hex()),)


def _bound(share: float) -> bytes:
    return int(share * (1 << 128)).to_bytes(16)


def find_truth(
    folder: Folder, dead: set[bytes], shares: Sequence[float], progress: Progress | None = None, *, half: bool = False
) -> Truth:
    """Compare queries with all images in the parts of a folder, of which one part at a time is in memory.

    Args:
        folder: of parts.
        dead: images and contents that tombstones name, left out.
        shares: of conditions.
        progress: see `server.Progress`.
        half: also tell what rounding to 16 bits loses; `shares` must have 1.
    """
    names = part_names(folder)
    queries = _draw_queries(folder, names, dead, progress)
    rounded: list[dict[bytes, float]] = [{} for _ in queries]
    best: dict[float, list[dict[bytes, float]]] = {share: [{} for _ in queries] for share in shares}
    for ids, vectors in _alive(folder, names, dead, progress):
        scores = queries @ vectors.T  # (Q, n)
        if half:
            _keep(rounded, ids, _round(queries) @ _round(vectors).T)
        for share in shares:
            if share >= 1:
                _keep(best[share], ids, scores)
            else:
                bound = _bound(share)
                allowed = [i for i, one in enumerate(ids) if one < bound]
                _keep(best[share], [ids[i] for i in allowed], scores[:, allowed])
    same = wanted = 0
    for exact, rough in zip(best[1.0], rounded, strict=True) if half else ():
        nearest = _first(exact)
        same += len(nearest & _first(rough))
        wanted += len(nearest)
    return Truth(queries, best, 1 - same / wanted if wanted else 0.0)


def _first(known: dict[bytes, float]) -> set[bytes]:
    return {one for one, _ in heapq.nlargest(K, known.items(), key=lambda pair: pair[1])}


def _round(vectors: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float16).astype(np.float32)


def _draw_queries(folder: Folder, names: Sequence[str], dead: set[bytes], progress: Progress | None) -> np.ndarray:
    """Return vectors (Q, D) of length 1 as images have that are not there."""
    images: list[bytes] = []
    for name in names:  # the highest of hashes: as good as drawn, and the same each time
        alive = (one for one, content in zip(*read_ids(folder, name), strict=True) if not {one, content} & dead)
        images = heapq.nlargest(QUERIES, [*images, *alive])
    wanted = set(images)
    found: dict[bytes, np.ndarray] = {}
    for ids, vectors in _alive(folder, names, dead, progress):
        found |= {one: vectors[i].copy() for i, one in enumerate(ids) if one in wanted}
    if len(found) < 3:
        return np.array(list(found.values()), np.float32).reshape(len(found), -1)
    ids_of, base = list(found), np.array(list(found.values()), np.float32)
    near: list[list[tuple[float, bytes, np.ndarray]]] = [[] for _ in ids_of]  # the two nearest of each
    for ids, vectors in _alive(folder, names, dead, progress):
        scores = base @ vectors.T
        for line, row in enumerate(scores):
            some = np.argpartition(-row, min(3, len(row)) - 1)[:3].tolist()
            new = [(float(row[i]), ids[i], vectors[i].copy()) for i in some if ids[i] != ids_of[line]]
            near[line] = heapq.nlargest(2, [*near[line], *new], key=lambda one: one[0])
    moved = base + _SPREAD * np.array([first[2] - second[2] for first, second in near], np.float32)
    queries: np.ndarray = unit_rows(moved)[0].astype(np.float32)
    return queries


def _alive(
    folder: Folder, names: Sequence[str], dead: set[bytes], progress: Progress | None
) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Yield ids and vectors (n, D) of all images in the parts, without those that tombstones name."""
    for name in names:
        gone: set[bytes] = set()
        if dead:
            gone = {one for one, content in zip(*read_ids(folder, name), strict=True) if {one, content} & dead}
        for ids, vectors in read_vectors(folder, name):
            if gone.intersection(ids):
                kept = [i for i, one in enumerate(ids) if one not in gone]
                ids, vectors = [ids[i] for i in kept], vectors[kept]
            if ids:
                yield ids, vectors
        if progress:
            progress(1, 3 * len(names), "comparing exactly")


def _keep(best: list[dict[bytes, float]], ids: Sequence[bytes], scores: np.ndarray) -> None:
    """Keep for each query the nearest so far; scores are (Q, n)."""
    if not len(ids):
        return
    most = min(_KEPT, len(ids))
    some = np.argpartition(-scores, most - 1, axis=1)[:, :most]
    for line, known in enumerate(best):
        known |= {ids[i]: float(scores[line, i]) for i in some[line].tolist()}
        if len(known) > _KEPT:
            best[line] = dict(heapq.nlargest(_KEPT, known.items(), key=lambda pair: pair[1]))


def tune(folder: Folder, server: VectorServer, progress: Progress | None = None, *, fast: bool, half: bool) -> Setting:
    """Find the cheapest setting by which searches find enough, without and with conditions; exact where none does.

    Args:
        folder: of the parts.
        server: that holds them.
        progress: see `server.Progress`.
        fast: what `VectorServer.build` returned; without, every search is exact.
        half: whether numbers of 16 bits are stored, whose loss is measured, too.
    """
    rows, wanted = server.count(), RECALL + MARGIN
    if not (fast or half):
        return Setting(rows=rows)
    truth = find_truth(folder, server.marks(), (1.0, *_TUNED_SHARES), progress, half=half)
    for breadth in _TUNED_BREADTHS if fast else ():
        setting = Setting(breadth, 0.0, rows=rows, exact_rows=0, lost=truth.lost)
        recall = truth.recall(server, 1.0, setting)[0]
        if recall >= wanted:
            break
    else:
        return Setting(rows=rows, lost=truth.lost)
    least = 1.1  # of no condition
    for share in _TUNED_SHARES:
        if truth.recall(server, share, setting)[0] < wanted:
            break
        least = share
    return Setting(breadth, least, recall, rows, lost=truth.lost)
