"""`simclr-hub vectors`: from parts to a server and back, as a user sees it."""

import json
import os
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
