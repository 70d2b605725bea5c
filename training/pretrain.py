"""`simclr-hub pretrain RECIPE [key=value ...]`: read a recipe, train, resume where an earlier run stopped.

A recipe is YAML with three sections, `model` (SimCLRConfig), `views` (Views) and `training` (SimCLRTrainingArguments),
and the keys of `KINDS`. A setting names one of these, a key of `training`, or a dotted key of a section:
`views.size=48`.
What stands below `gpu` replaces the rest where there is a CUDA GPU.

Many GPUs: `torchrun --nproc-per-node=8 -m simclr_hub.training.pretrain RECIPE key=value ...`.
"""

import dataclasses
import json
import math
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import click
import filelock
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import TrainerCallback
from transformers.trainer_utils import IntervalStrategy, get_last_checkpoint, set_seed
from transformers.utils import logging

from simclr_hub._files import check_place, new_directory
from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.errors import CheckpointError, RecipeError
from simclr_hub.image_processing_simclr import SimCLRImageProcessor
from simclr_hub.images import describe
from simclr_hub.loading import load, weights_hash
from simclr_hub.modeling_simclr import SimCLRModel
from simclr_hub.scan import Rules

from .augmentations import Views
from .data import ImageArray, ImageViews
from .monitor import draw_curves
from .protocols import interval
from .trained_cards import write_record
from .trainer import KIND_OF, RunArguments, SimCLRTrainer, SimCLRTrainingArguments, check_settings, shown, unknown

logger = logging.get_logger(__name__)

SECTIONS = ("model", "views", "training")
#: Types that a value may have, of its own or in a list if `list` is among them; and these in words.
Kind = tuple[tuple[type, ...], str]
TEXT: Kind = ((str,), "text")
TEXTS: Kind = ((str, list), "text, in quotes if need be, or a list of texts")
KINDS: dict[str, Kind] = {
    # a folder or a dataset's id on the Hub, or a list of them, which are joined
    "data": TEXTS,
    "split": TEXT,
    # labelled images whose neighbours among those of `split` are looked up at each evaluation
    "eval_split": TEXT,
    # patterns of files and folders to leave out of a folder
    "exclude": TEXTS,
    # whether hidden files and folders are read
    "include_hidden": ((bool,), "true or false"),
    # images are kept decoded at side x side; null: decoded from the originals at every epoch, by workers
    "side": ((int,), "a whole number of pixels, or null for the originals"),
    # a model's name, directory or Hub id to start from
    "init_from": TEXT,
}


@dataclasses.dataclass(frozen=True)
class Form:
    """What the recipes of one command may say.

    Attributes:
        command: its name.
        kinds: of the keys that stand beside the sections.
        arguments: of the section `training`.
    """

    command: str
    kinds: Mapping[str, Kind]
    arguments: type[RunArguments]

    def is_text(self, key: str) -> bool:
        """Tell whether the value of a setting is taken as text, whatever it looks like."""
        return str in self.kinds[key][0] if key in self.kinds else KIND_OF.get(key) == "text"

    def has(self, recipe: str) -> bool:
        """Tell whether a shipped recipe is of the command, by its name."""
        return next((name for name in ("finetune", "distill") if name in recipe), "pretrain") == self.command


PRETRAIN = Form("pretrain", KINDS, SimCLRTrainingArguments)
#: Bytes of a recipe, and images' sides in it, in pixels.
RECIPE_LIMIT, LARGEST_SIDE = 1 << 18, 2048


class _Loader(yaml.SafeLoader):
    """YAML 1.1 takes 1e-6 for text and `no` for false; people do not.

    Nor has a recipe aliases, with which a few lines become gigabytes, or a key twice.
    """

    yaml_implicit_resolvers = {
        first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not read; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        found = super().construct_mapping(node, deep)
        if len(found) < len(node.value):
            raise yaml.YAMLError("a key is there twice")
        return found


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false|True|False)$"), list("tfTF"))


def full_name(name: str, form: Form) -> str:
    """Return a shipped recipe's name, which may be given without its command: `finetune photos` is finetune_photos."""
    there = (files(__package__) / "recipes" / f"{form.command}_{name}.yaml").is_file()
    return f"{form.command}_{name}" if there else name


def load_recipe(name: str, settings: tuple[str, ...] = (), form: Form = PRETRAIN) -> dict[str, Any]:
    """Load a recipe by name or path and apply `key=value` settings (values are YAML).

    Raises:
        RecipeError: no such recipe, not YAML, an unknown key, a setting that is not key=value, a value of another kind
            than its key's, or what a recipe may not do: upload, report, or write outside the current folder.
    """
    recipes = Path(str(files(__package__) / "recipes"))
    path = Path(name) if name.endswith((".yaml", ".yml")) else recipes / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in recipes.glob("*.yaml") if form.has(p.stem)))
        raise RecipeError(f"no recipe {name!r}; there are {known}, or give a path to a .yaml file")
    if (size := path.stat().st_size) > RECIPE_LIMIT:
        raise RecipeError(f"{path}: {size:,} bytes, more than the {RECIPE_LIMIT:,} of a recipe")
    try:
        text = path.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise RecipeError(f"{path}: cannot be read as text: {e}") from e
    recipe = _sections(_parse(text, str(path)), f"{path}", (*form.kinds, "gpu"))
    on_gpu = _sections(recipe.pop("gpu", None) or {}, f"{path}: gpu", tuple(form.kinds))
    if torch.cuda.is_available():
        recipe = {**recipe, **{k: {**recipe[k], **v} if k in SECTIONS else v for k, v in on_gpu.items()}}
    for part in (recipe, on_gpu):
        _check(part, str(path), form)
        output = Path(str(part["training"].get("output_dir", ".")))
        if output.is_absolute() or ".." in output.parts or str(output).startswith("~"):  # whose `final` is replaced
            raise RecipeError(
                f"{path}: output_dir={shown(str(output))} leads out of the current folder; give it as a setting"
            )
    for setting in settings:
        key, value = key_and_value(setting)
        section, dot, rest = key.partition(".")
        if dot and section in SECTIONS:
            target, key = recipe[section], rest
        else:
            target = recipe if key in form.kinds else recipe["training"]
        target[key] = _text(value) if form.is_text(key) else _parse(value, setting)
    _check(recipe, name, form)
    return recipe


def _check(recipe: dict[str, Any], name: str, form: Form) -> None:
    """Refuse keys that no section has and values that make no sense, by name.

    Raises:
        RecipeError: there is one.
    """
    views = {field.name for field in dataclasses.fields(Views) if field.init}
    model = {key for key in SimCLRConfig.__annotations__ if not key.startswith("_")}
    try:
        for section, keys in (("views", views), ("model", model)):
            for key in recipe[section]:
                if key not in keys:
                    raise RecipeError(unknown(f"key in {section}", key, keys))
        others = {*form.kinds, *(f"views.{key}" for key in views), *(f"model.{key}" for key in model)}
        check_settings(recipe["training"], form.arguments, others)
        for key in form.kinds:
            check_kind(key, recipe.get(key), form.kinds)
        for key, value, largest in (
            ("side", recipe.get("side"), LARGEST_SIDE),
            ("views.size", recipe["views"].get("size"), LARGEST_SIDE),
            ("views.count", recipe["views"].get("count"), 64),
        ):
            if isinstance(value, (int, float)) and not 1 <= value <= largest:
                raise RecipeError(f"{key}={shown(value)} must lie between 1 and {largest:,}")
    except RecipeError as e:
        raise RecipeError(f"{name}: {e}") from e


def key_and_value(setting: str) -> tuple[str, str]:
    """Take a setting apart.

    Raises:
        RecipeError: it is not key=value.
    """
    key, equals, value = setting.partition("=")
    if not equals:
        raise RecipeError(f"setting {setting!r} is not key=value")
    return key, value


def check_kind(key: str, value: Any, kinds: Mapping[str, Kind]) -> None:
    """Refuse a value of another kind than its key's; None is of every kind.

    Raises:
        RecipeError: it is.
    """
    types, allowed = kinds[key]
    listed = value if isinstance(value, list) and list in types else [value]
    if not all(type(one) in (*types, type(None)) for one in listed) or list in map(type, listed):
        raise RecipeError(f"{key}={shown(value)} must be {allowed}")


def _sections(loaded: Any, name: str, allowed: tuple[str, ...]) -> dict[str, Any]:
    """Return what was read, with all three sections there.

    Raises:
        RecipeError: it has other keys, or none.
    """
    allowed = (*allowed, *SECTIONS)
    if not isinstance(loaded, dict):
        raise RecipeError(f"{name}: a recipe has keys ({', '.join(allowed)}), not {type(loaded).__name__}")
    unknown = sorted(map(str, loaded.keys() - set(allowed)))
    if unknown:
        raise RecipeError(f"{name}: unknown key {', '.join(unknown)}; a recipe has {', '.join(allowed)}")
    recipe: dict[str, Any] = {**loaded, **{section: loaded.get(section) or {} for section in SECTIONS}}
    for section in SECTIONS:
        if not isinstance(recipe[section], dict):
            raise RecipeError(f"{name}: {section} must have keys, not {recipe[section]!r}")
    return recipe


def _text(value: str) -> str | list[Any] | None:
    """Read a setting whose value is text or a list of texts: a folder may be called 2019 or [2019] Trip."""
    try:
        found = yaml.load(value, yaml.BaseLoader)
    except yaml.YAMLError:
        return value
    if found in (None, "", "null", "~"):
        return None
    return found if isinstance(found, (str, list)) else value


def _parse(text: str, name: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as e:  # ValueError: digits without end, a 31st of February
        raise RecipeError(f"{name}: not YAML: {' '.join(str(e).split())}") from e


def pretrain(name: str, settings: tuple[str, ...] = ()) -> Path:
    """Run a recipe to its end, resuming from its newest complete checkpoint; the directory of the final model.

    Raises:
        RecipeError: the recipe or a setting is wrong, the data cannot be opened, or another process runs in
            the same output directory.
        OutputError: the output directory lies among the images.
        TrainingError: the loss is no longer a number; names the step.
    """
    recipe = load_recipe(name, settings)
    if not recipe.get("data"):
        raise RecipeError(f"{name} needs data=FOLDER (images, class folders or parquet) or a dataset's id on the Hub")
    output = Path(str(recipe["training"].get("output_dir") or f"runs/{Path(name).stem}"))
    check_place(output, _listed(recipe["data"]))
    try:
        args = SimCLRTrainingArguments(**{**recipe["training"], "output_dir": str(output)})
        views = Views(**recipe["views"])
        model, _ = start_model(recipe["model"], recipe.get("init_from"), args.seed)
    except RecipeError as e:
        raise RecipeError(f"{name}: {e}") from e
    except (StrictDataclassError, TypeError, ValueError) as e:
        reason = " ".join(str(e.__cause__ or e).split())  # a strict error's own text is the whole config
        raise RecipeError(f"{name}: {reason}") from e
    with alone_in(output, args):
        with args.main_process_first(desc="decoding"):
            train, evaluation = _data(recipe, views, args, output)
        return _train(train, evaluation, views, args, model, output, recipe)


@contextmanager
def alone_in(output: Path, args: RunArguments) -> Iterator[None]:
    """Make a run's directory, keep other runs out of it, and clear away what a kill left of a checkpoint.

    Raises:
        RecipeError: another process runs in it.
    """
    output.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(output / ".lock", timeout=0)
    try:
        with lock if args.process_index == 0 else nullcontext():
            if args.process_index == 0:
                for unfinished in output.glob(".checkpoint-*"):
                    shutil.rmtree(unfinished)
            yield
    except filelock.Timeout as e:
        raise RecipeError(f"another process trains in {output}; wait for it, or set another output_dir=") from e


def _data(
    recipe: dict[str, Any], views: Views, args: SimCLRTrainingArguments, output: Path
) -> tuple[ImageArray | ImageViews, ImageArray | ImageViews | None]:
    """Open what to train on, and what to evaluate with if the recipe says so and it has labels."""
    source, split, side = _sources(recipe["data"]), str(recipe.get("split") or "train"), recipe.get("side")
    rules, log = rules_of(recipe), output / "unreadable.txt"
    train: ImageArray | ImageViews
    if side is None:
        train = ImageViews(source, split, views, args.seed, log, rules)
    else:
        train = ImageArray.load(source, split, side, output / "cache", rules)
        if args.process_index == 0:
            log.write_text("".join(f"{line}\n" for line in train.unreadable), encoding="utf-8")
            _tell_unreadable(log)
    if len(train) < args.train_batch_size * args.world_size:  # the last, smaller batch is dropped: none would train
        advice = f"set batch_size={len(train)} or less" if len(train) > 1 else "add images: 2 are the least"
        raise RecipeError(f"data={recipe['data']}: {len(train)} images are fewer than a batch; {advice}")
    eval_split = recipe.get("eval_split")
    if not eval_split or train.labels is None:
        return train, None
    first = source if isinstance(source, str) else source[0]  # whose classes come first among the joined ones
    if side is None:
        return train, ImageViews(first, str(eval_split), views, args.seed, log, rules)
    return train, ImageArray.load(first, str(eval_split), side, output / "cache", rules)


def rules_of(settings: Mapping[str, Any]) -> Rules:
    """Return what is left out of a folder, by the keys `exclude` and `include_hidden`.

    Raises:
        RecipeError: a pattern that is none.
    """
    try:
        return Rules(_listed(settings.get("exclude")), bool(settings.get("include_hidden")))
    except ValueError as e:
        raise RecipeError(str(e)) from e


def _sources(data: Any) -> str | list[str]:
    """Return what a recipe's `data` names: one source of images, or several."""
    return [str(source) for source in data] if isinstance(data, list) else str(data)


def _tell(train: ImageArray | ImageViews, args: SimCLRTrainingArguments, views: Views, output: Path) -> None:
    """Say on stderr what is trained on and how long."""
    unreadable = len(train.unreadable) if isinstance(train, ImageArray) else 0
    listed = f" ({output / 'unreadable.txt'} lists them)" if unreadable else ""
    later = "" if isinstance(train, ImageArray) else "; read at every epoch, the unreadable are told at the end"
    classes = f"{len(set(map(int, train.labels))):,} classes" if train.labels is not None else "no labels"
    for note in train.notes:
        _say(note)
    found = f"{len(train) + unreadable:,} images found, {len(train):,} used, {unreadable:,} unreadable"
    _say(f"{found}{listed}{later}; {classes}")
    an_epoch = len(train) // (args.global_batch * args.gradient_accumulation_steps)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * an_epoch)
    epochs = f"{steps / max(an_epoch, 1):.3g} epochs"
    _say(f"{steps:,} steps of {args.global_batch:,} images in {views.count} views, {epochs}")


class Pace(TrainerCallback):
    """Says how long the run will take, after its first steps."""

    MEASURED = 3  # steps, after one to warm up

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time."""
        self.steps = getattr(self, "steps", -1) + 1
        if self.steps == 0:
            self.started = time.monotonic()
        elif self.steps == self.MEASURED and state.max_steps > state.global_step:
            each = (time.monotonic() - self.started) / self.steps
            left = timedelta(seconds=round(each * (state.max_steps - state.global_step)))
            _say(f"{each:.2g} s a step: about {left} for the {state.max_steps - state.global_step:,} that are left")


def _say(line: str) -> None:
    click.echo(describe(line), err=True)


def _listed(value: Any) -> tuple[str, ...]:
    """Return one text, or a list of them, as a tuple."""
    return tuple(map(str, value)) if isinstance(value, list) else () if value is None else (str(value),)


def _tell_unreadable(log: Path) -> None:
    """Warn of the images that `log` lists, each once, although workers add them at every epoch."""
    lines = dict.fromkeys(log.read_text(encoding="utf-8").splitlines()) if log.exists() else {}
    if lines:
        log.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        logger.warning(f"{len(lines)} images could not be read and are left out; {log} lists them")
    else:
        log.unlink(missing_ok=True)


def start_model(section: dict[str, Any], init_from: str | None, seed: int) -> tuple[SimCLRModel, SimCLRImageProcessor]:
    """Make a new model, or one that starts from another's encoder, and from its g if that has the same shape.

    Returns:
        It, and the processor of what it starts from.

    Raises:
        RecipeError: what it should start from cannot be loaded, or is another encoder than the section's.
    """
    set_seed(seed)
    if not init_from:
        model = SimCLRModel(SimCLRConfig(**section))
        return model, SimCLRImageProcessor(size=model.config.image_size)
    try:
        start, processor = load(init_from)
    except CheckpointError as e:
        raise RecipeError(f"init_from={init_from}: {e}") from e
    model = SimCLRModel(SimCLRConfig(**{**start.config.to_diff_dict(), **section}))
    if "image_size" in section:
        processor.size = {"height": model.config.image_size, "width": model.config.image_size}
    try:
        model.encoder.load_state_dict(start.encoder.state_dict())
    except RuntimeError as e:
        raise RecipeError(f"init_from={init_from} is another encoder than the recipe's section model") from e
    ours, theirs = model.projection.state_dict(), start.projection.state_dict()
    if {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}:
        model.projection.load_state_dict(theirs)
    return model, processor


def _train(
    train: ImageArray | ImageViews,
    evaluation: ImageArray | ImageViews | None,
    views: Views,
    args: SimCLRTrainingArguments,
    model: SimCLRModel,
    output: Path,
    recipe: dict[str, Any],
) -> Path:
    torch.nn.Module.to(model, memory_format=torch.channels_last)
    if evaluation is None:
        args.eval_strategy = IntervalStrategy.NO
    trainer = SimCLRTrainer(model, args, views, train_dataset=train, eval_dataset=evaluation)
    if args.process_index == 0:
        _tell(train, args, views, output)
        trainer.add_callback(Pace())
    before = _before(trainer, model, output, recipe) if args.process_index == 0 else None
    set_seed(args.seed + args.process_index)  # each process draws its own views
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(output)))
    trainer.check_finite()
    knn = trainer.evaluate().get("eval_knn") if evaluation is not None else None
    if before is not None and knn is None:
        knn = trainer.knn()[0]
    final = output / "final"
    if args.process_index == 0:
        _tell_unreadable(output / "unreadable.txt")
        draw_curves(trainer.state.log_history, output / "curves.png", output.name)
        if final.exists():  # of a shorter run that this one went on from; a kill here costs a rerun only the resume
            shutil.rmtree(final)
        with new_directory(final) as partial:
            trainer.result.save_pretrained(partial)
            SimCLRImageProcessor(size=model.config.image_size).save_pretrained(partial)
            state, average = trainer.state, f", weights averaged with a decay of {args.ema_decay}"
            of = f"{args.global_batch} images" + (f" in {views.count} views" if views.count > 2 else "")
            trained = f"{state.global_step:,} steps of {of}, {state.epoch:.3g} epochs"
            trained += average if args.ema_decay else ""
            on = "every tenth image" if evaluation is None else f"split {recipe.get('eval_split')}"
            measured = {}
            if before is not None and knn is not None:
                what = "accuracy of nearest neighbours (%), among the images it was trained on"
                measured = {what: knn, f"{what}, before training": before[0]}
                low, high = interval(knn, before[1])
                _say(
                    f"nearest neighbours, {before[1]:,} images of {on}: {before[0]:.2f} % before training, "
                    f"{knn:.2f} % [{low:.1f}, {high:.1f}] after"
                )
            write_record(partial, output.name, recipe, trained, len(train), measured, on)
    return final


def _before(
    trainer: SimCLRTrainer, model: SimCLRModel, output: Path, recipe: Mapping[str, Any]
) -> tuple[float, int] | None:
    """Measure the weights that training starts from, where there are labels; a run that is gone on with reads it.

    Returns:
        The nearest neighbours' accuracy in percent, and on how many images; None without two classes.
    """
    labels = trainer.train_dataset.labels
    if labels is None or len(trainer.train_dataset) < 10 or min(labels) < 0 or len(set(map(int, labels))) < 2:
        return None
    data = [recipe["data"], recipe.get("split"), recipe.get("eval_split"), len(trainer.train_dataset)]
    key, path = {"weights": weights_hash(model), "data": data}, output / "before.json"
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        if kept["of"] == key:
            return float(kept["knn"]), int(kept["images"])
    except (OSError, ValueError, TypeError, LookupError):  # not yet there, or half written
        pass
    knn, images = trainer.knn()
    path.write_text(json.dumps({"of": key, "knn": knn, "images": images}), encoding="utf-8")
    return knn, images


if __name__ == "__main__":
    print(pretrain(sys.argv[1], tuple(sys.argv[2:])))
