import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from augmentation_helpers import OFFICIAL, ks_limit, ks_statistic, random_images

from simclr_hub.pixels import transform
from simclr_hub.training.operations import resize, sample_crop_boxes


def box_statistics(boxes: np.ndarray) -> dict[str, np.ndarray]:
    y, x, h, w = boxes.astype(float).T
    return {"y": y, "x": x, "height": h, "width": w, "area": h * w, "aspect": w / h}


@pytest.mark.parametrize(("height", "width"), [(96, 128), (64, 64)])
def test_crop_boxes_are_distributed_as_tensorflows(height: int, width: int) -> None:
    official = OFFICIAL[f"boxes_{height}x{width}"]
    n = 6000
    ours = sample_crop_boxes(n, height, width, torch.Generator().manual_seed(0)).numpy()
    expected = box_statistics(official)
    for name, values in box_statistics(ours).items():
        assert ks_statistic(values, expected[name]) < ks_limit(n, n), name
    # Whole sides are as common, and no smaller box touches the lower or the right end, by TensorFlow's offsets.
    for boxes in (ours, official):
        y, x, h, w = boxes.astype(int).T
        assert ((y + h < height) | (h == height)).all() and ((x + w < width) | (w == width)).all()
    for side, whole in ((2, height), (3, width)):
        shares = [(boxes[:, side] == whole).mean() for boxes in (ours, official)]
        assert abs(shares[0] - shares[1]) < 3 * math.sqrt((shares[1] + 1e-4) * 2 / n)
    # The test has power: the log-uniform aspect and uniform area of torchvision's RandomResizedCrop are told apart.
    generator = np.random.default_rng(0)
    area = generator.uniform(0.08, 1, n) * height * width
    aspect = np.exp(generator.uniform(math.log(3 / 4), math.log(4 / 3), n))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w <= width) & (h <= height)
    assert ks_statistic(w[fits] * h[fits], expected["area"]) > 2 * ks_limit(n, n)


def test_crop_boxes_lie_inside_and_cover_their_share() -> None:
    boxes = sample_crop_boxes(4000, 40, 30, torch.Generator().manual_seed(0), area=(0.2, 0.5)).double()
    y, x, h, w = boxes.T
    assert (boxes >= 0).all() and (y + h <= 40).all() and (x + w <= 30).all()
    assert (h * w >= 0.2 * 1200).all() and (h * w <= 0.5 * 1200).all()


def test_an_impossible_crop_is_the_whole_image() -> None:
    # At least half the area at an aspect of at most 4/3 does not fit into 100 x 4.
    boxes = sample_crop_boxes(3, 100, 4, torch.Generator().manual_seed(0), area=(0.5, 1.0))
    assert boxes.tolist() == [[0, 0, 100, 4]] * 3


def tensorflow_bicubic(x: np.ndarray, size: int) -> np.ndarray:
    """(H, W) to (size, size) in float64, pixel by pixel: Keys a = -0.75, no half-pixel centres, edges clamped."""

    def kernel(t: float) -> float:
        a, t = -0.75, abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    def matrix(n: int) -> np.ndarray:
        m = np.zeros((size, n))
        for i in range(size):
            at = i * n / size
            offset = round((at - math.floor(at)) * 1024) / 1024
            for k in range(-1, 3):
                m[i, min(max(math.floor(at) + k, 0), n - 1)] += kernel(k - offset)
        return m

    return matrix(x.shape[0]) @ x @ matrix(x.shape[1]).T


@pytest.mark.parametrize("size", [8, 24, 50])
def test_bicubic_resizes_each_box_as_an_image_of_its_own(size: int) -> None:
    x = random_images(4, 40, 48)
    boxes = torch.tensor([[0, 0, 40, 48], [3, 7, 21, 17], [39, 47, 1, 1], [10, 0, 30, 8]])
    out = resize(x, boxes, size)
    assert out.shape == (4, 3, size, size) and out.is_contiguous()
    for sample, (top, left, h, w) in enumerate(boxes.tolist()):
        part = x[sample, :, top : top + h, left : left + w].double().numpy() / 255
        expected = np.stack([tensorflow_bicubic(channel, size) for channel in part])
        np.testing.assert_allclose(out[sample].numpy(), expected, rtol=0, atol=5e-6)
        alone = resize(x[sample : sample + 1], boxes[sample : sample + 1], size)
        torch.testing.assert_close(alone[0], out[sample], rtol=0, atol=1e-6)
    torch.testing.assert_close(resize(x.float() / 255, boxes, size), out, rtol=0, atol=1e-6)
    assert out.min() < 0 and out.max() > 1  # not clipped: the official code jitters the overshoot too


def test_bicubic_equals_the_evaluation_transform_on_its_crop() -> None:
    x = random_images(2, 90, 70)
    out = resize(x, torch.tensor([[12, 4, 61, 61]] * 2), 48).clamp(0, 1)
    # Of 84 x 68 pixels the central 61: from (84 - 61 + 1) // 2 = 12 and from 4.
    expected = transform(x[..., :-6, :-2], 48, exact=True, crop_proportion=61 / 68)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [6, 24, 50])
def test_bilinear_equals_pytorchs_on_each_box(size: int) -> None:
    x = random_images(3, 40, 48)
    boxes = torch.tensor([[0, 0, 40, 48], [3, 7, 21, 17], [39, 47, 1, 1]])
    out = resize(x, boxes, size, "bilinear")
    for sample, (top, left, h, w) in enumerate(boxes.tolist()):
        part = x[sample : sample + 1, :, top : top + h, left : left + w].float() / 255
        expected = F.interpolate(part, (size, size), mode="bilinear", align_corners=False)
        torch.testing.assert_close(out[sample : sample + 1], expected, rtol=0, atol=5e-6)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_a_box_of_the_output_size_is_that_part_of_the_image(resample: str) -> None:
    x = random_images(3, 20, 24)
    boxes = torch.tensor([[0, 0, 8, 8], [12, 16, 8, 8], [5, 7, 8, 8]])
    expected = [x[0, :, :8, :8], x[1, :, 12:, 16:], x[2, :, 5:13, 7:15]]
    torch.testing.assert_close(resize(x, boxes, 8, resample), torch.stack(expected).float() / 255, rtol=0, atol=1e-6)
