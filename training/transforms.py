"""Random operations: what each sample's parameters are drawn from, and which samples an operation is applied to.

An operation first draws the parameters of a whole batch, on the CPU from torch's default generator, and is then called
with them, so that the same draws give the same views on any device and in pieces of any size.

Source: google-research/simclr, `data_util.py`. Rotation, cutout, noise and Sobel filtering are those that the v1 paper
compares in section 3 and does not train with; it gives no parameters for them, the defaults are ours.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from . import operations as ops
from .operations import TAPS, resize, sample_crop_boxes


def are_numbers(*values: Any) -> bool:
    """Tell whether all are numbers; recipes may hold anything."""
    return all(isinstance(value, (int, float)) for value in values)


def check_probability(name: str, value: float) -> None:
    """Raise ValueError unless within [0, 1]."""
    if not (are_numbers(value) and 0 <= value <= 1):
        raise ValueError(f"{name}={value!r} is not a probability")


def check_range(name: str, value: Sequence[float], low: float, high: float) -> None:
    """Raise ValueError unless two numbers, low < first <= second <= high."""
    if not (
        isinstance(value, Sequence) and len(value) == 2 and are_numbers(*value) and low < value[0] <= value[1] <= high
    ):
        raise ValueError(f"{name}={value!r} must be two numbers, {low} < first <= second <= {high}")


def check_strengths(name: str, value: Sequence[float]) -> None:
    """Raise ValueError unless three or four numbers >= 0."""
    if not (
        isinstance(value, Sequence) and len(value) in (3, 4) and are_numbers(*value) and all(s >= 0 for s in value)
    ):
        raise ValueError(f"{name}={value!r} must be strengths >= 0: brightness, contrast, saturation and perhaps hue")


def check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Raise ValueError unless one of `allowed`."""
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(str, allowed))}")


def uniform(n: int, low: float, high: float) -> Tensor:
    """Draw numbers in [low, high), (n, 1)."""
    return low + (high - low) * torch.rand(n, 1)


def on_rows(
    x: Tensor, chosen: np.ndarray, operation: Callable[[Tensor, Tensor], Tensor], parameters: Tensor
) -> Tensor:
    """Apply `operation` to the chosen rows of x; x itself changes, unless all or none are chosen."""
    if not chosen.any():  # NumPy's, since this is asked often and torch takes ten times as long
        return x
    if chosen.all():
        return operation(x, parameters)
    rows = torch.from_numpy(chosen.nonzero()[0])
    there = rows.to(x.device)
    x[there] = operation(x[there], parameters[rows])
    return x


@dataclass(frozen=True, kw_only=True)
class Resize:
    """The whole image to size x size, whatever its shape.

    Args:
        size: side of the result in pixels.
        resample: "bicubic" (TensorFlow 1's, the official one) or "bilinear".
    """

    size: int
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"size={self.size!r} must be a whole number of pixels")
        check_choice("resample", self.resample, list(TAPS))

    def draw(self, n: int, height: int, width: int) -> Tensor:
        """Draw boxes (n, 4)."""
        return torch.tensor([0, 0, height, width]).repeat(n, 1)

    def __call__(self, x: Tensor, boxes: Tensor) -> Tensor:
        """Resize (B, 3, H, W), uint8 or float, to float (B, 3, size, size)."""
        return resize(x, boxes, self.size, self.resample)


@dataclass(frozen=True, kw_only=True)
class Crop(Resize):
    """A random part of the image, resized.

    Args:
        area: its share of the image's area.
        aspect: range of its width / height.
    """

    area: Sequence[float] = (0.08, 1.0)
    aspect: Sequence[float] = (3 / 4, 4 / 3)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("area", self.area, 0, 1)
        check_range("aspect", self.aspect, 0, float("inf"))

    def draw(self, n: int, height: int, width: int) -> Tensor:
        """Draw boxes (n, 4)."""
        area, aspect = (self.area[0], self.area[1]), (self.aspect[0], self.aspect[1])
        return sample_crop_boxes(n, height, width, area=area, aspect=aspect)


@dataclass(frozen=True, kw_only=True)
class Sometimes:
    """An operation that each sample undergoes with probability p."""

    p: float = 1.0

    def __post_init__(self) -> None:
        check_probability("p", self.p)

    def draw(self, n: int, height: int, width: int) -> Tensor:
        """Draw (n, 1 + parameters): whether each sample undergoes it, and its parameters."""
        return torch.cat([(torch.rand(n, 1) < self.p).float(), self._parameters(n, height, width)], 1)

    def __call__(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Apply the operation to the drawn samples of x (B, 3, H, W), which may be changed in place."""
        return on_rows(x, drawn[:, 0].numpy() > 0, self._apply, drawn[:, 1:])

    def _parameters(self, n: int, height: int, width: int) -> Tensor:
        """Draw the parameters (n, parameters)."""
        return torch.empty(n, 0)

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        """Apply the operation to every sample of x."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Flip(Sometimes):
    """Left becomes right."""

    p: float = 0.5

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return x.flip(-1)


@dataclass(frozen=True, kw_only=True)
class Jitter(Sometimes):
    """Brightness, contrast, saturation and hue, in an order of each sample's own, clipped after each.

    Args:
        strengths: s of brightness, contrast and saturation (factors U(max(1 - s, 0), 1 + s)) and, if there is a
            fourth, of hue (U(-s, s) of the circle).
        strength: scales them all.
        brightness: "multiply" by the factor (released code), or "add" U(-s, s) (v1's paper version).
    """

    strengths: Sequence[float] = (0.8, 0.8, 0.8, 0.2)
    strength: float = 1.0
    brightness: str = "multiply"
    p: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strengths("strengths", self.strengths)
        if not are_numbers(self.strength) or self.strength < 0:
            raise ValueError(f"strength={self.strength!r} must be a number >= 0")
        check_choice("brightness", self.brightness, ("multiply", "add"))

    def _operations(self) -> list[tuple[Callable[[Tensor, Tensor], Tensor], float, float]]:
        """List each operation with the limits of its parameter; what has no strength is left out."""
        added = self.brightness == "add"
        table = (
            (ops.add_brightness if added else ops.adjust_brightness, added),
            (ops.adjust_contrast, False),
            (ops.adjust_saturation, False),
            (ops.adjust_hue, True),
        )
        scaled = [s * self.strength for s in self.strengths]
        return [
            (operation, -s if is_shift else max(1 - s, 0), s if is_shift else 1 + s)
            for (operation, is_shift), s in zip(table, scaled, strict=False)
            if s > 0
        ]

    def _parameters(self, n: int, height: int, width: int) -> Tensor:
        """Draw the operations' positions in each sample's order, then their parameters: (n, 2 x operations)."""
        limits = [(low, high) for _, low, high in self._operations()]
        order = torch.rand(n, len(limits)).argsort(1).float()
        return torch.cat([order, *(uniform(n, low, high) for low, high in limits)], 1)

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        operations = self._operations()
        order, values = parameters.split(len(operations), 1) if operations else (parameters, parameters)
        positions = order.numpy()
        for position, (i, (operation, _, _)) in itertools.product(range(len(operations)), enumerate(operations)):
            x = on_rows(x, positions[:, i] == position, operation, values[:, i])
        return x


@dataclass(frozen=True, kw_only=True)
class Greyscale(Sometimes):
    """No colour."""

    p: float = 0.2

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.to_greyscale(x)


@dataclass(frozen=True, kw_only=True)
class Blur(Sometimes):
    """Gaussian blur, as wide as the official code's for the image's height (23 taps at 224).

    Args:
        sigma: range of the standard deviation in pixels.
        sigma_per: "batch", as in the official code: one sigma for all samples of a view; or "sample".
    """

    sigma: Sequence[float] = (0.1, 2.0)
    sigma_per: str = "batch"
    p: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("sigma", self.sigma, 0, float("inf"))
        check_choice("sigma_per", self.sigma_per, ("batch", "sample"))

    def _parameters(self, n: int, height: int, width: int) -> Tensor:
        """Draw the sigma of each sample (n, 1)."""
        return uniform(1 if self.sigma_per == "batch" else n, self.sigma[0], self.sigma[1]).expand(n, 1)

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.gaussian_blur(x.clamp(0, 1), parameters[:, 0], x.shape[-2] // 10).clamp_(0, 1)


@dataclass(frozen=True, kw_only=True)
class Rotate(Sometimes):
    """Counter-clockwise by one of `angles`, each as likely; multiples of 90 degrees."""

    angles: Sequence[int] = (0, 90, 180, 270)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.angles:
            raise ValueError(f"angles={self.angles} must name at least one of 0, 90, 180, 270")
        for angle in self.angles:
            check_choice("angles", angle, (0, 90, 180, 270))

    def _parameters(self, n: int, height: int, width: int) -> Tensor:
        """Draw quarter turns (n, 1)."""
        return torch.tensor(self.angles)[torch.randint(len(self.angles), (n, 1))].float() / 90

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.rotate(x, parameters[:, 0])


@dataclass(frozen=True, kw_only=True)
class Cutout(Sometimes):
    """A square of one value, its centre anywhere in the image.

    Args:
        side: of the square, as a share of the image's height.
        value: what it is filled with.
    """

    side: float = 0.5
    value: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("side", (self.side, self.side), 0, 2)
        check_probability("value", self.value)

    def _parameters(self, n: int, height: int, width: int) -> Tensor:
        """Draw centres (n, 2): y, x."""
        return (torch.rand(n, 2) * torch.tensor([height, width])).floor()

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.cut_out(x, parameters, round(self.side * x.shape[-2]), self.value)


@dataclass(frozen=True, kw_only=True)
class Noise(Sometimes):
    """Gaussian noise.

    Args:
        std: range of its standard deviation, of a full scale of 1.
    """

    std: Sequence[float] = (0.1, 0.1)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("std", self.std, 0, float("inf"))

    def _parameters(self, n: int, height: int, width: int) -> Tensor:
        """Draw standard deviations (n, 1)."""
        return uniform(n, self.std[0], self.std[1])

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.add_noise(x, parameters[:, 0])


@dataclass(frozen=True, kw_only=True)
class Sobel(Sometimes):
    """Edges: the length of each channel's gradient."""

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.sobel(x)
