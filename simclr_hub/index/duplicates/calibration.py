"""From where on two pictures are the same, or similar: thresholds that were measured for a checkpoint, as a file.

Unusual: what is said of signatures holds for every model; only what is said of cosines belongs to a checkpoint, and is
never used for another.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..._files import write_file
from ...signature import SIGNATURE_VERSION
from .likeness import thresholds

#: In an index's directory, and beside the default checkpoint; there also one for whitened vectors.
CALIBRATION_NAME = "duplicates.json"
DEFAULT = Path(__file__).parents[2] / "assets" / "default" / CALIBRATION_NAME
DEFAULT_WHITENED = DEFAULT.with_name("duplicates-whitened.json")
#: Correlation of two aligned signatures from which they are the same picture if their cosine agrees, and alone. Of the
#: pairs of different pictures none reached the first when they were chosen; see benchmarks/RESULTS.md.
CORRELATION, CORRELATION_ALONE = 0.955, 0.97


@dataclass(frozen=True)
class Calibration:
    """Thresholds of one checkpoint.

    Attributes:
        made_by: of the embedder's fingerprint, what `identity` keeps.
        signature_version: of the signatures that it was measured with.
        cosine: of two vectors as the model gave them, from which `CORRELATION` is enough; above 1 if no copies were
            measured.
        similar_from: (photos, likeness), ascending: of so many photos two are similar from this likeness on, of
            vectors as the index compares them.
        measured: what the thresholds gave where they were measured, for people.
    """

    made_by: dict[str, str]
    signature_version: int
    cosine: float
    similar_from: list[tuple[int, float]]
    measured: dict[str, Any] = field(default_factory=dict)

    def is_same(self, correlations: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """Which pairs show the same picture."""
        sure: np.ndarray = correlations >= CORRELATION_ALONE
        return sure | ((correlations >= CORRELATION) & (cosines >= self.cosine))

    def similar(self, photos: int) -> float:
        """Return the likeness from which two of so many photos are similar."""
        sizes, scores = zip(*self.similar_from, strict=True)
        return float(np.interp(np.log(max(photos, 1)), np.log(sizes), scores))

    def save(self, path: Path) -> None:
        """Write it.

        Raises:
            OSError: it could not be written.
        """
        text = json.dumps(asdict(self), indent=1) + "\n"
        write_file(path, lambda file: file.write(text.encode()))


def identity(fingerprint: Mapping[str, Any]) -> dict[str, str]:
    """What of a fingerprint decides how far copies lie apart; neither the model's name nor the precision."""
    known = {key: str(fingerprint.get(key, "")) for key in ("weights", "layer", "preprocessing")}
    return known | {key: fingerprint[key] for key in ("whitening",) if key in fingerprint}


def load_calibration(directory: Path, fingerprint: Mapping[str, Any]) -> Calibration | None:
    """The one in an index's directory, or the default checkpoint's; None if neither belongs to this embedder."""
    for path in (directory / CALIBRATION_NAME, DEFAULT, DEFAULT_WHITENED):
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            calibration = Calibration(
                **values | {"similar_from": [(int(n), float(s)) for n, s in values["similar_from"]]}
            )
        except (OSError, ValueError, TypeError, KeyError):
            continue
        belongs = calibration.made_by == identity(fingerprint)
        if belongs and calibration.signature_version == SIGNATURE_VERSION and calibration.similar_from:
            return calibration
    return None


def provisional(vectors: np.ndarray, fingerprint: Mapping[str, Any]) -> Calibration:
    """Without measured copies: what is similar among these vectors (N, D) of the index, and the signatures alone."""
    return Calibration(identity(fingerprint), SIGNATURE_VERSION, 2.0, thresholds(vectors))
