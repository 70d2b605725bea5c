"""What a card says of an architecture: its name in words, its parameters, its multiply-adds."""

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from simclr_hub.configuration_simclr import DEPTHS, SimCLRConfig
from simclr_hub.modeling_simclr import SimCLRForImageClassification, SimCLRModel


@dataclass(frozen=True)
class Counts:
    """Parameters of the parts, and multiply-adds of f for one image at the config's size."""

    encoder: int
    projection: int
    classifier: int
    macs: int


def count(config: SimCLRConfig, classes: int) -> Counts:
    """Count on the meta device, where weights take no memory."""
    config = SimCLRConfig.from_dict(config.to_dict())
    config.num_labels = classes
    with torch.device("meta"):
        model = SimCLRForImageClassification(config) if classes else SimCLRModel(config)
    body: SimCLRModel = model.simclr if isinstance(model, SimCLRForImageClassification) else model
    pixels = torch.empty(1, config.num_channels, config.image_size, config.image_size, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        body.eval().encoder(pixels)
    encoder, projection, everything = (
        sum(p.numel() for p in m.parameters()) for m in (body.encoder, body.projection, model)
    )
    return Counts(encoder, projection, everything - encoder - projection, counter.get_total_flops() // 2)


def describe(config: SimCLRConfig) -> str:
    """The encoder in words."""
    blocks = tuple(config.depths)
    depth = next(
        (d for d, b in DEPTHS.items() if b == blocks and (d >= 50) == (config.layer_type == "bottleneck")), None
    )
    words = [f"ResNet-{depth}" if depth else f"{config.layer_type} ResNet", f"width {config.width_multiplier:g}x"]
    words.append(f"blocks {'-'.join(map(str, blocks))}")
    if config.sk_ratio:
        words.append("selective kernels, ResNet-D stem and shortcuts")
    if config.se_ratio:
        words.append("squeeze-and-excitation")
    if config.stem_type != "imagenet":
        words.append(
            {"cifar": "3x3 stem without stride or pool", "small": "3x3 stem of stride 2 without pool"}[
                config.stem_type
            ]
        )
    return ", ".join(words)
