"""What is searched for, as vectors of length 1: a vector as it is, an image through the model that made the index."""

import hashlib
import os
from typing import Any

import numpy as np

from ..embedder import Failure
from ..images import FileBytes, describe, read_file
from .maker import Maker, unit_vector
from .store import Store


def query_vectors(queries: list[Any], store: Store, maker: Maker) -> np.ndarray:
    """Vectors (Q, D) of images or vectors; a file whose content is in the index needs no model.

    Raises:
        ValueError: a vector that cannot be compared with those of the index.
        ImageError: an image that cannot be used.
    """
    vectors = np.empty((len(queries), store.about.dim), np.float32)
    images = []
    for row, query in enumerate(queries):
        if isinstance(query, np.ndarray) and query.ndim == 1:
            vectors[row] = _query_vector(query, store.about.dim)
            continue
        if isinstance(query, (str, os.PathLike)):
            query = FileBytes(describe(query), read_file(query)[0])
            known = store.vector(hashlib.sha256(query.data).digest())
            if known is not None:
                vectors[row] = known
                continue
        images.append((row, query))
    if images:
        for item in maker.embedder().stream(image for _, image in images):
            if isinstance(item, Failure):
                raise item.error
            vectors[images[item.position][0]] = _query_vector(item.vector, store.about.dim)
    return vectors


def _query_vector(vector: np.ndarray, dim: int) -> np.ndarray:
    if vector.dtype.kind != "f":
        raise ValueError(f"a query vector of {vector.dtype}: give floats")
    if vector.shape != (dim,):
        raise ValueError(f"a query vector of {len(vector)} numbers; this index holds vectors of {dim}")
    unit = unit_vector(vector)
    if unit is None:
        raise ValueError("a query vector that is zero or not finite has no direction to compare")
    return unit
