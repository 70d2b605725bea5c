"""Pairs to groups in which every member was itself compared with the one that is kept.

Unusual: a group is a star, not a chain: that A is like B and B like C never makes C a duplicate of A. What is left of
a chain becomes groups of its own; B goes with C if it agrees better with C, so that of two shots in a burst that are
taken for one, each keeps its own copies. The work grows with the number of pairs, however they hang together: a star
grows along the pairs of what fits it, and who did not fit a few of them is not tried with more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

#: With so many kept ones, beside those that it has a pair with, a row is compared without joining them.
_TRIES = 16
#: Kept ones at a time whose first comparisons are made together, where each has a few: for one pair a comparison takes
#: as long as for thirty.
_TOGETHER, _FEW = 256, 8

#: Compares pairs (P, 2): a score (P,) above 0 for each that goes together.
Check = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Star:
    """A group: the row that is kept, and the others with how well each agrees with it, best first."""

    kept: int
    others: list[tuple[int, float]]


def stars(
    pairs: np.ndarray, scores: np.ndarray, rank: np.ndarray, apart: set[tuple[int, int]], check: Check | None = None
) -> list[Star]:
    """Groups of two and more.

    Args:
        pairs: rows that go together, (P, 2), each pair once.
        scores: how well, (P,).
        rank: of each row; the smallest of a group is kept.
        apart: pairs of rows, the smaller first, that are never in one group.
        check: compares rows that no pair links.
    """
    sky = _Sky(pairs, scores, rank, apart, check)
    rows = np.unique(pairs)
    rows = rows[np.argsort(rank[rows], kind="stable")].tolist()
    found = []
    for start in range(0, len(rows), _TOGETHER):
        block = rows[start : start + _TOGETHER]
        sky.look_ahead(block)
        found += [star for row in block if (star := sky.star(row)) is not None]
    return found


class _Sky:
    """Hold what is still free to be grouped."""

    def __init__(
        self,
        pairs: np.ndarray,
        scores: np.ndarray,
        rank: np.ndarray,
        apart: set[tuple[int, int]],
        check: Check | None,
    ):
        self._rank, self._check = rank, check
        self._apart: dict[int, set[int]] = {}
        for a, b in apart:
            self._apart.setdefault(a, set()).add(b)
            self._apart.setdefault(b, set()).add(a)
        if apart:
            allowed = np.array([(min(a, b), max(a, b)) not in apart for a, b in pairs.tolist()], bool)
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

    def star(self, kept: int) -> Star | None:
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
            if self._is_closer_to_another(row, fitting) or not group.isdisjoint(self._apart.get(row, ())):
                self._tried[row] += 1
            else:
                group.add(row)
                others.append((row, fitting[row]))
        self._free[[row for row, _ in others]] = False
        return Star(kept, others) if others else None

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
        """Return whether it agrees better with a free row that does not fit than with the kept one."""
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
