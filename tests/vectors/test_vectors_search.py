"""Searching: the same images with the same scores as the package's own index of the same parts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_parts import FINGERPRINT, details, draw_parts, units
from index.index_fakes import FakeEmbedder, make_photo
from server_fixtures import COUNT, DIM

from simclr_hub import SimilarityIndex
from simclr_hub.errors import ImageError, IndexMismatchError, VectorServerError
from simclr_hub.parts.storage import Folder
from simclr_hub.parts.to_index import import_parts
from simclr_hub.vectors.find import search
from simclr_hub.vectors.load import load_parts
from simclr_hub.vectors.recall import find_truth
from simclr_hub.vectors.server import VectorServer
from simclr_hub.whitening import Whitening

CONDITIONS: list[dict[str, Any]] = [
    {},
    {"camera": "camera 7"},
    {"camera": ("camera 1", "camera 2")},  # with camera 10 to 29
    {"camera": ("camera 3", None)},
    {"camera": "no such"},
    {"taken": ("2003", "2010-06")},
    {"taken": "2003-06-07T12:00:00"},
    {"height": 3000},
    {"height": "2999"},
    {"height": ("2999.5", None)},
    {"width": (None, 1024)},
    {"bytes": (3_000_100, 3_000_200), "camera": ("camera 1", "camera 1"), "format": "JPEG"},
    {"modified": (1_700_000_000, None)},
    {"orientation": 1},
]


class Like:
    """The model of drawn parts; nothing is embedded."""

    fingerprint = FINGERPRINT

    def __init__(self, dim: int):
        self.dim = dim

    def stream(self, sources: Any, *, signatures: bool = False) -> Any:
        raise NotImplementedError


def assert_equal(server: VectorServer, index: SimilarityIndex, query: Any, k: int, where: dict[str, Any]) -> None:
    expected = index.search(query, k, where=where, all_copies=True)
    found = search(server, query, k, where=where, model=getattr(index, "like", None))
    assert [match.path for match in found.matches] == [match.path for match in expected]
    np.testing.assert_allclose([m.score for m in found.matches], [m.score for m in expected], atol=2e-6)
    for mine, theirs in zip(found.matches, expected, strict=True):
        metadata = {key: value for key, value in mine.metadata.items() if key != "key"}
        assert metadata == pytest.approx(theirs.metadata) and mine.content_hash == theirs.content_hash


@pytest.mark.parametrize("whitened", [False, True])
def test_as_in_an_index_of_the_same_parts(whitened: bool, server: VectorServer, tmp_path: Path) -> None:
    vectors = units(COUNT, DIM)
    whitening = Whitening.learn(vectors, learnt_from="drawn", shrinkage=0.02) if whitened else None
    parts = draw_parts(tmp_path / "p", [vectors[i : i + 100] for i in range(0, COUNT, 100)], whitening=whitening)
    load_parts(parts.place, server)
    import_parts(parts.place, tmp_path / "index")
    with SimilarityIndex.open(tmp_path / "index", model=Like(DIM)) as index:
        for query in units(5, DIM, seed=5):
            for where in CONDITIONS:
                assert_equal(server, index, query, 7, where)
        assert_equal(server, index, vectors[0], 1000, {})  # more than there are


def test_photos_as_in_an_index_of_the_same_parts(many: Path, made: Any, server: VectorServer, tmp_path: Path) -> None:
    """Names with line ends and accents, images that could not be used, and the query's own file left out."""
    _, out, _ = made(many, images=8)
    assert load_parts(out.place, server).count == 28
    import_parts(out.place, tmp_path / "index")
    with SimilarityIndex.open(tmp_path / "index", model=FakeEmbedder()) as index:
        index.like = FakeEmbedder()  # type: ignore[attr-defined]
        photo = next(many.glob("1/*"))
        assert_equal(server, index, photo, 30, {})
        assert_equal(server, index, make_photo(tmp_path / "other.png", 99), 5, {"width": 4})
    own = search(server, photo, 1, with_self=True, model=FakeEmbedder()).matches[0]
    assert own.path == str(photo) and own.score == pytest.approx(1)
    with pytest.raises(IndexMismatchError, match="w2"):
        search(server, photo, model=FakeEmbedder(weights="w2"))
    with pytest.raises(ImageError):
        search(server, many / "broken 0.jpg", model=FakeEmbedder())


NAMES = [
    b'it\'s "quoted" \\ `back` $HOME.jpg',
    b"'; DROP TABLE simclr_hub; --.jpg",
    b"new\nline\ttab\x1b[31m.jpg",
    b"no utf-8 \xff\xfe\x80.jpg",
    "ä ö 猫 \U0001f408.jpg".encode(),
    b"bytes:%41.jpg",
    b"%s %(a)s {table} $1 \\N.jpg",
    b'or id != "" or 1 == 1.jpg',
    "right to left \u202e.jpg".encode(),
]
CAMERAS = ['O\'Brien "X" \\', "'; DROP TABLE t; --", "50 % _ \\d {x}", "猫", "\\", 'a" or camera != "', "%s"]


def test_hostile_names_and_values_are_only_values(server: VectorServer, tmp_path: Path) -> None:
    def info(at: int) -> dict[str, Any]:
        return details(at) | {"camera": CAMERAS[at % len(CAMERAS)]}

    vectors = units(len(NAMES), DIM)
    load_parts(draw_parts(tmp_path / "p", [vectors], names=dict(enumerate(NAMES)), info=info).place, server)
    found = search(server, vectors[0], 50).matches
    assert {match.path.encode(errors="surrogateescape") for match in found} == {b"/photos/" + name for name in NAMES}
    for number, camera in enumerate(CAMERAS):
        found = search(server, vectors[0], 50, where={"camera": camera}).matches
        assert {match.metadata["camera"] for match in found} == {camera}
        assert len(found) == len(range(number, len(NAMES), len(CAMERAS)))
    assert server.count() == len(NAMES)


@pytest.mark.parametrize(
    "where",
    [{"camera": "a\0b"}, {"camera": "\udcff"}, {"camara": "x"}, {"id": "0"}, {"vector": "0"}, {"camera; DROP": "x"},
     {"width": "wide"}, {"camera": 5}, {"width": (5, 1)}],
)  # fmt: skip
def test_conditions_that_cannot_be_met_are_told(where: dict[str, Any], drawn: Folder, server: VectorServer) -> None:
    load_parts(drawn.place, server)
    with pytest.raises(ValueError, match="where: "):
        search(server, units(1, DIM)[0], where=where)


@pytest.mark.parametrize("query", [np.zeros(DIM), np.full(DIM, np.nan), np.ones(DIM + 1)])
def test_vectors_that_cannot_be_compared(query: np.ndarray, drawn: Folder, server: VectorServer) -> None:
    load_parts(drawn.place, server)
    with pytest.raises(ValueError, match="vector"):
        search(server, query)


def test_numbers_of_16_bits_find_nearly_the_same(drawn: Folder, server: VectorServer) -> None:
    try:
        setting = load_parts(drawn.place, server, half=True).setting
    except VectorServerError as e:
        if "Float16" not in str(e):
            raise
        pytest.skip("this Milvus has no columns of 16 bits: 2.4 has, milvus-lite and 2.3 have not")
    vectors = units(COUNT, DIM)
    best = np.argsort(-(vectors[:100] @ vectors.T), axis=1)[:, :10]
    found = [search(server, vector, 10).matches for vector in vectors[:100]]
    same = [
        f"IMG_{row:07d}.jpg" in {m.path[-15:] for m in some}
        for rows, some in zip(best, found, strict=True)
        for row in rows
    ]
    assert np.mean(same) > 0.99
    assert max(abs(some[0].score - 1) for some in found) < 1e-3
    assert setting and 0 <= setting.lost < 0.01


def test_what_rounding_loses_is_measured(tmp_path: Path) -> None:
    """Images that differ by less than 16 bits can tell are not told apart."""
    vectors = np.ones((500, DIM)) + np.random.default_rng(0).normal(size=(500, DIM)) * 2e-4
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    truth = find_truth(draw_parts(tmp_path / "alike", [vectors.astype(np.float32)]), set(), (1.0,), half=True)
    assert truth.lost > 0.3
