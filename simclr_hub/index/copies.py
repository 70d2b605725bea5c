"""Which contents of an index show one picture, for a search's results."""

import numpy as np

from ..signature import as_rows, unpack
from .duplicates.calibration import CORRELATION_ALONE
from .duplicates.same_picture import compare
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
