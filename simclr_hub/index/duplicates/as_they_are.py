"""Two pictures of a few cells as they are, turned by quarters and mirrored, but not aligned: in numpy.

Unusual: a search compares its results by this alone, and has no need of torch.
"""

import numpy as np

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
