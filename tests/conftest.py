"""Shared fixtures: no network, tiny models, a small folder of photos."""

import gc
import os
import tempfile

_cache = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)  # deleted when this process ends
os.environ["HF_ASSETS_CACHE"] = _cache.name  # what follows is read when huggingface_hub is imported
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # a core has one process already; read when torch is imported
    os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from tiny import randomized, tiny_config  # noqa: E402

from simclr_hub import SimCLRImageProcessor, SimCLRModel  # noqa: E402
from simclr_hub.cli import main  # noqa: E402

gc.freeze()  # what is imported stays: the collector need not look through it after every few tests


@pytest.fixture(scope="session")
def tiny_model():
    torch.manual_seed(0)
    return randomized(SimCLRModel(tiny_config()))


@pytest.fixture(scope="session")
def tiny_dir(tiny_model, tmp_path_factory):
    """The tiny model, saved with its processor."""
    path = tmp_path_factory.mktemp("tiny")
    tiny_model.save_pretrained(path)
    SimCLRImageProcessor(size=64).save_pretrained(path)
    return path


@pytest.fixture
def photos(tmp_path):
    """A folder of 6 distinct photos, two of them in a folder below."""
    folder = tmp_path / "photos"
    (folder / "below").mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(6):
        low = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
        name = f"below/{i}.png" if i > 3 else f"{i}.jpg"
        Image.fromarray(low).resize((50 + i, 40)).save(folder / name)
    return folder


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    """Run a command line in an empty folder: (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*args):
        with pytest.raises(SystemExit) as exit:
            main([str(a) for a in args])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return exit.value.code, out, err

    return run
