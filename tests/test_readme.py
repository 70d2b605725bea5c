"""What the README shows is what happens."""

import re
import zipfile
from pathlib import Path

import pytest

from simclr_hub.cli import main

README = (Path(__file__).parents[1] / "README.md").read_text()


def without_numbers(text: str) -> list[str]:
    """Lines without times and scores, which differ by machine in the last digit."""
    return [re.sub(r"\d+\.\d+", "N", line).rstrip() for line in text.strip().splitlines()]


def test_the_demos_output_is_current(capsys, tmp_path, monkeypatch):
    shown = re.search(r"^\$ simclr-hub demo\n(.*?)^```", README, re.M | re.S)
    assert shown is not None
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["demo"])
    assert without_numbers(capsys.readouterr().out) == without_numbers(shown[1])


def test_the_python_of_the_readme_runs(photos, tmp_path, monkeypatch, capsys):
    code = re.search(r"```python\n(import simclr_hub\n.*?)```", README, re.S)
    assert code is not None
    (photos.parent / "beach.jpg").write_bytes((photos / "0.jpg").read_bytes())
    monkeypatch.chdir(photos.parent)
    names: dict[str, object] = {}
    exec(code[1], names)
    names["index"].close()
    assert "1.000" in capsys.readouterr().out and names["vectors"].shape == (6, 256)


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target):
    assert (Path(__file__).parents[1] / target).exists()


def test_the_stream_of_the_formats_page_goes_on_after_an_unreadable_image(photos, tmp_path, monkeypatch, capsys):
    page = (Path(__file__).parents[1] / "docs" / "formats.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n([^`]*archive_images\(.*?)```", page, re.S)
    with zipfile.ZipFile(tmp_path / "album.zip", "w") as album:
        for name in ("0.jpg", "1.jpg", "2.jpg"):
            album.writestr(name, b"text" if name == "1.jpg" else (photos / name).read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    lines = capsys.readouterr().out.splitlines()
    assert [lines[0], lines[2]] == ["album.zip/0.jpg (256,)", "album.zip/2.jpg (256,)"]
    assert lines[1].startswith("album.zip/1.jpg: ") and len(lines) == 3
