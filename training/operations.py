"""What an augmentation does to pixels: each operation at given parameters, one for every sample of a batch.

Images are (B, 3, H, W) in [0, 1], parameters (B,). Results are clipped to [0, 1], except the blur's. The colour
operations and the blur equal TensorFlow's and the official code's (google-research/simclr, `data_util.py`) at the same
parameters; rotation, cutout, noise and Sobel filtering are those that the v1 paper compares (section 3, figure 4).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def _column(parameter: Tensor, x: Tensor) -> Tensor:
    return parameter.to(x).view(-1, 1, 1, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """Times factor, as the released code does for v1 and v2."""
    return (x * _column(factor, x)).clamp_(0, 1)


def add_brightness(x: Tensor, delta: Tensor) -> Tensor:
    """Plus delta, as v1's paper version did."""
    return (x + _column(delta, x)).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from each channel's own mean by factor."""
    mean = x.mean((2, 3), keepdim=True)
    return torch.addcmul(mean, x - mean, _column(factor, x)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """HSV saturation times factor: at fixed hue and value, V - channel is proportional to S."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    # S x factor may not exceed 1, that is, the lowest channel may not fall below 0.
    limit = value / (value - low).clamp_min_(torch.finfo(x.dtype).tiny)
    return (value - (value - x) * torch.minimum(_column(factor, x), limit)).clamp_(0, 1)


def adjust_hue(x: Tensor, delta: Tensor) -> Tensor:
    """HSV hue plus delta, a share of the full circle; largest and smallest channel keep their values."""
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
    """ITU-R 601 luma in all three channels."""
    grey = torch.einsum("bchw,c->bhw", x, x.new_tensor([0.2989, 0.587, 0.114]))
    return grey[:, None].expand_as(x).clone()


def gaussian_blur(x: Tensor, sigma: Tensor, kernel_size: int) -> Tensor:
    """Gaussian blur, zero-padded: horizontal, then vertical; not clipped.

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
    """Counter-clockwise by quarter turns (0 to 3); the images must be square."""
    x = x.clone()
    for k in (1, 2, 3):
        rows = (quarters == k).nonzero()[:, 0].to(x.device)
        x[rows] = x[rows].rot90(k, (2, 3))
    return x


def cut_out(x: Tensor, centre: Tensor, side: int, value: float = 0.5) -> Tensor:
    """A square of one value over each image; what lies outside the image is lost (DeVries and Taylor 2017).

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
    """Plus Gaussian noise of a standard deviation, drawn on the CPU like all randomness here."""
    return torch.addcmul(x, torch.randn(x.shape).to(x), _column(std, x)).clamp_(0, 1)


def sobel(x: Tensor) -> Tensor:
    """Length of each channel's gradient by Sobel's filters, edges reflected; a step from 0 to 1 gives 1."""
    kernel = x.new_tensor([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 4
    kernels = torch.stack([kernel, kernel.T])[:, None]  # (2, 1, 3, 3)
    padded = F.pad(x, (1, 1, 1, 1), mode="reflect")
    gradient = F.conv2d(padded.flatten(0, 1)[:, None], kernels)  # (3B, 2, H, W)
    return gradient.square().sum(1).sqrt_().view(x.shape).clamp_(0, 1)
