"""The formats beyond Pillow's: HEIC, JPEG XL and camera RAW files, opened as PIL images; the suffixes of photos."""

import io
import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError
from .headers import is_raw, refuse_endless_jpeg
from .metadata import exif_info

#: Formats of the extra "formats": what reads them, as one imports it and as pip calls it.
READERS = {
    "HEIF": ("pillow_heif", "pillow-heif"),
    "JPEG XL": ("pillow_jxl", "pillow-jxl-plugin"),
    "camera RAW": ("rawpy", "rawpy"),
}
#: Cameras' RAW files. Not .raw, under which anything may lie.
RAW_SUFFIXES = frozenset(
    ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .fff .iiq .kdc .mef .mos .mrw .nef .nrw .orf .pef .raf .rw2 .rwl .sr2"
    " .srf .srw .x3f".split()
)
#: File names that a folder scan takes for images, whether or not their reader is installed.
SUFFIXES = RAW_SUFFIXES | frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .webp .gif .bmp .tif .tiff .avif .ppm .pgm .pbm .pnm .jp2 .j2k .jpx"
    " .heic .heif .hif .jxl".split()
)

#: A RAW file's preview is used from this short side on: twice what the networks look at.
PREVIEW_SIDE = 512

_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_JXL_BOXES = b"\0\0\0\x0cJXL \r\n\x87\n"
_ORIENTATIONS = (1, 2, 4, 3, 5, 8, 6, 7)  # EXIF's numbers for LibRaw's flips


def open_image(data: bytes, name: str) -> tuple[Image.Image, dict[str, Any]] | None:
    """Open an image file that is none of Pillow's; its pixels are bounded, and mostly not decoded, when this returns.

    Args:
        data: the file.
        name: for errors; its suffix tells a RAW file from a TIFF where the content does not.

    Returns:
        The image, whose EXIF orientation is still to be applied, and what is known of the file beyond what
        `metadata.read_info` finds in that image: {} but for RAW files. None: see `headers.read_picture`.

    Raises:
        UnsupportedImageError: its reader is not installed.
        ImageTooLargeError: a JPEG XL or RAW picture of more pixels than `max_pixels`.
        Exception: whatever else the readers raise.
    """
    if data.startswith((b"\xff\x0a", _JXL_BOXES)):
        return _open_jxl(data, name), {}
    # RAW files are TIFF files with a thumbnail in front: the name keeps an unknown kind from being taken for that.
    if is_raw(data) or (data[:4] in (b"II*\0", b"MM\0*") and os.path.splitext(name)[1].lower() in RAW_SUFFIXES):
        return open_raw(_reader("camera RAW", name), data, name, max_pixels())
    if _is_heif(data):
        _reader("HEIF", name).register_heif_opener()
        return _open_as("HEIF", data, name), {}
    return None


def max_pixels() -> int:
    """Return what Pillow refuses to exceed, here for its extensions too."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)


def reader_has_come(error: str) -> bool:
    """Tell whether a photo's recorded error is that of a missing reader that is installed by now."""
    found = re.search(r"needs (\S+) \(pip install", error)
    return found is not None and any(pip == found[1] and find_spec(module) for module, pip in READERS.values())


def _reader(format: str, name: str) -> ModuleType:
    module, pip = READERS[format]
    try:
        return __import__(module)
    except ImportError as e:
        raise UnsupportedImageError(f"{name}: reading {format} needs {pip} (pip install 'simclr-hub[formats]')") from e


def _is_heif(data: bytes) -> bool:
    """Tell whether this is HEVC-coded HEIF; "mif1" says no more than HEIF, and AVIF is Pillow's."""
    if data[4:8] != b"ftyp":
        return False
    size = min(int.from_bytes(data[:4], "big"), 4096)
    brands = {data[8:12], *(data[i : i + 4] for i in range(16, size, 4))}
    return data[8:12] in _HEIF_BRANDS or (data[8:12] in (b"mif1", b"msf1") and not brands & {b"avif", b"avis"})


def _open_as(format: str, data: bytes, name: str) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=(format,))
    except UnidentifiedImageError as e:
        raise CorruptImageError(f"{name}: damaged image: {format} that cannot be read") from e
    except BaseException as e:
        if type(e).__name__ == "PanicException":  # how code written in Rust ends; not an Exception
            raise CorruptImageError(f"{name}: damaged image: {e}") from e
        raise


def _open_jxl(data: bytes, name: str) -> Image.Image:
    _reader("JPEG XL", name)
    try:
        width, height = jxl_size(data)
    except (IndexError, struct.error) as e:
        raise CorruptImageError(f"{name}: damaged image: a JPEG XL without a whole header") from e
    if width * height > max_pixels():
        raise ImageTooLargeError(f"{name}: {width:,} x {height:,} pixels, more than {max_pixels():,}")
    image = _open_as("JXL", data, name)
    # What is not a JPEG inside comes upright, whatever its EXIF says.
    if not getattr(image, "jpeg", False):
        with suppress(Exception):  # damaged EXIF is no reason to lose the photo
            image.getexif().pop(ExifTags.Base.Orientation, None)
    return image


def open_raw(rawpy: ModuleType, data: bytes, name: str, max_pixels: int) -> tuple[Image.Image, dict[str, Any]]:
    """Open the picture in a RAW file, its orientation still to be applied, and read what the file says about itself.

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
    # The preview is the JPEG that the camera would have saved: it looks as the photo was meant to, as its JPEG twin
    # does, and decoding it is much faster than developing the sensor's values.
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
    """Open the largest JPEG in the file."""
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
    """Read the directories of a RAW file that is a TIFF."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return None
    exif = Image.Exif()
    with suppress(Exception):
        exif.load(data)
    return exif


def jxl_size(data: bytes) -> tuple[int, int]:
    """Read width and height in a JPEG XL's header: its reader decodes first and tells the size afterwards.

    Raises:
        IndexError, struct.error: the header is not all there.
    """
    bits = int.from_bytes(_codestream(data)[2:18].ljust(16, b"\0"), "little")

    def read(count: int) -> int:
        nonlocal bits
        value, bits = bits & ((1 << count) - 1), bits >> count
        return value

    eighths = read(1)
    side: Callable[[], int] = lambda: 8 * (read(5) + 1) if eighths else read((9, 13, 18, 30)[read(2)]) + 1  # noqa: E731
    height = side()
    ratio = read(3)
    if ratio == 0:
        return side(), height
    over, under = ((1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))[ratio - 1]
    return height * over // under, height


def _codestream(data: bytes) -> bytes:
    """Return the beginning of the codestream, bare or in boxes."""
    if data.startswith(b"\xff\x0a"):
        return data[:32]
    at = 0
    while True:
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, at + 8)
            head = 16
        if kind in (b"jxlc", b"jxlp"):
            start = at + head + (4 if kind == b"jxlp" else 0)  # a part has its number first
            if data[start : start + 2] == b"\xff\x0a":
                return data[start : start + 32]
        if size < head:  # 0: up to the end of the file
            raise IndexError("no codestream")
        at += size
