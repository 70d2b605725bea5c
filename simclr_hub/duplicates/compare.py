"""Two pictures compared by their signatures: turned, placed as parts of one another, and correlated.

They show the same picture if what both show correlates and nothing else speaks against it. All of it is numpy, on
hundreds of pairs at once.
"""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from ..signature import Thumbnails

#: Pairs that are compared at once: what fits a CPU's cache.
BLOCK = 256
#: Standard deviation in grey levels below which a picture has no detail to compare.
NOISE = 2.0
#: Colour differences in levels below which a picture is grey.
COLOUR_NOISE = 4.0
#: Share of the larger view that both must show.
MIN_OVERLAP = 0.5
#: The least agreement of colours.
MIN_COLOUR = 0.6
#: The most by which proportions may differ, as log2, and by which the part may stick out of the view, as share of a
#: side: an edit keeps the proportions and only cuts off; another shot of the same thing mostly squeezes and shifts.
MAX_STRETCH, MAX_OUTSIDE = 0.05, 0.015
#: By how much an alignment must explain more than the two as they are.
_BETTER = 1e-3
#: Levels by which re-encoding shifts a colour; the distance at which the score of two such pictures would be 0.
_SAME_COLOUR, _FAR = 4.0, 200.0

#: Where alignment begins: which of the two is the larger view (1: the second), by how much, and shifted where.
_SHIFTS = ((1.1, 0.0, 0.0), (1.2, 0.0, 0.0), *((1.2, x, y) for x in (-0.13, 0.13) for y in (-0.13, 0.13)))
_GUESSES = np.array([(0, 1.0, 0.0, 0.0), *((larger, *shift) for larger in (0, 1) for shift in _SHIFTS)], np.float32)
#: A pair whose best guess correlates less cannot be brought to a match.
_HOPELESS = 0.6
#: Guesses that are followed, steps at half and at full resolution; bounds of scale and shift.
_FOLLOWED, _COARSE_STEPS, _FINE_STEPS = 2, 5, 4
_LOWEST, _HIGHEST = np.array([0.9, -0.5], np.float32), np.array([1.5, 0.5], np.float32)


@dataclass(frozen=True)
class Agreement:
    """How P pairs of pictures agree; arrays (P,) float32.

    Attributes:
        correlation: of the grey levels where both show the same, at most 1; for two pictures of one colour each, how
            near these colours are.
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
        """Return the correlation, or 0 where something else says that these are two pictures."""
        passed = (self.overlap >= MIN_OVERLAP) & (self.colour >= MIN_COLOUR)
        passed &= (self.stretch <= MAX_STRETCH) & (self.outside <= MAX_OUTSIDE)
        return np.where(passed, self.correlation.clip(0), np.float32(0))


def compare(first: Thumbnails, second: Thumbnails, *, aligned: bool = True) -> Agreement:
    """Compare picture i of the first with picture i of the second.

    Args:
        first: P pictures.
        second: P pictures.
        aligned: also as parts of one another; without, which takes a tenth of the time, in full view only: as they
            are, turned by quarters, mirrored.

    Raises:
        ValueError: they are not equally many.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} pictures cannot be compared with {len(second)}: give as many of both")
    blocks = [slice(start, start + BLOCK) for start in range(0, len(first), BLOCK)]
    if not blocks:
        return Agreement(*(np.empty(0, np.float32) for _ in range(5)))

    def columns(block: slice) -> tuple[np.ndarray, ...]:
        return _compare(first[block], second[block], aligned)

    if len(blocks) == 1:
        return Agreement(*columns(blocks[0]))
    with ThreadPoolExecutor(min(os.cpu_count() or 1, 8)) as pool:  # numpy computes without the interpreter's lock
        parts = list(pool.map(columns, blocks))
    return Agreement(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _compare(first: Thumbnails, second: Thumbnails, aligned: bool) -> tuple[np.ndarray, ...]:
    """Return the columns of `Agreement`."""
    count = len(first)
    plain, nearness = _equal_or_blank(first, second)
    found = correlations(first.grey, second.grey)
    orientation = found.argmax(1)
    direct = found[np.arange(count), orientation]
    colour = _cosine(first.colour, _oriented(second.colour, orientation), first.colour[0, 0].size)
    stretch = np.abs(np.where(orientation % 2 == 1, -second.shape, second.shape) - first.shape)
    columns = direct, np.ones(count, np.float32), colour, stretch, np.zeros(count, np.float32)
    # No alignment could explain much more than what each has in common with itself.
    most = np.sqrt(_own_correlation(first.grey) * _own_correlation(second.grey))
    rows = np.flatnonzero(~(plain | (direct + _BETTER >= most)))
    if aligned and len(rows):
        better, values = _compare_aligned(first[rows], second[rows], direct[rows] + _BETTER)
        for column, value in zip(columns, values, strict=True):
            column[rows[better]] = value
    turn = np.minimum(np.abs(first.shape - second.shape), np.abs(first.shape + second.shape))
    for column, value in zip(columns, (nearness, 1, 1, turn, 0), strict=True):
        column[plain] = np.broadcast_to(value, plain.shape)[plain]
    return columns


def _equal_or_blank(first: Thumbnails, second: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
    """Tell pairs (P,) that are equal or of one colour each, and how near those are, 0 to 1."""
    equal = (first.grey == second.grey).all((1, 2)) & (first.colour == second.colour).all((1, 2, 3))
    equal &= (first.shape == second.shape) & _is_there(first)
    blank = is_blank(first) & is_blank(second)
    grey = np.abs(first.grey.mean((1, 2)) - second.grey.mean((1, 2)))
    colour = np.abs(first.colour.mean((2, 3)) - second.colour.mean((2, 3))).max(1)
    distance = np.where(equal, 0, np.maximum(2 * grey, colour))
    return equal | blank, np.where(distance <= _SAME_COLOUR, 1 - distance / _FAR, 0).astype(np.float32)


def is_blank(pictures: Thumbnails) -> np.ndarray:
    """Return which are of one colour, bool (P,)."""
    # To the last bit: a page with nothing but its number has a cell that is half a level darker.
    one_grey = (pictures.grey == pictures.grey[:, :1, :1]).all((1, 2))
    one_colour = (pictures.colour == pictures.colour[:, :, :1, :1]).all((1, 2, 3))
    return np.asarray(one_grey & one_colour & _is_there(pictures))


def _is_there(pictures: Thumbnails) -> np.ndarray:
    """Return which signatures there are: the zeros of a missing one would pass for a colour."""
    return np.asarray((pictures.colour > -256).any((1, 2, 3)))


def orientations(images: np.ndarray) -> np.ndarray:
    """Turn and mirror (P, ..., n, n) into (P, 8, ..., n, n); the odd ones exchange width and height."""
    turns = [np.rot90(image, turn, (-2, -1)) for image in (images, images[..., ::-1]) for turn in range(4)]
    return np.stack(turns, 1)


def correlations(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Correlate pictures (P, n, n) with each orientation of others (P, n, n), all of both: float32 (P, 8)."""
    a, b = _centred(pictures), _centred(others)
    floor = np.float32(NOISE**2 * a[0].size)
    energy = (_energy(a) + floor) * (_energy(b) + floor)
    views = orientations(b).reshape(len(b), 8, -1)
    found: np.ndarray = (views @ a.reshape(len(a), -1, 1))[..., 0] / np.sqrt(energy)[:, None]
    return found


def _own_correlation(pictures: np.ndarray) -> np.ndarray:
    """Correlate pictures (P, n, n) with themselves, (P,): the less detail they have, the farther below 1."""
    energy = _energy(_centred(pictures)) / pictures[0].size
    found: np.ndarray = energy / (energy + np.float32(NOISE**2))
    return found


def _cosine(first: np.ndarray, second: np.ndarray, cells: int | np.ndarray) -> np.ndarray:
    """Return the cosine of colours (P, 2, n, n), of so many cells: float32 (P,)."""
    noise = np.asarray(2 * COLOUR_NOISE**2 * cells, np.float32)
    product = np.einsum("pcyx,pcyx->p", first, second)
    found: np.ndarray = (product + noise) / (np.sqrt(_energy(first) * _energy(second)) + noise)
    return found


def _centred(pictures: np.ndarray) -> np.ndarray:
    centred: np.ndarray = pictures - pictures.mean((1, 2), keepdims=True)
    return centred


def _energy(values: np.ndarray) -> np.ndarray:
    """Return the sum of the squares of each (P, ...): (P,)."""
    flat = values.reshape(len(values), -1)
    return np.asarray(np.einsum("pn,pn->p", flat, flat))


def _compare_aligned(
    first: Thumbnails, second: Thumbnails, least: np.ndarray
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Align P pairs of pictures.

    Args:
        first: P pictures.
        second: P pictures.
        least: (P,), what a correlation must exceed: that of the two as they are.

    Returns:
        The rows (R,) that do, and the columns of `Agreement` for these, (R,) each.
    """
    ranks, guesses = rank_guesses(_halved(first.grey), _halved(second.grey))
    rows = np.flatnonzero(ranks[:, 0] >= _HOPELESS)
    if len(rows):
        found = align(first.grey[rows], second.grey[rows], guesses[rows])
        better = found[0] > least[rows]
        rows = rows[better]
    if not len(rows):
        return rows, (np.empty(0, np.float32),) * 5
    correlation, overlap, placement, orientation, swapped = (values[better] for values in found)
    view, part = _roles(first.colour[rows], second.colour[rows], orientation, swapped)
    positions = _positions(placement, view.shape[-1])
    matrices = _bilinear(positions)[:, None]
    mask = _mask(np.abs(positions) <= 1).reshape(-1, 1, *view.shape[2:])
    colour = _cosine(view * mask, _sample(part, matrices) * mask, mask.sum((1, 2, 3)))

    shape, other = np.where(swapped, (second.shape[rows], first.shape[rows]), (first.shape[rows], second.shape[rows]))
    change = other - np.where(orientation % 2 == 1, -shape, shape)
    scale, shift = placement[..., 0], placement[..., 1]
    stretch = np.abs(change + np.log2(scale[:, 1] / scale[:, 0]))
    outside = ((1 + np.abs(shift)) / scale - 1).max(1).clip(0) / 2
    return rows, (correlation, overlap, colour, stretch, outside)


def rank_guesses(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return correlations of the best guesses and their numbers, (P, `_FOLLOWED`) each: 8 x guess + orientation.

    Args:
        first: (P, n, n), at half the resolution.
        second: the same.
    """
    # The larger view is turned, so that each part is zoomed in one orientation only.
    of_first = _zoomed_correlations(orientations(first), second, swapped=0)
    of_second = _zoomed_correlations(orientations(second), first, swapped=1)
    ranks = np.concatenate([of_first, of_second], 1).reshape(len(first), -1)
    best = np.argsort(-ranks, 1)[:, :_FOLLOWED]
    return np.take_along_axis(ranks, best, 1), best


def _zoomed_correlations(views: np.ndarray, part: np.ndarray, swapped: int) -> np.ndarray:
    """Correlate views (P, 8, n, n) with the part (P, n, n) zoomed by each guess of this kind: (P, guesses, 8)."""
    matrices, masks = _zooms(part.shape[-1], swapped)
    number = masks.sum(1)
    floor = NOISE**2 * number
    flat = views.reshape(*views.shape[:2], -1)
    flat = flat - flat.mean(2, keepdims=True)  # so that the variance below is no difference of large numbers
    energy = (np.square(flat) @ masks.T - np.square(flat @ masks.T) / number + floor).transpose(0, 2, 1)  # (P, G, 8)
    # Parts centred within the cells inside: their product with a view is the covariance. One small product for each
    # pair and guess, since a large one would make BLAS start threads beside those of `compare`.
    parts = _sample(part[:, None], matrices).reshape(len(part), *masks.shape)  # (P, G, n^2)
    parts -= parts.sum(2, keepdims=True) / number[:, None] * masks
    own = np.einsum("pgn,pgn->pg", parts, parts) + floor
    found: np.ndarray = parts @ flat.transpose(0, 2, 1) / np.sqrt(energy * own[..., None])
    return found


@functools.cache
def _zooms(cells: int, swapped: int) -> tuple[np.ndarray, np.ndarray]:
    """Return what samples a part at these guesses, (G, 2, n, n), and which cells are inside, (G, n^2)."""
    placement = _placements(_GUESSES[_GUESSES[:, 0] == swapped])
    positions = _positions(placement, cells)
    inside = _inside(positions, placement, beyond=1)
    return _bilinear(positions) * inside[..., None], _mask(inside)


def _placements(guesses: np.ndarray) -> np.ndarray:
    """Return guesses (G, 4) as scale and shift along x and y, (G, 2, 2)."""
    return guesses[:, [1, 2, 1, 3]].reshape(-1, 2, 2)


def align(first: np.ndarray, second: np.ndarray, guesses: np.ndarray) -> tuple[np.ndarray, ...]:
    """Place one picture of each pair in the other, beginning from guesses (P, `_FOLLOWED`), and keep the best.

    Returns:
        The correlation (P,), the share (P,) of the view that the part covers, the placement (P, 2, 2) as scale and
        shift along x and y, the orientation (P,) of the larger view, and whether (P,) that is the second.
    """
    numbers = guesses.ravel()
    orientation, start = numbers % 8, _GUESSES[numbers // 8]
    swapped = start[:, 0] == 1
    pairs = np.repeat(np.arange(len(first)), guesses.shape[1])
    # Without their means, so that sums of squares below are no differences of large numbers.
    view, part = _roles(_centred(first)[pairs], _centred(second)[pairs], orientation, swapped)
    placement = _placements(start)
    placement = _refine(_halved(view), _halved(part), placement, _COARSE_STEPS)
    placement = _refine(view, part, placement, _FINE_STEPS)
    correlation, overlap = _matched(view, part, placement)
    ranks = np.where(overlap < MIN_OVERLAP, -1, correlation).reshape(guesses.shape)
    best = np.arange(len(first)) * guesses.shape[1] + ranks.argmax(1)
    return correlation[best], overlap[best], placement[best], orientation[best], swapped[best]


def _refine(view: np.ndarray, part: np.ndarray, placement: np.ndarray, steps: int) -> np.ndarray:
    """Fit view(x, y) = gain * part(sx x + tx, sy y + ty) + offset by Gauss-Newton, outliers weighted down.

    Args:
        view: (P, n, n).
        part: (P, n, n).
        placement: (P, 2, 2): (sx, tx), (sy, ty).
        steps: how many.
    """
    number, cells = len(view), view.shape[-1]
    # The derivative along a line of cells, by the position.
    slope = np.asarray(np.gradient(np.eye(cells, dtype=np.float32), axis=0)) * np.float32(cells / 2)
    centres = _cell_centres(cells)
    x, y = np.tile(centres, cells), np.repeat(centres, cells)
    moments = np.stack([np.ones_like(x), x, y, x * y, x * x, y * y], 1)  # (n^2, 6)
    for _ in range(steps):
        positions = _positions(placement, cells)
        inside = _inside(positions, placement)
        matrices = _bilinear(positions) * inside[..., None]
        slopes = matrices @ slope
        across = part @ matrices[:, 0].transpose(0, 2, 1)
        picture = (matrices[:, 1] @ across).reshape(number, -1)
        dx = (matrices[:, 1] @ (part @ slopes[:, 0].transpose(0, 2, 1))).reshape(number, -1)
        dy = (slopes[:, 1] @ across).reshape(number, -1)
        mask = _mask(inside)
        level = view.reshape(number, -1) * mask

        count = np.maximum(mask.sum(1), 1)
        level_sum, picture_sum = level.sum(1), picture.sum(1)
        gain = np.einsum("pn,pn->p", level, picture) - level_sum * picture_sum / count + 1
        gain /= np.einsum("pn,pn->p", picture, picture) - picture_sum**2 / count + 1
        gain = gain.clip(0.3, 3)
        residual = level - gain[:, None] * picture - ((level_sum - gain * picture_sum) / count)[:, None] * mask
        spread = 2 * (np.abs(residual).sum(1) / count + 1)
        weight = mask / (1 + np.square(residual / spread[:, None]))

        # Sums over the view's cells of weighted products, times 1, x, y, xy, x^2 and y^2.
        u, v = weight * dx, weight * dy
        maps = np.stack([u, v, u * dx, u * dy, v * dy, u * residual, v * residual], 1)  # (P, 7, n^2)
        wx, wy, xx, xy, yy, rx, ry = (maps @ moments).transpose(1, 2, 0)  # (6, P) each
        total, error = np.maximum(weight.sum(1), 1e-3), np.einsum("pn,pn->p", weight, residual)
        # The Jacobian's columns are dx * x, dx, dy * y, dy, times the gain.
        sums = np.stack([wx[1], wx[0], wy[2], wy[0]])  # (4, P)
        normal = np.stack(
            [
                np.stack([xx[4], xx[1], xy[3], xy[1]]),
                np.stack([xx[1], xx[0], xy[2], xy[0]]),
                np.stack([xy[3], xy[2], yy[5], yy[2]]),
                np.stack([xy[1], xy[0], yy[2], yy[0]]),
            ]
        )
        normal = (normal - sums[:, None] * sums / total) * gain**2  # (4, 4, P)
        right = (np.stack([rx[1], rx[0], ry[2], ry[0]]) - sums * error / total) * gain
        normal[range(4), range(4)] += 1e-3 * np.trace(normal) / 4 + 1
        step = np.linalg.solve(normal.transpose(2, 0, 1), right.T[..., None]).reshape(-1, 2, 2)
        placement = (placement + step.clip(-0.15, 0.15)).clip(_LOWEST, _HIGHEST)
    return placement


def _matched(view: np.ndarray, part: np.ndarray, placement: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Correlate views (P, n, n) with parts placed in them, and tell the share of the view that the part covers."""
    positions = _positions(placement, view.shape[-1])
    inside = _inside(positions, placement)
    mask = _mask(inside)
    level = view.reshape(mask.shape) * mask
    sampled = _sample(part, _bicubic(positions) * inside[..., None]).reshape(mask.shape)
    count = np.maximum(mask.sum(1), 1)
    level -= (level.sum(1) / count)[:, None] * mask
    sampled -= (sampled.sum(1) / count)[:, None] * mask
    floor = np.float32(NOISE**2) * count
    energy = (_energy(level) + floor) * (_energy(sampled) + floor)
    return np.asarray(np.einsum("pn,pn->p", level, sampled) / np.sqrt(energy)), mask.mean(1)


def _positions(placement: np.ndarray, cells: int) -> np.ndarray:
    """Return where in the part the view's cells lie, along x and along y, from -1 to 1 inside: (P, 2, n)."""
    positions: np.ndarray = placement[..., :1] * _cell_centres(cells) + placement[..., 1:]
    return positions


def _inside(positions: np.ndarray, placement: np.ndarray, beyond: float = 0) -> np.ndarray:
    """Tell which cells (P, 2, n) lie inside as a whole, or stick out by at most `beyond` half cells of the part.

    A frame around a copy so stays out of the sums: the cells beside it have a share of it.
    """
    cells = positions.shape[-1]
    rounding = 0.02
    found: np.ndarray = np.abs(positions) + placement[..., :1] / cells <= 1 + (beyond + rounding) / cells
    return found


def _mask(inside: np.ndarray) -> np.ndarray:
    """Return cells inside along x and along y (P, 2, n) as 0 and 1, (P, n^2)."""
    mask: np.ndarray = (inside[:, 1, :, None] & inside[:, 0, None, :]).reshape(len(inside), -1).astype(np.float32)
    return mask


def _bilinear(positions: np.ndarray) -> np.ndarray:
    """Return matrices (P, 2, n, n) that sample lines at positions (P, 2, n); beyond the edge, the cell at the edge."""
    cells = positions.shape[-1]
    at = (((positions + 1) * cells - 1) / 2).clip(0, cells - 1)
    matrices: np.ndarray = at[..., None] - np.arange(cells, dtype=np.float32)
    np.subtract(1, np.abs(matrices, out=matrices), out=matrices)
    np.maximum(matrices, 0, out=matrices)
    return matrices


def _bicubic(positions: np.ndarray) -> np.ndarray:
    """Return matrices like `_bilinear`; right for positions inside."""
    cells = positions.shape[-1]
    at = ((positions + 1) * cells - 1) / 2
    distance = np.abs(at[..., None] - np.arange(-2, cells + 2, dtype=np.float32))
    near, far = (1.25 * distance - 2.25) * distance**2 + 1, ((3.75 - 0.75 * distance) * distance - 6) * distance + 3
    matrices = np.where(distance <= 1, near, np.where(distance < 2, far, 0))
    matrices[..., 2] += matrices[..., 0] + matrices[..., 1]  # the cells beyond the edge are as the one at the edge
    matrices[..., -3] += matrices[..., -1] + matrices[..., -2]
    return matrices[..., 2:-2]


def _sample(pictures: np.ndarray, matrices: np.ndarray) -> np.ndarray:
    """Sample pictures (P, ..., n, n) by matrices (P, ..., 2, n, n)."""
    sampled: np.ndarray = matrices[..., 1, :, :] @ pictures @ matrices[..., 0, :, :].swapaxes(-1, -2)
    return sampled


def _roles(
    first: np.ndarray, second: np.ndarray, orientation: np.ndarray, swapped: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the larger view, turned as its orientation (P,) says, and the part; the second is the view if swapped."""
    choose = swapped.reshape(-1, *[1] * (first.ndim - 1))
    return _oriented(np.where(choose, second, first), orientation), np.where(choose, first, second)


def _oriented(images: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Turn and mirror images (P, ..., n, n), each as its orientation (P,) says."""
    cells = images.shape[-1]
    places = orientations(np.arange(cells**2).reshape(1, cells, cells))[0].reshape(8, -1)  # (8, n^2)
    flat = images.reshape(len(images), -1, cells**2)
    turned = np.take_along_axis(flat, places[orientation][:, None], 2)
    return turned.reshape(images.shape)


def _halved(pictures: np.ndarray) -> np.ndarray:
    """Return (P, n, n) at half the resolution."""
    rows = pictures[:, ::2] + pictures[:, 1::2]
    halved: np.ndarray = (rows[..., ::2] + rows[..., 1::2]) / 4
    return halved


def _cell_centres(cells: int) -> np.ndarray:
    """Return the positions of the cells from -1 to 1."""
    return (np.arange(cells, dtype=np.float32) + np.float32(0.5)) * np.float32(2 / cells) - 1
