"""How alike different pictures are: their cosine, less half of what each has with its nearest anyway.

Unusual: a cosine alone is largest among pictures of which a collection has many that all look alike, whatever they
show: white backgrounds, skies. So the mean cosine of each with its nearest is taken off by half (local scaling, as in
CSLS of https://arxiv.org/abs/1710.04087, which takes off all of it).
"""

import numpy as np

from .candidates import neighbours

#: Nearest neighbours that are looked at, and those of them that the mean is of.
NEAREST, CROWD = 16, 10
#: The most pictures that thresholds are measured on.
_SAMPLE = 4000
#: Similar neighbours that a picture has where thresholds are measured: what is rarer is similar.
NEIGHBOURS = 0.4


def likeness(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Compare each with its nearest.

    Args:
        vectors: float32 (N, D) of length 1 or zero, of different pictures.

    Returns:
        Pairs of rows (P, 2), each once, the smaller first; how alike they are (P,).
    """
    blocks = list(neighbours(vectors, NEAREST))
    rows, others, cosines = (np.concatenate([*column, np.empty(0, kind)]) for column, kind in _columns(blocks))
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)  # rows ascend, and each row's nearest come first
    nearest = place < CROWD
    number = np.bincount(rows[nearest], minlength=len(vectors))
    crowd = np.bincount(rows[nearest], cosines[nearest], len(vectors)) / np.maximum(number, 1)
    scores = cosines - (crowd[rows] + crowd[others]) / 4
    keys, first = np.unique(np.minimum(rows, others) * len(vectors) + np.maximum(rows, others), return_index=True)
    return np.stack([keys // len(vectors), keys % len(vectors)], 1), scores[first]


def _columns(blocks: list[tuple[np.ndarray, ...]]) -> list[tuple[list[np.ndarray], type]]:
    return [([block[i] for block in blocks], kind) for i, kind in enumerate((np.int64, np.int64, np.float32))]


def thresholds(vectors: np.ndarray) -> list[tuple[int, float]]:
    """Choose from which likeness on pictures of a collection are similar: (photos, likeness), ascending.

    The first holds for smaller collections, too. In larger ones it takes more, so that a picture has no more similar
    neighbours by chance; that its nearest are nearer there is left out, which makes it stricter still.

    Args:
        vectors: (N, D) of different pictures, of length 1.
    """
    if len(vectors) > _SAMPLE:
        vectors = vectors[np.sort(np.random.default_rng(0).choice(len(vectors), _SAMPLE, replace=False))]
    scores = np.sort(likeness(vectors)[1])[::-1]
    if not len(scores):
        return [(1, 1.0)]
    count = len(vectors)
    pairs = NEIGHBOURS * count / 2
    found: list[tuple[int, float]] = []
    while not found or pairs >= 5:
        found.append((count, round(float(scores[min(int(pairs), len(scores) - 1)]), 5)))
        count, pairs = 2 * count, pairs / 2
    return found
