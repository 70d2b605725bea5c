"""`simclr-hub evaluate MODEL ... data=FOLDER [key=value ...]`: how good a model's features are, by several protocols.

Features are computed once and kept, so that a further protocol on the same images takes seconds.
"""

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import simclr_hub
from simclr_hub._files import Kind as Output
from simclr_hub._files import check_output, check_place, write_output
from simclr_hub.errors import RecipeError
from simclr_hub.pages import PAGE, write_photos

from .evaluated_cards import command_of
from .features import Features, layers_of
from .figures import PICTURE, draw_accuracies, draw_calibration, draw_confusion
from .labelled import Part, open_parts
from .measures import METRICS, Measured, measure, measure_linear
from .pretrain import Kind, _listed, _parse, _say, _text, check_kind, key_and_value
from .robustness import CLEAN, by_corruption, corruptions_of, measure_corrupted
from .trainer import shown, unknown

PROTOCOLS = ("knn", "retrieval", "few_shot", "linear_features", "linear")
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
    "metric": (_TEXT, "top1"),  # of linear_features; map11: an image may show several classes
    "k": (_COUNT, 20),  # neighbours that vote
    "temperature": (_NUMBER, 0.07),  # of their weighted vote
    "ks": (_COUNTS, [1, 5, 10]),  # of retrieval
    "shots": (_COUNTS, [1, 5, 20]),  # labels a class of few_shot
    "draws": (_COUNT, 10),
    "epochs": (_COUNT, 100),  # of linear, as the next three
    "batch_size": (_COUNT, 512),
    "learning_rate": (_NUMBER, None),
    "weight_decay": (_NUMBER, 0.0),
    "calibration": (((bool,), "true or false"), False),
    "corruptions": (_TEXTS, None),  # all, or names of ImageNet-C's
    "severities": (_COUNTS, [1, 2, 3, 4, 5]),
    "corruption_images": (_COUNT, 1000),  # at most so many are corrupted, class-balanced
    "frost": (_TEXT, None),  # a folder of photos of frost
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
OUTPUTS = {
    "results.json": RESULTS,
    "accuracy.png": PICTURE,
    "confusion.png": PICTURE,
    "calibration.png": PICTURE,
    "corruptions.png": PICTURE,
    "mistakes.html": PAGE,
}


def read_settings(given: Sequence[str]) -> dict[str, Any]:
    """Read `key=value` settings, values being YAML; what is not given has its default.

    Raises:
        RecipeError: an unknown key, or a value of another kind or out of range; names it.
    """
    settings: dict[str, Any] = {key: default for key, (_, default) in SETTINGS.items()}
    if any(setting.split("=") == ["metric", "map11"] for setting in given):
        settings["protocols"] = ["linear_features"]
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
    for key in ("ks", "shots", "severities"):
        settings[key] = settings[key] if isinstance(settings[key], list) else [settings[key]]
    for name in settings["protocols"]:
        if name not in PROTOCOLS:
            raise RecipeError(f"{unknown('protocol', name, PROTOCOLS)}; there are {', '.join(PROTOCOLS)}")
    if settings["metric"] not in METRICS:
        raise RecipeError(f"metric={shown(settings['metric'])} is not one of {', '.join(METRICS)}")
    if settings["metric"] == "map11":
        if others := [name for name in settings["protocols"] if name != "linear_features"]:
            raise RecipeError(
                f"protocols={', '.join(others)}: with metric=map11 an image may show several classes, which only "
                "linear_features takes"
            )
        if settings["calibration"] or settings["corruptions"]:
            raise RecipeError("metric=map11 is without calibration and corruptions, which are of one class an image")
    elif settings["calibration"] or settings["corruptions"]:
        if not set(settings["protocols"]) & {"knn", "linear_features", "linear"}:
            raise RecipeError(
                "calibration and corruptions need a protocol that predicts: knn, linear_features or linear"
            )
    for key, (kind, _) in SETTINGS.items():
        for value in settings[key] if isinstance(settings[key], list) else [settings[key]]:
            if kind in (_COUNT, _COUNTS) and not 1 <= value <= 1 << 24:
                raise RecipeError(f"{key}={value} must be {kind[1]}")
            if kind is _NUMBER and value is not None and not (math.isfinite(value) and value >= 0):
                raise RecipeError(f"{key}={value} must be 0 or more")
    if not settings["temperature"] > 0:
        raise RecipeError("temperature=0 must be above 0")
    if max(settings["severities"]) > 5:
        raise RecipeError(f"severities={max(settings['severities'])} must be 1 to 5")
    if settings["seed"] < 0:
        raise RecipeError(f"seed={settings['seed']} must be 0 or more")
    return settings


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
    names, frost = corruptions_of(settings) if settings["corruptions"] else ([], [])
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
        if layers[0].in_several and name == models[0]:
            notes.append(
                f"contents that stand under several labels, byte for byte: {layers[0].in_several:,}; metric=map11 "
                "takes them for images that show several classes"
            )
        for protocol in settings["protocols"]:
            if protocol == "linear":
                trained = [of for of in layers if of.projection is not None]
                if trained:
                    measured = measure_linear(name, trained, train, len(classes), settings)
                    found += [(of, one) for of, both in zip(trained, measured, strict=True) for one in both]
                continue
            found += [(of, one) for of in layers for one in measure(protocol, of, len(classes), settings)]
    unreadable = len(train.unreadable) + len(evaluation.unreadable)
    if unreadable:
        notes.append(f"images that cannot be read and are left out: {unreadable:,}; results.json lists them")
    corrupted = list(measure_corrupted(found, evaluation, names, frost, settings)) if names else []
    if names and "frost" not in names and "all" in _listed(settings["corruptions"]):
        notes.append("without frost, whose photos are to be given as frost=FOLDER")
    for note in notes[told:]:
        _say(note)
    short = _short(models)
    results = {
        "simclr_hub": simclr_hub.__version__,
        "command": command_of(models, given),
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
                "calibration": one.calibration,
                "images": one.images,
                "settings": one.settings,
                "seconds": round(one.seconds, 3),
                "features_seconds": round(of.seconds, 3),
            }
            for of, one in found
        ],
        "corruptions": corrupted,
        "seconds": 0.0,
    }
    bars: dict[str, dict[str, tuple[float, float, float]]] = {}
    for of, one in found:
        bars.setdefault(f"{one.protocol}: {one.measure}", {})[f"{short[of.model]} {of.layer}"] = one.ends()
    _check_outputs(output)
    for name in OUTPUTS:  # none of another run stays beside these results
        (output / name).unlink(missing_ok=True)
    draw_accuracies(bars, output / "accuracy.png", f"{len(evaluation.chosen):,} images of {len(classes):,} classes")
    if predicting := [(of, one, one.scores) for of, one in found if one.scores is not None]:
        of, one, scores = max(predicting, key=lambda best: best[1].value)
        title = f"{short[of.model]} {of.layer}, {one.protocol}: {one.measure} {one.shown()} %"
        _tell_mistakes(title, scores, of, evaluation, classes, output)
    if calibrated := {
        f"{short[of.model]} {of.layer}, {one.protocol}: {one.measure}": one.calibration
        for of, one in found
        if one.calibration is not None
    }:
        draw_calibration(calibrated, output / "calibration.png")
    if corrupted:
        title = f"accuracy on {corrupted[0]['images']:,} corrupted images: mean over severities, least and largest"
        draw_accuracies(by_corruption(_shortened(corrupted, short)), output / "corruptions.png", title)
    results["seconds"] = round(time.monotonic() - started, 3)
    text = json.dumps(results, indent=2) + "\n"
    write_output(output / "results.json", lambda file: file.write(text.encode()), RESULTS)
    return results


def table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the headers and rows of what `evaluate` found, the layers and models side by side."""
    short = _short(list(results["models"]))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for one in results["results"]:
        column = f"{short[one['model']]} {one['layer']}"
        fields = {key: one[key] for key in ("protocol", "measure", "value", "images", "interval", "spread")}
        cells.setdefault((one["protocol"], one["measure"]), {})[column] = Measured(**fields).shown()
        for key in CALIBRATION if one["calibration"] else ():
            if (value := one["calibration"].get(key)) is not None:
                text = f"{value:.2f}" if key.startswith("ece") else f"{value:.3f}"
                cells.setdefault((one["protocol"], f"{one['measure']}: {CALIBRATION[key]}"), {})[column] = text
    of_column: dict[tuple[str, str], dict[str, list[float]]] = {}
    for one in results["corruptions"]:
        column, some = f"{short[one['model']]} {one['layer']}", "clean" if one["corruption"] == CLEAN else "corrupted"
        measure = f"{one['measure']}, {some}"
        of_column.setdefault((one["protocol"], measure), {}).setdefault(column, []).append(one["value"])
    for row, columns_of in of_column.items():
        cells[row] = {column: f"{np.mean(values):.2f}" for column, values in columns_of.items()}
    columns = list(dict.fromkeys(column for row in cells.values() for column in row))
    return ["protocol", "measure (%)", *columns], [
        [*key, *(row.get(column, "") for column in columns)] for key, row in cells.items()
    ]


#: What a table says of calibration.
CALIBRATION = {
    "ece": "calibration error",
    "brier": "Brier score, 0 to 2",
    "nll": "negative log-likelihood",
    "temperature": "temperature of the held-out",
    "ece, scaled": "calibration error, scaled",
    "nll, scaled": "negative log-likelihood, scaled",
}


def corruption_table(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the headers and rows of the corruptions: accuracies, means over the severities."""
    found = by_corruption(_shortened(results["corruptions"], _short(list(results["models"]))))
    columns = list(dict.fromkeys(column for row in found.values() for column in row))
    return ["corruption", *columns], [
        [name, *(f"{row[column][0]:.2f}" if column in row else "" for column in columns)]
        for name, row in found.items()
    ]


def _shortened(results: Sequence[Mapping[str, Any]], short: Mapping[str, str]) -> list[dict[str, Any]]:
    return [{**one, "model": short[one["model"]]} for one in results]


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
