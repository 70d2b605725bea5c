"""clip-retrieval's layout: others read what is written, and nothing is read that does not belong together."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_fakes import FakeEmbedder, check_index, expected_vector, make_photo

from simclr_hub import SimilarityIndex
from simclr_hub.errors import ExportError, IndexExistsError, OutputError
from simclr_hub.index import clip_layout
from simclr_hub.index.clip_layout import export_clip, import_clip
from simclr_hub.scan import FileStat
from simclr_hub.whitening import Whitening


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for i in range(200):
        make_photo(tmp_path / "photos" / f"{i % 3}" / f"{i:03d}.png", i)
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"no photo")
    return tmp_path / "photos"


@pytest.fixture
def exported(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three parts of an index whose 200 photos are there, and one that is missing."""
    monkeypatch.setattr(clip_layout, "ROWS", 64)
    gone = make_photo(photos / "gone.png", 999)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as index:
        index.sync(photos)
        gone.unlink()
        index.sync(photos)
        assert export_clip(index._store.file, tmp_path / "clip") == 200
    return tmp_path / "clip"


def test_what_is_written(exported: Path, photos: Path) -> None:
    assert sorted(str(path.relative_to(exported)) for path in exported.rglob("*.*")) == [
        *(f"img_emb/img_emb_{i}.npy" for i in range(4)),
        *(f"metadata/metadata_{i}.parquet" for i in range(4)),
    ]
    paths, vectors = [], []
    for i in range(4):
        vectors.append(np.load(exported / "img_emb" / f"img_emb_{i}.npy"))
        paths += pq.read_table(exported / "metadata" / f"metadata_{i}.parquet")["image_path"].to_pylist()
    assert sorted(paths) == sorted(map(str, photos.rglob("*.png")))
    for path, vector in zip(paths, np.concatenate(vectors), strict=True):
        np.testing.assert_allclose(vector, expected_vector(path), atol=1e-6)


def test_it_comes_back_without_embedding(
    exported: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStat, "settled", lambda self, scan_time_ns: True)  # as if they had been written long ago
    embedder = FakeEmbedder()
    assert import_clip(exported, tmp_path / "new", embedder) == 200
    assert embedder.embedded == 0
    with SimilarityIndex.open(tmp_path / "new", model=embedder) as index:
        assert len(check_index(index)) == 200
        report = index.sync(photos)
        assert (report.found, report.embedded, report.missing, report.failed) == (201, 0, 0, 1)
    with pytest.raises(IndexExistsError, match="exists already"):
        import_clip(exported, tmp_path / "new", embedder)


def test_names_of_photos_that_are_not_here(tmp_path: Path) -> None:
    """Halves, as clip-retrieval writes them, and keys of a data set."""
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float16)
    for kind in ("img_emb", "metadata"):
        (tmp_path / "clip" / kind).mkdir(parents=True)
    np.save(tmp_path / "clip" / "img_emb" / "img_emb_0000.npy", vectors)
    table = pa.table({"image_path": ["000000001", "000000002", "000000003"], "caption": ["a", "b", "c"]})
    pq.write_table(table, tmp_path / "clip" / "metadata" / "metadata_0000.parquet")
    assert import_clip(tmp_path / "clip", tmp_path / "new", FakeEmbedder()) == 3
    with SimilarityIndex.open(tmp_path / "new", model=FakeEmbedder()) as index:
        (match,) = index.search(vectors[1].astype(np.float32), k=1)
        assert match.path == str(tmp_path / "clip" / "000000002") and match.score > 0.999


def test_copies_of_a_photo_may_differ_by_rounding(exported: Path, photos: Path, tmp_path: Path) -> None:
    paths = pq.read_table(exported / "metadata" / "metadata_0.parquet")["image_path"].to_pylist()
    shutil.copy(paths[0], paths[1])
    vectors = np.load(exported / "img_emb" / "img_emb_0.npy")
    vectors[1] = vectors[0] + 1e-4
    np.save(exported / "img_emb" / "img_emb_0.npy", vectors)
    assert import_clip(exported, tmp_path / "new", FakeEmbedder()) == 200


def test_the_vectors_of_a_whitened_index_are_those_of_a_search(photos: Path, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    whitening = Whitening(np.zeros(5, np.float32), matrix, "h", "nothing", 2, 0.1)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder(), whiten=whitening) as index:
        index.sync(photos)
        export_clip(index._store.file, tmp_path / "clip")
        paths, expected = index.vectors()
    found = np.load(tmp_path / "clip" / "img_emb" / "img_emb_0.npy")
    there = pq.read_table(tmp_path / "clip" / "metadata" / "metadata_0.parquet")["image_path"].to_pylist()
    np.testing.assert_allclose(found, [expected[paths.index(path)] for path in there], atol=1e-6)
    with pytest.raises(ExportError, match="200 x 3 numbers, for 200 rows .* vectors of 5; give what belongs"):
        import_clip(tmp_path / "clip", tmp_path / "new", FakeEmbedder())
    embedder: Any = FakeEmbedder()
    embedder.whitening = whitening
    with pytest.raises(ExportError, match="they look whitened, .* export after `simclr-hub whiten INDEX --off`"):
        import_clip(tmp_path / "clip", tmp_path / "new", embedder)


def a_row_less(folder: Path) -> None:
    path = folder / "metadata" / "metadata_1.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)


def zero(folder: Path) -> None:
    path = folder / "img_emb" / "img_emb_1.npy"
    vectors = np.load(path)
    vectors[7] = 0
    np.save(path, vectors)


FAULTS = {
    "img_emb_1.npy: its other file is missing": lambda folder: (folder / "metadata" / "metadata_1.parquet").unlink(),
    "metadata_2.parquet: its other file is missing": lambda folder: (folder / "img_emb" / "img_emb_2.npy").unlink(),
    "img_emb_1.npy: 64 x 5 numbers, for 63 rows of metadata_1.parquet": a_row_less,
    "img_emb_1.npy: row 7 is zero": zero,
    "img_emb_0.npy: damaged": lambda folder: (folder / "img_emb" / "img_emb_0.npy").write_bytes(b"no array"),
    "metadata_0.parquet: damaged": lambda folder: (folder / "metadata" / "metadata_0.parquet").write_bytes(b"a"),
    "img_emb_0.npy: damaged, or no array": lambda folder: np.save(
        folder / "img_emb" / "img_emb_0.npy", np.array([{}], object), allow_pickle=True
    ),
    "img_emb_0.npy: int64 of shape": lambda folder: np.save(
        folder / "img_emb" / "img_emb_0.npy", np.ones((4, 5), int)
    ),
    "no image has a name": lambda folder: pq.write_table(
        pa.table({"caption": ["a"] * 64}), folder / "metadata" / "metadata_0.parquet"
    ),
    "no img_emb/img_emb_0.npy": shutil.rmtree,
}


@pytest.mark.parametrize("told", FAULTS)
def test_what_does_not_fit_is_named(told: str, exported: Path, tmp_path: Path) -> None:
    FAULTS[told](exported)
    with pytest.raises(ExportError, match=told):
        import_clip(exported, tmp_path / "new", FakeEmbedder())
    assert not (tmp_path / "new").exists()


def test_the_commands(run, exported: Path, photos: Path, tmp_path: Path) -> None:
    code, _, err = run("import", exported, "new.index")
    assert code == 2 and "does not tell which model made its vectors; name it: --model" in err
    code, _, err = run("import", exported / "img_emb", "new.index", "--model", "default")
    assert code == 2 and "img_emb is not in clip-retrieval's layout" in err
    code, _, err = run("import", exported, "new.index", "--model", "default")
    assert code == 1 and "64 x 5 numbers" in err and "256" in err
    code, _, err = run("export", tmp_path / "i", photos / "out", "--layout", "clip-retrieval")
    assert (code, "in the photo folder" in err) == (2, True), err
    assert run("export", tmp_path / "i", "again", "--layout", "clip-retrieval")[:2] == (0, "200 photos to again\n")
    code, _, err = run("export", tmp_path / "i", "again", "--layout", "clip-retrieval")
    assert code == 1 and "exists already" in err
    with pytest.raises(OutputError, match="in the photo folder"):
        export_clip(tmp_path / "i" / "store.sqlite3", photos / "out")
