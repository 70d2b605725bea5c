"""`simclr-hub vectors`: from parts to a server and back, as a user sees it."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from drawn_parts import FINGERPRINT, draw_parts, units
from index.index_fakes import FakeEmbedder
from server_fixtures import COUNT, DIM

from simclr_hub.index import maker
from simclr_hub.parts.storage import Folder


def test_load_check_delete(drawn: Folder, url: str, run: Any) -> None:
    code, out, err = run("vectors", "load", drawn.place, url)
    assert (code, err) == (0, "") and "6 parts: 0 were there, 6 loaded (600 images)" in out
    assert "every search is exact" in out or "SIMCLR_MILVUS" in os.environ
    code, out, _ = run("vectors", "load", drawn.place, url, "--json")
    report = json.loads(out)
    assert (code, report["there"], report["count"]) == (0, 6, COUNT)
    code, out, _ = run("vectors", "check", drawn.place, url)
    assert code == 0 and "complete: 600 of 600 images" in out and "100.0% (exact)" in out
    code, out, _ = run("vectors", "delete", drawn.place, "/photos/album 003/IMG_0000003.jpg")
    assert code == 0 and "vectors load" in out
    code, out, _ = run("vectors", "check", drawn.place, url)
    assert code == 1 and "not deleted: 1" in out
    code, out, _ = run("vectors", "load", drawn.place, url)
    assert code == 0 and "deleted by tombstones: 1 from the server" in out and "599 images" in out
    code, out, _ = run("vectors", "check", drawn.place, url, "--json")
    assert code == 0 and json.loads(out)["images"] == 599


def test_search(many: Path, made: Any, url: str, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = made(many, images=8)
    assert run("vectors", "load", out.place, url)[0] == 0
    monkeypatch.setattr(maker, "as_embedder", lambda model, **settings: FakeEmbedder())
    photo = next(many.glob("1/*"))
    code, out, err = run("vectors", "search", photo, url, "-k", "3", "--where", "width=4", "--model", "fake")
    assert (code, err) == (0, "(exact)\n") and out.splitlines()[0].split() == ["score", "photo", "size"]
    assert len(out.splitlines()) == 4 and "\\n" in out  # names with line ends, escaped
    code, out, _ = run("vectors", "search", photo, url, "--with-self", "--json", "--model", "fake")
    told = json.loads(out)
    assert told["exact"] and told["matches"][0]["path"] == str(photo) and len(told["matches"]) == 10
    code, out, err = run("vectors", "search", photo, url, "--where", "camera=X", "--model", "fake")
    assert (code, out) == (0, "") and "meets the conditions" in err
    for wrong, said in (("camara=X", "did you mean camera"), ("width=wide", "number"), ("width", "KEY=VALUE")):
        code, out, err = run("vectors", "search", photo, url, "--where", wrong)
        assert code == 2 and said in err


def test_another_models_parts_are_refused(drawn: Folder, url: str, run: Any, tmp_path: Path) -> None:
    other = draw_parts(tmp_path / "o", [units(9, DIM)], fingerprint=FINGERPRINT | {"weights": "w2"}, first=7000)
    assert run("vectors", "load", drawn.place, url)[0] == 0
    code, out, err = run("vectors", "load", other.place, url)
    assert code == 1 and "weights w1" in err and "weights w2" in err


def test_a_file_of_milvus_lite_is_a_place_like_any_other(many: Path, made: Any, tmp_path: Path, run: Any) -> None:
    if find_spec("milvus_lite") is None:
        pytest.skip("milvus-lite is not installed: pip install -e '.[dev]'")
    _, out, _ = made(many, images=8)
    (tmp_path / "mine.db").write_text("mine")
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "folder.db" / "mine.txt").write_text("mine")
    for name, why in (("mine", "exists already"), ("folder", "exists already"), ("a/b/c", "cannot be made there")):
        code, _, err = run("vectors", "load", out.place, tmp_path / f"{name}.db")
        assert code == 1 and why in err
    code, _, err = run("vectors", "load", out.place, many / "1" / "x.db")
    assert code == 2 and "in the photo folder" in err and not (many / "1" / "x.db").exists()
    for command in (("search", next(many.glob("1/*"))), ("check", out.place)):
        code, _, err = run("vectors", *command, tmp_path / "new.db")
        assert code == 1 and "no such file; run: simclr-hub vectors load" in err and not (tmp_path / "new.db").exists()
    assert (tmp_path / "mine.db").read_text() == "mine" and len(list((tmp_path / "folder.db").iterdir())) == 1


def test_processes_come_one_after_another(many: Path, made: Any, url: str, tmp_path: Path) -> None:
    _, out, _ = made(many, images=8)
    for command, said in (
        ("load", "4 parts: 0 were there, 4 loaded (28 images)"),
        ("load", "4 parts: 4 were there, 0 loaded (0 images)"),
        ("check", "complete: 28 of 28 images"),  # 0.1 % of which are none, of which all are found
    ):
        words = [sys.executable, "-m", "simclr_hub", "vectors", command, out.place, url]
        ended = subprocess.run(words, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        assert ended.returncode == 0 and said in ended.stdout and not ended.stderr, ended


def test_what_is_deleted_is_named_as_on_the_command_line(many: Path, made: Any, run: Any, url: str) -> None:
    _, out, _ = made(many, images=8)
    photo = next(many.glob("1/*.png"))
    assert run("vectors", "delete", out.place, os.path.relpath(photo))[0] == 0
    code, _, err = run("vectors", "delete", out.place, "phto.png")
    assert code == 1 and "phto.png: no such file, and neither a whole path, a URI nor a SHA-256" in err
    code, said, _ = run("vectors", "load", out.place, url)
    assert code == 0 and "1 left out" in said
