"""Contents into groups of the same picture, and of similar ones; on arrays, without files or a store.

Unusual: one picture in ten thousand files has more copies than anything has neighbours. Equal signatures are one from
the beginning; then the kept ones of large groups look for each other among what is left, until they find nothing new.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from ...signature import unpack
from ...whitening import Whitening
from .calibration import Calibration
from .candidates import neighbours, shapes
from .likeness import likeness
from .same_picture import compare
from .stars import Star, stars

#: Nearest neighbours that are compared with each picture: by features, by signature.
NEAREST, NEAREST_BY_SIGNATURE = 16, 8
#: Cosine of two signatures' low frequencies below which they are not compared.
MIN_SHAPES = 0.7
#: How often what is kept of large groups looks for more, at most: its neighbours were all copies of it.
_ROUNDS = 10
#: Pairs that are compared before progress is told.
_BLOCK = 1 << 13


@dataclass(frozen=True)
class Contents:
    """What is to be grouped, each content once.

    Attributes:
        vectors: float32 (N, D) of length 1, as the model gave them.
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

    def same(self) -> list[Star]:
        """Groups that show the same picture."""
        single, equal = _equal(self._contents)
        pairs, scores = self._same_pairs(single, None)
        groups = self._stars(pairs, scores)
        for _ in range(_ROUNDS):
            crowded = [group.kept for group in groups if len(group.others) >= NEAREST // 2]
            copies = [row for group in groups for row, _ in group.others]
            new, new_scores = self._same_pairs(np.setdiff1d(single, copies), np.array(crowded, np.int64))
            fresh = ~np.isin(self._keys(new), self._keys(pairs))
            if not fresh.any():
                break
            pairs, scores = np.concatenate([pairs, new[fresh]]), np.concatenate([scores, new_scores[fresh]])
            groups = self._regrouped(groups, new[fresh], pairs, scores)
        return _with_equal(groups, equal)

    def similar(self, same: list[Star], whitening: Whitening | None = None) -> list[Star]:
        """Groups of similar pictures with their cosines, each of them the kept one of its copies; after `same`.

        Args:
            same: what `same` gave.
            whitening: that the vectors are compared with.
        """
        contents = self._contents
        copies = np.array([row for group in same for row, _ in group.others], np.int64)
        kept = np.setdiff1d(np.arange(len(contents.vectors)), copies)
        vectors = contents.vectors[kept]
        if whitening:
            vectors = whitening.apply(vectors, normalize=True)
        pairs, scores = likeness(vectors)
        enough = scores >= self._calibration.similar(len(kept))
        found = stars(kept[pairs[enough]], scores[enough], contents.rank, contents.apart)
        result = []
        for star in found:
            first, *others = np.searchsorted(kept, [star.kept, *(row for row, _ in star.others)])
            cosines = (vectors[others] @ vectors[first]).tolist()
            result.append(Star(star.kept, [(row, c) for (row, _), c in zip(star.others, cosines, strict=True)]))
        return result

    def _stars(self, pairs: np.ndarray, scores: np.ndarray) -> list[Star]:
        return stars(pairs, scores, self._contents.rank, self._contents.apart, self._scores)

    def _regrouped(self, groups: list[Star], new: np.ndarray, pairs: np.ndarray, scores: np.ndarray) -> list[Star]:
        """Return the groups, made again where new pairs were found between them."""
        changed = np.zeros(len(self._contents.vectors), bool)
        changed[new] = True
        again = [group for group in groups if changed[group.kept]]
        changed[[row for group in again for row, _ in group.others]] = True
        inside = changed[pairs].all(1)
        return [group for group in groups if not changed[group.kept]] + self._stars(pairs[inside], scores[inside])

    def _keys(self, pairs: np.ndarray) -> np.ndarray:
        """Return each pair (P, 2) as one number, whichever row comes first."""
        keys: np.ndarray = pairs.min(1) * len(self._contents.vectors) + pairs.max(1)
        return keys

    def _same_pairs(self, among: np.ndarray, queries: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Pairs (P, 2) of rows of `among` that show the same picture, and their scores (P,)."""
        number = len(self._contents.vectors)
        # Each pair once, though both are neighbours of each other or both sources have it; 8 bytes each.
        found = [self._keys(pairs) for pairs in self._candidates(among, queries)]
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
        for rows, found, _ in neighbours(vectors, NEAREST, of_query):
            yield np.stack([among[rows], among[found]], 1)
        for rows, found, cosines in neighbours(shapes(contents.signatures[among]), NEAREST_BY_SIGNATURE, of_query):
            yield np.stack([among[rows], among[found]], 1)[cosines >= MIN_SHAPES]

    def _scores(self, pairs: np.ndarray) -> np.ndarray:
        """The correlation of those pairs (P, 2) that show the same picture, else 0."""
        contents = self._contents
        first, second = pairs.T
        correlations = compare(unpack(contents.signatures[first]), unpack(contents.signatures[second])).score
        cosines = np.einsum("pd,pd->p", contents.vectors[first], contents.vectors[second])
        return np.where(self._calibration.is_same(correlations, cosines), correlations, np.float32(0))


def _equal(contents: Contents) -> tuple[np.ndarray, dict[int, list[int]]]:
    """Rows of which no two have one signature, (M,), ascending; and by row the others that have its signature.

    The one that is rather kept stands for the others. Rows that a person set apart stand for themselves.
    """
    alone = np.asarray(~contents.signatures.any(1))  # none is there
    alone[[row for pair in contents.apart for row in pair]] = True
    rows = np.flatnonzero(~alone)
    rows = rows[np.argsort(contents.rank[rows], kind="stable")]
    # Digests rather than the signatures themselves, which sorting would copy.
    digests = [hashlib.blake2b(contents.signatures[row].tobytes(), digest_size=16).digest() for row in rows]
    _, first, number = np.unique(np.array(digests, "S16"), return_index=True, return_inverse=True)
    best = rows[first[number]]
    equal: dict[int, list[int]] = {}
    for row, kept in zip(rows[rows != best].tolist(), best[rows != best].tolist(), strict=True):
        equal.setdefault(kept, []).append(row)
    return np.sort(np.concatenate([np.flatnonzero(alone), rows[first]])), equal


def _with_equal(groups: list[Star], equal: dict[int, list[int]]) -> list[Star]:
    """Add what is equal to the groups' rows; what has only equal ones becomes a group of its own."""
    left = dict(equal)
    found = []
    for group in groups:
        others = [(row, 1.0) for row in left.pop(group.kept, [])]
        for row, score in group.others:
            others += [(one, score) for one in (row, *left.pop(row, []))]
        found.append(Star(group.kept, sorted(others, key=lambda other: (-other[1], other[0]))))
    return found + [Star(kept, [(row, 1.0) for row in sorted(rows)]) for kept, rows in left.items()]
