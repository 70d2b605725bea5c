"""The live photos of a store by their content, with what comparing contents needs."""

import json
import os
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ...signature import SIGNATURE_BYTES, as_rows, in_colour
from ...whitening import Whitening
from ..store import Store
from .keep import File


@dataclass(frozen=True)
class LiveContents:
    """Each content once, in the order of the hashes.

    Attributes:
        hashes: of the contents.
        files: of each content.
        signatures: uint8 (N, 455); zeros where there is none.
        vectors: float32 (N, D) as the model gave them, of length 1; (N, 0) if they were not asked for.
        whitening: of the index, for what compares whitened vectors.
    """

    hashes: list[bytes]
    files: list[list[File]]
    signatures: np.ndarray
    vectors: np.ndarray
    whitening: Whitening | None


def read_contents(store: Store, *, with_vectors: bool = True) -> LiveContents:
    """Read them; inside `Store.reading`.

    Raises:
        IndexDamagedError: a row does not match its checksum, or one is not there.
    """
    roots = store.roots()
    photos = defaultdict(list)
    for photo in store.photos(state="live"):
        if photo.content_hash is None:
            raise store.damaged("a photo without content")
        photos[photo.content_hash].append(photo)
    hashes = sorted(photos)
    row_of = {content_hash: row for row, content_hash in enumerate(hashes)}
    infos: list[dict[str, object]] = [{}] * len(hashes)
    signatures = np.zeros((len(hashes), SIGNATURE_BYTES), np.uint8)
    for content_hash, details in store.details():
        row = row_of.get(content_hash)
        if row is not None:
            infos[row] = details.info
            signatures[row] = as_rows([details.signature])[0]
    vectors = np.empty((len(hashes), store.about.dim if with_vectors else 0), np.float32)
    if with_vectors:
        found = 0
        for content_hashes, some in store.vector_pages():
            kept = [(row_of[content], i) for i, content in enumerate(content_hashes) if content in row_of]
            rows, positions = [row for row, _ in kept], [i for _, i in kept]
            vectors[rows] = some[positions]
            found += len(kept)
        if found != len(hashes):
            raise store.damaged(f"{len(hashes) - found} photos without a vector")
    colourful = in_colour(signatures).tolist()
    files = [
        [
            File(
                os.fsdecode(store.locate(photo, roots)),
                content_hash,
                infos[row] | json.loads(photo.metadata),
                colourful[row],
            )
            for photo in photos[content_hash]
        ]
        for row, content_hash in enumerate(hashes)
    ]
    return LiveContents(hashes, files, signatures, vectors, store.whitening())
