"""Views per second: ours beside torchvision's transforms v2 (and Kornia's, if it is installed), in the same run.

    python benchmarks/augment.py [--repeat 5]

One thread. Two pipelines: the default checkpoint's (64 to 32 pixels: crop, flip, mild jitter) on a batch of 256, and
the official one for ImageNet (crop, bicubic to 224, flip, jitter with hue, greyscale, blur) on 32 sample photos
enlarged to 375 x 500. torchvision works image by image on uint8, its faster way, with bicubic resizing without
antialiasing, which is the same amount of work as ours; its jitter has one random order, as ours has. Rates are by the
process's own CPU time, so that other work on the machine counts little.
"""

import argparse
import importlib
import importlib.util
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

from simclr_hub.images import load_image
from simclr_hub.sources import folder_images
from simclr_hub.training.augmentations import Views

Run = tuple[Callable[[], object], int]  # and how many views it makes


def torchvision_pipeline(
    size: int, area: tuple[float, float], jitter: tuple[float, ...], bicubic: bool, rest: list[object]
) -> v2.Compose:
    kind = InterpolationMode.BICUBIC if bicubic else InterpolationMode.BILINEAR
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=area, interpolation=kind, antialias=False),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*jitter)], 0.8),
            *rest,
            v2.ToDtype(torch.float32, scale=True),
        ]
    )


def kornia_pipeline(size: int, area: tuple[float, float], jitter: tuple[float, ...], official: bool) -> Any:
    k = importlib.import_module("kornia.augmentation")
    return k.AugmentationSequential(
        k.RandomResizedCrop((size, size), scale=area, resample="bicubic" if official else "bilinear"),
        k.RandomHorizontalFlip(),
        k.ColorJitter(*jitter, p=0.8),
        *([k.RandomGrayscale(p=0.2), k.RandomGaussianBlur((23, 23), (0.1, 2.0), p=0.5)] if official else []),
    )


def tiny() -> dict[str, Run]:
    """Make the runs at 64 to 32 pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (256, 3, 64, 64), dtype=torch.uint8, generator=generator)
    keys: dict[str, Any] = {"area": (0.2, 1.0), "jitter": (0.4, 0.4, 0.4), "greyscale_p": 0, "blur_p": 0}
    bilinear, bicubic = Views(32, resample="bilinear", **keys), Views(32, **keys)
    peer = torchvision_pipeline(32, (0.2, 1.0), (0.4, 0.4, 0.4, 0.0), False, [])
    runs: dict[str, Run] = {
        "ours, batched, bilinear": (lambda: bilinear.pair(images), 512),
        "ours, batched, bicubic": (lambda: bicubic.pair(images), 512),
        "ours, one by one, bilinear": (lambda: [bilinear.of_image(image) for image in images], 512),
        "torchvision v2": (lambda: torch.stack([peer(image) for image in images]), 256),
    }
    if importlib.util.find_spec("kornia"):
        batched = kornia_pipeline(32, (0.2, 1.0), (0.4, 0.4, 0.4, 0.0), False)
        runs["Kornia, batched"] = (lambda: batched(images.float() / 255), 256)
    return runs


def official() -> dict[str, Run]:
    """Make the runs at 375 x 500 to 224 pixels."""
    paths = folder_images(str(files("simclr_hub") / "assets" / "sample-photos"))[:32]
    images = torch.stack([_enlarged(torch.from_numpy(load_image(path).pixels)) for path in paths])  # (32, 3, 375, 500)
    views = Views(224)
    rest = [v2.RandomGrayscale(0.2), v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5)]
    peer = torchvision_pipeline(224, (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), True, rest)
    runs: dict[str, Run] = {
        "ours, one by one (as in workers)": (lambda: [views.of_image(image) for image in images], 64),
        "ours, batched": (lambda: views.pair(images), 64),
        "torchvision v2": (lambda: torch.stack([peer(image) for image in images]), 32),
    }
    if importlib.util.find_spec("kornia"):
        batched = kornia_pipeline(224, (0.08, 1.0), (0.8, 0.8, 0.8, 0.2), True)
        runs["Kornia, batched"] = (lambda: batched(images.float() / 255), 32)
    return runs


def _enlarged(pixels: Tensor) -> Tensor:
    image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).resize((500, 375))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def main() -> None:
    """Time the contenders in turn and print views per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print("| pipeline | views/s, median | times torchvision |\n|---|---|---|")
    for title, runs in (("64 to 32 px", tiny()), ("official, 375 x 500 to 224 px", official())):
        rates: dict[str, list[float]] = {}
        for _ in range(arguments.repeat + 1):  # in turn, so that a noisy moment hits all; the first is the warm-up
            for name, (run, views) in runs.items():
                start = time.process_time()
                run()
                rates.setdefault(name, []).append(views / (time.process_time() - start))
        medians = {name: statistics.median(values[1:]) for name, values in rates.items()}
        for name, median in medians.items():
            print(f"| {title}: {name} | {median:,.0f} | {median / medians['torchvision v2']:.1f} |")


if __name__ == "__main__":
    main()
