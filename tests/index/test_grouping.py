from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub.index.duplicates import grouping
from simclr_hub.index.duplicates.calibration import Calibration
from simclr_hub.index.duplicates.edits import crop
from simclr_hub.index.duplicates.grouping import Contents, Grouping
from simclr_hub.index.duplicates.likeness import NEIGHBOURS, likeness, thresholds
from simclr_hub.index.duplicates.stars import Star
from simclr_hub.signature import as_rows, picture_signature
from simclr_hub.whitening import Whitening

PATHS = sorted(Path(SAMPLE_PHOTOS).glob("*.jpg"))[:24]
CALIBRATION = Calibration({}, 1, 0.9, [(1, 0.6)])
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
    contents = Contents(vectors, signatures, np.arange(len(vectors)), apart or set())
    return Grouping(contents, CALIBRATION)


def pairs(stars: list[Star]) -> list[tuple[int, int]]:
    return [(star.kept, row) for star in stars for row, _ in star.others]


def test_a_grey_copy_is_found_though_the_features_lose_it(
    signatures: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "NEAREST", 1)
    copy = signature(Image.open(PATHS[5]).convert("L"))
    found = group(unrelated(len(PATHS) + 1), np.concatenate([signatures, copy])).same()
    assert pairs(found) == [(5, len(PATHS))]


def test_a_crop_is_found_through_its_features(signatures: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "MIN_SHAPES", 2.0)  # no neighbours by signature
    copies = np.concatenate([signatures, signature(crop(Image.open(PATHS[5]), 0.1, 1, 0))])
    vectors = unrelated(len(copies))
    vectors[-1] = vectors[5]
    assert pairs(group(vectors, copies).same()) == [(5, len(PATHS))]
    told: list[tuple[int, int]] = []
    Grouping(Contents(vectors, copies, np.arange(len(copies))[::-1]), CALIBRATION, lambda *n: told.append(n)).same()
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
    monkeypatch.setattr(grouping, "MIN_SHAPES", 2.0)  # no neighbours by signature
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
    monkeypatch.setattr(grouping, "MIN_SHAPES", 2.0)
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
    measured = thresholds(vectors)
    assert [size for size, _ in measured] == [300, 600, 1200, 2400]
    for size, least in measured:
        assert (scores >= least).sum() == pytest.approx(NEIGHBOURS * 300 * 300 / size / 2, abs=1.1)
    assert thresholds(vectors[:1]) == [(1, 1.0)] and len(thresholds(vectors[:3])) == 1


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
