"""`simclr-hub distill RECIPE data=FOLDER teacher=CLASSIFIER [key=value ...]`: a student learns from a teacher.

The images need no labels. A recipe is fine-tuning's, with the keys of `DISTILL` and the arguments of
`DistillArguments`.

Many GPUs: `torchrun --nproc-per-node=8 -m simclr_hub.training.distill RECIPE key=value ...`.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.trainer_utils import IntervalStrategy

from simclr_hub._files import check_place
from simclr_hub.errors import RecipeError
from simclr_hub.modeling_simclr import SimCLRForImageClassification, SimCLRModel

from .augmentations import Views
from .data import open_rows
from .distributed import mean_over_processes
from .draws import Draws, Evaluation
from .finetune import FINETUNE, ClassifierArguments, ClassifierTrainer, agreement, classifier_on, plan, run
from .labelled import Part, labelled
from .pretrain import TEXT, Form, _listed, _say, _sources, alone_in, full_name, load_recipe, rules_of, start_model
from .supervised import choose_trained, mixed_loss
from .teacher import EncoderTeacher, Teacher, teach_once

TARGETS = ("logits", "features")


@dataclass
class DistillArguments(ClassifierArguments):
    """The arguments of distillation, beside fine-tuning's.

    Args:
        temperature: of both predictions: 0.1 in the paper for a student like its teacher, 1 for a smaller one.
        alpha: share of the teacher in the loss; 1: labels are not used.
        target: "logits" of a classifier, or "features": the student's h is turned by a linear map, which is for
            training alone, into the direction of the h of a SimCLR encoder; the loss is 1 - their cosine.
        fixed_views: crops that each image has, one an epoch, over and over; the teacher sees each once, and what it
            says is kept. 0: every draw has its own, as in the paper.

    Raises:
        RecipeError: a value out of range.
    """

    command: ClassVar[str] = "distill"

    temperature: float = field(default=1.0)
    alpha: float = field(default=1.0)
    target: str = field(default="logits")
    fixed_views: int = field(default=0)

    def __post_init__(self) -> None:
        self.check(
            temperature=self.temperature > 0, alpha=0 <= self.alpha <= 1, fixed_views=0 <= self.fixed_views <= 1 << 16
        )
        if self.target not in TARGETS:
            raise RecipeError(f"target={self.target} is not one of {', '.join(TARGETS)}")
        if self.target == "features":
            others = {"alpha": 1.0, "temperature": 1.0, "projection_layer": 0, "patience": 0}
            for name, only in others.items():
                if getattr(self, name) != only:
                    raise RecipeError(f"{name}={getattr(self, name)} is of target=logits; leave it out")
            if self.trained_from == "classifier":
                raise RecipeError("trained_from=classifier leaves an encoder nothing to learn")
        super().__post_init__()
        if self.class_weights != "none":
            raise RecipeError("class_weights are of finetune: a teacher's predictions have no class to weigh")


DISTILL = Form(
    "distill",
    # cache: a folder where what the teacher says of fixed views is kept, to share among runs; the run's own otherwise
    {**FINETUNE.kinds, "teacher": TEXT, "cache": TEXT},
    DistillArguments,
)


class DistillTrainer(ClassifierTrainer):
    """Trains a student on a teacher's predictions for the same crop, and with alpha < 1 on labels, where there are."""

    args: DistillArguments

    def __init__(self, teacher: nn.Module, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.teacher = teacher.to(self.args.device).eval()

    def _taught(self, inputs: dict[str, Tensor]) -> Tensor:
        found: Tensor = inputs["taught"] if "taught" in inputs else self.teacher(inputs["pixels"])
        return found

    def _loss(self, logits: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        taught, labels, alpha = self._taught(inputs), inputs["labels"], self.args.alpha
        rows = float(mean_over_processes((labels >= 0).sum().float())) if alpha < 1 else None
        loss = mixed_loss(logits, taught, labels, self.args.temperature, alpha, rows)
        return loss, {"top1": agreement(logits, taught.argmax(1))}


class FeatureTrainer(DistillTrainer):
    """Trains a student's h, through a linear map that is its classifier here, towards the direction of a teacher's."""

    @property
    def classes(self) -> int:
        """Return 0: the result is an encoder."""
        return 0

    def _loss(self, logits: Tensor, inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        cosine = F.cosine_similarity(logits, self._taught(inputs)).mean()
        return 1 - cosine, {"cosine": cosine.detach()}

    @torch.no_grad()
    def measure(self, model: nn.Module | None = None) -> tuple[dict[str, float], int]:
        """Measure the mean cosine with the teacher's h on the images to evaluate on; and of how many."""
        student, cosines = (model or self.result).eval(), []
        for pixels, _ in self.eval_dataset.batches():
            there = pixels.to(self.args.device)
            raw = unnormalized(there, self.processor)
            cosines.append(F.cosine_similarity(student(there).logits.float(), self.teacher(raw)).cpu())
        if not cosines:
            why = next(iter(self.eval_dataset.part.unreadable.values()))
            raise RecipeError(f"none of the images to evaluate on can be read: {why}")
        found = torch.cat(cosines)
        return {"cosine": float(found.mean())}, len(found)

    def told(self, found: Mapping[str, float], n: int) -> dict[str, float]:
        """Return what was measured at the end, in words."""
        return {"mean cosine with the teacher's h, of the student's by a linear map": found["cosine"]}

    def finished(self) -> PreTrainedModel:
        """Return the encoder, without the map, and without g, which has not learnt with it."""
        config = {key: value for key, value in self.result.config.to_diff_dict().items() if "label" not in key}
        model = SimCLRModel(type(self.result.config)(**{**config, "projection_layers": 0}))
        model.encoder.load_state_dict(self.result.simclr.encoder.state_dict())
        return model


def unnormalized(pixels: Tensor, processor: Any) -> Tensor:
    """Return pixels (B, 3, H, W) as they were, in [0, 1], before a processor normalised them."""
    if processor is None or not processor.do_normalize:
        return pixels
    mean, std = (
        torch.tensor(value, device=pixels.device).view(-1, 1, 1)
        for value in (processor.image_mean, processor.image_std)
    )
    return (pixels * std + mean).clamp(0, 1)


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
    cache = Path(str(recipe.get("cache") or output / "cache" / "teacher")).expanduser()
    if os.path.lexists(cache) and not cache.is_dir():
        raise RecipeError(f"cache={cache} is no folder; give one, or the name of one to make")
    check_place(cache, [*_listed(recipe["data"]), *_listed(recipe.get("eval_data"))])
    try:
        args = DistillArguments(**{**recipe["training"], "output_dir": str(output)})
        features = args.target == "features"
        teacher = EncoderTeacher(recipe["teacher"]) if features else Teacher(recipe["teacher"])
        start, processor = start_model(recipe["model"], recipe.get("init_from"), args.seed)
        if args.projection_layer > start.config.projection_layers:
            raise RecipeError(f"projection_layer={args.projection_layer}: the student has no such layer of g; 0 is h")
        views = Views(**{"size": processor.size["height"], "operations": ("crop", "flip"), **recipe["views"]})
        model = (
            mapped(start, teacher.width) if features else classifier_on(start, teacher.classes, args.projection_layer)
        )
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
        seed, side, fixed = args.data_seed or 0, recipe.get("side"), args.fixed_views
        with args.main_process_first(desc="decoding"):
            first = args.local_process_index == 0
            draws = Draws(train, seed, side, views, output, fixed=fixed, decodes=first)
            if fixed:
                source = [os.path.realpath(one) for one in _listed(train.source)]
                about = {"source": source, "split": train.split, "side": side, "views": repr(asdict(views))}
                batch = args.per_device_train_batch_size
                draws.taught = teach_once(teacher.to(args.device), draws, cache, about, batch)
        plan(args, len(draws.places))
        draws.count = args.max_steps * args.global_batch
        measured = None if evaluation is None else Evaluation(evaluation, processor)
        data: dict[str, Any] = {"train_dataset": draws, "eval_dataset": measured}
        kind = FeatureTrainer if features else DistillTrainer
        return run(kind(teacher, model, args, views, processor, **data), train, output, recipe, processor)


def mapped(start: SimCLRModel, width: int) -> SimCLRForImageClassification:
    """Put on a student's h a linear map to `width` numbers, which starts as torch starts a layer, not from zeros."""
    model = classifier_on(start, [str(i) for i in range(width)])
    model.classifier.reset_parameters()
    return model


def _parts(recipe: dict[str, Any], args: DistillArguments, classes: list[str]) -> tuple[Part, Part | None]:
    """Open all images, with the labels that are used, and those to evaluate on, if there are any, with labels."""
    rules, split = rules_of(recipe), str(recipe.get("split") or "train")
    rows = open_rows(_sources(recipe["data"]), split, rules)
    place = {label: i for i, label in enumerate(classes)}

    def by_name(theirs: Any) -> np.ndarray:
        to_ours = np.array([place.get(label, -1) for label in theirs.classes] + [-1])
        given = [-1] * len(theirs) if theirs.labels is None else theirs.labels
        return to_ours[np.array(given, dtype=np.int64)]

    labels, notes = by_name(rows), list(rows.notes)
    train = Part(_sources(recipe["data"]), split, rows, labels, np.flatnonzero(labels >= 0))
    used = np.empty(0, np.int64)
    if args.alpha < 1:
        if not len(train.chosen):
            raise RecipeError(f"alpha={args.alpha} needs labels: no image is in a class of the teacher; set alpha=1")
        wanted = recipe.get("labels")
        used, told = labelled(train, None if wanted is None else str(wanted), args.seed)
        notes += told
    train.labels = np.where(np.isin(np.arange(len(labels)), used), labels, -1)
    train.chosen = np.arange(len(labels))
    for note in notes if args.process_index == 0 else ():
        _say(note)
    source = _sources(recipe.get("eval_data") or recipe["data"])
    wanted_split = recipe.get("eval_split")
    for usual in [wanted_split] if wanted_split else ["validation", "test"]:
        try:
            if args.target == "features":  # needs no labels
                rows = open_rows(source, usual, rules)
                return train, Part(source, usual, rows, np.zeros(len(rows), np.int64), np.arange(len(rows)))
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


if __name__ == "__main__":
    print(distill(sys.argv[1], tuple(sys.argv[2:])))
