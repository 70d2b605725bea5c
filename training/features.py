"""Features of labelled images, computed once and kept, for each layer of a model."""

import functools
import hashlib
import json
import os
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import cached_assets_path
from torch import Tensor

from simclr_hub._files import write_file
from simclr_hub.embedder import Embedder, Failure
from simclr_hub.errors import RecipeError, SimCLRHubError
from simclr_hub.loading import load, weights_hash
from simclr_hub.progress import progress_bar
from simclr_hub.runtimes import H_STAGE3

from .labelled import Part
from .pretrain import _listed
from .trainer import shown


@dataclass(frozen=True)
class Kept:
    """What was computed of a source's images: row i is of the image at places[i], or that one could not be used.

    Attributes:
        places: (N,), rising.
        vectors: (N, D) float32; zeros where there is a reason.
        hashes: (N, 32) uint8, of each content.
        labels: (N,), as the source has them.
        reasons: (N,), why an image could not be used, or "".
    """

    places: np.ndarray
    vectors: np.ndarray
    hashes: np.ndarray
    labels: np.ndarray
    reasons: np.ndarray

    @classmethod
    def read(cls, path: Path, width: int) -> "Kept":
        """Read a file; nothing is kept if it is not there, damaged or of something else."""
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                kept = cls(**{name: file[name] for name in cls.__dataclass_fields__})
            n = len(kept.places)
            shapes = [(n,), (n, width), (n, 32), (n,), (n,)]
            kinds = "ifuiU"
            for (name, shape), kind in zip(zip(cls.__dataclass_fields__, shapes, strict=True), kinds, strict=True):
                if getattr(kept, name).shape != shape or getattr(kept, name).dtype.kind != kind:
                    raise ValueError(f"{path}: {name} is of another shape")
            return kept
        except (OSError, EOFError, ValueError, TypeError, KeyError, zipfile.BadZipFile):
            none = np.zeros(0, np.int64)
            return cls(none, np.zeros((0, width), np.float32), np.zeros((0, 32), np.uint8), none, np.zeros(0, "U1"))

    def write(self, path: Path) -> None:
        """Write it to a file, which is replaced."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, lambda file: np.savez(file, **vars(self)))

    def contents(self) -> set[bytes]:
        """Return the hashes."""
        return {row.tobytes() for row in self.hashes}

    def joined(self, other: "Kept") -> "Kept":
        """Return both, in order."""
        order = np.argsort(np.concatenate([self.places, other.places]))
        columns = (np.concatenate([getattr(self, name), getattr(other, name)]) for name in vars(self))
        return Kept(*(column[order] for column in columns))

    def at(self, places: np.ndarray) -> "Kept":
        """Return the rows of some images, all of which are there."""
        rows = np.searchsorted(self.places, places)
        return Kept(*(getattr(self, name)[rows] for name in vars(self)))


@dataclass(frozen=True)
class Change:
    """What is done to a part's images before their features are computed.

    Attributes:
        told: what determines it.
        make: an image as the part has it, and its place, to what is embedded.
    """

    told: Mapping[str, Any]
    make: Callable[[Any, int], Any]


def features_of(embedder: Embedder, part: Part, cache: Path | None, name: str, change: Change | None = None) -> Kept:
    """Compute the features of a part's images, but those that are kept; keep them.

    Args:
        embedder: of the layer.
        part: its `unreadable` are filled in.
        cache: folder to keep them in; None for the place of what else is kept of the Hub.
        name: of the model, for the bar.
        change: made to each image.
    """
    source = [os.path.realpath(one) if os.path.exists(one) else one for one in _listed(part.source)]
    identity = {key: value for key, value in embedder.fingerprint.items() if key != "model"}
    changed = [dict(change.told)] if change else []
    key = json.dumps([identity, source, part.split, part.rows.version, *changed], sort_keys=True)
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    path = (cache or cached_assets_path("simclr_hub", "features")) / f"{digest}.npz"
    kept = Kept.read(path, embedder.dim)
    missing = np.setdiff1d(part.chosen, kept.places)
    if len(missing):
        vectors = np.zeros((len(missing), embedder.dim), np.float32)
        hashes = np.zeros((len(missing), 32), np.uint8)
        reasons = [""] * len(missing)
        make = change.make if change else lambda row, place: row
        sources = (make(part.rows[place], place) for place in missing.tolist())
        with progress_bar(f"features, {name}", len(missing)) as advance:
            for item in embedder.stream(sources):
                if isinstance(item, Failure):
                    reasons[item.position] = str(item.error)
                else:
                    vectors[item.position] = item.vector
                    hashes[item.position] = np.frombuffer(item.content_hash, np.uint8)
                advance(1)
        kept = kept.joined(Kept(missing, vectors, hashes, part.labels[missing], np.array(reasons, dtype=np.str_)))
        kept.write(path)
    found = kept.at(part.chosen)
    bad = found.reasons != ""
    part.unreadable |= dict(zip(found.places[bad].tolist(), found.reasons[bad].tolist(), strict=True))
    return found.at(found.places[~bad])


@dataclass
class Features:
    """One layer of one model: what the protocols work on.

    Attributes:
        model: its name as it was given.
        layer: "h", "h whitened", "g1", ...
        fingerprint: what determines the vectors.
        train: (N, D).
        train_labels: (N,), or (N, C) of 0 and 1 where an image may show several classes.
        evaluation: (M, D).
        labels: (M,) or (M, C), of those.
        places: (M,), of those in their part.
        projection: 0 for h, j for g's layer j; None for what is no layer that a classifier can be trained on by crops.
        one_set: both are of one split, of which those to evaluate on were held out.
        repeated: how many of the images to evaluate on are, byte for byte, among those to learn from.
        in_several: how many contents there are under several labels; where there is one label an image.
        seconds: what computing took.
        compute: the same features, and the labels, of a part, its images changed.
    """

    model: str
    layer: str
    fingerprint: Mapping[str, Any]
    train: Tensor
    train_labels: Tensor
    evaluation: Tensor
    labels: Tensor
    places: np.ndarray
    projection: int | None
    one_set: bool
    repeated: int
    in_several: int
    seconds: float
    compute: Callable[[Part, Change], tuple[Tensor, Tensor]]


def layers_of(
    name: str, train: Part, evaluation: Part, layers: Sequence[str], cache: Path | None = None
) -> Iterator[Features]:
    """Yield the features of some layers of a model; behind h also whitened h, where a whitening comes with the model.

    Args:
        name: of the model, as `simclr_hub.load` takes it.
        train: what there is to learn from.
        evaluation: what is evaluated on.
        layers: "h", "h+stage3", "g1", ..., "z".
        cache: see `features_of`.

    Raises:
        CheckpointError: the model cannot be loaded.
        RecipeError: it does not have a layer, or hardly an image can be read.
    """

    @functools.cache
    def computed(layer: str) -> tuple[Embedder, Kept, Kept, float]:
        started = time.monotonic()
        try:
            embedder = Embedder(name, layer=layer)
        except ValueError as e:
            raise e if isinstance(e, SimCLRHubError) else RecipeError(f"{name}: {e}") from e
        ours, theirs = (features_of(embedder, part, cache, name) for part in (train, evaluation))
        if not len(ours.places) or len(theirs.places) < 2:
            why = next(iter({**train.unreadable, **evaluation.unreadable}.values()), "")
            raise RecipeError(f"data={train.source}: hardly an image can be read; first: {why}")
        return embedder, ours, theirs, time.monotonic() - started

    projected = {layer: _projection(name, layer) for layer in layers if layer not in ("h", H_STAGE3)}
    for layer in layers:
        embedder, ours, theirs, seconds = computed(layer if layer == H_STAGE3 else "h")

        def made(
            layer: str,
            fingerprint: Mapping[str, Any],
            projection: int | None,
            change: Callable[[np.ndarray], np.ndarray],
            ours: Kept = ours,
            theirs: Kept = theirs,
            seconds: float = seconds,
            embedder: Embedder = embedder,
        ) -> Features:
            return Features(
                name,
                layer,
                fingerprint,
                torch.from_numpy(change(ours.vectors)),
                torch.from_numpy(train.targets(ours.places)),
                torch.from_numpy(change(theirs.vectors)),
                torch.from_numpy(evaluation.targets(theirs.places)),
                theirs.places,
                projection,
                train.rows is evaluation.rows,
                len(theirs.contents() & ours.contents()),
                0 if train.several is not None else _in_several(ours, train, theirs, evaluation),
                seconds,
                functools.partial(_changed, embedder, cache, name, change),
            )

        if layer in projected:  # g is computed from h, which is kept
            weights, projection, compute = projected[layer]
            yield made(layer, {**embedder.fingerprint, "layer": layer, "weights": weights}, projection, compute)
            continue
        yield made(layer, embedder.fingerprint, 0 if layer == "h" else None, lambda vectors: vectors)
        if (whitening := embedder.checkpoint_whitening()) is not None:
            fingerprint = {**embedder.fingerprint, "whitening": whitening.sha256}
            yield made(f"{layer} whitened", fingerprint, None, whitening.apply)


def _changed(
    embedder: Embedder,
    cache: Path | None,
    name: str,
    to_layer: Callable[[np.ndarray], np.ndarray],
    part: Part,
    how: Change,
) -> tuple[Tensor, Tensor]:
    told = " ".join(str(value) for key, value in how.told.items() if key in ("corruption", "severity"))
    kept = features_of(embedder, part, cache, f"{name}, {told}", how)
    return torch.from_numpy(to_layer(kept.vectors)), torch.from_numpy(part.targets(kept.places))


def _in_several(ours: Kept, train: Part, theirs: Kept, evaluation: Part) -> int:
    """Count the contents that stand under several labels."""
    labels: dict[bytes, set[int]] = {}
    for kept, part in ((ours, train), (theirs, evaluation)):
        for content, label in zip(kept.hashes, part.labels[kept.places].tolist(), strict=True):
            labels.setdefault(content.tobytes(), set()).add(label)
    return sum(len(some) > 1 for some in labels.values())


def _projection(name: str, layer: str) -> tuple[str, int, Callable[[np.ndarray], np.ndarray]]:
    """Return a layer of g: the hash of the weights, which it is, and what computes it from h.

    Raises:
        RecipeError: the model does not have it.
    """
    model, _ = load(name)
    count = model.config.projection_layers
    there = {**{f"g{j}": j for j in range(1, count + 1)}, **({"z": count} if count else {})}
    if layer not in there:
        raise RecipeError(f"{name}: layer {shown(layer)} is not one of {', '.join(['h', *there, H_STAGE3])}")

    @torch.no_grad()
    def compute(h: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(h).split(1 << 13)
        return torch.cat([model.projection(part)[there[layer] - 1] for part in parts]).numpy()

    return weights_hash(model, with_projection=True), there[layer], compute
