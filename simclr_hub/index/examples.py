"""Label the photos of an index by examples: a folder of class folders, or images and contents by class."""

import hashlib
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ImageError, LabelError, RootUnavailableError
from ..images import describe, read_source
from ..labels import Examples, Label, Labels
from ..scan import Rules, scan_whole
from ..web import is_url
from ..whitening import Whitening
from .maker import Maker, unit_vector
from .paths import openable
from .search.snapshot import Snapshot
from .store import Store

#: Why a photo teaches nothing.
_LOOSE = "in no class folder"
_CONTENT = 32  # bytes of a SHA-256


@dataclass
class Given:
    """Examples by class.

    Attributes:
        classes: their names, in order.
        images: class -> paths, what else `load_image` takes, or contents of the index by their SHA-256.
        left_out: what is no example, with why.
    """

    classes: list[str]
    images: dict[str, Sequence[Any]]
    left_out: list[tuple[str, str]] = field(default_factory=list)

    @classmethod
    def of(cls, examples: "str | os.PathLike[str] | Mapping[str, Sequence[Any]]") -> "Given":
        """Read a folder of class folders, or take images by class.

        Raises:
            LabelError: fewer than two classes, or one without photos.
        """
        if isinstance(examples, Mapping):
            found = cls(list(examples), dict(examples))
            where = "the examples"
        else:
            found, where = cls._read(examples), describe(examples)
        for name in found.classes:
            if not found.images[name]:
                raise LabelError(f"{where}: no photo of the class {describe(name)}; add one, or remove the class")
        if len(found.classes) < 2:
            there = f"only the class {describe(found.classes[0])}" if found.classes else "no class"
            raise LabelError(f"{where}: {there}; put a few photos of each class into a folder of its own")
        return found

    @classmethod
    def _read(cls, folder: str | os.PathLike[str]) -> "Given":
        folder = os.path.expanduser(folder)
        try:
            root, listing = scan_whole(folder)
        except RootUnavailableError as e:
            raise LabelError(f"{e}; give a folder with a folder of photos for each class") from e
        with os.scandir(root) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
        parent = os.fsdecode(root).lower()
        classes = [name for name in folders if not Rules().why_left_out(name, parent, is_folder=True)]
        images: dict[str, list[Any]] = {os.fsdecode(name): [] for name in classes}
        left_out = []
        for path in sorted(listing.photos):
            name, below, _ = os.fsdecode(path).partition(os.sep)
            whole = os.path.join(folder, os.fsdecode(path))
            if below:
                images.setdefault(name, []).append(whole)
            else:
                left_out.append((whole, _LOOSE))
        return cls(list(images), dict(images), left_out)


def label_snapshot(
    snapshot: Snapshot, store: Store, maker: Maker, given: Given, progress: Callable[[int, int], object] | None = None
) -> Labels:
    """Do what `SimilarityIndex.label` tells, with its errors."""
    vectors, labels, of_content, left_out = _example_vectors(given, store, maker, snapshot.whitening)
    try:
        examples = Examples.learn(vectors, labels, len(given.classes))
    except ValueError as e:
        raise LabelError(f"{e}: simclr-hub finetune photos data=EXAMPLES") from e
    hashes, photos, paths = snapshot.contents()
    found: list[tuple[Label, bytes]] = []
    best, shares = examples.confidences(photos, progress)
    names, rows = given.classes, zip(hashes, paths, best.tolist(), shares.tolist(), strict=True)
    for content, those, (first, second), (share, other) in rows:
        if (label := of_content.get(content)) is not None:
            found += [(Label(path, names[label], 1.0, False, "", 0.0, example=True), content) for path in those]
        else:
            unsure = share <= examples.sure_above
            found += [(Label(path, names[first], share, unsure, names[second], other), content) for path in those]
    found.sort(key=lambda pair: pair[0].path)
    every, contents = [label for label, _ in found], [content for _, content in found]
    return Labels(names, every, examples.sure_above, examples.left_out, len(labels), left_out, contents)


def _example_vectors(
    given: Given, store: Store, maker: Maker, whitening: Whitening | None
) -> tuple[np.ndarray, np.ndarray, dict[bytes, int], list[tuple[str, str]]]:
    """Return the examples' vectors (M, D), labels (M,), labels by content, and what was left out, with why.

    Each content counts once. Those in the index need no model.

    Raises:
        LabelError: a content in two classes or not in the index, or a class of which nothing can be used.
    """
    names: dict[bytes, str] = {}
    labels: dict[bytes, int] = {}
    vectors: dict[bytes, np.ndarray] = {}
    left_out = list(given.left_out)
    label, name = 0, ""

    def put(content: bytes, vector: np.ndarray, label: int, name: str) -> None:
        if labels.setdefault(content, label) != label:
            both = " and ".join(describe(given.classes[one]) for one in (labels[content], label))
            raise LabelError(f"{name} and {names[content]} are the same photo, in the classes {both}; remove one")
        names.setdefault(content, name)
        vectors[content] = vector

    asked: list[tuple[int, str]] = []

    def unknown() -> Iterator[Any]:
        """Yield what has to be embedded; the rest is put."""
        for label, class_name in enumerate(given.classes):
            for image in given.images[class_name]:
                content, name = None, describe(image)
                if isinstance(image, bytes) and len(image) == _CONTENT:
                    content, name = image, f"the content {image.hex()[:12]}"
                    if (vector := store.vector(content)) is None:
                        raise LabelError(f"{name} is not in the index; sync it, or give the photo's path")
                    put(content, vector, label, name)
                    continue
                if isinstance(image, (str, os.PathLike)):
                    try:
                        image = read_source(image if is_url(image) else openable(image))
                    except ImageError as e:
                        left_out.append((name, str(e)))
                        continue
                    content = hashlib.sha256(image.data).digest()
                    if (vector := store.vector(content)) is not None:
                        put(content, vector, label, name)
                        continue
                asked.append((label, name))
                yield image

    waiting = unknown()
    first = next(waiting, None)
    if first is not None:  # only now is a model needed
        from ..embedder import Failure

        for item in maker.embedder().stream(itertools.chain([first], waiting)):
            label, name = asked[item.position]
            vector = None if isinstance(item, Failure) else unit_vector(item.vector)
            if isinstance(item, Failure) or vector is None:
                left_out.append((name, str(item.error) if isinstance(item, Failure) else f"{name}: no features"))
            else:
                put(item.content_hash, vector, label, name)
    for label, class_name in enumerate(given.classes):
        if label not in labels.values():
            why = f"; first: {left_out[0][1]}" if left_out else ""
            raise LabelError(f"no photo of the class {describe(class_name)} can be used{why}")
    features = np.array(list(vectors.values()), np.float32)
    units = whitening.apply(features, normalize=True) if whitening else features
    return units, np.array([labels[content] for content in vectors]), labels, left_out
