"""`simclr-hub evaluate MODEL ... data=FOLDER [key=value ...]`: how good a model's features are, by several protocols.

Features are computed once and kept, so that a further protocol on the same images takes seconds.
"""

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import simclr_hub
from simclr_hub._files import Kind as Output
from simclr_hub._files import check_output, check_place, write_output
from simclr_hub._threads import Pool
from simclr_hub.errors import ImageError, RecipeError
from simclr_hub.images import load_image
from simclr_hub.loading import load
from simclr_hub.pages import PAGE, write_photos
from simclr_hub.progress import progress_bar

from .features import Features, layers_of
from .figures import PICTURE, draw_accuracies, draw_confusion
from .labelled import HELD_OUT, Part, open_parts, share_of_each_class
from .linear import train_linear
from .optimization import official_steps
from .pretrain import Kind, _listed, _parse, _say, _text, check_kind, key_and_value
from .protocols import L2_GRID, choose_l2, few_shot, interval, knn_scores, mean_per_class, retrieval, top1
from .trainer import shown, unknown

PROTOCOLS = ("knn", "retrieval", "few_shot", "linear_features", "linear")
METRICS = {"top1": ("top-1", top1), "mean_per_class": ("mean per class", mean_per_class)}
_TEXT, _TEXTS = ((str,), "text"), ((str, list), "text, in quotes if need be, or a list of texts")
_COUNT, _COUNTS = ((int,), "a whole number, 1 or more"), ((int, list), "whole numbers, 1 or more")
_NUMBER = ((int, float), "a number")
#: key -> the kind of its values, and the value if it is not given.
SETTINGS: dict[str, tuple[Kind, Any]] = {
    "data": (_TEXTS, None),  # a folder or a dataset's id on the Hub, or a list of them, which are joined
    "split": (_TEXT, "train"),  # whose labels are used
    "eval_data": (_TEXTS, None),  # the images to evaluate on, if they are not a split of `data`
    "eval_split": (_TEXT, None),  # validation, else test, if not given
    "exclude": (_TEXTS, None),
    "include_hidden": (((bool,), "true or false"), False),
    "labels": (_TEXT, None),  # all; 1%, 10%; a number for each class; a file of file names
    "protocols": (_TEXTS, list(PROTOCOLS[:-1])),
    "layers": (_TEXTS, ["h"]),
    "metric": (_TEXT, "top1"),  # of linear_features
    "k": (_COUNT, 20),  # neighbours that vote
    "temperature": (_NUMBER, 0.07),  # of their weighted vote
    "ks": (_COUNTS, [1, 5, 10]),  # of retrieval
    "shots": (_COUNTS, [1, 5, 20]),  # labels a class of few_shot
    "draws": (_COUNT, 10),
    "epochs": (_COUNT, 100),  # of linear, as the next three
    "batch_size": (_COUNT, 512),
    "learning_rate": (_NUMBER, None),
    "weight_decay": (_NUMBER, 0.0),
    "seed": (((int,), "a whole number"), 0),
    "output_dir": (_TEXT, "runs/evaluate"),
    "cache": (_TEXT, None),  # where features are kept; with what else is kept of the Hub, if not given
}
_KINDS = {key: kind for key, (kind, _) in SETTINGS.items()}
#: Mistaken photos that the page shows.
MOST_PHOTOS = 100


def _is_results(path: Path) -> bool:
    try:
        found = json.loads(path.read_bytes()) if path.stat().st_size < 1 << 28 else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"simclr_hub", "results"} <= found.keys()


#: What is written, see `simclr_hub._files.check_output`.
RESULTS = Output("a file of results", (".json",), _is_results)
OUTPUTS = {"results.json": RESULTS, "accuracy.png": PICTURE, "confusion.png": PICTURE, "mistakes.html": PAGE}


def read_settings(given: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` settings, values being YAML; what is not given has its default.

    Raises:
        RecipeError: an unknown key, or a value of another kind or out of range; names it.
    """
    settings: dict[str, Any] = {key: default for key, (_, default) in SETTINGS.items()}
    for setting in given:
        key, text = key_and_value(setting)
        if key not in SETTINGS:
            raise RecipeError(unknown("key", key, SETTINGS))
        value = _text(text) if str in _KINDS[key][0] else _parse(text, setting)
        check_kind(key, value, _KINDS)
        if value is not None:
            settings[key] = value
    if not settings["data"]:
        raise RecipeError("evaluate needs data=FOLDER (class folders or parquet) or a dataset's id on the Hub")
    for key in ("protocols", "layers"):
        settings[key] = list(dict.fromkeys(_listed(settings[key])))
    for key in ("ks", "shots"):
        settings[key] = settings[key] if isinstance(settings[key], list) else [settings[key]]
    for name in settings["protocols"]:
        if name not in PROTOCOLS:
            raise RecipeError(f"{unknown('protocol', name, PROTOCOLS)}; there are {', '.join(PROTOCOLS)}")
    if settings["metric"] not in METRICS:
        raise RecipeError(f"metric={shown(settings['metric'])} is not one of {', '.join(METRICS)}")
    for key, (kind, _) in SETTINGS.items():
        for value in settings[key] if isinstance(settings[key], list) else [settings[key]]:
            if kind in (_COUNT, _COUNTS) and not 1 <= value <= 1 << 24:
                raise RecipeError(f"{key}={value} must be {kind[1]}")
            if kind is _NUMBER and value is not None and not (math.isfinite(value) and value >= 0):
                raise RecipeError(f"{key}={value} must be 0 or more")
    if not settings["temperature"] > 0:
        raise RecipeError("temperature=0 must be above 0")
    if settings["seed"] < 0:
        raise RecipeError(f"seed={settings['seed']} must be 0 or more")
    return settings


@dataclass
class Measured:
    """One number: percent, of one layer of one model.

    Attributes:
        protocol: one of `PROTOCOLS`.
        measure: what of it.
        value: in percent.
        interval: Wilson's 95 %, of what is a share of images.
        spread: standard deviation over draws.
        images: on how many.
        settings: what the protocol was told, and chose.
        scores: (M, C), of which the classes were predicted.
        seconds: what it took, without the features.
    """

    protocol: str
    measure: str
    value: float
    images: int
    settings: dict[str, Any] = field(default_factory=dict)
    interval: tuple[float, float] | None = None
    spread: float | None = None
    scores: Tensor | None = None
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
    protocol: str, of: Features, name: str, scores: Tensor, settings: dict[str, Any], k: int = 1
) -> Measured:
    right = (scores.topk(k).indices == of.labels[:, None]).any(1)
    value, n = 100 * float(right.double().mean()), len(of.labels)
    return Measured(protocol, name, value, n, settings, interval(value, n), scores=scores if k == 1 else None)


def _knn(of: Features, classes: int, settings: Mapping[str, Any]) -> list[Measured]:
    k, temperature = settings["k"], float(settings["temperature"])
    found = []
    for name, told in (("top-1", {"k": k}), ("top-1, weighted", {"k": k, "temperature": temperature})):
        weight = temperature if "temperature" in told else None
        scores = knn_scores(of.evaluation, of.train, of.train_labels, classes, k, weight)
        found.append(_accuracy("knn", of, name, scores, told))
    return found


def _retrieval(of: Features, classes: int, settings: Mapping[str, Any]) -> list[Measured]:
    vectors, labels = of.evaluation, of.labels
    if of.one_set:  # nothing is learnt: a tenth of the set would make it another task
        vectors, labels = torch.cat([of.train, vectors]), torch.cat([of.train_labels, labels])
    try:
        values = retrieval(vectors, labels, [k for k in settings["ks"] if k < len(labels)])
    except ValueError as e:
        raise RecipeError(f"retrieval: {e}") from e
    queries = int((torch.bincount(labels)[labels] > 1).sum())
    return [
        Measured("retrieval", name, value, queries, {}, interval(value, queries) if "recall" in name else None)
        for name, value in values.items()
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
    held_out = torch.zeros(len(of.train_labels), dtype=torch.bool)
    held_out[torch.from_numpy(share_of_each_class(of.train_labels.numpy(), HELD_OUT, settings["seed"]))] = True
    if not held_out.any():
        raise RecipeError("linear_features needs two labels of a class at least: l2 is chosen on some of them")
    with progress_bar(f"linear_features, {of.layer}", len(L2_GRID)) as advance:
        best, measured = choose_l2(
            (of.train[~held_out], of.train_labels[~held_out]),
            (of.train[held_out], of.train_labels[held_out]),
            metric,
            on_step=lambda: advance(1),
        )
    scores = best.scores(of.evaluation).softmax(1)
    told = {
        "l2": best.l2,
        "loss": best.loss,
        "validation images": int(held_out.sum()),
        "validation": {f"{l2:.3g}": round(value, 3) for l2, value in measured.items()},
        "seed": settings["seed"],
    }
    found = _accuracy("linear_features", of, name, scores, told)
    if settings["metric"] != "top1":
        found.value, found.interval = metric(scores, of.labels), None
    return [found]


def _linear(
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
        with torch.no_grad():
            scores = classifiers[of.layer].cpu()(of.evaluation).softmax(1)
        ks = (1, 5) if classes > 5 else (1,)
        both = [_accuracy("linear", of, f"top-{k}", scores, told, k) for k in ks]
        for one in both:
            one.seconds = time.monotonic() - started
        found.append(both)
    return found


def evaluate(models: Sequence[str], given: Sequence[str] = ()) -> dict[str, Any]:
    """Evaluate models and write results.json, charts and a page of mistakes into `output_dir`.

    Args:
        models: their names, as `simclr_hub.load` takes them.
        given: `key=value` settings, see `SETTINGS`.

    Returns:
        What results.json holds.

    Raises:
        RecipeError: a setting is wrong, or the data cannot be opened.
        CheckpointError: a model cannot be loaded.
        OutputError: an output lies among the images.
        FileExistsError: something else is at the place of an output.
    """
    started = time.monotonic()
    settings = read_settings(given)
    output = Path(settings["output_dir"]).expanduser()
    data = [*_listed(settings["data"]), *_listed(settings["eval_data"])]
    cache = Path(settings["cache"]).expanduser() if settings["cache"] else None
    for place in (output, *([cache] if cache else [])):
        check_place(place, data)
    if output.is_dir():
        _check_outputs(output)
    train, evaluation, classes, notes = open_parts(settings)
    for note in notes:
        _say(note)
    _say(
        f"{len(train.chosen):,} labelled images to learn from, {len(evaluation.chosen):,} to evaluate on; "
        f"{len(classes):,} classes"
    )
    output.mkdir(parents=True, exist_ok=True)
    found: list[tuple[Features, Measured]] = []
    told = len(notes)
    for name in models:
        layers = list(layers_of(name, train, evaluation, settings["layers"], cache))
        if layers[0].repeated and name == models[0]:
            notes.append(
                f"images to evaluate on that are, byte for byte, among those to learn from: {layers[0].repeated:,}"
            )
        for protocol in settings["protocols"]:
            if protocol == "linear":
                trained = [of for of in layers if of.projection is not None]
                if trained:
                    measured = _linear(name, trained, train, len(classes), settings)
                    found += [(of, one) for of, both in zip(trained, measured, strict=True) for one in both]
                continue
            found += [(of, one) for of in layers for one in measure(protocol, of, len(classes), settings)]
    unreadable = len(train.unreadable) + len(evaluation.unreadable)
    if unreadable:
        notes.append(f"images that cannot be read and are left out: {unreadable:,}; results.json lists them")
    for note in notes[told:]:
        _say(note)
    names = _short(models)
    results = {
        "simclr_hub": simclr_hub.__version__,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
        "models": {name: {of.layer: dict(of.fingerprint) for of, _ in found if of.model == name} for name in models},
        "data": {"train": train.told(), "evaluation": evaluation.told(), "classes": classes},
        "settings": settings,
        "notes": notes,
        "results": [
            {
                "model": of.model,
                "layer": of.layer,
                "protocol": one.protocol,
                "measure": one.measure,
                "value": one.value,
                "interval": one.interval,
                "spread": one.spread,
                "images": one.images,
                "settings": one.settings,
                "seconds": round(one.seconds, 3),
                "features_seconds": round(of.seconds, 3),
            }
            for of, one in found
        ],
        "seconds": 0.0,
    }
    bars: dict[str, dict[str, tuple[float, float, float]]] = {}
    for of, one in found:
        bars.setdefault(f"{one.protocol}: {one.measure}", {})[f"{names[of.model]} {of.layer}"] = one.ends()
    _check_outputs(output)
    draw_accuracies(bars, output / "accuracy.png", f"{len(evaluation.chosen):,} images of {len(classes):,} classes")
    if predicting := [(of, one, one.scores) for of, one in found if one.scores is not None]:
        of, one, scores = max(predicting, key=lambda best: best[1].value)
        title = f"{names[of.model]} {of.layer}, {one.protocol}: {one.measure} {one.shown()} %"
        _tell_mistakes(title, scores, of, evaluation, classes, output)
    results["seconds"] = round(time.monotonic() - started, 3)
    text = json.dumps(results, indent=2) + "\n"
    write_output(output / "results.json", lambda file: file.write(text.encode()), RESULTS)
    return results


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the headers and rows of what `evaluate` found, the layers and models side by side."""
    names = _short(list(results["models"]))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in results["results"]:
        column = f"{names[one['model']]} {one['layer']}"
        fields = {key: one[key] for key in ("protocol", "measure", "value", "images", "interval", "spread")}
        cells.setdefault((one["protocol"], one["measure"]), {})[column] = Measured(**fields).shown()
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    return ["protocol", "measure (%)", *columns], [
        [*key, *(row.get(column, "") for column in columns)] for key, row in cells.items()
    ]


def _check_outputs(output: Path) -> None:
    for name, kind in OUTPUTS.items():
        check_output(output / name, kind)


def _short(models: Sequence[str]) -> dict[str, str]:
    """Return short names, each its own."""
    short = {name: os.path.basename(os.path.abspath(name)) if os.path.isdir(name) else name for name in models}
    return short if len(set(short.values())) == len(short) else {name: name for name in models}


def _tell_mistakes(
    title: str, scores: Tensor, of: Features, evaluation: Part, classes: Sequence[str], output: Path
) -> None:
    """Draw the confusion matrix of scores (M, C), and write the page of what was mistaken."""
    confidence, predicted = scores.max(1)
    counts = torch.zeros(len(classes), len(classes))
    counts.index_put_((of.labels, predicted), torch.ones(len(predicted)), accumulate=True)
    draw_confusion(counts, classes, output / "confusion.png", title)
    wrong = (predicted != of.labels).nonzero()[:, 0]
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:MOST_PHOTOS].tolist()
    photos = [
        (
            evaluation.rows[int(of.places[i])],
            f"{confidence[i]:.2f}",
            f"{classes[int(of.labels[i])]}, taken for {classes[int(predicted[i])]}",
        )
        for i in worst
    ]
    some = f", of which the {len(worst):,} most confident are shown" if len(worst) < len(wrong) else ""
    note = f"{len(wrong):,} of {len(predicted):,} images were mistaken{some}, most confident first."
    write_photos(output / "mistakes.html", photos, title=title, note=note)
