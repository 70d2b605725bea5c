"""What each protocol of `evaluate` measures on a layer of a model: numbers with their intervals."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from simclr_hub._threads import Pool
from simclr_hub.errors import ImageError, RecipeError
from simclr_hub.images import load_image
from simclr_hub.loading import load
from simclr_hub.progress import progress_bar

from .calibration import calibration, fit_temperature
from .features import Features
from .labelled import HELD_OUT, Part, share_of_each_class
from .linear import train_linear
from .optimization import official_steps
from .protocols import (
    L2_GRID,
    Linear,
    bootstrap,
    choose_l2,
    few_shot,
    fit_linear,
    interval,
    knn_scores,
    map11,
    mean_interval,
    mean_per_class,
    retrieval_of_each,
    top1,
)

#: metric of linear_features -> what it is called, and what it is of scores and labels.
METRICS = {
    "top1": ("top-1", top1),
    "mean_per_class": ("mean per class", mean_per_class),
    "map11": ("11-point mAP", map11),
}


@dataclass
class Measured:
    """One number: percent, of one layer of one model.

    Attributes:
        protocol: one of `PROTOCOLS`.
        measure: what of it.
        value: in percent.
        images: on how many.
        settings: what the protocol was told, and chose.
        interval: 95 %: Wilson's of a share of images, the normal one of a mean over them, the bootstrap's of the rest.
        spread: standard deviation over draws.
        predict: features (M, D) -> probabilities (M, C), where classes are predicted.
        scores: what that is of the images evaluated on.
        calibration: see `calibration.calibration`.
        seconds: what it took, without the features.
    """

    protocol: str
    measure: str
    value: float
    images: int
    settings: dict[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    spread: float | None = None
    predict: Callable[[Tensor], Tensor] | None = None
    scores: Tensor | None = None
    calibration: dict[str, Any] | None = None
    seconds: float = 0.0

    def shown(self) -> str:
        """Return it for a table."""
        if self.interval:
            return f"{self.value:.2f} [{self.interval[0]:.1f}, {self.interval[1]:.1f}]"
        return f"{self.value:.2f}" + (f" +- {self.spread:.2f}" if self.spread is not None else "")

    def ends(self) -> tuple[float, float, float]:
        """Return it and the ends of its interval or spread."""
        low, high = self.interval or (self.value - (self.spread or 0), self.value + (self.spread or 0))
        return self.value, low, high


def measure(protocol: str, of: Features, classes: int, settings: Mapping[str, Any]) -> list[Measured]:
    """Measure a layer by a protocol that works on features."""
    started = time.monotonic()
    found = {
        "knn": _knn,
        "retrieval": _retrieval,
        "few_shot": _few_shot,
        "linear_features": _linear_features,
    }[protocol](of, classes, settings)
    for one in found:
        one.seconds = time.monotonic() - started
    return found


def _accuracy(
    protocol: str,
    of: Features,
    name: str,
    predict: Callable[[Tensor], Tensor],
    settings: dict[str, Any],
    calibrated: bool,
    k: int = 1,
) -> Measured:
    scores, n = predict(of.evaluation), len(of.labels)
    value = 100 * float((scores.topk(k).indices == of.labels[:, None]).any(1).double().mean())
    found = Measured(protocol, name, value, n, settings, interval(value, n))
    if k == 1:
        found.predict, found.scores = predict, scores
        found.calibration = calibration(scores, of.labels) if calibrated else None
    return found


def _knn(of: Features, classes: int, settings: Mapping[str, Any]) -> list[Measured]:
    k, temperature = settings["k"], float(settings["temperature"])
    found = []
    for name, told in (("top-1", {"k": k}), ("top-1, weighted", {"k": k, "temperature": temperature})):
        weight = temperature if "temperature" in told else None

        def predict(x: Tensor, weight: float | None = weight) -> Tensor:
            return knn_scores(x, of.train, of.train_labels, classes, k, weight)

        found.append(_accuracy("knn", of, name, predict, told, settings["calibration"]))
    return found


def _retrieval(of: Features, classes: int, settings: Mapping[str, Any]) -> list[Measured]:
    vectors, labels = of.evaluation, of.labels
    if of.one_set:  # nothing is learnt: a tenth of the set would make it another task
        vectors, labels = torch.cat([of.train, vectors]), torch.cat([of.train_labels, labels])
    try:
        values = retrieval_of_each(vectors, labels, [k for k in settings["ks"] if k < len(labels)])
    except ValueError as e:
        raise RecipeError(f"retrieval: {e}") from e
    return [
        Measured(
            "retrieval",
            name,
            mean := 100 * float(of_each.mean()),
            n := len(of_each),
            {},
            interval(mean, n) if "recall" in name else mean_interval(100 * of_each),
        )
        for name, of_each in values.items()
    ]


def _few_shot(of: Features, classes: int, settings: Mapping[str, Any]) -> list[Measured]:
    most = int(torch.bincount(of.train_labels).max())
    shots = [n for n in settings["shots"] if n <= most]
    told = {"draws": settings["draws"], "seed": settings["seed"]}
    found = few_shot(of.evaluation, of.labels, of.train, of.train_labels, shots, **told)
    return [
        Measured(
            "few_shot", f"top-1, {n} a class", mean, len(of.labels), {"labels a class": n, **told}, spread=deviation
        )
        for n, (mean, deviation) in found.items()
    ]


def _linear_features(of: Features, classes: int, settings: Mapping[str, Any]) -> list[Measured]:
    name, metric = METRICS[settings["metric"]]
    strata = of.train_labels if of.train_labels.ndim == 1 else of.train_labels.argmax(1)  # the first of several labels
    held_out = torch.zeros(len(strata), dtype=torch.bool)
    held_out[torch.from_numpy(share_of_each_class(strata.numpy(), HELD_OUT, settings["seed"]))] = True
    if not held_out.any():
        raise RecipeError("linear_features needs two labels of a class at least: l2 is chosen on some of them")
    rest, validation = ((of.train[rows], of.train_labels[rows]) for rows in (~held_out, held_out))
    with progress_bar(f"linear_features, {of.layer}", len(L2_GRID)) as advance:
        best, measured = choose_l2(rest, validation, metric, on_step=lambda: advance(1))
    told = {
        "l2": best.l2,
        "loss": best.loss,
        "validation images": int(held_out.sum()),
        "validation": {f"{l2:.3g}": round(value, 3) for l2, value in measured.items()},
        "seed": settings["seed"],
    }
    if settings["metric"] == "map11":
        scores = best.scores(of.evaluation)
        ends = bootstrap(metric, scores, of.labels, settings["seed"])
        return [Measured("linear_features", name, metric(scores, of.labels), len(scores), told, ends)]
    found = _accuracy("linear_features", of, name, lambda x: best.scores(x).softmax(1), told, settings["calibration"])
    if settings["metric"] != "top1":
        scores = found.predict(of.evaluation) if found.predict else of.evaluation
        found.value, found.interval = metric(scores, of.labels), bootstrap(metric, scores, of.labels, settings["seed"])
    if found.calibration is not None:
        found.calibration |= _scaled(best, rest, validation, of)
    return [found]


def _scaled(
    best: Linear, rest: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor], of: Features
) -> dict[str, Any]:
    """Return what a temperature fitted on the held-out labels makes of a classifier's calibration."""
    honest = fit_linear(*rest, best.l2, len(best.bias), best)  # it did not see the labels that T is fitted on
    temperature = fit_temperature(honest.scores(validation[0]), validation[1])
    scaled = calibration((best.scores(of.evaluation) / temperature).softmax(1), of.labels)
    return {"temperature": temperature, **{f"{key}, scaled": scaled[key] for key in ("ece", "brier", "nll")}}


def measure_linear(
    name: str, layers: Sequence[Features], train: Part, classes: int, settings: Mapping[str, Any]
) -> list[list[Measured]]:
    """Measure the layers of one model by the official linear evaluation: two numbers each."""
    started = time.monotonic()
    model, processor = load(name)
    torch.nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    places = np.setdiff1d(train.chosen, np.array(list(train.unreadable), dtype=np.int64))
    labels = torch.from_numpy(train.labels[places])
    keys = ("epochs", "batch_size", "learning_rate", "weight_decay", "seed")
    told = {key: settings[key] for key in keys}
    _, told["steps"] = official_steps(len(places), told["batch_size"], told["epochs"], 0)
    told["learning_rate"] = settings["learning_rate"] or 0.1 * settings["batch_size"] / 256
    with Pool(os.cpu_count() or 1, "simclr-decode") as pool, progress_bar(f"linear, {name}", told["steps"]) as advance:

        def decoded(row: Any) -> Tensor | ImageError:
            try:
                return torch.from_numpy(load_image(row).pixels)
            except ImageError as e:
                return e

        def read(rows: Sequence[int]) -> list[Tensor]:
            images = [image for _, image in pool.map(decoded, (train.rows[int(places[i])] for i in rows), 64)]
            for image in images:
                if isinstance(image, ImageError):  # it could be read when its features were computed
                    raise image
            return [image for image in images if isinstance(image, Tensor)]

        classifiers = train_linear(
            model,
            processor,
            read,
            labels,
            classes,
            {of.layer: of.projection for of in layers if of.projection is not None},
            **{key: settings[key] for key in keys},
            on_step=lambda: advance(1),
        )
    found = []
    for of in layers:
        classifier = classifiers[of.layer].cpu()

        def predict(x: Tensor, classifier: torch.nn.Linear = classifier) -> Tensor:
            with torch.no_grad():
                return torch.as_tensor(classifier(x).softmax(1))

        ks = (1, 5) if classes > 5 else (1,)
        both = [_accuracy("linear", of, f"top-{k}", predict, told, settings["calibration"], k) for k in ks]
        for one in both:
            one.seconds = time.monotonic() - started
        found.append(both)
    return found
