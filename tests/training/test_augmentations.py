import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from simclr_hub.training import augmentations
from simclr_hub.training.augmentations import (
    Views,
    adjust_brightness,
    adjust_contrast,
    adjust_saturation,
    crop_and_flip,
    sample_crop_boxes,
    to_greyscale,
)

OFFICIAL = np.load(Path(__file__).parents[1] / "data" / "official" / "augment.npz")


def channels_first(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, -3).copy())


def official_image(case: int) -> Tensor:
    return channels_first(OFFICIAL[f"image_{case}"]).float()[None] / 255  # (1, 3, H, W)


def random_images(n: int, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n, 3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize(
    ("name", "operation"),
    [("brightness_v2", adjust_brightness), ("contrast", adjust_contrast), ("saturation", adjust_saturation)],
)
def test_operations_equal_the_official_ones(name: str, operation: Callable[..., Tensor], case: int) -> None:
    factors = torch.tensor(OFFICIAL[f"{name}_factor_{case}"])
    out = operation(official_image(case).expand(len(factors), -1, -1, -1), factors)  # one factor a sample
    torch.testing.assert_close(out, channels_first(OFFICIAL[f"{name}_{case}"]), rtol=0, atol=2e-6)


@pytest.mark.parametrize("case", [0, 1])
def test_greyscale_equals_the_official_one(case: int) -> None:
    expected = channels_first(OFFICIAL[f"grey_{case}"])
    torch.testing.assert_close(to_greyscale(official_image(case))[0], expected, rtol=0, atol=2e-6)


def ks_statistic(a: np.ndarray, b: np.ndarray) -> float:
    """Two-sample Kolmogorov-Smirnov: the largest distance between the two empirical distribution functions."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    return float(np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max())


def box_statistics(boxes: np.ndarray) -> dict[str, np.ndarray]:
    y, x, h, w = boxes.astype(float).T
    return {"y": y, "x": x, "height": h, "width": w, "area": h * w, "aspect": w / h}


@pytest.mark.parametrize(("height", "width"), [(96, 128), (64, 64)])
def test_crop_boxes_are_distributed_as_tensorflows(height: int, width: int) -> None:
    official = OFFICIAL[f"boxes_{height}x{width}"]
    n = 6000
    ours = sample_crop_boxes(n, height, width, torch.Generator().manual_seed(0)).numpy()
    # Two samples of n from one distribution exceed it with probability 2 exp(-2 x 1.73^2) = 0.005.
    limit = 1.73 * math.sqrt(2 / n)
    expected = box_statistics(official)
    for name, values in box_statistics(ours).items():
        assert ks_statistic(values, expected[name]) < limit, name
    # The test has power: the log-uniform aspect and uniform area of torchvision's RandomResizedCrop are told apart.
    generator = np.random.default_rng(0)
    area = generator.uniform(0.08, 1, n) * height * width
    aspect = np.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3), n))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w <= width) & (h <= height)
    assert ks_statistic(w[fits] * h[fits], expected["area"]) > 2 * limit


def test_crop_boxes_lie_inside_and_cover_their_share() -> None:
    boxes = sample_crop_boxes(4000, 40, 30, torch.Generator().manual_seed(0), area=(0.2, 0.5)).double()
    y, x, h, w = boxes.T
    assert (boxes >= 0).all() and (y + h <= 40).all() and (x + w <= 30).all()
    assert (h * w >= 0.2 * 1200).all() and (h * w <= 0.5 * 1200).all()


def test_an_impossible_crop_is_the_whole_image() -> None:
    # At least half the area at an aspect of at most 4/3 does not fit into 100 x 4.
    boxes = sample_crop_boxes(3, 100, 4, torch.Generator().manual_seed(0), area=(0.5, 1.0))
    assert boxes.tolist() == [[0, 0, 100, 4]] * 3


def test_full_box_without_flip_is_the_identity_and_flip_mirrors() -> None:
    x = random_images(4).float() / 255
    full = torch.tensor([[0, 0, 16, 16]] * 4)
    same = crop_and_flip(x, full, torch.zeros(4, dtype=torch.bool), 16)
    torch.testing.assert_close(same, x, rtol=0, atol=1e-5)
    mixed = crop_and_flip(x, full, torch.tensor([True, False, True, False]), 16)
    torch.testing.assert_close(mixed[[0, 2]], x[[0, 2]].flip(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(mixed[[1, 3]], x[[1, 3]], rtol=0, atol=1e-5)


def test_a_box_of_the_output_size_is_that_part_of_the_image() -> None:
    x = random_images(3, 20, 24).float() / 255
    boxes = torch.tensor([[0, 0, 8, 8], [12, 16, 8, 8], [5, 7, 8, 8]])
    out = crop_and_flip(x, boxes, torch.tensor([False, False, True]), 8)
    torch.testing.assert_close(out[0], x[0, :, :8, :8], rtol=0, atol=1e-5)
    torch.testing.assert_close(out[1], x[1, :, 12:, 16:], rtol=0, atol=1e-5)
    torch.testing.assert_close(out[2], x[2, :, 5:13, 7:15].flip(-1), rtol=0, atol=1e-5)


def test_views_repeat_under_a_seed_and_stay_in_range() -> None:
    views, images = Views(12), random_images(64)
    torch.manual_seed(3)
    first, other = views(images), views(images)
    torch.manual_seed(3)
    assert torch.equal(views(images), first)
    assert not torch.equal(other, first)
    assert first.shape == (64, 3, 12, 12) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1


def test_each_sample_draws_its_own_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        operation = getattr(augmentations, name)

        def recorded(x: Tensor, factor: Tensor) -> Tensor:
            seen.setdefault(name, []).append(factor)
            result: Tensor = operation(x, factor)
            return result

        return recorded

    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation")
    for name in names:
        monkeypatch.setattr(augmentations, name, record(name))
    torch.manual_seed(0)
    n = 2000
    images = random_images(1).expand(n, -1, -1, -1)
    out = Views(16, area=(1.0, 1.0), jitter=(0.4, 0.8, 1.2), greyscale_p=0.25)(images)
    for name, low, high in zip(names, (0.6, 0.2, 0.0), (1.4, 1.8, 2.2), strict=True):
        factors = torch.cat(seen[name])
        assert len(seen[name]) == 3  # the order is each sample's own: every operation runs at every position
        assert len(factors) / n == pytest.approx(0.8, abs=0.04)
        assert len(factors.unique()) > 0.99 * len(factors)
        assert low <= factors.min() < low + 0.02 and high - 0.02 < factors.max() <= high
    grey = (out - out[:, :1]).abs().amax((1, 2, 3)) < 1e-6
    assert grey.float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_views_without_anything_but_crop_keep_the_colours() -> None:
    images = torch.full((8, 3, 16, 16), 51, dtype=torch.uint8)
    out = Views(8, jitter=(0, 0, 0), jitter_p=0, greyscale_p=0)(images)
    torch.testing.assert_close(out, torch.full((8, 3, 8, 8), 0.2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"area": (0.5,)},
        {"area": (0.0, 1.0)},
        {"area": (0.8, 0.2)},
        {"jitter": (0.4, 0.4)},
        {"jitter": (0.4, 0.4, -1)},
        {"jitter_p": 1.5},
        {"greyscale_p": -0.1},
    ],
)
def test_views_refuse_values_out_of_range(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError) as e:
        Views(**{"size": 8, **wrong})
    assert f"{name}={value}" in str(e.value)
