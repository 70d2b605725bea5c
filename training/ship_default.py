"""Make the package's default checkpoint, in one go and in a few minutes:

    python -m simclr_hub.training.ship_default RUN/final SIZE --data FOLDER --photos FOLDER

Written are the weights (in half precision, half the download; float32 when loaded), the whitening, learnt on 10,000
images of --data, the vectors that `simclr-hub doctor` compares, and the thresholds of duplicates with and without
whitening, measured on --photos, a folder of class folders. The numbers in results.json are measured after that, with
benchmarks/features.py, and `python -m simclr_hub.training.cards` writes the card.
"""

import argparse
import json
from importlib.resources import files
from pathlib import Path

import numpy as np

from simclr_hub._files import write_file
from simclr_hub.embedder import Embedder, embed
from simclr_hub.image_processing_simclr import SimCLRImageProcessor
from simclr_hub.modeling_simclr import SimCLRModel
from simclr_hub.whitening import IMAGES, WHITENING_NAMES, Whitening

from .data import Rows


def ship_default(source: Path, image_size: int, data: str) -> None:
    """Write `simclr_hub/assets/default` from a `SimCLRModel` directory.

    Args:
        source: the model, such as RUN/final or RUN/checkpoint-1000/ema.
        image_size: side in pixels that the processor gives it.
        data: a folder or data set as for `pretrain`; the whitening is learnt on its training images.
    """
    assets = Path(str(files("simclr_hub") / "assets"))
    target = assets / "default"
    model = SimCLRModel.from_pretrained(source).half()
    model.config.image_size = image_size
    model.save_pretrained(target)
    config = json.loads((target / "config.json").read_text())
    config["dtype"] = "float32"
    config.pop("use_cache", None)
    text = json.dumps(config, indent=2, sort_keys=True) + "\n"
    write_file(target / "config.json", lambda f: f.write(text.encode()))
    SimCLRImageProcessor(size=image_size).save_pretrained(target)
    known = json.dumps([round(float(v), 6) for v in embed(assets / "sample-photos" / "cat_1.jpg")[0]])
    write_file(target / "known_vector.json", lambda f: f.write(known.encode()))
    write_whitenings(target, data)


def write_whitenings(target: Path, data: str) -> None:
    """Learn them on training images, evenly spread, without their labels; write them beside the weights."""
    rows = Rows(data, "train")
    chosen = np.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).astype(int).tolist()
    for layer in ["h"]:
        embedder = Embedder(target, layer=layer)
        features = embed([rows[i] for i in chosen], model=target, layer=layer)
        learnt_from = f"training images of {Path(data).name}, without labels"
        weights = embedder.fingerprint["weights"]
        Whitening.learn(features, learnt_from=learnt_from, layer=layer, weights=weights).save(
            target / WHITENING_NAMES[layer]
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    ship_default(options.source, options.size, options.data)
