"""FAISS's exact index: a cache of the store that can always be rebuilt.

Unusual: its file is read only if the SHA-256 of its bytes is the one that the store recorded for its current
generation, since faiss loads about every fourth damaged file without complaint and then finds the wrong photos; and it
is written by us, since faiss reports success on a full disk.
"""

import functools
import hashlib
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from .._files import write_file
from .store import Store

CACHE_NAME = "vectors.faiss"


def build(vectors: np.ndarray) -> Any:
    """An index over vectors (N, D) of length 1: the inner product is the cosine; row i has the id i."""
    index = _faiss().IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def read(store: Store) -> Any | None:
    """The index in the store's cache file; None if it is not there, of another generation, or damaged."""
    data = _data(store)
    return None if data is None else _faiss().deserialize_index(data)


def fits(store: Store) -> bool:
    """Whether the cache file can be read."""
    return _data(store) is not None


def write(store: Store, index: Any, generation: int) -> None:
    """Publish `index`, which was built from that generation; inside `Store.writing`.

    The file comes first: a kill between the two leaves a file whose checksum is not recorded, which is not read.

    Raises:
        OSError: the file could not be written.
        IndexWriteError: its checksum could not be recorded.
    """
    for stale in store.file.parent.glob(f".{CACHE_NAME}.*"):  # of a process that was killed
        stale.unlink()
    data = _faiss().serialize_index(index)
    write_file(_file(store), lambda file: file.write(data.data))
    with store.transaction():
        store.put_cache(generation, hashlib.sha256(data.data).hexdigest())


def vectors_of(index: Any) -> np.ndarray:
    """The vectors (N, D) in an index, in the order of their ids."""
    vectors: np.ndarray = index.reconstruct_n(0, index.ntotal)
    return vectors


def _data(store: Store) -> np.ndarray | None:
    """The bytes of the cache file, if they are those that were recorded for this generation."""
    generation, sha256 = store.cache()
    if generation != store.generation():
        return None
    try:
        data = np.fromfile(_file(store), np.uint8)
    except OSError:
        return None
    return data if hashlib.sha256(data.data).hexdigest() == sha256 else None


def _file(store: Store) -> Path:
    return store.file.with_name(CACHE_NAME)


@functools.cache
def _faiss() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # SWIG's, about types without __module__
        import faiss
    # One query runs on one thread; batches gain little past a few.
    faiss.omp_set_num_threads(min(faiss.omp_get_max_threads(), os.cpu_count() or 1, 8))
    return faiss
