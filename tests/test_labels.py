"""Labelling by examples on arrays, and the files that labels are written to."""

import csv
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from simclr_hub.errors import OutputError
from simclr_hub.label_files import COLUMNS, write_labels
from simclr_hub.labels import MOST_EXAMPLES, NONE, RIDGE, WIDTH, Examples, Label, LeftOut, first_two, sure_above


def clusters(counts: tuple[int, ...], spread: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length 1 around a direction for each class, as many of each as is said."""
    random = np.random.default_rng(seed)
    centres = np.linalg.qr(np.random.default_rng(99).normal(size=(32, len(counts))))[0].T
    labels = np.repeat(np.arange(len(counts)), counts)
    vectors = centres[labels] + spread * random.normal(size=(len(labels), 32)) / np.sqrt(32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32), labels


def scores_of(
    bank: np.ndarray, labels: np.ndarray, queries: np.ndarray, width: float, ridge: np.ndarray
) -> np.ndarray:
    kernel = np.exp((bank.astype(float) @ bank.T - 1) / width)
    weights = np.linalg.solve(kernel + np.diag(ridge), np.eye(labels.max() + 1)[labels])
    return np.exp((queries.astype(float) @ bank.T - 1) / width) @ weights


def test_leaving_out_in_closed_form_is_solving_again_without_each() -> None:
    vectors, labels = clusters((6, 3, 4), 1.5)
    examples = Examples.learn(vectors, labels, 3)
    cosines = vectors.astype(float) @ vectors.T
    width = WIDTH * np.mean(1 - cosines[~np.eye(len(labels), dtype=bool)])
    assert examples.width == pytest.approx(width, rel=1e-6)
    counts = np.bincount(labels)
    ridge = RIDGE * counts[labels] / counts.mean()
    right = 0
    for i in range(len(labels)):
        others = np.arange(len(labels)) != i
        found = scores_of(vectors[others], labels[others], vectors[[i]], width, ridge[others])
        right += int(found.argmax() == labels[i])
    assert examples.left_out.examples == len(labels) and examples.left_out.right == right < len(labels)


def test_confidences_are_those_of_the_formula() -> None:
    vectors, labels = clusters((5, 5), 1)
    queries, _ = clusters((3, 3), 1, seed=1)
    examples = Examples.learn(vectors, labels, 2)
    scores = scores_of(vectors, labels, queries, examples.width, np.full(10, RIDGE))
    powers = np.exp(np.c_[scores, np.full(6, NONE)] / examples.temperature)
    expected = (powers / powers.sum(1, keepdims=True))[:, :2]
    classes, shares = examples.confidences(queries)
    np.testing.assert_allclose(shares, -np.sort(-expected, 1), atol=1e-4)
    np.testing.assert_array_equal(classes[:, 0], expected.argmax(1))


def test_clear_classes_are_sure_and_what_is_like_no_example_is_not() -> None:
    vectors, labels = clusters((20, 20, 20), 0.5)
    queries, truth = clusters((50, 50, 50), 0.5, seed=1)
    examples = Examples.learn(vectors, labels, 3)
    classes, shares = examples.confidences(queries)
    assert (classes[:, 0] == truth).all() and (shares[:, 0] > examples.sure_above).mean() > 0.9
    random = np.random.default_rng(2).normal(size=(200, 32))
    strange = (random / np.linalg.norm(random, axis=1, keepdims=True)).astype(np.float32)
    assert (examples.confidences(strange)[1][:, 0] > examples.sure_above).mean() < 0.2


def test_examples_that_say_nothing_make_nothing_sure() -> None:
    random = np.random.default_rng(0)
    vectors = random.normal(size=(40, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    examples = Examples.learn(vectors, np.arange(40) % 4, 4)
    assert examples.sure_above == 1 and examples.left_out.sure == 0
    alone = Examples.learn(vectors[:4], np.arange(4), 4)  # one of each: nothing can be left out
    assert alone.left_out == LeftOut(0, 0, 0, 0) and alone.sure_above == 1
    assert (alone.confidences(vectors)[1] <= 1).all()


def test_small_classes_are_not_drowned_by_large_ones() -> None:
    vectors, labels = clusters((30, 5), 2)
    queries, truth = clusters((300, 300), 2, seed=1)
    found = Examples.learn(vectors, labels, 2)
    plain = scores_of(vectors, labels, queries, found.width, np.full(35, RIDGE)).argmax(1)
    ours = found.confidences(queries)[0][:, 0]
    assert (ours == truth).mean() > (plain == truth).mean() + 0.03


def test_equal_vectors_do_not_divide_by_zero() -> None:
    vectors = np.tile(np.eye(1, 8, dtype=np.float32), (4, 1))
    examples = Examples.learn(vectors, np.array([0, 0, 1, 1]), 2)
    assert np.isfinite(examples.confidences(vectors)[1]).all()


@pytest.mark.parametrize(
    "labels, classes", [([0, 0], 1), ([0, 0], 2), ([0, 2], 3), ([0, 1] * (MOST_EXAMPLES // 2 + 1), 2)]
)
def test_what_teaches_no_classes_is_refused(labels: list[int], classes: int) -> None:
    with pytest.raises(ValueError, match="two classes at least|more than"):
        Examples.learn(np.ones((len(labels), 3), np.float32), np.array(labels), classes)


def test_sure_is_where_errors_are_a_quarter_as_frequent() -> None:
    confidence = np.linspace(1, 0.01, 200)
    right = np.ones(200, bool)
    right[100:] = np.arange(100) % 2 == 0
    above = sure_above(confidence, right)
    assert 0.5 <= above < 0.55 and sure_above(confidence, ~right) == 1
    few = sure_above(confidence[::40], right[::40])
    assert few == 1  # the same shares, but of five: they prove nothing
    assert sure_above(np.array([]), np.array([], bool)) == 1
    flat = np.full(100, 0.9)  # equal ones are sure together or not at all
    assert sure_above(flat, np.arange(100) % 2 == 0) == 1


def test_the_first_of_equal_classes() -> None:
    classes, shares = first_two(np.array([[0.4, 0.4, 0.2]]))
    assert classes.tolist() == [[0, 1]] and shares.tolist() == [[0.4, 0.4]]


def test_files_of_labels(tmp_path: Path) -> None:
    labels = [
        Label("/a/=1+1.jpg", "=cmd()", 0.9, False, "dog, or\nother", 0.1),
        Label("/a/\ud800.jpg", "cat", 1.0, None, "", 0.0, example=True),
    ]
    write_labels(tmp_path / "l.csv", labels)
    rows = list(csv.DictReader((tmp_path / "l.csv").read_text(encoding="utf-8").splitlines()))
    assert [row["label"] for row in rows] == ["'=cmd()", "cat"]
    assert rows[0] | {"label": ""} == {
        "path": "/a/=1+1.jpg",
        "label": "",
        "confidence": "0.9000",
        "unsure": "no",
        "second": "dog, or\\nother",
        "second_confidence": "0.1000",
        "example": "no",
    }
    assert (rows[1]["path"], rows[1]["unsure"], rows[1]["example"]) == ("/a/\\ud800.jpg", "", "yes")
    write_labels(tmp_path / "l.parquet", labels)
    table = pyarrow.parquet.read_table(tmp_path / "l.parquet")
    assert tuple(table.column_names) == COLUMNS
    assert table.column("unsure").to_pylist() == [False, None]
    assert table.column("label").to_pylist() == ["=cmd()", "cat"]
    for name in ("l.csv", "l.parquet"):
        write_labels(tmp_path / name, labels[:1])  # its own is replaced
    assert len((tmp_path / "l.csv").read_text().splitlines()) == 2
    for name, content in (("x.csv", b"path,other\n"), ("x.parquet", b"PAR1")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FileExistsError):
            write_labels(tmp_path / name, labels)
        assert (tmp_path / name).read_bytes() == content
        write_labels(tmp_path / name, labels, force=True)
    with pytest.raises(OutputError, match="csv"):
        write_labels(tmp_path / "l.txt", labels)
