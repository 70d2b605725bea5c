"""A classifier from a few hundred labels or less: logistic regression on whitened h, on the frozen encoder.

It becomes a `SimCLRForImageClassification`: whitening is (h / |h| - mean) @ matrix, so matrix and mean fold into the
classifier's weight and bias, exactly, and `classifier_normalized` tells the model to divide by |h|. Where no whitening
comes with the model it is the regression on h / |h|.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_hub._files import new_directory
from simclr_hub.configuration_simclr import SimCLRConfig
from simclr_hub.embedder import Embedder
from simclr_hub.errors import RecipeError
from simclr_hub.labels import sure_above
from simclr_hub.modeling_simclr import SimCLRForImageClassification
from simclr_hub.progress import progress_bar
from simclr_hub.whitening import unit_rows

from .features import Kept, features_of
from .labelled import Part, evaluation_part, labelled
from .pretrain import _say, _sources, _tell_unreadable, rules_of, start_model
from .protocols import Linear, fit_linear, interval
from .trained_cards import write_record

METHODS = ("auto", "logistic", "network")
#: Labelled images below which "auto" takes logistic regression.
FEW = 500
#: Values of l2 to choose from, falling.
GRID = tuple(float(value) for value in np.logspace(1, -4, 11))
#: Labelled images up to which each is left out by itself; of more, a tenth at a time. Parts by which l2 is chosen.
ONE_BY_ONE, OUTER, INNER = 60, 10, 5
_PATH = 10  # most iterations at one l2, from the solution at the one before


def choose_method(recipe: Mapping[str, Any], seed: int) -> tuple[str, str]:
    """Choose "logistic" or "network" by how many labels there are; and say why, for people.

    Raises:
        RecipeError: `method` is none, the data cannot be opened, or logistic regression has no model to start from.
    """
    method = recipe.get("method") or "network"
    if method not in METHODS:
        raise RecipeError(f"method={method} is not one of {', '.join(METHODS)}")
    if method == "logistic" and not recipe.get("init_from"):
        raise RecipeError("method=logistic needs init_from: random features say little; or set method=network")
    if method != "auto":
        return str(method), f"method={method}"
    if not recipe.get("init_from"):
        return "network", "from random weights: the network learns"
    count = len(_labelled(recipe, seed)[0].chosen)
    if count < FEW:
        return "logistic", (
            f"{count:,} labelled images, fewer than {FEW}: logistic regression on whitened h; method=network trains "
            "the network instead"
        )
    return "network", (
        f"{count:,} labelled images, {FEW} or more: the network learns; method=logistic takes seconds instead"
    )


def _labelled(recipe: Mapping[str, Any], seed: int) -> tuple[Part, list[str]]:
    """Open the images whose labels are used, all to learn from, and what is to be told."""
    part = Part.open(_sources(recipe["data"]), recipe.get("split") or "train", rules_of(recipe))
    labels = recipe.get("labels")
    part.chosen, told = labelled(part, None if labels is None else str(labels), seed)
    return part, [*part.rows.notes, *told]


def fit_photos(recipe: Mapping[str, Any], output: Path, seed: int, *, balanced: bool) -> Path:
    """Fit a classifier, estimate how right it is, and write it as fine-tuning does; its directory.

    Args:
        recipe: as `load_recipe` returned it.
        output: directory of the run.
        seed: of what is drawn.
        balanced: classes count alike, however many images they have.

    Raises:
        RecipeError: the data cannot be opened, has no labels, one class, or hardly a readable image.
        CheckpointError: the model to start from cannot be loaded.
    """
    start, processor = start_model(recipe["model"], recipe["init_from"], seed)
    part, notes = _labelled(recipe, seed)
    evaluation = evaluation_part({"eval_data": None, "eval_split": None, **recipe}, part, rules_of(recipe))
    for note in notes:
        _say(note)
    embedder = Embedder(recipe["init_from"])
    whitening = embedder.checkpoint_whitening()
    used = "whitened h" if whitening else "h of length 1 (no whitening comes with the model)"

    def prepared(of: Part) -> tuple[Kept, Tensor]:
        kept = features_of(embedder, of, None, str(recipe["init_from"]))
        change: Callable[[np.ndarray], np.ndarray] = whitening.apply if whitening else _units
        return kept, torch.from_numpy(change(kept.vectors))

    kept, x = prepared(part)
    classes, y = part.rows.classes, torch.from_numpy(part.labels[kept.places])
    there = np.bincount(y.numpy(), minlength=len(classes))
    if (there > 0).sum() < 2:
        why = next(iter(part.unreadable.values()), "")
        raise RecipeError(
            f"data={recipe['data']}: {(there > 0).sum()} class of which images can be read and used; two are the least"
            + (f"; first left out: {why}" if why else "")
        )
    if empty := [name for name, count in zip(classes, there, strict=True) if not count]:
        _say(f"classes without a usable image, which are never predicted: {', '.join(empty[:5])}")
    fit = _Fit(len(classes), balanced, seed)
    scores, how = fit.held_out(x, y)
    right = scores.argmax(1) == y
    confidence = scores.softmax(1).amax(1).numpy()
    above = sure_above(confidence, right.numpy())
    sure = torch.from_numpy(confidence > above)
    accuracy = 100 * float(right.double().mean())
    measures = {_measure("top-1 accuracy", accuracy, len(y), how): accuracy}
    share = 100 * float(sure.double().mean())
    measures[f"photos called sure (%), above a confidence of {above:.2f} that was chosen on them, {how}"] = share
    if bool(sure.any()):
        of_sure = 100 * float(right[sure].double().mean())
        measures[_measure("top-1 accuracy of these", of_sure, int(sure.sum()), how)] = of_sure
    linear = fit(x, y)
    model = SimCLRForImageClassification(_config(start.config, classes, above))
    model.simclr.load_state_dict(start.state_dict())
    weight, bias = _folded(linear, whitening)
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    on = f"split {part.split}: {len(y):,} images"
    if evaluation is not None:
        theirs, v = prepared(evaluation)
        truth = torch.from_numpy(evaluation.labels[theirs.places])
        found = 100 * float((linear.scores(v).argmax(1) == truth).double().mean()) if len(truth) else float("nan")
        if len(truth):
            measures[_measure("top-1 accuracy", found, len(truth), f"on split {evaluation.split}")] = found
    for measure, value in measures.items():
        _say(f"{measure}: {value:.2f}, of {len(y):,} images")
    final = output / "final"
    if final.exists():
        shutil.rmtree(final)
    trained = f"Logistic regression on {used}, l2 {linear.l2:.2g}"
    with new_directory(final) as partial:
        model.eval().save_pretrained(partial)
        processor.save_pretrained(partial)
        write_record(partial, output.name, dict(recipe), trained, len(y), measures, on, len(classes))
    log = output / "unreadable.txt"
    unreadable = [*part.unreadable.values(), *(evaluation.unreadable.values() if evaluation else ())]
    log.write_text("".join(f"{line}\n" for line in unreadable), encoding="utf-8")
    _tell_unreadable(log)
    return final


def _measure(what: str, percent: float, n: int, how: str) -> str:
    low, high = interval(percent, n)
    return f"{what} (%), 95 % interval {low:.1f} to {high:.1f}, {how}"


def _units(vectors: np.ndarray) -> np.ndarray:
    return unit_rows(vectors)[0].astype(np.float32)


def _config(start: SimCLRConfig, classes: Sequence[str], above: float) -> SimCLRConfig:
    names = {"id2label": dict(enumerate(classes)), "label2id": {label: i for i, label in enumerate(classes)}}
    head = {"classifier_layer": 0, "classifier_normalized": True, "sure_above": above}
    return SimCLRConfig(**{**start.to_diff_dict(), **head, **names})


def _folded(linear: Linear, whitening: Any) -> tuple[Tensor, Tensor]:
    """Return the weight (C, D) and bias (C,) on h / |h| that do what whitening and a classifier on it do."""
    weight, bias = linear.weight.double(), linear.bias.double()
    if whitening:
        matrix = torch.from_numpy(whitening.matrix).double() @ weight  # (D, C)
        weight, bias = matrix, bias - torch.from_numpy(whitening.mean).double() @ matrix
    return weight.T.float(), bias.float()


@dataclass(frozen=True)
class _Fit:
    """Logistic regression whose l2 is chosen by cross-validation on what it learns from.

    Attributes:
        classes: how many.
        balanced: whether they count alike.
        seed: of the parts.
    """

    classes: int
    balanced: bool
    seed: int

    def __call__(self, x: Tensor, y: Tensor) -> Linear:
        """Fit features (N, D) and classes (N,), with the l2 of the best likelihood of parts that were left out."""
        losses = torch.zeros(len(GRID), dtype=torch.float64)
        for out in self._parts(y, min(INNER, len(y))):
            fitted: Linear | None = None
            for i, l2 in enumerate(GRID):
                fitted = fit_linear(x[~out], y[~out], l2, self.classes, fitted, iterations=_PATH)
                losses[i] += F.cross_entropy(fitted.scores(x[out]), y[out], reduction="sum")
        best = fit_linear(x, y, GRID[int(losses.argmin())], self.classes)
        if not self.balanced:
            return best
        # Bayes: the prior of the classes that it learnt is taken out again.
        counts = torch.bincount(y, minlength=self.classes).clamp_min(1).float().log()
        return Linear(best.weight, best.bias - counts + counts.mean(), best.l2, best.loss)

    def held_out(self, x: Tensor, y: Tensor) -> tuple[Tensor, str]:
        """Return the scores (N, C) of each image by a fit, choice of l2 included, without it; and how, in words."""
        parts = len(y) if len(y) <= ONE_BY_ONE else OUTER
        how = "each left out in turn" if parts == len(y) else f"{parts}-fold cross-validation"
        scores = torch.zeros(len(y), self.classes)
        with progress_bar("cross-validation", parts) as advance:
            for out in self._parts(y, parts):
                scores[out] = self(x[~out], y[~out]).scores(x[out])
                advance(1)
        return scores, how

    def _parts(self, y: Tensor, count: int) -> Iterator[Tensor]:
        """Yield which images (N,) are left out, each once, classes spread evenly over the parts."""
        order = np.random.default_rng(self.seed).permutation(len(y))
        order = order[np.argsort(y.numpy()[order], kind="stable")]
        place = np.empty(len(y), np.int64)
        place[order] = np.arange(len(y)) % count
        for part in range(count):
            if (place != part).any():
                yield torch.from_numpy(place == part)
