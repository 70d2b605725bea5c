"""Images for pretraining, from a folder of images, parquet files or a Hub data set, through `datasets`.

`ImageArray` decodes once to one uint8 array that the loop reads by row: for small sides. `ImageViews` decodes in the
data loader's workers at every epoch and crops from the full image: for the papers' ImageNet recipes.
"""

import bisect
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from simclr_hub._files import new_directory
from simclr_hub.errors import ImageError, RecipeError
from simclr_hub.images import FileBytes, load_image
from simclr_hub.progress import progress_bar

from .augmentations import Views

_CHUNK = 256  # rows that are decoded between two looks at the data


class ImageArray(Dataset[dict[str, Any]]):
    """Rows of a uint8 array (N, 3, side, side), with labels (N,) where the data has them.

    Attributes:
        unreadable: "name: reason" of each image of the source that is not in the array.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray | None, unreadable: Sequence[str] = ()):
        self.images = images
        self.labels = labels
        self.unreadable = unreadable

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row: dict[str, Any] = {"images": self.image(i)}
        return row if self.labels is None else {**row, "labels": int(self.labels[i])}

    def image(self, i: int) -> Tensor:
        """(3, side, side), uint8."""
        return torch.from_numpy(np.array(self.images[i]))

    @classmethod
    def load(cls, source: str | Sequence[str], split: str, side: int, cache: Path) -> "ImageArray":
        """Decode the source; later from `cache`, as long as the source is as it was.

        Args:
            source: a folder (of images, class folders or parquet files) or a dataset's id on the Hub; or several.
            split: which split; "train" and "validation" are the usual ones.
            side: images are resized (area filter, not cropped) to side x side unless they have it.
            cache: directory for the array.

        Raises:
            RecipeError: the source does not exist, has no such split, no image column or no readable image.
        """
        rows = open_rows(source, split)
        directory = cache / f"{split}-{side}"
        meta = directory / "meta.json"
        key = {"source": source, "split": split, "side": side, "version": rows.version}
        if not (meta.exists() and json.loads(meta.read_text())["key"] == key):
            shutil.rmtree(directory, ignore_errors=True)
            with new_directory(directory) as partial:
                kept, unreadable = _decode_all(rows, side, partial / "images.npy")
                if not kept:
                    raise RecipeError(f"data={source}: no readable image in split {split}; first: {unreadable[0]}")
                record = {"key": key, "kept": kept, "unreadable": unreadable}
                (partial / "meta.json").write_text(json.dumps(record))
        record = json.loads(meta.read_text())
        positions = np.array(record["kept"])
        labels = None if rows.labels is None else np.array(rows.labels)[positions]
        return cls(np.load(directory / "images.npy", mmap_mode="r")[: len(positions)], labels, record["unreadable"])


class ImageViews(Dataset[dict[str, Any]]):
    """Views of each image, drawn in the data loader's workers from the image at its full size.

    A view depends on seed, epoch and position alone, so that a resumed run sees what an uninterrupted one does,
    with any number of workers. In place of an image that cannot be read stands the next one that can; its name and
    the reason are appended to `log`.
    """

    def __init__(self, source: str | Sequence[str], split: str, views: Views, seed: int, log: Path):
        self.rows = open_rows(source, split)
        self.labels = self.rows.labels
        self.views, self.seed, self.log = views, seed, log
        self.epoch = 0
        self._now = views.at(0)

    def __len__(self) -> int:
        return len(self.rows)

    def set_epoch(self, epoch: int, progress: float = 0.0) -> None:
        """Draw other views than in the epochs before; called when one begins, after a share of the run's steps."""
        self.epoch, self._now = epoch, self.views.at(progress)

    def __getitem__(self, i: int) -> dict[str, Any]:
        position, image = self._readable(i)
        digest = hashlib.blake2b(f"{self.seed} {self.epoch} {i}".encode(), digest_size=8).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest, "big"))
            row: dict[str, Any] = {"views": self._now.of_image(image)}  # (k, 3, size, size) in [0, 1]
        return row if self.labels is None else {**row, "labels": self.labels[position]}

    def image(self, i: int) -> Tensor:
        """(3, H, W), the image there or the next that can be read."""
        return self._readable(i)[1]

    def _readable(self, i: int) -> tuple[int, Tensor]:
        for position in (*range(i, len(self)), *range(i)):
            try:
                return position, load_image(self.rows[position]).pixels
            except ImageError as e:
                with open(self.log, "a", encoding="utf-8") as file:
                    file.write(f"{e}\n")
        raise RecipeError(f"no readable image in {len(self)}; {self.log} says why")


class Rows(Sequence[FileBytes | str]):
    """The encoded images of a data set, as `load_image` takes them.

    Attributes:
        labels: class of each, or None.
        classes: their names.
        version: changes when the source's files do.
    """

    def __init__(self, source: str, split: str):
        import datasets

        try:
            data = datasets.load_dataset(source, split=split)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as e:  # ConnectionError is an OSError
            raise RecipeError(f"data={source}: {e}") from e
        columns = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
        if not columns:
            raise RecipeError(f"data={source} has no image column, only {', '.join(data.features)}")
        if not len(data):
            raise RecipeError(f"data={source}: split {split} has no images")
        self._data = data.cast_column(columns[0], datasets.Image(decode=False))
        self._column, self._source = columns[0], source
        # datasets' cache is keyed by its files' paths, sizes and times, or the commit on the Hub.
        self.version = [os.path.relpath(f["filename"], datasets.config.HF_DATASETS_CACHE) for f in data.cache_files]
        labels = [name for name, kind in data.features.items() if isinstance(kind, datasets.ClassLabel)]
        self.labels: list[int] | None = list(data[labels[0]]) if labels else None
        self.classes: list[str] = data.features[labels[0]].names if labels else []

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            start = range(len(self))[i].start
            return [self._row(row, start + n) for n, row in enumerate(self._data[i][self._column])]
        return self._row(self._data[i][self._column], i)

    def _row(self, row: dict[str, Any], i: int) -> FileBytes | str:
        if row["bytes"] is None:
            return str(row["path"])
        return FileBytes(row["path"] or f"{self._source}[{i}]", row["bytes"])


class JoinedRows(Sequence[FileBytes | str]):
    """Several sources one after another; classes of the same name are one class.

    Attributes:
        labels: class of each, or None if one of the sources has none.
        classes: their names.
        version: changes when a source's files do.
    """

    def __init__(self, parts: Sequence[Rows]):
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))
        self.version = [part.version for part in parts]
        self.classes = list(dict.fromkeys(name for part in parts for name in part.classes))
        self.labels: list[int] | None = None
        if all(part.labels is not None for part in parts):
            place = {name: i for i, name in enumerate(self.classes)}
            self.labels = [place[part.classes[label]] for part in parts for label in part.labels or ()]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        part = bisect.bisect_right(self._ends, i)
        return self._parts[part][i - (self._ends[part - 1] if part else 0)]


def open_rows(source: str | Sequence[str], split: str) -> Rows | JoinedRows:
    """Open one source of images, or several as one.

    Raises:
        RecipeError: one of them does not exist, or has no such split or no images.
    """
    if isinstance(source, str):
        return Rows(source, split)
    return JoinedRows([Rows(part, split) for part in source])


def _decode_all(rows: Sequence[FileBytes | str], side: int, path: Path) -> tuple[list[int], list[str]]:
    """Write every readable image to the array at `path`; the rows that are in it, and why the others are not."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(rows), 3, side, side))
    kept: list[int] = []
    unreadable: list[str] = []

    def small(row: FileBytes | str) -> np.ndarray | ImageError:
        try:
            return _resized(load_image(row).pixels, side)
        except ImageError as e:
            return e

    with ThreadPoolExecutor(os.cpu_count()) as pool, progress_bar("decoding", len(rows)) as advance:
        for start in range(0, len(rows), _CHUNK):
            for i, image in enumerate(pool.map(small, rows[start : start + _CHUNK]), start):
                if isinstance(image, ImageError):
                    unreadable.append(str(image))
                else:
                    array[len(kept)] = image
                    kept.append(i)
                advance(1)
    array.flush()
    return kept, unreadable


def _resized(pixels: Tensor, side: int) -> np.ndarray:
    """(3, H, W), uint8 or float in [0, 1], to uint8 (3, side, side)."""
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().byte()
    if pixels.shape[1:] == (side, side):
        return pixels.numpy()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)
