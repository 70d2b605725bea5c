"""The numbers of `evaluate` for a model's card: those of its own weights, and no others."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simclr_hub.errors import PublishError
from simclr_hub.loading import load, weights_hash

from .cards import Result
from .trained_cards import last_part

#: A word of a measure -> its type in `model-index`.
METRICS = {"precision": "precision", "recall": "recall", "mAP": "mean_average_precision"}
#: What the Hub's cards call a data set that is a folder of somebody's.
FOLDER = "imagefolder"


def command_of(models: Sequence[str], given: Sequence[str]) -> str:
    """Return a command that can leave this machine: folders by their last part, without where results were written."""
    told = []
    for setting in given:
        key, _, value = setting.partition("=")
        if key not in ("output_dir", "cache"):
            told.append(f"{key}={last_part(os.path.expanduser(value))}")
    return shlex.join(["simclr-hub", "evaluate", *map(last_part, models), *told])


def is_evaluation(record: Mapping[str, Any]) -> bool:
    """Tell whether a results.json is what `evaluate` wrote."""
    return {"simclr_hub", "models", "data", "results"} <= record.keys()


def evaluated(record: Mapping[str, Any], directory: Path, file: Path) -> tuple[Result, ...]:
    """Return the numbers in what `evaluate` wrote that are of the weights in a directory.

    Args:
        record: what results.json holds.
        directory: of the model.
        file: for messages.

    Raises:
        PublishError: none is of these weights, or the record is not as `evaluate` writes it.
        CheckpointError: there is no model in the directory.
    """
    model, _ = load(str(directory))
    ours = {
        weights_hash(model),
        weights_hash(model, with_projection=True),
    }  # the latter where g's layers were measured
    try:
        kinds = record["models"]
        mine = [one for one in record["results"] if kinds[one["model"]][one["layer"]]["weights"] in ours]
        if not mine:
            names = ", ".join(kinds)
            raise PublishError(f"{file} is of other weights ({names}); evaluate {directory} and give its results.json")
        data = record["data"]["evaluation"]
        source, split = data["source"], data["split"]
        held_out = "held out of" if data["version"] == record["data"]["train"]["version"] else "of"
        name = " and ".join(map(last_part, source)) if isinstance(source, list) else last_part(source)
        return tuple(
            Result(
                measure=f"{one['measure']} (%), {one['protocol']} on {one['layer']}" + _ends(one),
                value=round(one["value"], 2),
                dataset=f"{name}, {one['images']:,} images {held_out} split {split}",
                command=record["command"],
                dataset_id=data["dataset"] or FOLDER,
                split=split,
                metric=next((name for word, name in METRICS.items() if word in one["measure"]), "accuracy"),
            )
            for one in mine
        )
    except (LookupError, TypeError, AttributeError, ValueError) as e:
        raise PublishError(f"{file}: not as simclr-hub evaluate writes it: {type(e).__name__}: {e}") from e


def _ends(one: Mapping[str, Any]) -> str:
    if one["interval"]:
        low, high = one["interval"]
        return f" [{low:.1f}, {high:.1f}]"
    return "" if one["spread"] is None else f" +- {one['spread']:.2f} over draws"
