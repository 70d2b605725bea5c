"""Classify photos, or the photos of an index, with a SimCLR classifier: the embedder's vectors and one matrix."""

import os
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .embedder import Embedder, Failure
from .errors import CheckpointError, IndexMismatchError, LabelError
from .images import FileBytes, UnusableImage, describe
from .index import SimilarityIndex
from .labels import Label, first_two, softmax
from .loading import locate
from .model_folder import read_json, weight_files
from .whitening import unit_rows


class Classifier:
    """A classifier made ready to label photos.

    Args:
        model: a directory, an official name or a Hub id[@revision] of a `SimCLRForImageClassification`.
        batch_size: images a forward pass.
        device: a torch device; None takes the GPU if there is one.

    Attributes:
        name: of the model.
        classes: their names.
        sure_above: the confidence above which a label is sure, as fine-tuning measured it; None if it did not.
        embedder: of the layer that the classifier sits on.

    Raises:
        CheckpointError: the model cannot be loaded, or its classifier is not what its config says.
        LabelError: the model has no classifier, or one of a single class.
    """

    def __init__(self, model: str | os.PathLike[str], *, batch_size: int | None = None, device: str | None = None):
        folder, self.name = locate(model)
        config, tensors = _read(folder, self.name)
        if tensors is None:
            raise LabelError(
                f"{self.name}: an encoder without a classifier; train one: "
                f"simclr-hub finetune photos data=FOLDER init_from={self.name}"
            )
        self._weight, self._bias = tensors
        self.classes = _class_names(config, len(self._bias), self.name)
        layer = _number(config, "classifier_layer", 0, 16, self.name) or 0
        above = _number(config, "sure_above", 0, 1, self.name)
        self.sure_above = None if above is None else float(above)
        self._normalized = config.get("classifier_normalized", False) is True
        self.embedder = Embedder(
            self.name if self.name != "" else folder,
            layer=f"g{int(layer)}" if layer else "h",
            batch_size=batch_size,
            device=device,
        )
        if self._weight.shape != (len(self._bias), self.embedder.dim):
            raise CheckpointError(
                f"{self.name}: a classifier of {self._weight.shape}, on features of {self.embedder.dim}"
            )

    def stream(self, sources: Any) -> Generator[Label | Failure]:
        """Label images one after another, as `Embedder.stream` embeds them."""
        for item in self.embedder.stream(sources):
            if isinstance(item, Failure):
                yield item
            else:
                (label,) = self.label([source_name(item.source)], item.vector[None])
                yield label

    def label(self, paths: Sequence[str], vectors: np.ndarray) -> list[Label]:
        """Label photos by their vectors (N, D) of the classifier's layer."""
        if self._normalized:
            vectors = unit_rows(vectors)[0].astype(np.float32)
        best, shares = first_two(softmax(vectors @ self._weight.T + self._bias))
        found = []
        for path, (first, second), (share, other) in zip(paths, best.tolist(), shares.tolist(), strict=True):
            unsure = None if self.sure_above is None else share <= self.sure_above
            found.append(Label(path, self.classes[first], share, unsure, self.classes[second], other))
        return found

    def label_index(self, path: str | os.PathLike[str]) -> list[Label]:
        """Label the photos of an index by the vectors that it holds; no photo is read.

        Raises:
            IndexMismatchError: the index was made by another encoder, or the classifier needs what it does not hold.
        """
        advice = f"give the photos instead: simclr-hub classify {self.name} FOLDER"
        with SimilarityIndex.open(path) as index:
            made_by = index.status()["made_by"]
            given = self.embedder.fingerprint
            for key in sorted((made_by.keys() | given.keys()) - {"model", "whitening"}):
                if made_by.get(key) != given.get(key):
                    told = (f"{made_by.get('model')} ({key} {str(made_by.get(key))[:40]})", str(given.get(key))[:40])
                    raise IndexMismatchError(
                        f"{describe(path)}: made by {told[0]}, while {self.name} has {key} {told[1]}; {advice}, or "
                        f"index them with it: simclr-hub index FOLDER --model {self.name}"
                    )
            if not self._normalized:
                raise IndexMismatchError(
                    f"{describe(path)}: an index keeps which way a vector points, not its length, which the "
                    f"classifier of {self.name} needs; {advice}"
                )
            paths, vectors = index.features()
        return self.label(paths, vectors)


def source_name(source: Any) -> str:
    """Return the name of a source of a stream."""
    return source.name if isinstance(source, (FileBytes, UnusableImage)) else str(source)


def _read(folder: Path, name: str) -> tuple[dict[str, Any], tuple[np.ndarray, np.ndarray] | None]:
    """Read a model's config and its classifier's weight (C, D) and bias (C,), float32; None without one."""
    from safetensors import SafetensorError, safe_open

    try:
        config = read_json(folder / "config.json")
        if (kind := config.get("model_type")) != "simclr":
            raise CheckpointError(f"{name}: a model of type {str(kind)[:40]!r}, not a SimCLR classifier")
        tensors = {}
        for path in weight_files(folder):
            for framework in ("numpy", "pt"):  # numpy has no bfloat16
                try:
                    with safe_open(path, framework) as file:
                        for key in {"classifier.weight", "classifier.bias"} & set(file.keys()):
                            tensor = file.get_tensor(key)
                            tensors[key] = np.asarray(tensor if framework == "numpy" else tensor.float(), np.float32)
                    break
                except TypeError:
                    if framework == "pt":
                        raise
    except CheckpointError:
        raise
    except (OSError, ValueError, TypeError, SafetensorError) as e:
        raise CheckpointError(f"{name}: {e}") from e
    if not tensors:
        return config, None
    if tensors.keys() != {"classifier.weight", "classifier.bias"}:
        raise CheckpointError(f"{name}: {', '.join(tensors)} alone is no classifier")
    weight, bias = tensors["classifier.weight"], tensors["classifier.bias"]
    if weight.ndim != 2 or bias.shape != weight.shape[:1] or not (np.isfinite(weight).all() & np.isfinite(bias).all()):
        raise CheckpointError(f"{name}: a classifier of {weight.shape} and {bias.shape}, or with impossible values")
    if len(bias) < 2:
        raise LabelError(f"{name}: a classifier of {len(bias)} classes says nothing; two are the least")
    return config, (weight, bias)


def _class_names(config: Mapping[str, Any], count: int, name: str) -> list[str]:
    """Return the classes' names as transformers has them, LABEL_0, ... if the config names none."""
    given = config.get("id2label")
    if given is None:
        return [f"LABEL_{i}" for i in range(count)]
    if (
        not isinstance(given, dict)
        or given.keys() != {str(i) for i in range(count)}
        or not all(isinstance(label, str) for label in given.values())
    ):
        raise CheckpointError(f"{name}: id2label does not name the {count:,} classes of its classifier")
    return [given[str(i)] for i in range(count)]


def _number(config: Mapping[str, Any], key: str, low: float, high: float, name: str) -> float | None:
    """Return a number of a config, None if it has none."""
    value = config.get(key)
    if value is not None and (
        isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high
    ):
        raise CheckpointError(f"{name}: {key}={str(value)[:40]} must be a number from {low:g} to {high:g}")
    return value
