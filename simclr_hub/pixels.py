"""Decoded images to pixels: a PIL image to upright sRGB over white, an array or tensor to RGB.

Travels to the Hub as remote code, so it imports only numpy, Pillow and torch.

Unusual: 16-bit and float images are scaled, not clipped to white, by what is white in their file and never by their
pixels; transparency lies over white; EXIF orientation and embedded colour profiles are applied. torch is imported
where a tensor is made: a picture is decoded without it.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageCms, ImageFile, TiffImagePlugin

from .colour import to_srgb
from .headers import FORMATS, LEVELS, NotReadError, is_misread, loaded_levels, read_picture

if TYPE_CHECKING:
    from torch import Tensor

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
    """Convert any mode to sRGB, rotated as its EXIF says.

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


def to_tensor(rgb: Image.Image) -> "Tensor":
    """Return an RGB image as (3, H, W) uint8."""
    import torch

    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def tensor_of(array: np.ndarray) -> "Tensor":
    """Return an array as a tensor, copied where torch needs it: read-only, of another byte order, strided.

    Raises:
        NotReadError: values that are no numbers, or wider than 64 bits.
    """
    if array.dtype.kind not in "iufb" or array.dtype.itemsize > 8:
        raise NotReadError(f"pixels must be uint8, uint16, or float in [0, 1], not {array.dtype}")
    import torch

    native: Any = array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, native, ["C", "W"]))


def rgb_of_tensor(x: "Tensor") -> "Tensor":
    """Convert (C, H, W), C of 1, 3, or 4 (RGB and alpha), to (3, H, W): over white, uint8 or float32 in [0, 1].

    Raises:
        NotReadError: other shapes, integers other than uint8 and uint16, or floats outside [0, 1].
    """
    if x.ndim != 3 or len(x) not in (1, 3, 4) or 0 in x.shape:
        raise NotReadError(f"an image has the shape (C, H, W) or (H, W, C) with C of 1, 3 or 4, not {tuple(x.shape)}")
    import torch

    if x.dtype == torch.uint16:
        x = (x.float() / 257).round().to(torch.uint8)
    if x.dtype == torch.uint8:
        if len(x) == 4:  # as Pillow composes, to the last bit
            colours, alpha = x[:3].int(), x[3:].int()
            over = (colours * alpha + 255 * (255 - alpha) + 128) * 128
            x = ((over >> 8) + over >> 15).to(torch.uint8)
        return x.expand(3, -1, -1).contiguous()
    if not x.is_floating_point():
        raise NotReadError(f"pixels must be uint8, uint16, or float in [0, 1], not {str(x.dtype)[6:]}")
    x = x.float()
    if not (x.isfinite().all() and x.min() >= 0 and x.max() <= 1):
        raise NotReadError("float pixels must lie in [0, 1]; divide by 255 first")
    if len(x) == 4:
        x = x[:3] * x[3:] + (1 - x[3:])
    return x.expand(3, -1, -1).contiguous()
