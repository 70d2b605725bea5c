import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub.duplicates import grouping, neighbours
from simclr_hub.duplicates.calibrate import crop
from simclr_hub.duplicates.grouping import Grouping, StarCluster, star_clusters
from simclr_hub.duplicates.neighbours import likeness
from simclr_hub.duplicates.thresholds import SIMILAR_NEIGHBOURS, Thresholds, similar_from
from simclr_hub.signature import as_rows, picture_signature
from simclr_hub.whitening import Whitening

PATHS = sorted(Path(SAMPLE_PHOTOS).glob("*.jpg"))[:24]
THRESHOLDS = Thresholds({}, 1, 0.9, [(1, 0.6)])
SMALL = 0.3  # between unrelated vectors


def signature(image: Image.Image) -> np.ndarray:
    return as_rows([picture_signature(np.array(image.convert("RGB")).transpose(2, 0, 1))])


@pytest.fixture(scope="module")
def signatures() -> np.ndarray:
    return np.concatenate([signature(Image.open(path)) for path in PATHS])


def unrelated(count: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, 200), np.float32)
    result: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


def group(vectors: np.ndarray, signatures: np.ndarray, apart: set[tuple[int, int]] | None = None) -> Grouping:
    return Grouping(vectors, signatures, np.arange(len(vectors)), THRESHOLDS, apart or set())


def pairs(stars: list[StarCluster]) -> list[tuple[int, int]]:
    return [(star.kept, row) for star in stars for row, _ in star.others]


def test_a_grey_copy_is_found_though_the_features_lose_it(
    signatures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(neighbours, "NEAREST", 1)
    copy = signature(Image.open(PATHS[5]).convert("L"))
    found = group(unrelated(len(PATHS) + 1), np.concatenate([signatures, copy])).same()
    assert pairs(found) == [(5, len(PATHS))]


def test_a_crop_is_found_through_its_features(signatures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MIN_SIGNATURE_COSINE", 2.0)  # no neighbours by signature
    copies = np.concatenate([signatures, signature(crop(Image.open(PATHS[5]), 0.1, 1, 0))])
    vectors = unrelated(len(copies))
    vectors[-1] = vectors[5]
    assert pairs(group(vectors, copies).same()) == [(5, len(PATHS))]
    told: list[tuple[int, int]] = []
    tell = lambda *n: told.append(n)  # noqa: E731
    Grouping(vectors, copies, np.arange(len(copies))[::-1], THRESHOLDS, progress=tell).same()
    assert told and told[-1][0] == told[-1][1] >= len(PATHS)


def test_similar_ones_are_of_what_is_kept(signatures: np.ndarray) -> None:
    # 0, 1 and 2 are similar pictures; the last is a copy of 1.
    rows = np.concatenate([signatures, signatures[1:2]])
    vectors = unrelated(len(rows))
    for row in (1, 2):
        vectors[row] = vectors[0] + SMALL * vectors[row]
    vectors[-1] = vectors[1]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    grouping_ = group(vectors, rows)
    same = grouping_.same()
    assert pairs(same) == [(1, len(PATHS))]
    assert sorted(pairs(grouping_.similar(same))) == [(0, 1), (0, 2)]
    apart = group(vectors, rows, {(0, 1), (1, 2)})
    assert pairs(apart.similar(apart.same())) == [(0, 2)]


def test_equal_signatures_are_one_picture_however_many() -> None:
    one = signature(Image.open(PATHS[0]))
    found = group(unrelated(40), np.repeat(one, 40, 0)).same()
    assert len(found) == 1 and len(found[0].others) == 39


def test_groups_that_neighbours_do_not_link_are_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "MIN_SIGNATURE_COSINE", 2.0)  # no neighbours by signature
    one = signature(Image.open(PATHS[0]))
    # Two crowds: the nearest of each are all of its own.
    vectors = np.repeat(unrelated(2), 20, 0) + 0.01 * unrelated(40)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    found = group(vectors, np.repeat(one, 40, 0)).same()
    assert len(found) == 1 and len(found[0].others) == 39


def noisy(one: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """Signatures of copies that were re-encoded: no two are equal."""
    rows = np.repeat(one, count, 0)
    rows[:, 5:] = (rows[:, 5:] + np.random.default_rng(seed).integers(-1, 2, (count, rows.shape[1] - 5))).clip(0, 255)
    return rows


def near(vector: np.ndarray, count: int, by: float) -> np.ndarray:
    vectors = vector + by * np.random.default_rng(1).standard_normal((count, len(vector))).astype(np.float32)
    result: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


@pytest.mark.parametrize("apart", [set(), {(3, 400)}])
def test_each_picture_is_one_group_whatever_the_number_of_its_copies(
    signatures: np.ndarray, apart: set[tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures, 500 copies of each in 25 tight crowds: nobody's neighbours are of another crowd."""
    monkeypatch.setattr(neighbours, "MIN_SIGNATURE_COSINE", 2.0)
    compared = []
    compare = grouping.compare
    monkeypatch.setattr(grouping, "compare", lambda a, b: compared.append(len(a)) or compare(a, b))
    vectors = np.concatenate([np.repeat(near(one, 25, 0.02), 20, 0) for one in unrelated(2)])
    vectors = np.concatenate([near(one, 1, 1e-4) for one in vectors])
    rows = np.concatenate([noisy(signatures[0:1], 500), noisy(signatures[1:2], 500, 1)])
    found = group(vectors, rows, apart).same()
    assert sorted((star.kept, len(star.others)) for star in found) == [(0, 499 - len(apart)), (500, 499)]
    assert sum(compared) < 30 * len(rows)


def test_equal_signatures_are_never_compared_and_stay_with_their_picture(
    signatures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = []
    compare = grouping.compare
    monkeypatch.setattr(grouping, "compare", lambda a, b: compared.append(len(a)) or compare(a, b))
    rows = np.concatenate([np.repeat(signatures[:1], 300, 0), np.repeat(noisy(signatures[:1], 1), 300, 0)])
    found = group(unrelated(600), rows).same()
    assert [(star.kept, len(star.others)) for star in found] == [(0, 599)] and sum(compared) == 1
    scores = dict(found[0].others)
    assert scores[299] == 1 > scores[300] == scores[599]
    # A file without a signature is like nothing.
    assert not group(unrelated(5), np.zeros((5, rows.shape[1]), np.uint8)).same()


def test_files_that_a_person_set_apart_are_not_one_for_being_equal() -> None:
    fog = signature(Image.fromarray(np.random.default_rng(0).integers(90, 110, (30, 40, 3), np.uint8)))
    rows = np.repeat(fog, 40, 0)
    # 1 and 2 differ from 0, but not from each other.
    found = group(unrelated(40), rows, {(0, 1), (0, 2)}).same()
    assert [(star.kept, len(star.others)) for star in found] == [(0, 37), (1, 1)]


def test_blank_pages_are_one_group_a_colour_and_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = [
        signature(Image.new("RGB", size, (level, level, 255)))
        for level in (255, 254, 200, 0)
        for size in ((60, 40), (66, 44), (40, 40))
    ]
    rows = np.concatenate(pages * 50)
    found = group(near(unrelated(1)[0], len(rows), 1e-4), rows).same()
    assert sorted(len(star.others) + 1 for star in found) == [50, 50, 100, 100, 100, 200]


def test_likeness_is_the_cosine_less_half_of_what_each_has_with_its_nearest() -> None:
    vectors = unrelated(40)
    vectors[20:] = near(vectors[20], 20, 0.05)  # of these every one is like every other
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    crowd = np.sort(cosines)[:, :-11:-1].mean(1)
    found, scores = likeness(vectors)
    a, b = found.T
    assert (a < b).all() and len(np.unique(found, axis=0)) == len(found)
    np.testing.assert_allclose(scores, cosines[a, b] - (crowd[a] + crowd[b]) / 4, atol=1e-5)
    wanted = {(min(i, int(j)), max(i, int(j))) for i in range(40) for j in np.argsort(-cosines[i])[:16]}
    assert set(map(tuple, found.tolist())) == wanted
    for few in (vectors[:0], vectors[:1]):
        assert [len(column) for column in likeness(few)] == [0, 0]
    assert likeness(vectors[:2])[0].tolist() == [[0, 1]]


def test_what_is_similar_is_rarer_than_a_threshold_and_in_more_photos_rarer_still() -> None:
    vectors = unrelated(300)
    _, scores = likeness(vectors)
    measured = similar_from(vectors)
    assert [size for size, _ in measured] == [300, 600, 1200, 2400]
    for size, least in measured:
        assert (scores >= least).sum() == pytest.approx(SIMILAR_NEIGHBOURS * 300 * 300 / size / 2, abs=1.1)
    assert similar_from(vectors[:1]) == [(1, 1.0)] and len(similar_from(vectors[:3])) == 1


def test_only_similar_ones_are_compared_whitened(signatures: np.ndarray) -> None:
    """3 and 7 are alike in what the whitening keeps."""
    vectors = unrelated(len(signatures))
    vectors[7, :100] = vectors[3, :100]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    whitening = Whitening(np.zeros(200, np.float32), np.eye(200, 100, dtype=np.float32), "h", "nothing", 2, 0.1)
    found = group(vectors, signatures)
    assert found.similar([]) == []
    (star,) = found.similar([], whitening)
    assert (star.kept, star.others) == (3, [(7, pytest.approx(1))])


def cluster(pairs, rank=None, apart=(), check=None, scores=None):
    count = 1 + max(max(pair) for pair in pairs)
    rank = np.arange(count) if rank is None else np.array(rank)
    scores = np.full(len(pairs), 0.99) if scores is None else np.array(scores)
    found = star_clusters(np.array(pairs), scores, rank, set(apart), check)
    return [(group.kept, group.others) for group in found]


def nobody(pairs):
    return np.zeros(len(pairs))


def test_a_chain_is_not_a_group():
    # 0 is like 1, 1 like 2, 2 like 3; 2 and 3 are not like 0
    assert cluster([(0, 1), (1, 2), (2, 3)], check=nobody) == [
        (0, [(1, 0.99)]),
        (2, [(3, 0.99)]),
    ]


def test_one_between_two_goes_with_the_nearer() -> None:
    """0 and 1 are two shots of a burst, 2 is a copy of 1 that is not like 0."""
    assert cluster([(0, 1), (1, 2)], scores=[0.96, 0.999], check=nobody) == [(1, [(2, 0.999)])]
    assert cluster([(0, 1), (1, 2)], scores=[0.999, 0.96], check=nobody) == [(0, [(1, 0.999)])]
    # Each keeps its copies.
    pairs, scores = [(0, 1), (1, 2), (0, 3)], [0.96, 0.999, 0.998]
    assert cluster(pairs, scores=scores, check=nobody) == [(0, [(3, 0.998)]), (1, [(2, 0.999)])]


def test_the_best_is_kept_and_others_are_ordered():
    found = cluster([(0, 2), (1, 2)], rank=[2, 1, 0], scores=[0.98, 0.99])
    assert found == [(2, [(1, 0.99), (0, 0.98)])]


def test_what_no_pair_links_is_compared_with_the_kept_one():
    asked = []

    def check(pairs):
        asked.extend(pairs.tolist())
        return np.full(len(pairs), 0.985)

    assert cluster([(0, 1), (1, 2)], check=check) == [(0, [(1, 0.99), (2, 0.985)])]
    assert asked == [[0, 2]]


def test_pairs_that_were_set_apart_never_meet():
    triangle = [(0, 1), (0, 2), (1, 2)]
    assert cluster(triangle, apart=[(0, 1)]) == [(0, [(2, 0.99)])]
    # Both are like the kept one; the less sure of them goes.
    assert cluster(triangle, apart=[(1, 2)], scores=[0.97, 0.99, 0.99]) == [(0, [(2, 0.99)])]
    assert cluster([(0, 1)], apart=[(0, 1)]) == []
    # 1 agrees better with 2, but was called different from it.
    assert cluster([(0, 1), (1, 2)], apart=[(1, 2)], scores=[0.97, 0.99], check=nobody) == [(0, [(1, 0.97)])]


@given(
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] < p[1]), min_size=1),
    st.permutations(range(10)),
    st.sets(st.tuples(st.integers(0, 9), st.integers(0, 9)).filter(lambda p: p[0] < p[1])),
)
def test_every_member_goes_with_the_kept_one(pairs, rank, apart):
    found = cluster([*sorted(pairs), (8, 9)], rank=rank, apart=apart, check=nobody)
    linked = pairs | {(8, 9)}
    seen = [row for kept, others in found for row in (kept, *(row for row, _ in others))]
    assert len(seen) == len(set(seen))
    for kept, others in found:
        rows = [kept, *(row for row, _ in others)]
        assert len(rows) > 1 and all(rank[kept] < rank[row] for row in rows[1:])
        assert all((min(kept, row), max(kept, row)) in linked for row in rows[1:])
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
