"""SimCLRImageProcessor: the official evaluation transform, batched on tensors.

Travels to the Hub as remote code, so it imports only numpy, Pillow, torch and transformers.

Unusual: TensorFlow 1's bicubic kernel (no half-pixel centres, Keys a = -0.75, offsets rounded to 1/1024) is not
PyTorch's; the difference is up to 0.12 a pixel. It does not antialias either, so by default a photo of more than twice
the input's size is first resized to twice that size with antialiasing; `exact=True` never does that.

Source: google-research/simclr, `data_util.py` (`center_crop`, `preprocess_for_eval`), TensorFlow's
`resize_bicubic_op.cc`.
"""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.processing_utils import ImagesKwargs


class SimCLRImageProcessorKwargs(ImagesKwargs, total=False):
    """Options beyond transformers' own.

    Args:
        exact: the official transform alone, at any reduction; at 32 pixels or less the image must have that size.
        crop_proportion: share of the shorter side that the central crop keeps.
    """

    exact: bool | None
    crop_proportion: float | None


class SimCLRImageProcessor(TorchvisionBackend):
    """Images to `pixel_values` (B, 3, size, size), float32 RGB in [0, 1], by default without mean and std.

    Takes what transformers' image processors take: PIL images (EXIF orientation applied, alpha over white), arrays
    and tensors (integers are divided by 255, floats must lie in [0, 1]), paths and URLs.

    Args:
        size: side in pixels, an int or {"height", "width"}, square.
        exact: see `SimCLRImageProcessorKwargs`.
        crop_proportion: 0.875 in the official code.
        do_normalize: last, subtract `image_mean` and divide by `image_std`; for weights that were trained so, which
            the official ones were not.
        image_mean: of [0, 1], one number or one a channel.
        image_std: likewise, above 0.

    Raises:
        ValueError: a size that is not square; with `exact=True` one of at most 32 that is not the image's; float
            pixels outside [0, 1]; a PIL image of mode I or F; an impossible mean or std.
    """

    valid_kwargs = SimCLRImageProcessorKwargs
    model_input_names = ["pixel_values"]
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_convert_rgb = True
    exact = False
    crop_proportion = 0.875
    do_normalize: bool | None = None  # as transformers has it, which writes nothing to the file then
    image_mean: float | Sequence[float] | None = None
    image_std: float | Sequence[float] | None = None

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Tensor:
        """One image to (3, H, W), uint8 or float."""
        if isinstance(image, Image.Image):
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):  # Pillow would clip to white
                image = Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8))
            elif image.mode in ("I", "F"):
                raise ValueError(f"a PIL image of mode {image.mode!r} has no known white: scale it to 8 bits first")
            if image.has_transparency_data:
                rgba = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            image = image.convert("RGB")
        tensor: Tensor = super().process_image(image, *args, **kwargs)
        if tensor.is_floating_point() and not (tensor.min() >= 0 and tensor.max() <= 1):
            raise ValueError("float pixels must lie in [0, 1]; divide by 255 first")
        return tensor

    def _preprocess(self, images: list[Tensor], **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        size = kwargs["size"]
        if size.height != size.width or not size.height:
            raise ValueError(f"size={dict(size)} is not square: give one side in pixels, such as size=224")
        by_shape: dict[Any, list[int]] = {}
        for i, image in enumerate(images):
            by_shape.setdefault((image.shape, image.dtype), []).append(i)
        pixel_values: list[Tensor] = [torch.empty(0)] * len(images)
        for rows in by_shape.values():
            batch = torch.stack([images[i] for i in rows])
            done = transform(batch, size.height, exact=kwargs["exact"], crop_proportion=kwargs["crop_proportion"])
            if kwargs["do_normalize"]:
                done = normalize_pixels(done, kwargs["image_mean"], kwargs["image_std"])
            for i, pixels in zip(rows, done, strict=True):
                pixel_values[i] = pixels
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=kwargs["return_tensors"])


def transform(x: Tensor, size: int, *, exact: bool = False, crop_proportion: float = 0.875) -> Tensor:
    """Central crop and bicubic resize, (B, 3, H, W) uint8 or float in [0, 1] to float32 (B, 3, size, size).

    Raises:
        ValueError: `exact`, a size of at most 32, and an image of another size.
    """
    height, width = x.shape[-2:]
    if size <= 32:  # the official code takes CIFAR images as they are
        if (height, width) == (size, size):
            return _to_float(x)
        if exact:
            raise ValueError(
                f"image of {height} x {width}: at size {size} the official transform takes only that size"
            )
        crop_proportion = 1.0
    side = round(crop_proportion * min(height, width)) or 1  # Python rounds half to even, as TensorFlow does
    top, left = (height - side + 1) // 2, (width - side + 1) // 2
    x = x[..., top : top + side, left : left + side]
    if not exact and side > 2 * size:
        # To one size, so that it hardly matters at which size a photo was decoded. Only the CPU resizes bytes.
        x = x if x.dtype == torch.uint8 and x.device.type == "cpu" else _to_float(x)
        x = F.interpolate(x, size=(2 * size, 2 * size), mode="bicubic", antialias=True)
        x = x if x.dtype == torch.uint8 else x.clamp(0, 1)  # as for bytes
    y_index, y_weight = _bicubic_taps(x.shape[-2], size, x.device)
    x_index, x_weight = _bicubic_taps(x.shape[-1], size, x.device)
    rows = sum(_to_float(x.index_select(-2, y_index[k])) * y_weight[k][:, None] for k in range(4))
    assert isinstance(rows, Tensor)  # (B, 3, size, W)
    out = sum(rows.index_select(-1, x_index[k]) * x_weight[k] for k in range(4))
    assert isinstance(out, Tensor)
    return out.clamp(0, 1)


def normalize_pixels(x: Tensor, mean: float | Sequence[float] | None, std: float | Sequence[float] | None) -> Tensor:
    """(x - mean) / std for float x (B, 3, H, W); mean and std are one number, or one a channel.

    Raises:
        ValueError: neither 1 nor 3 numbers, one that is not finite, or an std that is not above 0.
    """
    means, stds = (
        torch.tensor([] if value is None else value, dtype=torch.float32, device=x.device).reshape(-1, 1, 1)
        for value in (mean, std)
    )
    if not {len(means), len(stds)} <= {1, 3} or not (means.isfinite() & stds.isfinite() & (stds > 0)).all():
        raise ValueError(f"image_mean={mean}, image_std={std}: give 1 or 3 finite numbers, the std above 0")
    return (x - means) / stds


def _to_float(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x.float() / 255


@functools.lru_cache(maxsize=256)
def _bicubic_taps(n_in: int, n_out: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices and weights, each (4, n_out), of the source pixels of every output pixel."""
    a = -0.75
    position = torch.arange(n_out, dtype=torch.float32) * torch.tensor(n_in / n_out, dtype=torch.float32)
    base = position.floor()
    # The kernel is read from a table of 1024 offsets; without the rounding the error is up to 1.5e-4.
    near = ((position - base) * 1024).round() / 1024

    def inner(t: Tensor) -> Tensor:  # |t| <= 1
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def outer(t: Tensor) -> Tensor:  # 1 <= |t| <= 2
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    weights = torch.stack([outer(near + 1), inner(near), inner(1 - near), outer(2 - near)])
    index = (base.long() + torch.arange(-1, 3)[:, None]).clamp(0, n_in - 1)
    return index.to(device), weights.to(device)


__all__ = ["SimCLRImageProcessor"]
