"""A whitened index: made so, or made so later in place; what it finds, what it tells, and that it survives a kill."""

import multiprocessing
import os
import shutil
import signal
from dataclasses import replace
from multiprocessing import forkserver
from pathlib import Path

import index_kill_child
import numpy as np
import pytest
from index_fakes import DIM, FakeEmbedder, expected_vector, make_photo, put_vectors
from tiny import SAMPLE_PHOTOS

from simclr_hub import Embedder, embed
from simclr_hub.duplicates.thresholds import load_thresholds
from simclr_hub.errors import CheckpointError, ExportError, IndexDamagedError
from simclr_hub.index import SimilarityIndex, similarity_index
from simclr_hub.index.check import check_index
from simclr_hub.index.search import ann
from simclr_hub.index.store import checksum
from simclr_hub.loading import load_whitening
from simclr_hub.whitening import Whitening

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["index_kill_child", "pytest"])


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whitened") / "photos"
    for i in range(120):
        make_photo(folder / f"{i}.png", i)
    return folder


@pytest.fixture(scope="module")
def whitening(photos: Path) -> Whitening:
    vectors = np.stack([expected_vector(path) for path in photos.iterdir()]).astype(np.float32)
    return Whitening.learn(vectors, shrinkage=0.1, learnt_from="the test's photos")


def make(directory: Path, photos: Path, **kwargs: object) -> SimilarityIndex:
    index = SimilarityIndex.create(directory, model=FakeEmbedder(), **kwargs)
    index.sync(photos)
    return index


def equal(a: SimilarityIndex, b: SimilarityIndex) -> None:
    (paths, vectors), (others, other_vectors) = a.vectors(), b.vectors()
    assert paths == others and len(paths) == 120
    np.testing.assert_allclose(vectors, other_vectors, atol=1e-6, rtol=0)
    assert a.status()["whitening"] == b.status()["whitening"] and a.status()["made_by"] == b.status()["made_by"]


def test_an_index_is_whitened_in_place_and_equals_a_fresh_one(
    tmp_path: Path, photos: Path, whitening: Whitening
) -> None:
    with make(tmp_path / "fresh", photos, whiten=whitening) as fresh, make(tmp_path / "old", photos) as old:
        raw = old.vectors()
        assert old.status()["whitening"] is None and "whitening" not in old.status()["made_by"]
        assert {m.path: m.score for m in old.search(raw[1][3], k=120)}[raw[0][5]] == pytest.approx(
            raw[1][3] @ raw[1][5]
        )
        shutil.rmtree(photos.parent / "elsewhere", ignore_errors=True)
        told: list[tuple[int, int]] = []
        photos.rename(photos.parent / "elsewhere")  # no photo is read
        try:
            assert old.whiten(whitening, progress=lambda *now: told.append(now)) == whitening
        finally:
            (photos.parent / "elsewhere").rename(photos)
        assert told[-1] == (120, 120)
        equal(old, fresh)
        assert old.vectors()[1].shape == (120, whitening.dim) and old.status()["dim"] == DIM
        assert old.status()["whitening"] == {
            "learnt_from": "the test's photos", "images": 120, "shrinkage": 0.1, "dim": whitening.dim,
        }  # fmt: skip
        assert old.status()["made_by"]["whitening"] == whitening.sha256
        assert old.check().sound and old.check().verified["whitening"] == 1
        make_photo(photos.parent / "more" / "new.png", 999)
        for index in (old, fresh):
            index.sync(photos.parent / "more")
        query = photos.parent / "more" / "new.png"
        found, other = old.search(query, k=9, with_self=True), fresh.search(query, k=9, with_self=True)
        assert [m.path for m in found] == [m.path for m in other] and found[0].score == pytest.approx(1)
        cosines = whitening.apply(np.stack([expected_vector(query), expected_vector(found[4].path)]), normalize=True)
        assert found[4].score == pytest.approx(float(cosines[0] @ cosines[1]), abs=1e-5)
        assert old.whiten(False) is None
        assert [v.shape for v in (raw[1], old.vectors()[1])] == [(120, DIM), (121, DIM)]
        assert old.status()["whitening"] is None and old.check().sound
    with SimilarityIndex.open(tmp_path / "fresh", model=FakeEmbedder()) as again:
        assert again.search(query, k=1, with_self=True)[0].score == pytest.approx(1)


def test_a_vector_may_be_the_models_or_a_whitened_one(tmp_path: Path, photos: Path, whitening: Whitening) -> None:
    with make(tmp_path / "i", photos, whiten=whitening) as index:
        paths, vectors = index.vectors()
        queries = [vectors[4], 3 * expected_vector(paths[9]).astype(np.float32), vectors[0], Path(paths[7])]
        found = index.search(queries, k=2, with_self=True)
        assert [m[0].path for m in found] == [paths[4], paths[9], paths[0], paths[7]]
        assert [m[0].score for m in found] == pytest.approx([1] * 4, abs=1e-6)
        with pytest.raises(ValueError, match=f"of {DIM + 1} numbers; this index holds vectors of {DIM}"):
            index.search(np.ones(DIM + 1, np.float32))


def test_an_open_index_sees_that_another_whitened_it(tmp_path: Path, photos: Path, whitening: Whitening) -> None:
    with make(tmp_path / "i", photos) as one, SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder()) as other:
        before = other.search(photos / "3.png", k=5, with_self=True)
        one.whiten(whitening)
        after = other.search(photos / "3.png", k=5, with_self=True)
        assert [m.score for m in before] != [m.score for m in after] and after[0].score == pytest.approx(1)
        assert after == one.search(photos / "3.png", k=5, with_self=True)
        more = replace(whitening, matrix=whitening.matrix[:, :3].copy())
        one.whiten(more)
        assert other.vectors()[1].shape[1] == 3 and other.status()["whitening"]["dim"] == 3
        assert len(other.duplicates()) == len(one.duplicates())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "n"),
    [
        ("start", 1), ("BEGIN", 1), ("statement", 4), ("DELETE", 1), ("INSERT", 1), ("INSERT", 2), ("INSERT", 3),
        ("COMMIT", 1), ("before cache", 1), ("before rename", 1), ("after rename", 1), ("after cache", 1),
        ("COMMIT", 2),
    ],
)  # fmt: skip
def test_a_kill_while_it_is_whitened(tmp_path: Path, photos: Path, whitening: Whitening, step: str, n: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.path.dirname(__file__))
        forkserver.ensure_running()
    whitening.save(tmp_path / "w.safetensors")
    with make(tmp_path / "old", photos) as old:
        raw = old.vectors()
    ours, theirs = CONTEXT.Pipe()
    child = CONTEXT.Process(
        target=index_kill_child.whiten, args=(tmp_path / "old", tmp_path / "w.safetensors", theirs, step, n)
    )
    child.start()
    theirs.close()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    with pytest.raises(EOFError):
        ours.recv()
    with make(tmp_path / "fresh", photos, whiten=whitening) as fresh:
        with SimilarityIndex.open(tmp_path / "old", model=FakeEmbedder()) as old:
            if old.status()["whitening"] is None:  # as before, wholly
                assert old.vectors()[0] == raw[0] and np.array_equal(old.vectors()[1], raw[1])
            else:
                equal(old, fresh)
            assert old.check().sound
            old.whiten(whitening)
            equal(old, fresh)
        assert not [name for name in os.listdir(tmp_path / "old") if name.startswith(".")]


def test_without_a_checkpoints_whitening_it_is_learnt_on_the_indexs_photos(tmp_path: Path, photos: Path) -> None:
    with make(tmp_path / "i", photos) as index:
        learnt = index.whiten()
        assert learnt is not None and learnt.images == 120 and "index itself" in learnt.learnt_from
        assert index.whiten() == learnt and index.status()["made_by"]["whitening"] == learnt.sha256
        generation = index._store.generation()
        index.whiten()  # the same again changes nothing
        assert index._store.generation() == generation
        assert learnt.weights == "w1"
    few = tmp_path / "few"
    for i in range(5):
        make_photo(few / f"{i}.png", i)
    with make(tmp_path / "j", few) as index:
        with pytest.raises(ValueError, match="5 images are too few to learn a whitening from; give 100 at least"):
            index.whiten()
        assert index.status()["whitening"] is None
        with pytest.raises(ValueError, match="vectors of 9"):
            SimilarityIndex.create(tmp_path / "k", FakeEmbedder(), whiten=Whitening.learn(
                np.random.default_rng(0).normal(size=(200, 9)).astype(np.float32), learnt_from="x", shrinkage=0.1
            ))  # fmt: skip
        assert not (tmp_path / "k").exists()


def test_export_and_import_keep_it(tmp_path: Path, photos: Path, whitening: Whitening) -> None:
    pa = pytest.importorskip("pyarrow.parquet")
    with make(tmp_path / "i", photos, whiten=whitening) as index:
        index.export(tmp_path / "i.parquet")
        with SimilarityIndex.from_export(tmp_path / "i.parquet", tmp_path / "j", FakeEmbedder()) as again:
            equal(index, again)
            assert again.search(photos / "8.png", k=1, with_self=True)[0].score == pytest.approx(1)
        table = pa.read_table(tmp_path / "i.parquet")
        rows = {row["path"]: row["vector"] for row in table.select(["path", "vector"]).to_pylist()}
        for path, vector in zip(*index.vectors(), strict=True):
            np.testing.assert_allclose(rows[path], vector, atol=1e-6)  # what other programs compare is what we compare
    wrong = table.column("vector").to_pylist()
    wrong[50] = wrong[51]
    at = table.schema.get_field_index("vector")
    import pyarrow

    bad = table.set_column(at, table.schema.field(at), pyarrow.array(wrong, table.schema.field(at).type))
    pa.write_table(bad, tmp_path / "bad.parquet", write_page_checksum=True)
    with pytest.raises(ExportError, match="row 51: its vector is not its features whitened"):
        SimilarityIndex.from_export(tmp_path / "bad.parquet", tmp_path / "k")


def test_a_lost_whitening_is_damage_and_a_repair_goes_on_without(
    tmp_path: Path, photos: Path, whitening: Whitening
) -> None:
    with make(tmp_path / "raw", photos) as raw:
        vectors = raw.vectors()[1]
    with make(tmp_path / "i", photos, whiten=whitening) as index:
        store = index._store
        with store.writing(), store.transaction():
            text = '{"safetensors": "AAAA"}'
            store._execute(
                "UPDATE meta SET value = ?, crc = ? WHERE key = 'whitening'", text, checksum("whitening", text)
            )
    with SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder()) as index:
        with pytest.raises(IndexDamagedError, match="its whitening cannot be read"):
            index.search(photos / "1.png")
    report = check_index(tmp_path / "i", repair=True)
    assert report.sound and report.repair is not None and report.repair.saved["photos"] == 120
    with SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder()) as index:
        assert index.status()["whitening"] is None
        np.testing.assert_allclose(index.vectors()[1], vectors, atol=1e-6)
    with make(tmp_path / "j", photos, whiten=whitening) as index:
        store = index._store
        with store.writing(), store.transaction():  # any other row
            store._execute("UPDATE photos SET crc = crc + 1 WHERE path = ?", b"7.png")
    assert check_index(tmp_path / "j", repair=True).sound
    with SimilarityIndex.open(tmp_path / "j", model=FakeEmbedder()) as index:
        assert len(index) == 119 and index.status()["made_by"]["whitening"] == whitening.sha256


def test_a_large_index_is_set_to_its_recall_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whitening: Whitening
) -> None:
    monkeypatch.setattr(ann, "MAX_EXACT", 1000)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder(), whiten=whitening) as index:
        vectors = put_vectors(index, 5000)
        index.whiten(whitening)  # writes the cache
        segment = index._current().segments[0]
        assert segment.ivf is not None and segment.vectors.all().shape == (5000, whitening.dim)
        queries = vectors[::50]
        found = index.search(list(queries), k=10)
        whole = whitening.apply(vectors, normalize=True)
        truth = np.sort(whole[::50] @ whole.T, 1)[:, :-11:-1]
        scores = np.array([[m.score for m in some] for some in found])
        assert np.mean(scores[:, -1] >= truth[:, -1] - 1e-5) > 0.5 and (scores >= truth[:, -1:] - 1e-5).mean() > 0.95


def test_the_default_checkpoint_whitens_by_default_and_has_thresholds_for_both(tmp_path: Path) -> None:
    with SimilarityIndex.create(tmp_path / "i") as index, SimilarityIndex.create(tmp_path / "j", whiten=False) as raw:
        index.sync(SAMPLE_PHOTOS)
        raw.sync(SAMPLE_PHOTOS)
        default = load_whitening()
        assert default is not None and index.status()["made_by"]["whitening"] == default.sha256
        for one in (index, raw):
            calibration = one.calibration()
            assert calibration.measured and calibration.made_by.get("whitening") == one.status()["made_by"].get(
                "whitening"
            )
        # The same picture is told by the features as they are, similar ones whitened.
        assert index.calibration().cosine == raw.calibration().cosine
        assert index.calibration().similar_from != raw.calibration().similar_from
        h = embed(SAMPLE_PHOTOS / "cat_1.jpg")[0]
        assert index.search(h, k=1)[0].path.endswith("cat_1.jpg")
        pairs = np.triu_indices(58, 1)
        medians = [float(np.median((v @ v.T)[pairs])) for v in (raw.vectors()[1], index.vectors()[1])]
        assert medians[0] > 0.4 and abs(medians[1]) < 0.1  # raw, every photo is like every other
        raw.whiten()
        np.testing.assert_allclose(raw.vectors()[1], index.vectors()[1], atol=1e-6)
        assert raw.calibration() == index.calibration()
    for model in (Embedder(whiten=True), Embedder(whiten=default)):
        with SimilarityIndex.create(tmp_path / f"k{id(model)}", model) as index:
            assert index.status()["made_by"]["whitening"] == default.sha256 and index.status()["dim"] == 256
    with SimilarityIndex.create(tmp_path / "s", layer="h+stage3") as index:
        index.sync(SAMPLE_PHOTOS)
        assert (
            index.status()["dim"] == 384
            and index.search(SAMPLE_PHOTOS / "cat_1.jpg", k=1, with_self=True)[0].score > 0.999
        )
        assert load_thresholds(tmp_path / "s", index.status()["made_by"]) is None
    with pytest.raises(CheckpointError, match="no whitening comes with it"):
        SimilarityIndex.create(tmp_path / "z", layer="z", whiten=True)
    with SimilarityIndex.create(tmp_path / "z", layer="z") as index:
        assert index.status()["whitening"] is None


def test_a_search_beside_a_change_whitens_both_sides_alike(
    tmp_path: Path, photos: Path, whitening: Whitening, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(tmp_path / "i", photos, whiten=whitening) as index:
        real = similarity_index.query_vectors
        other = replace(whitening, mean=whitening.mean + 1)

        def changed(*args: object) -> object:
            with SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder()) as beside:
                beside.whiten(other)
            return real(*args)

        monkeypatch.setattr(similarity_index, "query_vectors", changed)
        assert index.search(photos / "3.png", with_self=True)[0].score == pytest.approx(1)
        monkeypatch.undo()
        assert index.search(photos / "3.png", with_self=True)[0].score == pytest.approx(1)
