"""Measures a checkpoint's thresholds on photos: copies of some are made in memory and compared with all others."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

from ...errors import ImageError
from ...images import load_image
from ...signature import SIGNATURE_VERSION, as_rows, unpack
from ...whitening import Whitening
from ..maker import EmbedderLike, unit_vector
from .calibration import CORRELATION, CORRELATION_ALONE, Calibration, identity
from .candidates import neighbours, shapes
from .edits import EDITS
from .grouping import MIN_SHAPES, NEAREST, NEAREST_BY_SIGNATURE
from .likeness import likeness, thresholds
from .same_picture import compare

#: Kinds of copies that the features must tell, since their signatures agree less; and the share that must be found.
_ALIGNED = ("cropped by up to 10 %", "cropped by 10 to 20 %", "bordered", "watermark")
_FOUND = 0.95


def calibrate(
    embedder: EmbedderLike,
    paths: Sequence[str | Path],
    vectors: np.ndarray,
    signatures: np.ndarray,
    *,
    whitening: Whitening | None = None,
    copies: int = 100,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Calibration:
    """Measure on photos that were embedded.

    Args:
        embedder: the checkpoint.
        paths: N different pictures.
        vectors: (N, D) of length 1, as the embedder gives them.
        signatures: uint8 (N, 455).
        whitening: with which similar ones are told.
        copies: of how many of them each kind of copy is made.
        classes: of each photo, to say how often similar ones are of the same class.
        progress: called with (done, total) copies.

    Raises:
        ValueError: fewer than ten of the photos of which copies are to be made can be read.
    """
    sample = sorted(Random(0).sample(range(len(paths)), min(copies, len(paths))))
    pictures = [(row, picture) for row in sample if (picture := _picture(paths[row])) is not None]
    if len(pictures) < 10:
        raise ValueError(f"{len(pictures)} of {len(sample)} photos can be read; copies of at least 10 are needed")
    own = np.array([row for row, _ in pictures])
    compared: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # by kind: correlations and cosines
    for done, (kind, edit) in enumerate(EDITS.items()):
        draw = Random(kind)
        made = (edit(picture, draw) for _, picture in pictures)
        tell = (lambda n, _, base=done: progress(base * len(own) + n, len(EDITS) * len(own))) if progress else None
        found, copied, marks = embed_all(embedder, made, tell)
        rows = own[found]
        correlations = compare(unpack(signatures[rows]), unpack(marks)).score
        compared[kind] = correlations, np.einsum("pd,pd->p", vectors[rows], copied)
    aligned = np.concatenate([compared[kind][1] for kind in _ALIGNED])
    compared_by = whitening.apply(vectors, normalize=True) if whitening else vectors
    result = Calibration(
        identity({**embedder.fingerprint, **({"whitening": whitening.sha256} if whitening else {})}),
        SIGNATURE_VERSION,
        round(float(np.quantile(aligned, 1 - _FOUND)), 4),
        thresholds(compared_by),
    )
    labels = None if classes is None else np.array(classes)
    result.measured.update(_measured(result, compared, vectors, compared_by, signatures, labels))
    return result


def embed_all(
    embedder: EmbedderLike,
    images: Iterable[Any],
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Positions of the images that can be used, their vectors (N, D) of length 1, signatures (N, 455)."""
    from ...embedder import Embedding

    positions, rows, signatures = [], [], []
    for item in embedder.stream(images, signatures=True):
        if progress:
            progress(item.position + 1, 0)
        unit = unit_vector(item.vector) if isinstance(item, Embedding) else None
        if isinstance(item, Embedding) and unit is not None:
            positions.append(item.position)
            rows.append(unit)
            signatures.append(item.signature)
    vectors = np.array(rows, np.float32).reshape(-1, embedder.dim)
    return positions, vectors, as_rows(signatures)


def _measured(
    calibration: Calibration,
    compared: dict[str, tuple[np.ndarray, np.ndarray]],
    originals: np.ndarray,
    compared_by: np.ndarray,
    signatures: np.ndarray,
    labels: np.ndarray | None,
) -> dict[str, Any]:
    """What the thresholds give on the photos that they were measured with."""
    sources = ((originals, NEAREST, -1.0), (shapes(signatures), NEAREST_BY_SIGNATURE, MIN_SHAPES))
    candidates = [
        np.sort(np.stack([rows, found], 1)[cosines >= least], 1)
        for vectors, k, least in sources
        for rows, found, cosines in neighbours(vectors, k)
    ]
    first, second = np.unique(np.concatenate(candidates), axis=0).T
    correlations = compare(unpack(signatures[first]), unpack(signatures[second])).score
    cosines = np.einsum("pd,pd->p", originals[first], originals[second])
    wrong = int(calibration.is_same(correlations, cosines).sum())
    found = {kind: float(calibration.is_same(*of_kind).mean()) for kind, of_kind in compared.items()}
    hits = sum(int(calibration.is_same(*of_kind).sum()) for of_kind in compared.values())
    pairs, scores = likeness(compared_by)
    threshold = calibration.similar(len(originals))
    similar = {"likeness": round(threshold, 5), "pairs": int((scores >= threshold).sum())}
    if labels is not None:
        similar |= same_class(pairs[scores >= threshold], labels)
    return {
        "photos": len(originals),
        "copies_of_each_kind": len(next(iter(compared.values()))[0]),
        "same_picture": {
            "correlation": CORRELATION,
            "correlation_alone": CORRELATION_ALONE,
            "recall": {kind: round(share, 4) for kind, share in found.items()},
            "different_pairs_compared": len(first),
            "different_pairs_called_same": wrong,
            "largest_correlations_of_different_pairs": [round(c, 4) for c in np.sort(correlations)[:-6:-1].tolist()],
            "precision": round(hits / max(hits + wrong, 1), 5),
        },
        "similar": similar,
    }


def same_class(pairs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return how many of these pairs (P, 2) are of one class, and how many of all such pairs these are."""
    right = int((labels[pairs[:, 0]] == labels[pairs[:, 1]]).sum())
    sizes = np.unique(labels, return_counts=True)[1]
    all_of_one_class = int((sizes * (sizes - 1) // 2).sum())
    return {
        "precision_same_class": round(right / max(len(pairs), 1), 4),
        "recall_same_class": round(right / max(all_of_one_class, 1), 4),
    }


def _picture(path: str | Path) -> Image.Image | None:
    try:
        pixels = load_image(path).pixels
    except ImageError:
        return None
    return Image.fromarray(pixels.transpose(1, 2, 0))
