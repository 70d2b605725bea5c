import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simclr_hub.index.duplicates.stars import Star, stars


def group(pairs, rank=None, apart=(), check=None, scores=None):
    count = 1 + max(max(pair) for pair in pairs)
    rank = np.arange(count) if rank is None else np.array(rank)
    scores = np.full(len(pairs), 0.99) if scores is None else np.array(scores)
    return stars(np.array(pairs), scores, rank, set(apart), check)


def nobody(row, others):
    return np.zeros(len(others))


def test_a_chain_is_not_a_group():
    # 0 is like 1, 1 like 2, 2 like 3; 2 and 3 are not like 0
    assert group([(0, 1), (1, 2), (2, 3)], check=nobody) == [Star(0, [(1, 0.99)]), Star(2, [(3, 0.99)])]


def test_one_between_two_goes_with_the_nearer() -> None:
    """0 and 1 are two shots of a burst, 2 is a copy of 1 that is not like 0."""
    assert group([(0, 1), (1, 2)], scores=[0.96, 0.999], check=nobody) == [Star(1, [(2, 0.999)])]
    assert group([(0, 1), (1, 2)], scores=[0.999, 0.96], check=nobody) == [Star(0, [(1, 0.999)])]
    # Each keeps its copies.
    pairs, scores = [(0, 1), (1, 2), (0, 3)], [0.96, 0.999, 0.998]
    assert group(pairs, scores=scores, check=nobody) == [Star(0, [(3, 0.998)]), Star(1, [(2, 0.999)])]


def test_the_best_is_kept_and_others_are_ordered():
    found = group([(0, 2), (1, 2)], rank=[2, 1, 0], scores=[0.98, 0.99])
    assert found == [Star(2, [(1, 0.99), (0, 0.98)])]


def test_what_no_pair_links_is_compared_with_the_kept_one():
    asked = []

    def check(row, others):
        asked.append((row, others))
        return np.array([0.985] * len(others))

    assert group([(0, 1), (1, 2)], check=check) == [Star(0, [(1, 0.99), (2, 0.985)])]
    assert asked == [(0, [2])]


def test_pairs_that_were_set_apart_never_meet():
    triangle = [(0, 1), (0, 2), (1, 2)]
    assert group(triangle, apart=[(0, 1)]) == [Star(0, [(2, 0.99)])]
    # Both are like the kept one; the less sure of them goes.
    assert group(triangle, apart=[(1, 2)], scores=[0.97, 0.99, 0.99]) == [Star(0, [(2, 0.99)])]
    assert group([(0, 1)], apart=[(0, 1)]) == []
    # 1 agrees better with 2, but was called different from it.
    assert group([(0, 1), (1, 2)], apart=[(1, 2)], scores=[0.97, 0.99], check=nobody) == [Star(0, [(1, 0.97)])]


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
