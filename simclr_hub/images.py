"""Anything a user calls an image, to its bytes (read once), their hash, and upright RGB.

What becomes of the pixels is in `headers` and `pixels`, which the image processor shares.
"""

import hashlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ._text import shown, shown_url
from .errors import CorruptImageError, ImageError, ImageTooLargeError, UnreadableImageError, UnsupportedImageError
from .formats import READERS, SUFFIXES, open_image
from .headers import FORMATS, NotReadError, read_picture
from .metadata import read_info
from .pixels import loaded_rgb, rgb_of, rgb_of_array, to_pixels
from .web import fetch, is_url

#: Larger files are refused unread. Pixels are bounded by Pillow: twice `PIL.Image.MAX_IMAGE_PIXELS`, 179 million.
MAX_BYTES = 1 << 29


@dataclass(frozen=True)
class LoadedImage:
    """An image ready for the processor.

    Attributes:
        pixels: array (3, H, W), uint8 or float32 in [0, 1].
        content_hash: of what it came from.
        info: what the file says about itself, see `metadata.read_info`; {} for arrays and tensors.
    """

    pixels: np.ndarray
    content_hash: bytes
    info: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class FileBytes:
    """An image file's bytes that were read already, with the name for messages, and their hash if it is known."""

    name: str
    data: bytes
    content_hash: bytes | None = None


@dataclass(frozen=True)
class UnusableImage:
    """In the place of an image that could not be had, such as an encrypted one in a zip file: its error is raised."""

    name: str
    error: ImageError


def load_image(source: Any, *, reduce_to: int | None = None) -> LoadedImage:
    """Load an image from anything that holds one.

    Takes a path, a URL (see `web.fetch` for what is read), bytes, `FileBytes`, a binary file object, a PIL image, a
    numpy array (H, W[, C]), a torch tensor ([C,] H, W), or a row of a data set's image column, {"bytes", "path"}.

    Arrays are uint8, uint16, or float in [0, 1], with 1, 3 or 4 channels; 4 are RGB and alpha.

    Args:
        source: the image.
        reduce_to: see `decode_with_info`.

    Raises:
        ImageError: it cannot be read, is no image of an allowed format, is damaged or too large; the text names it.
        TypeError: `source` is none of these types.
    """
    if isinstance(source, (str, os.PathLike)):
        source = read_source(source)
    if isinstance(source, FileBytes):
        return load_bytes(source.data, source.name, reduce_to, source.content_hash)
    if isinstance(source, UnusableImage):
        raise source.error
    if isinstance(source, dict) and {"bytes", "path"} <= source.keys():
        name = describe(source["path"] or "<row of a data set>")
        if source["bytes"] is not None:
            return load_bytes(source["bytes"], name, reduce_to)
        # No URL: that would be the data set's word, not the user's.
        return load_bytes(read_file(source["path"] or "")[0], name, reduce_to)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return load_bytes(bytes(source), "<bytes>", reduce_to)
    if isinstance(source, Image.Image):
        info = read_info(source) if source.format != "PNG" else None
        with _named_errors("<PIL image>"):
            pixels = to_pixels(rgb_of(source))
        return _hashed(pixels, read_info(source) if info is None else info)
    if isinstance(source, np.ndarray):
        return _hashed(_from_array(source, channels_last=True))
    if is_tensor(source):
        return _hashed(_from_array(source.detach().cpu().numpy(), channels_last=False))
    if hasattr(source, "read"):
        name = describe(getattr(source, "name", "<file object>"))
        data = source.read(MAX_BYTES + 1)
        if not isinstance(data, bytes):
            raise TypeError(f"{name}: opened as text; open it in binary mode ('rb')")
        return load_bytes(data, name, reduce_to)
    raise TypeError(
        f"{type(source).__name__} is not an image: "
        "give a path, a URL, bytes, a binary file, a PIL image, a numpy array or a torch tensor"
    )


def read_source(source: str | os.PathLike[str]) -> FileBytes:
    """Read the bytes of a file or behind a URL.

    Raises:
        ImageError: see `read_file` and `web.fetch`.
    """
    if is_url(source):
        return FileBytes(shown_url(str(source)), fetch(str(source)))
    return FileBytes(describe(source), read_file(source)[0])


def load_bytes(data: bytes, name: str, reduce_to: int | None = None, content_hash: bytes | None = None) -> LoadedImage:
    """Load an image file's bytes; `name` is for errors; see `decode_with_info`.

    Their SHA-256 is computed unless `content_hash` is it: 3 % of a large JPEG's time.

    Raises:
        ImageError: see `decode_with_info`.
    """
    image, info = decode_with_info(data, name, reduce_to)
    return LoadedImage(to_pixels(image), content_hash or hashlib.sha256(data).digest(), info)


def describe(source: Any) -> str:
    """Return a name for messages: a path that any terminal can print, a URL without its secrets, or the type."""
    if isinstance(source, (FileBytes, UnusableImage)):
        return source.name
    if isinstance(source, (str, os.PathLike)):
        text = os.fsdecode(source)
        return shown_url(text) if is_url(text) else shown(text)
    return f"<{type(source).__name__}>"


def read_file(path: str | os.PathLike[str] | bytes, *, follow_symlinks: bool = True) -> tuple[bytes, os.stat_result]:
    """Read the whole of a regular file, and the stat that belongs to these bytes.

    Opened once: size and time are compared before and after, and a file that changed meanwhile is read again.

    Raises:
        UnreadableImageError: missing, no permission, not a regular file, empty, or changing at each of three tries.
        ImageTooLargeError: larger than `MAX_BYTES`.
    """
    name = describe(path if not isinstance(path, bytes) else os.fsdecode(path))
    if is_url(path):
        raise UnreadableImageError(f"{name}: this is a URL, where a file is needed; download it first")
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a FIFO must not block
    if not follow_symlinks:
        flags |= getattr(os, "O_NOFOLLOW", 0)
    try:
        with open(path, "rb", opener=lambda p, _: os.open(p, flags)) as file:
            for _ in range(3):
                before = os.fstat(file.fileno())
                if not stat.S_ISREG(before.st_mode):
                    raise UnreadableImageError(f"{name}: not a regular file")
                if before.st_size > MAX_BYTES:
                    raise ImageTooLargeError(f"{name}: {before.st_size:,} bytes, more than {MAX_BYTES:,}")
                file.seek(0)
                data = file.read(before.st_size + 1)
                after = os.fstat(file.fileno())
                if len(data) == after.st_size and before.st_mtime_ns == after.st_mtime_ns:
                    if not data:
                        raise UnreadableImageError(f"{name}: empty file")
                    return data, after
    except ImageError:
        raise
    except FileNotFoundError as e:
        raise UnreadableImageError(f"{name}: no such file") from e
    except (OSError, ValueError) as e:  # ValueError: a NUL in the name
        raise UnreadableImageError(f"{name}: {getattr(e, 'strerror', None) or e}") from e
    raise UnreadableImageError(f"{name}: changed while it was read")


def decode(data: bytes, name: str) -> Image.Image:
    """Decode the first frame of an image file's bytes to upright RGB.

    Raises:
        ImageError: see `decode_with_info`.
    """
    return decode_with_info(data, name)[0]


def decode_with_info(data: bytes, name: str, reduce_to: int | None = None) -> tuple[Image.Image, dict[str, Any]]:
    """Decode the first frame of an image file's bytes to upright RGB, and read its information (`read_info`).

    Args:
        data: the file.
        name: for errors.
        reduce_to: decode a large JPEG at 1/2, 1/4 or 1/8 of its size, the smallest whose shorter side has at least so
            many pixels: several times as fast. None decodes all pixels.

    Raises:
        UnsupportedImageError: no image, of a format that is not read, or its reader is not installed.
        CorruptImageError: truncated or damaged.
        ImageTooLargeError: more bytes than `MAX_BYTES` or more pixels than Pillow allows.
    """
    if len(data) > MAX_BYTES:
        raise ImageTooLargeError(f"{name}: more than {MAX_BYTES:,} bytes")

    def use(image: Image.Image, info: dict[str, Any] | None = None) -> tuple[Image.Image, dict[str, Any]]:
        with image:
            if image.format != "PNG":
                info = info or read_info(image)
            if reduce_to is not None and image.format in ("JPEG", "MPO"):  # HEIF would give its thumbnail
                image.draft(None, (reduce_to, reduce_to))
            return loaded_rgb(image), info or read_info(image)

    with _named_errors(name):  # the content decides: an EPS or SVG named .jpg starts no decoder
        opened = open_image(data, name)
        return use(*opened) if opened else read_picture(data, use)


@contextmanager
def _named_errors(name: str) -> Iterator[None]:
    """Raise whatever the readers raise as an `ImageError` that names the image."""
    try:
        yield
    except ImageError:
        raise
    except NotReadError as e:
        raise UnsupportedImageError(f"{name}: {e}") from e
    except UnidentifiedImageError as e:
        known = ", ".join((*FORMATS, *READERS))
        raise UnsupportedImageError(f"{name}: not an image of a supported format ({known})") from e
    except (Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError) as e:
        raise ImageTooLargeError(f"{name}: {str(e) or 'too many pixels for the memory'}") from e
    except Exception as e:  # Pillow's decoders raise OSError, SyntaxError, ValueError, TypeError, RuntimeError, ...
        raise CorruptImageError(f"{name}: damaged image: {str(e) or type(e).__name__}") from e


def _from_array(array: np.ndarray, *, channels_last: bool) -> np.ndarray:
    name = f"<array of shape {array.shape}, {array.dtype}>"
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and channels_last:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or array.shape[0] not in (1, 3, 4) or 0 in array.shape:
        order = "(H, W), (H, W, C)" if channels_last else "(H, W), (C, H, W)"
        raise UnsupportedImageError(f"{name}: an image is {order} with C of 1, 3 or 4")
    with _named_errors(name):
        return rgb_of_array(array)


def is_tensor(source: Any) -> bool:
    """Tell whether this is a torch tensor, without importing torch."""
    return "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor)


def _hashed(pixels: np.ndarray, info: dict[str, Any] | None = None) -> LoadedImage:
    digest = hashlib.sha256(f"torch.{pixels.dtype} {pixels.shape}".encode())
    digest.update(pixels.tobytes())
    return LoadedImage(pixels, digest.digest(), info or {})


def is_image_name(path: str | bytes | Path) -> bool:
    """Tell whether a folder scan takes this file for an image, by its suffix."""
    return os.path.splitext(os.fsdecode(path))[1].lower() in SUFFIXES
