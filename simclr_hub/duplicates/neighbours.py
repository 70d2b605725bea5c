"""Pairs of pictures worth comparing: nearest neighbours by features or by signature, and how alike they are.

Memory grows with N, never with N^2.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..signature import low_frequencies, unpack
from .compare import is_blank

#: Up to so many vectors the search is exact; above, an inverted file (IVF) of FAISS.
EXACT = 20_000
_NPROBE, _TRAINING_PER_LIST = 16, 50
#: Queries at once.
_BLOCK = 4096
#: Nearest neighbours that are compared with each picture: by features, by signature.
NEAREST, NEAREST_BY_SIGNATURE = 16, 8
#: Cosine of two `signature_vectors` below which they are not compared.
MIN_SIGNATURE_COSINE = 0.7
#: Neighbours that `likeness` looks at, and of how many it takes the mean.
_LIKENESS_NEAREST, _CROWD = 16, 10


def candidate_pairs(vectors: np.ndarray, signatures: np.ndarray, queries: np.ndarray | None = None) -> np.ndarray:
    """Find pairs of pictures that may be the same, as rows (P, 2), each once, the smaller first.

    Args:
        vectors: float32 (N, D) of length 1.
        signatures: uint8 (N, 455).
        queries: rows of which each pair has one at least; None is all.
    """
    keys = [np.empty(0, np.int64)]  # 8 bytes a pair
    by_signature = (signature_vectors(signatures), NEAREST_BY_SIGNATURE, MIN_SIGNATURE_COSINE)
    for some, k, least in ((vectors, NEAREST, -np.inf), by_signature):
        for rows, found, cosines in neighbours(some, k, queries):
            pairs = np.minimum(rows, found) * len(vectors) + np.maximum(rows, found)
            keys.append(pairs[cosines >= least])
    unique = np.unique(np.concatenate(keys))
    return np.stack([unique // len(vectors), unique % len(vectors)], 1)


def neighbours(vectors: np.ndarray, k: int, queries: np.ndarray | None = None) -> Iterator[tuple[np.ndarray, ...]]:
    """Find the k nearest other vectors of each.

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


def _build(vectors: np.ndarray) -> Any:
    """Return FAISS's index of the inner product; row i has the id i."""
    from ..index.search.ann import faiss  # here, since the index imports this package

    library = faiss()
    number, dim = vectors.shape
    if number <= EXACT:
        index = library.IndexFlatIP(dim)
    else:
        lists = int(4 * math.sqrt(number))
        quantizer = library.IndexFlatIP(dim)
        index = library.IndexIVFFlat(quantizer, dim, lists, library.METRIC_INNER_PRODUCT)
        index.referenced_objects = [quantizer]  # FAISS points to it
        index.nprobe = _NPROBE
        index.cp.niter, index.cp.min_points_per_centroid = 6, 1
        random = np.random.default_rng(0)
        training = random.choice(number, min(number, lists * _TRAINING_PER_LIST), replace=False)
        index.train(vectors[np.sort(training)])
    for start in range(0, number, 16 * _BLOCK):
        index.add(np.ascontiguousarray(vectors[start : start + 16 * _BLOCK]))
    return index


def signature_vectors(signatures: np.ndarray) -> np.ndarray:
    """Return vectors whose cosine tells signatures (N, 455) of one picture: float32 (N, 63) of length 1 or 0.

    They hold the low frequencies, which keep what the features of a weak model lose, such as a copy in grey; for a
    picture of one colour, which has none, that colour.
    """
    vectors = low_frequencies(signatures)
    rows = np.flatnonzero(~vectors.any(1))
    flat = unpack(signatures[rows])
    rows, flat = rows[is_blank(flat)], flat[is_blank(flat)]
    grey, (blue, red) = flat.grey[:, 0, 0], flat.colour[:, :, 0, 0].T
    # On circles, where what may be the same lies a sixtieth of a turn apart or less; in the highest frequencies, of
    # which other pictures have least.
    angles = np.stack([grey * (np.pi / 64), blue * (np.pi / 128), red * (np.pi / 128), 2 * np.abs(flat.shape)], 1)
    vectors[rows, -8:] = np.concatenate([np.cos(angles), np.sin(angles)], 1) / 2
    return vectors


def likeness(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare each with its nearest: the cosine, less half of the mean cosine that both have with their nearest.

    Cosines alone are largest where a collection has many pictures that all look alike, whatever they show: white
    backgrounds, skies. This is local scaling as in CSLS (https://arxiv.org/abs/1710.04087), by half.

    Args:
        vectors: float32 (N, D) of length 1 or zero, of different pictures.

    Returns:
        Pairs of rows (P, 2), each once, the smaller first; their likeness (P,).
    """
    if len(vectors) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    blocks = zip(*neighbours(vectors, _LIKENESS_NEAREST), strict=True)
    rows, others, cosines = (np.concatenate(column) for column in blocks)
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # rows ascend, and each row's nearest come first
    nearest = place < _CROWD
    number = np.bincount(rows[nearest], minlength=len(vectors))
    crowd = np.bincount(rows[nearest], cosines[nearest], len(vectors)) / np.maximum(number, 1)
    scores = cosines - (crowd[rows] + crowd[others]) / 4
    keys, first = np.unique(np.minimum(rows, others) * len(vectors) + np.maximum(rows, others), return_index=True)
    return np.stack([keys // len(vectors), keys % len(vectors)], 1), scores[first]
