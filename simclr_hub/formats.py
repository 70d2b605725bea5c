"""Which picture formats are read, and by what: an image file's bytes -> a PIL image, not decoded yet where possible.

Unusual: the content decides, never the name, with one exception: camera RAW files are TIFF files with a thumbnail in
front, so that a RAW name keeps an unknown kind of them from being taken for that thumbnail. Readers beyond Pillow are
an extra; without it the photo is an error that says what to install, not a photo that was never seen.
"""

import io
import os
import re
import struct
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from PIL import ExifTags, Image, UnidentifiedImageError

from .errors import CorruptImageError, ImageTooLargeError, UnsupportedImageError
from .headers import is_raw
from .raw import open_raw

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

_HEIF_BRANDS = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
_JXL_BOXES = b"\0\0\0\x0cJXL \r\n\x87\n"


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
    if is_raw(data) or (data[:4] in (b"II*\0", b"MM\0*") and os.path.splitext(name)[1].lower() in RAW_SUFFIXES):
        return open_raw(_reader("camera RAW", name), data, name, max_pixels())
    if _is_heif(data):
        _reader("HEIF", name).register_heif_opener()
        return _open_as("HEIF", data, name), {}
    return None


def max_pixels() -> int:
    """What Pillow refuses to exceed, here for its extensions too."""
    return 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)


def reader_has_come(error: str) -> bool:
    """Whether a photo's recorded error is that of a missing reader, which is installed by now."""
    found = re.search(r"needs (\S+) \(pip install", error)
    return found is not None and any(pip == found[1] and find_spec(module) for module, pip in READERS.values())


def _reader(format: str, name: str) -> ModuleType:
    module, pip = READERS[format]
    try:
        return __import__(module)
    except ImportError as e:
        raise UnsupportedImageError(f"{name}: reading {format} needs {pip} (pip install 'simclr-hub[formats]')") from e


def _is_heif(data: bytes) -> bool:
    """HEVC-coded HEIF; "mif1" says no more than HEIF, and AVIF is Pillow's."""
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


def jxl_size(data: bytes) -> tuple[int, int]:
    """Width and height in a JPEG XL's header: its reader decodes first and tells the size afterwards.

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
    """The beginning of the codestream, bare or in boxes."""
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
