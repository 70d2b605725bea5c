"""What a finished run leaves beside its weights: recipe.yaml, results.json and a card; `publish` takes the first two.

Unusual: folders of this machine are named by their last part only, since all three may leave it.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from simclr_hub.configuration_simclr import SimCLRConfig

from .cards import render
from .stage import weights_sha256
from .trained_cards import recipe_text, trained_card


def write_record(
    directory: Path, name: str, recipe: Mapping[str, Any], trained: str, images: int, knn: float | None
) -> None:
    """Add the files to a directory that holds a run's final model.

    Args:
        directory: of `save_pretrained`, with the processor's file.
        name: of the run, which the card bears.
        recipe: as `load_recipe` returned it.
        trained: how long, in words.
        images: that it was trained on.
        knn: accuracy of the nearest neighbours on the recipe's `eval_split`, in percent; None if there is none.
    """
    training = {key: value for key, value in recipe["training"].items() if key != "output_dir"}
    data = recipe["data"]
    kept = {**recipe, "data": [_last_part(d) for d in data] if isinstance(data, list) else _last_part(data)}
    kept["training"] = training
    named = " and ".join(kept["data"]) if isinstance(data, list) else kept["data"]
    if kept.get("init_from"):
        kept["init_from"] = _last_part(kept["init_from"])
    (directory / "recipe.yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    results = []
    if knn is not None:
        results.append(
            {
                "value": round(knn, 2),
                "measure": "accuracy of nearest neighbours (%), among the images it was trained on",
                "dataset": f"{named}, split {recipe['eval_split']}",
                "command": "simclr-hub pretrain recipe.yaml",
            }
        )
    record = {
        "data": f"{named}, split {recipe.get('split') or 'train'}: {images:,} images",
        "trained": trained,
        "weights": weights_sha256(directory),
        "results": results,
    }
    (directory / "results.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    repo_id = f"org/{re.sub(r'[^A-Za-z0-9-]+', '-', name).strip('-') or 'model'}"
    config = SimCLRConfig.from_pretrained(directory, local_files_only=True)
    processor = json.loads((directory / "preprocessor_config.json").read_text(encoding="utf-8"))
    card = trained_card(repo_id, config, 0, record, recipe_text(str(directory / "recipe.yaml")), processor=processor)
    (directory / "README.md").write_text(render(card), encoding="utf-8")


def _last_part(place: Any) -> str:
    """A folder's own name; the id of a data set or model as it is."""
    return os.path.basename(os.path.abspath(place)) if os.path.exists(place) else str(place)
