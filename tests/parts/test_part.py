"""One part: whole or not there, a row for every image, and no exception whatever happens."""

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index.index_fakes import FakeEmbedder, expected_vector, make_photo, tree_state
from parts_fixtures import Made, png

from simclr_hub import SimilarityIndex
from simclr_hub.errors import ExportError, UnreadableImageError
from simclr_hub.index.parquet import import_index
from simclr_hub.parts import part as part_module
from simclr_hub.parts import read
from simclr_hub.parts.part import Worker
from simclr_hub.parts.storage import Folder
from simclr_hub.parts.to_index import import_parts


def rows(out: Folder) -> list[dict]:
    return [row for path in sorted(Path(out.place).glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_a_row_for_every_image(many: Path, made: Made) -> None:
    before = tree_state(many)
    plan, out, results = made(many)
    assert [(result.state, result.rows) for result in results] == [("made", 5)] * 6
    assert sum(result.unusable for result in results) == 2
    found = {os.fsdecode(row["name"]): row for row in rows(out)}
    assert set(found) == {str(path.relative_to(many)) for path in many.rglob("*") if path.is_file()}
    for name, row in found.items():
        if name.startswith("broken"):
            assert row["state"] == "failed" and row["vector"] is None and "not an image" in row["error"]
        else:
            np.testing.assert_allclose(row["vector"], expected_vector(many / name), atol=1e-6)
            assert row["error"] is None and row["width"] == 4
    assert tree_state(many) == before
    worker = Worker(plan, out, FakeEmbedder())
    assert {worker.embed(name).state for name in plan.parts} == {"there"}
    assert out.sizes("_attempts") == {}


def test_keys_of_img2dataset_and_of_tables(shards: Path, table: Path, made: Made) -> None:
    _, out, results = made(shards, table)
    assert {result.state for result in results} == {"made"}
    found = {row["path"]: row for row in rows(out)}
    assert [row["key"] for path, row in sorted(found.items()) if "00001.tar" in path] == [
        f"00001{i:04d}" for i in range(6)
    ]
    assert found[f"{table}/3"]["key"] == "k3" and "no bytes" in found[f"{table}/10"]["error"]
    # What the table beside an archive tells of an image is found by the key.
    beside = pq.read_table(shards / "00001.parquet").to_pylist()
    (told,) = [row for row in beside if row["key"] == found[f"{shards}/00001.tar/000010002.png"]["key"]]
    assert told["url"] == "https://example.org/1/2.jpg" and told["status"] == "success"
    np.testing.assert_allclose(
        found[f"{shards}/00001.tar/000010002.png"]["vector"], np.array(_vector(png(12))), atol=1e-6
    )


def _vector(data: bytes) -> np.ndarray:
    (item,) = FakeEmbedder().stream([data])
    return item.vector / np.linalg.norm(item.vector)


def test_an_index_of_parts_knows_the_folder(many: Path, made: Made, tmp_path: Path, settled: None) -> None:
    made(many)
    assert import_parts(tmp_path / "out", tmp_path / "new.index") == 30
    with SimilarityIndex.open(tmp_path / "new.index", model=FakeEmbedder()) as index:
        assert len(index) == 28 and len(index.failures()) == 2
        report = index.sync(many)
        assert (report.unchanged, report.embedded, report.missing) == (28, 0, 0)
        assert index.export(tmp_path / "again.parquet") == 28
    assert import_index(tmp_path / "again.parquet", tmp_path / "again.index") == 28


def test_no_index_of_some_of_the_parts(many: Path, made: Made, tmp_path: Path) -> None:
    plan, out, _ = made(many)
    first, second = (Path(out.place, f"{name}.parquet") for name in list(plan.parts)[:2])
    kept = first.read_bytes()
    first.unlink()
    with pytest.raises(ExportError, match="5 of 6 parts"):
        import_parts(out.place, tmp_path / "new.index")
    shutil.copy(second, first)
    with pytest.raises(ExportError, match="under another name"):
        import_parts(out.place, tmp_path / "new.index")
    first.write_bytes(kept[:-50])
    with pytest.raises(ExportError, match="damaged"):
        import_parts(out.place, tmp_path / "new.index")
    assert not (tmp_path / "new.index").exists()


def test_a_failed_row_with_a_content_is_refused(many: Path, made: Made, tmp_path: Path) -> None:
    _, out, _ = made(many, images=50)
    (path,) = Path(out.place).glob("*.parquet")
    table = pq.read_table(path)
    hashes = pa.array([row["hash"] or b"x" * 32 for row in table.to_pylist()], pa.binary(32))
    at = table.schema.get_field_index("hash")
    pq.write_table(table.set_column(at, table.schema.field(at), hashes), path)
    with pytest.raises(ExportError, match="row 29: hash"):
        import_parts(out.place, tmp_path / "new.index")
    assert not (tmp_path / "new.index").exists()


def test_what_is_wrong_with_a_part_is_its_result(
    many: Path, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _, _ = made(many)
    name, out = next(iter(plan.parts)), Folder(tmp_path / "other")
    worker = Worker(plan, out, FakeEmbedder())
    with monkeypatch.context() as patch:
        patch.setattr(FakeEmbedder, "stream", lambda *_, **__: 1 / 0)
        result = worker.embed(name)
        assert (result.state, result.error, result.attempt) == ("failed", "ZeroDivisionError: division by zero", 1)
    with monkeypatch.context() as patch:  # a disk that fails is no fault of the images
        patch.setattr(read, "read_file", _failing)
        result = worker.embed(name)
        assert result.state == "failed" and "Input/output error" in str(result.error) and result.attempt == 2
    many.rename(tmp_path / "away")
    many.mkdir()  # as where a disk is not mounted
    assert "is the disk mounted" in str(worker.embed(name).error)
    many.rmdir()
    assert "is the disk mounted" in str(worker.embed(name).error)
    assert not [file for file in out.sizes() if file.endswith(".parquet")]
    (tmp_path / "away").rename(many)
    made_by = {"model": "m", "weights": "another"}
    assert "holds parts made by m (another)" in str(Worker(plan, out, FakeEmbedder(), None, made_by).embed(name).error)
    assert worker.embed(name).state == "made" and out.sizes("_attempts") == {}


def _failing(path: bytes) -> None:
    raise UnreadableImageError("x: Input/output error") from OSError(5, "Input/output error")


def test_an_archive_that_changed_is_not_embedded(shards: Path, made: Made, tmp_path: Path) -> None:
    plan, _, _ = made(shards)
    os.utime(shards / "00000.tar", ns=(0, 0))
    first, second = (Worker(plan, Folder(tmp_path / "o"), FakeEmbedder()).embed(name) for name in plan.parts)
    assert first.state == "failed" and "changed since it was planned" in str(first.error) and second.state == "made"


def test_a_second_attempt_decodes_in_a_child(many: Path, made: Made, tmp_path: Path, monkeypatch) -> None:
    plan, _, _ = made(many)
    name, out = next(iter(plan.parts)), Folder(tmp_path / "other")
    worker, decoded = Worker(plan, out, FakeEmbedder()), []

    def alone(paths: list[bytes]) -> dict[bytes, str]:
        decoded.extend(paths)
        return {paths[1]: f"{os.fsdecode(paths[1])}: decoding it ends the process: SIGSEGV"}

    monkeypatch.setattr(part_module, "decode_sandboxed", alone)
    out.put(f"_attempts/{name}.1", b"")
    result = worker.embed(name)
    assert (result.state, result.attempt, len(decoded)) == ("made", 2, 5)
    bad = [row for row in rows(out) if "ends the process" in str(row["error"])]
    assert len(bad) == 1 and bad[0]["error"].startswith(bad[0]["path"])


def test_a_sync_keeps_what_lies_in_archives_while_they_are_there(shards: Path, made: Made, tmp_path: Path) -> None:
    make_photo(shards / "single.png", 77)
    _, out, _ = made(shards)
    import_parts(out.place, tmp_path / "i")
    archive, away = shards / "00000.tar", tmp_path / "00000.tar"
    with SimilarityIndex.open(tmp_path / "i", FakeEmbedder()) as index:
        everything = index.vectors()[0]
        assert len(everything) > 10 and index.sync(shards).missing == 0 and index.vectors()[0] == everything
        inside = sum(path.startswith(str(archive)) for path in everything)
        archive.rename(away)
        assert index.sync(shards).missing == inside and len(index.vectors()[0]) == len(everything) - inside
        away.rename(archive)
        report = index.sync(shards)
        assert (report.missing, report.came_back, report.embedded) == (0, inside, 0)
        assert index.sync(shards.parent).missing == 0 and index.vectors()[0] == everything  # its root in a larger one
        os.utime(archive, ns=(0, 0))  # another archive: nobody knows what is in it
        assert index.sync(shards).missing == inside and index.check().problems == []
