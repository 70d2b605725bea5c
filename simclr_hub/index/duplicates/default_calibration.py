"""The default checkpoint's thresholds, measured anew: after another checkpoint became the default.

    python -m simclr_hub.index.duplicates.default_calibration PHOTOS

PHOTOS is a folder of class folders; one half of its photos, by their hash, is for this, the other for benchmarks.
"""

import argparse
import hashlib
from pathlib import Path

from ...embedder import Embedder
from ...progress import counting_bar
from ...sources import folder_images
from .calibrate import calibrate, embed_all
from .calibration import DEFAULT


def is_for_calibration(data: bytes) -> bool:
    """Whether a photo belongs to the half that thresholds are measured on; the other is for benchmarks."""
    return hashlib.sha256(data).digest()[0] % 2 == 0


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("-o", "--output", type=Path, default=DEFAULT)
    parser.add_argument("--model", help="the default checkpoint if not given")
    parser.add_argument("--copies", type=int, default=300, help="photos of which each kind of copy is made")
    options = parser.parse_args()
    photos = [path for path in folder_images(options.photos) if is_for_calibration(path.read_bytes())]
    embedder = Embedder(options.model, runtime="torch")
    found, vectors, signatures = embed_all(embedder, photos)
    photos = [photos[position] for position in found]
    classes = [path.parent.name for path in photos]
    with counting_bar("calibrating") as progress:
        calibration = calibrate(
            embedder, photos, vectors, signatures, copies=options.copies, classes=classes, progress=progress
        )
    calibration.save(options.output)
    print(options.output.read_text(encoding="utf-8"), end="")


if __name__ == "__main__":
    main()
