"""Photos that show one picture, for a search's results; and photos that a person called different."""

import itertools
import os
from collections.abc import Sequence

import numpy as np

from ..duplicates.compare import compare
from ..duplicates.thresholds import CORRELATION_ALONE
from ..images import describe
from ..signature import as_rows, unpack
from .paths import as_recorded, is_below, on_disk
from .store import Store


class SamePicture:
    """Tells whether contents show one picture in full view, by their signatures, which it remembers.

    It asks less than `duplicates`: crops and framed copies show something else and stay results of their own, since
    aligning them takes longer than the search.
    """

    def __init__(self, store: Store):
        self._store = store
        self._signatures: dict[bytes, bytes] = {}

    def __call__(self, first: list[bytes], second: list[bytes]) -> np.ndarray:
        """Return which pairs of content hashes are of one picture and were not called different: bool (P,)."""
        a, b = (unpack(as_rows([self._signature(content) for content in some])) for some in (first, second))
        same: np.ndarray = compare(a, b, aligned=False).score >= CORRELATION_ALONE
        if same.any() and (distinct := self._store.distinct()):
            pairs = zip(first, second, strict=True)
            same &= np.array([(min(pair), max(pair)) not in distinct for pair in pairs])
        return same

    def _signature(self, content: bytes) -> bytes:
        if content not in self._signatures:
            details = self._store.details_of(content)
            self._signatures[content] = details.signature if details else b""
        return self._signatures[content]


def record_distinct(store: Store, paths: Sequence[str | os.PathLike[str]]) -> None:
    """Record that each two of these photos are different pictures; inside `Store.writing`.

    Raises:
        ValueError: fewer than two photos, one that the index does not hold, or two of the same bytes.
    """
    roots = store.roots()
    hashes: dict[bytes, str] = {}
    for path in paths:
        absolute = as_recorded(on_disk(path), roots.values())
        found = (
            store.photo(root.id, os.path.relpath(absolute, root.path))
            for root in roots.values()
            if is_below(absolute, root.path)
        )
        content_hash = next((photo.content_hash for photo in found if photo and photo.content_hash), None)
        if content_hash is None:
            raise ValueError(f"{describe(path)}: not in the index; `simclr-hub index` its folder first")
        if content_hash in hashes:
            raise ValueError(f"{describe(path)} and {describe(hashes[content_hash])} have the same bytes")
        hashes[content_hash] = os.fspath(path)
    if len(hashes) < 2:
        raise ValueError(f"{len(hashes)} photos given; a pair needs two")
    with store.transaction():
        for a, b in itertools.combinations(hashes, 2):
            store.put_distinct(a, b)
