"""Decoded images to pixels, and pixels to the network's input.

A PIL image becomes upright sRGB over white, an array RGB, and either what the official evaluation sees of it. Arrays
and tensors take the same way; torch is imported only where a tensor is given or a picture is large.

Travels to the Hub as remote code, so it imports only numpy, Pillow and torch.

Source: google-research/simclr, `data_util.py` (`center_crop`, `preprocess_for_eval`), TensorFlow's
`resize_bicubic_op.cc`, PyTorch's `UpSampleKernelAVXAntialias.h`.
"""

import functools
import io
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin

from .headers import FORMATS, LEVELS, NotReadError, is_misread, loaded_levels, read_picture

#: Larger colour profiles are ignored; printers' are about half a megabyte.
MAX_PROFILE = 4 << 20
#: Pixels of a picture up to which numpy resizes it about as fast as torch; for more, torch is worth its import.
FEW_PIXELS = 1 << 18

_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}
#: Levels of 255 within which a profile is taken for sRGB's own, which leaves the pixels as they are, to the last bit.
_ALIKE = 2
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def rgb_of(image: Image.Image) -> Image.Image:
    """Return a PIL image as upright sRGB, as if its file had been given.

    That of a file that is not loaded yet is read anew where Pillow fails or misreads it.

    Raises:
        NotReadError: see `headers.read_picture` and `upright_rgb`.
        Exception: whatever Pillow raises for damaged files.
    """
    if not isinstance(image, ImageFile.ImageFile) or image.format not in (*FORMATS, "MPO"):
        return loaded_rgb(image)
    if not image.tile or image.fp is None or image.tell() or image.decoderconfig:
        return loaded_rgb(image)  # loaded already, or at another frame or size
    file, at = image.fp, image.fp.tell()
    if not is_misread(image):
        try:
            return loaded_rgb(image)
        except (NotReadError, Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            if file.closed:
                raise
    file.seek(0)
    data = file.read()
    file.seek(at)  # the image stays as it was, so that it can be given again
    return read_picture(data, loaded_rgb)


def loaded_rgb(image: Image.Image) -> Image.Image:
    """Return `upright_rgb` of an image that was only opened."""
    image.load()
    return upright_rgb(image)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to sRGB over white, rotated as its EXIF says.

    Raises:
        NotReadError: pixels of which it is not known what is white, or that Pillow misreads.
        ValueError: float pixels that are not finite.
    """
    try:
        turn = _TRANSPOSE.get(image.getexif().get(0x0112, 1))
    except Exception:  # damaged EXIF is no reason to lose the photo
        turn = None
    if image.format == "JXL" and not getattr(image, "jpeg", False):
        turn = None  # it comes upright, whatever its EXIF says
    rgb = to_srgb(image, _rgb(image))
    return rgb if turn is None else rgb.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    levels = _levels(image)
    if levels is not None:
        grey = Image.fromarray(_to_uint8(np.asarray(image), *levels))
        if isinstance(key := image.info.get("transparency"), int):
            grey.putalpha(Image.fromarray(np.where(np.asarray(image) == key, 0, 255).astype(np.uint8)))
        return _rgb(grey)
    if image.mode == "RGBA" and image.format == "BMP" and not any(image.getchannel("A").getextrema()):
        return image.convert("RGB")  # the mask is there and nothing in it: no alpha was meant
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    if image.mode == "LAB":
        convert: Callable[..., Image.Image | None] = ImageCms.profileToProfile
        srgb = convert(image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB")
        assert srgb is not None  # None only with inPlace=True
        return srgb
    return image.convert("RGB")


def _levels(image: Image.Image) -> tuple[float, float] | None:
    """Return black and white as values of a grey image of more than 8 bits; None for all others."""
    if LEVELS in image.info:
        black, white = image.info[LEVELS]
        return black, white
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # which someone else has opened and loaded
        return loaded_levels(image)
    if image.mode == "F":
        if image.info.get("scale", 1) != 1:  # of a PFM, with which no one does the same
            raise NotReadError(f"PFM with a scale of {image.info['scale']:g} is not read")
        return 0.0, 1.0
    # Pillow reads and writes 16 bits as mode I, too.
    return (0.0, 65535.0) if image.mode == "I" or image.mode.startswith("I;16") else None


def _to_uint8(values: np.ndarray, black: float, white: float) -> np.ndarray:
    """Scale grey values to 8 bits, by the values of black and white.

    Raises:
        NotReadError: floats far outside of these; a lossy encoder may exceed them a little, highlights by up to 2.
        ValueError: pixels that are not finite.
    """
    if white > 1 << 31 or black > 1 << 31:
        values = values.view(np.uint32)  # Pillow's mode I is signed
    wide = values.astype(np.float64)
    full = max(black, white)
    low, high = (-1 / 8, 2) if values.dtype.kind == "f" else (0, full)
    if not np.isfinite(wide).all():
        raise ValueError("pixels that are not finite")
    if wide.size and not (low <= wide.min() and wide.max() <= high):
        raise NotReadError(
            f"pixels from {wide.min():g} to {wide.max():g}, of which {full:g} would be white, are not read"
        )
    if black > white:
        wide = full - wide
    return np.rint(wide.clip(0, full) * (255 / full)).astype(np.uint8)


def to_srgb(image: Image.Image, rgb: Image.Image) -> Image.Image:
    """Convert `rgb` to sRGB by the colour profile of the image that it was made of.

    A profile that is damaged or for other pixels is ignored.

    Args:
        image: as opened, in its own mode, with its profile in `info`.
        rgb: the same pixels after a plain conversion to RGB.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MAX_PROFILE:
        return rgb
    found = _to_srgb_by(profile)
    if found is None:
        return rgb
    mode, transform = found
    pixels = rgb
    if mode == "CMYK":
        pixels = image
    elif mode == "L":
        pixels = rgb.getchannel(0)
    grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")
    if pixels.mode != mode or (mode == "L") != grey or image.mode == "LAB":
        return rgb  # a profile for other pixels
    result: Image.Image = transform.apply(pixels)
    return result


@functools.lru_cache(
    maxsize=8
)  # a collection has few, and building one takes longer than applying it to a small photo
def _to_srgb_by(profile: bytes) -> tuple[str, Any] | None:
    """Return the mode that the profile is for, and the transform to sRGB; None if there is nothing to do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space.strip())
        if mode is None:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        probe = _probe(mode)
        changed = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    except Exception:  # LittleCMS refuses it
        return None
    return None if np.abs(changed).max() <= _ALIKE else (mode, transform)


def _probe(mode: str) -> Image.Image:
    """Return colours from everywhere in the mode's cube."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    steps = 256 if bands == 1 else 9 if bands == 3 else 5
    levels = np.linspace(0, 255, steps).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * bands, indexing="ij"), -1).reshape(-1, bands)
    return Image.frombytes(mode, (len(grid), 1), grid.tobytes())


def to_pixels(rgb: Image.Image) -> np.ndarray:
    """Return an RGB image as (3, H, W) uint8, its channels together in memory."""
    return np.array(rgb).transpose(2, 0, 1)


def rgb_of_array(x: np.ndarray) -> np.ndarray:
    """Convert (C, H, W), C of 1, 3, or 4 (RGB and alpha), to (3, H, W): over white, uint8 or float32 in [0, 1].

    Raises:
        NotReadError: other shapes, types other than uint8, uint16 and floats, or floats outside [0, 1].
    """
    if x.ndim != 3 or len(x) not in (1, 3, 4) or 0 in x.shape:
        raise NotReadError(f"an image has the shape (C, H, W) or (H, W, C) with C of 1, 3 or 4, not {x.shape}")
    kind, size = x.dtype.kind, x.dtype.itemsize
    if (kind, size) == ("u", 2):
        x = np.rint(x.astype(np.float32) / 257).astype(np.uint8)
    if x.dtype == np.uint8:
        if len(x) == 4:  # as Pillow composes, to the last bit
            colours, alpha = x[:3].astype(np.int32), x[3:].astype(np.int32)
            over = (colours * alpha + 255 * (255 - alpha) + 128) * 128
            x = ((over >> 8) + over >> 15).astype(np.uint8)
    elif kind != "f" or size > 8:
        raise NotReadError(f"pixels must be uint8, uint16, or float in [0, 1], not {x.dtype}")
    else:
        x = x.astype(np.float32, copy=False)
        if not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise NotReadError("float pixels must lie in [0, 1]; divide by 255 first")
        if len(x) == 4:
            x = x[:3] * x[3:] + (1 - x[3:])
    return np.require(np.broadcast_to(x, (3, *x.shape[1:])), requirements=["C", "W"])


def transform(x: Any, size: int, *, exact: bool = False, crop_proportion: float = 0.875) -> Any:
    """Crop the centre and resize bicubically, as the official evaluation does.

    It does not antialias: so unless `exact`, a photo of more than twice the size is first resized to twice that size
    with antialiasing.

    Args:
        x: an array or a tensor (B, 3, H, W), uint8 or float in [0, 1].
        size: side of the result.
        exact: never antialias.
        crop_proportion: share of the shorter side that is kept.

    Returns:
        float32 (B, 3, size, size), an array or a tensor as `x`, with the same bits.

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
        x = _antialiased(x, 2 * size)  # to one size, so that it hardly matters at which a photo was decoded
    if isinstance(x, np.ndarray):
        x = np.ascontiguousarray(x)
    for axis in (-2, -1):
        index, weights = bicubic_taps(x.shape[axis], size)
        x = sum(_weighted(x, axis, index[k], weights[k]) for k in range(4))
    return x.clip(0, 1)


def _weighted(x: Any, axis: int, index: np.ndarray, weight: np.ndarray) -> Any:
    """Take rows (axis -2) or columns (axis -1) by `index` and multiply each by its weight."""
    weight = weight[:, None] if axis == -2 else weight
    if isinstance(x, np.ndarray):
        return _to_float(x.take(index, axis)) * weight
    from torch import from_numpy

    return _to_float(x.index_select(axis, from_numpy(index).to(x.device))) * from_numpy(weight).to(x.device)


def normalize_pixels(x: Any, mean: float | Sequence[float] | None, std: float | Sequence[float] | None) -> Any:
    """Return (x - mean) / std for floats (B, 3, H, W), an array or a tensor; mean and std are one number or three.

    Raises:
        ValueError: neither 1 nor 3 numbers, one that is not finite, or an std that is not above 0.
    """
    means, stds = (np.array([] if value is None else value, np.float32).reshape(-1, 1, 1) for value in (mean, std))
    if not {len(means), len(stds)} <= {1, 3} or not (np.isfinite(means) & np.isfinite(stds) & (stds > 0)).all():
        raise ValueError(f"image_mean={mean}, image_std={std}: give 1 or 3 finite numbers, the std above 0")
    if isinstance(x, np.ndarray):
        return (x - means) / stds
    from torch import from_numpy

    return (x - from_numpy(means).to(x.device)) / from_numpy(stds).to(x.device)


def _to_float(x: Any) -> Any:
    if isinstance(x, np.ndarray):
        return x.astype(np.float32) / 255 if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
    return x.float() if x.is_floating_point() else x.float() / 255


@functools.lru_cache(maxsize=256)
def bicubic_taps(n_in: int, n_out: int) -> tuple[np.ndarray, np.ndarray]:
    """Return indices and weights, each (4, n_out), of the source pixels of every output pixel.

    The kernel is TensorFlow 1's: no half-pixel centres, Keys a = -0.75, offsets rounded to 1/1024. PyTorch's differs
    from it by up to 0.12 a pixel.
    """
    a = -0.75
    position = np.arange(n_out, dtype=np.float32) * np.float32(n_in / n_out)
    base = np.floor(position)
    # It is read from a table of 1024 offsets; without the rounding the error is up to 1.5e-4.
    near = np.rint((position - base) * 1024) / 1024

    def inner(t: Any) -> Any:  # |t| <= 1
        return ((a + 2) * t - (a + 3)) * t * t + 1

    def outer(t: Any) -> Any:  # 1 <= |t| <= 2
        return ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    weights = np.stack([outer(near + 1), inner(near), inner(1 - near), outer(2 - near)])
    index = base.astype(np.int64) + np.arange(-1, 3)[:, None]
    return index.clip(0, n_in - 1), weights


def _antialiased(x: Any, size: int) -> Any:
    """Resize (B, 3, H, W) to (B, 3, size, size); only bytes on the CPU stay bytes."""
    if isinstance(x, np.ndarray) and x.dtype == np.uint8:
        return resize_bytes(x, size)
    from torch import from_numpy
    from torch.nn.functional import interpolate

    if isinstance(x, np.ndarray):
        return _antialiased(from_numpy(x), size).numpy()
    as_bytes = not x.is_floating_point() and x.device.type == "cpu"
    x = interpolate(x if as_bytes else _to_float(x), size=(size, size), mode="bicubic", antialias=True)
    return x if as_bytes else x.clip(0, 1)


def resize_bytes(x: np.ndarray, size: int, *, kernel: str = "bicubic") -> np.ndarray:
    """Resize uint8 (B, C, H, W) to (B, C, size, size) with antialiasing, to the last bit as PyTorch does it on a CPU.

    Args:
        x: the pictures, C at most 4.
        size: side of the result.
        kernel: "bicubic" or "bilinear".
    """
    if "torch" in sys.modules or x.shape[-2] * x.shape[-1] > FEW_PIXELS:
        from torch import from_numpy
        from torch.nn.functional import interpolate

        resized: np.ndarray = interpolate(from_numpy(x), size=(size, size), mode=kernel, antialias=True).numpy()
        return resized
    return _resize_axis(_resize_axis(x, -1, size, kernel), -2, size, kernel)


def _resize_axis(x: np.ndarray, axis: int, size: int, kernel: str) -> np.ndarray:
    x = np.moveaxis(x, axis, 0)
    index, weights, precision = _antialiasing_taps(len(x), size, kernel)
    rows = np.ascontiguousarray(x).reshape(len(x), -1)
    result = np.empty((size, rows.shape[1]), np.uint8)
    for start in range(0, rows.shape[1], 256):  # so that all fits the cache
        some = rows[:, start : start + 256].astype(np.int32)
        total = np.full((size, some.shape[1]), 1 << (precision - 1), np.int32)  # which rounds to nearest
        product = np.empty_like(total)
        for i, weight in zip(index, weights, strict=True):
            np.take(some, i, 0, out=product, mode="clip")  # any other mode would copy
            product *= weight
            total += product
        total >>= precision
        result[:, start : start + 256] = total.clip(0, 255, out=total)
    return np.moveaxis(result.reshape(size, *x.shape[1:]), 0, axis)


@functools.lru_cache(maxsize=256)
def _antialiasing_taps(n_in: int, n_out: int, kernel: str) -> tuple[np.ndarray, np.ndarray, int]:
    """Return indices (T, n_out) and weights (T, n_out, 1) of the source pixels, and the weights' binary places.

    The weights are integers as PyTorch has them for bytes: with as many places as keep the largest within 16 bits.
    """
    scale = n_in / n_out
    stretch = max(scale, 1.0)
    support = (2 if kernel == "bicubic" else 1) * stretch
    centre = scale * (np.arange(n_out) + 0.5)
    first = (centre - support + 0.5).astype(np.int64).clip(0)
    end = (centre + support + 0.5).astype(np.int64).clip(None, n_in)
    index = first[:, None] + np.arange((end - first).max())  # (n_out, T)
    t = np.abs((index - centre[:, None] + 0.5) / stretch)
    if kernel == "bicubic":  # Keys, here with a = -0.5
        outer = (((t - 5) * t + 8) * t - 4) * -0.5
        weights = np.where(t < 1, (1.5 * t - 2.5) * t * t + 1, np.where(t < 2, outer, 0))
    else:
        weights = (1 - t).clip(0)
    weights *= index < end[:, None]
    weights /= weights.sum(1, keepdims=True)
    precision = next(n for n in range(22, -1, -1) if n == 0 or int(0.5 + weights.max() * 2**n) < 1 << 15)
    whole = np.trunc(weights * 2**precision + np.copysign(0.5, weights)).astype(np.int32)
    return index.clip(None, n_in - 1).T.copy(), whole.T[:, :, None].copy(), precision
