"""What a student learns from: a classifier's logits or an encoder's h, computed at each step or once for fixed crops.

A teacher may be a stranger's: of its folder only JSON and safetensors are opened, and no code of it is run.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoModelForImageClassification

from simclr_hub._files import write_file
from simclr_hub.errors import CheckpointError, RecipeError
from simclr_hub.loading import load, locate
from simclr_hub.model_folder import read_json, weight_files
from simclr_hub.pixels import normalize_pixels
from simclr_hub.progress import progress_bar, quiet_transformers

from .draws import Draws

#: Keys of a config by which transformers would fetch or open other weights than the folder's.
_ELSEWHERE = ("use_pretrained_backbone", "use_timm_backbone")


class Teacher(nn.Module):
    """An image classifier of transformers that does not learn; it takes crops in [0, 1], whatever its processor does.

    Args:
        name: a directory, an official checkpoint's name or a Hub id; no code of it is run.

    Attributes:
        classes: their names; none of an encoder.
        width: of what it gives.

    Raises:
        RecipeError: it cannot be loaded, holds pickles or names files elsewhere, or has no classifier.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name, self.classes = name, list[str]()
        try:
            self.folder = locate(name)[0]
            self.model, processor = self._loaded()
        except Exception as e:  # transformers and safetensors raise OSError, ValueError, RuntimeError, ...
            raise RecipeError(f"teacher={name}: {' '.join(str(e).split())}") from e
        self.model.requires_grad_(False).eval()
        size = processor.size
        side = size.get("height") or size.get("shortest_edge")
        if not side:
            raise RecipeError(
                f"teacher={name}: its image processor names no size; set one in preprocessor_config.json"
            )
        self.side = int(side)
        self.normalizes = bool(processor.do_normalize)
        self.mean, self.std = processor.image_mean, processor.image_std

    def _loaded(self) -> tuple[nn.Module, Any]:
        """Load the model and its processor, and set `classes` and `width`."""
        check_folder(self.folder)
        with quiet_transformers():
            model, info = AutoModelForImageClassification.from_pretrained(
                self.folder,
                local_files_only=True,
                trust_remote_code=False,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
            processor = AutoImageProcessor.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        if info["missing_keys"]:
            missing = ", ".join(sorted(info["missing_keys"])[:3])
            raise RecipeError(f"no trained classifier ({missing} missing); fine-tune it first, or set target=features")
        labels = model.config.id2label
        self.classes = [str(labels[i]) for i in range(len(labels))]
        self.width = len(labels)
        return model, processor

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in inference mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """Compute what is taught (N, width) by crops (N, 3, H, W) in [0, 1], resized to the teacher's size."""
        if pixels.shape[-1] != self.side:
            size = (self.side, self.side)
            pixels = F.interpolate(pixels, size, mode="bicubic", antialias=True).clamp(0, 1)
        if self.normalizes:
            pixels = normalize_pixels(pixels, self.mean, self.std)
        return self._given(self.model(pixels)).float()

    def _given(self, output: Any) -> Tensor:
        logits: Tensor = output.logits
        return logits

    def fingerprint(self) -> str:
        """Return what identifies what it teaches: the SHA-256 of its settings and weights."""
        digest = hashlib.sha256(type(self).__name__.encode())
        for path in (*sorted(self.folder.glob("*config.json")), *weight_files(self.folder)):
            with open(path, "rb") as file:
                digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}".encode())
        return digest.hexdigest()


class EncoderTeacher(Teacher):
    """A SimCLR encoder by any name, which teaches its h.

    Raises:
        RecipeError: it cannot be loaded.
    """

    def _loaded(self) -> tuple[nn.Module, Any]:
        model, processor = load(self.name)
        self.width = int(model.config.hidden_size)
        return model, processor

    def _given(self, output: Any) -> Tensor:
        h: Tensor = output.pooler_output
        return h


def check_folder(folder: Path) -> None:
    """Refuse a folder whose files transformers would unpickle, or of whose settings it would follow elsewhere.

    Raises:
        ValueError: names what is refused.
    """
    config = read_json(folder / "config.json")
    if found := next((key for key in _ELSEWHERE if config.get(key)), None):
        raise ValueError(f"{folder / 'config.json'}: {found} would open weights from elsewhere; it is not followed")
    if os.path.lexists(folder / "preprocessor_config.json"):
        read_json(folder / "preprocessor_config.json")
    weight_files(folder)


def teach_once(teacher: Teacher, draws: Draws, cache: Path, about: Mapping[str, Any], batch: int) -> np.ndarray:
    """Compute what a teacher says of every fixed crop, unless it is kept: (N, fixed, width) float32, not in memory.

    Args:
        teacher: on its device.
        draws: the images, with `fixed` crops each.
        cache: folder of what is kept.
        about: what else determines the crops; the teacher, the images and their order are added.
        batch: crops at a time; it is among what determines the bits.
    """
    n, fixed = len(draws.places), draws.fixed
    chosen = hashlib.sha256(np.ascontiguousarray(draws.places, "<i8").tobytes()).hexdigest()
    key = {**about, "teacher": teacher.fingerprint(), "version": draws.rows.version, "images": chosen}
    key |= {"seed": draws.seed, "fixed": fixed, "batch": batch}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:32]
    path, shape = cache / f"{digest}.npy", (n, fixed, teacher.width)
    if (kept := _kept(path, shape)) is not None:
        return kept
    device = next(teacher.parameters()).device

    def write(file: Any) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        with progress_bar("teacher", n * fixed) as advance:
            for start in range(0, n * fixed, batch):
                places = [divmod(crop, fixed) for crop in range(start, min(start + batch, n * fixed))]
                pixels = torch.stack([draws.view(i, view) for i, view in places]).to(device)
                file.write(teacher(pixels).cpu().numpy().astype("<f4").tobytes())
                advance(len(places))

    cache.mkdir(parents=True, exist_ok=True)
    write_file(path, write)
    if (kept := _kept(path, shape)) is None:
        raise CheckpointError(f"{path}: was written, but cannot be read")
    return kept


def _kept(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Open what is kept; None if it is not there, damaged, or something else."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, EOFError, ValueError):
        return None
    whole = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.dtype("<f4")
    return found if whole else None
