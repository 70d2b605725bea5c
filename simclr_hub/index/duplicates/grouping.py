"""Contents into groups of the same picture, and of similar ones; on arrays, without files or a store."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ...signature import low_frequencies, unpack
from .calibration import Calibration
from .candidates import neighbours
from .same_picture import compare
from .stars import Star, stars

#: Nearest neighbours that are compared with each picture: by features, by signature.
NEAREST, NEAREST_BY_SIGNATURE = 16, 8
#: Cosine of two signatures' low frequencies below which they are not compared.
MIN_SHAPES = 0.7
#: How often what is kept of large groups looks for more: its neighbours were all copies of it.
_ROUNDS = 3
#: Pairs that are compared before progress is told.
_BLOCK = 1 << 13


@dataclass(frozen=True)
class Contents:
    """What is to be grouped, each content once.

    Attributes:
        vectors: float32 (N, D) of length 1.
        signatures: uint8 (N, 455); zeros where there is none.
        rank: (N,), of two the smaller is rather kept.
        apart: pairs of rows, the smaller first, that must not be in one group.
    """

    vectors: np.ndarray
    signatures: np.ndarray
    rank: np.ndarray
    apart: set[tuple[int, int]] = field(default_factory=set)


class Grouping:
    """Finds the groups.

    Args:
        contents: what to group.
        calibration: from where on two are the same, or similar.
        progress: called with (done, total) pairs of candidates, once they are known.
    """

    def __init__(
        self, contents: Contents, calibration: Calibration, progress: Callable[[int, int], object] | None = None
    ):
        self._contents, self._calibration, self._progress = contents, calibration, progress
        self._threshold = calibration.similar(len(contents.vectors))
        self._near: list[np.ndarray] = []  # pairs of rows that are similar by their vectors

    def same(self) -> list[Star]:
        """Groups that show the same picture."""
        contents = self._contents
        everyone = np.arange(len(contents.vectors))
        pairs, scores = self._same_pairs(everyone, None)
        groups = self._stars(pairs, scores)
        for _ in range(_ROUNDS):
            crowded = [group.kept for group in groups if len(group.others) >= NEAREST // 2]
            if not crowded:
                break
            copies = [row for group in groups for row, _ in group.others]
            new_pairs, new_scores = self._same_pairs(np.setdiff1d(everyone, copies), np.array(crowded))
            known = set(map(tuple, pairs.tolist()))
            fresh = np.array([tuple(pair) not in known for pair in new_pairs.tolist()], bool)
            if not fresh.any():
                break
            pairs, scores = np.concatenate([pairs, new_pairs[fresh]]), np.concatenate([scores, new_scores[fresh]])
            groups = self._stars(pairs, scores)
        return groups

    def similar(self, same: list[Star]) -> list[Star]:
        """Groups of similar pictures, each of them the kept one of its copies; after `same`."""
        contents = self._contents
        kept = np.arange(len(contents.vectors))
        for group in same:
            kept[[row for row, _ in group.others]] = group.kept
        near = kept[np.concatenate([*self._near, np.empty((0, 2), np.int64)])]
        pairs = np.unique(np.sort(near[near[:, 0] != near[:, 1]], 1), axis=0)
        cosines = np.einsum("pd,pd->p", contents.vectors[pairs[:, 0]], contents.vectors[pairs[:, 1]])
        enough = cosines >= self._threshold
        return stars(pairs[enough], cosines[enough].clip(max=1), contents.rank, contents.apart)

    def _stars(self, pairs: np.ndarray, scores: np.ndarray) -> list[Star]:
        def check(row: int, others: list[int]) -> np.ndarray:
            rows = np.full(len(others), row)
            return self._scores(np.stack([rows, np.array(others)], 1))

        return stars(pairs, scores, self._contents.rank, self._contents.apart, check)

    def _same_pairs(self, among: np.ndarray, queries: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (P, 2) of rows of `among` that show the same picture, and their scores (P,); notes similar ones."""
        number = len(self._contents.vectors)
        # Each pair once, though both are neighbours of each other or both sources have it; 8 bytes each.
        found = [pairs.min(1) * number + pairs.max(1) for pairs in self._candidates(among, queries)]
        keys = np.unique(np.concatenate([*found, np.empty(0, np.int64)]))
        del found
        pairs: list[np.ndarray] = []
        scores: list[np.ndarray] = []
        for start in range(0, len(keys), _BLOCK):
            some = keys[start : start + _BLOCK]
            new = np.stack([some // number, some % number], 1)
            new_scores = self._scores(new)
            pairs.append(new[new_scores > 0])
            scores.append(new_scores[new_scores > 0])
            if self._progress:
                self._progress(min(start + _BLOCK, len(keys)), len(keys))
        return np.concatenate([*pairs, np.empty((0, 2), np.int64)]), np.concatenate([*scores, np.empty(0)])

    def _candidates(self, among: np.ndarray, queries: np.ndarray | None) -> Iterator[np.ndarray]:
        """Pairs of rows (P, 2), block by block."""
        contents = self._contents
        of_query = None if queries is None else np.searchsorted(among, queries)
        vectors = contents.vectors if len(among) == len(contents.vectors) else contents.vectors[among]
        for rows, found, cosines in neighbours(vectors, NEAREST, of_query):
            pairs = np.stack([among[rows], among[found]], 1)
            self._near.append(pairs[cosines >= self._threshold])
            yield pairs
        if queries is None:
            shapes = low_frequencies(contents.signatures)
            for rows, found, cosines in neighbours(shapes, NEAREST_BY_SIGNATURE):
                yield np.stack([rows, found], 1)[cosines >= MIN_SHAPES]

    def _scores(self, pairs: np.ndarray) -> np.ndarray:
        """The correlation of those pairs (P, 2) that show the same picture, else 0."""
        contents = self._contents
        first, second = pairs.T
        correlations = compare(unpack(contents.signatures[first]), unpack(contents.signatures[second])).score
        cosines = np.einsum("pd,pd->p", contents.vectors[first], contents.vectors[second])
        return np.where(self._calibration.is_same(correlations, cosines), correlations, np.float32(0))
