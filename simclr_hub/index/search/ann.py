"""The nearest neighbours of vectors of length 1 by inner product: exact, or approximate through FAISS's lists."""

import functools
import math
import os
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from .arrays import CheckedArray

#: Up to so many numbers (vectors x width) comparing with all of them is fast enough.
MAX_EXACT = 1 << 25
#: The share of the true k nearest to be found on average, and how much more the sample must show, since an index's own
#: vectors are found a little more easily than others.
RECALL, MARGIN = 0.95, 0.02
#: The k for which settings are measured; for more than the last, every vector is compared.
MEASURED_K = (10, 100)
#: Own vectors that are searched for when measuring.
SAMPLE = 256
#: Vectors to learn the lists from: this many a list, as far as they fit in these bytes.
TRAINING_PER_LIST, TRAINING_BYTES, TRAINING_ROUNDS = 64, 256 << 20, 6
_ADD_BYTES = 32 << 20
#: Rows of a delta that are compared at a time, all queries together.
CANDIDATES = 1 << 22
#: Queries below this number are compared one by one, as FAISS does; from there on by matrix products.
BATCH = 20
#: Bytes of vectors that are gathered at a time.
GATHER_BYTES = 32 << 20
#: Vectors whose cosines are sampled: all of a small index, with 523,776 pairs of a larger one.
COSINE_SAMPLE = 1024
#: Pairs below which a share of them says nothing.
MIN_PAIRS = 100
#: Cosines of the sample that are kept: so many in equal steps, and so many of the highest.
_STEPS, _HIGHEST = 3072, 1024


@functools.cache
def faiss() -> Any:
    """Import FAISS when it is first needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's, about types without __module__
        import faiss
    # One query runs on one thread; batches gain little past a few.
    faiss.omp_set_num_threads(min(faiss.omp_get_max_threads(), os.cpu_count() or 1, 8))
    return faiss


def search_exact(
    vectors: CheckedArray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compare with every vector, in memory that does not grow with their number.

    Args:
        vectors: float32 (N, D).
        queries: float32 (Q, D).
        k: how many, at least 1.
        allowed: bool (N,), which rows may be found; None for all.

    Returns:
        scores float32 and rows int64, each (Q, k), best first; row -1 where there is none.
    """
    scores = np.full((len(queries), k), -np.inf, np.float32)
    rows = np.full((len(queries), k), -1, np.int64)
    if not len(queries) or not len(vectors):
        return scores, rows
    if allowed is None:
        found = min(k, len(vectors))
        scores[:, :found], rows[:, :found] = _knn(queries, vectors.all(), found)
        return scores, rows
    numbers = np.flatnonzero(allowed)
    if len(queries) < BATCH:
        library = faiss()
        pointer = library.swig_ptr
        bits = np.packbits(allowed, bitorder="little")  # FAISS points to them
        values = vectors.rows(numbers)
        library.knn_inner_product(
            pointer(queries), pointer(values), queries.shape[1], len(queries), len(values), k,
            pointer(scores), pointer(rows), library.IDSelectorBitmap(bits),
        )  # fmt: skip
        return scores, rows
    step = max(1, GATHER_BYTES // (4 * queries.shape[1]))
    for start in range(0, len(numbers), step):
        some = numbers[start : start + step]
        new_scores, new_rows = _knn(queries, vectors.take(some), min(k, len(some)))
        scores, rows = top_k(np.concatenate([scores, new_scores], 1), np.concatenate([rows, some[new_rows]], 1), k)
    return scores, rows


def _knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    library = faiss()
    found: tuple[np.ndarray, np.ndarray] = library.knn(queries, vectors, k, metric=library.METRIC_INNER_PRODUCT)
    return found


def top_k(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best of candidates (Q, C), best first, the earlier of equals first: (Q, min(k, C)) each."""
    if scores.shape[1] > 4 * k:
        some = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        some.sort(axis=1)
        scores, rows = np.take_along_axis(scores, some, 1), np.take_along_axis(rows, some, 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


@dataclass(frozen=True)
class Setting:
    """For up to `k` results: how many lists are probed, and how many vectors are reranked by their inner product."""

    k: int
    nprobe: int
    rerank: int


@dataclass(frozen=True)
class Probes:
    """The lists nearest to queries (Q, D): `lists` int64 and `distances` float32, each (Q, setting.nprobe)."""

    setting: Setting
    lists: np.ndarray
    distances: np.ndarray


@dataclass(frozen=True)
class IVFIndex:
    """FAISS's inverted lists, with one bit a dimension (RaBitQ), and settings measured for growing k.

    benchmarks/search.py compares it with other kinds.
    """

    index: Any
    settings: tuple[Setting, ...]

    def probe(self, queries: np.ndarray, k: int) -> Probes | None:
        """Find the lists to look through for the k best; None if every vector is to be compared."""
        setting = next((setting for setting in self.settings if k <= setting.k), None)
        return _probe(self.index, queries, setting) if setting else None

    def assign(self, vectors: CheckedArray) -> np.ndarray:
        """Return the list that each of (N, D) belongs to, int32 (N,)."""
        lists: np.ndarray = self.index.quantizer.assign(vectors.all(), 1)[:, 0].astype(np.int32)
        return lists

    def search(
        self, vectors: CheckedArray, queries: np.ndarray, k: int, probes: Probes, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Search as `search_exact` does, but find on average `RECALL` of the best; their scores are exact.

        Rows that are not allowed take the places of others: where they are many among the best, more lists are
        probed, in the end everything.
        """
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        todo = np.arange(len(queries))
        for setting in self.settings:
            if setting.k >= probes.setting.k and len(todo):
                ranks = k if allowed is None else max(k, setting.k) + max(1, setting.k // 4)
                if setting != probes.setting:
                    probes = _probe(self.index, queries[todo], setting)
                best = _search(self.index, vectors, queries[todo], ranks, probes)
                complete, found = _only_allowed(*best, k, allowed)
                scores[todo[complete]], rows[todo[complete]] = found
                todo = todo[~complete]
        if len(todo):
            scores[todo], rows[todo] = search_exact(vectors, queries[todo], k, allowed)
        return scores, rows


class DeltaLists:
    """Vectors added since an `IVFIndex` was built, sorted into its lists; the index itself never changes.

    Args:
        lists: the list that each belongs to, int32 (N,).
        number: how many lists the index has.
    """

    def __init__(self, lists: np.ndarray, number: int):
        self.lists = lists
        self._rows = np.argsort(lists, kind="stable")
        self._first = np.searchsorted(lists[self._rows], np.arange(number + 1))

    def search(
        self, vectors: CheckedArray, queries: np.ndarray, k: int, probes: Probes, allowed: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Compare with those of the lists nearest to each query; up to k rows, then -1."""
        first = self._first[probes.lists]
        counts = self._first[probes.lists + 1] - first
        width = max(k, counts.sum(1).max())  # large where all that was added is alike
        step = max(1, CANDIDATES // width)
        parts = []
        for start in range(0, len(queries), step):
            some = slice(start, start + step)
            rows = self._candidates(first[some], counts[some], width, allowed)
            parts.append(top_k(_inner_products(vectors, queries[some], rows), rows, k))
        scores, found = zip(*parts, strict=True)
        return np.concatenate(scores), np.concatenate(found)

    def _candidates(self, first: np.ndarray, counts: np.ndarray, width: int, allowed: np.ndarray | None) -> np.ndarray:
        """Return rows (Q, width) of lists that are parts of `_rows`, (Q, L) each; then -1."""
        rows = np.full((len(first), width), -1, np.int64)
        ends = np.cumsum(counts)
        places = np.arange(ends[-1]) + np.repeat(first.ravel() - ends + counts.ravel(), counts.ravel())
        found = self._rows[places]
        if allowed is not None:
            found[~allowed[found]] = -1
        rows[np.arange(width) < counts.sum(1)[:, None]] = found
        return rows


def build_ivf(vectors: CheckedArray) -> IVFIndex | None:
    """Build an index over vectors (N, D) of length 1; None where comparing with all of them is as good.

    nprobe and rerank are measured by searching for some of its own vectors; vectors without clusters, for which half
    of the lists would have to be probed, get no index.
    """
    number, dim = len(vectors), vectors.all().shape[1]
    if number * dim <= MAX_EXACT:
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
    return IVFIndex(index, settings) if settings else None


def _measure(index: Any, vectors: CheckedArray, sample: np.ndarray) -> tuple[Setting, ...]:
    """Return the cheapest settings that find enough of the neighbours of these rows, by k; () if none does."""
    queries = np.ascontiguousarray(vectors.all()[sample])
    most = min(MEASURED_K[-1], len(vectors) - 1)
    truth = _others(search_exact(vectors, queries, most + 1)[1], sample)  # (S, most)
    settings: list[Setting] = []
    nprobe = 2
    for k in MEASURED_K:
        if k > most:
            break
        found: Setting | None = None
        while found is None and nprobe <= index.nlist // 2:
            for factor in (20, 10, 5, 3, 2):
                setting = Setting(k, nprobe, min(factor * (k + 1), len(vectors)))
                rows = _others(_search(index, vectors, queries, k + 1, _probe(index, queries, setting))[1], sample)
                hits = sum(np.isin(mine, best).sum() for mine, best in zip(rows, truth[:, :k], strict=True))
                if hits / (k * len(sample)) < RECALL + MARGIN:
                    break
                found = setting
            if found is None:
                nprobe *= 2
        if found is None:
            break
        settings.append(found)
    return tuple(settings)


def _probe(index: Any, queries: np.ndarray, setting: Setting) -> Probes:
    distances, lists = index.quantizer.search(queries, setting.nprobe)
    return Probes(setting, lists, distances)


def _search(
    index: Any, vectors: CheckedArray, queries: np.ndarray, k: int, probes: Probes
) -> tuple[np.ndarray, np.ndarray]:
    library = faiss()
    pointer = library.swig_ptr
    rerank = max(k, probes.setting.rerank)
    distances, rows = np.empty((len(queries), rerank), np.float32), np.empty((len(queries), rerank), np.int64)
    index.search_preassigned_c(  # FAISS's wrapper of it takes no parameters
        len(queries), pointer(queries), rerank, pointer(probes.lists), pointer(probes.distances),
        pointer(distances), pointer(rows), False, library.SearchParametersIVF(nprobe=probes.setting.nprobe),
    )  # fmt: skip
    return top_k(_inner_products(vectors, queries, rows), rows, k)


def _inner_products(vectors: CheckedArray, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return the inner products of queries (Q, D) with the vectors of rows (Q, R); -inf for row -1."""
    library = faiss()
    pointer = library.swig_ptr
    values = vectors.rows(rows[rows >= 0])
    scores = np.empty(rows.shape, np.float32)
    library.fvec_inner_products_by_idx(
        pointer(scores), pointer(queries), pointer(values), pointer(rows), queries.shape[1], *rows.shape
    )
    return scores


def _only_allowed(
    scores: np.ndarray, rows: np.ndarray, k: int, allowed: np.ndarray | None
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return which lines of ranks (Q, R) have k rows that may be found; of those the first k of these, (C, k) each."""
    good = rows >= 0
    if allowed is not None:
        good &= allowed[rows]
    complete = np.count_nonzero(good, axis=1) >= k
    if complete.all() and rows.shape[1] == k:
        return complete, (scores, rows)
    first = np.argsort(~good[complete], axis=1, kind="stable")[:, :k]
    return complete, (np.take_along_axis(scores[complete], first, 1), np.take_along_axis(rows[complete], first, 1))


def _others(rows: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return each line of `rows` (S, k + 1) without its own row, or without its last: (S, k)."""
    same = rows == own[:, None]
    same[~same.any(1), -1] = True
    others: np.ndarray = rows[~same].reshape(len(rows), -1)
    return others


@dataclass(frozen=True)
class CosineSample:
    """Cosines of pairs of an index's own vectors, to read a score by: unrelated photos' differ from model to model.

    Attributes:
        cosines: some of them, ascending, float32 (S,); none if there are fewer pairs than `MIN_PAIRS`.
        ranks: how many pairs come before each, int64 (S,).
    """

    cosines: CheckedArray
    ranks: CheckedArray

    def closer_than(self, scores: np.ndarray) -> list[float] | list[None]:
        """Return, for cosines (M,), the share of pairs with a smaller one; below 1, since another may be nearer."""
        cosines, ranks = self.cosines.all(), self.ranks.all()
        if not len(ranks):
            return [None] * len(scores)
        total = int(ranks[-1]) + 1
        at = np.searchsorted(cosines, scores)
        below = np.where(at > 0, ranks[at - 1] + 1, 0)
        shares: list[float] = np.minimum(below / total, total / (total + 1)).tolist()
        return shares


def sample_cosines(vectors: CheckedArray) -> CosineSample:
    """Return the cosines of pairs among vectors (N, D) of length 1, each of another content."""
    rows = np.arange(len(vectors))
    if len(rows) > COSINE_SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, COSINE_SAMPLE, replace=False))
    some = vectors.take(rows)
    cosines = np.sort((some @ some.T)[np.triu_indices(len(some), 1)])
    number = len(cosines)
    if number < MIN_PAIRS:
        return CosineSample(CheckedArray(np.empty(0, np.float32)), CheckedArray(np.empty(0, np.int64)))
    steps = np.linspace(0, number - 1, _STEPS).astype(np.int64)
    ranks = np.unique(np.concatenate([steps, np.arange(max(0, number - _HIGHEST), number)]))
    return CosineSample(CheckedArray(cosines[ranks]), CheckedArray(ranks))
