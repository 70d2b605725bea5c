"""Thresholds above which two pictures are the same, or similar: a file, measured for a checkpoint by `calibrate`."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .._files import write_file
from ..signature import SIGNATURE_VERSION
from .neighbours import likeness

#: In an index's directory, and beside the default checkpoint; there also one for whitened vectors.
THRESHOLDS_NAME = "duplicates.json"
DEFAULT = Path(__file__).parents[1] / "assets" / "default" / THRESHOLDS_NAME
DEFAULT_WHITENED = DEFAULT.with_name("duplicates-whitened.json")
#: Correlation of two aligned signatures from which they are the same picture if their cosine agrees, and alone. They
#: hold for every checkpoint; no pair of different pictures reached the first when they were chosen
#: (benchmarks/RESULTS.md).
CORRELATION, CORRELATION_ALONE = 0.955, 0.97
#: Similar neighbours of a picture in the collection that is measured, on average.
SIMILAR_NEIGHBOURS = 0.4
#: The most pictures that `similar_from` is measured on.
_SAMPLE = 4000


@dataclass(frozen=True)
class Thresholds:
    """Thresholds of one checkpoint.

    Attributes:
        made_by: what `identity` keeps of the embedder's fingerprint.
        signature_version: of the signatures that were compared.
        cosine: of two vectors, not whitened, from which `CORRELATION` is enough; above 1 if no copies were measured.
        similar_from: (photos, likeness), ascending: in a collection of so many photos two are similar from this
            likeness on; of whitened vectors if the index is whitened.
        measured: recall and precision where they were measured, for people; empty if nothing was measured.
    """

    made_by: dict[str, str]
    signature_version: int
    cosine: float
    similar_from: list[tuple[int, float]]
    measured: dict[str, Any] = field(default_factory=dict)

    def is_same(self, correlations: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """Tell which pairs show the same picture."""
        sure: np.ndarray = correlations >= CORRELATION_ALONE
        return sure | ((correlations >= CORRELATION) & (cosines >= self.cosine))

    def similar(self, photos: int) -> float:
        """Return the likeness from which two of so many photos are similar."""
        sizes, scores = zip(*self.similar_from, strict=True)
        return float(np.interp(np.log(max(photos, 1)), np.log(sizes), scores))

    def save(self, path: Path) -> None:
        """Write the file.

        Raises:
            OSError: it could not be written.
        """
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_file(path, lambda file: file.write(text.encode()))


def identity(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """Return what of a fingerprint decides how far copies lie apart: neither the model's name nor the precision."""
    known = {key: str(fingerprint.get(key, "")) for key in ("weights", "layer", "preprocessing")}
    return known | {key: fingerprint[key] for key in ("whitening",) if key in fingerprint}


def load_thresholds(directory: Path, fingerprint: Mapping[str, Any]) -> Thresholds | None:
    """Load those of this checkpoint, from an index's directory or the package; None if there are none."""
    for path in (directory / THRESHOLDS_NAME, DEFAULT, DEFAULT_WHITENED):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            similar_from = [(int(n), float(s)) for n, s in values["similar_from"]]
            thresholds = Thresholds(**values | {"similar_from": similar_from})
        except (OSError, ValueError, TypeError, KeyError):
            continue
        belongs = thresholds.made_by == identity(fingerprint)
        if belongs and thresholds.signature_version == SIGNATURE_VERSION and similar_from:
            return thresholds
    return None


def unmeasured(vectors: np.ndarray, fingerprint: Mapping[str, Any]) -> Thresholds:
    """Return thresholds without measured copies: signatures decide alone, and what is similar these vectors (N, D)."""
    return Thresholds(identity(fingerprint), SIGNATURE_VERSION, 2.0, similar_from(vectors))


def similar_from(vectors: np.ndarray) -> list[tuple[int, float]]:
    """Choose the likeness from which pictures are similar, by the size of the collection: (photos, likeness).

    The first holds for smaller collections, too. In larger ones it is higher, so that a picture has no more similar
    neighbours by chance. That its nearest are nearer there is left out, which makes it stricter still.

    Args:
        vectors: (N, D) of different pictures, of length 1.
    """
    if len(vectors) > _SAMPLE:
        vectors = vectors[np.sort(np.random.default_rng(0).choice(len(vectors), _SAMPLE, replace=False))]
    scores = np.sort(likeness(vectors)[1])[::-1]
    if not len(scores):
        return [(1, 1.0)]
    count = len(vectors)
    pairs = SIMILAR_NEIGHBOURS * count / 2
    found: list[tuple[int, float]] = []
    while not found or pairs >= 5:
        found.append((count, round(float(scores[min(int(pairs), len(scores) - 1)]), 5)))
        count, pairs = 2 * count, pairs / 2
    return found
