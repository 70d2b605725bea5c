"""What is searched for, as vectors of length 1: a vector as it is, an image through the model that made the index.

Unusual: in a whitened index a vector may also be the model's, as `embed` gives it: its width tells.
"""

import hashlib
import os
from typing import Any

import numpy as np

from ..embedder import Failure
from ..images import read_source
from ..web import is_url
from ..whitening import Whitening
from .maker import Maker
from .spelling import openable
from .store import Store


def query_vectors(queries: list[Any], store: Store, maker: Maker, whitening: Whitening | None) -> np.ndarray:
    """Vectors (Q, D) of images or vectors, whitened; a file whose content is in the index needs no model.

    Raises:
        ValueError: a vector that cannot be compared with those of the index.
        ImageError: an image that cannot be used.
    """
    dim = whitening.dim if whitening else store.about.dim
    vectors = np.empty((len(queries), dim), np.float32)

    def put(rows: list[int], features: np.ndarray) -> None:
        """Vectors of the model, of length 1: (R, the model's width)."""
        vectors[rows] = whitening.apply(features, normalize=True) if whitening else features

    given = [row for row, query in enumerate(queries) if isinstance(query, np.ndarray) and query.ndim == 1]
    whitened = [row for row in given if whitening and len(queries[row]) == dim]
    for start in range(0, len(whitened), 1024):
        rows = whitened[start : start + 1024]
        vectors[rows] = _unit_vectors([queries[row] for row in rows], dim)
    given = sorted(set(given) - set(whitened))
    for start in range(0, len(given), 1024):
        rows = given[start : start + 1024]
        put(rows, _unit_vectors([queries[row] for row in rows], store.about.dim))
    images = []
    for row, query in enumerate(queries):
        if isinstance(query, np.ndarray) and query.ndim == 1:
            continue
        if isinstance(query, (str, os.PathLike)):
            query = read_source(query if is_url(query) else openable(query))
            known = store.vector(hashlib.sha256(query.data).digest())
            if known is not None:
                put([row], known[None])
                continue
        images.append((row, query))
    if images:
        for item in maker.embedder().stream(image for _, image in images):
            if isinstance(item, Failure):
                raise item.error
            # As the store would keep it: the same photo is found with 1.
            put([images[item.position][0]], _unit_vectors([item.vector], store.about.dim).astype(np.float32))
    return vectors


def _unit_vectors(vectors: list[np.ndarray], dim: int) -> np.ndarray:
    """Vectors scaled to length 1: float64 (N, D)."""
    for vector in vectors:
        if vector.dtype.kind != "f":
            raise ValueError(f"a query vector of {vector.dtype}: give floats")
        if vector.shape != (dim,):
            raise ValueError(f"a query vector of {len(vector)} numbers; this index holds vectors of {dim}")
    wide = np.array(vectors, np.float64)
    largest = np.maximum(wide.max(axis=1), -wide.min(axis=1))
    if not (np.isfinite(largest) & (largest > 0)).all():
        raise ValueError("a query vector that is zero or not finite has no direction to compare")
    wide /= largest[:, None]  # so that no square overflows or vanishes
    wide /= np.sqrt(np.einsum("nd,nd->n", wide, wide))[:, None]
    return wide
