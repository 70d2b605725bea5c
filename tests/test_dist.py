"""What `make dist` builds, installed where nothing else is and used away from the checkout."""

import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import simclr_hub

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    # The checkout's own environment must not be found.
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV", "PYTEST"))}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_version_is_one_and_the_changelog_tells_of_it() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert simclr_hub.__version__ == version
    assert f"\n## {version} - 20" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)  # torch is downloaded
def test_the_wheel_works_in_a_fresh_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"
    run("git", "clone", "--quiet", ROOT, source, cwd=tmp_path)
    run(sys.executable, "-m", "build", "--outdir", tmp_path / "dist", source, cwd=tmp_path)
    (wheel,), (sdist,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "simclr_hub/training/pretrain.py" in names and "simclr_hub/assets/default/model.safetensors" in names
    assert not [name for name in names if name.split("/")[0] in ("tests", "scripts", "training")]
    with tarfile.open(sdist) as archive:
        assert any(name.endswith("/training/pretrain.py") for name in archive.getnames())
    venv.create(tmp_path / "fresh", with_pip=True)
    run(tmp_path / "fresh" / "bin" / "python", "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    command, away = tmp_path / "fresh" / "bin" / "simclr-hub", tmp_path / "away"
    away.mkdir()
    assert "58 embedded" in run(command, "demo", cwd=away)
    photo = next((ROOT / "simclr_hub" / "assets" / "sample-photos").glob("banana_1.jpg"))
    assert "banana_3.jpg" in run(command, "search", "demo.index", photo, cwd=away)
    assert "key=value" in run(command, "pretrain", "--help", cwd=away)
    subprocess.run(["rm", "-rf", tmp_path / "fresh"], check=True)  # some gigabytes
