import numpy as np
import pytest

from simclr_hub.index.search import ann
from simclr_hub.index.search.ann import DeltaLists, IVFIndex, Probes, build_ivf, search_exact, top_k
from simclr_hub.index.search.arrays import CheckedArray


def clusters(number: int, dim: int, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    """Vectors of length 1 in clusters, with a mean that all share."""
    centres = np.random.default_rng(0).normal(size=(10, dim))
    random = np.random.default_rng(seed + 1)
    vectors = 2 + centres[random.integers(10, size=number)] + spread * random.normal(size=(number, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ann, "MAX_EXACT", 0)


def build(vectors: np.ndarray) -> IVFIndex:
    built = build_ivf(CheckedArray(vectors))
    assert built is not None
    return built


def near(built: IVFIndex, queries: np.ndarray, k: int) -> Probes:
    found = built.probe(queries, k)
    assert found is not None
    return found


@pytest.mark.parametrize("dim", [16, 33])
@pytest.mark.parametrize("k", [1, 10, 100])
def test_the_recall_that_is_promised(small: None, dim: int, k: int) -> None:
    """For queries that are not in the index, beside comparing with all."""
    vectors, queries = clusters(4000, dim, spread=0.4), clusters(200, dim, seed=1, spread=0.4)
    built = build(vectors)
    assert [setting.k for setting in built.settings] == [10, 100]
    assert all(setting.nprobe <= built.index.nlist // 2 for setting in built.settings)
    scores, rows = built.search(CheckedArray(vectors), queries, k, near(built, queries, k))
    true_scores, truth = search_exact(CheckedArray(vectors), queries, k)
    recall = np.mean([np.isin(mine, best).mean() for mine, best in zip(rows, truth, strict=True)])
    assert recall >= ann.RECALL
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, vectors[rows]), atol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all() and all(len(set(line)) == k for line in rows.tolist())


def test_not_everything_is_compared(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor with the settings of more results than are asked for."""
    vectors = clusters(4000, 16, spread=0.4)
    built, used = build(vectors), []
    real = ann._search
    monkeypatch.setattr(ann, "_search", lambda *given: used.append(given[-1].setting) or real(*given))
    monkeypatch.delattr(ann, "search_exact")
    for k in (1, 10, 11, 100):
        built.search(CheckedArray(vectors), vectors[:50], k, near(built, vectors[:50], k))
    assert [setting.k for setting in used] == [10, 10, 100, 100]


def test_a_higher_target_looks_through_more(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = clusters(4000, 24)
    usual = build(vectors).settings[0]
    monkeypatch.setattr(ann, "RECALL", 0.5)
    less = build(vectors).settings[0]
    assert (less.nprobe, less.rerank) < (usual.nprobe, usual.rerank)


def test_where_there_are_no_near_ones_every_search_is_exact(small: None) -> None:
    """Of vectors without any structure half of the lists would be needed."""
    vectors = np.random.default_rng(0).normal(size=(3000, 128)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert build_ivf(CheckedArray(vectors)) is None


def test_few_vectors_need_no_index() -> None:
    assert build_ivf(CheckedArray(clusters(1000, 16))) is None


def test_what_the_lists_lack_is_found_by_comparing(small: None) -> None:
    """Of three rows that may be found no list has all."""
    vectors = clusters(2000, 16)
    built = build(vectors)
    allowed = np.zeros(2000, bool)
    allowed[[1, 500, 1999]] = True
    queries = vectors[:40]
    scores, rows = built.search(CheckedArray(vectors), queries, 3, near(built, queries, 3), allowed)
    np.testing.assert_array_equal(np.sort(rows, axis=1), np.tile([1, 500, 1999], (40, 1)))
    np.testing.assert_allclose(scores, search_exact(CheckedArray(vectors), queries, 3, allowed)[0], atol=1e-6)


def test_rows_that_are_not_allowed_do_not_lower_the_recall(small: None) -> None:
    """Of each query's 200 nearest 0 to 100 are not allowed."""
    vectors, queries = clusters(4000, 16, spread=0.4), clusters(100, 16, seed=1, spread=0.4)
    built = build(vectors)
    nearest = search_exact(CheckedArray(vectors), queries, 200)[1]
    hits = 0
    for number, (query, best) in enumerate(zip(queries, nearest, strict=True)):
        allowed = np.ones(4000, bool)
        allowed[best[:number]] = False
        scores, rows = built.search(CheckedArray(vectors), query[None], 10, near(built, query[None], 10), allowed)
        assert allowed[rows].all() and (np.diff(scores) <= 0).all() and len(set(rows[0].tolist())) == 10
        hits += np.isin(rows[0], best[number : number + 10]).sum()
    assert hits >= ann.RECALL * 1000


@pytest.mark.parametrize("k", [1, 10, 100])
@pytest.mark.parametrize("share", [None, 0.5])
def test_vectors_beside_the_index_are_found_as_well(
    small: None, k: int, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "CANDIDATES", 7000)  # in several parts
    seen: list[int] = []
    real = ann._inner_products
    monkeypatch.setattr(ann, "_inner_products", lambda *given: seen.append(given[2].size) or real(*given))
    built = build(clusters(4000, 16, spread=0.4))
    added, queries = CheckedArray(clusters(1000, 16, seed=2, spread=0.4)), clusters(200, 16, seed=1, spread=0.4)
    allowed = None if share is None else np.random.default_rng(0).random(1000) < share
    lists = built.assign(added)
    beside = DeltaLists(lists, built.index.nlist)
    where = near(built, queries, k)
    seen.clear()
    scores, rows = beside.search(added, queries, k, where, allowed)
    assert len(seen) > 1 and max(seen) <= 7000
    assert scores.shape == rows.shape == (200, k) and (scores[:, :-1] >= scores[:, 1:]).all()
    for query, probed, mine, best in zip(queries, where.lists, rows, scores, strict=True):
        there = np.flatnonzero(np.isin(lists, probed) & (True if allowed is None else allowed))
        found = mine[mine >= 0]
        assert set(found) <= set(there) and len(set(found)) == min(k, len(there))
        np.testing.assert_allclose(best[: len(found)], added.all()[found] @ query, atol=1e-6)
        np.testing.assert_allclose(best[: len(found)], -np.sort(-(added.all()[there] @ query))[:k], atol=1e-6)
    if k == 1:  # of so few, the nearest hundred are in far lists: with those of the index they are not the nearest
        truth = search_exact(added, queries, 1, allowed)[1]
        assert np.mean(rows == truth) > 0.95


def test_no_vector_is_in_the_lists_of_a_query(small: None) -> None:
    vectors = clusters(4000, 16)
    built = build(vectors)
    where = near(built, vectors[:1], 5)
    far = next(i for i in range(built.index.nlist) if i not in where.lists)
    scores, rows = DeltaLists(np.array([far], np.int32), built.index.nlist).search(
        CheckedArray(vectors[:1]), vectors[:1], 5, where
    )
    assert rows.tolist() == [[-1] * 5] and np.isneginf(scores).all()


@pytest.mark.parametrize("queries", [1, 19, 20, 50])
@pytest.mark.parametrize("share", [None, 0.0, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("k", [1, 10, 400])
def test_exact_search(queries: int, share: float | None, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simclr_hub.index.search.ann.GATHER_BYTES", 4 * 16 * 70)  # in several parts
    random = np.random.default_rng(0)
    vectors, wanted = clusters(300, 16), clusters(queries, 16, seed=1)
    allowed = None if share is None else random.random(300) < share
    scores, rows = search_exact(CheckedArray(vectors), wanted, k, allowed)
    all_scores = wanted @ vectors.T
    if allowed is not None:
        all_scores[:, ~allowed] = -np.inf
    order = np.argsort(-all_scores, axis=1, kind="stable")
    number = min(k, 300 if allowed is None else int(allowed.sum()))
    assert rows.shape == (queries, k) and (rows[:, number:] == -1).all()
    best = np.take_along_axis(all_scores, order, 1)[:, :number]
    np.testing.assert_allclose(scores[:, :number], best, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(all_scores, rows[:, :number], 1), best, atol=1e-6)


def test_the_best_of_candidates() -> None:
    random = np.random.default_rng(0)
    for number in (3, 10, 100):
        scores = random.normal(size=(20, number)).astype(np.float32)
        kept, rows = top_k(scores, np.tile(np.arange(number), (20, 1)), 5)
        np.testing.assert_array_equal(kept, -np.sort(-scores, axis=1)[:, :5])
        np.testing.assert_array_equal(np.take_along_axis(scores, rows, 1), kept)
