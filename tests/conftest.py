"""Shared fixtures: no network, tiny models, a small folder of photos."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

from importlib.resources import files  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

from simclr_hub import SimCLRConfig, SimCLRImageProcessor, SimCLRModel  # noqa: E402

SAMPLE_PHOTOS = Path(str(files("simclr_hub") / "assets" / "sample-photos"))


def tiny_config(**changes) -> SimCLRConfig:
    """A bottleneck ResNet of 8 to 64 inner channels; h of 256."""
    return SimCLRConfig(**{"depths": (1, 1, 1, 1), "width_multiplier": 0.125, "image_size": 64, **changes})


def randomized(model):
    """Random BatchNorm statistics and scales, so that no layer is the identity by luck."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if "normalization" in name and tensor.is_floating_point():
                low = 0.5 if name.endswith(("weight", "running_var")) else -0.2
                tensor.uniform_(low, low + 0.5, generator=generator)
    return model.eval()


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
