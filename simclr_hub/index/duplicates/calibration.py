"""From where on two pictures are the same, or similar: thresholds that were measured for a checkpoint, as a file.

Unusual: what is said of signatures holds for every model; only what is said of cosines belongs to a checkpoint, and is
never used for another.
"""

import json
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..._files import write_file
from ...signature import SIGNATURE_VERSION

#: In an index's directory, and beside the default checkpoint; there also one for whitened vectors.
CALIBRATION_NAME = "duplicates.json"
DEFAULT = Path(__file__).parents[2] / "assets" / "default" / CALIBRATION_NAME
DEFAULT_WHITENED = DEFAULT.with_name("duplicates-whitened.json")
#: Correlation of two aligned signatures from which they are the same picture if their cosine agrees, and alone. Of the
#: pairs of different pictures none reached the first when they were chosen; see benchmarks/RESULTS.md.
CORRELATION, CORRELATION_ALONE = 0.955, 0.97
#: How many of a photo's neighbours may be called similar by chance.
CHANCE_NEIGHBOURS = 0.1


@dataclass(frozen=True)
class Calibration:
    """Thresholds of one checkpoint.

    Attributes:
        made_by: of the embedder's fingerprint, what `identity` keeps.
        signature_version: of the signatures that it was measured with.
        cosine: of two vectors, from which `CORRELATION` is enough; above 1 if no copies were measured.
        chance: pairs (rate, cosine): this share of all pairs of different photos has a larger cosine; falling rates.
        measured: what the thresholds gave where they were measured, for people.
    """

    made_by: dict[str, str]
    signature_version: int
    cosine: float
    chance: list[tuple[float, float]]
    measured: dict[str, Any] = field(default_factory=dict)

    def is_same(self, correlations: np.ndarray, cosines: np.ndarray) -> np.ndarray:
        """Which pairs show the same picture."""
        sure: np.ndarray = correlations >= CORRELATION_ALONE
        return sure | ((correlations >= CORRELATION) & (cosines >= self.cosine))

    def similar(self, photos: int) -> float:
        """The cosine from which two of so many photos are similar: a photo has 0.1 such neighbours by chance."""
        rate = CHANCE_NEIGHBOURS / max(photos, 1)
        rates = [-known for known, _ in self.chance]
        cosines = [cosine for _, cosine in self.chance]
        at = bisect_left(rates, -rate)
        if at == 0:
            return cosines[0]
        if at == len(rates):
            return cosines[-1]
        low, high = self.chance[at - 1], self.chance[at]
        share = float(np.log(rate / low[0]) / np.log(high[0] / low[0]))
        return low[1] + share * (high[1] - low[1])

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
            calibration = Calibration(**values | {"chance": [(float(r), float(c)) for r, c in values["chance"]]})
        except (OSError, ValueError, TypeError, KeyError):
            continue
        belongs = calibration.made_by == identity(fingerprint)
        if belongs and calibration.signature_version == SIGNATURE_VERSION and calibration.chance:
            return calibration
    return None


def provisional(vectors: np.ndarray, fingerprint: Mapping[str, Any]) -> Calibration:
    """Without measured copies: what is similar by chance among these vectors (N, D), and the signatures alone."""
    return Calibration(identity(fingerprint), SIGNATURE_VERSION, 2.0, chance_of(vectors))


def chance_of(vectors: np.ndarray, sample: int = 4000) -> list[tuple[float, float]]:
    """How near different photos come: (rate, cosine) for as rare rates as the pairs of a sample allow."""
    if len(vectors) > sample:
        vectors = vectors[np.sort(np.random.default_rng(0).choice(len(vectors), sample, replace=False))]
    rows, columns = np.triu_indices(len(vectors), 1)
    if not len(rows):
        return [(1.0, 1.0)]
    cosines = np.sort((vectors @ vectors.T)[rows, columns])
    rates = [10.0**-power for power in range(1, 8) if 10.0**-power * len(cosines) >= 5] or [1 / len(cosines)]
    return [(rate, float(np.quantile(cosines, 1 - rate))) for rate in rates]
