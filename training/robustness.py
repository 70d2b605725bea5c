"""Accuracy on corrupted images: what was learnt from clean features predicts those of corrupted ones."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from simclr_hub.errors import ImageError, RecipeError
from simclr_hub.images import load_image
from simclr_hub.scan import Rules

from .calibration import calibration
from .corruptions import CORRUPTIONS, corrupt, framed
from .data import FolderRows, seed_of
from .features import Change, Features
from .labelled import Part, class_balanced
from .measures import Measured
from .pretrain import _listed
from .protocols import interval
from .trainer import unknown

#: Without a corruption, beside which the others stand; framed alike.
CLEAN = "none"


def corruptions_of(settings: Mapping[str, Any]) -> tuple[list[str], list[np.ndarray]]:
    """Return the names of what is asked for, in the published order, and the photos of frost.

    Raises:
        RecipeError: an unknown name, or frost without photos that can be used.
    """
    asked, folder = set(_listed(settings["corruptions"])), settings["frost"]
    for name in asked - {"all"}:
        if name not in CORRUPTIONS:
            raise RecipeError(f"{unknown('corruption', name, CORRUPTIONS)}; there are all, {', '.join(CORRUPTIONS)}")
    names = [name for name in CORRUPTIONS if name in asked or ("all" in asked and (name != "frost" or folder))]
    if "frost" not in names:
        return names, []
    if not folder:
        raise RecipeError(
            "corruptions=frost needs frost=FOLDER with photos of frost; ImageNet-C's are under no licence, so that "
            "none come with this package: they are in ImageNet-C/create_c of github.com/hendrycks/robustness"
        )
    try:
        photos = [
            load_image(path).pixels.transpose(1, 2, 0)
            for path in FolderRows(os.path.expanduser(folder), "train", Rules())
        ]
    except ImageError as e:
        raise RecipeError(f"frost={folder}: {e}") from e
    small = [photo.shape for photo in photos if photo.dtype != np.uint8 or min(photo.shape[:2]) <= 224]
    if small or not photos:
        raise RecipeError(f"frost={folder}: needs photos of 8 bits, of more than 224 pixels at both sides")
    return names, photos


def _made(row: Any, place: int, name: str, severity: int, seed: int, frost: Sequence[np.ndarray]) -> np.ndarray:
    """Return an image corrupted, (H, W, 3) uint8; what is drawn depends on its place alone, not on the others."""
    pixels = load_image(row).pixels
    if pixels.dtype != np.uint8:
        pixels = (pixels * 255).round().astype(np.uint8)
    picture = framed(pixels.transpose(1, 2, 0))
    random = np.random.default_rng(seed_of(seed, name, severity, place))
    return picture if name == CLEAN else corrupt(picture, name, severity, random, frost)


def measure_corrupted(
    found: Sequence[tuple[Features, Measured]],
    evaluation: Part,
    names: Sequence[str],
    frost: Sequence[np.ndarray],
    settings: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Yield the accuracy of each predicting protocol and layer at each corruption and severity; clean first.

    Args:
        found: what was measured on clean images.
        evaluation: what was evaluated on; a class-balanced `corruption_images` of them are corrupted.
        names: of the corruptions.
        frost: photos for it.
        settings: of evaluate.
    """
    seed, severities = settings["seed"], sorted(set(settings["severities"]))
    readable = evaluation.of(np.setdiff1d(evaluation.chosen, np.array(list(evaluation.unreadable), dtype=np.int64)))
    if len(readable.chosen) > settings["corruption_images"]:
        of_class = readable.labels[readable.chosen]
        readable.chosen = readable.chosen[class_balanced(of_class, settings["corruption_images"], seed)]
    for name, severity in [(CLEAN, 0), *((name, severity) for name in names for severity in severities)]:
        told = {"corruption": name, "severity": severity, "seed": seed, "frost": len(frost) if name == "frost" else 0}
        change = Change(told, partial(_made, name=name, severity=severity, seed=seed, frost=frost))
        for of, one in found:
            if one.predict is None:
                continue
            features, labels = of.compute(readable, change)
            probabilities = one.predict(features)
            value = 100 * float((probabilities.argmax(1) == labels).double().mean())
            result = {
                "model": of.model,
                "layer": of.layer,
                "protocol": one.protocol,
                "measure": one.measure if one.protocol != "linear_features" else "top-1",
                "corruption": name,
                "severity": severity,
                "value": value,
                "interval": interval(value, len(labels)),
                "images": len(labels),
            }
            if settings["calibration"]:
                told_of = calibration(probabilities, labels)
                result |= {key: told_of[key] for key in ("ece", "brier", "nll")}
            yield result


def by_corruption(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Return corruption -> "model, layer, protocol: measure" -> mean, least and largest value over its severities."""
    values: dict[str, dict[str, list[float]]] = {}
    for one in results:
        column = f"{one['model']} {one['layer']}, {one['protocol']}: {one['measure']}"
        values.setdefault(one["corruption"], {}).setdefault(column, []).append(one["value"])
    return {
        name: {column: (float(np.mean(v)), min(v), max(v)) for column, v in row.items()}
        for name, row in values.items()
    }
