"""Which of several files that show the same is rather kept, and why, in words.

Unusual: nothing is learned or weighed. The first difference decides: a trash or hidden folder, pixels, colour, format,
EXIF, size of the file, age, path; and that difference is what the words say.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ...formats import RAW_SUFFIXES
from ...scan import lies_aside

#: Formats by how near to the camera's own data they are; JPEG before those that pictures are converted to.
_FORMATS = ("RAW", "lossless", "JPEG", "HEIF", "JXL", "AVIF", "WEBP", "JPEG2000", "GIF")
_LOSSLESS = frozenset(("PNG", "TIFF", "BMP", "PPM"))
_EXIF = {"taken": "time", "camera": "camera", "gps": "place"}


@dataclass(frozen=True, slots=True)
class File:
    """A photo's file as the index knows it.

    Attributes:
        path: absolute.
        content_hash: of its bytes.
        info: of its content, see `metadata.read_info`, and "bytes" and "modified" (seconds since 1970).
        in_colour: whether the picture has any.
    """

    path: str
    content_hash: bytes
    info: Mapping[str, Any]
    in_colour: bool = True

    @property
    def pixels(self) -> int:
        """Of the upright picture; 0 if unknown."""
        return int(self.info.get("width", 0)) * int(self.info.get("height", 0))

    @property
    def modified(self) -> float:
        """Seconds since 1970; 0 if unknown."""
        return float(self.info.get("modified", 0))

    @property
    def format(self) -> str:
        """Of `_FORMATS`, or as it is called."""
        name = "RAW" if is_raw_name(self.path) else str(self.info.get("format", ""))
        return "lossless" if name in _LOSSLESS else name


def is_raw_name(path: str) -> bool:
    """Whether this is a camera's RAW file by its name."""
    return os.path.splitext(path)[1].lower() in RAW_SUFFIXES


def preference(file: File) -> tuple[Any, ...]:
    """Sorts files, the one to keep first."""
    form = file.format
    return (
        lies_aside(file.path),
        -file.pixels,
        not file.in_colour,
        _FORMATS.index(form) if form in _FORMATS else len(_FORMATS),
        -sum(key in file.info for key in _EXIF),
        -int(file.info.get("bytes", 0)),
        file.modified,
        len(file.path),
        file.path,
    )


def same_files(files: Sequence[File]) -> dict[str, str]:
    """Find further names of a file (hard links, a folder mounted twice), each with that file's first path.

    Only files of equal content are looked at, as they are now; one that is not there is a file of its own.
    """
    first: dict[tuple[bytes, int, int], str] = {}
    names = {}
    contents = Counter(file.content_hash for file in files)
    for file in files:
        if contents[file.content_hash] > 1:
            try:
                status = os.stat(file.path)
            except (OSError, ValueError):
                continue
            if status.st_ino:  # some file systems have no numbers
                known = first.setdefault((file.content_hash, status.st_dev, status.st_ino), file.path)
                if known != file.path:
                    names[file.path] = known
    return names


def why_kept(files: Sequence[File]) -> str:
    """What sets the first of these files, sorted by `preference`, apart from the others."""
    kept = files[0]
    other = next((file for file in files if file.content_hash != kept.content_hash), None)
    copy = next((file for file in files[1:] if file.content_hash == kept.content_hash), None)
    parts = [_difference(kept, other)] if other else []
    if copy:
        parts.append(("of its exact copies " if other else "") + _difference(kept, copy))
    return "; ".join(parts)


def _difference(kept: File, next_best: File) -> str:
    """The first of all differences."""
    differs = [a != b for a, b in zip(preference(kept), preference(next_best), strict=True)]
    words = (
        lambda: "the next lies in a hidden, trash or system folder",
        lambda: f"most pixels: {_size(kept)}, the next has {_size(next_best)}",
        lambda: "in colour, the next is grey",
        lambda: f"{_format(kept)} rather than {_format(next_best)}",
        lambda: f"its EXIF tells more: {_exif(kept)}, the next {_exif(next_best)}",
        lambda: f"as many pixels in a larger file: {_bytes(kept)}, the next has {_bytes(next_best)}",
        lambda: _older(day(kept.modified), day(next_best.modified)),
        lambda: "the one with the shortest path",
        lambda: "the first by its path",
    )
    return words[differs.index(True)]() if any(differs) else "as good as the others"


def _older(kept: str, next_best: str) -> str:
    return (
        "the oldest by less than a second" if kept == next_best else f"the oldest: {kept}, the next is of {next_best}"
    )


def _size(file: File) -> str:
    return f"{file.info['width']} x {file.info['height']}" if file.pixels else "an unknown number"


def _format(file: File) -> str:
    return "RAW" if file.format == "RAW" else str(file.info.get("format", "an unknown format"))


def _exif(file: File) -> str:
    return " and ".join(word for key, word in _EXIF.items() if key in file.info) or "nothing"


def _bytes(file: File) -> str:
    return f"{file.info.get('bytes', 0):,} bytes"


def day(modified: float) -> str:
    """A file's time in words, in UTC."""
    try:
        return datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):  # a file's time may be anything
        return "an unknown time"
