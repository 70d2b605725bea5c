"""Whether two signatures show the same picture: aligned, what they share correlates, and nothing else speaks against.

Unusual: where the alignment came to rest is evidence, too. An edit keeps the proportions and only cuts off; another
shot of the same thing mostly also shows more on one side. A blank page has nothing to correlate: pictures of one
colour are the same if that and their proportions are.
"""

from dataclasses import dataclass

import numpy as np

from ..signature import Thumbnails

#: Pairs that are compared at once: what fits a CPU's cache.
BLOCK = 256
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
    count = len(first)
    plain, nearness = _as_they_are(first, second)
    found = correlations(first.grey, second.grey)
    orientation = found.argmax(1)
    direct = found[np.arange(count), orientation]
    colour = colour_agreement(first.colour, second.colour, orientation)
    stretch = np.abs(np.where(orientation % 2 == 1, -second.shape, second.shape) - first.shape)
    columns = direct, np.ones(count, np.float32), colour, stretch, np.zeros(count, np.float32)
    # No alignment could explain much more.
    most = np.sqrt(own_correlation(first.grey) * own_correlation(second.grey))
    rows = np.flatnonzero(~(plain | (direct + _BETTER >= most)))
    if aligned and len(rows):
        from .alignment import compare_aligned  # with torch

        better, values = compare_aligned(first[rows], second[rows], direct[rows] + _BETTER)
        for column, value in zip(columns, values, strict=True):
            column[rows[better]] = value
    turn = np.minimum(np.abs(first.shape - second.shape), np.abs(first.shape + second.shape))
    for column, value in zip(columns, (nearness, 1, 1, turn, 0), strict=True):
        column[plain] = np.broadcast_to(value, plain.shape)[plain]
    return columns


def _as_they_are(first: Thumbnails, second: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
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


#: Standard deviation in grey levels below which a picture has no detail to compare.
NOISE = 2.0
#: Colour differences in levels below which a picture is grey.
COLOUR_NOISE = 4.0
#: Share of the larger view that both must show.
MIN_OVERLAP = 0.5


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


def own_correlation(pictures: np.ndarray) -> np.ndarray:
    """Correlate pictures (P, n, n) with themselves, (P,): the less detail they have, the farther below 1."""
    energy = _energy(_centred(pictures)) / pictures[0].size
    found: np.ndarray = energy / (energy + np.float32(NOISE**2))
    return found


def colour_agreement(first: np.ndarray, second: np.ndarray, orientation: np.ndarray) -> np.ndarray:
    """Cosine of the colours (P, 2, n, n) of the first with those of the second so turned: float32 (P,)."""
    turned = orientations(second)[np.arange(len(second)), orientation]
    noise = np.float32(COLOUR_NOISE**2 * first[0].size)
    product = np.einsum("pcyx,pcyx->p", first, turned)
    found: np.ndarray = (product + noise) / (np.sqrt(_energy(first) * _energy(turned)) + noise)
    return found


def _centred(pictures: np.ndarray) -> np.ndarray:
    centred: np.ndarray = pictures - pictures.mean((1, 2), keepdims=True)
    return centred


def _energy(values: np.ndarray) -> np.ndarray:
    """Sum of the squares of each (P, ...): (P,)."""
    flat = values.reshape(len(values), -1)
    return np.asarray(np.einsum("pn,pn->p", flat, flat))
