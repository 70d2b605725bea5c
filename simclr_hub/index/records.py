"""What the store records, as values: a file's stamp, a photo, a root folder.

Unusual: paths are bytes, since file names need not be text, and every record has a checksum that the store keeps
with it, since SQLite itself does not notice a flipped bit.
"""

import json
import math
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from ..metadata import MAX_TEXT
from ..scan import GRANULARITY_NS as GRANULARITY_NS
from ..scan import SEPARATOR as SEPARATOR
from ..scan import Stamp as Stamp

State = Literal["live", "missing", "failed"]
#: How the last listing of a whole root went: "failed" below some folder, "unavailable" altogether.
ListingState = Literal["ok", "failed", "unavailable"]


@dataclass(frozen=True)
class Root:
    """A folder that was synchronised: its real path, and how its last listing went."""

    id: int
    path: bytes
    listing: ListingState

    def join(self, path: bytes) -> bytes:
        """The absolute path of a photo."""
        return os.path.join(self.path, path)


@dataclass(frozen=True)
class Photo:
    """A file below a root.

    Attributes:
        root_id: its root.
        path: relative to the root.
        stamp: belongs to the bytes that `content_hash` is of.
        settled: the stamp alone tells whether the file changed; if not, it is hashed again next time.
        content_hash: SHA-256 of the file; None if it has no vector because it failed.
        state: "live"; "missing": not there at the last listing, and kept; "failed": there, but it has no vector.
        error: why it failed.
        metadata: JSON object for `Match.metadata`.
    """

    root_id: int
    path: bytes
    stamp: Stamp
    settled: bool
    content_hash: bytes | None
    state: State
    error: str | None = None
    metadata: str = "{}"

    def columns(self) -> tuple[int, bytes, str, int, bytes | None, str, str | None, str]:
        """As the store's row; the stamp is text, since times and inodes may exceed SQLite's integers."""
        stamp = " ".join(map(str, self.stamp))
        return (
            self.root_id, self.path, stamp, int(self.settled), self.content_hash, self.state, self.error, self.metadata
        )  # fmt: skip

    @classmethod
    def from_columns(
        cls, root_id: int, path: bytes, stamp: str, settled: int, content_hash: bytes | None, state: State,
        error: str | None, metadata: str,
    ) -> "Photo":  # fmt: skip
        """The reverse of `columns`."""
        return cls(root_id, path, Stamp(*map(int, stamp.split())), bool(settled), content_hash, state, error, metadata)

    @property
    def visible(self) -> tuple[object, ...]:
        """What a search can see of it."""
        return self.state, self.content_hash, self.metadata


def file_metadata(stamp: Stamp) -> str:
    """What a photo's file tells of it, for `Match.metadata`, as JSON."""
    return json.dumps({"bytes": stamp.size, "modified": stamp.mtime_ns / 1e9})


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _degrees(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= most


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([+-]\d\d:\d\d)?", re.ASCII)
#: What is recorded of a content's picture, as `metadata.read_info` gives it: whether a value is one that it may have.
INFO: dict[str, Callable[[Any], bool]] = {
    "format": _text,
    "camera": _text,
    "taken": lambda value: isinstance(value, str) and _TIME.fullmatch(value) is not None,
    "width": lambda value: _whole(value, 0, 1 << 31),
    "height": lambda value: _whole(value, 0, 1 << 31),
    "orientation": lambda value: _whole(value, 1, 8),
    "gps": lambda value: (
        isinstance(value, list) and len(value) == 2 and _degrees(value[0], 90) and _degrees(value[1], 180)
    ),
}


def parse_info(text: str | bytes) -> dict[str, Any]:
    """Read a stored JSON object without what no search could work with, which an older import may have let in."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if INFO.get(key, _sane)(value)}


def _sane(value: Any) -> bool:
    """Return whether the value of an unknown key is text, or numbers that fit their types."""
    if isinstance(value, list):
        return len(value) <= 16 and all(not isinstance(one, list) and _sane(one) for one in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 128)


def checksum(*columns: object) -> int:
    """CRC-32 of a row."""
    return zlib.crc32(b"".join([c if isinstance(c, bytes) else repr(c).encode() for c in columns]))


def is_below(path: bytes, folder: bytes) -> bool:
    """Whether `path` is `folder` or lies below it; everything lies below b""."""
    return not folder or path == folder or path.startswith(folder.rstrip(SEPARATOR) + SEPARATOR)
