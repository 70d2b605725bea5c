"""Whitening: features turned and scaled so that every direction in which photos differ counts alike, before cosine.

h fills few of its dimensions: a few directions that all photos share in some measure rule every cosine. Less the mean
of many photos, turned to the directions in which these vary (PCA) and divided by how much, cosines tell photos apart.
Directions that hardly vary are given less weight instead of being blown up (shrinkage), and the weakest are left out,
so that a whitened vector is always shorter than the features and the two cannot be taken for each other.
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
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ._files import Kind, write_output
from .errors import CheckpointError

#: Beside a checkpoint's weights; for h, and for h with stage 3 beside it.
WHITENING_NAMES = {"h": "whitening.safetensors", "h+stage3": "whitening-stage3.safetensors"}
#: Added to each direction's variance, as a share of the mean variance; measured in benchmarks/RESULTS.md.
SHRINKAGE = 0.02
#: With few images the first of these that is seen to do no harm, see `_choose_shrinkage`; the fewest that may teach.
STRENGTHS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
AGREEMENT, FEWEST = 0.75, 100
#: Directions are left out that together bear less than this share of what a whitened vector holds.
NEGLIGIBLE = 0.005
#: Photos to learn from that are as good as more.
IMAGES = 10_000
#: Widths of features beyond which a file is refused: the widest released SimCLR has 6,144.
_WIDEST = 1 << 15
_LARGEST = 1 << 30  # bytes of a file
_LONGEST = 10_000  # letters
_KEY = "simclr_hub.whitening"  # one key of JSON: several keys would be written in an order left to chance
_TOLD = {"layer", "learnt_from", "images", "shrinkage", "weights"}
_PLENTY = 10  # images for each of the features' numbers with which nothing need be chosen
_COMPARED = 2000  # photos whose neighbours are compared
_ROWS = 1 << 13  # features that are whitened at a time


@dataclass(frozen=True, eq=False)
class Whitening:
    """(h / |h| - mean) @ matrix; two are equal if they do the same to features.

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
        texts = all(isinstance(text, str) and len(text) <= _LONGEST for text in (self.learnt_from, self.weights))
        counted = isinstance(self.images, int) and not isinstance(self.images, bool) and self.images > 1
        real = isinstance(self.shrinkage, float) and math.isfinite(self.shrinkage) and self.shrinkage > 0
        if not (texts and counted and real):
            told = f"{self.images!r} images of {self.learnt_from!r} with shrinkage {self.shrinkage!r}"
            raise ValueError(f"a whitening learnt from {told[:200]} and weights {str(self.weights)[:100]!r}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Whitening) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    @property
    def dim(self) -> int:
        """Return the width D' of whitened vectors."""
        return int(self.matrix.shape[1])

    @cached_property
    def sha256(self) -> str:
        """Return what identifies what it does to features, whatever is told of it."""
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
            units, lengths = unit_rows(features[start : start + _ROWS])
            # The difference is small beside what it is taken from: in float64, while the product need not be.
            rows = (units - self.mean).astype(np.float32) @ self.matrix
            rows[lengths == 0] = 0
            whitened[start : start + _ROWS] = unit_rows(rows)[0] if normalize else rows
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
            shrinkage: share of the mean variance to add to each; None is 2 %, or with few images as much more as
                keeps it from doing harm.
            learnt_from: of what images, in words.
            layer: "h" or "h+stage3".
            weights: of the checkpoint.

        Raises:
            ValueError: too few images, or all alike.
        """
        units, lengths = unit_rows(features)
        units = units[lengths > 0]
        if units.shape[1] < 2:
            raise ValueError(f"features of {units.shape[1]} numbers: there is nothing to whiten")
        shrinkage = _choose_shrinkage(units) if shrinkage is None else float(shrinkage)
        spread = _Spread.of(units)
        matrix = spread.matrix(shrinkage).astype(np.float32)
        return cls(spread.mean.astype(np.float32), matrix, layer, learnt_from, len(units), shrinkage, weights)

    def to_bytes(self) -> bytes:
        """Encode as a safetensors file; equal whitenings give equal bytes."""
        told = {key: getattr(self, key) for key in _TOLD}
        tensors = {"mean": self.mean, "matrix": np.ascontiguousarray(self.matrix)}
        return save(tensors, {_KEY: json.dumps(told, sort_keys=True)})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it to a safetensors file; a whitening that is there is replaced.

        Raises:
            FileExistsError: something else is there.
            OutputError: another suffix, or a folder that is missing or read-only.
            OSError: it could not be written.
        """
        data = self.to_bytes()
        write_output(Path(path), lambda file: file.write(data), WHITENING)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Whitening":
        """Read a file that `save` wrote; everything in it is checked.

        Raises:
            CheckpointError: it is damaged, or no whitening.
        """
        try:
            if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST:  # a pipe would be waited for
                raise ValueError("it is too large, or no file")
            return cls.from_bytes(Path(path).read_bytes())
        except (OSError, ValueError) as e:
            raise CheckpointError(f"{os.fspath(path)}: not a whitening that can be used: {e}") from e

    @classmethod
    def from_bytes(cls, data: bytes) -> "Whitening":
        """Decode what `to_bytes` gives; everything is checked.

        Raises:
            ValueError: damaged, or no whitening.
        """
        try:
            tensors = load(data)
            size = int.from_bytes(data[:8], "little")
            header: Any = json.loads(data[8 : 8 + size])
            told: Any = json.loads(header.get("__metadata__", {}).get(_KEY, "null"))
        except (SafetensorError, KeyError, RecursionError) as e:  # KeyError: a type of numbers that numpy has not
            raise ValueError(str(e)) from e
        if tensors.keys() != {"mean", "matrix"}:
            raise ValueError(f"it holds {', '.join(sorted(tensors)) or 'nothing'}, not mean and matrix")
        if not isinstance(told, dict) or told.keys() != _TOLD:
            raise ValueError("it does not tell what it was learnt from")
        return cls(tensors["mean"], tensors["matrix"], **told)


def _is_whitening(path: Path) -> bool:
    try:
        Whitening.load(path)
    except CheckpointError:
        return False
    return True


#: The kind of file that one is, see `_files.check_output`.
WHITENING = Kind("a whitening", (".safetensors",), _is_whitening)


def unit_rows(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale rows (N, D) to length 1, zeros as they are; also return their lengths (N,): float64."""
    wide = features.astype(np.float64)
    lengths: np.ndarray = np.sqrt(np.einsum("nd,nd->n", wide, wide))
    wide /= np.where(lengths > 0, lengths, 1)[:, None]
    return wide, lengths


@dataclass(frozen=True)
class _Spread:
    """How rows (N, D) of length 1 lie: their mean (D,), directions (D, R), the variances along these (R,), falling."""

    mean: np.ndarray
    directions: np.ndarray
    variances: np.ndarray

    @classmethod
    def of(cls, units: np.ndarray) -> "_Spread":
        """Measure it.

        Raises:
            ValueError: the rows are all alike.
        """
        mean = units.mean(0)
        less = units - mean
        if len(less) < less.shape[1]:
            _, lengths, rows = np.linalg.svd(less, full_matrices=False)
            variances, directions = lengths**2, rows.T
        else:
            variances, directions = np.linalg.eigh(less.T @ less)
            variances, directions = variances[::-1], directions[:, ::-1]
        if not variances[0] > 1e-9:
            raise ValueError("the images are all alike to this model: nothing can be learnt from them")
        return cls(mean, directions, variances.clip(0) / (len(units) - 1))

    def matrix(self, shrinkage: float) -> np.ndarray:
        """Turn and scale: (D, D'), without the directions that bear next to nothing."""
        dim = len(self.mean)
        shrunk = self.variances + shrinkage * self.variances.sum() / dim
        held = np.cumsum(self.variances / shrunk)
        kept = min(int(np.searchsorted(held, (1 - NEGLIGIBLE) * held[-1])) + 1, dim - 1)
        kept -= kept % 8 if kept > 64 else 0  # whole vectors of the processor's
        matrix: np.ndarray = self.directions[:, :kept] / np.sqrt(shrunk[:kept])
        # Which way a direction points means nothing: always the same, so that equal photos give an equal matrix.
        matrix *= np.sign(matrix[np.abs(matrix).argmax(0), np.arange(kept)])
        return matrix


def _choose_shrinkage(units: np.ndarray) -> float:
    """Choose the least strength that few photos bear: the nearest must not depend on which photos taught it.

    Two halves of the photos each learn a whitening; of a photo's nearest neighbours by the one, `AGREEMENT` must be so
    by the other.

    Raises:
        ValueError: there are too few.
    """
    if len(units) < FEWEST:
        raise ValueError(f"{len(units):,} images are too few to learn a whitening from; give {FEWEST} at least")
    if len(units) >= _PLENTY * units.shape[1]:
        return SHRINKAGE
    order = np.random.default_rng(0).permutation(len(units))
    halves = [_Spread.of(units[order[start::2]]) for start in (0, 1)]
    photos = units[order[:_COMPARED]]
    for shrinkage in STRENGTHS:
        first, second = (_nearest(unit_rows((photos - half.mean) @ half.matrix(shrinkage))[0]) for half in halves)
        agreed = (first[:, :, None] == second[:, None]).any(2).mean()
        if agreed >= AGREEMENT:
            return shrinkage
    raise ValueError(
        f"{len(units):,} images do not teach a whitening: two halves of them agree on {100 * agreed:.0f} % of the "
        f"nearest neighbours, not {100 * AGREEMENT:.0f} %; give {2 * len(units):,} at least"
    )


def _nearest(units: np.ndarray) -> np.ndarray:
    """Return the five others of the largest cosine for each of (N, D): rows (N, 5)."""
    cosines = units @ units.T
    np.fill_diagonal(cosines, -2)
    found: np.ndarray = np.argpartition(-cosines, 5, axis=1)[:, :5]
    return found
