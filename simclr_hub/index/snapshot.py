"""One generation of the index in memory, never changed: what a search runs on while a sync goes on."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import faiss_cache
from .store import Store


@dataclass(frozen=True)
class Match:
    """A photo that was found.

    Attributes:
        path: absolute; undecodable bytes as Python's surrogate escapes, so that `os.fsencode` restores them.
        score: cosine of the two vectors, at most 1.
        metadata: what the index knows of the file: "bytes" and "modified" (seconds since 1970).
    """

    path: str
    score: float
    metadata: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """The live photos of one generation.

    Attributes:
        generation: of the store.
        hashes: each content once, sorted; row i of the index is the vector of content i.
        photos: for each content, the (absolute path, metadata as JSON) of the photos that have it.
        index: FAISS's.
    """

    generation: int
    hashes: Sequence[bytes]
    photos: Sequence[Sequence[tuple[str, str]]]
    index: Any

    def search(self, queries: np.ndarray, k: int) -> list[list[Match]]:
        """For each query (Q, D) of length 1, the k photos (or all, if there are fewer) of the highest cosine."""
        if not self.hashes:
            return [[] for _ in queries]
        scores, rows = self.index.search(queries, min(k, len(self.hashes)))  # (Q, k) each
        found = []
        for query_scores, query_rows in zip(scores.tolist(), rows.tolist(), strict=True):
            matches = [
                Match(path, min(score, 1.0), json.loads(metadata))
                for score, row in zip(query_scores, query_rows, strict=True)
                if row >= 0
                for path, metadata in self.photos[row]
            ]
            found.append(matches[:k])
        return found

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """The photos' paths, sorted, and their vectors (N, D)."""
        order = sorted((path, row) for row, photos in enumerate(self.photos) for path, _ in photos)
        vectors = faiss_cache.vectors_of(self.index)
        return [path for path, _ in order], vectors[[row for _, row in order]]


def take_snapshot(store: Store, previous: Snapshot | None = None) -> Snapshot:
    """Read the current generation; `previous` or the cache file saves reading the vectors if they are the same.

    Raises:
        IndexDamagedError: a row does not match its checksum, or one is not there.
    """
    with store.reading():
        generation, roots = store.generation(), store.roots()
        by_content: dict[bytes, list[tuple[str, str]]] = {}
        for photo in store.photos(state="live"):
            if photo.content_hash is None:
                raise store.damaged("a photo without content")
            path = os.fsdecode(store.locate(photo, roots))
            by_content.setdefault(photo.content_hash, []).append((path, photo.metadata))
        hashes = sorted(by_content)
        photos = [by_content[content_hash] for content_hash in hashes]
        if previous is not None and previous.hashes == hashes:
            return Snapshot(generation, hashes, photos, previous.index)
        index = faiss_cache.read(store)
        if index is not None and (index.ntotal, index.d) == (len(hashes), store.about.dim):
            return Snapshot(generation, hashes, photos, index)
        return Snapshot(generation, hashes, photos, faiss_cache.build(_read_vectors(store, hashes)))


def _read_vectors(store: Store, hashes: Sequence[bytes]) -> np.ndarray:
    """The vectors of these contents (N, D), read in the order of the file."""
    row_of = {content_hash: row for row, content_hash in enumerate(hashes)}
    vectors = np.empty((len(hashes), store.about.dim), np.float32)
    found: set[bytes] = set()
    for content_hash, vector in store.vectors():
        row = row_of.get(content_hash)
        if row is not None:
            vectors[row] = vector
            found.add(content_hash)
    if len(found) != len(hashes):
        raise store.damaged(f"{len(hashes) - len(found)} photos without a vector")
    return vectors
