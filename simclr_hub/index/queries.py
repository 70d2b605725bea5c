"""Turn queries into vectors of length 1: a vector as it is, an image through the model that made the index."""

import hashlib
import math
import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..images import describe, read_source
from ..scan import SEPARATOR
from ..web import is_url
from ..whitening import Whitening
from .maker import Maker
from .paths import is_below, openable
from .store import Root, Store

#: A file in the index: its content, root folder's id, and path below it.
OwnFile = tuple[bytes, int, bytes]


@dataclass(frozen=True)
class IndexedPhoto:
    """Take a photo of the index itself as a query: no file is read, and it need not be there any more."""

    content_hash: bytes
    root_id: int
    path: bytes  # below its root


def query_vectors(
    queries: list[Any], store: Store, maker: Maker, whitening: Whitening | None
) -> tuple[np.ndarray, list[set[OwnFile]]]:
    """Return vectors (Q, D) of images or vectors, whitened, and which files of the index each of them is.

    A file whose content is in the index needs no model. A file is known by its path or, where that is another
    spelling, a link or another mount, by its inode; a copy of it is another file.

    Raises:
        ValueError: a vector that cannot be compared with those of the index.
        ImageError: an image that cannot be used.
    """
    dim = whitening.dim if whitening else store.about.dim
    vectors = np.empty((len(queries), dim), np.float32)

    def put(rows: list[int], features: np.ndarray) -> None:
        """Put vectors of the model, of length 1: (R, the model's width)."""
        vectors[rows] = whitening.apply(features, normalize=True) if whitening else features

    # In a whitened index a vector may also be the model's, as `embed` gives it: its width tells.
    given = [row for row, query in enumerate(queries) if isinstance(query, np.ndarray) and query.ndim == 1]
    whitened = [row for row in given if whitening and len(queries[row]) == dim]
    others = sorted(set(given) - set(whitened))
    for rows, width in ((whitened, dim), (others, store.about.dim)):
        for start in range(0, len(rows), 1024):
            some = rows[start : start + 1024]
            units = _unit_vectors([queries[row] for row in some], width)
            if rows is whitened:
                vectors[some] = units
            else:
                put(some, units)
    images = []
    own: list[set[OwnFile]] = [set() for _ in queries]
    roots: dict[int, Root] = {}
    for row, query in enumerate(queries):
        if isinstance(query, np.ndarray) and query.ndim == 1:
            continue
        if isinstance(query, IndexedPhoto):
            recorded = store.vector(query.content_hash)
            if recorded is None:
                raise ValueError(f"{describe(os.fsdecode(query.path))}: not in the index any more")
            put([row], recorded[None])
            own[row] = {(query.content_hash, query.root_id, query.path)}
            continue
        if isinstance(query, (str, os.PathLike)):
            name = query if is_url(query) else openable(query)
            query = read_source(name)
            content = hashlib.sha256(query.data).digest()
            if not is_url(name):
                roots = roots or store.roots()
                own[row] = _own_files(name, content, store, roots)
            known = store.vector(content)
            if known is not None:
                put([row], known[None])
                continue
        images.append((row, query))
    if images:
        from ..embedder import Failure

        for item in maker.embedder().stream(image for _, image in images):
            if isinstance(item, Failure):
                raise item.error
            # As the store would keep it: the same photo is found with 1.
            put([images[item.position][0]], _unit_vectors([item.vector], store.about.dim).astype(np.float32))
    return vectors, own


def combine(like: np.ndarray, unlike: np.ndarray, weight: float) -> np.ndarray:
    """Return the direction of the mean of vectors (P, D) less `weight` times that of others (N, D): (1, D).

    As Rocchio's relevance feedback (1971) moves a query.

    Raises:
        ValueError: the weight is no number from 0, or nothing is left.
    """
    if isinstance(weight, bool) or not (math.isfinite(weight) and weight >= 0):
        raise ValueError(f"negative_weight={weight!r}: give a number from 0 on; 0.5 is the default")
    wide = like.astype(np.float64).mean(0)
    if len(unlike):
        wide -= weight * unlike.astype(np.float64).mean(0)
    length = np.linalg.norm(wide)
    if length < 1e-5:  # of float32's noise
        raise ValueError(
            "these photos cancel one another out, so no direction is left to search in: "
            "give other photos, or a smaller negative_weight (--not-weight)"
        )
    combined: np.ndarray = (wide / length).astype(np.float32)[None]
    return combined


def _own_files(path: str | os.PathLike[str], content: bytes, store: Store, roots: dict[int, Root]) -> set[OwnFile]:
    """Return which photos of the index are this file, whatever content was recorded for it."""
    found: set[OwnFile] = set()
    for name in {os.fsencode(os.path.abspath(path)), os.fsencode(os.path.realpath(path))}:
        for root in roots.values():
            if is_below(name, root.path):
                photo = store.photo(root.id, name[len(root.path.rstrip(SEPARATOR)) + 1 :])
                if photo and photo.content_hash:
                    found.add((photo.content_hash, root.id, photo.path))
    with suppress(OSError):
        own = os.stat(path)
        if not found or own.st_nlink > 1:
            for photo in store.photos_with(content):
                with suppress(OSError):
                    if os.path.samestat(own, os.stat(store.locate(photo, roots))):
                        found.add((content, photo.root_id, photo.path))
    return found


def _unit_vectors(vectors: list[np.ndarray], dim: int) -> np.ndarray:
    """Scale vectors to length 1: float64 (N, D)."""
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
