"""The k best of many vectors by inner product, exactly, in memory that does not grow with their number."""

from typing import Any

import numpy as np

from .arrays import CheckedArray
from .faiss_library import faiss

#: Queries below this number are compared one by one, as FAISS does; from there on by matrix products.
BATCH = 20
#: Bytes of vectors that are gathered at a time.
GATHER_BYTES = 32 << 20


def search_exactly(
    vectors: CheckedArray, queries: np.ndarray, k: int, allowed: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Compare with every vector.

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
        selected = Selector(allowed)
        values = vectors.rows(numbers)
        library.knn_inner_product(
            pointer(queries), pointer(values), queries.shape[1], len(queries), len(values), k,
            pointer(scores), pointer(rows), selected.faiss,
        )  # fmt: skip
        return scores, rows
    step = max(1, GATHER_BYTES // (4 * queries.shape[1]))
    for start in range(0, len(numbers), step):
        some = numbers[start : start + step]
        found = min(k, len(some))
        new_scores, new_rows = _knn(queries, vectors.rows(some)[some], found)
        scores, rows = keep_best(np.concatenate([scores, new_scores], 1), np.concatenate([rows, some[new_rows]], 1), k)
    return scores, rows


def keep_best(scores: np.ndarray, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Of candidates (Q, C) the k best, best first, the earlier of equals first: (Q, min(k, C)) each."""
    if scores.shape[1] > 4 * k:
        some = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        some.sort(axis=1)
        scores, rows = np.take_along_axis(scores, some, 1), np.take_along_axis(rows, some, 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(rows, order, 1)


class Selector:
    """Which rows FAISS may find, bool (N,); it keeps the bits alive that FAISS points to."""

    def __init__(self, allowed: np.ndarray):
        self._bits = np.packbits(allowed, bitorder="little")
        self.faiss: Any = faiss().IDSelectorBitmap(self._bits)


def _knn(queries: np.ndarray, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    library = faiss()
    found: tuple[np.ndarray, np.ndarray] = library.knn(queries, vectors, k, metric=library.METRIC_INNER_PRODUCT)
    return found
