"""The v1 paper's other augmentations, those that it compares in section 3 and does not train with.

The paper gives no parameters for them; the defaults here are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import operations as ops
from .transforms import Sometimes, check_choice, check_probability, check_range, uniform


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
        """Quarter turns (n, 1)."""
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
        """Centres (n, 2): y, x."""
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
        """Standard deviations (n, 1)."""
        return uniform(n, self.std[0], self.std[1])

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.add_noise(x, parameters[:, 0])


@dataclass(frozen=True, kw_only=True)
class Sobel(Sometimes):
    """Edges: the length of each channel's gradient."""

    def _apply(self, x: Tensor, parameters: Tensor) -> Tensor:
        return ops.sobel(x)
