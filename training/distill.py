"""`simclr-hub distill RECIPE data=FOLDER teacher=CLASSIFIER [key=value ...]`: a student learns from a teacher.

The images need no labels. A recipe is fine-tuning's, with `teacher` and the arguments of `DistillArguments`.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.trainer_utils import IntervalStrategy

from simclr_hub._files import check_place
from simclr_hub.errors import RecipeError
from simclr_hub.loading import locate
from simclr_hub.pixels import normalize_pixels
from simclr_hub.progress import quiet_transformers

from .augmentations import Views
from .data import open_rows
from .finetune import FINETUNE, ClassifierArguments, ClassifierTrainer, Draws, Evaluation, classifier_on, plan, run
from .labelled import Part, labelled
from .pretrain import TEXT, Form, _listed, _say, _sources, alone_in, full_name, load_recipe, rules_of, start_model
from .supervised import choose_trained, mixed_loss


@dataclass
class DistillArguments(ClassifierArguments):
    """The arguments of distillation, beside fine-tuning's.

    Args:
        temperature: of both predictions: 0.1 in the paper for a student like its teacher, 1 for a smaller one.
        alpha: share of the teacher in the loss; 1: labels are not used.

    Raises:
        RecipeError: a value out of range.
    """

    temperature: float = field(default=1.0)
    alpha: float = field(default=1.0)

    def __post_init__(self) -> None:
        self.check(temperature=self.temperature > 0, alpha=0 <= self.alpha <= 1)
        super().__post_init__()
        if self.class_weights != "none":
            raise RecipeError("class_weights are of finetune: a teacher's predictions have no class to weigh")


DISTILL = Form("distill", {**FINETUNE.kinds, "teacher": TEXT}, DistillArguments)


class Teacher(nn.Module):
    """An image classifier of transformers that does not learn; it takes crops in [0, 1], whatever its processor does.

    Args:
        name: a directory, an official checkpoint's name or a Hub id; no code of it is run.

    Raises:
        RecipeError: it cannot be loaded, or has no classifier.
    """

    def __init__(self, name: str):
        super().__init__()
        try:
            directory, _ = locate(name)
            with quiet_transformers():
                model, info = AutoModelForImageClassification.from_pretrained(
                    directory,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
                processor = AutoImageProcessor.from_pretrained(directory, local_files_only=True)
        except Exception as e:  # transformers and safetensors raise OSError, ValueError, RuntimeError, ...
            raise RecipeError(f"teacher={name}: {' '.join(str(e).split())}") from e
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise RecipeError(f"teacher={name} has no trained classifier ({missing} missing); fine-tune it first")
        self.model = model.requires_grad_(False).eval()
        labels = self.model.config.id2label
        self.classes = [str(labels[i]) for i in range(len(labels))]
        size = processor.size
        side = size.get("height") or size.get("shortest_edge")
        if not side:
            raise RecipeError(
                f"teacher={name}: its image processor names no size; set one in preprocessor_config.json"
            )
        self.side = int(side)
        self.normalizes = bool(processor.do_normalize)
        self.mean, self.std = processor.image_mean, processor.image_std

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in inference mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute logits (N, C) of crops (N, 3, H, W) in [0, 1]; resized where the teacher wants another size."""
        if pixels.shape[-1] != self.side:
            size = (self.side, self.side)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        if self.normalizes:
            pixels = normalize_pixels(pixels, self.mean, self.std)
        logits: Tensor = self.model(pixels).logits.float()
        return logits


class DistillTrainer(ClassifierTrainer):
    """Trains a student on a teacher's predictions for the same crop, and with alpha < 1 on labels, where there are."""

    args: DistillArguments

    def __init__(self, teacher: nn.Module, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval()

    def _loss(self, logits: Tensor, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        taught = self.teacher(pixels)
        return mixed_loss(logits, taught, labels, self.args.temperature, self.args.alpha), taught.argmax(1)


def distill(name: str, settings: tuple[str, ...] = ()) -> Path:
    """Run a recipe to its end, resuming from its newest complete checkpoint; the directory of the student.

    Raises:
        RecipeError: the recipe or a setting is wrong, the data or the teacher cannot be opened, or another process
            runs in the same output directory.
        OutputError: the output directory lies among the images.
        TrainingError: the loss is no longer a number; names the step.
    """
    name = full_name(name, DISTILL)
    recipe = load_recipe(name, settings, DISTILL)
    for key, wanted in (("data", "FOLDER"), ("teacher", "CLASSIFIER")):
        if not recipe.get(key):
            raise RecipeError(f"{name} needs {key}={wanted}")
    output = Path(str(recipe["training"].get("output_dir") or f"runs/{Path(name).stem}"))
    check_place(output, [*_listed(recipe["data"]), *_listed(recipe.get("eval_data"))])
    try:
        args = DistillArguments(**{**recipe["training"], "output_dir": str(output)})
        teacher = Teacher(recipe["teacher"])
        start, processor = start_model(recipe["model"], recipe.get("init_from"), args.seed)
        if args.projection_layer > start.config.projection_layers:
            raise RecipeError(f"projection_layer={args.projection_layer}: the student has no such layer of g; 0 is h")
        views = Views(**{"size": processor.size["height"], "operations": ("crop", "flip"), **recipe["views"]})
        model = classifier_on(start, teacher.classes, args.projection_layer)
        choose_trained(model, args.trained_from, args.head)
    except RecipeError as e:
        raise RecipeError(f"{name}: {e}") from e
    except (StrictDataclassError, TypeError, ValueError) as e:
        raise RecipeError(f"{name}: {' '.join(str(e.__cause__ or e).split())}") from e
    train, evaluation = _parts(recipe, args, teacher.classes)
    if evaluation is None:
        if args.patience:
            raise RecipeError(f"patience={args.patience} needs labelled images: set eval_split= or eval_data=")
        args.eval_strategy = IntervalStrategy.NO
    with alone_in(output, args):
        draws = Draws(train, args.data_seed or 0, recipe.get("side"), views, output)
        plan(args, len(draws.places))
        draws.count = args.max_steps * args.global_batch
        measured = None if evaluation is None else Evaluation(evaluation, processor)
        data = {"train_dataset": draws, "eval_dataset": measured}
        return run(DistillTrainer(teacher, model, args, views, processor, **data), train, output, recipe, processor)


def _parts(recipe: dict[str, Any], args: DistillArguments, classes: list[str]) -> tuple[Part, Part | None]:
    """Open all images, with the labels that are used, and those to evaluate on, if there are any with labels."""
    rules, split = rules_of(recipe), str(recipe.get("split") or "train")
    rows = open_rows(_sources(recipe["data"]), split, rules)
    place = {label: i for i, label in enumerate(classes)}

    def by_name(theirs: Any) -> np.ndarray:
        to_ours = np.array([place.get(label, -1) for label in theirs.classes] + [-1])
        given = [-1] * len(theirs) if theirs.labels is None else theirs.labels
        return to_ours[np.array(given, dtype=np.int64)]

    labels = by_name(rows)
    train = Part(_sources(recipe["data"]), split, rows, labels, np.flatnonzero(labels >= 0))
    used = np.empty(0, np.int64)
    if args.alpha < 1:
        if not len(train.chosen):
            raise RecipeError(f"alpha={args.alpha} needs labels: no image is in a class of the teacher; set alpha=1")
        wanted = recipe.get("labels")
        used, notes = labelled(train, None if wanted is None else str(wanted), args.seed)
        for note in notes:
            _say(note)
    train.labels = np.where(np.isin(np.arange(len(labels)), used), labels, -1)
    train.chosen = np.arange(len(labels))
    for note in rows.notes:
        _say(note)
    source = _sources(recipe.get("eval_data") or recipe["data"])
    wanted_split = recipe.get("eval_split")
    for usual in [wanted_split] if wanted_split else ["validation", "test"]:
        try:
            found = Part.open(source, usual, rules)
        except RecipeError:
            if wanted_split:
                raise
            continue
        found.labels = by_name(found.rows)
        found.chosen = np.flatnonzero(found.labels >= 0)
        if len(found.chosen):
            return train, found
        if wanted_split:
            raise RecipeError(f"eval_split={usual}: no image is in a class of the teacher")
    return train, None
