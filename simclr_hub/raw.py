"""Camera RAW files, made a picture.

A camera writes the JPEG that it would have saved into each RAW file. Where that preview is large enough it is the
picture: it looks as the photo was meant to, as its JPEG twin does, and decoding it is much faster than developing the
sensor's values. Otherwise these are developed at half size, with the camera's white balance.
"""

import io
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from .errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError
from .headers import is_raw as is_raw
from .headers import refuse_endless_jpeg
from .metadata import exif_info

#: A preview is used from this short side on: twice what the networks look at.
PREVIEW_SIDE = 512

_ORIENTATIONS = (1, 2, 4, 3, 5, 8, 6, 7)  # EXIF's numbers for LibRaw's flips


def open_raw(rawpy: ModuleType, data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, dict[str, Any]]:
    """The picture in a RAW file, its orientation still to be applied, and what the file says about itself.

    Args:
        rawpy: the module, which is an extra.
        data: the file.
        name: for errors.
        max_pixels: more are refused.

    Returns:
        The preview, not decoded yet, or the developed photo; and as of `metadata.read_info`, of the photo itself.

    Raises:
        UnsupportedImageError: a camera or a compression that LibRaw does not know.
        CorruptImageError: damaged.
        ImageTooLargeError: more than `max_pixels`.
    """
    try:
        with rawpy.RawPy() as raw:
            raw.open_buffer(io.BytesIO(data))
            sizes = raw.sizes
            if sizes.raw_width * sizes.raw_height > max_pixels:
                raise ImageTooLargeError(
                    f"{name}: {sizes.raw_width:,} x {sizes.raw_height:,} pixels, more than {max_pixels:,}"
                )
            orientation = _ORIENTATIONS[sizes.flip & 7]
            preview = _preview(rawpy, raw)
            info = _info(data, preview, sizes, orientation)
            if preview is not None and min(preview.size) >= PREVIEW_SIDE:
                preview.getexif().setdefault(ExifTags.Base.Orientation, orientation)
                return preview, info
            raw.unpack()
            developed = raw.postprocess(half_size=True, use_camera_wb=True, output_bps=8)
            return Image.fromarray(np.ascontiguousarray(developed)), info
    except rawpy.LibRawFileUnsupportedError as e:
        raise UnsupportedImageError(f"{name}: a RAW file of a kind that LibRaw cannot read") from e
    except (rawpy.LibRawTooBigError, rawpy.LibRawUnsufficientMemoryError) as e:
        raise ImageTooLargeError(f"{name}: too many pixels for the memory") from e
    except rawpy.LibRawError as e:
        reason = e.args[0] if e.args else type(e).__name__
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise CorruptImageError(f"{name}: damaged image: {text}") from e


def _preview(rawpy: ModuleType, raw: Any) -> Image.Image | None:
    """The largest JPEG in the file, opened."""
    try:
        thumbnail = raw.extract_thumb()
        if thumbnail.format != rawpy.ThumbFormat.JPEG:
            return None  # a small bitmap
        image = Image.open(io.BytesIO(thumbnail.data), formats=("JPEG",))
        refuse_endless_jpeg(thumbnail.data, image)
        return image
    except Exception:  # none, of an unsupported kind, or damaged: there are still the sensor's values
        return None


def _info(data: bytes, preview: Image.Image | None, sizes: Any, orientation: int) -> dict[str, Any]:
    width, height = sizes.width, sizes.height
    if orientation >= 5:
        width, height = height, width
    info: dict[str, Any] = {"format": "RAW", "width": int(width), "height": int(height), "orientation": orientation}
    for exif in (preview.getexif() if preview else None, _own_exif(data)):  # the file's own word comes last
        if exif is not None:
            info.update(exif_info(exif, changed_is_taken=True))
    return info


def _own_exif(data: bytes) -> Image.Exif | None:
    """The directories of a RAW file that is a TIFF."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    exif = Image.Exif()
    with suppress(Exception):
        exif.load(data)
    return exif
