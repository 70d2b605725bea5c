"""What a user calls images -> an iterable of images: one, a folder, an archive, a data set, a batch, an iterable."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .archives import archive_images, is_archive
from .errors import RootUnavailableError, UnreadableImageError
from .images import FileBytes, UnusableImage, describe, is_tensor
from .scan import Rules, scan_whole
from .web import is_url


def as_sources(images: Any, chosen: Iterator[bool] | None = None) -> Any:
    """Turn one image, a folder, an archive, a data set, a batch or an iterable of images into an iterable of images.

    Of an archive those that are `chosen`, see `archive_images`; of anything else all.
    """
    if isinstance(images, (str, os.PathLike)):
        if os.fspath(images).startswith("~"):
            images = os.path.expanduser(images)
        if os.path.isdir(images):
            return folder_images(images)
        return archive_images(images, chosen) if is_archive(images) and not is_url(images) else [images]
    if isinstance(images, np.ndarray) or is_tensor(images):
        return images if images.ndim == 4 else [images]
    one = (bytes, bytearray, memoryview, FileBytes, UnusableImage, Image.Image, dict)
    if isinstance(images, one) or hasattr(images, "read"):
        return [images]
    if type(images).__module__.startswith("datasets.") and hasattr(images, "cast_column"):
        return dataset_images(images)
    return images


def every_nth(
    given: Sequence[str], part: int, parts: int, *, skip: int = 0, digest: "hashlib._Hash | None" = None
) -> tuple[Iterator[Any], int | None]:
    """Take every `parts`-th source of all that is given, from the `part`-th (of 1, 2, ...) on, the others unread.

    Args:
        given: what `as_sources` takes.
        part: which of the parts.
        parts: how many there are.
        skip: leave out so many of them, from the first on.
        digest: updated by what was listed; another listing gives another.

    Returns:
        The sources, and how many they are; None if there are archives, whose members nobody has counted.
    """
    chosen = (i % parts == part - 1 and i // parts >= skip for i in count())
    groups = [as_sources(one, chosen) for one in given]
    listed = [isinstance(group, list) for group in groups]
    if digest is not None:
        for one, group in zip(given, groups, strict=True):
            names = list(map(os.fspath, group)) if isinstance(group, list) else [one]
            if names == [one] and os.path.isfile(one):  # an archive's members are not listed
                names.append(f"{os.stat(one).st_size} {os.stat(one).st_mtime_ns}")
            digest.update(b"\0".join(map(os.fsencode, names)) + b"\0\0")
    total = len(range(part - 1, sum(map(len, groups)), parts)) if all(listed) else None
    # Both draw from `chosen` as they are iterated over, one after the other.
    each = (compress(group, chosen) if known else group for group, known in zip(groups, listed, strict=True))
    return chain.from_iterable(each), total


def folder_images(folder: str | os.PathLike[str], rules: Rules | None = None) -> list[Path]:
    """Return every photo below a folder that a scan finds, sorted by path; see `simclr_hub.scan`.

    Raises:
        UnreadableImageError: the folder, or one below it, cannot be listed, or there is no image in it.
    """
    try:
        _, listing = scan_whole(folder, rules)
    except RootUnavailableError as e:
        raise UnreadableImageError(str(e)) from e
    if not listing.photos:
        left_out = ", ".join(f"{n:,} {reason}" for reason, n in sorted(listing.skipped.items()))
        told = f" ({left_out})" if left_out else ""
        raise UnreadableImageError(f"{describe(folder)}: no image files in this folder{told}")
    return [Path(folder, os.fsdecode(path)) for path in sorted(listing.photos)]


def dataset_images(dataset: Any) -> Iterable[Any]:
    """Return the image column of a `datasets.Dataset` or `IterableDataset` as stored; its files are decoded later.

    Raises:
        ValueError: none of its columns, or more than one, holds images.
    """
    import datasets

    features = dataset.features or {}
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        found = (
            f"the image columns {', '.join(columns)}" if columns else f"no image column, only {', '.join(features)}"
        )
        raise ValueError(f"a data set with {found}: give one column, dataset[NAME]")
    images: Iterable[Any] = dataset.select_columns(columns).cast_column(columns[0], datasets.Image(decode=False))[
        columns[0]
    ]
    return images
