"""How near two photos of an index come: cosines of pairs of its own, beside which a score can be read.

Unusual: a cosine says nothing by itself, since those of unrelated photos differ from model to model; so a score comes
with the share of the pairs that are less alike. All pairs of a sample are taken, of which the highest cosines are kept
one by one, the others thinned.
"""

from dataclasses import dataclass

import numpy as np

from .arrays import CheckedArray

#: Contents whose pairs are compared: all of a small index; 523,776 pairs of a larger one.
SAMPLE = 1024
#: Pairs below which a share of them says nothing.
LEAST = 100
#: Cosines that are kept: so many in equal steps, and so many of the highest.
_STEPS, _HIGHEST = 3072, 1024


@dataclass(frozen=True)
class Pairs:
    """Cosines of an index's own pairs.

    Attributes:
        cosines: some of them, ascending, float32 (S,); none if there are fewer pairs than `LEAST`.
        ranks: how many pairs come before each, int64 (S,).
    """

    cosines: CheckedArray
    ranks: CheckedArray

    def closer_than(self, scores: np.ndarray) -> list[float] | list[None]:
        """For cosines (M,) the share of pairs with a smaller one; below 1, since another pair may be nearer still."""
        cosines, ranks = self.cosines.all(), self.ranks.all()
        if not len(ranks):
            return [None] * len(scores)
        total = int(ranks[-1]) + 1
        at = np.searchsorted(cosines, scores)
        below = np.where(at > 0, ranks[at - 1] + 1, 0)
        shares: list[float] = np.minimum(below / total, total / (total + 1)).tolist()
        return shares


def sample_pairs(vectors: CheckedArray) -> Pairs:
    """The cosines of pairs among vectors (N, D) of length 1, each of another content."""
    rows = np.arange(len(vectors))
    if len(rows) > SAMPLE:
        rows = np.sort(np.random.default_rng(0).choice(rows, SAMPLE, replace=False))
    some = vectors.rows(rows)[rows]
    cosines = np.sort((some @ some.T)[np.triu_indices(len(some), 1)])
    number = len(cosines)
    if number < LEAST:
        return Pairs(CheckedArray(np.empty(0, np.float32)), CheckedArray(np.empty(0, np.int64)))
    steps = np.linspace(0, number - 1, _STEPS).astype(np.int64)
    ranks = np.unique(np.concatenate([steps, np.arange(max(0, number - _HIGHEST), number)]))
    return Pairs(CheckedArray(cosines[ranks]), CheckedArray(ranks))
