"""Random crops: boxes drawn as the official code draws them, and resized to one size."""

import functools

import numpy as np
import torch
from torch import Tensor

from simclr_hub.pixels import bicubic_taps


def sample_crop_boxes(
    n: int,
    height: int,
    width: int,
    generator: torch.Generator | None = None,
    *,
    area: tuple[float, float] = (0.08, 1.0),
    aspect: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Crop boxes as TensorFlow's `sample_distorted_bounding_box` draws them for the whole image as the object.

    Neither area nor log-aspect is uniform: the aspect is, then the height among whole pixels.

    Args:
        n: how many.
        height: of the image, in pixels.
        width: of the image, in pixels.
        generator: source of randomness.
        area: allowed share of the image's area; below 10 % a box is rejected in any case.
        aspect: range of width / height.

    Returns:
        int64 (n, 4): y, x, height, width. What 100 tries did not find is the whole image.
    """
    boxes = np.tile([0, 0, height, width], (n, 1))
    pending = np.arange(n)
    low, high = (share * height * width for share in area)
    for _ in range(100):
        # In NumPy, whose small arrays cost less than torch's: workers draw one box at a time.
        u = torch.rand(4, len(pending), generator=generator, dtype=torch.float64).numpy()
        ratio = aspect[0] + u[0] * (aspect[1] - aspect[0])
        tallest = np.rint(np.sqrt(high / ratio))
        widest = np.floor((width + 0.5 - 1e-7) / ratio)
        tallest = np.minimum(np.where(np.rint(tallest * ratio) > width, widest, tallest), height)
        shortest = np.minimum(np.rint(np.sqrt(low / ratio)), tallest)
        h = shortest + np.floor(u[1] * (tallest - shortest + 1))
        w = np.rint(h * ratio)
        h = h + (h * w < low) - (h * w > high)
        w = np.rint(h * ratio)
        fits = (h * w >= max(low, 0.1 * height * width)) & (h * w <= high)
        fits &= (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
        y, x = np.floor(u[2] * (height - h)), np.floor(u[3] * (width - w))
        boxes[pending[fits]] = np.stack([y, x, h, w], 1)[fits]
        pending = pending[~fits]
        if not len(pending):
            break
    return torch.from_numpy(boxes)


def resize(x: Tensor, boxes: Tensor, size: int, resample: str = "bicubic") -> Tensor:
    """Each box as an image of its own, resized without antialiasing and not clipped.

    Args:
        x: images (B, 3, H, W), uint8 or float in [0, 1].
        boxes: y, x, height, width of each (B, 4), in pixels.
        size: side of the result.
        resample: "bicubic", TensorFlow 1's kernel as in the official code, which overshoots [0, 1] at edges by up to
            about a tenth; or "bilinear", between the centres of pixels as PyTorch does.

    Returns:
        (B, 3, size, size).
    """
    # Only what some box covers is read: for a single photo, its box.
    (top, left), (bottom, right) = boxes[:, :2].amin(0).tolist(), (boxes[:, :2] + boxes[:, 2:]).amax(0).tolist()
    taps = TAPS[resample]

    def rows(x: Tensor, start: Tensor, lengths: Tensor) -> Tensor:
        return _weighted_rows(x, start, [taps(length, size, x.device) for length in lengths.tolist()])

    x = rows(x[..., top:bottom, left:right], boxes[:, 0] - top, boxes[:, 2])  # (B, 3, size, right - left)
    x = rows(x.transpose(2, 3), boxes[:, 1] - left, boxes[:, 3])
    return x.transpose(2, 3).contiguous()


def _weighted_rows(x: Tensor, start: Tensor, taps: list[tuple[Tensor, Tensor]]) -> Tensor:
    """(B, C, L, M) to (B, C, size, M): sums of rows by each sample's taps, counted from its start."""
    n, channels, length, width = x.shape
    index = torch.stack([index for index, _ in taps], 1)  # (K, B, size)
    weight = torch.stack([weight for _, weight in taps], 1)[:, :, None, :, None]  # (K, B, 1, size, 1)
    if not x.is_floating_point():
        weight = weight / 255
    first = torch.arange(n * channels, device=x.device).view(n, channels, 1) * length
    first += start.to(x.device)[:, None, None]
    flat = x.reshape(-1, width)  # whole rows lie together, so that taking them is a copy of memory
    out = x.new_zeros((), dtype=weight.dtype)
    for k in range(len(index)):
        rows = flat.index_select(0, (first + index[k][:, None]).flatten()).view(n, channels, -1, width)
        out = rows * weight[k] if k == 0 else out.addcmul_(rows.to(out.dtype), weight[k])
    return out


@functools.lru_cache(maxsize=256)
def _bicubic_taps(n_in: int, n_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return indices and weights, each (4, n_out), of the source pixels of every output pixel."""
    index, weights = (torch.tensor(array, device=device) for array in bicubic_taps(n_in, n_out))
    return index, weights


@functools.lru_cache(maxsize=256)
def _bilinear_taps(n_in: int, n_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices and weights, each (2, n_out), of the source pixels of every output pixel."""
    position = (torch.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    base = position.floor()
    share = position - base
    index = torch.stack([base, base + 1]).long().clamp(0, n_in - 1)
    return index.to(device), torch.stack([1 - share, share]).to(device)


TAPS = {"bicubic": _bicubic_taps, "bilinear": _bilinear_taps}
