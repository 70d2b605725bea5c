"""Small models and photos for the tests."""

from importlib.resources import files
from pathlib import Path

import torch

from simclr_hub import SimCLRConfig

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
