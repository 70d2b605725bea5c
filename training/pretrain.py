"""`simclr-hub pretrain RECIPE [key=value ...]`: read a recipe, train, resume where an earlier run stopped.

A recipe is YAML with three sections, `model` (SimCLRConfig), `views` (Views) and `training` (SimCLRTrainingArguments),
and `data`, `split`, `side`, `init_from`. A setting names one of these four, a key of `training`, or a dotted key of a
section: `views.size=48`.
"""

import re
import shutil
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import filelock
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers.trainer_utils import get_last_checkpoint, set_seed

from simclr_hub._files import new_directory
from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.errors import RecipeError
from simclr_hub.modeling_simclr import SimCLRModel

from .augmentations import Views
from .data import ImageArray
from .trainer import SimCLRTrainer, SimCLRTrainingArguments

SECTIONS = ("model", "views", "training")
TOP = ("data", "split", "side", "init_from")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-6 for text; people do not."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_recipe(name: str, settings: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe by name or path, with `key=value` settings applied (values are YAML).

    Raises:
        RecipeError: no such recipe, not YAML, an unknown key, or a setting that is not key=value.
    """
    recipes = Path(str(files(__package__) / "recipes"))
    path = Path(name) if name.endswith((".yaml", ".yml")) else recipes / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in recipes.glob("*.yaml")))
        raise RecipeError(f"no recipe {name!r}; there are {known}, or give a path to a .yaml file")
    loaded = _parse(path.read_text(encoding="utf-8"), str(path))
    if not isinstance(loaded, dict):
        raise RecipeError(f"{path}: a recipe has keys ({', '.join(TOP + SECTIONS)}), not {type(loaded).__name__}")
    recipe: dict[str, Any] = {**loaded, **{section: loaded.get(section) or {} for section in SECTIONS}}
    for section in SECTIONS:
        if not isinstance(recipe[section], dict):
            raise RecipeError(f"{path}: {section} must have keys, not {recipe[section]!r}")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals:
            raise RecipeError(f"setting {setting!r} is not key=value")
        section, dot, rest = key.partition(".")
        if dot and section in SECTIONS:
            target, key = recipe[section], rest
        else:
            target = recipe if key in TOP else recipe["training"]
        target[key] = _parse(value, setting)
    unknown = sorted(map(str, recipe.keys() - {*TOP, *SECTIONS}))
    if unknown:
        raise RecipeError(f"{path}: unknown key {', '.join(unknown)}; a recipe has {', '.join(TOP + SECTIONS)}")
    return recipe


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as e:
        raise RecipeError(f"{name}: not YAML: {' '.join(str(e).split())}") from e


def pretrain(name: str, settings: tuple[str, ...] = ()) -> Path:
    """Run a recipe to its end, resuming from its newest complete checkpoint; the directory of the final model.

    Raises:
        RecipeError: the recipe or a setting is wrong, the data cannot be opened, or another process runs in
            the same output directory.
        ImageError: an image of the data is broken; names it.
    """
    recipe = load_recipe(name, settings)
    side, init_from = recipe.get("side"), recipe.get("init_from")
    if not recipe.get("data"):
        raise RecipeError(f"{name} needs data=FOLDER (class folders or parquet) or a dataset's id on the Hub")
    if not isinstance(side, int) or side < 1:
        raise RecipeError(f"{name}: side={side} must be a whole number of pixels, the side that images are kept at")
    output = Path(str(recipe["training"].get("output_dir") or f"runs/{Path(name).stem}"))
    try:
        args = SimCLRTrainingArguments(**{**recipe["training"], "output_dir": str(output)})
        config = SimCLRConfig(**recipe["model"])
        views = Views(**recipe["views"])
    except (StrictDataclassError, TypeError, ValueError) as e:
        reason = " ".join(str(e.__cause__ or e).split())  # a strict error's own text is the whole config
        raise RecipeError(f"{name}: {reason}") from e
    output.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(output / ".lock", timeout=0):
            for unfinished in output.glob(".checkpoint-*"):  # what a kill left of a checkpoint being written
                shutil.rmtree(unfinished)
            data = ImageArray.load(str(recipe["data"]), str(recipe.get("split", "train")), side, output / "cache")
            if len(data) < args.train_batch_size:  # the last, smaller batch is dropped: nothing would train
                raise RecipeError(
                    f"data={recipe['data']}: {len(data)} images are fewer than a batch; "
                    f"set per_device_train_batch_size={len(data)} or less"
                )
            set_seed(args.seed)
            return _train(data, views, args, _model(config, init_from), output)
    except filelock.Timeout as e:
        raise RecipeError(f"another process trains in {output}; wait for it, or set another output_dir=") from e


def _model(config: SimCLRConfig, init_from: str | None) -> SimCLRModel:
    if not init_from:
        return SimCLRModel(config)
    try:
        model: SimCLRModel = SimCLRModel.from_pretrained(init_from, dtype=torch.float32)
    except (OSError, ValueError) as e:
        raise RecipeError(f"init_from={init_from}: {e}") from e
    return model


def _train(data: ImageArray, views: Views, args: SimCLRTrainingArguments, model: SimCLRModel, output: Path) -> Path:
    torch.nn.Module.to(model, memory_format=torch.channels_last)
    trainer = SimCLRTrainer(model, args, views, train_dataset=data)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)))
    result = model if trainer.average is None else trainer.average.model
    final = output / "final"
    if final.exists():  # of a shorter run that this one went on from; a kill here costs a rerun nothing but the resume
        shutil.rmtree(final)
    with new_directory(final) as partial:
        result.save_pretrained(partial)
    return final


if __name__ == "__main__":
    print(pretrain(sys.argv[1], tuple(sys.argv[2:])))
