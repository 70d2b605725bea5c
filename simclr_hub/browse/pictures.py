"""Pictures of a file for the page: a thumbnail that is kept, a large view, the file itself."""

import hashlib
import io
import os
import secrets
import stat
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from .._files import check_place
from ..errors import ImageError, OutputError, UnreadableImageError
from ..images import describe, load_bytes, read_file
from ..rendering import shrink

#: Longest sides in pixels: of a thumbnail, and of the largest view.
THUMBNAIL, LARGEST = 320, 4096
#: Bytes of thumbnails that are kept on disk, of all indexes together; those not used longest go first.
MOST_KEPT = 2 << 30
#: What a browser shows of its own accord, by how a file begins; any other file is given for saving only.
_SHOWN = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
)


class Thumbnails:
    """Thumbnails by content, made when they are first asked for and kept in huggingface_hub's folder for assets.

    Args:
        photos: folders below which nothing is written; if the cache lies there, nothing is kept.
    """

    def __init__(self, photos: Iterable[str | os.PathLike[str]]):
        from huggingface_hub import constants

        self._folder: Path | None = Path(constants.HF_ASSETS_CACHE) / "simclr_hub" / "thumbnails"
        try:
            check_place(self._folder, photos)
        except OutputError:
            self._folder = None

    def kept(self, content_hash: bytes) -> bytes | None:
        """Return the JPEG that was made before; None if there is none."""
        if file := self._file(content_hash):
            with suppress(OSError):
                data = file.read_bytes()
                if data.startswith(b"\xff\xd8") and data.endswith(b"\xff\xd9"):  # whole: it was not synced to disk
                    os.utime(file)
                    return data
        return None

    def make(self, content_hash: bytes, paths: Iterable[str]) -> bytes:
        """Make a JPEG of at most `THUMBNAIL` pixels a side, and keep it.

        Args:
            content_hash: what the file must hold; another picture is never shown under its name.
            paths: where the file is; the first that can be read and still holds this is taken.

        Raises:
            ImageError: none of them does.
        """
        data = draw(_read(content_hash, paths), THUMBNAIL)
        if file := self._file(content_hash):
            with suppress(OSError):  # a full disk costs the next visit some time
                file.parent.mkdir(parents=True, exist_ok=True)
                partial = file.with_suffix(f".{secrets.token_hex(4)}")
                partial.write_bytes(data)
                os.replace(partial, file)
        return data

    def _file(self, content_hash: bytes) -> Path | None:
        return self._folder and self._folder / content_hash.hex()[:2] / f"{content_hash.hex()}.jpg"

    def tidy(self) -> str:
        """Remove the thumbnails that were not used longest, down to `MOST_KEPT` bytes, and what a crash left.

        Returns:
            What was done, in words.
        """
        if not self._folder:
            return "no thumbnails are kept"
        found = []
        for folder in self._folder.glob("??"):
            with suppress(OSError), os.scandir(folder) as entries:
                for entry in entries:
                    with suppress(OSError):
                        status = entry.stat(follow_symlinks=False)
                        if not entry.name.endswith(".jpg") and time.time() - status.st_mtime > 3600:
                            os.unlink(entry.path)
                        found.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        removed = 0
        for _, size, path in sorted(found):
            if total <= MOST_KEPT:
                break
            with suppress(OSError):
                os.unlink(path)
            total -= size
            removed += 1
        return f"{removed:,} of {len(found):,} thumbnails removed"


def _read(content_hash: bytes, paths: Iterable[str]) -> tuple[bytes, str]:
    """Return the bytes of the first file that still holds this content, and its name for messages."""
    error: ImageError | None = None
    for path in paths:
        try:
            data, _ = read_file(path, follow_symlinks=False)
        except ImageError as e:
            error = error or e
            continue
        if hashlib.sha256(data).digest() == content_hash:
            return data, describe(path)
        error = error or UnreadableImageError(f"{describe(path)}: changed since it was indexed; sync its folder")
    raise error or UnreadableImageError("no file of this photo is there any more")


def view(content_hash: bytes, paths: Iterable[str], side: int) -> bytes:
    """Return a JPEG of a photo with at most so many pixels a side.

    Raises:
        ImageError: see `Thumbnails.make`.
    """
    return draw(_read(content_hash, paths), min(side, LARGEST))


def quality(content_hash: bytes, paths: Iterable[str]) -> dict[str, float]:
    """Measure what tells the better of two shots of one scene.

    Returns:
        "sharpness": the variance of the Laplacian of the brightness, at 1024 pixels a side, over the brightness'
            variance, so that contrast alone does not count; "clipped": the share of pixels that are black or white;
            "brightness": the mean, 0 to 1.

    Raises:
        ImageError: see `Thumbnails.make`.
    """
    picture = _picture(_read(content_hash, paths), 1024).convert("L")
    grey = np.asarray(picture, np.float32) / 255
    inner = grey[1:-1, 1:-1]
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * inner
    return {
        "sharpness": float(laplacian.var() / (grey.var() + 1e-6)) if inner.size else 0.0,
        "clipped": float(((grey < 2 / 255) | (grey > 253 / 255)).mean()),
        "brightness": float(grey.mean()),
    }


def draw(file: tuple[bytes, str], side: int) -> bytes:
    """Decode a file's bytes and return a JPEG of at most so many pixels a side, upright, in sRGB, without metadata.

    Raises:
        ImageError: it cannot be decoded.
    """
    buffer = io.BytesIO()
    _picture(file, side).save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _picture(file: tuple[bytes, str], side: int) -> Image.Image:
    data, name = file
    return shrink(load_bytes(data, name, reduce_to=side), side)


def media_type(path: str) -> str:
    """Return how a file is served: as a picture where a browser shows it, else as bytes to save.

    Raises:
        ImageError: it is not there, or is no regular file.
    """
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            raise UnreadableImageError(f"{describe(path)}: not a regular file any more")
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError as e:
        raise UnreadableImageError(f"{describe(path)}: {e.strerror}") from e
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return next((kind for start, kind in _SHOWN if head.startswith(start)), "application/octet-stream")
