"""Whether two signatures show the same picture: aligned, what they share correlates, and nothing else speaks against.

Unusual: where the alignment came to rest is evidence, too. An edit keeps the proportions and only cuts off; another
shot of the same thing mostly also shows more on one side. A blank page has nothing to correlate: pictures of one
colour are the same if that and their proportions are.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...signature import Thumbnails
from .alignment import (
    HOPELESS,
    MIN_OVERLAP,
    align,
    all_orientations,
    cell_centres,
    own_correlation,
    plain_correlations,
    rank_guesses,
    roles,
    sample,
)

#: Pairs that are compared at once: what fits a CPU's cache.
BLOCK = 256
#: Colour differences in levels below which a picture is grey.
_COLOUR_NOISE = 4.0
#: The least agreement of colours.
MIN_COLOUR = 0.6
#: The most by which proportions may differ, as log2, and by which the part may stick out of the view, as share of a
#: side: an edit keeps the one and only cuts off; another shot squeezes and shifts.
MAX_STRETCH, MAX_OUTSIDE = 0.05, 0.015
#: By how much an alignment must explain more than the two as they are.
_BETTER = 1e-3
#: Levels by which re-encoding shifts a colour; the distance at which the score of two such pictures would be 0.
_SAME_COLOUR, _FAR = 4.0, 200.0


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
        """The correlation, or 0 where something else says that these are two pictures."""
        passed = (self.overlap >= MIN_OVERLAP) & (self.colour >= MIN_COLOUR)
        passed &= (self.stretch <= MAX_STRETCH) & (self.outside <= MAX_OUTSIDE)
        return np.where(passed, self.correlation.clip(0), np.float32(0))


@torch.inference_mode()
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
    parts = [
        _compare(first[start : start + BLOCK], second[start : start + BLOCK], aligned)
        for start in range(0, len(first), BLOCK)
    ]
    if not parts:
        return Agreement(*(np.empty(0, np.float32) for _ in range(5)))
    return Agreement(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def _compare(first: Thumbnails, second: Thumbnails, aligned: bool) -> tuple[np.ndarray, ...]:
    a, b = torch.from_numpy(first.grey), all_orientations(torch.from_numpy(second.grey))  # (P, n, n), (P, 8, n, n)
    plain, nearness = _as_they_are(first, second)
    direct, orientation = plain_correlations(b, a).max(1)
    # No alignment could explain much more.
    settled = torch.from_numpy(plain) | (direct + _BETTER >= (own_correlation(a) * own_correlation(b[:, 0])).sqrt())
    count = len(a)
    correlation, overlap = direct.clone(), torch.ones(count)
    placement = torch.tensor([1.0, 0, 1, 0]).repeat(count, 1)
    swapped = torch.zeros(count, dtype=torch.bool)
    rows = torch.empty(0, dtype=torch.long)
    if aligned and not settled.all():
        rows = (~settled).nonzero()[:, 0]
        small_a, small_b = F.avg_pool2d(a[rows][:, None], 2)[:, 0], F.avg_pool2d(b[rows], 2)
        ranks, guesses = rank_guesses(small_a, small_b)
        hopeful = ranks[:, 0] >= HOPELESS
        rows = rows[hopeful]
    if len(rows):
        found = align(a[rows], b[rows], small_a[hopeful], small_b[hopeful], guesses[hopeful])
        better = found[0] > direct[rows] + _BETTER  # as it is, if that explains it as well
        rows = rows[better]
        for target, value in zip((correlation, overlap, placement, orientation, swapped), found, strict=True):
            target[rows] = value[better]
    colour = _colour_agreement(first.colour, second.colour, placement, orientation, swapped)
    turned = np.where(orientation.numpy() % 2 == 1, -second.shape, second.shape)
    change = np.where(swapped.numpy(), first.shape - turned, turned - first.shape)
    stretch = np.abs(change + np.log2(placement[:, 2].numpy() / placement[:, 0].numpy()))
    scale, shift = placement[:, 0::2], placement[:, 1::2]
    outside = ((1 + shift.abs()) / scale - 1).amax(1).clamp(min=0) / 2
    columns = correlation.numpy(), overlap.numpy(), colour.numpy(), stretch.astype(np.float32), outside.numpy()
    turn = np.minimum(np.abs(first.shape - second.shape), np.abs(first.shape + second.shape))
    for column, value in zip(columns, (nearness, 1, 1, turn, 0), strict=True):
        column[plain] = np.broadcast_to(value, plain.shape)[plain]
    return columns


def _as_they_are(first: Thumbnails, second: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
    """Which pairs (P,) need no correlating, being equal or of one colour each, and how near those are, 0 to 1."""
    equal = (first.grey == second.grey).all((1, 2)) & (first.colour == second.colour).all((1, 2, 3))
    equal &= (first.shape == second.shape) & _is_there(first)
    blank = is_blank(first) & is_blank(second)
    grey = np.abs(first.grey.mean((1, 2)) - second.grey.mean((1, 2)))
    colour = np.abs(first.colour.mean((2, 3)) - second.colour.mean((2, 3))).max(1)
    distance = np.where(equal, 0, np.maximum(2 * grey, colour))
    return equal | blank, np.where(distance <= _SAME_COLOUR, 1 - distance / _FAR, 0).astype(np.float32)


def is_blank(pictures: Thumbnails) -> np.ndarray:
    """Which are of one colour, bool (P,)."""
    # To the last bit: a page with nothing but its number has a cell that is half a level darker.
    one_grey = (pictures.grey == pictures.grey[:, :1, :1]).all((1, 2))
    one_colour = (pictures.colour == pictures.colour[:, :, :1, :1]).all((1, 2, 3))
    return np.asarray(one_grey & one_colour & _is_there(pictures))


def _is_there(pictures: Thumbnails) -> np.ndarray:
    """Which signatures are some: the zeros of one that is not there would be a colour beyond all."""
    return np.asarray((pictures.colour > -256).any((1, 2, 3)))


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

    noise = 2 * _COLOUR_NOISE**2 * inside.sum((1, 2, 3))
    return (dot(view, sampled) + noise) / ((dot(view, view) * dot(sampled, sampled)).sqrt() + noise)
