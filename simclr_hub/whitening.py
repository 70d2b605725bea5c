"""Whitening: features turned and scaled so that every direction in which photos differ counts alike, before cosine.

h fills few of its dimensions: a few directions that all photos share in some measure rule every cosine. Less the mean
of many photos, turned to the directions in which these vary (PCA) and divided by how much, cosines tell photos apart.

Unusual: directions that hardly vary are given less weight instead of being blown up (shrinkage), and the weakest are
left out, so that a whitened vector is always shorter than the features and the two cannot be taken for each other.
"""

import hashlib
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ._files import write_file
from .errors import CheckpointError

#: Beside a checkpoint's weights; for h, and for h with stage 3 beside it.
WHITENING_NAMES = {"h": "whitening.safetensors", "h+stage3": "whitening-stage3.safetensors"}
#: Added to each direction's variance, as a share of the mean variance; measured in benchmarks/RESULTS.md.
SHRINKAGE = 0.02
#: Directions are left out that together bear less than this share of what a whitened vector holds.
NEGLIGIBLE = 0.005
#: Photos to learn from that are as good as more.
IMAGES = 10_000
#: Widths of features beyond which a file is refused: the widest released SimCLR has 6,144.
_WIDEST = 1 << 15
_KEY = "simclr_hub.whitening"  # one key of JSON: several keys would be written in an order left to chance
_TOLD = {"layer", "learnt_from", "images", "shrinkage", "weights"}
_ROWS = 1 << 13  # features that are whitened at a time


@dataclass(frozen=True)
class Whitening:
    """(h / |h| - mean) @ matrix.

    Attributes:
        mean: (D,) float32, of normalised features.
        matrix: (D, D') float32, D' < D.
        layer: what it is for: "h" or "h+stage3".
        learnt_from: of what images, in words.
        images: how many.
        shrinkage: share of the mean variance that was added to each variance.
        weights: of the checkpoint, as `Embedder.fingerprint` has it; "" if it is not known.

    Raises:
        ValueError: shapes that do not belong together, or numbers that are not finite.
    """

    mean: np.ndarray
    matrix: np.ndarray
    layer: str
    learnt_from: str
    images: int
    shrinkage: float
    weights: str = ""

    def __post_init__(self) -> None:
        mean, matrix = self.mean, self.matrix
        if mean.dtype != np.float32 or matrix.dtype != np.float32:
            raise ValueError(f"a whitening of {mean.dtype} and {matrix.dtype}, not float32")
        if mean.ndim != 1 or matrix.ndim != 2 or not 0 < matrix.shape[1] < matrix.shape[0] == len(mean) <= _WIDEST:
            raise ValueError(
                f"a whitening's mean {mean.shape} and matrix {matrix.shape}, not (D,) and (D, less than D)"
            )
        if not (np.isfinite(mean).all() and np.isfinite(matrix).all()):
            raise ValueError("a whitening with numbers that are not finite")
        if self.layer not in WHITENING_NAMES:
            raise ValueError(f"a whitening of layer {self.layer!r}, not {' or '.join(WHITENING_NAMES)}")
        texts = isinstance(self.learnt_from, str) and isinstance(self.weights, str)
        counted = isinstance(self.images, int) and not isinstance(self.images, bool) and self.images > 1
        real = isinstance(self.shrinkage, float) and math.isfinite(self.shrinkage) and self.shrinkage > 0
        if not (texts and counted and real):
            raise ValueError(
                f"a whitening learnt from {self.images!r} images of {self.learnt_from!r} with shrinkage "
                f"{self.shrinkage!r} and weights {self.weights!r}"
            )

    @property
    def dim(self) -> int:
        """Width D' of whitened vectors."""
        return int(self.matrix.shape[1])

    @cached_property
    def sha256(self) -> str:
        """Identifies what it does to features, whatever is told of it."""
        digest = hashlib.sha256(f"{self.layer} {self.matrix.shape}".encode())
        digest.update(np.ascontiguousarray(self.mean, "<f4").tobytes())
        digest.update(np.ascontiguousarray(self.matrix, "<f4").tobytes())
        return digest.hexdigest()

    def apply(self, features: np.ndarray, *, normalize: bool = False) -> np.ndarray:
        """Whiten features (N, D), of any length: float32 (N, D').

        Args:
            features: row by row; a row of zeros, which has no direction, gives zeros.
            normalize: scale each whitened vector to length 1.

        Raises:
            ValueError: features of another width.
        """
        if features.ndim != 2 or features.shape[1] != len(self.mean):
            raise ValueError(f"features of shape {features.shape}; this whitening is for (N, {len(self.mean)})")
        whitened = np.empty((len(features), self.dim), np.float32)
        for start in range(0, len(features), _ROWS):
            units, lengths = _units(features[start : start + _ROWS])
            # The difference is small beside what it is taken from: in float64, while the product need not be.
            rows = (units - self.mean).astype(np.float32) @ self.matrix
            rows[lengths == 0] = 0
            whitened[start : start + _ROWS] = _units(rows)[0] if normalize else rows
        return whitened

    @classmethod
    def learn(
        cls,
        features: np.ndarray,
        *,
        shrinkage: float | None = None,
        learnt_from: str,
        layer: str = "h",
        weights: str = "",
    ) -> "Whitening":
        """Learn from features (N, D) of unlabelled images.

        Args:
            features: row by row; rows of zeros are left out.
            shrinkage: share of the mean variance to add to each; None is 2 %.
            learnt_from: of what images, in words.
            layer: "h" or "h+stage3".
            weights: of the checkpoint.

        Raises:
            ValueError: too few images, or all alike.
        """
        units, lengths = _units(features)
        units = units[lengths > 0]
        shrinkage = SHRINKAGE if shrinkage is None else float(shrinkage)
        if len(units) < 3 or units.shape[1] < 2:
            raise ValueError(f"features of shape {features.shape} are too few to learn a whitening from")
        mean, matrix = _learnt(units, shrinkage)
        return cls(mean, matrix, layer, learnt_from, len(units), shrinkage, weights)

    def to_bytes(self) -> bytes:
        """As a safetensors file; equal whitenings give equal bytes."""
        told = {key: getattr(self, key) for key in _TOLD}
        tensors = {"mean": self.mean, "matrix": np.ascontiguousarray(self.matrix)}
        return save(tensors, {_KEY: json.dumps(told, sort_keys=True)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file.

        Raises:
            OSError: it could not be written.
        """
        data = self.to_bytes()
        write_file(Path(path), lambda file: file.write(data))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Whitening":
        """Read a file that `save` wrote; everything in it is checked.

        Raises:
            CheckpointError: it is damaged, or no whitening.
        """
        try:
            if os.path.getsize(path) > 4 * _WIDEST * 6144:
                raise ValueError("it is too large")
            with safe_open(path, "np") as file:
                if set(file.keys()) != {"mean", "matrix"}:
                    raise ValueError(f"it holds {', '.join(sorted(file.keys())) or 'nothing'}, not mean and matrix")
                told: Any = json.loads((file.metadata() or {}).get(_KEY, "null"))
                if not isinstance(told, dict) or told.keys() - {
                    "layer",
                    "learnt_from",
                    "images",
                    "shrinkage",
                    "weights",
                }:
                    raise ValueError("it does not tell what it was learnt from")
                return cls(file.get_tensor("mean"), file.get_tensor("matrix"), **told)
        except (SafetensorError, OSError, TypeError, ValueError) as e:
            raise CheckpointError(f"{os.fspath(path)}: not a whitening that can be used: {e}") from e


def _units(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (N, D) scaled to length 1, zeros as they are, and their lengths (N,): float64."""
    wide = features.astype(np.float64)
    lengths: np.ndarray = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    wide /= np.where(lengths > 0, lengths, 1)[:, None]
    return wide, lengths


def _learnt(units: np.ndarray, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean (D,) and matrix (D, D') of rows (N, D) of length 1, float32.

    Raises:
        ValueError: the rows are all alike.
    """
    mean = units.mean(0)
    less = units - mean
    variances, directions = np.linalg.eigh(less.T @ less / (len(units) - 1))
    variances, directions = variances[::-1].clip(0), directions[:, ::-1]  # the largest first
    if not variances[0] > 1e-12:
        raise ValueError("the images are all alike to this model: nothing can be learnt from them")
    added = shrinkage * variances.mean()
    held = np.cumsum(variances / (variances + added))
    kept = min(int(np.searchsorted(held, (1 - NEGLIGIBLE) * held[-1])) + 1, len(mean) - 1)
    kept -= kept % 8 if kept > 64 else 0  # whole vectors of the processor's
    directions = directions[:, :kept]
    # Which way a direction points means nothing: always the same, so that equal photos give an equal matrix.
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(kept)])
    matrix = directions * signs / np.sqrt(variances[:kept] + added)
    return mean.astype(np.float32), matrix.astype(np.float32)
