"""Images for pretraining, decoded once to one uint8 array that the loop reads by row.

Meant for small images (Tiny ImageNet, CIFAR-10): the array is side x side x 3 bytes an image, memory-mapped.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from simclr_hub._files import write_file
from simclr_hub.errors import RecipeError
from simclr_hub.images import decode


class ImageArray(Dataset[dict[str, Tensor]]):
    """Rows of a uint8 array (N, 3, side, side), with labels (N,) where the data has them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None):
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"images": torch.from_numpy(np.array(self.images[i]))}

    @classmethod
    def load(cls, source: str, split: str, side: int, cache: Path) -> "ImageArray":
        """Decode a folder of images or parquet files, or a Hub dataset, through `datasets`; later from `cache`.

        Args:
            source: a folder (class folders or parquet files) or a dataset's id on the Hub.
            split: which split; "train" and "validation" are the usual ones.
            side: images are resized (area filter, not cropped) to side x side unless they have it.
            cache: directory for the array; reused only for the same source, split and side.

        Raises:
            RecipeError: the source does not exist, has no such split, or has no image column.
        """
        key = {"source": source, "split": split, "side": side}
        array, meta = cache / f"{split}-{side}.npy", cache / f"{split}-{side}.json"
        if not (meta.exists() and json.loads(meta.read_text())["key"] == key):
            cache.mkdir(parents=True, exist_ok=True)
            rows, labels = _open(source, split)
            if not rows:
                raise RecipeError(f"data={source}: split {split} has no images")
            images = np.stack([_resized(row, side, f"{source}[{i}]") for i, row in enumerate(rows)])
            write_file(array, lambda f: np.save(f, images))
            record = json.dumps({"key": key, "labels": labels})
            write_file(meta, lambda f: f.write(record.encode()))
        labels = json.loads(meta.read_text())["labels"]
        return cls(np.load(array, mmap_mode="r"), None if labels is None else np.array(labels))


def _open(source: str, split: str) -> tuple[Sequence[Any], list[int] | None]:
    import datasets

    try:
        data = datasets.load_dataset(source, split=split)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as e:  # ConnectionError is an OSError
        raise RecipeError(f"data={source}: {e}") from e
    columns = [name for name, kind in data.features.items() if isinstance(kind, datasets.Image)]
    if not columns:
        raise RecipeError(f"data={source} has no image column, only {', '.join(data.features)}")
    data = data.cast_column(columns[0], datasets.Image(decode=False))
    labels = list(data["label"]) if "label" in data.features else None
    return data[columns[0]], labels


def _resized(row: dict[str, Any], side: int, name: str) -> np.ndarray:
    from PIL import Image

    data = row["bytes"] if row["bytes"] is not None else Path(row["path"]).read_bytes()
    image = decode(data, row["path"] or name)
    if image.size != (side, side):
        image = image.resize((side, side), Image.Resampling.BOX, reducing_gap=None)
    return np.asarray(image).transpose(2, 0, 1)


def collate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the rows of a batch: images (B, 3, side, side), uint8."""
    return {"images": torch.stack([row["images"] for row in rows])}
