"""Several photos, and what results should not be like, as one query; and what `search` takes."""

from pathlib import Path
from types import NoneType
from typing import Any, get_overloads, get_type_hints

import numpy as np
import pytest
from index_fakes import DIM, make_photo, put_vectors

from simclr_hub import Match, SimilarityIndex


@pytest.fixture
def filled(index: SimilarityIndex) -> SimilarityIndex:
    put_vectors(index, 200)
    return index


def unit(vector: np.ndarray) -> np.ndarray:
    result: np.ndarray = vector / np.linalg.norm(vector)
    return result


@pytest.mark.parametrize("weight", [None, 0, 0.25, 1])
def test_a_mean_less_a_weighted_mean(filled: SimilarityIndex, weight: float | None) -> None:
    a, b, c, d = np.random.default_rng(3).normal(size=(4, DIM))
    for like, unlike in (([a, b], [c]), ([a], [c, d]), ([a, b, b], [])):
        wide = np.mean([unit(v) for v in like], 0)
        if unlike:
            wide = wide - (0.5 if weight is None else weight) * np.mean([unit(v) for v in unlike], 0)
        options: dict[str, Any] = {} if weight is None else {"negative_weight": weight}
        found = filled.search(like, negative=unlike, k=9, **options)
        expected = filled.search(wide, k=9)
        assert [m.path for m in found] == [m.path for m in expected]
        np.testing.assert_allclose([m.score for m in found], [m.score for m in expected], atol=1e-6)
        assert {m.closer_than for m in found} == {None}


def test_one_photo_is_the_same_alone_or_in_a_list(filled: SimilarityIndex) -> None:
    query = np.ones(DIM)
    assert filled.search([query], negative=[]) == filled.search(query) == filled.search(query, negative=())
    assert filled.search(query, negative=[-query]) != filled.search([query])
    assert filled.search(query, negative=np.arange(1.0, DIM + 1)) == filled.search(
        [query], negative=[np.arange(1.0, DIM + 1)]
    )


def test_all_of_the_querys_files_are_left_out(index: SimilarityIndex, tmp_path: Path) -> None:
    photos = [make_photo(tmp_path / f"photos/{i}.png", i) for i in range(8)]
    index.sync(tmp_path / "photos")
    found = index.search(photos[:2], negative=photos[2:3], k=5)
    assert {m.path for m in found} == {str(path) for path in photos[3:]}
    assert len(index.search(photos[:2], negative=photos[2:3], with_self=True)) == 8
    assert len(index.search(photos[:2], negative=[], path="[0-3].png")) == 2


def test_what_cancels_or_is_not_there_is_refused(filled: SimilarityIndex) -> None:
    a = np.arange(1.0, DIM + 1)
    with pytest.raises(ValueError, match="cancel one another"):
        filled.search([a], negative=[3 * a], negative_weight=1)
    with pytest.raises(ValueError, match="cancel one another"):
        filled.search([a, -a], negative=[])
    with pytest.raises(ValueError, match="give at least one"):
        filled.search([], negative=[a])
    for weight in (-1, float("nan"), float("inf"), True):
        with pytest.raises(ValueError, match="negative_weight"):
            filled.search([a], negative=[a], negative_weight=weight)
    with pytest.raises(ValueError, match="a query vector"):
        filled.search([a], negative=[np.ones(DIM + 1)])


def test_k_is_a_whole_number(filled: SimilarityIndex) -> None:
    for k in (np.int64(2), np.uint8(2), np.array(2)):
        assert len(filled.search(np.ones(DIM), k=k)) == 2  # type: ignore[call-overload]
    for wrong in (True, np.True_, 2.0, "2", None):
        with pytest.raises(TypeError, match="k="):
            filled.search(np.ones(DIM), k=wrong)  # type: ignore[call-overload]
    assert len(filled.search(np.ones(DIM), k=10**30)) == 200


def test_type_checkers_tell_one_result_from_many() -> None:
    """What the overloads are made of: mypy itself takes minutes to read what torch brings."""
    many, one = (get_type_hints(overload) for overload in get_overloads(SimilarityIndex.search))
    assert (many["query"], many["negative"], many["return"]) == (
        list[Any] | tuple[Any, ...],
        NoneType,
        list[list[Match]],
    )
    assert (one["query"], one["negative"], one["return"]) == (Any, Any, list[Match])
    own = get_type_hints(SimilarityIndex.search)
    assert many.keys() == one.keys() == own.keys()
