"""The images of a run with labels or a teacher: those of its steps, in order, and those that it is measured on."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from simclr_hub._threads import Pool
from simclr_hub.errors import ImageError, RecipeError
from simclr_hub.image_processing_simclr import SimCLRImageProcessor
from simclr_hub.images import load_image

from .augmentations import Views
from .data import decode_all, seed_of
from .labelled import Part

#: Bytes of images to evaluate on that are kept from one evaluation to the next.
KEPT = 1 << 28


class Draws(Dataset[dict[str, Any]]):
    """The images of a run in the order in which its steps see them, one shuffled epoch after another.

    A batch may cross an epoch's end, and none is smaller. Draw j depends on seed and j alone, so that a resumed run
    sees what an uninterrupted one does. With `side` the images are decoded once, and cropped by the trainer; without,
    the originals are read and cropped by the data loader's workers. In place of an original that cannot be read stands
    the next one that can; the reason is appended to `log`.

    Args:
        part: what has the labels; what cannot be decoded is put down in its `unreadable`.
        seed: of the order and of the crops that are not the trainer's.
        side: in pixels, or None.
        views: that are drawn, unless by the trainer.
        output: where the decoded images lie, and the log.
        fixed: crops that each image has, one an epoch, over and over; 0: every draw has its own.
        decodes: False where another process of this run has decoded already.

    Attributes:
        count: of draws, steps x batch; to be set.
        taught: what a teacher says of the fixed crops, (N, fixed, C), or None.
    """

    def __init__(
        self,
        part: Part,
        seed: int,
        side: int | None,
        views: Views,
        output: Path,
        *,
        fixed: int = 0,
        decodes: bool = True,
    ):
        self.rows, self.seed, self.views, self.fixed = part.rows, seed, views, fixed
        self.places, self.images = part.chosen, None
        self.taught: np.ndarray | None = None
        self.log = output / "unreadable.txt"
        if side is not None:
            cache = output / "cache" / f"labelled-{side}.npy"
            if decodes:
                cache.parent.mkdir(parents=True, exist_ok=True)
                found = decode_all([part.rows[int(place)] for place in part.chosen], side, cache)
                cache.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")
            kept, reasons = json.loads(cache.with_suffix(".json").read_text(encoding="utf-8"))
            left_out = np.setdiff1d(np.arange(len(part.chosen)), kept)
            part.unreadable |= dict(zip(part.chosen[left_out].tolist(), reasons, strict=True))
            if not kept:
                raise RecipeError(f"data={part.source}: no readable image with a label; first: {reasons[0]}")
            self.places, self.images = part.chosen[kept], np.load(cache, mmap_mode="r")
        self.labels = part.labels[self.places]
        self.count = 0
        self._epoch, self._order = -1, torch.empty(0)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, j: int) -> dict[str, Any]:
        epoch, place = divmod(j, len(self.places))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(seed_of(self.seed, epoch))
            self._epoch, self._order = epoch, torch.randperm(len(self.places), generator=generator)
        i = int(self._order[place])
        if self.fixed:
            view = epoch % self.fixed
            row = {"pixels": self.view(i, view), "labels": int(self.labels[i])}
            return row if self.taught is None else {**row, "taught": torch.from_numpy(np.array(self.taught[i, view]))}
        if self.images is not None:
            return {"images": torch.from_numpy(np.array(self.images[i])), "labels": int(self.labels[i])}
        i, image = self._readable(i)
        return {"pixels": self._crop(image, "crop", j), "labels": int(self.labels[i])}

    def view(self, i: int, view: int) -> Tensor:
        """Draw one of the fixed crops of image i, (3, size, size); it depends on seed, place and view alone."""
        image = self._readable(i)[1] if self.images is None else torch.from_numpy(np.array(self.images[i]))
        return self._crop(image, "view", int(self.places[i]), view)

    def _crop(self, image: Tensor, *parts: object) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, *parts))
            return self.views(image[None])[0]

    def _readable(self, i: int) -> tuple[int, Tensor]:
        for one in (*range(i, len(self.places)), *range(i)):
            try:
                return one, torch.from_numpy(load_image(self.rows[int(self.places[one])]).pixels)
            except ImageError as e:
                with open(self.log, "a", encoding="utf-8") as file:
                    file.write(f"{e}\n")
        raise RecipeError(f"no readable image in {len(self.places)}; {self.log} says why")


class Evaluation:
    """Labelled images as the model's processor gives them; those that cannot be read are left out, and put down."""

    def __init__(self, part: Part, processor: SimCLRImageProcessor):
        self.part, self.processor = part, processor
        self._kept: list[tuple[Tensor, Tensor]] | None = None

    def batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels (B, 3, H, W) and classes (B,); kept for the next time if they are few."""
        if self._kept is not None:
            yield from self._kept
            return
        height, width = self.processor.size["height"], self.processor.size["width"]
        kept: list[tuple[Tensor, Tensor]] | None = []
        if len(self.part.chosen) * 3 * height * width * 4 > KEPT:
            kept = None

        def pixels(place: int) -> Tensor | ImageError:
            try:
                image = torch.from_numpy(load_image(self.part.rows[place]).pixels)
            except ImageError as e:
                return e
            found: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"]
            return found

        with Pool(os.cpu_count() or 1, "simclr-decode") as pool:
            for start in range(0, len(self.part.chosen), size):
                places = self.part.chosen[start : start + size].tolist()
                good: dict[int, Tensor] = {}
                for place, found in pool.map(pixels, places, 64):
                    if isinstance(found, ImageError):
                        self.part.unreadable[place] = str(found)
                    else:
                        good[place] = found
                if good:
                    batch = torch.cat(list(good.values())), torch.from_numpy(self.part.labels[list(good)])
                    if kept is not None:
                        kept.append(batch)
                    yield batch
        self._kept = kept
