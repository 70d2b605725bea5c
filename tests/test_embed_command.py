"""`simclr-hub embed` with archives and URLs: names and failures, as those of files; and a part of them."""

import json
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from image_server import serving
from photo_formats import encoded, smooth
from PIL import Image
from test_archives import tar_of, zip_of

from simclr_hub import archives, web
from simclr_hub.cli import embed
from simclr_hub.embedder import Embedder

FILES = [encoded(smooth(seed=i), "PNG") for i in range(3)]


@pytest.fixture
def embedded(run, tiny_dir):
    """Run `embed` with the tiny model: (exit code, what it tells, paths, vectors)."""

    def embedded(*arguments):
        code, out, _ = run("embed", *arguments, "-o", "out.npz", "--model", tiny_dir, "--json", "--strict")
        with np.load("out.npz") as saved:
            return code, json.loads(out), saved["paths"].tolist(), saved["vectors"]

    return embedded


def test_files_archives_and_urls_together(tmp_path, embedded, monkeypatch):
    (tmp_path / "0.png").write_bytes(FILES[0])
    (tmp_path / "s.tar").write_bytes(tar_of({"a/1.png": FILES[1], "broken.png": b"text"}))
    (tmp_path / "s.zip").write_bytes(zip_of({"2.png": FILES[2]}))
    with serving(FILES[0]) as (base, _):
        given = [tmp_path / "0.png", tmp_path / "s.tar", tmp_path / "s.zip", f"{base}/photo.png"]
        code, record, *_ = embedded(*given)
        assert code == 3 and record["embedded"] == 3  # this machine's own address is not read
        assert [failure["path"] for failure in record["failed"]] == [
            f"{tmp_path}/s.tar/broken.png",
            f"{base}/photo.png",
        ]
        assert "not a public address" in record["failed"][1]["error"]
        monkeypatch.setattr(web, "is_public", lambda _: True)
        code, record, paths, vectors = embedded(*given)
    assert code == 3 and record["embedded"] == 4
    assert paths == [f"{tmp_path}/0.png", f"{tmp_path}/s.tar/a/1.png", f"{tmp_path}/s.zip/2.png", f"{base}/photo.png"]
    assert np.abs(vectors[0] - vectors[3]).max() < 1e-5


@pytest.fixture
def given(photos, tmp_path):
    """A folder of six, a zip file of three and one refused, a file, a tar file of three, of which the last is cut."""
    members = {"text.txt": b"text", "broken.png": b"text", "2.png": FILES[2], "in.zip": b"x", "0.png": FILES[0]}
    (tmp_path / "s.zip").write_bytes(zip_of(members))
    (tmp_path / "one.png").write_bytes(FILES[1])
    data = tar_of({"x.png": FILES[1], "notes.txt": b"text", "y.png": FILES[2], "z.png": FILES[0]})
    (tmp_path / "s.tar").write_bytes(data[: data.rindex(FILES[0]) + 40])
    return ["photos", "s.zip", "one.png", "s.tar"]


@pytest.mark.parametrize("parts", [1, 2, 3, 5, 20])
def test_the_shards_are_the_whole(parts, given, embedded):
    _, told, whole, vectors = embedded(*given)
    assert [failure["path"] for failure in told["failed"]] == ["s.zip/broken.png", "s.zip/in.zip", "s.tar"]
    assert len(whole) == 11
    found, failed, sizes = {}, [], []
    for part in range(1, parts + 1):
        code, record, paths, own = embedded(*given, "--shard", f"{part}/{parts}")
        assert code == (3 if record["failed"] else 0) and record["embedded"] == len(paths)
        assert paths == [path for path in whole if path in paths]  # in the same order
        assert found.keys().isdisjoint(paths)
        found |= zip(paths, own, strict=True)
        failed += record["failed"]
        sizes.append(len(paths) + len(record["failed"]))
    assert found.keys() == set(whole)
    assert np.abs(np.stack([found[path] for path in whole]) - vectors).max() < 1e-5
    assert sorted(failed, key=str) == sorted(told["failed"], key=str)
    assert max(sizes) - min(sizes) <= 2  # 1, but for the member that the end of the tar file takes with it


def test_a_shard_is_every_nth_image_and_no_other_is_read(given, embedded, tmp_path, monkeypatch):
    opened = []

    def open_member(archive, member, shown):
        opened.append(shown)
        return read(archive, member, shown)

    read = archives._zip_member
    monkeypatch.setattr(archives, "_zip_member", open_member)
    monkeypatch.setattr(web, "is_public", lambda _: True)
    (tmp_path / "photos" / "1.jpg").write_bytes(b"text")
    (tmp_path / "t.tar").write_bytes(tar_of({"notes.txt": b"text", "x.png": FILES[1], "y.png": b"text"}))
    with serving(FILES[0]) as (base, server):
        images = ["photos", "one.png", "s.zip", f"{base}/photo.png", "t.tar"]  # 6, 1, 4, 1, 2
        code, record, paths, _ = embedded(*images, "--shard", "1/2")
    assert (code, record["failed"], server.seen) == (0, [], [])
    photos = [str(Path("photos", name)) for name in ("0.jpg", "2.jpg", "below/4.png")]
    assert paths == [*photos, "one.png", "s.zip/2.png", "s.zip/0.png", "t.tar/x.png"]
    assert opened == ["s.zip/2.png", "s.zip/0.png"]


def test_the_bar_is_of_the_shard(given, embedded, monkeypatch):
    totals = []

    @contextmanager
    def bar(what, total):
        totals.append(total)
        yield lambda n: None

    monkeypatch.setattr(embed, "progress_bar", bar)
    for shard in ("1/1", "1/4", "3/4"):
        embedded("photos", "one.png", "--shard", shard)  # 7
    embedded(*given, "--shard", "1/4")
    assert totals == [7, 2, 2, None]


@pytest.mark.parametrize("bad", ["0/2", "3/2", "-1/2", "1", "1/", "/2", "1/0", "1/2/3", "a/b", "1.0/2", "1/2 x", ""])
def test_a_bad_shard_is_named(bad, photos, run):
    code, _, err = run("embed", photos, "-o", "out.npz", "--shard", bad)
    assert code == 2 and repr(bad) in err and "I-th of N" in err
    assert not Path("out.npz").exists()


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_stopped_run_goes_on(suffix, given, run, tiny_dir, monkeypatch):
    def embedded(*more):
        return run("embed", *given, "-o", f"out{suffix}", "--model", tiny_dir, "--json", *more)

    def rows(name):
        if suffix == ".npz":
            with np.load(name) as saved:
                return saved["paths"].tolist(), saved["vectors"]
        table = pq.read_table(name)
        return table["path"].to_pylist(), np.array(table["vector"].to_pylist(), np.float32)

    _, told, _ = embedded()
    whole = rows(f"out{suffix}")
    monkeypatch.setattr(embed, "IMAGES", 3)  # 14 sources in 5 pieces
    for stop_after in (1, 2):  # and again, in what is left
        looked_at, real = [], Embedder.stream

        def stopping(self, sources, looked_at=looked_at, real=real, stop_after=stop_after):
            for number, item in enumerate(real(self, sources)):
                if number == 3 * stop_after + 1:
                    raise KeyboardInterrupt
                looked_at.append(item)
                yield item

        with monkeypatch.context() as patch:
            patch.setattr(Embedder, "stream", stopping)
            assert embedded()[0] == 130
    assert sorted(path.name for path in Path(f"out{suffix}.pieces").iterdir()) == [
        *(f"{number:06d}.npz" for number in range(3)),
        "about.json",
    ]
    code, _, err = embedded("--normalize")
    assert code == 2 and f"out{suffix}.pieces holds what an interrupted run made" in err
    Image.new("RGB", (9, 9)).save("photos/0 new.png")
    assert "of other images" in embedded()[2]
    Path("photos/0 new.png").unlink()
    code, again, _ = embedded()
    assert code == 0 and again == told
    paths, vectors = rows(f"out{suffix}")
    assert paths == whole[0] and np.abs(vectors - whole[1]).max() < 1e-5
    assert not Path(f"out{suffix}.pieces").exists()


def test_a_folder_of_another_is_not_taken_for_pieces(photos, run):
    Path("out.npz.pieces").mkdir()
    Path("out.npz.pieces/letter").write_text("mine")
    code, _, err = run("embed", photos, "-o", "out.npz")
    assert code == 2 and "not as the pieces of an output" in err
    assert Path("out.npz.pieces/letter").read_text() == "mine"
