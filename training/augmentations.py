"""SimCLR's random views, batched on tensors: each sample draws its own parameters (official `data_util.py`).

The operations equal the official ones at given parameters, and `sample_crop_boxes` draws from the official
distribution. Unusual: crops are resampled bilinearly in one `grid_sample` together with the flip, where the official
code is bicubic; that is what makes views cheap enough for a CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor


def _scaled(factor: Tensor) -> Tensor:
    return factor.view(-1, 1, 1, 1)


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] times factor (B,), clipped."""
    return (x * _scaled(factor)).clamp(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from each channel's own mean by factor (B,), clipped."""
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * _scaled(factor) + mean).clamp(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """HSV saturation times factor (B,), clipped: at fixed hue and value, V - channel is proportional to S."""
    value, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    # S x factor may not exceed 1, that is, the lowest channel may not fall below 0.
    limit = value / (value - low).clamp_min(torch.finfo(x.dtype).tiny)
    return (value - (value - x) * torch.minimum(_scaled(factor), limit)).clamp(0, 1)


def to_greyscale(x: Tensor) -> Tensor:
    """ITU-R 601 luma in all three channels."""
    grey = torch.einsum("bchw,c->bhw", x, x.new_tensor([0.2989, 0.587, 0.114]))
    return grey[:, None].expand_as(x).clone()


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
    boxes = torch.tensor([0, 0, height, width]).repeat(n, 1)
    pending = torch.arange(n)
    low, high = (share * height * width for share in area)
    for _ in range(100):
        u = torch.rand(4, len(pending), generator=generator, dtype=torch.float64)
        ratio = aspect[0] + u[0] * (aspect[1] - aspect[0])
        tallest = (high / ratio).sqrt().round()
        tallest = torch.where(
            (tallest * ratio).round() > width, ((width + 0.5 - 1e-7) / ratio).floor(), tallest
        ).clamp_max(height)
        shortest = torch.minimum((low / ratio).sqrt().round(), tallest)
        h = shortest + (u[1] * (tallest - shortest + 1)).floor()
        w = (h * ratio).round()
        h = h + (h * w < low).double() - (h * w > high).double()
        w = (h * ratio).round()
        fits = (h * w >= max(low, 0.1 * height * width)) & (h * w <= high)
        fits &= (h >= 1) & (w >= 1) & (h <= height) & (w <= width)
        y, x = (u[2] * (height - h)).floor(), (u[3] * (width - w)).floor()
        boxes[pending[fits]] = torch.stack([y, x, h, w], 1)[fits].long()
        pending = pending[~fits]
        if not len(pending):
            break
    return boxes


def crop_and_flip(x: Tensor, boxes: Tensor, flip: Tensor, size: int) -> Tensor:
    """Boxes (B, 4) of x (B, 3, H, W), mirrored where flip (B,) is true, bilinearly to (B, 3, size, size)."""
    height, width = x.shape[-2:]
    y, left, h, w = boxes.to(x).T
    centre_x, centre_y = (2 * left + w) / width - 1, (2 * y + h) / height - 1
    zero = torch.zeros_like(h)
    theta = torch.stack(
        [
            torch.stack([w / width * torch.where(flip.to(x.device), -1, 1), zero, centre_x], 1),
            torch.stack([zero, h / height, centre_y], 1),
        ],
        1,
    )  # (B, 2, 3)
    grid = F.affine_grid(theta, [len(x), 3, size, size], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass
class Views:
    """Random views of a batch.

    Args:
        size: side of a view in pixels.
        area: crop's share of the image's area.
        jitter: strengths of brightness, contrast and saturation: each factor is U(max(1 - s, 0), 1 + s).
        jitter_p: probability that a sample is jittered.
        greyscale_p: probability that a sample loses its colour.

    Raises:
        ValueError: a size, share, strength or probability that is out of range.
    """

    size: int
    area: Sequence[float] = (0.08, 1.0)
    jitter: Sequence[float] = field(default=(0.8, 0.8, 0.8))
    jitter_p: float = 0.8
    greyscale_p: float = 0.2

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size={self.size} must be at least 1 pixel")
        if len(self.area) != 2 or not 0 < self.area[0] <= self.area[1] <= 1:
            raise ValueError(f"area={self.area} must be two shares of the image, 0 < low <= high <= 1")
        if len(self.jitter) != 3 or not all(s >= 0 for s in self.jitter):
            raise ValueError(f"jitter={self.jitter} must be three strengths >= 0: brightness, contrast, saturation")
        for name in ("jitter_p", "greyscale_p"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is not a probability")

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, H, W) to one view of each, float32 (B, 3, size, size) in [0, 1]."""
        # Every parameter is drawn on the CPU: one generator, the same views on any device.
        n = len(images)
        boxes = sample_crop_boxes(n, *images.shape[-2:], area=(self.area[0], self.area[1]))
        x = crop_and_flip(images.float() / 255, boxes, torch.rand(n) < 0.5, self.size)
        jittered = torch.rand(n) < self.jitter_p
        operations = (adjust_brightness, adjust_contrast, adjust_saturation)
        order = torch.rand(n, len(operations)).argsort(1)  # random order, per sample
        for position in range(len(operations)):
            for i, (operation, s) in enumerate(zip(operations, self.jitter, strict=True)):
                rows = (jittered & (order[:, position] == i)).nonzero()[:, 0]
                factor = torch.empty(len(rows)).uniform_(max(1 - s, 0), 1 + s)
                rows = rows.to(x.device)
                x[rows] = operation(x[rows], factor.to(x.device))
        grey = (torch.rand(n) < self.greyscale_p).nonzero()[:, 0].to(x.device)
        x[grey] = to_greyscale(x[grey])
        return x
