"""Whether a checkpoint's weights fit a network, and the processor beside it: what every converter needs."""

import math
from collections.abc import Mapping

from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..image_processing_simclr import SimCLRImageProcessor
from ..modeling_simclr import SimCLRForImageClassification, SimCLRModel

Shapes = Mapping[str, tuple[int, ...]]
Model = SimCLRModel | SimCLRForImageClassification


def misfit(ours: Shapes, shapes: Shapes) -> str:
    """Describe how a checkpoint's shapes differ from those that a model wants, `ours`; "" if they do not."""
    problems = (
        ("missing", sorted(ours.keys() - shapes.keys())),
        ("left over", sorted(shapes.keys() - ours.keys())),
        (
            "of another shape",
            [f"{n}: {shapes[n]}, not {ours[n]}" for n in ours if n in shapes and shapes[n] != ours[n]],
        ),
    )
    return "; ".join(
        f"{len(found)} {what} ({', '.join(found[:4])}{', ...' if len(found) > 4 else ''})"
        for what, found in problems
        if found
    )


def ratio_of(widths: list[tuple[int, int]], minimum: int) -> float:
    """Find 1/16, or the smallest ratio, with `max(int(full * ratio), minimum) == reduced` for all widths."""
    widest = max((full for full, _ in widths), default=1)
    least = max(
        (reduced / max(full, 1) for full, reduced in widths if reduced > minimum), default=minimum / max(widest, 1)
    )
    for ratio in (1 / 16, least, math.nextafter(least, 1)):  # the last where full * (reduced / full) < reduced
        if all(max(int(full * ratio), minimum) == reduced for full, reduced in widths):
            return ratio
    raise ValueError(f"no ratio explains the (full, reduced) widths {widths[:4]} of selective kernels or excitations")


def processor_for(image_size: int, normalize: str) -> SimCLRImageProcessor:
    """Make the image processor of a converted model.

    Raises:
        ValueError: `normalize` is neither "imagenet" nor "none".
    """
    if normalize == "none":
        return SimCLRImageProcessor(size=image_size)
    if normalize != "imagenet":
        raise ValueError(f"normalize={normalize!r} is neither 'imagenet' nor 'none'")
    return SimCLRImageProcessor(
        size=image_size, do_normalize=True, image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD
    )
