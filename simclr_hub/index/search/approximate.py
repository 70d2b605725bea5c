"""FAISS's index for many vectors: lists of near vectors, one bit a dimension, and the best of them compared in full.

Unusual: how many lists are looked through and how many vectors compared in full is measured when it is built, by
searching for some of its own vectors, so that on average the wanted share of the true neighbours is found; where that
would take half of the lists there is no index, and every search is exact. benchmarks/search.py compares the kinds.
Vectors that were added since are not put into the index, which never changes: they are sorted into its lists beside
it, and those of the lists that are looked through are compared in full.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import CheckedArray
from .exact import keep_best, search_exactly
from .faiss_library import faiss

#: Up to so many numbers (vectors x width) comparing with all of them is fast enough.
EXACT_NUMBERS = 1 << 25
#: The share of the true k nearest that must be found on average, and how much more the sample must show: own vectors
#: are found a little more easily than others.
RECALL, MARGIN = 0.95, 0.02
#: The k for which settings are measured; for more than the last, every vector is compared.
MEASURED_K = (10, 100)
#: Own vectors that are searched for when measuring.
SAMPLE = 256
#: Vectors to learn the lists from: this many a list, as far as they fit in these bytes.
TRAINING_PER_LIST, TRAINING_BYTES, TRAINING_ROUNDS = 64, 256 << 20, 6
_ADD_BYTES = 32 << 20
#: Rows beside an index that are compared at a time, all queries together.
CANDIDATES = 1 << 22


@dataclass(frozen=True)
class Setting:
    """For up to `k` results: how many lists are looked through, and how many vectors compared in full."""

    k: int
    lists: int
    depth: int


@dataclass(frozen=True)
class Near:
    """The lists nearest to queries (Q, D): `lists` int64 and `distances` float32, each (Q, setting.lists)."""

    setting: Setting
    lists: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class Approximate:
    """FAISS's index and the measured settings, by growing k."""

    index: Any
    settings: tuple[Setting, ...]

    def near(self, queries: np.ndarray, k: int) -> Near | None:
        """Where to look for the k best; None if every vector is to be compared."""
        setting = next((setting for setting in self.settings if k <= setting.k), None)
        return _near(self.index, queries, setting) if setting else None

    def lists_of(self, vectors: CheckedArray) -> np.ndarray:
        """The list that each of (N, D) belongs to, int32 (N,)."""
        lists: np.ndarray = self.index.quantizer.assign(vectors.all(), 1)[:, 0].astype(np.int32)
        return lists

    def search(
        self, vectors: CheckedArray, queries: np.ndarray, k: int, near: Near, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `search_exactly`, but on average `RECALL` of the best are found; their scores are exact.

        Rows that are not allowed take the places of others: where they are many among the best, more is looked
        through, in the end everything.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        todo = np.arange(len(queries))
        for setting in self.settings:
            if setting.k >= near.setting.k and len(todo):
                ranks = k if allowed is None else max(k, setting.k) + max(1, setting.k // 4)
                if setting != near.setting:
                    near = _near(self.index, queries[todo], setting)
                best = _search(self.index, vectors, queries[todo], ranks, near)
                complete, found = _allowed_of(*best, k, allowed)
                scores[todo[complete]], rows[todo[complete]] = found
                todo = todo[~complete]
        if len(todo):
            scores[todo], rows[todo] = search_exactly(vectors, queries[todo], k, allowed)
        return scores, rows


class Beside:
    """Vectors beside an index of `number` lists, by the list that each belongs to, `lists` int32 (N,)."""

    def __init__(self, lists: np.ndarray, number: int):
        self.lists = lists
        self._rows = np.argsort(lists, kind="stable")
        self._first = np.searchsorted(lists[self._rows], np.arange(number + 1))

    def search(
        self, vectors: CheckedArray, queries: np.ndarray, k: int, near: Near, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare with those of the lists nearest to each query; up to k rows, then -1."""
        first = self._first[near.lists]
        counts = self._first[near.lists + 1] - first
        width = max(k, counts.sum(1).max())  # large where all that was added is alike
        step = max(1, CANDIDATES // width)
        parts = []
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            rows = self._candidates(first[some], counts[some], width, allowed)
            parts.append(keep_best(_products(vectors, queries[some], rows), rows, k))
        scores, found = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(found)

    def _candidates(self, first: np.ndarray, counts: np.ndarray, width: int, allowed: np.ndarray | None) -> np.ndarray:
        """Rows (Q, width) of lists that are parts of `_rows`, (Q, L) each; then -1."""
        rows = np.full((len(first), width), -1, np.int64)
        ends = np.cumsum(counts)
        places = np.arange(ends[-1]) + np.repeat(first.ravel() - ends + counts.ravel(), counts.ravel())
        found = self._rows[places]
        if allowed is not None:
            found[~allowed[found]] = -1
        rows[np.arange(width) < counts.sum(1)[:, None]] = found
        return rows


def build_approximate(vectors: CheckedArray) -> Approximate | None:
    """An index over vectors (N, D) of length 1; None if comparing with all of them is as well."""
    number, dim = len(vectors), vectors.all().shape[1]
    if number * dim <= EXACT_NUMBERS:
        return None
    library, random = faiss(), np.random.default_rng(0)
    lists = max(1, min(int(2 * math.sqrt(number)), number // 4))
    training = min(number, lists * TRAINING_PER_LIST, TRAINING_BYTES // (4 * dim))
    # Of vectors of length 1 the nearest are those of the largest inner product.
    quantizer = library.IndexFlatL2(dim)
    index = library.IndexIVFRaBitQFastScan(quantizer, dim, lists, library.METRIC_L2)
    index.referenced_objects = [quantizer]  # FAISS points to it
    index.cp.niter = TRAINING_ROUNDS
    index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 1, TRAINING_PER_LIST
    index.train(vectors.all()[np.sort(random.choice(number, training, replace=False))])
    step = max(1, _ADD_BYTES // (4 * dim))
    for start in range(0, number, step):
        index.add(np.ascontiguousarray(vectors.all()[start : start + step]))
    settings = _measure(index, vectors, np.sort(random.choice(number, min(SAMPLE, number), replace=False)))
    return Approximate(index, settings) if settings else None


def _measure(index: Any, vectors: CheckedArray, sample: np.ndarray) -> tuple[Setting, ...]:
    """The cheapest settings that find enough of the neighbours of these rows, by k; () if not even the first can."""
    queries = np.ascontiguousarray(vectors.all()[sample])
    most = min(MEASURED_K[-1], len(vectors) - 1)
    truth = _others(search_exactly(vectors, queries, most + 1)[1], sample)  # (S, most)
    settings: list[Setting] = []
    lists = 2
    for k in MEASURED_K:
        if k > most:
            break
        found: Setting | None = None
        while found is None and lists <= index.nlist // 2:
            for factor in (20, 10, 5, 3, 2):
                setting = Setting(k, lists, min(factor * (k + 1), len(vectors)))
                rows = _others(_search(index, vectors, queries, k + 1, _near(index, queries, setting))[1], sample)
                hits = sum(np.isin(mine, best).sum() for mine, best in zip(rows, truth[:, :k], strict=True))
                if hits / (k * len(sample)) < RECALL + MARGIN:
                    break
                found = setting
            if found is None:
                lists *= 2
        if found is None:
            break
        settings.append(found)
    return tuple(settings)


def _near(index: Any, queries: np.ndarray, setting: Setting) -> Near:
    distances, lists = index.quantizer.search(queries, setting.lists)
    return Near(setting, lists, distances)


def _search(
    index: Any, vectors: CheckedArray, queries: np.ndarray, k: int, near: Near
) -> tuple[np.ndarray, np.ndarray]:
    library = faiss()
    pointer = library.swig_ptr
    depth = max(k, near.setting.depth)
    distances, rows = np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int64)
    index.search_preassigned_c(  # FAISS's wrapper of it takes no parameters
        len(queries), pointer(queries), depth, pointer(near.lists), pointer(near.distances),
        pointer(distances), pointer(rows), False, library.SearchParametersIVF(nprobe=near.setting.lists),
    )  # fmt: skip
    return keep_best(_products(vectors, queries, rows), rows, k)


def _products(vectors: CheckedArray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Inner products of queries (Q, D) with the vectors of rows (Q, R); -inf for row -1."""
    library = faiss()
    pointer = library.swig_ptr
    values = vectors.rows(rows[rows >= 0])
    scores = np.empty(rows.shape, np.float32)
    library.fvec_inner_products_by_idx(
        pointer(scores), pointer(queries), pointer(values), pointer(rows), queries.shape[1], *rows.shape
    )
    return scores


def _allowed_of(
    scores: np.ndarray, rows: np.ndarray, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Which lines of ranks (Q, R) have k rows that may be found; of those the first k of these, (C, k) each."""
    good = rows >= 0
    if allowed is not None:
        good &= allowed[rows]
    complete = np.count_nonzero(good, axis=1) >= k
    if complete.all() and rows.shape[1] == k:
        return complete, (scores, rows)
    first = np.argsort(~good[complete], axis=1, kind="stable")[:, :k]
    return complete, (
        np.take_along_axis(scores[complete], first, 1),
        np.take_along_axis(rows[complete], first, 1),
    )


def _others(rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Each line of `rows` (S, k + 1) without its own row, or without its last: (S, k)."""
    same = rows == own[:, None]
    same[~same.any(1), -1] = True
    others: np.ndarray = rows[~same].reshape(len(rows), -1)
    return others
