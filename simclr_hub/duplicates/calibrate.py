"""Thresholds measured for a checkpoint: copies of some photos are made in memory and compared with all others."""

import hashlib
import io
import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from ..errors import ImageError
from ..images import load_image
from ..signature import SIGNATURE_VERSION, as_rows, unpack
from ..whitening import Whitening
from .compare import compare
from .find import read_unique_images
from .grouping import Grouping
from .neighbours import candidate_pairs, likeness
from .thresholds import (
    CORRELATION,
    CORRELATION_ALONE,
    THRESHOLDS_NAME,
    Thresholds,
    identity,
    load_thresholds,
    similar_from,
    unmeasured,
)

if TYPE_CHECKING:
    from ..index.maker import EmbedderLike
    from ..index.store import Store

#: Photos of an index that thresholds are measured on, at most.
_PHOTOS = 4000
#: Kinds of copies that the features must tell, since their signatures agree less; and the share that must be found.
_ALIGNED = ("cropped by up to 10 %", "cropped by 10 to 20 %", "bordered", "watermark")
_FOUND = 0.95


def index_thresholds(store: "Store") -> Thresholds:
    """Return those of the checkpoint that made the index; unmeasured ones if there are none."""
    known = load_thresholds(store.file.parent, store.about.fingerprint)
    if known is not None:
        return known
    whitening = store.whitening()
    with store.reading():
        pages = [vectors for _, vectors in itertools.islice(store.vector_pages(), 20)]
    vectors = np.concatenate([*pages, np.empty((0, store.about.dim), np.float32)])
    if whitening:
        vectors = whitening.apply(vectors, normalize=True)
    return unmeasured(vectors, store.about.fingerprint)


def calibrate_index(
    store: "Store",
    embedder: "EmbedderLike",
    *,
    copies: int = 100,
    progress: Callable[[int, int], object] | None = None,
) -> Thresholds:
    """Measure on the index's own photos, of which no two are the same picture, and store the thresholds beside them.

    Raises:
        ValueError: fewer than ten photos can be read.
        OSError: it could not be written.
    """
    with store.reading():
        images = read_unique_images(store)
    rows = np.arange(len(images.hashes))
    if len(rows) > _PHOTOS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _PHOTOS, replace=False))
    vectors, signatures = images.vectors[rows], images.signatures[rows]
    # Copies that are among the photos would pass for different pictures that look the same.
    first = unmeasured(vectors[:1], store.about.fingerprint)
    groups = Grouping(vectors, signatures, np.arange(len(rows)), first).same()
    single = np.setdiff1d(np.arange(len(rows)), [row for group in groups for row, _ in group.others]).astype(np.int64)
    thresholds = calibrate(
        embedder,
        [images.files[row][0].path for row in rows[single].tolist()],
        vectors[single],
        signatures[single],
        whitening=images.whitening,
        copies=copies,
        progress=progress,
    )
    thresholds.save(store.file.with_name(THRESHOLDS_NAME))
    return thresholds


def calibrate(
    embedder: "EmbedderLike",
    paths: Sequence[str | Path],
    vectors: np.ndarray,
    signatures: np.ndarray,
    *,
    whitening: Whitening | None = None,
    copies: int = 100,
    classes: Sequence[str] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> Thresholds:
    """Measure on photos that were embedded.

    Args:
        embedder: the checkpoint.
        paths: N different pictures.
        vectors: (N, D) of length 1, not whitened.
        signatures: uint8 (N, 455).
        whitening: what similar ones are compared with.
        copies: number of photos of which each kind of copy is made.
        classes: of each photo, to measure how often similar ones are of one class.
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
    result = Thresholds(
        identity({**embedder.fingerprint, **({"whitening": whitening.sha256} if whitening else {})}),
        SIGNATURE_VERSION,
        round(float(np.quantile(aligned, 1 - _FOUND)), 4),
        similar_from(compared_by),
    )
    labels = None if classes is None else np.array(classes)
    result.measured.update(_measured(result, compared, vectors, compared_by, signatures, labels))
    return result


def embed_all(
    embedder: "EmbedderLike",
    images: Iterable[Any],
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[int], np.ndarray, np.ndarray]:
    """Return the positions of images that can be used, their vectors (N, D) of length 1, and signatures (N, 455)."""
    from ..embedder import Embedding
    from ..index.maker import unit_vector  # here, since the index imports this package

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


def is_for_calibration(data: bytes) -> bool:
    """Tell whether a photo is in the half that the default thresholds are measured on; the other is for benchmarks."""
    return hashlib.sha256(data).digest()[0] % 2 == 0


def _measured(
    thresholds: Thresholds,
    compared: dict[str, tuple[np.ndarray, np.ndarray]],
    originals: np.ndarray,
    compared_by: np.ndarray,
    signatures: np.ndarray,
    labels: np.ndarray | None,
) -> dict[str, Any]:
    """Return recall and precision of the thresholds on the photos that they were measured with."""
    first, second = candidate_pairs(originals, signatures).T
    correlations = compare(unpack(signatures[first]), unpack(signatures[second])).score
    cosines = np.einsum("pd,pd->p", originals[first], originals[second])
    wrong = int(thresholds.is_same(correlations, cosines).sum())
    same = {kind: thresholds.is_same(*pairs) for kind, pairs in compared.items()}
    hits = sum(int(found.sum()) for found in same.values())
    pairs, scores = likeness(compared_by)
    threshold = thresholds.similar(len(originals))
    similar = {"likeness": round(threshold, 5), "pairs": int((scores >= threshold).sum())}
    if labels is not None:
        similar |= same_class(pairs[scores >= threshold], labels)
    return {
        "photos": len(originals),
        "copies_of_each_kind": len(next(iter(same.values()))),
        "same_picture": {
            "correlation": CORRELATION,
            "correlation_alone": CORRELATION_ALONE,
            "recall": {kind: round(float(found.mean()), 4) for kind, found in same.items()},
            "different_pairs_compared": len(first),
            "different_pairs_called_same": wrong,
            "largest_correlations_of_different_pairs": [round(c, 4) for c in np.sort(correlations)[:-6:-1].tolist()],
            "precision": round(hits / max(hits + wrong, 1), 5),
        },
        "similar": similar,
    }


def same_class(pairs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the share of these pairs (P, 2) that are of one class, and the share of all such pairs that these are."""
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


# Edits that leave a picture the same.


def reencode(image: Image.Image, format: str, quality: int) -> Image.Image:
    """Encode with loss and decode again."""
    buffer = io.BytesIO()
    image.save(buffer, format, quality=quality)
    with Image.open(io.BytesIO(buffer.getvalue())) as coded:
        return coded.convert("RGB")


def resize(image: Image.Image, factor: float) -> Image.Image:
    """Scale both sides by `factor`, to 8 pixels at least."""
    size = (max(8, round(image.width * factor)), max(8, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def crop(image: Image.Image, share: float, x: float, y: float) -> Image.Image:
    """Cut `share` off either side; x and y, 0 to 1, are how much of that goes at the left and at the top."""
    width, height = max(1, round(image.width * (1 - share))), max(1, round(image.height * (1 - share)))
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def brighten(image: Image.Image, factor: float) -> Image.Image:
    """Multiply every pixel by `factor`, to white at most."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Multiply distances from the mean grey by `factor`."""
    return ImageEnhance.Contrast(image).enhance(factor)


def saturate(image: Image.Image, factor: float) -> Image.Image:
    """Multiply distances from grey by `factor`; 0 gives a grey picture."""
    return ImageEnhance.Color(image).enhance(factor)


def watermark(image: Image.Image, text: str, height: float, x: float, y: float) -> Image.Image:
    """Write a half transparent text, `height` of the picture high; x and y, 0 to 1, say where it begins."""
    side = max(6, round(image.height * height))
    layer = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(layer)
    draw.text((x * image.width * 0.5, y * (image.height - side)), text, fill=150, font_size=side)
    return Image.composite(Image.new("RGB", image.size, "white"), image, layer)


def border(image: Image.Image, share: float, colour: str) -> Image.Image:
    """Add a frame as wide as `share` of the shorter side."""
    return ImageOps.expand(image, max(1, round(share * min(image.size))), colour)


#: Kinds of edits, each drawn anew for every photo.
EDITS: dict[str, Callable[[Image.Image, Random], Image.Image]] = {
    "re-encoded": lambda image, draw: reencode(image, draw.choice(["JPEG", "WEBP"]), draw.randint(30, 95)),
    "resized": lambda image, draw: resize(image, draw.choice([0.25, 0.5, 0.75, 1.5, 2])),
    "cropped by up to 10 %": lambda image, draw: crop(image, draw.uniform(0.02, 0.1), draw.random(), draw.random()),
    "cropped by 10 to 20 %": lambda image, draw: crop(image, draw.uniform(0.1, 0.2), draw.random(), draw.random()),
    "brightness": lambda image, draw: brighten(image, draw.choice([0.6, 0.8, 1.2, 1.4])),
    "contrast": lambda image, draw: contrast(image, draw.choice([0.6, 0.8, 1.25, 1.5])),
    "watermark": lambda image, draw: watermark(
        image, "(c) photo", draw.uniform(0.08, 0.2), draw.random(), draw.random()
    ),
    "mirrored": lambda image, draw: ImageOps.mirror(image),
    "grey": lambda image, draw: saturate(image, 0),
    "turned by 90 degrees": lambda image, draw: image.rotate(draw.choice([90, 270]), expand=True),
    "bordered": lambda image, draw: border(image, draw.uniform(0.03, 0.1), draw.choice(["white", "black"])),
}
