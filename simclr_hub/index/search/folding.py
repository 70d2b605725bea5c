"""Results that show one picture in full view, re-encoded, resized, mirrored: found among the few of a search.

Unusual: which pairs are compared is decided by their shapes, 63 low frequencies of each signature that lie in the
cache: mirroring changes signs of them and turning exchanges them, so that eight orientations cost a small product of
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

#: Which pairs of rows, int64 (P,) each, show the same picture: bool (P,).
Same = Callable[[np.ndarray, np.ndarray], np.ndarray]

_PLACES = np.arange(SHAPE + 1).reshape(8, 8)
_ORDER = np.stack([places.ravel()[1:] - 1 for places in (_PLACES, _PLACES.T) for _ in range(4)])  # (8, 63)
_ODD = np.where(np.arange(8) % 2, -1, 1)
_SIGNS = np.stack(
    [np.outer(_ODD**down, _ODD**across).ravel()[1:] for down, across in 2 * [(0, 0), (0, 1), (1, 0), (1, 1)]]
)


def make_shapes(signatures: Sequence[bytes]) -> np.ndarray:
    """What large shapes pictures show, int8 (N, 63); zero without a signature."""
    shapes: np.ndarray = np.rint(127 * low_frequencies(as_rows(signatures))).astype(np.int8)
    return shapes


def may_be_copies(lines: np.ndarray) -> np.ndarray:
    """Which of lines (Q, R, 63) have two rows that may show one picture: bool (Q,)."""
    near = np.triu(_near(lines, lines), 1)
    return np.asarray(near.any((1, 2)))


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
        for earlier in (known[-WINDOW:], block if len(known) < most else known[:0]):
            new = block[first[block] == block]
            near = _near(shapes[None, earlier], shapes[None, new])[0] & (earlier[:, None] < new)
            a, b = (some[places] for some, places in zip((earlier, new), near.nonzero(), strict=True))
            if len(a):
                agreed = same(rows[a], rows[b])
                for one, other in zip(a[agreed].tolist(), b[agreed].tolist(), strict=True):
                    if first[one] == one and first[other] == other:
                        first[other] = one
        known = np.concatenate([known, block[first[block] == block]])
    return first


def _near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of lines (Q, A, 63) and (Q, B, 63), which pairs may show one picture in some orientation: bool (Q, A, B)."""
    a, b = a.astype(np.float32), b.astype(np.float32)
    turned = a[..., _ORDER] * _SIGNS.astype(np.float32)  # (Q, A, 8, 63)
    products = turned.reshape(len(a), -1, SHAPE) @ b.transpose(0, 2, 1)
    near: np.ndarray = products.reshape(len(a), a.shape[1], 8, b.shape[1]).max(2) >= GATE * 127**2
    return near
