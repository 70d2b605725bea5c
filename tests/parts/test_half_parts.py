"""Parts of numbers of 16 bits: half the bytes, the same images found, and never among those of 32."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from drawn_parts import draw_parts, units
from index.index_fakes import FakeEmbedder, make_photo

from simclr_hub.embedder import Embedding
from simclr_hub.errors import ExportError, PartsError
from simclr_hub.index import SimilarityIndex
from simclr_hub.parts.check import check_parts
from simclr_hub.parts.part import Worker
from simclr_hub.parts.plan import make_plan
from simclr_hub.parts.run import run_parts
from simclr_hub.parts.storage import Folder
from simclr_hub.parts.to_index import import_parts
from simclr_hub.vectors.rows import part_names, read_rows
from simclr_hub.whitening import Whitening

DIM = 32


@pytest.mark.parametrize("whitened", [False, True])
def test_an_index_and_a_server_get_them_as_good_as_those_of_32(whitened: bool, tmp_path: Path) -> None:
    vectors = units(300, DIM, seed=1)
    whitening = Whitening.learn(vectors, learnt_from="drawn", shrinkage=0.02) if whitened else None
    kinds = {half: draw_parts(tmp_path / f"p{half}", [vectors], whitening=whitening, half=half) for half in (0, 1)}
    sizes, found, rows = {}, {}, {}
    for half, folder in kinds.items():
        (name,) = part_names(folder)
        column = pq.read_table(Path(folder.place, f"{name}.parquet")).column("vector")
        assert column.type.value_type == (pa.float16() if half else pa.float32())
        sizes[half] = column.nbytes
        import_parts(folder.place, tmp_path / f"{half}.index")
        with SimilarityIndex.open(tmp_path / f"{half}.index") as index:
            assert index.check().problems == []
            found[half] = index.vectors()[1]
        rows[half] = read_rows(folder, name).vectors
    assert sizes[1] < 0.55 * sizes[0]
    for got in (found, rows):
        assert got[1].dtype == np.float32 and not np.array_equal(got[0], got[1])
        np.testing.assert_allclose(np.linalg.norm(got[1], axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(np.sum(got[0] * got[1], axis=1), 1, atol=1e-4 if whitened else 1e-6)


def test_what_was_changed_is_refused(tmp_path: Path) -> None:
    vectors = units(100, DIM, seed=1)
    whitening = Whitening.learn(vectors, learnt_from="drawn", shrinkage=0.02)
    folder = draw_parts(tmp_path / "p", [vectors], whitening=whitening, half=True)
    (name,) = part_names(folder)
    path = Path(folder.place, f"{name}.parquet")
    table = pq.read_table(path)
    for column, change in {"vector": lambda v: v[::-1], "features": lambda v: v * np.float16(1.01)}.items():
        changed = table.column(column).to_pylist()
        changed[7] = change(np.array(changed[7], np.float16))
        at = table.schema.get_field_index(column)
        field = table.schema.field(at)
        pq.write_table(table.set_column(at, field, pa.array(changed, field.type)), path)
        with pytest.raises(ExportError, match="row 8: (its vector is not its features whitened|a vector of length)"):
            import_parts(folder.place, tmp_path / "new.index")
        assert not (tmp_path / "new.index").exists()


def test_no_folder_holds_both(many: Path, tmp_path: Path) -> None:
    plan, out = make_plan([str(many)], tmp_path / "plan", images=8), tmp_path / "out"
    run_parts(plan, out, FakeEmbedder, worker=(1, 2), half=True)
    with pytest.raises(PartsError, match=r"holds parts made by fake \(w1, 16 bits\), not fake \(w1\)"):
        _raise_first(run_parts(plan, out, FakeEmbedder).failed)
    Worker(plan, Folder(out), FakeEmbedder()).embed(list(plan.parts)[1])
    report = check_parts(plan, Folder(out))
    assert list(report.other_maker) == [f"{list(plan.parts)[1]}.parquet"]
    (out / f"{list(plan.parts)[1]}.parquet").unlink()
    assert run_parts(plan, out, FakeEmbedder, half=True).failed == {}
    assert check_parts(plan, Folder(out)).complete


def _raise_first(failed: dict[str, str]) -> None:
    raise PartsError(next(iter(failed.values())))


class NoisyEmbedder(FakeEmbedder):
    """Embeds a content a little differently each time, as other machines and batches do."""

    noise = 1e-6

    def stream(self, images: Iterable, *, signatures: bool = False) -> Iterator:
        for number, result in enumerate(super().stream(images, signatures=signatures)):
            good = isinstance(result, Embedding)
            vector = result.vector * (1 + self.noise * np.arange(result.vector.size) * number) if good else None
            yield replace(result, vector=vector) if good else result


def test_a_content_of_two_parts_may_differ_by_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(4):
        make_photo(tmp_path / "photos" / f"{i}.png", seed=0 if i in (0, 3) else i)
    plan = make_plan([str(tmp_path / "photos")], tmp_path / "plan", images=2)
    for noise, out in ((1e-6, "near"), (0.5, "far")):
        monkeypatch.setattr(NoisyEmbedder, "noise", noise)
        worker = Worker(plan, Folder(tmp_path / out), NoisyEmbedder())
        assert {worker.embed(name).state for name in plan.parts} == {"made"}
    assert import_parts(tmp_path / "near", tmp_path / "near.index") == 4
    with pytest.raises(ExportError, match="another vector of the content"):
        import_parts(tmp_path / "far", tmp_path / "far.index")
