"""SimCLR's random views: the official pipeline of v1 and v2 by default, or any operations in any order.

One code runs in two places: batched on the device (`Views.pair`), each sample with its own parameters, or in
data-loader workers on single photos of any size (`Views.of_image`). All randomness comes from torch's CPU generator.

    Views(224)                                                # ImageNet, as released
    Views(32, strength=0.5, blur_p=0)                         # CIFAR-10
    Views(224, shared=["crop"], operations=["crop", "jitter"], one_branch=True)  # a cell of the v1 paper's figure 5
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from .operations import (
    add_brightness,
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    gaussian_blur,
    sample_crop_boxes,
    to_greyscale,
)
from .transforms import (
    Blur,
    Crop,
    Cutout,
    Flip,
    Greyscale,
    Jitter,
    Noise,
    Resize,
    Rotate,
    Sobel,
    Sometimes,
    are_numbers,
    check_probability,
    check_strengths,
)

__all__ = [
    "Views",
    "add_brightness",
    "adjust_brightness",
    "adjust_contrast",
    "adjust_hue",
    "adjust_saturation",
    "gaussian_blur",
    "sample_crop_boxes",
    "to_greyscale",
]

Operation = Resize | Sometimes

#: Name in a recipe -> operation.
OPERATIONS: dict[str, type[Operation]] = {
    "crop": Crop,
    "resize": Resize,
    "flip": Flip,
    "jitter": Jitter,
    "greyscale": Greyscale,
    "blur": Blur,
    "rotate": Rotate,
    "cutout": Cutout,
    "noise": Noise,
    "sobel": Sobel,
}

#: Pixels of views made at a time on a CPU: what fits its cache is up to half as fast again.
CPU_PIXELS = 100_000


@dataclass
class Views:
    """Random views of images; a recipe's section `views`.

    Args:
        size: side of a view in pixels.
        count: views of each image in a batch; every pair of them is positive.
        sizes: a schedule over the run: {from: share of the steps, size: ..., area: ...}, in order; from there on these
            take the place of `size` and `area`. Small views first cost less: FixRes, arXiv 1906.06423.
        resample: "bicubic" (TensorFlow 1's, the official one) or "bilinear".
        area: crop's share of the image's area.
        strength: scales the jitter: 1 for ImageNet, 0.5 for CIFAR-10.
        jitter: strengths of brightness, contrast, saturation and, if there is a fourth, hue.
        jitter_p: probability that a sample is jittered.
        brightness: "multiply" (released code) or "add" (v1's paper version).
        greyscale_p: probability that a sample loses its colour.
        blur_p: probability that a sample is blurred.
        operations: names or {name: {key: value}}, applied in order; the keys above are their defaults.
            Names and keys: `OPERATIONS`. The first of all is crop or resize.
        shared: operations applied once to an image, before its views part.
        one_branch: only the first view of a pair undergoes `operations`; the second is the image after `shared`.

    Raises:
        ValueError: a value out of range, an unknown operation or key; names it.
    """

    size: int
    count: int = 2
    sizes: Sequence[Mapping[str, Any]] = ()
    resample: str = "bicubic"
    area: Sequence[float] = (0.08, 1.0)
    strength: float = 1.0
    jitter: Sequence[float] = (0.8, 0.8, 0.8, 0.2)
    jitter_p: float = 0.8
    brightness: str = "multiply"
    greyscale_p: float = 0.2
    blur_p: float = 0.5
    operations: Sequence[Any] = ("crop", "flip", "jitter", "greyscale", "blur")
    shared: Sequence[Any] = ()
    one_branch: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.count, int) or self.count < 2:
            raise ValueError(f"count={self.count!r} must be a whole number of views, 2 or more")
        self._stages = self._scheduled()
        check_strengths("jitter", self.jitter)
        for name in ("jitter_p", "greyscale_p", "blur_p"):
            check_probability(name, getattr(self, name))
        target = {"size": self.size, "resample": self.resample}
        colour = {"strengths": self.jitter, "strength": self.strength, "brightness": self.brightness}
        defaults: dict[str, dict[str, Any]] = {
            "crop": {**target, "area": self.area},
            "resize": target,
            "jitter": {**colour, "p": self.jitter_p},
            "greyscale": {"p": self.greyscale_p},
            "blur": {"p": self.blur_p},
        }
        for name in ("operations", "shared"):
            if isinstance(entries := getattr(self, name), str) or not isinstance(entries, Sequence):
                raise ValueError(f"{name}={entries!r} must be a list of operations")
        self._operations = _built(self.operations, defaults)
        self._shared = _built(self.shared, defaults)
        if self.one_branch and not self._shared:
            raise ValueError(
                "one_branch=True needs shared=[crop] or shared=[resize]: the other branch's whole pipeline"
            )
        if self.one_branch and self.count != 2:
            raise ValueError(f"one_branch=True is for two views, not count={self.count}")
        if not isinstance(next(iter([*self._shared, *self._operations]), None), Resize):
            raise ValueError(f"shared={self.shared}, operations={self.operations}: the first must be crop or resize")

    def __call__(self, images: Tensor) -> Tensor:
        """Make one view of each image (B, 3, H, W), uint8 or float in [0, 1]: float32 (B, 3, size, size)."""
        return self._views(images, 1)[0]

    def at(self, progress: float) -> "Views":
        """Return the views to draw after a share `progress` of the run's steps, in [0, 1]."""
        return next((views for start, views in reversed(self._stages) if start <= progress), self)

    def _scheduled(self) -> list[tuple[float, "Views"]]:
        """Build what each entry of `sizes` says."""
        stages: list[tuple[float, Views]] = []
        if not isinstance(self.sizes, (list, tuple)):
            raise ValueError(f"sizes={self.sizes!r} must be a list of {{from: ..., size: ..., area: ...}}")
        for entry in self.sizes:
            if not isinstance(entry, Mapping) or "from" not in entry or not set(entry) <= {"from", "size", "area"}:
                raise ValueError(f"sizes: {entry!r} needs from, and size or area or both beside it")
            start = entry["from"]
            if not are_numbers(start) or not (stages[-1][0] if stages else 0) < start < 1:
                raise ValueError(f"sizes: from={start!r} must lie between 0 and 1, each above the one before")
            changed = {key: entry[key] for key in ("size", "area") if key in entry}
            stages.append((float(start), replace(stages[-1][1] if stages else self, sizes=(), **changed)))
        return stages

    def batch(self, images: Tensor) -> Tensor:
        """Make `count` views of each image (B, 3, H, W), uint8 or in [0, 1]: float32 (count, B, 3, size, size)."""
        return torch.stack(self._views(images, self.count))

    def pair(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Make two views of each image (B, 3, H, W), uint8 or float in [0, 1]: float32 (B, 3, size, size) each."""
        a, b = self._views(images, 2)
        return a, b

    def of_image(self, image: Tensor) -> Tensor:
        """Make the views (count, 3, size, size) of one decoded photo of any size (3, H, W), uint8.

        For data-loader workers: torch seeds each worker's generator. The blur's sigma is each image's own.
        """
        return self.batch(image[None])[:, 0]

    def describe(self) -> str:
        """Describe the views in one line: size, operations in order, and each probability below 1."""
        shared = f"shared {_listed(self._shared)}; " if self._shared else ""
        branches = "view a alone" if self.one_branch else "each view"
        sizes = "".join(f", from {start:.0%} of the run {views.size} px" for start, views in self._stages)
        count = f"; {self.count} views" if self.count > 2 else ""
        return f"{self.size} px {self.resample}{sizes}{count}; {shared}{branches} {_listed(self._operations)}"

    @torch.no_grad()
    def _views(self, images: Tensor, count: int) -> list[Tensor]:
        shared = self._draw(self._shared, images.shape, first=True)
        branches = [self._draw(self._operations, images.shape, first=not shared) for _ in range(count)]
        if self.one_branch and count == 2:
            branches[1] = []
        at_once = max(CPU_PIXELS // self.size**2, 1) if images.device.type == "cpu" else len(images)
        views: list[list[Tensor]] = [[] for _ in branches]
        with torch.autocast(images.device.type, enabled=False):  # views are exact whatever the model runs in
            for start in range(0, len(images), at_once):
                rows = slice(start, start + at_once)
                x = _apply(images[rows], shared, rows)
                for done, branch in zip(views, branches, strict=True):
                    done.append(_apply(x.clone() if shared else x, branch, rows).clamp_(0, 1))
        return [torch.cat(done) for done in views]

    def _draw(self, operations: list[Operation], shape: torch.Size, *, first: bool) -> list[tuple[Operation, Tensor]]:
        drawn = []
        for operation in operations:
            height, width = shape[-2:] if first else (self.size, self.size)
            drawn.append((operation, operation.draw(shape[0], height, width)))
            first = False
        return drawn


def _listed(operations: Sequence[Operation]) -> str:
    names = {kind: name for name, kind in OPERATIONS.items()}
    shown = []
    for operation in operations:
        p = 1 if isinstance(operation, Resize) else operation.p
        shown.append(names.get(type(operation), repr(operation)) + (f" (p {p:g})" if p < 1 else ""))
    return ", ".join(shown)


def _apply(x: Tensor, steps: list[tuple[Operation, Tensor]], rows: slice) -> Tensor:
    for operation, drawn in steps:
        x = operation(x, drawn[rows])
    return x


def _built(entries: Sequence[Any], defaults: Mapping[str, Mapping[str, Any]]) -> list[Operation]:
    operations = [_build(entry, defaults) for entry in entries]
    return [operation for operation in operations if isinstance(operation, Resize) or operation.p > 0]


def _build(entry: Any, defaults: Mapping[str, Mapping[str, Any]]) -> Operation:
    """Build an operation from a recipe's entry: its name, or {name: {key: value}}; an `Operation` stays as it is.

    Args:
        entry: from the recipe.
        defaults: name -> values for the keys that the entry leaves out.

    Raises:
        ValueError: an unknown operation or key, or a value out of range; names it.
    """
    if isinstance(entry, (Resize, Sometimes)):
        return entry
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise ValueError(f"operation {entry!r} must be a name, or one name with its keys, like {{blur: {{p: 0.5}}}}")
    [(name, settings)] = entry.items()
    if name not in OPERATIONS:
        raise ValueError(f"unknown operation {name!r}; there are {', '.join(OPERATIONS)}")
    if not isinstance(settings or {}, Mapping):
        raise ValueError(f"{name} must have keys, not {settings!r}")
    kind = OPERATIONS[name]
    known = [field.name for field in fields(kind) if field.name != "size"]  # all views have one size
    unknown = sorted(str(key) for key in settings or {} if key not in known)
    if unknown:
        raise ValueError(f"{name}: unknown key {', '.join(unknown)}; it has {', '.join(known)}")
    try:
        return kind(**{**defaults.get(name, {}), **(settings or {})})
    except ValueError as e:
        raise ValueError(f"{name}: {e}") from e
