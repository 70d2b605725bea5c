"""The card of a model trained with this package, and what a finished run leaves beside its weights for it.

A run leaves recipe.yaml, results.json and a card; `publish` takes the first two. Folders of this machine are named by
their last part only, since all three may leave it.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.errors import PublishError
from simclr_hub.loading import load_whitening

from .cards import Card, Result, render
from .stage import weights_sha256


def write_record(
    directory: Path,
    name: str,
    recipe: Mapping[str, Any],
    trained: str,
    images: int,
    measured: Mapping[str, float],
    on: str = "",
    classes: int = 0,
    evaluated: str = "",
) -> None:
    """Add the files to a directory that holds a run's final model.

    Args:
        directory: of `save_pretrained`, with the processor's file.
        name: of the run, which the card bears.
        recipe: as `load_recipe` returned it.
        trained: how long, in words.
        images: that it was trained on.
        measured: measure, with its unit -> value.
        on: which images of the data those are of.
        classes: of its classifier; 0 for none.
        evaluated: the split that those are of, if it is one of the data set's own.
    """
    training = {key: value for key, value in recipe["training"].items() if key != "output_dir"}
    data = recipe["data"]
    kept = {**recipe, "data": [last_part(d) for d in data] if isinstance(data, list) else last_part(data)}
    kept["training"] = training
    named = " and ".join(kept["data"]) if isinstance(data, list) else kept["data"]
    for key in ("init_from", "teacher", "eval_data", "labels", "cache"):
        if value := kept.get(key):
            kept[key] = [last_part(one) for one in value] if isinstance(value, list) else last_part(value)
    (directory / "recipe.yaml").write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")
    text = recipe_text(str(directory / "recipe.yaml"))
    command = _command(text, classes)
    # on the Hub, where model-index names it
    there = recipe.get("eval_data") or data
    hub = {"dataset_id": there, "split": evaluated} if isinstance(there, str) and _is_id(there) and evaluated else {}
    results = [
        {
            "value": round(value, 2),
            "measure": measure,
            "dataset": f"{named}, {on}",
            "command": f"simclr-hub {command} recipe.yaml",
            **hub,
        }
        for measure, value in measured.items()
    ]
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
    card = trained_card(repo_id, config, classes, record, text, processor=processor)
    (directory / "README.md").write_text(render(card), encoding="utf-8")


def _is_id(name: str) -> bool:
    """Tell whether this is the id of something on the Hub, with its owner, and no folder here."""
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*(@[\w./-]+)?", name)) and not os.path.exists(name)


def last_part(place: Any) -> str:
    """Return a folder's own name; the id of a data set or model as it is."""
    return os.path.basename(os.path.abspath(place)) if os.path.exists(place) else str(place)


DEFAULT_DIRECTORY = Path(str(files("simclr_hub") / "assets" / "default"))
_RECIPES = Path(str(files(__package__) / "recipes"))
_RECORD = ("about", "data", "datasets", "recipe", "trained", "weights", "licence_name", "results", "limits")


def trained_card(
    repo_id: str,
    config: SimCLRConfig,
    classes: int,
    record: Mapping[str, Any],
    recipe: str = "",
    licence: str = "apache-2.0",
    processor: Mapping[str, Any] | None = None,
) -> Card:
    """Make the card of a model trained with this package.

    Args:
        repo_id: "org/name".
        config: its architecture.
        classes: of its classifier; 0 for none.
        record: what results.json holds: `about`, `data`, `trained`, `datasets` (ids on the Hub), `licence_name`, and
            `results`, a list of `Result`'s fields; and `limits`, where it fails, in sentences of Markdown.
        recipe: YAML, as `simclr-hub pretrain` reads it.
        licence: an identifier of the Hub's list.
        processor: preprocessor_config.json.

    Raises:
        PublishError: the record has unknown keys, or a number without a source or command.
    """
    data = record.get("data")
    how = [f"Trained on {data}." if data else "On what it was trained is not recorded."]
    if record.get("trained"):
        how.append(f"{record['trained']}.")
    if recipe:
        how.append(f"The recipe, for `simclr-hub {_command(recipe, classes)}`:")
    return Card(
        name=repo_id.rpartition("/")[2],
        repo_id=repo_id,
        config=config,
        classes=classes,
        about=record.get("about", "A SimCLR model, for use with simclr_hub and transformers."),
        training=" ".join(how),
        datasets=tuple(record.get("datasets", ())),
        recipe=recipe.strip(),
        measured=measured(record),
        limits=tuple(record.get("limits", ())),
        base_model=_bases(recipe),
        task="image-classification" if classes else "image-feature-extraction",
        licence=licence,
        licence_name=record.get("licence_name"),
        processor=processor or {},
    )


def _bases(recipe: str) -> list[str] | None:
    """Return the Hub ids of what a run started from and was taught by; a folder or official name has none."""
    try:
        told = yaml.safe_load(recipe)
    except yaml.YAMLError:  # `publish` takes any
        return None
    named = [told.get(key) for key in ("init_from", "teacher")] if isinstance(told, dict) else []
    found = [name.partition("@")[0] for name in named if isinstance(name, str) and _is_id(name)]
    return list(dict.fromkeys(found)) or None


def _command(recipe: str, classes: int) -> str:
    """Return the command that a recipe is for."""
    return "distill" if re.search("^teacher:", recipe, re.MULTILINE) else "finetune" if classes else "pretrain"


def measured(record: Mapping[str, Any]) -> tuple[Result, ...]:
    """Return the numbers of a record, as `trained_card` takes it.

    Raises:
        PublishError: unknown keys, limits that are no sentences, or a number without a source or command.
    """
    if unknown := record.keys() - _RECORD:
        raise PublishError(f"results: unknown key {', '.join(sorted(unknown))}; there are {', '.join(_RECORD)}")
    if not (isinstance(limits := record.get("limits", []), list) and all(isinstance(line, str) for line in limits)):
        raise PublishError(f"results: limits must be a list of sentences, not {limits!r}")
    try:
        return tuple(Result(**fields) for fields in record.get("results", ()))
    except TypeError as e:  # a field that there is not, or one that is missing
        raise PublishError(f"results: {str(e).removeprefix('Result.__init__() ')}") from e


def recipe_text(name: str) -> str:
    """Return a recipe's YAML, by its name or path, without its comments.

    Raises:
        PublishError: there is none.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _RECIPES / f"{name}.yaml"
    if not path.is_file():
        raise PublishError(f"no recipe {name!r}; give the name of one of this package's, or a path to a .yaml file")
    if path.stat().st_size > 1 << 18:
        raise PublishError(f"{path}: too long for a recipe")
    lines = (re.sub(r"\s+#.*", "", line) for line in path.read_text(encoding="utf-8").splitlines())
    return "\n".join(line for line in lines if line and not line.startswith("#"))


def read_record(path: Path) -> dict[str, Any]:
    """Read results.json of a model directory; empty if there is none.

    Raises:
        PublishError: not JSON, or not keys and values.
    """
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise PublishError(f"{path}: not JSON: {e}") from e
    if not isinstance(record, dict):
        raise PublishError(f"{path}: must have keys ({', '.join(_RECORD)}), not {type(record).__name__}")
    return record


def default_card() -> Card:
    """Make the card of the checkpoint inside the package."""
    config = SimCLRConfig.from_pretrained(DEFAULT_DIRECTORY, local_files_only=True)
    record = read_record(DEFAULT_DIRECTORY / "results.json")
    card = trained_card("org/simclr-default", config, 0, record, recipe_text(record["recipe"]))
    return replace(card, whitening=load_whitening(DEFAULT_DIRECTORY))
