"""Results that show one picture in full view, re-encoded, resized, mirrored: found among the few of a search.

Unusual: which pairs are compared is decided by their shapes, 63 low frequencies of each signature that lie in the
cache: mirroring changes signs of them and turning exchanges them, so that eight orientations cost small products of
matrices, and most searches never read a signature.
"""

from collections.abc import Callable, Sequence

import numpy as np

from ...signature import as_rows, low_frequencies

#: Numbers a shape.
SHAPE = 63
#: Cosine of two shapes from which their signatures are compared; of copies in full view, correlated by 0.97, none was
#: below 0.966.
GATE = 0.96
#: Rows that are compared at once; and with how many that came before: copies have nearly the same score.
BLOCK, WINDOW = 64, 128

#: Which of pairs of rows, int64 (P,) each, show the same picture: bool (P,).
Same = Callable[[np.ndarray, np.ndarray], np.ndarray]

#: Places in a shape by whether the frequencies down and across are odd, which says what mirroring does to them; the
#: same places of a picture turned by a quarter.
_PLACES = np.arange(-1, SHAPE).reshape(8, 8)
_CLASSES = [
    [places[down::2, across::2].ravel()[down == across == 0 :] for down in (0, 1) for across in (0, 1)]
    for places in (_PLACES, _PLACES.T)
]


def make_shapes(signatures: Sequence[bytes]) -> np.ndarray:
    """What large shapes pictures show, int8 (N, 63); zero without a signature."""
    shapes: np.ndarray = np.rint(127 * low_frequencies(as_rows(signatures))).astype(np.int8)
    return shapes


def near_pairs(lines: np.ndarray) -> tuple[np.ndarray, ...]:
    """Find rows of lines (Q, R, 63) that may show one picture: each pair's line, earlier and later place, (P,)."""
    return np.nonzero(np.triu(_near(lines, lines), 1))


def fold(shapes: np.ndarray, rows: np.ndarray, same: Same, most: int) -> np.ndarray:
    """Which of rows (R,), best first, shows the picture of each first: places in `rows` (R,), its own if it is new.

    Args:
        shapes: of the rows, (R, 63).
        rows: of an index.
        same: compares two rows.
        most: pictures after which those that are new are not compared with one another.
    """
    first = np.arange(len(rows))
    known = np.empty(0, np.int64)
    for start in range(0, len(rows), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(rows)))
        earlier = np.concatenate([known[-WINDOW:], block if len(known) < most else block[:0]])
        near = _near(shapes[None, earlier], shapes[None, block])[0] & (earlier[:, None] < block)
        for one in np.flatnonzero(near.any(1)).tolist():
            if first[earlier[one]] == earlier[one]:
                others = block[near[one] & (first[block] == block)]
                if len(others):
                    same_ones = same(np.full(len(others), rows[earlier[one]]), rows[others])
                    first[others[same_ones]] = earlier[one]
        known = np.concatenate([known, block[first[block] == block]])
    return first


def _near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of lines (Q, A, 63) and (Q, B, 63), which pairs may show one picture in some orientation: bool (Q, A, B)."""
    a, b = a.astype(np.float32), b.astype(np.float32).transpose(0, 2, 1)
    best = np.full((len(a), a.shape[1], b.shape[2]), -np.inf, np.float32)
    for turned in _CLASSES:
        both, across, down, odd = (a[..., own] @ b[:, here] for own, here in zip(turned, _CLASSES[0], strict=True))
        # What is odd changes its sign in a mirror; the best of the two mirrors and both.
        np.maximum(best, both + down + np.abs(across + odd), out=best)
        np.maximum(best, both - down + np.abs(across - odd), out=best)
    return best >= GATE * 127**2
