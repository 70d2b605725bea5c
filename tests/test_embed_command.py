"""`simclr-hub embed` with archives and URLs: names and failures, as those of files."""

import json

import numpy as np
import pytest
from image_server import serving
from photo_formats import encoded, smooth
from test_archives import tar_of, zip_of

from simclr_hub import web
from simclr_hub.cli import main

FILES = [encoded(smooth(seed=i), "PNG") for i in range(3)]


def embedded(*arguments, capsys) -> tuple[int, dict]:
    with pytest.raises(SystemExit) as ended:
        main(["embed", *map(str, arguments), "--json"])
    return ended.value.code, json.loads(capsys.readouterr().out)


def test_files_archives_and_urls_together(tmp_path, tiny_dir, capsys, monkeypatch):
    (tmp_path / "0.png").write_bytes(FILES[0])
    (tmp_path / "s.tar").write_bytes(tar_of({"a/1.png": FILES[1], "broken.png": b"text"}))
    (tmp_path / "s.zip").write_bytes(zip_of({"2.png": FILES[2]}))
    with serving(FILES[0]) as (base, _):
        given = [tmp_path / "0.png", tmp_path / "s.tar", tmp_path / "s.zip", f"{base}/photo.png"]
        output = tmp_path / "out.npz"
        code, record = embedded(*given, "-o", output, "--model", tiny_dir, capsys=capsys)
        assert code == 3 and record["embedded"] == 3  # this machine's own address is not read
        assert [failure["path"] for failure in record["failed"]] == [
            f"{tmp_path}/s.tar/broken.png",
            f"{base}/photo.png",
        ]
        assert "not a public address" in record["failed"][1]["error"]
        monkeypatch.setattr(web, "is_public", lambda _: True)
        code, record = embedded(*given, "-o", output, "--model", tiny_dir, capsys=capsys)
    assert code == 3 and record["embedded"] == 4
    with np.load(output) as saved:
        names = [f"{tmp_path}/0.png", f"{tmp_path}/s.tar/a/1.png", f"{tmp_path}/s.zip/2.png", f"{base}/photo.png"]
        assert saved["paths"].tolist() == names
        assert np.abs(saved["vectors"][0] - saved["vectors"][3]).max() < 1e-5
