"""Loading: idempotent, resumed by part, refused where vectors mean something else, and deletes that stay."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from drawn_parts import FINGERPRINT, draw_parts, units
from server_fixtures import COUNT, DIM

from simclr_hub.errors import ExportError, PartsError, VectorServerError
from simclr_hub.parts.storage import Folder
from simclr_hub.vectors.check import check_vectors
from simclr_hub.vectors.connect import connect
from simclr_hub.vectors.find import search
from simclr_hub.vectors.load import load_parts, write_tombstone
from simclr_hub.vectors.rows import part_names, read_rows
from simclr_hub.vectors.server import VectorServer
from simclr_hub.whitening import Whitening


def test_loading_twice_gives_the_same_count(drawn: Folder, server: VectorServer, url: str) -> None:
    told: list[tuple[int, int, str]] = []
    first = load_parts(drawn.place, server, progress=lambda *now: told.append(now))
    assert (first.parts, first.there, first.loaded, first.images, first.count) == (6, 0, 6, COUNT, COUNT)
    assert told[:6] == [(1, 6, "loading parts")] * 6
    other = connect(url)  # another process knows what was loaded
    second = load_parts(drawn.place, other)
    assert (second.there, second.loaded, second.images, second.count) == (6, 0, 0, COUNT)
    again = load_parts(drawn.place, other, again=True)
    assert (again.loaded, again.images, again.count) == (6, COUNT, COUNT)
    other.close()
    assert check_vectors(drawn.place, server).complete


def test_a_stopped_load_goes_on_with_the_next_part(drawn: Folder, server: VectorServer) -> None:
    def stop(n: int, total: int, what: str) -> None:
        if len(server.parts()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_parts(drawn.place, server, progress=stop)
    assert server.count() == 200
    report = check_vectors(drawn.place, server)
    assert not report.complete and sum(report.missing.values()) == 400 and len(report.missing) == 4
    rest = load_parts(drawn.place, server)
    assert (rest.there, rest.loaded, rest.count) == (2, 4, COUNT)


def test_an_image_of_a_later_part_takes_the_place_of_the_earlier(drawn: Folder, server: VectorServer) -> None:
    load_parts(drawn.place, server)
    rows = read_rows(drawn, part_names(drawn)[0])
    server.put("of another plan", replace(rows, vectors=units(100, DIM, seed=9)))
    assert server.count() == COUNT
    best = search(server, units(100, DIM, seed=9)[3], 1, with_self=True).matches[0]
    assert best.path == rows.paths[3] and best.score == pytest.approx(1)


@pytest.mark.parametrize("change", [{"weights": "w2"}, {"precision": "float16"}, {"whitening": "other"}])
def test_vectors_of_another_model_are_refused_and_both_are_named(
    change: dict[str, str], drawn: Folder, server: VectorServer, tmp_path: Path
) -> None:
    load_parts(drawn.place, server)
    vectors, whitening = units(200, DIM, seed=3), None
    if "whitening" in change:
        whitening = Whitening.learn(vectors, learnt_from="drawn")
    other = draw_parts(tmp_path / "o", [vectors], fingerprint=FINGERPRINT | change, whitening=whitening, first=9000)
    with pytest.raises(PartsError) as raised:
        load_parts(other.place, server)
    ((key, value),) = change.items()
    value = whitening.sha256[:40] if whitening else value
    assert f"{key} {value}" in str(raised.value) and f"{key} {FINGERPRINT.get(key)}" in str(raised.value)
    assert str(server) in str(raised.value) and server.count() == COUNT
    with pytest.raises(PartsError):
        check_vectors(other.place, server)


def test_a_model_under_another_name_is_the_same(drawn: Folder, server: VectorServer, tmp_path: Path) -> None:
    load_parts(drawn.place, server)
    moved = draw_parts(tmp_path / "m", [units(10, DIM)], fingerprint=FINGERPRINT | {"model": "elsewhere"}, first=9000)
    assert load_parts(moved.place, server).count == COUNT + 10
    assert check_vectors(drawn.place, server).others == 10


def test_what_tombstones_name_goes_and_never_comes_back(drawn: Folder, server: VectorServer, tmp_path: Path) -> None:
    load_parts(drawn.place, server)
    rows = read_rows(drawn, part_names(drawn)[0])
    path, content = rows.paths[0], rows.hashes[1]
    name, count = write_tombstone(drawn.place, [path, content.hex(), "/photos/never there"])
    assert count == 3
    assert not os.listdir(drawn.join("_deleted"))[1:]
    report = check_vectors(drawn.place, server)
    assert report.not_deleted == 2 and not report.complete
    assert load_parts(drawn.place, server).deleted == 2
    assert server.there(rows.ids[:3]) == {rows.ids[2]}
    assert load_parts(drawn.place, server, again=True).left_out == 2  # also loaded once more
    assert server.count() == COUNT - 2 and check_vectors(drawn.place, server).complete
    shutil.rmtree(drawn.join("_deleted"))  # or from a folder that does not know of them
    report = load_parts(drawn.place, server, again=True)
    assert (report.left_out, report.count) == (2, COUNT - 2)
    assert not [m for m in search(server, rows.vectors[0], 5, with_self=True).matches if m.path == path]
    server.put("by another", rows)  # which did not look before
    assert server.there(rows.ids[:3]) == {rows.ids[2]}


def test_a_tombstone_that_was_cut_stops_the_load(drawn: Folder, server: VectorServer) -> None:
    name, _ = write_tombstone(drawn.place, ["/photos/a", "/photos/b"])
    file = Path(drawn.join("_deleted"), name)
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(PartsError, match="tombstone"):
        load_parts(drawn.place, server)


def test_a_folder_of_no_parts(server: VectorServer, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="no parts in it"):
        load_parts(tmp_path / "empty", server)
    with pytest.raises(ExportError, match="not a folder"):
        write_tombstone(tmp_path / "empty", ["/a"])
    assert server.describe() is None


def test_a_damaged_part_is_named_and_the_others_can_be_loaded(drawn: Folder, server: VectorServer) -> None:
    bad = part_names(drawn)[3]
    file = Path(drawn.join(f"{bad}.parquet"))
    data = bytearray(file.read_bytes())
    data[len(data) // 3] ^= 1  # of the vectors
    file.write_bytes(data)
    with pytest.raises(ExportError, match=bad):
        load_parts(drawn.place, server)
    assert bad not in server.parts() and server.count() == 300
    os.rename(file, f"{file}.bad")
    assert load_parts(drawn.place, server).count == 500


def test_vectors_that_cannot_be_compared_are_refused(server: VectorServer, tmp_path: Path) -> None:
    vectors = units(30, DIM)
    vectors[7] *= 2
    with pytest.raises(ExportError, match="length 1"):
        load_parts(draw_parts(tmp_path / "long", [vectors]).place, server)
    vectors[7] = np.nan
    with pytest.raises(ExportError, match="length 1"):
        load_parts(draw_parts(tmp_path / "nan", [vectors]).place, server)


def test_nothing_was_loaded(drawn: Folder, server: VectorServer) -> None:
    for ask in (lambda: search(server, units(1, DIM)[0]), lambda: check_vectors(drawn.place, server)):
        with pytest.raises(VectorServerError, match="vectors load"):
            ask()
