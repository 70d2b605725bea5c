"""Pairs to groups in which every member was itself compared with the one that is kept.

Unusual: a group is a star, not a chain: that A is like B and B like C never makes C a duplicate of A. What is left of
a chain becomes groups of its own; B goes with C if it agrees better with C, so that of two shots in a burst that are
taken for one, each keeps its own copies.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

#: In a longer chain only so many are compared with the kept one beyond those that were already.
_MOST_CHECKED = 1000


@dataclass(frozen=True)
class Star:
    """A group: the row that is kept, and the others with how well each agrees with it, best first."""

    kept: int
    others: list[tuple[int, float]]


def stars(
    pairs: np.ndarray,
    scores: np.ndarray,
    rank: np.ndarray,
    apart: set[tuple[int, int]],
    check: Callable[[int, list[int]], np.ndarray] | None = None,
) -> list[Star]:
    """Groups of two and more.

    Args:
        pairs: rows that go together, (P, 2).
        scores: how well, (P,).
        rank: of each row; the smallest of a group is kept.
        apart: pairs of rows, the smaller first, that are never in one group.
        check: compares a row with others: a score above 0 for each that goes together with it.
    """
    linked: dict[int, dict[int, float]] = {}
    for (a, b), score in zip(pairs.tolist(), scores.tolist(), strict=True):
        if _are_apart(a, [b], apart):
            continue
        linked.setdefault(a, {})[b] = score
        linked.setdefault(b, {})[a] = score
    groups = []
    for chain in _chains(linked):
        rest = sorted(chain, key=lambda row: int(rank[row]))
        while len(rest) > 1:
            kept, rest = rest[0], rest[1:]
            fitting = {row: linked[kept][row] for row in rest if row in linked[kept]}
            unknown = [row for row in rest if row not in fitting][:_MOST_CHECKED]
            if check and unknown:
                found = check(kept, unknown).tolist()
                fitting |= {row: score for row, score in zip(unknown, found, strict=True) if score > 0}
            left = set(rest) - fitting.keys()
            members: list[tuple[int, float]] = []
            for row in sorted(fitting, key=lambda row: (-fitting[row], row)):
                closer = any(score > fitting[row] for other, score in linked[row].items() if other in left)
                if not closer and not _are_apart(row, [kept, *(member for member, _ in members)], apart):
                    members.append((row, fitting[row]))
            if members:
                groups.append(Star(kept, members))
                taken = {row for row, _ in members}
                rest = [row for row in rest if row not in taken]
    return groups


def _are_apart(row: int, others: Iterable[int], apart: set[tuple[int, int]]) -> bool:
    return bool(apart) and any((min(row, other), max(row, other)) in apart for other in others)


def _chains(linked: dict[int, dict[int, float]]) -> list[list[int]]:
    """The connected components."""
    seen: set[int] = set()
    chains = []
    for start in linked:
        if start in seen:
            continue
        seen.add(start)
        chain = [start]
        for row in chain:  # grows
            new = linked[row].keys() - seen
            seen |= new
            chain.extend(new)
        chains.append(chain)
    return chains
