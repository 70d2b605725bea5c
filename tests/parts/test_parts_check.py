"""The proof of parts: nothing missing, doubled, damaged, foreign or of another model goes through."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index.index_fakes import FakeEmbedder
from parts_fixtures import Made

from simclr_hub.errors import OutputError, PartsError
from simclr_hub.parts.check import PartsReport, check_parts
from simclr_hub.parts.part import Worker
from simclr_hub.parts.plan import Plan
from simclr_hub.parts.run import prepare
from simclr_hub.parts.storage import Folder


def copy(path: Path) -> None:
    shutil.copy(path, path.with_name("copy.parquet"))


def another_row(path: Path) -> None:
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table.slice(0, 1)]), path)


def one_row_less(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


def stranger(path: Path) -> None:
    pq.write_table(pa.table({"a": [1]}), path.with_name("stranger.parquet"))


FAULTS: dict[Callable[[Path], object], str] = {
    Path.unlink: "missing",
    copy: "doubled",
    another_row: "doubled",
    one_row_less: "damaged",
    stranger: "foreign",
    lambda path: path.with_name("notes.txt").write_text("x"): "foreign",
    lambda path: path.write_bytes(b""): "damaged",
    lambda path: path.write_bytes(path.read_bytes()[:-100]): "damaged",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named(fault: Callable[[Path], object], many: Path, made: Made) -> None:
    plan, out, _ = made(many)
    good = check_parts(plan, out)
    assert good.complete and (good.whole, good.rows, good.unusable) == (6, 30, 2)
    path = Path(out.place, f"{list(plan.parts)[2]}.parquet")
    fault(path)
    report = check_parts(plan, out)
    assert not report.complete
    named = {kind: getattr(report, kind) for kind in ("missing", "damaged", "doubled", "foreign", "other_maker")}
    assert {kind: len(files) for kind, files in named.items() if files} == {FAULTS[fault]: 1}


def test_a_quick_check_reads_no_vectors(many: Path, made: Made) -> None:
    plan, out, _ = made(many)
    assert check_parts(plan, out, quick=True) == check_parts(plan, out)


def test_parts_of_another_model_and_of_another_plan(many: Path, shards: Path, made: Made, tmp_path: Path) -> None:
    plan, out, _ = made(many)
    name = list(plan.parts)[3]
    out.remove(f"{name}.parquet")
    Worker(plan, out, FakeEmbedder(weights="w2")).embed(name)
    report: PartsReport = check_parts(plan, out)
    assert not report.complete and list(report.other_maker) == [f"{name}.parquet"] and "w2" in str(report.other_maker)
    out.remove(f"{name}.parquet")
    Worker(plan, out, FakeEmbedder(model="the same elsewhere")).embed(name)
    assert check_parts(plan, out).complete


def test_a_flipped_bit_is_found_or_changes_nothing(many: Path, made: Made) -> None:
    plan, out, _ = made(many)
    path = Path(out.place, f"{list(plan.parts)[2]}.parquet")
    data, table, chance = path.read_bytes(), pq.read_table(path), random.Random(0)
    found = 0
    for _ in range(50):
        bits = bytearray(data)
        bits[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        path.write_bytes(bits)
        if not check_parts(plan, out).complete:
            found += 1
        else:  # such as one of a page's statistics
            assert pq.read_table(path).equals(table)
    assert found > 25


def test_json_without_end_is_refused_and_no_traceback(many: Path, made: Made, tmp_path: Path) -> None:
    plan, out, _ = made(many)
    deep = b"[" * 60_000
    name = f"{next(iter(plan.parts))}.parquet"
    table = pq.read_table(Path(out.place, name))
    metadata = dict(table.schema.metadata) | {b"simclr_hub.part": deep}
    pq.write_table(table.replace_schema_metadata(metadata), Path(out.place, name))
    assert list(check_parts(plan, out).damaged) == [name]
    Path(out.place, "_plan.json").write_bytes(deep)
    with pytest.raises(PartsError, match="the parts of another plan"):
        check_parts(plan, out)
    parts = pq.read_table(tmp_path / "plan" / "parts.parquet")
    key = next(iter(parts.schema.metadata))
    pq.write_table(parts.replace_schema_metadata({key: deep}), tmp_path / "plan" / "parts.parquet")
    with pytest.raises(PartsError, match="parts.parquet is damaged"):
        Plan.read(tmp_path / "plan")


def test_a_link_to_the_plan_is_no_place_for_parts(many: Path, made: Made, tmp_path: Path) -> None:
    plan, _, _ = made(many)
    (tmp_path / "link").symlink_to(tmp_path / "plan")
    with pytest.raises(OutputError, match="where nothing is written"):
        prepare(Folder(tmp_path / "link" / "out"), plan)
