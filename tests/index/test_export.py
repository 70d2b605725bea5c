"""An index to Parquet and back: the same index, and nothing that is not what it must be comes in."""

import json
import os
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_fakes import DIM, FakeEmbedder, check_index, make_photo
from PIL import Image

from simclr_hub.errors import ExportError, IndexExistsError, IndexNotFoundError, OutputError
from simclr_hub.index import SimilarityIndex, parquet, sync


@pytest.fixture
def filled(index: SimilarityIndex, photos: Path, settled: None) -> SimilarityIndex:
    """Four photos, a copy, one missing, one failed, one with a name that is no text; a pair called different."""
    make_photo(photos / "copy of a.png", 0)
    make_photo(photos / "gone.png", 7)
    make_photo(photos / os.fsdecode(b"no text \xff\n.png"), 8)
    (photos / "broken.jpg").write_bytes(b"no image")
    index.sync(photos)
    (photos / "gone.png").unlink()
    index.sync(photos)
    hashes = sorted({photo.content_hash for photo in index._store.photos() if photo.content_hash})
    with index._store.writing(), index._store.transaction():
        index._store.put_distinct(hashes[0], hashes[1])
        for content_hash, seed in zip(hashes, range(10), strict=False):
            info = {
                "format": "JPEG",
                "width": 10 * seed,
                "camera": "C",
                "taken": "2020-01-01T00:00:00",
                "orientation": 3,
            }
            index._store.put_details(content_hash, info, bytes([seed]))
    return index


@pytest.fixture
def exported(filled: SimilarityIndex, tmp_path: Path) -> Path:
    assert filled.export(tmp_path / "out.parquet") == 7
    return tmp_path / "out.parquet"


def held(index: SimilarityIndex) -> tuple[Any, ...]:
    """All that an index holds, without the failed photos, which no export has."""
    store = index._store
    paths, vectors = index.vectors()
    with store.reading():
        photos = [photo for photo in store.photos() if photo.state != "failed"]
        return store.about, store.roots(), photos, dict(store.details()), store.distinct(), paths, vectors.tobytes()


def test_there_and_back(
    filled: SimilarityIndex, exported: Path, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with SimilarityIndex.from_export(exported, tmp_path / "new.index", model=FakeEmbedder()) as index:
        assert held(index) == held(filled)
        assert len(check_index(index)) == 6
        assert index.check().sound
        real, read = sync.read_file, []

        def reading(path: bytes, **options: Any) -> Any:
            read.append(path)
            return real(path, **options)

        monkeypatch.setattr(sync, "read_file", reading)
        report = index.sync(photos)
        assert (report.unchanged, report.failed, report.missing, report.embedded) == (6, 1, 1, 0)
        assert read == [bytes(photos / "broken.jpg")]


def test_columns_for_other_programs(exported: Path, photos: Path) -> None:
    table = pq.read_table(exported)
    rows = {row["path"]: row for row in table.to_pylist()}
    row = rows[str(photos / "a.png")]
    assert row["state"] == "live" and row["format"] == "JPEG" and row["camera"] == "C"
    assert row["bytes"] == (photos / "a.png").stat().st_size
    assert abs(row["modified"].timestamp() - (photos / "a.png").stat().st_mtime) < 1e-5
    assert len(row["vector"]) == DIM and abs(np.linalg.norm(row["vector"]) - 1) < 1e-6
    assert rows[str(photos / "gone.png")]["state"] == "missing"
    assert str(photos / "no text \\udcff\\n.png") in rows
    assert "latitude" not in table.column_names
    record = json.loads(table.schema.metadata[b"simclr_hub"])
    assert record["about"]["fingerprint"] == {"model": "fake", "weights": "w1"}
    assert record["roots"] == [[str(photos), "ok"]] and record["photos"] == 7


@pytest.mark.parametrize("gps", [True, False])
def test_places_only_if_they_are_recorded(tmp_path: Path, photos: Path, gps: bool) -> None:
    with SimilarityIndex.create(tmp_path / "i", model=FakeEmbedder(), gps=gps) as index:
        index.sync(photos)
        content_hash = index._store.photos()[0].content_hash
        assert content_hash
        with index._store.writing(), index._store.transaction():
            index._store.put_details(content_hash, {"gps": [12.5, -99.25]}, b"s")
        index.export(tmp_path / "out.parquet")
        with SimilarityIndex.from_export(tmp_path / "out.parquet", tmp_path / "j", model=FakeEmbedder()) as other:
            assert held(other) == held(index)
    table = pq.read_table(tmp_path / "out.parquet")
    assert ("latitude" in table.column_names) == gps
    if gps:
        assert (table["latitude"][0].as_py(), table["longitude"][0].as_py()) == (12.5, -99.25)


def test_an_empty_index(index: SimilarityIndex, tmp_path: Path) -> None:
    assert index.export(tmp_path / "out.parquet") == 0
    with SimilarityIndex.from_export(tmp_path / "out.parquet", tmp_path / "j", model=FakeEmbedder()) as other:
        assert held(other) == held(index)


def test_nothing_is_overwritten(filled: SimilarityIndex, exported: Path, tmp_path: Path) -> None:
    data = exported.read_bytes()
    with pytest.raises(FileExistsError, match="out.parquet exists already"):
        filled.export(exported)
    with pytest.raises(IndexExistsError, match="photos.index exists already"):
        SimilarityIndex.from_export(exported, tmp_path / "photos.index")
    with pytest.raises(IndexNotFoundError, match="nowhere.parquet: no such file"):
        SimilarityIndex.from_export(tmp_path / "nowhere.parquet", tmp_path / "new.index")
    assert exported.read_bytes() == data and not (tmp_path / "new.index").exists()


def test_nothing_is_made_below_the_photos_that_a_file_tells_of(exported: Path, photos: Path) -> None:
    before = sorted(photos.rglob("*"))
    with pytest.raises(OutputError, match="in the photo folder"):
        SimilarityIndex.from_export(exported, photos / "made/again")
    assert sorted(photos.rglob("*")) == before


def test_rows_go_through_in_groups(filled: SimilarityIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "GROUP_BYTES", 3 * 4 * DIM)
    monkeypatch.setattr(parquet, "PAGE", 2)
    monkeypatch.setattr(parquet, "BATCH", 2)
    calls: list[tuple[int, int]] = []
    filled.export(tmp_path / "out.parquet", progress=lambda *now: calls.append(now))
    assert calls == [(3, 7), (6, 7), (7, 7)]
    assert pq.ParquetFile(tmp_path / "out.parquet").num_row_groups == 3
    back: list[tuple[int, int]] = []
    with SimilarityIndex.from_export(
        tmp_path / "out.parquet", tmp_path / "j", model=FakeEmbedder(), progress=lambda *now: back.append(now)
    ) as other:
        assert held(other) == held(filled)
    assert back[-1] == (7, 7) and len(back) > 3


# What must not come in: a change to the rows or the header, and what is said.


def change(exported: Path, rows: Callable[[list[dict[str, Any]]], Any] | None, header: dict[str, Any]) -> Path:
    table = pq.read_table(exported)
    content = table.to_pylist()
    if rows:
        rows(content)
    record = json.loads(table.schema.metadata[b"simclr_hub"]) | {"photos": len(content)} | header
    text = json.dumps(record).encode()
    schema = table.schema.with_metadata({b"simclr_hub": text, b"simclr_hub.crc32": b"%d" % zlib.crc32(text)})
    pq.write_table(pa.Table.from_pylist(content, schema), exported)
    return exported


def refused(exported: Path, tmp_path: Path, why: str) -> None:
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(ExportError, match=why) as error:
        SimilarityIndex.from_export(exported, tmp_path / "new.index")
    assert "out.parquet" in str(error.value)
    assert sorted(os.listdir(tmp_path)) == before


BAD_ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "not a number": ({"vector": [np.nan] * DIM}, "row 3: a vector of length nan, not 1"),
    "infinite": ({"vector": [np.inf] + [0.0] * (DIM - 1)}, "row 3: a vector of length inf, not 1"),
    "long": ({"vector": [2.0] + [0.0] * (DIM - 1)}, "row 3: a vector of length 2, not 1"),
    "no vector": ({"vector": None}, "no vector"),
    "no hash": ({"hash": None}, "row 3: hash None"),
    "another state": ({"state": "failed"}, "row 3: .*state 'failed'"),
    "no root": ({"root": 1}, "row 3: root 1, of 1"),
    "upwards": ({"name": b"../../etc/passwd"}, "row 3: the name ../../etc/passwd leaves its folder"),
    "hidden upwards": ({"name": b"a/../../x.png"}, "leaves its folder"),
    "absolute": ({"name": b"/etc/passwd"}, "row 3: the name /etc/passwd leaves its folder"),
    "NUL": ({"name": b"a\0b"}, "row 3: the name b'a"),
    "no name": ({"name": None}, "row 3: the name None"),
    "a stamp": ({"stamp": "1 2 3"}, "row 3: stamp '1 2 3'"),
    "no stamp": ({"stamp": "a b c d"}, "row 3: invalid literal"),
    "other": ({"other": "[]"}, r"row 3: other '\[\]'"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row(exported: Path, tmp_path: Path, what: str) -> None:
    new, why = BAD_ROWS[what]
    refused(change(exported, lambda rows: rows[2].update(new), {}), tmp_path, why)


def test_rows_that_contradict_each_other(exported: Path, tmp_path: Path) -> None:
    whole = exported.read_bytes()
    refused(change(exported, lambda rows: rows.append(rows[0]), {}), tmp_path, "row 8: a second row of a.png")
    exported.write_bytes(whole)
    first, last = [1.0] + [0.0] * (DIM - 1), [0.0] * (DIM - 1) + [1.0]

    def contradict(rows: list[dict[str, Any]]) -> None:
        rows[0].update(vector=first)
        rows[1].update(vector=last, hash=rows[0]["hash"])

    refused(change(exported, contradict, {}), tmp_path, "row 2: another vector of the content")
    exported.write_bytes(whole)
    refused(change(exported, None, {"photos": 8}), tmp_path, "7 rows, but it tells of 8")


BAD_HEADERS: dict[str, tuple[dict[str, Any], str]] = {
    "newer": ({"layout": 99}, "layout 99, made by a newer simclr_hub: upgrade"),
    "no root": ({"roots": [["photos", "ok"]]}, "a root folder photos: not an absolute path"),
    "upwards": ({"roots": [["/photos/../etc", "ok"]]}, "not an absolute path"),
    "nested": ({"roots": [["/a", "ok"], ["/a/b", "ok"]]}, "root folders that contain one another: /a/b"),
    "nested, the upper last": ({"roots": [["/a/b", "ok"], ["/a", "ok"]]}, "that contain one another: /a"),
    "listing": ({"roots": [["/a", "fine"]]}, "a root folder's listing: 'fine'"),
    "surrogate": ({"roots": [["/a\ud800", "ok"]]}, "surrogates not allowed"),
    "pairs": ({"distinct": [["x", "y"]]}, "a pair of different pictures"),
    "no pairs": ({"distinct": 7}, "cannot be read"),
    "about": ({"about": {"dim": DIM}}, "what it tells of the vectors cannot be read"),
    "dim": ({"about": {"dim": DIM + 1, "fingerprint": {}}}, r"its column vector is fixed_size_list.*\[5\], not"),
    "metric": ({"about": {"dim": DIM, "fingerprint": {}, "metric": "L2"}}, "made by"),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_a_bad_header(exported: Path, tmp_path: Path, what: str) -> None:
    new, why = BAD_HEADERS[what]
    refused(change(exported, None, new), tmp_path, why)


def test_a_header_that_was_edited(exported: Path, tmp_path: Path) -> None:
    table = pq.read_table(exported)
    text = table.schema.metadata[b"simclr_hub"].replace(b"w1", b"w2")
    pq.write_table(table.replace_schema_metadata(dict(table.schema.metadata) | {b"simclr_hub": text}), exported)
    refused(exported, tmp_path, "does not match its checksum")


def test_what_is_no_export(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = exported.read_bytes()
    monkeypatch.setattr(parquet, "GROUP_LIMIT", 100)
    refused(exported, tmp_path, "a row group of .* bytes, more than 100")
    pq.write_table(pa.table({"path": ["a"]}), exported)
    refused(exported, tmp_path, "not exported by simclr_hub")
    exported.write_bytes(b"no Parquet at all")
    refused(exported, tmp_path, "damaged, or not a Parquet file")
    for n in range(4, len(whole), len(whole) // 20):
        exported.write_bytes(whole[:n])
        refused(exported, tmp_path, "damaged, or not a Parquet file")


def test_damaged_bytes_are_noticed_or_change_nothing(filled: SimilarityIndex, exported: Path, tmp_path: Path) -> None:
    whole, expected = exported.read_bytes(), held(filled)
    draw = np.random.default_rng(0)
    noticed = 0
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[draw.integers(len(whole))] ^= int(draw.integers(1, 256))
        exported.write_bytes(damaged)
        try:
            with SimilarityIndex.from_export(exported, tmp_path / "new.index", model=FakeEmbedder()) as index:
                there = held(index)
        except ExportError:
            noticed += 1
            continue
        finally:
            shutil.rmtree(tmp_path / "new.index", ignore_errors=True)
        assert there[2:] == expected[2:]
    assert noticed > 40


def test_an_export_of_windows_is_taken_and_moved_here(
    exported: Path, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def windows(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["name"] = row["name"].replace(b"/", b"\\")

    change(exported, windows, {"separator": "\\", "roots": [["D:\\Photos", "ok"]]})
    embedder = FakeEmbedder()
    with SimilarityIndex.from_export(exported, tmp_path / "new.index", model=embedder) as index:
        report = index.sync(photos, moved_from="D:\\Photos\\")
        assert (report.unchanged, report.failed, embedder.embedded) == (6, 1, 0)
        assert len(check_index(index)) == 6


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four times the photos, the same memory: of Python's objects, since Arrow's pool keeps what it once had."""
    peaks = []
    monkeypatch.setattr(parquet, "GROUP_BYTES", 50 * 4 * DIM)
    monkeypatch.setattr(parquet, "PAGE", 50)
    for n in (100, 400):
        for i in range(n):
            path = tmp_path / f"{n}/{i}.bmp"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (1, 1), (i % 256, i // 256, 1)).save(path)
        with SimilarityIndex.create(tmp_path / f"{n}.index", model=FakeEmbedder()) as index:
            index.sync(tmp_path / str(n))
            tracemalloc.start()
            index.export(tmp_path / f"{n}.parquet")
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
