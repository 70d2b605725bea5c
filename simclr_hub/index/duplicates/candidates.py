"""Which pairs of pictures are worth comparing: the nearest neighbours by FAISS, block by block.

Unusual: two sources. The features find crops, frames and turns; the low frequencies of the signatures find what the
features of a weak model lose, such as a copy in grey. Blank pages, which have no shapes, are near each other by their
colour. Memory grows with N, never with N^2.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ...signature import low_frequencies, unpack
from ..search.ann import faiss
from .same_picture import is_blank

#: Up to so many vectors every one is compared with every other; above, with those of the nearest lists.
EXACT = 20_000
#: Lists that are looked through for each vector; vectors to learn each list from.
_PROBES, _TRAINING_PER_LIST = 16, 50
#: Queries that are handled at once.
_BLOCK = 4096


def neighbours(vectors: np.ndarray, k: int, queries: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, ...]]:
    """The k nearest other vectors of each.

    Args:
        vectors: float32 (N, D), of length 1 or zero.
        k: how many.
        queries: rows whose neighbours are looked for; None is all.

    Yields:
        Rows (P,), the rows near them (P,), and cosines (P,), block by block.
    """
    rows = np.arange(len(vectors)) if queries is None else queries
    if len(vectors) < 2 or not len(rows):
        return
    index = _build(vectors)
    k = min(k, len(vectors) - 1)
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK]
        scores, found = index.search(np.ascontiguousarray(vectors[block]), k + 1)
        wanted = (found >= 0) & (found != block[:, None])
        yield np.broadcast_to(block[:, None], found.shape)[wanted], found[wanted], scores[wanted]


def shapes(signatures: np.ndarray) -> np.ndarray:
    """Return what large shapes signatures (N, 455) show, or which one colour: float32 (N, 63) of length 1 or 0."""
    result = low_frequencies(signatures)
    rows = np.flatnonzero(~result.any(1))
    blank = unpack(signatures[rows])
    rows, blank = rows[is_blank(blank)], blank[is_blank(blank)]
    grey, (blue, red) = blank.grey[:, 0, 0], blank.colour[:, :, 0, 0].T
    # On circles, where what may be the same lies a sixtieth of a turn apart or less; in the highest frequencies, of
    # which other pictures have least.
    angles = np.stack([grey * (np.pi / 64), blue * (np.pi / 128), red * (np.pi / 128), 2 * np.abs(blank.shape)], 1)
    result[rows, -8:] = np.concatenate([np.cos(angles), np.sin(angles)], 1) / 2
    return result


def _build(vectors: np.ndarray) -> Any:
    """FAISS's index of the inner product; row i has the id i."""
    library = faiss()
    number, dim = vectors.shape
    if number <= EXACT:
        index = library.IndexFlatIP(dim)
    else:
        lists = int(4 * math.sqrt(number))
        quantizer = library.IndexFlatIP(dim)
        index = library.IndexIVFFlat(quantizer, dim, lists, library.METRIC_INNER_PRODUCT)
        index.referenced_objects = [quantizer]  # FAISS points to it
        index.nprobe = _PROBES
        index.cp.niter, index.cp.min_points_per_centroid = 6, 1
        random = np.random.default_rng(0)
        training = random.choice(number, min(number, lists * _TRAINING_PER_LIST), replace=False)
        index.train(vectors[np.sort(training)])
    for start in range(0, number, 16 * _BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + 16 * _BLOCK]))
    return index
