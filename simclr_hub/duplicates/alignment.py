"""Two pictures of a few cells, turned, mirrored and placed so that they match as well as they can.

Unusual: pairs are handled by the hundred at once, and two pictures are aligned as video frames are: Gauss-Newton on a
scale and a shift along each side, outliers weighted down, beginning from several guesses at half the resolution. The
part is always sampled at the cells of the larger view, so that a frame around a copy stays out of the sum.
"""

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..signature import Thumbnails
from .compare import COLOUR_NOISE, MIN_OVERLAP, NOISE

#: Where alignment begins: which of the two is the larger view (1: the second), by how much, and shifted where.
_SHIFTS = ((1.1, 0.0, 0.0), (1.2, 0.0, 0.0), *((1.2, x, y) for x in (-0.13, 0.13) for y in (-0.13, 0.13)))
_GUESSES = ((0, 1.0, 0.0, 0.0), *((larger, *shift) for larger in (0, 1) for shift in _SHIFTS))
#: Which orientation undoes each.
_INVERSE = [0, 3, 2, 1, 4, 5, 6, 7]
#: Guesses that are followed, steps at half and at full resolution.
_FOLLOWED, _COARSE_STEPS, _FINE_STEPS = 2, 5, 4
#: A pair whose best guess correlates less cannot be brought to a match.
HOPELESS = 0.6


@torch.inference_mode()
def compare_aligned(
    first: Thumbnails, second: Thumbnails, least: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Align P pairs of pictures.

    Args:
        first: P pictures.
        second: P pictures.
        least: (P,), what a correlation must exceed: that of the two as they are.

    Returns:
        The rows (R,) that do, and the columns of `same_picture.Agreement` for these, (R,) each.
    """
    a, b = torch.from_numpy(first.grey), all_orientations(torch.from_numpy(second.grey))  # (P, n, n), (P, 8, n, n)
    small_a, small_b = F.avg_pool2d(a[:, None], 2)[:, 0], F.avg_pool2d(b, 2)
    ranks, guesses = rank_guesses(small_a, small_b)
    rows = (ranks[:, 0] >= HOPELESS).nonzero()[:, 0]
    if not len(rows):
        return rows.numpy(), (np.empty(0, np.float32),) * 5
    found = align(a[rows], b[rows], small_a[rows], small_b[rows], guesses[rows])
    better = found[0] > torch.from_numpy(least)[rows]
    kept = rows[better].numpy()
    correlation, overlap, placement, orientation, swapped = (value[better] for value in found)
    colour = _colour_agreement(first.colour[kept], second.colour[kept], placement, orientation, swapped)
    shape, other = first.shape[kept], second.shape[kept]
    turned = np.where(orientation.numpy() % 2 == 1, -other, other)
    change = np.where(swapped.numpy(), shape - turned, turned - shape)
    stretch = np.abs(change + np.log2(placement[:, 2].numpy() / placement[:, 0].numpy()))
    scale, shift = placement[:, 0::2], placement[:, 1::2]
    outside = ((1 + shift.abs()) / scale - 1).amax(1).clamp(min=0) / 2
    return kept, (correlation.numpy(), overlap.numpy(), colour.numpy(), stretch, outside.numpy())


def rank_guesses(small_a: Tensor, small_b: Tensor) -> tuple[Tensor, Tensor]:
    """Correlations of the best guesses and their numbers, (P, `_FOLLOWED`) each; number = 8 x guess + orientation.

    Most pairs end here, so it has few operations: a zoomed part is centred within its cells once, and its product with
    a view is then their covariance; and instead of zooming the second in eight orientations, the first is turned back.
    """
    of_second = _zoomed_correlations(all_orientations(small_a)[:, _INVERSE], small_b[:, 0], larger=0)
    of_first = _zoomed_correlations(small_b, small_a, larger=1)
    of_second = of_second[:, _turned_guesses(), torch.arange(8)]  # whose shifts were turned with it
    best = torch.cat([of_second, of_first], 1).flatten(1).topk(_FOLLOWED, 1)
    return best.values, best.indices


def align(a: Tensor, b: Tensor, small_a: Tensor, small_b: Tensor, guesses: Tensor) -> tuple[Tensor, ...]:
    """Correlation, overlap, placement (P, 4), orientation and whether the second is the larger view."""
    pairs = torch.arange(len(a))
    orientations = guesses % 8
    swaps = torch.tensor([swap for swap, *_ in _GUESSES], dtype=torch.bool)[guesses // 8]
    placement = torch.tensor([(scale, x, scale, y) for _, scale, x, y in _GUESSES])[guesses // 8].flatten(0, 1)
    view, part = roles(
        small_a.repeat_interleave(_FOLLOWED, 0), small_b[pairs[:, None], orientations].flatten(0, 1), swaps.flatten()
    )
    placement = _refine(view, part, placement, _COARSE_STEPS)
    view, part = roles(
        a.repeat_interleave(_FOLLOWED, 0), b[pairs[:, None], orientations].flatten(0, 1), swaps.flatten()
    )
    placement = _refine(view, part, placement, _FINE_STEPS)
    correlation, overlap = _matched(view, part, placement)
    ranks = torch.where(overlap < MIN_OVERLAP, -1, correlation).reshape(-1, _FOLLOWED)
    best = ranks.argmax(1)
    every = pairs * _FOLLOWED + best
    return correlation[every], overlap[every], placement[every], orientations[pairs, best], swaps[pairs, best]


def _zoomed_correlations(views: Tensor, part: Tensor, larger: int) -> Tensor:
    """Of views (P, 8, n, n) with the part (P, n, n) zoomed by each guess of this kind: (P, guesses, 8)."""
    cells = part.shape[-1]
    zoomed, insides = [], []
    for _, scale, x, y in (guess for guess in _GUESSES if guess[0] == larger):
        (across, inside_x), (down, inside_y) = _zoom(cells, scale, x), _zoom(cells, scale, y)
        inside = inside_y[:, None] * inside_x
        zoomed.append(_centred(down @ part @ across.T, inside) * inside)
        insides.append(inside)
    parts, masks = torch.stack(zoomed, 1).flatten(2), torch.stack(insides).flatten(1).T  # (P, G, n^2), (n^2, G)
    flat = views.flatten(2)
    flat = flat - flat.mean(2, keepdim=True)  # so that the variance below is no difference of large numbers
    number = masks.sum(0)
    floor = NOISE**2 * number
    energy = (flat**2 @ masks - (flat @ masks) ** 2 / number + floor).transpose(1, 2)  # (P, G, 8)
    own = (parts**2).sum(2, keepdim=True) + floor[:, None]
    return (parts @ flat.transpose(1, 2)) / (energy * own).sqrt()


@functools.cache
def _turned_guesses() -> Tensor:
    """For each guess of a larger first picture and each orientation, which guess it is before the turn: (G, 8)."""
    shifts = [guess[1:] for guess in _GUESSES if guess[0] == 0]
    centres = cell_centres(2) * 2  # -1 and 1
    positions = torch.stack([centres.expand(2, 2), centres[:, None].expand(2, 2)])  # x and y of four cells
    turned = all_orientations(positions[None])[0]  # (8, 2, 2, 2): where each cell of a turned picture was
    # A turn is linear: from the cells at (1, -1) and (-1, 1) its matrix.
    table = torch.empty(len(shifts), 8, dtype=torch.long)
    for orientation in range(8):
        matrix = torch.stack(
            [
                (turned[orientation, :, 0, 1] + turned[orientation, :, 1, 1]) / 2,  # of the vector (1, 0)
                (turned[orientation, :, 1, 0] + turned[orientation, :, 1, 1]) / 2,  # of the vector (0, 1)
            ],
            1,
        )
        for number, (scale, x, y) in enumerate(shifts):
            before = matrix @ torch.tensor([x, y])
            known = [scale == s and torch.allclose(before, torch.tensor([p, q])) for s, p, q in shifts]
            table[number, orientation] = known.index(True)
    return table


def _refine(view: Tensor, part: Tensor, placement: Tensor, steps: int) -> Tensor:
    """Gauss-Newton: view(x, y) = gain * part(sx x + tx, sy y + ty) + offset, with placement (sx, tx, sy, ty)."""
    cells = view.shape[-1]
    centres = cell_centres(cells)
    slope_y, slope_x = torch.gradient(part, dim=(1, 2))
    stack = torch.stack([part, slope_x * (cells / 2), slope_y * (cells / 2)], 1)
    lowest, highest = torch.tensor([0.9, -0.5, 0.9, -0.5]), torch.tensor([1.5, 0.5, 1.5, 0.5])
    for _ in range(steps):
        sampled, inside = sample(stack, placement)
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
    sampled, inside = sample(part[:, None], placement, "bicubic")
    return _correlation(view, sampled[:, 0], inside), inside.mean((1, 2))


def sample(images: Tensor, placement: Tensor, mode: str = "bilinear") -> tuple[Tensor, Tensor]:
    """Images (P, C, n, n) at the view's cells, and 1 for the cells (P, n, n) that lie inside them, else 0."""
    cells = images.shape[-1]
    centres = cell_centres(cells)
    x = placement[:, 0:1] * centres + placement[:, 1:2]
    y = placement[:, 2:3] * centres + placement[:, 3:4]
    grid = torch.stack([x[:, None, :].expand(-1, cells, -1), y[:, :, None].expand(-1, -1, cells)], -1)
    sampled = F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)
    edge = 1 + 0.02 / cells  # rounding, no more: the cells beside a frame have a part of it
    inside_x = x.abs() + placement[:, 0:1] / cells <= edge
    inside_y = y.abs() + placement[:, 2:3] / cells <= edge
    return sampled, (inside_x[:, None, :] & inside_y[:, :, None]).float()


def _correlation(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Of the last two dimensions, where the weight is 1; pictures without detail correlate with nothing."""
    weight = weight.expand(torch.broadcast_shapes(a.shape, b.shape, weight.shape))
    a, b = _centred(a, weight), _centred(b, weight)
    floor = NOISE**2 * _sum(weight)
    both = (_sum(weight * a * a) + floor) * (_sum(weight * b * b) + floor)
    correlation: Tensor = _sum(weight * a * b) / both.sqrt().clamp(min=1e-6)
    return correlation[..., 0, 0]


def _centred(values: Tensor, weight: Tensor) -> Tensor:
    return values - _sum(weight * values) / _sum(weight).clamp(min=1e-3)


def _sum(values: Tensor) -> Tensor:
    return values.sum((-2, -1), keepdim=True)


def all_orientations(images: Tensor) -> Tensor:
    """Turn and mirror (P, ..., n, n) into (P, 8, ..., n, n); the odd ones exchange width and height."""
    flipped = images.flip(-1)
    turns = [torch.rot90(image, turn, (-2, -1)) for image in (images, flipped) for turn in range(4)]
    return torch.stack(turns, 1)


def roles(a: Tensor, b: Tensor, swapped: Tensor) -> tuple[Tensor, Tensor]:
    """The larger view and the part."""
    choose = swapped.reshape(-1, *[1] * (a.ndim - 1))
    return torch.where(choose, b, a), torch.where(choose, a, b)


def cell_centres(cells: int) -> Tensor:
    """Positions of the cells from -1 to 1."""
    return (torch.arange(cells) + 0.5) * (2 / cells) - 1


def _zoom(cells: int, scale: float, shift: float) -> tuple[Tensor, Tensor]:
    """A matrix (n, n) that samples a line at scale * position + shift, and which cells (n,) are inside."""
    target = cell_centres(cells) * scale + shift
    weights = (1 - (((target + 1) * cells - 1) / 2 - torch.arange(cells)[:, None]).T.abs()).clamp(min=0)
    inside = target.abs() + scale / cells <= 1 + 1 / cells
    return weights / weights.sum(1, keepdim=True).clamp(min=1e-6), inside.float()


def _colour_agreement(
    first: np.ndarray, second: np.ndarray, placement: Tensor, orientation: Tensor, swapped: Tensor
) -> Tensor:
    a, b = torch.from_numpy(first), all_orientations(torch.from_numpy(second))
    view, part = roles(a, b[torch.arange(len(a)), orientation], swapped)
    sampled, _ = sample(part, placement)
    centres = cell_centres(view.shape[-1])
    inside_x = (placement[:, 0:1] * centres + placement[:, 1:2]).abs() <= 1
    inside_y = (placement[:, 2:3] * centres + placement[:, 3:4]).abs() <= 1
    inside = (inside_x[:, None, :] & inside_y[:, :, None]).float()[:, None]

    def dot(u: Tensor, v: Tensor) -> Tensor:
        return (inside * u * v).sum((1, 2, 3))

    noise = 2 * COLOUR_NOISE**2 * inside.sum((1, 2, 3))
    return (dot(view, sampled) + noise) / ((dot(view, view) * dot(sampled, sampled)).sqrt() + noise)
