"""`simclr-hub finetune RECIPE data=FOLDER init_from=MODEL [key=value ...]`: a classifier from few labels, resumable.

A recipe is pretraining's, with the keys of `FINETUNE` beside the sections and `ClassifierArguments` in `training`.

Many GPUs: `torchrun --nproc-per-node=8 -m simclr_hub.training.finetune RECIPE key=value ...`.
"""

import copy
import json
import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from torch.utils.data import SequentialSampler
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, get_last_checkpoint, set_seed

from simclr_hub._files import check_place, new_directory
from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.errors import RecipeError
from simclr_hub.image_processing_simclr import SimCLRImageProcessor
from simclr_hub.labels import sure_above
from simclr_hub.modeling_simclr import SimCLRForImageClassification, SimCLRModel
from simclr_hub.pixels import normalize_pixels

from .augmentations import Views
from .draws import Draws, Evaluation
from .labelled import Part, open_parts
from .logistic import choose_method, fit_photos
from .monitor import draw_curves
from .optimization import official_steps, warmup_cosine
from .pretrain import (
    KINDS,
    TEXT,
    TEXTS,
    Form,
    Pace,
    _listed,
    _say,
    _tell_unreadable,
    alone_in,
    full_name,
    load_recipe,
    start_model,
)
from .protocols import interval
from .supervised import (
    HEADS,
    TRAINED_FROM,
    choose_trained,
    start_from_zeros,
    supervised_loss,
    training_logits,
    training_mode,
)
from .trained_cards import write_record
from .trainer import RunArguments, RunTrainer

CLASS_WEIGHTS = ("none", "balanced")


@dataclass
class ClassifierArguments(RunArguments):
    """The arguments of fine-tuning.

    Args:
        projection_layer: what the classifier sits on: 0 for h, j for g's layer j; the official `ft_proj_selector`.
        trained_from: the first part that learns: "stem", "stage1" to "stage4", or "classifier".
        head: "frozen" or "trained": whether g's layers below the classifier learn. The official TF1 code, which made
            the released checkpoints, never moves them; TF2 and the v2 paper train them.
        class_weights: "none", or "balanced": each class counts alike, however few images it has.
        patience: evaluations without a better top-1 after which the run ends with the best weights; 0: it runs to its
            end and keeps the last.

    Raises:
        RecipeError: a value out of range.
    """

    command: ClassVar[str] = "finetune"

    projection_layer: int = field(default=0)
    trained_from: str = field(default="stem")
    head: str = field(default="frozen")
    class_weights: str = field(default="none")
    patience: int = field(default=0)

    def __post_init__(self) -> None:
        for name, allowed in (("trained_from", TRAINED_FROM), ("head", HEADS), ("class_weights", CLASS_WEIGHTS)):
            if getattr(self, name) not in allowed:
                raise RecipeError(f"{name}={getattr(self, name)} is not one of {', '.join(allowed)}")
        self.check(projection_layer=self.projection_layer >= 0, patience=self.patience >= 0)
        super().__post_init__()
        if self.patience and self.eval_strategy == IntervalStrategy.NO:
            raise RecipeError(f"patience={self.patience} needs evaluations: set eval_strategy=epoch")

    @property
    def global_batch(self) -> int:
        """Return the images in a step, over all processes, and over the passes whose gradients are accumulated."""
        return int(super().global_batch * self.gradient_accumulation_steps)


FINETUNE = Form(
    "finetune",
    {
        **KINDS,
        # labels that are used: all; 1%, 10%; a number for each class; a file of file names
        "labels": ((str, int), "a share such as 10%, a number for each class, or a file of file names"),
        # the images to evaluate on, if they are not a split of `data`
        "eval_data": TEXTS,
        "eval_split": TEXT,  # validation, else test, else a tenth of each class is held out
        "method": TEXT,  # logistic, network, or auto, which chooses by how many labels there are; see `logistic`
    },
    ClassifierArguments,
)


@torch.no_grad()
def predictions(model: nn.Module, evaluation: Evaluation) -> tuple[Tensor, Tensor]:
    """Return the logits (N, C) and classes (N,) of the images that can be read.

    Raises:
        RecipeError: none of the images can be read.
    """
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    logits, labels = [], []
    for pixels, classes in evaluation.batches():
        logits.append(model(pixels.to(device, memory_format=torch.channels_last)).logits.float().cpu())
        labels.append(classes)
    model.train(was_training)
    if not logits:
        raise RecipeError(
            f"none of the images to evaluate on can be read: {next(iter(evaluation.part.unreadable.values()))}"
        )
    return torch.cat(logits), torch.cat(labels)


def measured(scores: Tensor, of: Tensor) -> tuple[dict[str, float], int]:
    """Measure top-1, with more than five classes top-5, in percent, and the mean cross entropy; and of how many.

    Args:
        scores: logits (N, C).
        of: the classes (N,).
    """
    found = {
        f"top{k}": 100 * float((scores.topk(k).indices == of[:, None]).any(1).double().mean())
        for k in ((1, 5) if scores.shape[1] > 5 else (1,))
    }
    return {**found, "loss": float(F.cross_entropy(scores, of))}, len(of)


class ClassifierTrainer(RunTrainer):
    """Fine-tunes a classifier; `choose_trained` has said which of its weights learn.

    Batches hold "images", uint8 (N, 3, side, side), or crops of them as "pixels", (N, 3, size, size); and "labels".
    """

    args: ClassifierArguments
    needed = ("best",)

    @property
    def classes(self) -> int:
        """Return the classes of the result; 0 if it is an encoder."""
        return int(self.result.classifier.out_features)

    def __init__(
        self,
        model: SimCLRForImageClassification,
        args: ClassifierArguments,
        views: Views,
        processor: SimCLRImageProcessor | None = None,
        weights: Tensor | None = None,
        **kwargs: Any,
    ):
        """Prepare a run.

        Args:
            model: the classifier.
            args: of the run.
            views: one of which is drawn of each image.
            processor: whose mean and std the model wants, if any.
            weights: (C,), of the classes.
            **kwargs: of transformers' Trainer; its eval_dataset is an `Evaluation`.
        """
        super().__init__(model, args, **kwargs)
        self.views, self.processor = views, processor
        self.weights = None if weights is None else weights.to(args.device)
        self.best = copy.deepcopy(self.result).requires_grad_(False).eval() if args.patience else None

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(self.train_dataset)  # its order is the run's own

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> Any:
        """Make the official cosine, which reaches 0 where the run ends, after `warmup_steps`."""
        if self.lr_scheduler is None:
            optimizer = optimizer or self.create_optimizer()
            self.lr_scheduler = warmup_cosine(optimizer, int(self.args.warmup_steps), num_training_steps)
        return self.lr_scheduler

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Tensor], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Compute the loss of crops of images."""
        training_mode(self.accelerator.unwrap_model(model))
        pixels = inputs["pixels"] if "pixels" in inputs else self.views(inputs["images"])
        seen = pixels
        if self.processor is not None and self.processor.do_normalize:
            seen = normalize_pixels(pixels, self.processor.image_mean, self.processor.image_std)
        logits = training_logits(model, seen.contiguous(memory_format=torch.channels_last))
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss, watched = self._loss(logits, {**inputs, "pixels": pixels})
        self.monitor.count(self.state.global_step + 1, loss.detach(), watched, len(pixels))
        return (loss, {"logits": logits}) if return_outputs else loss

    def _loss(self, logits: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of logits (N, C), and what is watched, from a batch whose "pixels" are in [0, 1]."""
        labels = inputs["labels"]
        loss = supervised_loss(logits, labels, None if self.weights is None else self.weights[labels])
        return loss, {"top1": agreement(logits, labels)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was watched since the last log."""
        if "loss" in logs and (found := self.monitor.taken()):  # of training
            found["images_per_second"] *= self.args.world_size
            if self.args.world_size > 1:
                del found["loss"]  # of this process's images alone; the Trainer's is of all
            logs.update(found)
        super().log(logs, start_time)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure top-1 and top-5 in percent; with `patience` keep the best weights, and end where none get better."""
        last = self.state.log_history[-1] if self.state.log_history else {}
        known = {key: value for key, value in last.items() if key.startswith("eval_")}
        if known and last["step"] == self.state.global_step:  # the Trainer asks twice at the end
            return known
        found: list[dict[str, float]] = [{}]
        if self.args.process_index == 0:
            found = [{f"eval_{key}": value for key, value in self.measure()[0].items()}]
        [metrics] = broadcast_object_list(found)
        self.log(metrics)
        if self.best is not None:
            since = since_best(self.state.log_history)
            if since == 0:
                self.best.load_state_dict(self.result.state_dict())
            self.control.should_training_stop |= since >= self.args.patience
        return metrics

    def measure(self, model: nn.Module | None = None) -> tuple[dict[str, float], int]:
        """Measure the result so far, or another model, on the images to evaluate on; and of how many."""
        model = model or self.result
        scores, of = predictions(model, self.eval_dataset)
        right = (scores.argmax(1) == of).numpy()
        model.config.sure_above = sure_above(scores.softmax(1).amax(1).numpy(), right)  # type: ignore[union-attr]
        return measured(scores, of)

    def told(self, found: Mapping[str, float], n: int) -> dict[str, float]:
        """Return what was measured at the end, in words."""
        chosen = ", the best of several evaluations on these same images" if self.chosen else ""
        return {
            "top-{} accuracy (%), 95 % interval {:.1f} to {:.1f}".format(key[3:], *interval(value, n)) + chosen: value
            for key, value in found.items()
            if key != "loss"
        }

    @property
    def chosen(self) -> bool:
        """Tell whether the best weights of several evaluations were kept."""
        return self.best is not None and any("eval_top1" in entry for entry in self.state.log_history)

    def finished(self) -> PreTrainedModel:
        """Return what is saved at the end."""
        found: PreTrainedModel = self.best if self.best is not None and self.chosen else self.result
        return found

    def _parts(self) -> Iterator[tuple[str, nn.Module]]:
        if self.best is not None:
            yield "best", self.best


def agreement(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the share of logits (N, C) whose largest is of the class in labels (N,)."""
    return (logits.detach().argmax(1) == labels).float().mean()


def since_best(log: Sequence[Mapping[str, float]]) -> int:
    """Count the evaluations since the best top-1, the first of equal ones; 0 if the last is it."""
    values = [entry["eval_top1"] for entry in log if "eval_top1" in entry]
    return len(values) - 1 - values.index(max(values)) if values else 0


def class_weights(labels: np.ndarray, classes: int) -> Tensor:
    """Return weights (C,) by which each class counts alike, 1 on the mean over the images; 0 without images."""
    counts = torch.from_numpy(np.bincount(labels, minlength=classes)).double()
    weights = torch.where(counts > 0, len(labels) / (counts * (counts > 0).sum()), 0.0)
    return weights.float()


def finetune(name: str, settings: tuple[str, ...] = ()) -> Path:
    """Run a recipe to its end, resuming from its newest complete checkpoint; the directory of the classifier.

    Raises:
        RecipeError: the recipe or a setting is wrong, the data cannot be opened or has no labels, or another process
            runs in the same output directory.
        OutputError: the output directory lies among the images.
        TrainingError: the loss is no longer a number; names the step.
    """
    name = full_name(name, FINETUNE)
    recipe = load_recipe(name, settings, FINETUNE)
    if not recipe.get("data"):
        raise RecipeError(f"{name} needs data=FOLDER (class folders or parquet) or a dataset's id on the Hub")
    output = Path(str(recipe["training"].get("output_dir") or f"runs/{Path(name).stem}"))
    check_place(output, [*_listed(recipe["data"]), *_listed(recipe.get("eval_data"))])
    try:
        args = ClassifierArguments(**{**recipe["training"], "output_dir": str(output)})
        start, processor = start_model(recipe["model"], recipe.get("init_from"), args.seed)
        layers = start.config.projection_layers
        if args.projection_layer > layers:
            raise RecipeError(f"projection_layer={args.projection_layer}: the model's g has {layers} layers; 0 is h")
        size = processor.size["height"]
        views = Views(**{"size": size, "operations": ("crop", "flip"), **recipe["views"]})
        method, why = choose_method(recipe, args.seed)
    except RecipeError as e:
        raise RecipeError(f"{name}: {e}") from e
    except (StrictDataclassError, TypeError, ValueError) as e:
        raise RecipeError(f"{name}: {' '.join(str(e.__cause__ or e).split())}") from e
    if recipe.get("method"):
        _say(why)
    if method == "logistic":
        with alone_in(output, args):
            return fit_photos(recipe, output, args.seed, balanced=args.class_weights == "balanced")
    given = {"split": "train", "labels": None, "eval_data": None, "eval_split": None, **recipe, "seed": args.seed}
    labels = given["labels"]
    train, evaluation, classes, notes = open_parts({**given, "labels": None if labels is None else str(labels)})
    model = classifier_on(start, classes, args.projection_layer)
    try:
        choose_trained(model, args.trained_from, args.head)
    except ValueError as e:
        raise RecipeError(f"{name}: {e}") from e
    with alone_in(output, args):
        if args.process_index == 0:
            for note in notes:
                _say(note)
        with args.main_process_first(desc="decoding"):
            first = args.local_process_index == 0
            draws = Draws(train, args.data_seed or 0, recipe.get("side"), views, output, decodes=first)
        plan(args, len(draws.places))
        draws.count = args.max_steps * args.global_batch
        weights = class_weights(draws.labels, len(classes)) if args.class_weights == "balanced" else None
        data = {"train_dataset": draws, "eval_dataset": Evaluation(evaluation, processor)}
        trainer = ClassifierTrainer(model, args, views, processor, weights, **data)
        return run(trainer, train, output, recipe, processor)


def classifier_on(start: SimCLRModel, classes: Sequence[str], layer: int = 0) -> SimCLRForImageClassification:
    """Make a classifier, starting from zeros, on h or on a layer of g of a model."""
    names = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
    model = SimCLRForImageClassification(
        SimCLRConfig(
            **{**start.config.to_diff_dict(), "classifier_normalized": False, "sure_above": None}
            | {"classifier_layer": layer, **names}
        )
    )
    model.simclr.load_state_dict(start.state_dict())
    start_from_zeros(model.classifier)
    torch.nn.Module.to(model, memory_format=torch.channels_last)
    return model


def plan(args: ClassifierArguments, images: int) -> None:
    """Say in steps how long a run of the images is: T = n x epochs // batch + 1, all of which run, as officially.

    For the Trainer the whole run is one epoch; what is asked for at each epoch comes every so many steps.
    """
    warmup, steps = official_steps(images, args.global_batch, args.num_train_epochs, args.warmup_epochs)
    args.max_steps = args.max_steps if args.max_steps > 0 else steps
    args.warmup_steps = args.warmup_steps or warmup
    an_epoch = math.ceil(images / args.global_batch)
    if args.eval_strategy == IntervalStrategy.EPOCH:
        args.eval_strategy, args.eval_steps = IntervalStrategy.STEPS, an_epoch
    if args.save_strategy == SaveStrategy.EPOCH:
        args.save_strategy, args.save_steps = SaveStrategy.STEPS, an_epoch


def run(
    trainer: ClassifierTrainer, train: Part, output: Path, recipe: dict[str, Any], processor: SimCLRImageProcessor
) -> Path:
    """Train to the end, from the newest complete checkpoint if there is one; the directory of the classifier.

    Raises:
        TrainingError: the loss is no longer a number; names the step.
    """
    args, draws, evaluation = trainer.args, trainer.train_dataset, trainer.eval_dataset
    images, batch, first = len(draws.places), args.global_batch, args.process_index == 0
    evaluated = f"{len(evaluation.part.chosen):,}" if evaluation else "none"
    if first:
        classes = trainer.classes
        _say(
            f"{images:,} images to learn {f'{classes:,} classes' if classes else 'h'} from, {evaluated} to evaluate "
            f"on; {args.max_steps:,} steps of {batch:,} images, {args.max_steps * batch / images:.3g} epochs"
        )
        trainer.add_callback(Pace())
    set_seed(args.seed + args.process_index)  # each process draws its own crops
    last = get_last_checkpoint(str(output))
    if last is not None and args.patience and _stopped(Path(last), args.patience):
        trainer._load_from_checkpoint(last)
        trainer.state = trainer.state.load_from_json(str(Path(last, "trainer_state.json")))
    else:
        trainer.train(resume_from_checkpoint=last)
    trainer.check_finite()
    if first:
        _write_final(trainer, train, output, recipe, processor)
    return output / "final"


def _write_final(
    trainer: ClassifierTrainer, train: Part, output: Path, recipe: dict[str, Any], processor: SimCLRImageProcessor
) -> None:
    """Measure what a finished run gave, and write it with its card and curves."""
    args, draws, evaluation = trainer.args, trainer.train_dataset, trainer.eval_dataset
    images, batch = len(draws.places), args.global_batch
    steps, result = trainer.state.global_step, trainer.finished()
    trained = f"{steps:,} steps of {batch:,} images, {steps * batch / images:.3g} epochs"
    trained += f", weights averaged with a decay of {args.ema_decay}" if args.ema_decay else ""
    trained += "; of several evaluations the best weights were kept" if trainer.chosen else ""
    measures, on, evaluated, unreadable = {}, "", "", [*train.unreadable.values()]
    if evaluation:
        found, n = trainer.measure(trainer.best if trainer.chosen else None)
        measures = trainer.told(found, n)
        for measure, value in measures.items():
            _say(f"{measure}: {value:.2f}, on {n:,} images")
        on = f"split {evaluation.part.split}: {n:,} images"
        if evaluation.part.rows is train.rows:
            on += " held out"
        else:
            evaluated = evaluation.part.split
        unreadable += evaluation.part.unreadable.values()
    draw_curves(trainer.state.log_history, output / "curves.png", output.name)
    final = output / "final"
    if final.exists():
        shutil.rmtree(final)
    with new_directory(final) as partial:
        result.save_pretrained(partial)
        processor.save_pretrained(partial)
        write_record(partial, output.name, recipe, trained, images, measures, on, trainer.classes, evaluated)
    with open(draws.log, "a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in unreadable)
    _tell_unreadable(draws.log)


def _stopped(checkpoint: Path, patience: int) -> bool:
    """Tell whether a run had ended where this was written, so that it is not to go on."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return since_best(state["log_history"]) >= patience


if __name__ == "__main__":
    print(finetune(sys.argv[1], tuple(sys.argv[2:])))
