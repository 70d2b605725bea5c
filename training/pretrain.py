"""`simclr-hub pretrain RECIPE [key=value ...]`: read a recipe, train, resume where an earlier run stopped.

A recipe is YAML with three sections, `model` (SimCLRConfig), `views` (Views) and `training` (SimCLRTrainingArguments),
and `data`, `split`, `side`. A setting names a key of `training`, or a dotted key of the others: `views.size=48`.
"""

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers.trainer_utils import get_last_checkpoint, set_seed

from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.errors import RecipeError
from simclr_hub.modeling_simclr import SimCLRModel

from .augmentations import Views
from .data import ImageArray
from .trainer import SimCLRTrainer, SimCLRTrainingArguments

SECTIONS = ("model", "views", "training")
TOP = ("data", "split", "side", "init_from")


def load_recipe(name: str, settings: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe by name or path, with `key=value` settings applied (values are YAML).

    Raises:
        RecipeError: no such recipe, or a setting that is not key=value.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else Path(str(files(__package__) / "recipes" / f"{name}.yaml"))
    if not path.is_file():
        known = sorted(p.name.removesuffix(".yaml") for p in (files(__package__) / "recipes").iterdir())
        raise RecipeError(f"no recipe {name!r}; there are {', '.join(known)}, or give a path to a .yaml file")
    recipe: dict[str, Any] = yaml.safe_load(path.read_text())
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"setting {setting!r} is not key=value")
        section, dot, rest = key.partition(".")
        if dot and section in SECTIONS:
            target, key = recipe.setdefault(section, {}), rest
        else:
            target = recipe if key in TOP else recipe.setdefault("training", {})
        target[key] = yaml.safe_load(value)
    return recipe


def pretrain(name: str, settings: tuple[str, ...] = ()) -> Path:
    """Run a recipe to its end, resuming from its newest complete checkpoint; the directory of the final model.

    Raises:
        RecipeError: the recipe or a setting is wrong, or the data cannot be opened.
    """
    recipe = load_recipe(name, settings)
    if not recipe.get("data"):
        raise RecipeError(f"{name} needs data=FOLDER (class folders or parquet) or a dataset's id on the Hub")
    training = {"output_dir": f"runs/{Path(name).stem}", **recipe.get("training", {})}
    try:
        args = SimCLRTrainingArguments(**training)
        config = SimCLRConfig(**recipe["model"])
        views = Views(**recipe["views"])
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{name}: {e}") from e
    set_seed(args.seed)
    output = Path(args.output_dir)
    data = ImageArray.load(recipe["data"], recipe.get("split", "train"), recipe["side"], output / "cache")
    model = SimCLRModel.from_pretrained(recipe["init_from"]) if recipe.get("init_from") else SimCLRModel(config)
    model = model.to(memory_format=torch.channels_last)
    trainer = SimCLRTrainer(model, args, views, train_dataset=data)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(output) if output.is_dir() else None)
    final = trainer.average.model if trainer.average is not None else trainer.model
    final.save_pretrained(output / "final")
    return output / "final"


if __name__ == "__main__":
    print(pretrain(sys.argv[1], tuple(sys.argv[2:])))
