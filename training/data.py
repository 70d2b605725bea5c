"""Images for pretraining: a folder through the package's own scanner; parquet and Hub data sets through `datasets`.

`ImageArray` decodes once to one uint8 array that the loop reads by row: for small sides. `ImageViews` decodes in the
data loader's workers at every epoch and crops from the full image: for the papers' ImageNet recipes.
"""

import bisect
import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from simclr_hub._files import new_directory
from simclr_hub._threads import Pool
from simclr_hub.errors import ImageError, RecipeError, RootUnavailableError
from simclr_hub.images import FileBytes, load_image
from simclr_hub.progress import progress_bar
from simclr_hub.scan import SEPARATOR, Rules, scan_whole

from .augmentations import Views

_CHUNK = 256  # rows that are decoded between two looks at the data


class ImageArray(Dataset[dict[str, Any]]):
    """Rows of a uint8 array (N, 3, side, side), with labels (N,) where the data has them.

    Attributes:
        unreadable: "name: reason" of each image of the source that is not in the array.
        notes: what the source's folders say of themselves, see `FolderRows.notes`.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray | None,
        unreadable: Sequence[str] = (),
        notes: Sequence[str] = (),
    ):
        self.images = images
        self.labels = labels
        self.unreadable = unreadable
        self.notes = notes

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        row: dict[str, Any] = {"images": self.image(i)}
        return row if self.labels is None else {**row, "labels": int(self.labels[i])}

    def image(self, i: int) -> Tensor:
        """Return image i, uint8 (3, side, side)."""
        return torch.from_numpy(np.array(self.images[i]))

    @classmethod
    def load(
        cls, source: str | Sequence[str], split: str, side: int, cache: Path, rules: Rules | None = None
    ) -> "ImageArray":
        """Decode the source; later from `cache`, as long as the source is as it was.

        Args:
            source: a folder (of images, class folders or parquet files) or a dataset's id on the Hub; or several.
            split: which split; "train" and "validation" are the usual ones.
            side: images are resized (area filter, not cropped) to side x side unless they have it.
            cache: directory for the array.
            rules: what of a folder is left out.

        Raises:
            RecipeError: the source does not exist, has no such split, no image column or no readable image.
        """
        rows = open_rows(source, split, rules)
        directory = cache / f"{split}-{side}"
        meta = directory / "meta.json"
        key = {"source": source, "split": split, "side": side, "version": rows.version}
        if not (meta.exists() and json.loads(meta.read_text())["key"] == key):
            shutil.rmtree(directory, ignore_errors=True)
            with new_directory(directory) as partial:
                kept, unreadable = decode_all(rows, side, partial / "images.npy")
                if not kept:
                    raise RecipeError(f"data={source}: no readable image in split {split}; first: {unreadable[0]}")
                record = {"key": key, "kept": kept, "unreadable": unreadable}
                (partial / "meta.json").write_text(json.dumps(record))
        record = json.loads(meta.read_text())
        positions = np.array(record["kept"])
        labels = None if rows.labels is None else np.array(rows.labels)[positions]
        images = np.load(directory / "images.npy", mmap_mode="r")[: len(positions)]
        return cls(images, labels, record["unreadable"], rows.notes)


class ImageViews(Dataset[dict[str, Any]]):
    """Views of each image, drawn in the data loader's workers from the image at its full size.

    A view depends on seed, epoch and position alone, so that a resumed run sees what an uninterrupted one does,
    with any number of workers. In place of an image that cannot be read stands the next one that can; its name and
    the reason are appended to `log`.
    """

    def __init__(
        self,
        source: str | Sequence[str],
        split: str,
        views: Views,
        seed: int,
        log: Path,
        rules: Rules | None = None,
    ):
        self.rows = open_rows(source, split, rules)
        self.labels, self.notes = self.rows.labels, self.rows.notes
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
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, self.epoch, i))
            row: dict[str, Any] = {"views": self._now.of_image(image)}  # (k, 3, size, size) in [0, 1]
        return row if self.labels is None else {**row, "labels": self.labels[position]}

    def image(self, i: int) -> Tensor:
        """Return image i (3, H, W), or the next that can be read."""
        return self._readable(i)[1]

    def _readable(self, i: int) -> tuple[int, Tensor]:
        for position in (*range(i, len(self)), *range(i)):
            try:
                return position, torch.from_numpy(load_image(self.rows[position]).pixels)
            except ImageError as e:
                with open(self.log, "a", encoding="utf-8") as file:
                    file.write(f"{e}\n")
        raise RecipeError(f"no readable image in {len(self)}; {self.log} says why")


def seed_of(*parts: object) -> int:
    """Return a seed that depends on all of the parts."""
    return int.from_bytes(hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest(), "big")


class Rows(Sequence[FileBytes | str]):
    """The encoded images of a data set, as `load_image` takes them.

    Attributes:
        labels: class of each, or None.
        several: classes of each, of a column of lists of classes, or None.
        classes: their names.
        version: changes when the source's files do.
    """

    def __init__(self, source: str, split: str):
        import datasets

        try:
            data = datasets.load_dataset(source, split=split)
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as e:  # ConnectionError is an OSError
            no_folder = "" if os.path.isdir(source) else "there is no such folder here, and the Hub says: "
            raise RecipeError(f"data={source}: {no_folder}{e}") from e
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
        self.several: list[list[int]] | None = None
        lists = [
            name
            for name, kind in data.features.items()
            if isinstance(getattr(kind, "feature", None), datasets.ClassLabel)
        ]
        if lists and not labels:
            self.several, self.classes = list(data[lists[0]]), data.features[lists[0]].feature.names
        self.notes: list[str] = []

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


class JoinedRows(Sequence[Any]):
    """Several sources one after another; classes of the same name are one class.

    Attributes:
        labels: class of each, or None if one of the sources has none.
        several: classes of each, if one of the sources has several, and all have some.
        classes: their names.
        version: changes when a source's files do.
    """

    def __init__(self, parts: "Sequence[Rows | FolderRows]"):
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))
        self.version = [part.version for part in parts]
        self.notes = [note for part in parts for note in part.notes]
        self.classes = list(dict.fromkeys(name for part in parts for name in part.classes))
        self.labels: list[int] | None = None
        self.several: list[list[int]] | None = None
        place = {name: i for i, name in enumerate(self.classes)}
        if all(part.labels is not None for part in parts):
            self.labels = [place[part.classes[label]] for part in parts for label in part.labels or ()]
        elif all(part.labels is not None or part.several is not None for part in parts):
            self.several = [
                [place[part.classes[label]] for label in some]
                for part in parts
                for some in (part.several if part.several is not None else [[label] for label in part.labels or ()])
            ]

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[j] for j in range(len(self))[i]]
        part = bisect.bisect_right(self._ends, i)
        return self._parts[part][i - (self._ends[part - 1] if part else 0)]


class FolderRows(Sequence[str]):
    """The photos of a folder, the same that the index finds there.

    Class folders are labels: if every photo lies in one of several folders just below the top. Where the folders at
    the top are exactly a known pair or three of splits, such as train and val, those are the splits.

    Args:
        folder: to read.
        split: "train", "validation" or "test"; a folder without splits is "train".
        rules: what is left out.

    Attributes:
        labels: class of each, or None.
        several: None: a file lies in one folder; copies of it may lie in others, see `labelled.several_labels`.
        classes: their names.
        version: changes when the files do.
        skipped: how many entries were left out, by reason.
        notes: which folders are splits, and what was left out, in words.

    Raises:
        RecipeError: the folder, or one below it, cannot be listed, or there is no such split.
    """

    def __init__(self, folder: str, split: str, rules: Rules | None = None):
        try:
            root, listing = scan_whole(folder, rules)
        except RootUnavailableError as e:
            raise RecipeError(f"data={e}") from e
        self.skipped = listing.skipped
        photos = sorted(listing.photos)
        splits = _splits(photos)
        top = splits.get(split)
        if photos and top is None and (splits or split != "train"):
            there = ", ".join(splits) or "no splits, but would need folders such as train and val at its top"
            raise RecipeError(f"data={folder}: no split {split}; the folder has {there}")
        if top is not None:
            photos = [path for path in photos if path.startswith(top + SEPARATOR)]
        parts = [path[len(top) + 1 if top else 0 :].split(SEPARATOR) for path in photos]
        self.labels: list[int] | None = None
        self.several: list[list[int]] | None = None
        self.classes = sorted({os.fsdecode(part[0]) for part in parts})
        if len(self.classes) > 1 and all(len(part) == 2 for part in parts):
            place = {os.fsencode(name): i for i, name in enumerate(self.classes)}
            self.labels = [place[part[0]] for part in parts]
        else:
            self.classes = []
        self.notes = [f"{folder}: {n:,} left out: {reason}" for reason, n in sorted(self.skipped.items())]
        if top is not None:
            others = " and ".join(os.fsdecode(name) for name in splits.values() if name != top)
            self.notes.append(f"{folder}: {split} is the folder {os.fsdecode(top)} of it, not {others}")
        stamps = repr([(path, tuple(listing.photos[path])) for path in photos])
        self.version = [hashlib.sha256(stamps.encode()).hexdigest()]
        self._paths = [os.fsdecode(os.path.join(root, path)) for path in photos]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, i: Any) -> Any:
        return self._paths[i]


#: What splits are called in folders, by their names here.
_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation", "dev", "eval"), "validation"
)


def _splits(photos: Sequence[bytes]) -> dict[str, bytes]:
    """Return the folder of each split, if the folders at the top with photos are splits and nothing else."""
    tops = {path.partition(SEPARATOR)[0] if SEPARATOR in path else b"" for path in photos}
    found = {_SPLITS.get(os.fsdecode(top).lower(), ""): top for top in tops}
    return found if len(found) == len(tops) > 1 and "" not in found and "train" in found else {}


def open_rows(source: str | Sequence[str], split: str, rules: Rules | None = None) -> FolderRows | Rows | JoinedRows:
    """Open one source of images, or several as one.

    Raises:
        RecipeError: one of them does not exist, or has no such split or no images.
    """
    if not isinstance(source, str):
        return JoinedRows([_open_one(one, split, rules) for one in source])
    return _open_one(source, split, rules)


def _open_one(source: str, split: str, rules: Rules | None) -> FolderRows | Rows:
    folder = os.path.expanduser(source)
    if os.path.isdir(folder):
        rows = FolderRows(folder, split, rules)
        if len(rows):
            return rows
        if not any(name.endswith(_TABLES) for _, _, names in os.walk(folder) for name in names):
            left_out = ", ".join(f"{n:,} {reason}" for reason, n in sorted(rows.skipped.items())) or "it is empty"
            raise RecipeError(f"data={source}: no photos in this folder ({left_out})")
        return Rows(folder, split)
    inside = "/" in source and os.path.isdir(source.partition("/")[0])  # of a folder here: a name is misspelt
    if inside or not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", source):
        raise RecipeError(f"data={source}: there is no such folder, and it is no id of a data set on the Hub")
    try:  # once: `datasets` asks six times
        HfApi(library_name="simclr_hub").dataset_info(source, timeout=10)
    except RepositoryNotFoundError as e:
        raise RecipeError(f"data={source}: there is no such folder here, and no such data set on the Hub") from e
    except Exception:  # whatever the Hub says, `datasets` may have it in its cache
        pass
    return Rows(source, split)


#: Files that `datasets` reads images from.
_TABLES = (".parquet", ".arrow", ".tar", ".zip")


def decode_all(rows: Sequence[Any], side: int, path: Path) -> tuple[list[int], list[str]]:
    """Write every readable image to the array at `path`; the rows that are in it, and why the others are not."""
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=(len(rows), 3, side, side))
    kept: list[int] = []
    unreadable: list[str] = []

    def small(row: FileBytes | str) -> np.ndarray | ImageError:
        try:
            return _resized(load_image(row).pixels, side)
        except ImageError as e:
            return e

    cores = os.cpu_count() or 1
    with Pool(cores, "simclr-decode") as pool, progress_bar("decoding", len(rows)) as advance:
        for start in range(0, len(rows), _CHUNK):
            for i, (_, image) in enumerate(pool.map(small, rows[start : start + _CHUNK], 2 * cores), start):
                if isinstance(image, ImageError):
                    unreadable.append(str(image))
                else:
                    array[len(kept)] = image
                    kept.append(i)
                advance(1)
    array.flush()
    return kept, unreadable


def _resized(pixels: np.ndarray, side: int) -> np.ndarray:
    """Resize (3, H, W), uint8 or float in [0, 1], to uint8 (3, side, side)."""
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).astype(np.uint8)
    if pixels.shape[1:] == (side, side):
        return pixels
    image = Image.fromarray(pixels.transpose(1, 2, 0)).resize((side, side), Image.Resampling.BOX)
    return np.asarray(image).transpose(2, 0, 1)
