"""SimCLRImageProcessor: the official evaluation transform (`pixels.transform`) as transformers' image processor.

Travels to the Hub as remote code, so it imports only numpy, Pillow, torch, transformers and what travels beside it.
"""

import base64
import importlib
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from transformers import BatchFeature
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import SizeDict, infer_channel_dimension_format
from transformers.processing_utils import ImagesKwargs

from .headers import is_raw, read_picture
from .model_folder import read_json
from .pixels import loaded_rgb, normalize_pixels, rgb_of, rgb_of_array, to_pixels, transform

#: transformers' options that the official transform leaves no room for: the values that ask for nothing else.
_ONLY: dict[str, tuple[Any, ...]] = {
    "do_resize": (None, True),
    "do_center_crop": (None, True),  # by `crop_proportion`
    "crop_size": (None,),
    "resample": (None, Image.Resampling.BICUBIC),
    "do_convert_rgb": (None, True),
    "rescale_factor": (None, 1 / 255),
    "do_pad": (None, False),
    "pad_size": (None,),
    "data_format": (None, "channels_first"),
}
#: What may stand in preprocessor_config.json beside the options.
_ABOUT = {"image_processor_type", "processor_class", "feature_extractor_type", "auto_map", "custom_pipelines"}
#: Pixels of a side; means and standard deviations of pixels in [0, 1]; both ends included.
SIZES, MEANS, STDS = (1, 2048), (-100.0, 100.0), (1e-3, 100.0)


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

    Takes what transformers' image processors take, alone or in lists: paths, URLs, `data:` URLs and PIL images (EXIF
    orientation applied, alpha over white, colour profiles converted to sRGB, 16 bits scaled; a file and the PIL image
    of it give the same to the last bit), arrays and tensors (uint8, uint16, or float in [0, 1]). HEIC, JPEG XL, camera
    RAW and URLs are read where the package simclr-hub is installed.

    Args:
        size: side in pixels, an int or {"height", "width"}, square, at most 2048.
        exact: see `SimCLRImageProcessorKwargs`.
        crop_proportion: above 0, at most 1; 0.875 in the official code.
        do_normalize: last, subtract `image_mean` and divide by `image_std`; for weights that were trained so, which
            the official ones were not.
        image_mean: of [0, 1], one number or one a channel.
        image_std: likewise, from 0.001 to 100.

    Raises:
        ValueError: a key that there is not; a value out of bounds or of another type; with `exact=True` a size of at
            most 32 that is not the image's; an image that cannot be read; pixels of another type, or floats outside
            [0, 1]; an option that would change nothing, such as `do_resize=False`: the network's input is always RGB
            in [0, 1] of one size.
    """

    valid_kwargs = SimCLRImageProcessorKwargs
    model_input_names = ["pixel_values"]
    size = {"height": 224, "width": 224}
    default_to_square = True
    do_convert_rgb = True
    do_rescale: bool | None = None  # the official transform; True is the same
    exact = False
    crop_proportion = 0.875
    do_normalize: bool | None = None  # as transformers has it, which writes nothing to the file then
    image_mean: float | Sequence[float] | None = None
    image_std: float | Sequence[float] | None = None

    def __init__(self, **kwargs: Any):
        if unknown := sorted(kwargs.keys() - self.valid_kwargs.__annotations__.keys() - _ABOUT):
            raise ValueError(f"unknown image processor key {', '.join(unknown)}")
        _refuse_numbers(kwargs)
        super().__init__(**kwargs)
        _refuse_options({name: getattr(self, name, None) for name in self._valid_kwargs_names})
        if self.do_rescale not in (None, True):
            raise ValueError(f"do_rescale={self.do_rescale}: the network takes [0, 1]")

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Load as transformers does, but of a folder open only small JSON files that lie in it."""
        folder = Path(pretrained_model_name_or_path)
        for name in ("preprocessor_config.json", "processor_config.json"):
            if os.path.lexists(path := folder / (kwargs.get("subfolder") or "") / name):
                read_json(path)
        found: tuple[dict[str, Any], dict[str, Any]] = super().get_image_processor_dict(
            pretrained_model_name_or_path, **kwargs
        )
        return found

    def _validate_preprocess_kwargs(self, *args: Any, **kwargs: Any) -> None:
        _refuse_numbers(kwargs)
        _refuse_options(kwargs)

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        found = list(_flat(images))
        if not found:
            raise ValueError("no images were given")
        return found

    def process_image(self, image: Any, *args: Any, **kwargs: Any) -> Tensor:
        """Convert one image to (3, H, W), uint8 or float32 in [0, 1]."""
        layout, device = kwargs.get("input_data_format"), kwargs.get("device")
        if isinstance(image, Tensor):
            device = device or image.device
            image = image.detach().cpu()
            image = (image.float() if image.is_floating_point() else image).numpy()
        if isinstance(image, np.ndarray):
            if image.ndim == 2:
                image = image[None]
            elif image.ndim == 3:
                if layout is None and not {1, 3, 4}.isdisjoint((image.shape[0], image.shape[2])):
                    layout = infer_channel_dimension_format(image, num_channels=(1, 3, 4))
                image = image.transpose(2, 0, 1) if layout == "channels_last" else image
            image = rgb_of_array(image)
        else:
            image = _decoded(image)
        pixels = torch.from_numpy(image)
        if kwargs.get("do_rescale") is False and not pixels.is_floating_point():
            raise ValueError(
                "do_rescale=False: the network takes [0, 1]; give floats in [0, 1], which are not rescaled"
            )
        return pixels if device is None else pixels.to(device)

    def _preprocess(self, images: list[Tensor], **kwargs: Any) -> BatchFeature:  # type: ignore[override]
        size = kwargs["size"]
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


def _refuse_options(options: dict[str, Any]) -> None:
    """Name an option that would have no effect.

    Raises:
        ValueError: it is there.
    """
    for name, values in _ONLY.items():
        value = options.get(name)
        if value not in values and not (name == "rescale_factor" and math.isclose(value or 0, 1 / 255)):
            raise ValueError(f"{name}={value}: the official transform has no such choice; leave it out")
    if options.get("do_normalize") is None:
        for name in ("image_mean", "image_std"):
            if options.get(name) is not None:
                raise ValueError(f"{name} has no effect without do_normalize=True")
    elif options["do_normalize"] and None in (options.get("image_mean"), options.get("image_std")):
        raise ValueError("do_normalize=True needs image_mean and image_std")


def _refuse_numbers(options: Mapping[str, Any]) -> None:
    """Name an option whose value is of another type or out of bounds.

    Raises:
        ValueError: it is there.
    """
    for name, ends in (("image_mean", MEANS), ("image_std", STDS)):
        if (value := options.get(name)) is not None:
            values = value if isinstance(value, (list, tuple)) else [value]
            if len(values) not in (1, 3) or not all(_within(number, *ends) for number in values):
                raise ValueError(f"{name}={_short(value)}: give 1 or 3 numbers from {ends[0]:g} to {ends[1]:g}")
    if (value := options.get("crop_proportion")) is not None and not (_within(value, 0, 1) and value > 0):
        raise ValueError(f"crop_proportion={_short(value)} must be above 0 and at most 1")
    if (value := options.get("size")) is not None:
        if isinstance(value, (Mapping, SizeDict)):
            sides = [value.get("height"), value.get("width")]
        else:
            sides = list(value) if isinstance(value, (list, tuple)) and len(value) == 2 else [value]
        if not all(isinstance(side, int) and _within(side, *SIZES) and side == sides[0] for side in sides):
            told = dict(value) if isinstance(value, SizeDict) else value
            raise ValueError(
                f"size={_short(told)} is not square, or not of {SIZES[0]} to {SIZES[1]} whole pixels: give one side, "
                "such as size=224"
            )
    for name in ("exact", "do_normalize", "do_rescale"):
        if (value := options.get(name)) is not None and not isinstance(value, bool):
            raise ValueError(f"{name}={_short(value)} must be true or false")


def _within(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high


def _short(value: Any) -> str:
    return text if len(text := str(value)) <= 80 else f"{text[:77]}..."


def _flat(images: Any) -> Iterator[Any]:
    """Yield the single images of one image, a batch, or lists of them."""
    if isinstance(images, (list, tuple)) or (isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4):
        for image in images:
            yield from _flat(image)
    else:
        yield images


def _decoded(source: Any) -> np.ndarray:
    """Decode a PIL image, a file's path or bytes, or a URL to (3, H, W) uint8.

    Raises:
        ValueError: it cannot be read; the text names it.
        TypeError: it is no image.
    """
    if not isinstance(source, (Image.Image, str, os.PathLike, bytes)):
        raise TypeError(f"{type(source)} is no image: give a path, a URL, a PIL image, an array or a tensor")
    name = "<PIL image>" if isinstance(source, Image.Image) else "<bytes>"
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
    try:
        if isinstance(source, Image.Image):
            return to_pixels(rgb_of(source))
        if isinstance(source, str):
            scheme = re.match(r"data:image/[\w.+-]+;base64,", source)
            if scheme or len(source) > 4096:  # longer than any path
                name = scheme[0] if scheme else "<base64 text>"
                source = base64.b64decode(source[scheme.end() if scheme else 0 :])
        try:  # by its name as text, since this file also travels without the package
            load_image = importlib.import_module("simclr_hub.images").load_image
        except ImportError:
            return to_pixels(_from_file(source))
    except Exception as e:
        raise ValueError(f"{name}: {str(e) or type(e).__name__}") from e
    pixels: np.ndarray = load_image({"bytes": source, "path": name} if isinstance(source, bytes) else source).pixels
    return pixels


def _from_file(source: str | os.PathLike[str] | bytes) -> Image.Image:
    """Decode a file to upright RGB, without the package."""
    wanted = "needs the package simclr-hub (pip install 'simclr-hub[formats]')"
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise ValueError(f"reading a URL {wanted}; or download it")
    data, suffix = (source, ".tif") if isinstance(source, bytes) else (Path(source).read_bytes(), Path(source).suffix)
    if is_raw(data) or (data.startswith((b"II*\0", b"MM\0*")) and suffix.lower() not in (".tif", ".tiff")):
        raise ValueError(f"camera RAW {wanted}")
    try:
        return read_picture(data, loaded_rgb)
    except UnidentifiedImageError as e:
        raise ValueError(f"not an image of a format that Pillow reads; HEIC and JPEG XL {wanted}") from e


__all__ = ["SimCLRImageProcessor"]
