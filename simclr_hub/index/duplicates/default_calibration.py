"""The default checkpoint's thresholds, measured anew: after another checkpoint became the default.

    python -m simclr_hub.index.duplicates.default_calibration PHOTOS [--whiten]

PHOTOS is a folder of class folders; one half of its photos, by their hash, is for this, the other for benchmarks.
`scripts/ship_default.py` does it for raw and for whitened vectors.
"""

import argparse
import hashlib
from pathlib import Path

from ...embedder import Embedder
from ...progress import counting_bar
from ...sources import folder_images
from .calibrate import calibrate, embed_all
from .calibration import DEFAULT, DEFAULT_WHITENED


def is_for_calibration(data: bytes) -> bool:
    """Whether a photo belongs to the half that thresholds are measured on; the other is for benchmarks."""
    return hashlib.sha256(data).digest()[0] % 2 == 0


def calibrate_default(
    folder: Path, output: Path, *, model: str | None = None, whiten: bool = False, copies: int = 300
) -> None:
    """Measure on one half of the photos and write the thresholds.

    Args:
        folder: of class folders.
        output: the file.
        model: the default checkpoint if not given.
        whiten: with what comes with the checkpoint.
        copies: of how many photos each kind of copy is made.
    """
    photos = [path for path in folder_images(folder) if is_for_calibration(path.read_bytes())]
    embedder = Embedder(model, runtime="torch")
    whitening = embedder.own_whitening() if whiten else None
    found, vectors, signatures = embed_all(embedder, photos)
    photos = [photos[position] for position in found]
    classes = [path.parent.name for path in photos]
    with counting_bar("calibrating") as progress:
        calibration = calibrate(
            embedder,
            photos,
            vectors,
            signatures,
            whitening=whitening,
            copies=copies,
            classes=classes,
            progress=progress,
        )
    calibration.save(output)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--output", type=Path, help="the package's own if not given")
    parser.add_argument("--model", help="the default checkpoint if not given")
    parser.add_argument("--whiten", action="store_true", help="for whitened vectors")
    parser.add_argument("--copies", type=int, default=300, help="photos of which each kind of copy is made")
    options = parser.parse_args()
    output = options.output or (DEFAULT_WHITENED if options.whiten else DEFAULT)
    calibrate_default(options.photos, output, model=options.model, whiten=options.whiten, copies=options.copies)
    print(output.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
