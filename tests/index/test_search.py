import ast
import hashlib
import os
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from index_fakes import DIM, FakeEmbedder, make_photo
from PIL import Image

from simclr_hub.errors import IndexExistsError, IndexNotFoundError, UnreadableImageError
from simclr_hub.index import Match, SimilarityIndex
from simclr_hub.index import similarity_index as search_module
from simclr_hub.index.queries import IndexedPhoto
from simclr_hub.index.search import find


@pytest.fixture
def filled(index: SimilarityIndex, tmp_path: Path) -> SimilarityIndex:
    for i in range(40):
        make_photo(tmp_path / f"photos/{i}.png", i % 30)  # ten are there twice
    index.sync(tmp_path / "photos")
    return index


def brute_force(index: SimilarityIndex, query: np.ndarray) -> dict[str, float]:
    """The cosine to each photo."""
    paths, vectors = index.vectors()
    return dict(zip(paths, (vectors @ (query / np.linalg.norm(query))).tolist(), strict=True))


@pytest.mark.parametrize("k", [1, 7, 40, 10**9])
def test_finds_what_brute_force_finds(filled: SimilarityIndex, k: int) -> None:
    random = np.random.default_rng(0)
    for query in random.normal(size=(20, DIM)):
        expected = brute_force(filled, query)
        found = filled.search(query, k=k, all_copies=True)
        assert len(found) == min(k, 40) and len({m.path for m in found}) == len(found)
        np.testing.assert_allclose([m.score for m in found], sorted(expected.values())[::-1][: len(found)], atol=1e-5)
        for match in found:
            assert match.score == pytest.approx(expected[match.path], abs=1e-5)


def test_an_image_finds_itself_and_its_copies(filled: SimilarityIndex, tmp_path: Path, embedder: FakeEmbedder) -> None:
    embedder.embedded = 0
    found = filled.search(str(tmp_path / "photos/3.png"), k=2, with_self=True, all_copies=True)
    assert [m.path for m in found] == [str(tmp_path / "photos/3.png"), str(tmp_path / "photos/33.png")]
    assert [m.score for m in found] == pytest.approx([1, 1]) and embedder.embedded == 0  # its vector is known
    stat = (tmp_path / "photos/3.png").stat()
    file = {"bytes": stat.st_size, "modified": pytest.approx(stat.st_mtime)}
    assert found[0].metadata == {"format": "PNG", "width": 4, "height": 4} | file
    with Image.open(tmp_path / "photos/3.png") as image:
        assert {m.path for m in filled.search(image, k=2, all_copies=True)} == {m.path for m in found}
    assert embedder.embedded == 1


def test_a_list_of_queries_gives_a_list_of_lists(filled: SimilarityIndex, tmp_path: Path) -> None:
    a, b, vector = tmp_path / "photos/1.png", tmp_path / "photos/2.png", np.ones(DIM)
    outside = make_photo(tmp_path / "outside.png", 1000)
    queries = [a, vector, outside, b]
    assert filled.search(queries, k=5) == [filled.search(query, k=5) for query in queries]
    assert filled.search((a,), k=5) == [filled.search(a, k=5)]
    assert filled.search([]) == []


def test_an_empty_index_finds_nothing(index: SimilarityIndex) -> None:
    for all_copies in (False, True):
        assert index.search(np.ones(DIM), all_copies=all_copies) == []
        assert index.search([np.ones(DIM)] * 2, all_copies=all_copies) == [[], []]
    paths, vectors = index.vectors()
    assert paths == [] and vectors.shape == (0, DIM) and len(index) == 0


BAD_VECTORS = {
    "another width": np.ones(DIM + 1),
    "no width": np.ones(0),
    "integers": np.ones(DIM, int),
    "complex": np.ones(DIM, complex),
    "text": np.array(["1"] * DIM),
    "zero": np.zeros(DIM),
    "NaN": np.array([np.nan] + [1.0] * (DIM - 1)),
    "infinite": np.array([np.inf] + [1.0] * (DIM - 1)),
}


@pytest.mark.parametrize("name", BAD_VECTORS)
def test_a_vector_that_cannot_be_compared_is_refused(filled: SimilarityIndex, name: str) -> None:
    with pytest.raises(ValueError, match="a query vector"):
        filled.search(BAD_VECTORS[name])


@pytest.mark.parametrize("k", [0, -1])
def test_k_below_one_is_refused(filled: SimilarityIndex, k: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} must be at least 1"):
        filled.search(np.ones(DIM), k=k)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    vector=arrays(np.float64, st.integers(0, 8), elements=st.floats(width=64)),
    k=st.integers(-3, 10**12),
)
def test_any_vector_and_k(filled: SimilarityIndex, vector: np.ndarray, k: int) -> None:
    try:
        found = filled.search(vector, k=k, all_copies=True)
    except ValueError:
        with np.errstate(all="ignore"):
            norm = np.linalg.norm(vector)
        assert k < 1 or vector.shape != (DIM,) or not np.isfinite(norm) or norm == 0
    else:
        assert len(found) == min(k, 40) and all(-1.001 <= m.score <= 1 for m in found)


def test_no_check_is_an_assert() -> None:
    """`python -O` drops those."""
    for file in Path(search_module.__file__).parent.glob("*.py"):
        assert not [n for n in ast.walk(ast.parse(file.read_text())) if isinstance(n, ast.Assert)], file


def test_a_query_image_that_cannot_be_read(filled: SimilarityIndex, tmp_path: Path) -> None:
    with pytest.raises(UnreadableImageError, match="nowhere.png: no such file"):
        filled.search(tmp_path / "nowhere.png")


def test_missing_and_failed_photos_are_not_found(filled: SimilarityIndex, tmp_path: Path) -> None:
    (tmp_path / "photos/3.png").unlink()
    (tmp_path / "photos/4.png").write_bytes(b"broken")
    filled.sync(tmp_path / "photos")
    paths = {m.path for m in filled.search(np.ones(DIM), k=100, all_copies=True)}
    assert len(paths) == 38 and not paths & {str(tmp_path / "photos" / n) for n in ("3.png", "4.png")}


def test_another_process_sees_what_was_committed(filled: SimilarityIndex, tmp_path: Path) -> None:
    with SimilarityIndex.open(filled._store.file.parent, model=FakeEmbedder()) as other:
        assert len(other.search(np.ones(DIM), k=100, all_copies=True)) == 40
        new = make_photo(tmp_path / "photos/new.png", 500)
        filled.sync(tmp_path / "photos")
        assert other.search(new, k=1, with_self=True)[0].path == str(new)


def test_searching_while_syncing(index: SimilarityIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result is right for some committed state: distinct paths, true scores, never fewer than before."""
    monkeypatch.setattr("simclr_hub.index.sync.BATCH_PHOTOS", 8)
    folder = tmp_path / "photos"
    for i in range(150):
        make_photo(folder / f"{i}.png", i)
    expected = {}
    for item in FakeEmbedder().stream(sorted(folder.iterdir())):
        expected[str(item.source)] = item.vector / np.linalg.norm(item.vector)  # type: ignore[union-attr]
    query = np.ones(DIM, np.float32) / np.sqrt(DIM)
    problems: list[str] = []
    seen: set[int] = set()
    done = threading.Event()

    def search() -> None:
        fewest = 0
        try:
            while not done.is_set():
                found = index.search(query, k=1000)
                if len({m.path for m in found}) != len(found) or len(found) < fewest:
                    problems.append("photos twice or lost")
                fewest = len(found)
                seen.add(fewest)
                if any(abs(m.score - float(expected[m.path] @ query)) > 1e-5 for m in found):
                    problems.append("a wrong score")
        except Exception as e:
            problems.append(repr(e))

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    index.sync(folder)
    done.set()
    for thread in threads:
        thread.join()
    assert problems == [] and len(seen) > 2
    assert len(index.search(query, k=1000)) == 150


def test_open_and_create_say_what_is_there(tmp_path: Path, index: SimilarityIndex, embedder: FakeEmbedder) -> None:
    with pytest.raises(IndexNotFoundError, match="no index there"):
        SimilarityIndex.open(tmp_path / "nowhere")
    with pytest.raises(IndexNotFoundError):
        SimilarityIndex.open(tmp_path)
    with pytest.raises(IndexExistsError, match="photos.index: there is something there"):
        SimilarityIndex.create(tmp_path / "photos.index", model=embedder)
    (tmp_path / "empty").mkdir()
    SimilarityIndex.create(tmp_path / "empty", model=embedder).close()
    with pytest.raises(TypeError, match="layer: an embedder was given"):
        SimilarityIndex.create(tmp_path / "x", model=embedder, layer="z")
    odd = os.fsdecode(os.fsencode(tmp_path) + b"/100%?#\xff\n")
    with SimilarityIndex.create(odd, model=embedder) as strange:
        assert len(strange) == 0 and strange.status()["path"] == odd


def test_status(filled: SimilarityIndex, tmp_path: Path) -> None:
    assert filled.status() == {
        "path": str(tmp_path / "photos.index"),
        "photos": 40,
        "missing": 0,
        "failed": 0,
        "vectors": 30,
        "dim": DIM,
        "metric": "cosine",
        "gps": False,
        "exclude": [],
        "include_hidden": False,
        "roots": [str(tmp_path / "photos")],
        "whitening": None,
        "made_by": {"model": "fake", "weights": "w1"},
        "layout": 2,
    }


def test_status_says_where_one_machine_ends(filled: SimilarityIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "NEAR_LIMIT", 41)
    assert "advice" not in filled.status()
    monkeypatch.setattr(search_module, "NEAR_LIMIT", 40)
    assert "docs/cluster.md" in filled.status()["advice"]


def test_matches_compare() -> None:
    assert Match("a", 1.0, {}) == Match("a", 1.0, {})


def test_more_queries_than_are_searched_at_once(filled: SimilarityIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    queries = list(np.random.default_rng(1).normal(size=(7, DIM)))
    one_by_one = [filled.search(query, k=3) for query in queries]
    monkeypatch.setattr(find, "QUERIES", 3)
    assert filled.search(queries, k=3) == one_by_one


def test_a_photo_of_the_index_is_a_query_whose_file_need_not_be_there(
    filled: SimilarityIndex, tmp_path: Path, embedder: FakeEmbedder
) -> None:
    file = tmp_path / "photos" / "31.png"  # holds what 1.png does
    expected = filled.search(str(file), k=3, all_copies=True)
    content = hashlib.sha256(file.read_bytes()).digest()
    (root,) = filled.store.roots().values()
    file.unlink()
    embedded = embedder.embedded
    photo = IndexedPhoto(content, root.id, b"31.png")
    assert filled.search(photo, k=3, all_copies=True) == expected
    assert Path(expected[0].path).name == "1.png" and embedder.embedded == embedded
    with pytest.raises(ValueError, match="not in the index any more"):
        filled.search(IndexedPhoto(bytes(32), root.id, b"31.png"))


def test_a_match_tells_its_content_also_after_pickling(filled: SimilarityIndex, tmp_path: Path) -> None:
    file = tmp_path / "photos" / "3.png"
    (match,) = filled.search(str(file), k=1, with_self=True)
    content = hashlib.sha256(file.read_bytes()).digest()
    again = pickle.loads(pickle.dumps(match))
    assert match.content_hash == again.content_hash == content and again == match
    assert Match("a", 1.0, {}).content_hash == b""


def test_a_query_vector_stands_for_its_query(filled: SimilarityIndex, tmp_path: Path) -> None:
    query = str(tmp_path / "photos" / "3.png")
    vector = filled.query_vector(query)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert filled.search(vector, k=5) == filled.search(query, k=5, with_self=True)
