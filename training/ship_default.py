"""Make the package's default checkpoint: `python -m simclr_hub.training.ship_default RUN/final SIZE`.

Half precision on disk (half the download), float32 when loaded; with the vector that `simclr-hub doctor` compares.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

from simclr_hub._files import write_file
from simclr_hub.embedder import embed
from simclr_hub.image_processing_simclr import SimCLRImageProcessor
from simclr_hub.modeling_simclr import SimCLRModel


def ship_default(source: Path, image_size: int) -> None:
    """Write `simclr_hub/assets/default` from a `SimCLRModel` directory.

    Args:
        source: the model, such as RUN/final or RUN/checkpoint-1000/ema.
        image_size: side in pixels that the processor gives it.
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


if __name__ == "__main__":
    ship_default(Path(sys.argv[1]), int(sys.argv[2]))
