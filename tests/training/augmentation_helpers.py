"""What the tests of augmentations share: official numbers, random images, and a two-sample test."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

OFFICIAL = np.load(Path(__file__).parents[1] / "data" / "official" / "augment.npz")


def channels_first(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, -3).copy())


def official_image(case: int) -> Tensor:
    return channels_first(OFFICIAL[f"image_{case}"]).float()[None] / 255  # (1, 3, H, W)


def random_images(n: int, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


def ks_statistic(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov: the largest distance between the two empirical distribution functions."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())


def ks_limit(n: int, m: int) -> float:
    """Samples of n and m from one distribution exceed it with probability 2 exp(-2 x 1.73^2) = 0.005."""
    return 1.73 * math.sqrt((n + m) / (n * m))
