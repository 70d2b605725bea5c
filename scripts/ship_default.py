"""Make the package's default checkpoint.

In one go, in three minutes of one core:

    python scripts/ship_default.py RUN/final SIZE --data FOLDER --photos FOLDER

Written into the package are the weights (in half precision, half the download; float32 when loaded), the whitenings,
learnt on 10,000 images of --data without their labels, the vectors that `simclr-hub doctor` compares, and the
thresholds of duplicates, for raw and for whitened vectors, measured on --photos, a folder of class folders. After that
`benchmarks/features.py --record` measures the numbers of results.json and where the checkpoint fails, also for the
README, and `python scripts/render_cards.py` writes the card.
Without RUN/final and SIZE all but the weights is made again for those that are there.
"""

import argparse
import json
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import IO

import numpy as np

from simclr_hub._files import write_file
from simclr_hub.duplicates.calibrate import calibrate, embed_all, is_for_calibration
from simclr_hub.duplicates.thresholds import DEFAULT, DEFAULT_WHITENED
from simclr_hub.embedder import Embedder, embed
from simclr_hub.image_processing_simclr import SimCLRImageProcessor
from simclr_hub.modeling_simclr import SimCLRModel
from simclr_hub.progress import counting_bar
from simclr_hub.runtimes import SHIPPED, Export, shipped_export, write_export
from simclr_hub.sources import folder_images
from simclr_hub.torch_runtime import export_layer, facts_of
from simclr_hub.training.data import open_rows
from simclr_hub.whitening import IMAGES, WHITENING_NAMES, Whitening

_ASSETS = Path(str(files("simclr_hub") / "assets"))
_TARGET = _ASSETS / "default"


def write_weights(source: Path, image_size: int) -> None:
    """Write `simclr_hub/assets/default` from a `SimCLRModel` directory.

    Args:
        source: the model, such as RUN/final or RUN/checkpoint-1000/ema.
        image_size: side in pixels that the processor gives it.
    """
    model = SimCLRModel.from_pretrained(source).half()
    model.config.image_size = image_size
    model.save_pretrained(_TARGET)
    config = json.loads((_TARGET / "config.json").read_text())
    config["dtype"] = "float32"
    config.pop("use_cache", None)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_file(_TARGET / "config.json", lambda f: f.write(text.encode()))
    SimCLRImageProcessor(size=image_size).save_pretrained(_TARGET)


def write_whitenings(data: str, target: Path = _TARGET) -> None:
    """Learn them on training images, evenly spread, and write them beside the weights in `target`.

    Args:
        data: a folder or data set as for `pretrain`.
        target: a model directory.
    """
    rows = open_rows(data, "train")
    chosen = np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).astype(int).tolist()
    embedder = Embedder(target, layer="h+stage3")
    both = embed([rows[i] for i in chosen], target, layer="h+stage3")
    for layer, features in (("h", both[:, : embedder.width_of_h]), ("h+stage3", both)):
        whitening = Whitening.learn(
            features,
            learnt_from=f"training images of {Path(data).name}",
            layer=layer,
            weights=embedder.fingerprint["weights"],
        )
        whitening.save(target / WHITENING_NAMES[layer])


def exports() -> dict[str, Export]:
    """Make the ONNX graphs with which the default checkpoint runs without torch, by their layers."""
    return {layer: export_layer(*facts_of((_TARGET, "default"), layer))[0] for layer in SHIPPED}


def write_known_vectors() -> None:
    """Write what `simclr-hub doctor` compares: a photo's h, and the same whitened."""
    h = embed(_ASSETS / "sample-photos" / "cat_1.jpg")
    for name, vector in (("vector", h[0]), ("whitened", Whitening.load(_TARGET / WHITENING_NAMES["h"]).apply(h)[0])):
        data = json.dumps([round(float(v), 6) for v in vector]).encode()
        write_file(_TARGET / f"known_{name}.json", partial(_write, data))


def write_thresholds(folder: Path, output: Path, *, whiten: bool = False, copies: int = 300) -> None:
    """Write the thresholds of duplicates, measured on one half of the photos, by their hash.

    Args:
        folder: class folders of photos.
        output: the file.
        whiten: measure whitened vectors.
        copies: number of photos of which each kind of copy is made.
    """
    photos = [path for path in folder_images(folder) if is_for_calibration(path.read_bytes())]
    embedder = Embedder(runtime="torch")
    found, vectors, signatures = embed_all(embedder, photos)
    photos = [photos[position] for position in found]
    with counting_bar("calibrating") as progress:
        thresholds = calibrate(
            embedder,
            photos,
            vectors,
            signatures,
            whitening=embedder.own_whitening() if whiten else None,
            copies=copies,
            classes=[path.parent.name for path in photos],
            progress=progress,
        )
    thresholds.save(output)


def _write(data: bytes, file: IO[bytes]) -> None:
    file.write(data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("size", type=int, nargs="?")
    parser.add_argument("--data", required=True, help="for the whitening: a folder or data set as for pretraining")
    parser.add_argument("--photos", required=True, type=Path, help="for duplicates: a folder of class folders")
    options = parser.parse_args()
    if options.source:
        if options.size is None:
            parser.error("give SIZE, the side of the images in pixels")
        write_weights(options.source, options.size)
    for layer, export in exports().items():
        write_export(shipped_export(layer), export)
    write_whitenings(options.data)
    write_known_vectors()
    for output, whiten in ((DEFAULT, False), (DEFAULT_WHITENED, True)):
        write_thresholds(options.photos, output, whiten=whiten)
