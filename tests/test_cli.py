import json
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from simclr_hub.cli import COMMANDS, cli

README = Path(__file__).parents[1] / "README.md"


@pytest.fixture
def index(run, photos, tiny_dir):
    assert run("index", photos, "--model", tiny_dir)[0] == 0
    return "photos.index"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_and_is_in_the_readme(name, run):
    code, out, _ = run(name, "--help")
    assert code == 0 and "Usage" in out
    assert f"simclr-hub {name}" in README.read_text()


def test_help_lists_every_command_with_what_it_does(run):
    code, out, _ = run("--help")
    assert code == 0
    for name, (_, what) in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(what)}$", out, re.MULTILINE), name


def test_index_then_again_then_with_changes(run, photos, tiny_dir):
    args = ("index", photos, "-o", "my.index", "--model", tiny_dir, "--json")
    first = json.loads(run(*args)[1])
    assert (first["found"], first["embedded"], first["missing"]) == (6, 6, 0)
    second = json.loads(run(*args)[1])
    assert (second["found"], second["embedded"], second["unchanged"]) == (6, 0, 6)
    (photos / "0.jpg").rename(photos / "moved.jpg")
    (photos / "1.jpg").unlink()
    (photos / "broken.jpg").write_bytes(b"not a photo")
    code, out, _ = run(*args)
    third = json.loads(out)
    assert code == 0 and run(*args, "--strict")[0] == 3
    assert (third["renamed"], third["missing"], third["failed"], third["embedded"]) == (1, 1, 1, 0)
    counts = ("embedded", "unchanged", "renamed", "copied", "failed")
    assert third["found"] == sum(third[name] for name in counts)
    code, out, _ = run("failures", "my.index", "--json")
    assert code == 0 and json.loads(out)[0]["path"].endswith("broken.jpg")
    assert "broken.jpg" in run("failures", "my.index")[1]


def test_places_are_recorded_on_request_when_the_index_is_made(run, index, photos, tiny_dir):
    assert run("index", photos, "-o", "places.index", "--model", tiny_dir, "--gps")[0] == 0
    assert json.loads(run("status", "places.index", "--json")[1])["gps"]
    assert run("index", photos, "-o", "places.index", "--gps")[0] == 0
    assert not json.loads(run("status", index, "--json")[1])["gps"]
    code, _, err = run("index", photos, "--gps")
    assert code == 2 and "photos.index was made without places" in err


def test_search_finds_the_photo_itself_first(run, index, photos):
    code, out, _ = run("search", index, photos / "2.jpg", "-k", 3, "--with-self", "--json")
    matches = json.loads(out)[0]["matches"]
    assert code == 0 and len(matches) == 3
    assert matches[0]["path"] == str(photos / "2.jpg") and matches[0]["score"] == pytest.approx(1, abs=1e-5)
    out = run("search", index, photos / "2.jpg", photos / "3.jpg", "--html", "r.html")[1]
    assert "1.000  " in out and "wrote r.html" in out
    assert Path("r.html").read_text().count("<section") == 2


def test_status_and_prune(run, index, photos):
    (photos / "1.jpg").unlink()
    run("index", photos)
    status = json.loads(run("status", index, "--json")[1])
    assert status["missing"] == 1
    assert "missing" in run("status", index)[1]
    assert json.loads(run("missing", index, "--json")[1]) == [str(photos / "1.jpg")]
    assert "1.jpg" in run("missing", index)[1]
    code, _, err = run("prune", index)  # one of six is more than 10 %
    assert code == 1 and "force" in err
    assert json.loads(run("prune", index, "--force", "--json")[1]) == {"forgotten": 1}


def test_embed_writes_rows_and_names_together(run, photos, tiny_dir):
    (photos / "bad.png").write_bytes(b"x")
    assert run("embed", photos, "-o", "v.npz", "--model", tiny_dir, "--strict")[0] == 3
    code, out, _ = run("embed", photos, "-o", "v.npz", "--model", tiny_dir, "--json")
    record = json.loads(out)
    assert code == 0 and record["embedded"] == 6 and "bad.png" in record["failed"][0]["error"]
    with np.load("v.npz") as data:
        assert data["vectors"].shape == (6, 256) and Path(data["paths"][0]).name == "0.jpg"
    import pyarrow.parquet

    assert run("embed", photos / "0.jpg", "-o", "v.parquet", "--model", tiny_dir)[0] == 0
    table = pyarrow.parquet.read_table("v.parquet")
    assert table["path"].to_pylist() == [str(photos / "0.jpg")] and len(table["vector"][0]) == 256


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["search", "none.index", "x.jpg"], 1, "none.index"),
        (["index", "no-folder"], 1, "no-folder"),
        (["status", "none.index"], 1, "none.index"),
        (["embed", "none.jpg", "-o", "a.txt"], 2, ".npz"),
        (["embed", ".", "-o", "../a.npz"], 1, "no image files"),
        (["embed", "none.jpg", "-o", "a.npz", "--model", "nowhere"], 1, "nowhere"),
        (["embed", "none.jpg", "-o", "a.npz", "--layer", "q"], 2, "layer='q'"),
        (["convert", "none", "out"], 1, "none"),
        (["pretrain", "none"], 1, "tiny_imagenet_default"),
        (["nonsense"], 2, "nonsense"),
        (["search"], 2, "INDEX"),
    ],
)
def test_bad_input_is_one_line(run, args, code, message):
    got, _, err = run(*args)
    assert got == code and message in err
    assert code == 2 or len(err.strip().splitlines()) == 1
    assert list(Path().iterdir()) == []  # no empty index, no half a file


def test_a_query_that_is_no_photo_is_named(run, index):
    Path("text.jpg").write_bytes(b"text")
    code, _, err = run("search", index, "text.jpg")
    assert code == 1 and "text.jpg" in err


def test_convert_prints_what_it_made(run):
    source = Path(__file__).parent / "data" / "official" / "v1_sk0_nohead"
    code, out, _ = run("convert", source, "out")
    assert code == 0 and "h of 256" in out and (Path("out") / "model.safetensors").exists()


def test_doctor_finds_every_precision_of_this_machine_right(run):
    code, out, _ = run("doctor", "--json")
    report = json.loads(out)
    assert code == 0 and report["healthy"] is True
    found = {(r["device"], r["precision"]): r["verdict"] for r in report["runtimes"]}
    assert found["cpu", "float32"] == "right" and "WRONG" not in found.values()
    assert report["versions"]["torch"] and report["cache"]["model cache"]


def test_doctor_sees_a_wrong_vector_and_a_missing_package(run, monkeypatch):
    from simclr_hub import embedder
    from simclr_hub.cli import doctor

    embed = embedder.embed
    monkeypatch.setattr(embedder, "embed", lambda *args, **kwargs: embed(*args, **kwargs)[:, ::-1])
    monkeypatch.setattr(doctor, "requires", lambda name: ["torch>=99", "no-such-package; extra == 'train'"])
    code, out, _ = run("doctor")
    assert code == 1 and "cpu, float32" in out and "WRONG" in out
    assert ">=99 is needed" in out and "pip install 'simclr-hub[train]'" in out


def test_demo_leaves_a_page_and_finds_likes(run):
    before = {p: p.stat().st_mtime_ns for p in Path(str(files("simclr_hub") / "assets")).rglob("*")}
    code, out, _ = run("demo")
    assert code == 0 and "58 photos found: 58 embedded" in out
    scores = [float(s) for s in re.findall(r"^ ?([01]\.\d{3})  ", out, re.M)]
    assert len(scores) == 5 and scores == sorted(scores, reverse=True)
    assert Path("gallery.html").stat().st_size > 100_000
    assert {p: p.stat().st_mtime_ns for p in before} == before  # nothing is written below the photos
    assert "58 unchanged" in run("demo")[1]


def test_names_that_could_harm_a_terminal_are_escaped(run, photos, tiny_dir):
    Image.new("RGB", (20, 20), "green").save(photos / "a\x1b[31m\n.png")
    run("index", photos, "--model", tiny_dir)
    out = run("search", "photos.index", photos / "a\x1b[31m\n.png", "-k", 1, "--with-self")[1]
    assert "\x1b" not in out and "a\\x1b[31m\\n.png" in out


def test_the_group_is_documented():
    assert cli.help and "simclr-hub demo" in cli.help


def test_runs_as_a_module() -> None:
    words = [sys.executable, "-m", "simclr_hub"]
    assert "Usage: simclr-hub" in subprocess.run([*words, "--help"], capture_output=True, text=True, check=True).stdout
    assert subprocess.run([*words, "status", "nowhere"], capture_output=True).returncode == 1
