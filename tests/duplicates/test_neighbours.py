import numpy as np
import pytest

from simclr_hub.duplicates import neighbours as module
from simclr_hub.duplicates.neighbours import neighbours
from simclr_hub.signature import SIGNATURE_BYTES, low_frequencies


def unit(count: int, dim: int = 16) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, dim), np.float32)
    result: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return result


def collect(*args: object) -> set[tuple[int, int]]:
    return {(int(a), int(b)) for rows, found, _ in neighbours(*args) for a, b in zip(rows, found, strict=True)}  # type: ignore[arg-type]


def test_they_are_the_nearest_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 7)
    vectors = unit(30)
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2)
    expected = {(i, int(j)) for i in range(30) for j in np.argsort(-cosines[i])[:3]}
    # Each is found itself too, and takes one of four places.
    assert collect(vectors, 3) == expected
    assert collect(vectors, 3, np.array([4, 9])) == {pair for pair in expected if pair[0] in (4, 9)}
    for rows, found, scores in neighbours(vectors, 3):
        np.testing.assert_allclose(scores, cosines[rows, found], atol=1e-5)


def test_equal_vectors_find_each_other_and_not_themselves() -> None:
    assert collect(np.repeat(unit(1), 3, 0), 2) == {(a, b) for a in range(3) for b in range(3) if a != b}


def test_few_or_none() -> None:
    assert collect(unit(1), 5) == set() and collect(unit(0), 5) == set()
    assert collect(unit(2), 5) == {(0, 1), (1, 0)} and collect(unit(3), 5, np.array([], np.int64)) == set()


def test_many_are_found_through_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EXACT", 100)
    vectors = unit(3000)
    vectors[1::2] = vectors[::2]
    found = collect(vectors, 2)
    copies = {(row, row + 1) for row in range(0, 3000, 2)}
    assert len(copies & found) >= 0.99 * len(copies)


def test_low_frequencies_of_nothing_are_zero() -> None:
    assert not low_frequencies(np.zeros((2, SIGNATURE_BYTES), np.uint8)).any()
