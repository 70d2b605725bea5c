"""What augmentations do to pixels: crops as the official code draws them, and each operation at given parameters.

Images are (B, 3, H, W) in [0, 1], parameters (B,), one for every sample of a batch. Results are clipped to [0, 1],
except the blur's and the resizing's. The colour operations and the blur equal TensorFlow's and the official code's
(google-research/simclr, `data_util.py`) at the same parameters; rotation, cutout, noise and Sobel filtering are those
that the v1 paper compares (section 3, figure 4).
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
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
    """Resize each box as an image of its own, without antialiasing, not clipped.

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
    """Sum rows of (B, C, L, M) by each sample's taps, counted from its start, to (B, C, size, M)."""
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
    """Return indices and weights, each (2, n_out), of the source pixels of every output pixel."""
    position = (torch.arange(n_out) + 0.5) * (n_in / n_out) - 0.5
    base = position.floor()
    share = position - base
    index = torch.stack([base, base + 1]).long().clamp(0, n_in - 1)
    return index.to(device), torch.stack([1 - share, share]).to(device)


TAPS = {"bicubic": _bicubic_taps, "bilinear": _bilinear_taps}


def _column(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.to(x).view(-1, 1, 1, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply by factor, as the released code does for v1 and v2."""
    return (x * _column(factor, x)).clamp_(0, 1)


def add_brightness(x: Tensor, delta: Tensor) -> Tensor:
    """Add delta, as v1's paper version did."""
    return (x + _column(delta, x)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Scale the distance from each channel's own mean by factor."""
    mean = x.mean((2, 3), keepdim=True)
    return torch.addcmul(mean, x - mean, _column(factor, x)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply HSV saturation by factor: at fixed hue and value, V - channel is proportional to S."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    # S x factor may not exceed 1, that is, the lowest channel may not fall below 0.
    limit = value / (value - low).clamp_min_(torch.finfo(x.dtype).tiny)
    return (value - (value - x) * torch.minimum(_column(factor, x), limit)).clamp_(0, 1)


def adjust_hue(x: Tensor, delta: Tensor) -> Tensor:
    """Add delta, a share of the full circle, to HSV hue; largest and smallest channel keep their values."""
    high, low = x.amax(1), x.amin(1)
    span = high - low  # (B, H, W)
    r, g, b = x.unbind(1)
    # Hue in [-1, 6), 0 at red, 2 at green, 4 at blue. Grey has none: any number gives grey again.
    hue = torch.where(high == r, g - b, torch.where(high == g, b - r, r - g))
    hue = hue.div_(span.clamp_min(torch.finfo(x.dtype).tiny))
    hue += torch.where(high == r, 0.0, torch.where(high == g, 2.0, 4.0))
    hue += 6 * _column(delta, x)[:, 0]
    hue -= (hue / 6).floor_().mul_(6)
    # How far each channel stands between low and high, from where the hue is on the circle.
    shares = ((hue - 3).abs_().sub_(1), (hue - 2).abs_().neg_().add_(2), (hue - 4).abs_().neg_().add_(2))
    return torch.stack([torch.addcmul(low, span, share.clamp_(0, 1)) for share in shares], 1).clamp_(0, 1)


def to_greyscale(x: Tensor) -> Tensor:
    """Put ITU-R 601 luma into all three channels."""
    grey = torch.einsum("bchw,c->bhw", x, x.new_tensor([0.2989, 0.587, 0.114]))
    return grey[:, None].expand_as(x).clone()


def gaussian_blur(x: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Blur with a zero-padded Gaussian: horizontally, then vertically; not clipped.

    Args:
        x: images (B, 3, H, W).
        sigma: standard deviations (B,) in pixels.
        kernel_size: the official argument; the kernel has 2 int(kernel_size / 2) + 1 taps.
    """
    radius = kernel_size // 2
    at = torch.arange(-radius, radius + 1, device=x.device, dtype=x.dtype)
    weights = torch.exp(-(at**2) / (2 * sigma.to(x)[:, None] ** 2))
    weights = weights / weights.sum(1, keepdim=True)  # (B, taps)
    # A sum of shifted images: on a CPU twice as fast as a convolution in groups, one a sample and channel.
    for dim, padding in ((3, (radius, radius)), (2, (0, 0, radius, radius))):
        padded, size = F.pad(x, padding), x.shape[dim]
        x = padded.narrow(dim, 0, size) * _column(weights[:, 0], x)
        for k in range(1, 2 * radius + 1):
            x.addcmul_(padded.narrow(dim, k, size), _column(weights[:, k], x))
    return x


def rotate(x: Tensor, quarters: Tensor) -> Tensor:
    """Rotate counter-clockwise by quarter turns (0 to 3); the images must be square."""
    x = x.clone()
    for k in (1, 2, 3):
        rows = (quarters == k).nonzero()[:, 0].to(x.device)
        x[rows] = x[rows].rot90(k, (2, 3))
    return x


def cut_out(x: Tensor, centre: Tensor, side: int, value: float = 0.5) -> Tensor:
    """Put a square of one value over each image; what lies outside the image is lost (DeVries and Taylor 2017).

    Args:
        x: images (B, 3, H, W).
        centre: y, x of each square (B, 2), in pixels.
        side: of the square, in pixels.
        value: what it is filled with.
    """
    height, width = x.shape[-2:]
    top, left = (centre.to(x.device).long() - side // 2)[:, :, None].unbind(1)  # (B, 1)
    row, column = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    rows, columns = (row >= top) & (row < top + side), (column >= left) & (column < left + side)
    inside = rows[:, :, None] & columns[:, None]  # (B, H, W)
    return x.masked_fill(inside[:, None], value).clamp_(0, 1)


def add_noise(x: Tensor, std: Tensor) -> Tensor:
    """Add Gaussian noise of a standard deviation, drawn on the CPU like all randomness here."""
    return torch.addcmul(x, torch.randn(x.shape).to(x), _column(std, x)).clamp_(0, 1)


def sobel(x: Tensor) -> Tensor:
    """Compute each channel's gradient length by Sobel's filters, edges reflected; a step from 0 to 1 gives 1."""
    kernel = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([kernel, kernel.T])[:, None]  # (2, 1, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    gradient = F.conv2d(padded.flatten(0, 1)[:, None], kernels)  # (3B, 2, H, W)
    return gradient.square().sum(1).sqrt_().view(x.shape).clamp_(0, 1)
