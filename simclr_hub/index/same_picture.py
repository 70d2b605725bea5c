"""Whether two signatures show the same picture: turn, mirror and align them, then correlate what they share.

Unusual: pairs are compared by the thousand at once. Two small pictures are aligned as video frames are: Gauss-Newton
on a scale and a shift along each side, outliers weighted down, beginning from several guesses at half the resolution.
The part is always sampled at the cells of the larger view, so that a frame around a copy stays out of the sum.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..signature import Thumbnails

#: Pairs that are compared at once: what fits a CPU's cache.
BLOCK = 256
#: Standard deviation in grey levels below which a picture has no detail to compare.
_NOISE, _COLOUR_NOISE = 2.0, 4.0
#: Where alignment begins: which of the two is the larger view (1: the second), by how much, and shifted where.
_SHIFTS = ((1.1, 0.0, 0.0), (1.2, 0.0, 0.0), *((1.2, x, y) for x in (-0.13, 0.13) for y in (-0.13, 0.13)))
_GUESSES = ((0, 1.0, 0.0, 0.0), *((larger, *shift) for larger in (0, 1) for shift in _SHIFTS))
#: Guesses that are followed, steps at half and at full resolution.
_FOLLOWED, _COARSE_STEPS, _FINE_STEPS = 2, 5, 4
#: A pair whose best guess correlates less cannot be brought to a match.
_HOPELESS = 0.6
#: Gates: share of the larger view that both show, colours' agreement, log2 of a difference between the proportions, and
#: share of a side by which the part sticks out of the view: an edit cuts off, only another shot also shows more.
MIN_OVERLAP, MIN_COLOUR, MAX_STRETCH, MAX_OUTSIDE = 0.5, 0.6, 0.12, 0.04


@dataclass(frozen=True)
class Agreement:
    """How P pairs of pictures agree; arrays (P,) float32.

    Attributes:
        correlation: of the grey levels where both show the same, at most 1.
        overlap: share of the larger view that both show.
        colour: cosine of the colour differences; 1 if one of the two is grey.
        stretch: difference of the proportions that the alignment leaves, as log2.
        outside: share of a side by which the smaller view sticks out of the larger.
    """

    correlation: np.ndarray
    overlap: np.ndarray
    colour: np.ndarray
    stretch: np.ndarray
    outside: np.ndarray

    @property
    def score(self) -> np.ndarray:
        """The correlation, or 0 where something else says that these are two pictures."""
        passed = (self.overlap >= MIN_OVERLAP) & (self.colour >= MIN_COLOUR)
        passed &= (self.stretch <= MAX_STRETCH) & (self.outside <= MAX_OUTSIDE)
        return np.where(passed, self.correlation.clip(0), np.float32(0))


@torch.inference_mode()
def compare(first: Thumbnails, second: Thumbnails) -> Agreement:
    """Compare picture i of the first with picture i of the second.

    Raises:
        ValueError: they are not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} pictures cannot be compared with {len(second)}: give as many of both")
    parts = [
        _compare(first[start : start + BLOCK], second[start : start + BLOCK]) for start in range(0, len(first), BLOCK)
    ]
    if not parts:
        return Agreement(*(np.empty(0, np.float32) for _ in range(5)))
    return Agreement(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _compare(first: Thumbnails, second: Thumbnails) -> tuple[np.ndarray, ...]:
    a, b = torch.from_numpy(first.grey), _orientations(torch.from_numpy(second.grey))  # (P, n, n), (P, 8, n, n)
    everywhere = torch.ones(1)
    direct, orientation = _correlation(a[:, None], b, everywhere).max(1)
    count = len(a)
    correlation, overlap = direct.clone(), torch.ones(count)
    placement = torch.tensor([1.0, 0, 1, 0]).repeat(count, 1)
    swapped = torch.zeros(count, dtype=torch.bool)
    small_a, small_b = F.avg_pool2d(a[:, None], 2)[:, 0], F.avg_pool2d(b, 2)
    ranks, guesses = _rank_guesses(small_a, small_b)
    rows = (ranks[:, 0] >= _HOPELESS).nonzero()[:, 0]
    if len(rows):
        found = _align(a[rows], b[rows], small_a[rows], small_b[rows], guesses[rows])
        better = found[0] > direct[rows] + 1e-3  # as it is, if that explains it as well
        rows = rows[better]
        for target, value in zip((correlation, overlap, placement, orientation, swapped), found, strict=True):
            target[rows] = value[better]
    colour = _colour_agreement(first.colour, second.colour, placement, orientation, swapped)
    turned = np.where(orientation.numpy() % 2 == 1, -second.shape, second.shape)
    change = np.where(swapped.numpy(), first.shape - turned, turned - first.shape)
    stretch = np.abs(change + np.log2(placement[:, 2].numpy() / placement[:, 0].numpy()))
    scale, shift = placement[:, 0::2], placement[:, 1::2]
    outside = ((1 + shift.abs()) / scale - 1).amax(1).clamp(min=0) / 2
    return correlation.numpy(), overlap.numpy(), colour.numpy(), stretch.astype(np.float32), outside.numpy()


def _rank_guesses(small_a: Tensor, small_b: Tensor) -> tuple[Tensor, Tensor]:
    """Correlations of the best guesses and their numbers, (P, `_FOLLOWED`) each; number = 8 x guess + orientation."""
    cells = small_a.shape[-1]
    ranks = []
    for swap, scale, x, y in _GUESSES:
        (across, inside_x), (down, inside_y) = _zoom(cells, scale, x), _zoom(cells, scale, y)
        zoomed = down @ (small_a[:, None] if swap else small_b) @ across.T
        inside = inside_y[:, None] * inside_x
        ranks.append(_correlation(small_b if swap else small_a[:, None], zoomed, inside))
    best = torch.cat(ranks, 1).topk(_FOLLOWED, 1)
    return best.values, best.indices


def _align(a: Tensor, b: Tensor, small_a: Tensor, small_b: Tensor, guesses: Tensor) -> tuple[Tensor, ...]:
    """Correlation, overlap, placement (P, 4), orientation and whether the second is the larger view."""
    pairs = torch.arange(len(a))
    orientations = guesses % 8
    swaps = torch.tensor([swap for swap, *_ in _GUESSES], dtype=torch.bool)[guesses // 8]
    placement = torch.tensor([(scale, x, scale, y) for _, scale, x, y in _GUESSES])[guesses // 8].flatten(0, 1)
    view, part = _roles(
        small_a.repeat_interleave(_FOLLOWED, 0), small_b[pairs[:, None], orientations].flatten(0, 1), swaps.flatten()
    )
    placement = _refine(view, part, placement, _COARSE_STEPS)
    view, part = _roles(
        a.repeat_interleave(_FOLLOWED, 0), b[pairs[:, None], orientations].flatten(0, 1), swaps.flatten()
    )
    placement = _refine(view, part, placement, _FINE_STEPS)
    correlation, overlap = _matched(view, part, placement)
    ranks = torch.where(overlap < MIN_OVERLAP, -1, correlation).reshape(-1, _FOLLOWED)
    best = ranks.argmax(1)
    every = pairs * _FOLLOWED + best
    return correlation[every], overlap[every], placement[every], orientations[pairs, best], swaps[pairs, best]


def _refine(view: Tensor, part: Tensor, placement: Tensor, steps: int) -> Tensor:
    """Gauss-Newton: view(x, y) = gain * part(sx x + tx, sy y + ty) + offset, with placement (sx, tx, sy, ty)."""
    cells = view.shape[-1]
    centres = _centres(cells)
    slope_y, slope_x = torch.gradient(part, dim=(1, 2))
    stack = torch.stack([part, slope_x * (cells / 2), slope_y * (cells / 2)], 1)
    lowest, highest = torch.tensor([0.9, -0.5, 0.9, -0.5]), torch.tensor([1.5, 0.5, 1.5, 0.5])
    for _ in range(steps):
        sampled, inside = _sample(stack, placement)
        picture, dx, dy = sampled.unbind(1)
        picture, level = _centred(picture, inside), _centred(view, inside)
        gain = (_sum(inside * level * picture) + 1) / (_sum(inside * picture * picture) + 1)
        gain = gain.clamp(0.3, 3)
        residual = level - gain * picture
        scale = 2 * (_sum(inside * residual.abs()) / _sum(inside).clamp(min=1) + 1)
        weight = inside / (1 + (residual / scale) ** 2)
        jacobian = torch.stack([dx * centres, dx, dy * centres[:, None], dy], 1) * gain[:, None]
        jacobian = _centred(jacobian, weight[:, None]).flatten(2)  # (P, 4, cells^2)
        weighted = jacobian * weight.flatten(1)[:, None]
        normal = weighted @ jacobian.transpose(1, 2)
        damping = 1e-3 * normal.diagonal(dim1=1, dim2=2).mean(1) + 1
        normal = normal + torch.eye(4) * damping[:, None, None]
        step = torch.linalg.solve(normal, weighted @ residual.flatten(1)[..., None])[..., 0]
        placement = (placement + step.clamp(-0.15, 0.15)).clamp(lowest, highest)
    return placement


def _matched(view: Tensor, part: Tensor, placement: Tensor) -> tuple[Tensor, Tensor]:
    """Correlation of a view with a part placed in it, and the share of the view that the part covers."""
    sampled, inside = _sample(part[:, None], placement, "bicubic")
    return _correlation(view, sampled[:, 0], inside), inside.mean((1, 2))


def _sample(images: Tensor, placement: Tensor, mode: str = "bilinear") -> tuple[Tensor, Tensor]:
    """Images (P, C, n, n) at the view's cells, and 1 for the cells (P, n, n) that lie inside them, else 0."""
    cells = images.shape[-1]
    centres = _centres(cells)
    x = placement[:, 0:1] * centres + placement[:, 1:2]
    y = placement[:, 2:3] * centres + placement[:, 3:4]
    grid = torch.stack([x[:, None, :].expand(-1, cells, -1), y[:, :, None].expand(-1, -1, cells)], -1)
    sampled = F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
    edge = 1 + 0.02 / cells  # rounding, no more: the cells beside a frame have a part of it
    inside_x = x.abs() + placement[:, 0:1] / cells <= edge
    inside_y = y.abs() + placement[:, 2:3] / cells <= edge
    return sampled, (inside_x[:, None, :] & inside_y[:, :, None]).float()


def _colour_agreement(
    first: np.ndarray, second: np.ndarray, placement: Tensor, orientation: Tensor, swapped: Tensor
) -> Tensor:
    a, b = torch.from_numpy(first), _orientations(torch.from_numpy(second))
    view, part = _roles(a, b[torch.arange(len(a)), orientation], swapped)
    sampled, _ = _sample(part, placement)
    centres = _centres(view.shape[-1])
    inside_x = (placement[:, 0:1] * centres + placement[:, 1:2]).abs() <= 1
    inside_y = (placement[:, 2:3] * centres + placement[:, 3:4]).abs() <= 1
    inside = (inside_x[:, None, :] & inside_y[:, :, None]).float()[:, None]

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (inside * u * v).sum((1, 2, 3))

    noise = 2 * _COLOUR_NOISE**2 * inside.sum((1, 2, 3))
    return (dot(view, sampled) + noise) / ((dot(view, view) * dot(sampled, sampled)).sqrt() + noise)


def _correlation(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Of the last two dimensions, where the weight is 1; pictures without detail correlate with nothing."""
    weight = weight.expand(torch.broadcast_shapes(a.shape, b.shape, weight.shape))
    a, b = _centred(a, weight), _centred(b, weight)
    floor = _NOISE**2 * _sum(weight)
    both = (_sum(weight * a * a) + floor) * (_sum(weight * b * b) + floor)
    correlation: Tensor = _sum(weight * a * b) / both.sqrt().clamp(min=1e-6)
    return correlation[..., 0, 0]


def _centred(values: Tensor, weight: Tensor) -> Tensor:
    return values - _sum(weight * values) / _sum(weight).clamp(min=1e-3)


def _sum(values: Tensor) -> Tensor:
    return values.sum((-2, -1), keepdim=True)


def _orientations(images: Tensor) -> Tensor:
    """(P, ..., n, n) in all eight orientations, (P, 8, ..., n, n); the odd ones exchange width and height."""
    flipped = images.flip(-1)
    turns = [torch.rot90(image, turn, (-2, -1)) for image in (images, flipped) for turn in range(4)]
    return torch.stack(turns, 1)


def _roles(a: Tensor, b: Tensor, swapped: Tensor) -> tuple[Tensor, Tensor]:
    """The larger view and the part."""
    choose = swapped.reshape(-1, *[1] * (a.ndim - 1))
    return torch.where(choose, b, a), torch.where(choose, a, b)


def _centres(cells: int) -> Tensor:
    """Positions of the cells from -1 to 1."""
    return (torch.arange(cells) + 0.5) * (2 / cells) - 1


def _zoom(cells: int, scale: float, shift: float) -> tuple[Tensor, Tensor]:
    """A matrix (n, n) that samples a line at scale * position + shift, and which cells (n,) are inside."""
    target = _centres(cells) * scale + shift
    weights = (1 - (((target + 1) * cells - 1) / 2 - torch.arange(cells)[:, None]).T.abs()).clamp(min=0)
    inside = target.abs() + scale / cells <= 1 + 1 / cells
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6), inside.float()
