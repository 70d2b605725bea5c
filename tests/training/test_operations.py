import colorsys
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from augmentation_helpers import OFFICIAL, channels_first, official_image, random_images
from torch import Tensor

from simclr_hub.training.operations import (
    add_brightness,
    add_noise,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    cut_out,
    gaussian_blur,
    rotate,
    sobel,
    to_greyscale,
)


@pytest.mark.parametrize("case", [0, 1])
@pytest.mark.parametrize(
    ("name", "operation"),
    [
        ("brightness_v2", adjust_brightness),
        ("brightness_v1", add_brightness),
        ("contrast", adjust_contrast),
        ("saturation", adjust_saturation),
        ("hue", adjust_hue),
    ],
)
def test_operations_equal_the_official_ones(name: str, operation: Callable[..., Tensor], case: int) -> None:
    parameters = torch.tensor(OFFICIAL[f"{name}_factor_{case}"])
    out = operation(official_image(case).expand(len(parameters), -1, -1, -1), parameters)  # one a sample
    torch.testing.assert_close(out, channels_first(OFFICIAL[f"{name}_{case}"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [0, 1])
def test_greyscale_equals_the_official_one(case: int) -> None:
    expected = channels_first(OFFICIAL[f"grey_{case}"])
    torch.testing.assert_close(to_greyscale(official_image(case))[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("case", [0, 1])
def test_blur_equals_the_official_one(case: int) -> None:
    sigma = torch.tensor(OFFICIAL[f"blur_sigma_{case}"])
    x = official_image(case).expand(len(sigma), -1, -1, -1)
    out = gaussian_blur(x, sigma, int(OFFICIAL[f"blur_kernel_size_{case}"]))
    torch.testing.assert_close(out, channels_first(OFFICIAL[f"blur_{case}"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("kernel_size", "taps"), [(0, 1), (1, 1), (3, 3), (22, 23), (23, 23)])
def test_blur_of_a_point_is_the_kernel_of_each_sample(kernel_size: int, taps: int) -> None:
    x = torch.zeros(3, 3, 41, 41, dtype=torch.float64)
    x[:, :, 20, 20] = 1
    sigma = torch.tensor([0.1, 0.8, 2.0], dtype=torch.float64)
    out = gaussian_blur(x, sigma, kernel_size)
    for sample, s in enumerate(sigma.tolist()):
        kernel = np.array([math.exp(-(i**2) / (2 * s**2)) for i in range(-(taps // 2), taps // 2 + 1)])
        kernel /= kernel.sum()
        expected = np.zeros((41, 41))
        around = slice(20 - taps // 2, 21 + taps // 2)
        expected[around, around] = np.outer(kernel, kernel)
        np.testing.assert_allclose(out[sample].numpy(), np.broadcast_to(expected, (3, 41, 41)), rtol=0, atol=1e-15)


def test_blur_pads_with_zeros() -> None:
    out = gaussian_blur(torch.ones(1, 3, 9, 9), torch.tensor([1.0]), 3)[0, 0]
    side = 1 / (1 + 2 * math.exp(-0.5)) * math.exp(-0.5)  # weight of a neighbour, lost at an edge
    assert out[4, 4].item() == pytest.approx(1)
    assert out[0, 4].item() == pytest.approx(1 - side)
    assert out[0, 0].item() == pytest.approx((1 - side) ** 2)


def test_hue_turns_as_hsv_says_also_over_the_ends_of_the_circle() -> None:
    generator = np.random.default_rng(0)
    pixels = generator.random((500, 3))
    pixels[:100] = np.round(pixels[:100])  # corners of the cube: ties of two channels, black and white
    for delta in (-1.7, -0.5, -1e-9, 0.0, 0.2, 1 / 3, 0.999, 1.0):
        x = torch.tensor(pixels.T[None, :, :, None])  # (1, 3, 500, 1), float64
        out = adjust_hue(x, torch.tensor([delta], dtype=torch.float64))[0, :, :, 0].T.numpy()
        expected = [
            colorsys.hsv_to_rgb((h + delta) % 1, s, v) for h, s, v in (colorsys.rgb_to_hsv(*p) for p in pixels)
        ]
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-8)


def test_hue_leaves_grey_as_it_is_and_turns_red_to_green() -> None:
    grey = torch.linspace(0, 1, 256).expand(2, 3, 1, -1)
    assert torch.equal(adjust_hue(grey, torch.tensor([0.3, -0.9])), grey)
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1)
    turned = adjust_hue(red.expand(3, -1, -1, -1), torch.tensor([1 / 3, 2 / 3, -1 / 6]))[..., 0, 0]
    torch.testing.assert_close(turned, torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 1]]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
def test_rotation_turns_each_sample_by_its_own(turns: int) -> None:
    x = random_images(4).float()
    out = rotate(x, torch.tensor([turns, 0, 1, 2]))
    assert np.array_equal(out[0].numpy(), np.rot90(x[0].numpy(), turns, (1, 2)))
    assert torch.equal(out[1], x[1])
    assert torch.equal(out[3], x[3].flip(1, 2))


def test_cutout_fills_a_square_and_loses_what_is_outside() -> None:
    x = torch.ones(2, 3, 10, 12)
    out = cut_out(x, torch.tensor([[5, 6], [0, 11]]), 4, 0.25)
    expected = torch.ones(2, 3, 10, 12)
    expected[0, :, 3:7, 4:8] = 0.25
    expected[1, :, :2, 9:] = 0.25
    assert torch.equal(out, expected) and (x == 1).all()


def test_noise_has_each_samples_standard_deviation_and_is_clipped() -> None:
    torch.manual_seed(0)
    out = add_noise(torch.full((3, 3, 64, 64), 0.5), torch.tensor([0.0, 0.05, 0.1]))
    assert torch.equal(out[0], torch.full((3, 64, 64), 0.5))
    assert out.std((1, 2, 3)).tolist() == pytest.approx([0, 0.05, 0.1], rel=0.03)
    assert (out[1, 0] - out[1, 1]).abs().max() > 0.1  # the channels' own
    white = add_noise(torch.ones(1, 3, 8, 8), torch.tensor([0.3]))
    assert white.max() == 1 and white.min() >= 0


def test_sobel_shows_steps_and_nothing_else() -> None:
    x = torch.zeros(1, 3, 6, 8)
    x[:, 0, :, 4:] = 1  # a vertical step in red
    x[:, 1, 3:] = 0.5  # a horizontal one in green
    out = sobel(x)[0]
    assert torch.equal(out[0], torch.tensor([0.0, 0, 0, 1, 1, 0, 0, 0]).expand(6, -1))
    assert torch.equal(out[1], torch.tensor([0, 0, 0.5, 0.5, 0, 0])[:, None].expand(-1, 8))
    assert (out[2] == 0).all()


@pytest.mark.parametrize(
    "operation", [adjust_brightness, add_brightness, adjust_contrast, adjust_saturation, adjust_hue, add_noise]
)
def test_results_are_clipped_and_the_input_is_kept(operation: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    x = random_images(8).float() / 255 * 1.4 - 0.2  # as the bicubic kernel overshoots
    before = x.clone()
    out = operation(x, torch.linspace(-0.5, 2.5, 8))
    assert out.min() >= 0 and out.max() <= 1 and out.isfinite().all()
    assert torch.equal(x, before)
