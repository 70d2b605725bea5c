"""What a score means beside the index's own pairs."""

from pathlib import Path

import numpy as np
import pytest
from index_fakes import DIM, FakeEmbedder, put_vectors

from simclr_hub.index import SimilarityIndex
from simclr_hub.index.search import ann
from simclr_hub.index.search.ann import CosineSample, sample_cosines
from simclr_hub.index.search.arrays import CheckedArray
from simclr_hub.index.search.find import tell_share


def unit(number: int, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(0).normal(size=(number, dim)).astype(np.float32)
    result: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


@pytest.mark.parametrize("number", [15, 60, 300])
def test_a_share_of_all_pairs_in_a_small_index(index: SimilarityIndex, number: int) -> None:
    vectors = put_vectors(index, number)
    cosines = (vectors @ vectors.T)[np.triu_indices(number, 1)]
    query = np.ones(DIM)
    for match in index.search(query, k=number):
        assert match.closer_than == pytest.approx(np.mean(cosines < match.score), abs=1e-3)
    with index._store.writing():
        index._write_cache()
    with SimilarityIndex.open(index._store.file.parent, model=FakeEmbedder()) as again:  # from the cache
        assert "pairs.ranks" in again._current().segments[0].file  # type: ignore[operator]
        assert again.search(query, k=number) == index.search(query, k=number)


def test_too_few_pairs_tell_nothing(index: SimilarityIndex) -> None:
    put_vectors(index, 14)
    assert {match.closer_than for match in index.search(np.ones(DIM))} == {None}


def test_never_closer_than_all() -> None:
    vectors = unit(200)
    for sample in (sample_cosines(CheckedArray(vectors)), sample_cosines(CheckedArray(unit(3000)))):
        (most, least) = sample.closer_than(np.array([1.1, -1.1], np.float32))
        assert least == 0 and most is not None and 0.9999 < most < 1


def test_equal_pairs_are_not_less_alike() -> None:
    known = CosineSample(CheckedArray(np.array([0, 0.5, 0.5, 1], np.float32)), CheckedArray(np.arange(4)))
    assert known.closer_than(np.array([-1, 0, 0.5, 0.7, 1], np.float32)) == [0, 0, 0.25, 0.75, 0.75]


def test_a_sample_of_a_large_index_tells_nearly_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = unit(4000, 16)
    scores = np.linspace(-0.5, 0.95, 40).astype(np.float32)
    sampled = sample_cosines(CheckedArray(vectors))
    assert len(sampled.cosines) < 5000 and int(sampled.ranks.all()[-1]) + 1 == 1024 * 1023 // 2
    cosines = np.sort((vectors @ vectors.T)[np.triu_indices(4000, 1)])
    truth = np.searchsorted(cosines, scores) / len(cosines)
    np.testing.assert_allclose(np.array(sampled.closer_than(scores), float), truth, atol=0.005)
    again = sample_cosines(CheckedArray(vectors))
    assert (again.cosines.all() == sampled.cosines.all()).all()  # seeded
    monkeypatch.setattr(ann, "COSINE_SAMPLE", 4000)
    exact = np.array(sample_cosines(CheckedArray(vectors)).closer_than(scores), float)
    np.testing.assert_allclose(exact, truth, atol=1 / 3000)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, ""),
        (0.0, "0.0 %"),
        (0.12345, "12.3 %"),
        (0.9978, "99.7 %"),
        (0.99949, "99.94 %"),
        (0.99989, "99.98 %"),
        (0.9999, "99.99 %"),
        (0.99991, "> 99.99 %"),
        (1 - 1e-12, "> 99.99 %"),
    ],
)
def test_a_share_for_people(share: float | None, text: str) -> None:
    assert tell_share(share) == text


def test_photos_added_since_are_measured_where_there_were_none(index: SimilarityIndex, tmp_path: Path) -> None:
    with index._store.writing():
        index._write_cache()  # of an empty index
    assert index.search(np.ones(DIM)) == []
    put_vectors(index, 50)
    assert None not in {match.closer_than for match in index.search(np.ones(DIM))}
