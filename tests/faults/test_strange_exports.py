"""An exported index from a stranger: known keys of known types, or one error and nothing is made."""

import json
import os
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index_fakes import DIM, FakeEmbedder, make_photo

from simclr_hub.errors import ExportError
from simclr_hub.index import SimilarityIndex, parquet
from simclr_hub.index.store import STORE_NAME, Store, checksum, parse_info


@pytest.fixture
def exported(index, photos, settled, tmp_path):
    index.sync(photos)
    with index._store.writing(), index._store.transaction():
        for content_hash in {photo.content_hash for photo in index._store.photos()}:
            index._store.put_details(content_hash, {"format": "JPEG", "width": 10, "orientation": 3}, b"s")
    index.export(tmp_path / "out.parquet")
    return tmp_path / "out.parquet"


def rewrite(path: Path, change=None, header=None) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    if change:
        change(rows)
    record = json.loads(table.schema.metadata[b"simclr_hub"]) | {"photos": len(rows)}
    text = header(json.dumps(record)) if header else json.dumps(record)
    data = text.encode()
    schema = table.schema.with_metadata({b"simclr_hub": data, b"simclr_hub.crc32": b"%d" % zlib.crc32(data)})
    pq.write_table(pa.Table.from_pylist(rows, schema), path)


def refused(path: Path, said: str) -> None:
    before = sorted(os.listdir(path.parent))
    with pytest.raises(ExportError, match=said) as e:
        SimilarityIndex.from_export(path, path.with_name("new.index"))
    assert "out.parquet" in str(e.value) and len(str(e.value)) < 500
    assert sorted(os.listdir(path.parent)) == before


BAD_ROWS = {
    "huge": ({"other": '{"orientation": 1' + "0" * 400 + "}"}, "row 2: orientation is 1000"),
    "thousands of digits": ({"other": '{"orientation": 1' + "0" * 5000 + "}"}, "row 2: .*digits"),
    "nested": ({"other": '{"orientation": ' + "[" * 30000 + "]" * 30000 + "}"}, "row 2: other is nested"),
    "nested in the open": ({"other": "[" * 30000}, "row 2: other is nested"),
    "long": ({"other": "[" * 200_000}, "or one after it: other of 200,000 bytes"),
    "text": ({"other": '{"orientation": "3"}'}, "row 2: orientation is '3'"),
    "yes": ({"other": '{"orientation": true}'}, "row 2: orientation is True"),
    "a fraction": ({"other": '{"orientation": 1.5}'}, "row 2: orientation is 1.5"),
    "no number": ({"other": '{"orientation": NaN}'}, "row 2: orientation is nan"),
    "infinite": ({"other": '{"orientation": 1e999}'}, "row 2: orientation is inf"),
    "none": ({"other": '{"orientation": null}'}, "row 2: orientation is None"),
    "nine": ({"other": '{"orientation": 9}'}, "row 2: orientation is 9"),
    "unknown": ({"other": '{"x": 1}'}, "row 2: other has the key 'x'"),
    "another column's": ({"other": '{"width": 1}'}, "row 2: other has the key 'width'"),
    "a place": ({"other": '{"gps": [1, 2]}'}, "row 2: other has the key 'gps'"),
    "a surrogate": ({"other": '{"\\ud800": 1}'}, "row 2: other has the key"),
    "twice": ({"other": '{"orientation": 1, "orientation": 2}'}, "row 2: other has a key twice"),
    "no object": ({"other": "3"}, "row 2: other '3'"),
    "no JSON": ({"other": "{"}, "row 2: Expecting"),
    "a format with escapes": ({"format": "\x1b[31m"}, "row 2: format is "),
    "a long format": ({"format": "J" * 1000}, "row 2: format is 'JJJ"),
    "a time": ({"taken": "yesterday"}, "row 2: taken is 'yesterday'"),
    "other digits": ({"taken": "٢٠٢٠-01-01T00:00:00"}, "row 2: taken is"),
    "a camera with lines": ({"camera": "a\nb"}, "row 2: camera is"),
    "a width below 0": ({"width": -1}, "row 2: width is -1"),
    "a size without end": ({"stamp": "1" + "0" * 400 + " 1 1 1"}, "row 2: stamp"),
    "a size below 0": ({"stamp": "-5 1 1 1"}, "row 2: a file of -5 bytes"),
    "a size beyond 64 bits": ({"stamp": f"{1 << 64} 1 1 1"}, "row 2: a file of"),
    "a long name": ({"name": b"a" * 100_000}, "name of 100,000 bytes"),
    "a long signature": ({"signature": b"a" * 100_000}, "signature of 100,000 bytes"),
    "zeros": ({"vector": [0.0] * DIM}, "row 2: a vector of length 0, not 1"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_strange_row_is_one_error(what, exported):
    new, said = BAD_ROWS[what]
    rewrite(exported, lambda rows: rows[1].update(new))
    refused(exported, said)


def about(**changes):
    return lambda text: json.dumps((r := json.loads(text)) | {"about": r["about"] | changes})


BAD_HEADERS = {
    "nested": (lambda t: t[:-1] + ', "x": ' + "[" * 200_000 + "]" * 200_000 + "}", "cannot be read"),
    "digits": (lambda t: t.replace('"photos": ', '"photos": 1' + "0" * 5000), "cannot be read"),
    "infinite": (lambda t: json.dumps(json.loads(t) | {"photos": float("inf")}), "cannot be read"),
    "rows without end": (lambda t: json.dumps(json.loads(t) | {"photos": 1 << 40}), "tells of 1,099,511,627,776"),
    "dim yes": (about(dim=True), "made by"),
    "dim": (about(dim=1 << 30), "made by"),
    "a fingerprint of lists": (about(fingerprint={"weights": [[1]]}), "made by"),
    "a fingerprint without end": (about(fingerprint={"weights": "x" * 100_000}), "made by"),
    "patterns": (about(exclude=[3]), "made by"),
    "no patterns": (about(exclude="*.png"), "made by"),
    "hidden": (about(include_hidden=2), "made by"),
}


@pytest.mark.parametrize("what", BAD_HEADERS)
def test_a_strange_header_is_one_error(what, exported):
    header, said = BAD_HEADERS[what]
    rewrite(exported, header=header)
    refused(exported, said)


def test_a_text_that_rows_share_is_looked_at_once(exported, monkeypatch):
    """A dictionary of one long text, named by every row, is small in the file and large in memory."""
    rewrite(exported, lambda rows: [row.update(camera="c" * (1 << 20)) for row in rows])
    monkeypatch.setattr(parquet._Import, "_vectors", lambda *_: pytest.fail("read on"))
    refused(exported, "camera of 1,048,576 bytes")


def test_a_wide_export_is_read_in_small_batches(exported, monkeypatch):
    monkeypatch.setattr(parquet, "BATCH_BYTES", 8 * DIM)
    seen = []
    real = parquet._Import._vectors
    monkeypatch.setattr(parquet._Import, "_vectors", lambda s, b, at: seen.append(b.num_rows) or real(s, b, at))
    SimilarityIndex.from_export(exported, exported.with_name("new.index"), model=FakeEmbedder()).close()
    assert max(seen) == 2


STORED = [
    '{"orientation": 1' + "0" * 400 + "}",
    '{"orientation": ' + "[" * 200_000 + "]" * 200_000 + "}",
    '{"width": "wide", "height": [1], "taken": 3, "format": null, "x": {"a": 1}, "y": NaN, "gps": "here"}',
    "[1, 2]",
    "{",
]


@pytest.mark.parametrize("info", STORED, ids=range(len(STORED)))
def test_what_an_older_import_let_in_stops_neither_a_sync_nor_a_search(info, index, photos, settled, tmp_path):
    index.sync(photos)
    index.close()
    with closing(Store(tmp_path / "photos.index" / STORE_NAME)) as store, store.writing(), store.transaction():
        for content_hash in {photo.content_hash for photo in store.photos()}:
            columns = (content_hash, info, b"s")
            store._execute("INSERT OR REPLACE INTO details VALUES (?, ?, ?, ?)", *columns, checksum(*columns))
            store._changed.add(content_hash)
            store._visible = True
    make_photo(photos / "new.png", 33)
    with SimilarityIndex.open(tmp_path / "photos.index", model=FakeEmbedder()) as again:
        report = again.sync(photos)
        assert report.embedded == 1
        assert again.search(photos / "a.png", k=3, where={"bytes": (1, None)})
        assert again.search(photos / "a.png", k=3, where={"width": (1, None)}) is not None
        again.duplicates()


def test_what_is_known_is_kept_and_the_rest_left_out():
    kept = {
        "format": "JPEG",
        "width": 3,
        "orientation": 8,
        "gps": [1.5, -2],
        "x": [1, "a"],
        "bytes": 5,
        "modified": 1.5,
    }
    assert parse_info(json.dumps(kept)) == kept
    assert parse_info(json.dumps({"width": True, "orientation": 0, "gps": [91, 0], "camera": "a\x1b"})) == {}
    assert parse_info(b'{"a": 1e999, "b": NaN, "c": {"d": 1}, "e": [[1]]}') == {}
    assert np.isfinite(float(parse_info('{"n": 1' + "0" * 30 + "}")["n"]))
