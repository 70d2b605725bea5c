import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclr_hub.duplicates.grouping import StarCluster, star_clusters


def group(pairs, rank=None, apart=(), check=None, scores=None):
    count = 1 + max(max(pair) for pair in pairs)
    rank = np.arange(count) if rank is None else np.array(rank)
    scores = np.full(len(pairs), 0.99) if scores is None else np.array(scores)
    return star_clusters(np.array(pairs), scores, rank, set(apart), check)


def nobody(pairs):
    return np.zeros(len(pairs))


def test_a_chain_is_not_a_group():
    # 0 is like 1, 1 like 2, 2 like 3; 2 and 3 are not like 0
    assert group([(0, 1), (1, 2), (2, 3)], check=nobody) == [StarCluster(0, [(1, 0.99)]), StarCluster(2, [(3, 0.99)])]


def test_one_between_two_goes_with_the_nearer() -> None:
    """0 and 1 are two shots of a burst, 2 is a copy of 1 that is not like 0."""
    assert group([(0, 1), (1, 2)], scores=[0.96, 0.999], check=nobody) == [StarCluster(1, [(2, 0.999)])]
    assert group([(0, 1), (1, 2)], scores=[0.999, 0.96], check=nobody) == [StarCluster(0, [(1, 0.999)])]
    # Each keeps its copies.
    pairs, scores = [(0, 1), (1, 2), (0, 3)], [0.96, 0.999, 0.998]
    assert group(pairs, scores=scores, check=nobody) == [StarCluster(0, [(3, 0.998)]), StarCluster(1, [(2, 0.999)])]


def test_the_best_is_kept_and_others_are_ordered():
    found = group([(0, 2), (1, 2)], rank=[2, 1, 0], scores=[0.98, 0.99])
    assert found == [StarCluster(2, [(1, 0.99), (0, 0.98)])]


def test_what_no_pair_links_is_compared_with_the_kept_one():
    asked = []

    def check(pairs):
        asked.extend(pairs.tolist())
        return np.full(len(pairs), 0.985)

    assert group([(0, 1), (1, 2)], check=check) == [StarCluster(0, [(1, 0.99), (2, 0.985)])]
    assert asked == [[0, 2]]


def test_pairs_that_were_set_apart_never_meet():
    triangle = [(0, 1), (0, 2), (1, 2)]
    assert group(triangle, apart=[(0, 1)]) == [StarCluster(0, [(2, 0.99)])]
    # Both are like the kept one; the less sure of them goes.
    assert group(triangle, apart=[(1, 2)], scores=[0.97, 0.99, 0.99]) == [StarCluster(0, [(2, 0.99)])]
    assert group([(0, 1)], apart=[(0, 1)]) == []
    # 1 agrees better with 2, but was called different from it.
    assert group([(0, 1), (1, 2)], apart=[(1, 2)], scores=[0.97, 0.99], check=nobody) == [StarCluster(0, [(1, 0.97)])]


@given(
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] < p[1]), min_size=1),
    st.permutations(range(10)),
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] < p[1])),
)
def test_every_member_goes_with_the_kept_one(pairs, rank, apart):
    found = group([*sorted(pairs), (8, 9)], rank=rank, apart=apart, check=nobody)
    linked = pairs | {(8, 9)}
    seen = [row for star in found for row in (star.kept, *(row for row, _ in star.others))]
    assert len(seen) == len(set(seen))
    for star in found:
        rows = [star.kept, *(row for row, _ in star.others)]
        assert len(rows) > 1 and all(rank[star.kept] < rank[row] for row in rows[1:])
        assert all((min(star.kept, row), max(star.kept, row)) in linked for row in rows[1:])
        assert not any((min(a, b), max(a, b)) in apart for a in rows for b in rows if a != b)


@contextmanager
def counted_lines() -> Iterator[list[int]]:
    """How many lines of the module run: what a clock says, without the noise."""
    count = [0]

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.endswith("grouping.py"):
            return None
        count[0] += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(before)


def chain(count: int) -> np.ndarray:
    return np.stack([np.arange(count - 1), np.arange(1, count)], 1)


def around(centre: int, count: int) -> np.ndarray:
    return np.array([(centre, row) for row in range(count) if row != centre])


def beside_pairs(count: int) -> tuple[np.ndarray, set[tuple[int, int]]]:
    """0 and 1, 2 and 3, ... are copies; the last is like the first of each, and was called different from its copy."""
    firsts, last = np.arange(0, count - 1, 2), count + count % 2
    pairs = np.concatenate([np.stack([firsts, np.full(len(firsts), last)], 1), np.stack([firsts, firsts + 1], 1)])
    return pairs, {(int(row) + 1, last) for row in firsts}


#: Pairs, and pairs set apart, of so many contents.
GROWING: dict[str, Callable[[int], tuple[np.ndarray, set[tuple[int, int]]]]] = {
    "chain": lambda count: (chain(count), set()),
    "star with a different pair": lambda count: (around(0, count), {(1, 2)}),
    "star with many different pairs": lambda count: (
        around(0, count),
        {(row, row + 1) for row in range(1, count - 1)},
    ),
    "beside pairs": beside_pairs,
    "copies of the worst, each better with the next": lambda count: (around(count - 1, count), set()),
}


@pytest.mark.parametrize("rising", [False, True])
@pytest.mark.parametrize("case", GROWING)
def test_the_work_grows_with_the_pairs_and_not_with_their_square(case: str, rising: bool) -> None:
    work = []
    for count in (300, 1200):
        pairs, apart = GROWING[case](count)
        scores = np.linspace(0.96, 0.99, len(pairs)) if rising else np.linspace(0.99, 0.96, len(pairs))
        if case == "beside pairs":
            scores[len(pairs) // 2 :] = 0.995
        asked = [0]

        def nobody(some: np.ndarray, asked: list[int] = asked) -> np.ndarray:
            asked[0] += len(some)
            return np.zeros(len(some))

        with counted_lines() as lines:
            star_clusters(pairs, scores, np.arange(count + 2), apart, nobody)
        assert asked[0] <= 17 * count
        work.append(lines[0])
    assert work[1] < 6 * work[0]  # 16 times if it were the square


@pytest.mark.parametrize("apart", [set(), {(0, 5), (3, 4)}])
def test_one_picture_is_one_group_though_few_of_its_copies_were_compared(apart: set[tuple[int, int]]) -> None:
    random = np.random.default_rng(0)
    pairs = np.stack([np.repeat(np.arange(3000), 4), random.integers(0, 3000, 12000)], 1)
    pairs = np.unique(np.sort(pairs, 1), axis=0)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    asked = [0, 0]

    def check(some: np.ndarray) -> np.ndarray:
        asked[0] += len(some)
        asked[1] += 1
        return np.full(len(some), 0.98)

    found = star_clusters(pairs, random.uniform(0.97, 0.99, len(pairs)), np.arange(3000), apart, check)
    assert [(star.kept, len(star.others)) for star in found] == [(0, 2999 - len(apart))]
    assert asked[0] < 3000 + 100 and asked[1] < 15


def test_comparisons_are_made_many_at_a_time() -> None:
    asked = [0]

    def nobody(some: np.ndarray) -> np.ndarray:
        asked[0] += 1
        return np.zeros(len(some))

    assert len(star_clusters(chain(2000), np.full(1999, 0.99), np.arange(2000), set(), nobody)) == 1000
    assert asked[0] < 20
