"""Pictures into groups of the same picture, and of similar ones; on arrays, without files or a store.

A group is a star cluster, not a chain: every member was compared with the one that is kept. That A is like B and B
like C never makes C a duplicate of A; what is left of a chain becomes groups of its own.
"""

import hashlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..signature import unpack
from ..whitening import Whitening
from .compare import compare
from .neighbours import NEAREST, candidate_pairs, likeness
from .thresholds import Thresholds

#: How often the kept ones of large groups look for more at most, since their neighbours were all copies of them.
_ROUNDS = 10
#: Pairs that are compared before progress is told.
_BLOCK = 1 << 13
#: A row that was compared with so many kept ones without joining them is only kept or joined where it has a pair.
_TRIES = 16
#: Kept ones whose first comparisons are made together, of those that have a few: one takes as long as thirty.
_TOGETHER, _FEW = 256, 8

#: Compares pairs (P, 2): a score (P,) above 0 for each that goes together.
Check = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class StarCluster:
    """A group: the row that is kept, and the others with how well each agrees with it, best first."""

    kept: int
    others: list[tuple[int, float]]


class Grouping:
    """Groups N pictures.

    Args:
        vectors: float32 (N, D) of length 1, not whitened.
        signatures: uint8 (N, 455); zeros where there is none.
        rank: (N,); of two the smaller is rather kept.
        thresholds: above which two are the same, or similar.
        apart: pairs of rows, the smaller first, that must not be in one group.
        progress: called with (done, total) pairs to compare, once they are known.
    """

    def __init__(
        self,
        vectors: np.ndarray,
        signatures: np.ndarray,
        rank: np.ndarray,
        thresholds: Thresholds,
        apart: Collection[tuple[int, int]] = (),
        progress: Callable[[int, int], object] | None = None,
    ):
        self._vectors, self._signatures, self._rank = vectors, signatures, rank
        self._thresholds, self._apart, self._progress = thresholds, frozenset(apart), progress

    def same(self) -> list[StarCluster]:
        """Return groups that show the same picture."""
        # One picture in ten thousand files has more copies than anything has neighbours. So equal signatures are one
        # from the beginning, and the kept ones of large groups look for each other until they find nothing new.
        single, equal = self._equal_signatures()
        pairs, scores = self._same_pairs(single, None)
        groups = self._clusters(pairs, scores)
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

    def similar(self, same: list[StarCluster], whitening: Whitening | None = None) -> list[StarCluster]:
        """Return groups of similar pictures with their cosines, one of each picture: the kept one of its copies.

        Args:
            same: what `same` returned.
            whitening: what the vectors are compared with.
        """
        copies = np.array([row for group in same for row, _ in group.others], np.int64)
        kept = np.setdiff1d(np.arange(len(self._vectors)), copies)
        vectors = self._vectors[kept]
        if whitening:
            vectors = whitening.apply(vectors, normalize=True)
        pairs, scores = likeness(vectors)
        enough = scores >= self._thresholds.similar(len(kept))
        result = []
        for group in star_clusters(kept[pairs[enough]], scores[enough], self._rank, self._apart):
            first, *others = np.searchsorted(kept, [group.kept, *(row for row, _ in group.others)])
            cosines = (vectors[others] @ vectors[first]).tolist()
            result.append(
                StarCluster(group.kept, [(row, c) for (row, _), c in zip(group.others, cosines, strict=True)])
            )
        return result

    def _equal_signatures(self) -> tuple[np.ndarray, dict[int, list[int]]]:
        """Return rows of which no two have one signature, (M,), ascending; by row the others that have its signature.

        The one that is rather kept stands for the others. Rows that a person set apart stand for themselves.
        """
        alone = np.asarray(~self._signatures.any(1))  # none is there
        alone[[row for pair in self._apart for row in pair]] = True
        rows = np.flatnonzero(~alone)
        rows = rows[np.argsort(self._rank[rows], kind="stable")]
        # Digests rather than the signatures themselves, which sorting would copy.
        digests = [hashlib.blake2b(self._signatures[row].tobytes(), digest_size=16).digest() for row in rows]
        _, first, number = np.unique(np.array(digests, "S16"), return_index=True, return_inverse=True)
        best = rows[first[number]]
        equal: dict[int, list[int]] = {}
        for row, kept in zip(rows[rows != best].tolist(), best[rows != best].tolist(), strict=True):
            equal.setdefault(kept, []).append(row)
        return np.sort(np.concatenate([np.flatnonzero(alone), rows[first]])), equal

    def _clusters(self, pairs: np.ndarray, scores: np.ndarray) -> list[StarCluster]:
        return star_clusters(pairs, scores, self._rank, self._apart, self._scores)

    def _regrouped(
        self, groups: list[StarCluster], new: np.ndarray, pairs: np.ndarray, scores: np.ndarray
    ) -> list[StarCluster]:
        """Return the groups, made again where new pairs were found between them."""
        changed = np.zeros(len(self._vectors), bool)
        changed[new] = True
        again = [group for group in groups if changed[group.kept]]
        changed[[row for group in again for row, _ in group.others]] = True
        inside = changed[pairs].all(1)
        return [group for group in groups if not changed[group.kept]] + self._clusters(pairs[inside], scores[inside])

    def _keys(self, pairs: np.ndarray) -> np.ndarray:
        """Return each pair (P, 2) as one number, whichever row comes first."""
        keys: np.ndarray = pairs.min(1) * len(self._vectors) + pairs.max(1)
        return keys

    def _same_pairs(self, among: np.ndarray, queries: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return pairs (P, 2) of rows of `among` that show the same picture, and their scores (P,)."""
        everything = len(among) == len(self._vectors)
        candidates = candidate_pairs(
            self._vectors if everything else self._vectors[among],
            self._signatures if everything else self._signatures[among],
            None if queries is None else np.searchsorted(among, queries),
        )
        pairs = [np.empty((0, 2), np.int64)]
        scores = [np.empty(0)]
        for start in range(0, len(candidates), _BLOCK):
            new = among[candidates[start : start + _BLOCK]]
            new_scores = self._scores(new)
            pairs.append(new[new_scores > 0])
            scores.append(new_scores[new_scores > 0])
            if self._progress:
                self._progress(min(start + _BLOCK, len(candidates)), len(candidates))
        return np.concatenate(pairs), np.concatenate(scores)

    def _scores(self, pairs: np.ndarray) -> np.ndarray:
        """Return the correlation of those pairs (P, 2) that show the same picture, else 0."""
        first, second = pairs.T
        correlations = compare(unpack(self._signatures[first]), unpack(self._signatures[second])).score
        cosines = np.einsum("pd,pd->p", self._vectors[first], self._vectors[second])
        return np.where(self._thresholds.is_same(correlations, cosines), correlations, np.float32(0))


def _with_equal(groups: list[StarCluster], equal: dict[int, list[int]]) -> list[StarCluster]:
    """Add what is equal to the groups' rows; what has only equal ones becomes a group of its own."""
    left = dict(equal)
    found = []
    for group in groups:
        others = [(row, 1.0) for row in left.pop(group.kept, [])]
        for row, score in group.others:
            others += [(one, score) for one in (row, *left.pop(row, []))]
        found.append(StarCluster(group.kept, sorted(others, key=lambda other: (-other[1], other[0]))))
    return found + [StarCluster(kept, [(row, 1.0) for row in sorted(rows)]) for kept, rows in left.items()]


def star_clusters(
    pairs: np.ndarray,
    scores: np.ndarray,
    rank: np.ndarray,
    apart: Collection[tuple[int, int]],
    check: Check | None = None,
) -> list[StarCluster]:
    """Return groups of two and more.

    The work grows with the number of pairs, however they hang together: a group grows along the pairs of what fits
    it, and a row that did not fit a few of them is not tried with more.

    Args:
        pairs: rows that go together, (P, 2), each pair once.
        scores: how well, (P,).
        rank: of each row; the smallest of a group is kept.
        apart: pairs of rows, the smaller first, that are never in one group.
        check: compares rows that no pair links.
    """
    clustering = _StarClustering(pairs, scores, rank, apart, check)
    rows = np.unique(pairs)
    rows = rows[np.argsort(rank[rows], kind="stable")].tolist()
    found = []
    for start in range(0, len(rows), _TOGETHER):
        block = rows[start : start + _TOGETHER]
        clustering.look_ahead(block)
        found += [cluster for row in block if (cluster := clustering.take(row)) is not None]
    return found


class _StarClustering:
    """Rows that are still free to be grouped; arguments as of `star_clusters`."""

    def __init__(
        self,
        pairs: np.ndarray,
        scores: np.ndarray,
        rank: np.ndarray,
        apart: Collection[tuple[int, int]],
        check: Check | None,
    ):
        self._rank, self._check = rank, check
        self._apart: dict[int, set[int]] = {}
        for a, b in apart:
            self._apart.setdefault(a, set()).add(b)
            self._apart.setdefault(b, set()).add(a)
        if apart:
            allowed = np.array([b not in self._apart.get(a, ()) for a, b in pairs.tolist()], bool)
            pairs, scores = pairs[allowed], scores[allowed]
        ends = np.concatenate([pairs, pairs[:, ::-1]])
        scores = np.concatenate([scores, scores])
        order = np.lexsort((ends[:, 1], -scores, ends[:, 0]))
        number = int(ends.max()) + 1 if len(ends) else 0
        # Row i is linked with others[first[i]:first[i + 1]], the best first.
        self._others, self._scores = ends[order, 1], scores[order]
        self._first = np.searchsorted(ends[order, 0], np.arange(number + 1))
        self._free = np.ones(number, bool)
        self._tried = np.zeros(number, np.int64)
        self._passed = np.zeros(number, np.int64)  # links at the beginning that are free no more
        self._known: dict[tuple[int, int], float] = {}

    def look_ahead(self, rows: Sequence[int]) -> None:
        """Compare what each of these will first be compared with, if it stays free and that is little."""
        if self._check is None:
            return
        wanted: list[tuple[int, int]] = []
        for kept in rows:
            near = self._links(kept)[0] if self._is_free(kept) else []
            near = [row for row in near[: _FEW + 1] if self._rank[row] > self._rank[kept]]  # others are taken by then
            if len(near) <= _FEW and all(self._first[row + 1] - self._first[row] <= 2 * _FEW for row in near):
                reached = [row for row in self._reached(near, {kept, *near}) if self._rank[row] > self._rank[kept]]
                wanted += [(kept, row) for row in reached] if len(reached) <= _FEW else []
        scores = self._check(np.array(wanted)).tolist() if wanted else []
        self._known = dict(zip(wanted, scores, strict=True))

    def take(self, kept: int) -> StarCluster | None:
        """Take the group of this row, if it is free and has one; after that none of them is free."""
        if not self._is_free(kept):
            return None
        fitting = dict(zip(*self._links(kept), strict=True))
        seen = {kept, *fitting}
        newest = list(fitting)
        while self._check and (reached := self._reached(newest, seen)):
            seen.update(reached)
            new = self._compare(self._check, kept, reached)
            self._tried[[row for row in reached if row not in new]] += 1
            newest = list(new)
            fitting |= new
        self._free[kept] = False
        group = {kept}
        others = []
        for row in sorted(fitting, key=lambda row: (-fitting[row], row)):
            # Of two shots in a burst that are taken for one, each keeps its own copies.
            if self._is_closer_to_another(row, fitting) or not group.isdisjoint(self._apart.get(row, ())):
                self._tried[row] += 1
            else:
                group.add(row)
                others.append((row, fitting[row]))
        self._free[[row for row, _ in others]] = False
        return StarCluster(kept, others) if others else None

    def _is_free(self, row: int) -> bool:
        return row < len(self._free) and bool(self._free[row])

    def _links(self, row: int) -> tuple[list[int], list[float]]:
        """Return the free rows that it has a pair with, and how well they agree, best first."""
        here = slice(self._first[row], self._first[row + 1])
        free = self._free[self._others[here]]
        return self._others[here][free].tolist(), self._scores[here][free].tolist()

    def _reached(self, rows: Sequence[int], seen: set[int]) -> list[int]:
        """Return the free rows that these lead to, except those seen already or tried often enough."""
        leading = (row for row in rows if self._tried[row] < _TRIES)
        reached = dict.fromkeys(other for row in leading for other in self._links(row)[0] if other not in seen)
        return [row for row in reached if self._tried[row] < _TRIES]

    def _compare(self, check: Check, kept: int, rows: list[int]) -> dict[int, float]:
        """Compare these with the kept one; return the scores of those that agree."""
        unknown = [row for row in rows if (kept, row) not in self._known]
        scores = check(np.array([(kept, row) for row in unknown])).tolist() if unknown else []
        new = dict(zip(unknown, scores, strict=True))
        every = {row: new[row] if row in new else self._known[kept, row] for row in rows}
        return {row: score for row, score in every.items() if score > 0}

    def _is_closer_to_another(self, row: int, fitting: dict[int, float]) -> bool:
        """Tell whether it agrees better with a free row that does not fit than with the kept one."""
        at, end = int(self._first[row] + self._passed[row]), int(self._first[row + 1])
        while at < end and not self._free[self._others[at]]:
            at += 1
        self._passed[row] = at - self._first[row]
        while at < end and self._scores[at] > fitting[row]:
            other = int(self._others[at])
            if self._free[other] and other not in fitting:
                return True
            at += 1
        return False
