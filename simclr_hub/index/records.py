"""What the store records, as values: a file's stamp, a photo, a root folder.

Unusual: paths are bytes, since file names need not be text, and every record has a checksum that the store keeps
with it, since SQLite itself does not notice a flipped bit.
"""

import json
import os
import zlib
from dataclasses import dataclass
from typing import Literal

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


def checksum(*columns: object) -> int:
    """CRC-32 of a row."""
    return zlib.crc32(b"".join([c if isinstance(c, bytes) else repr(c).encode() for c in columns]))


def is_below(path: bytes, folder: bytes) -> bool:
    """Whether `path` is `folder` or lies below it; everything lies below b""."""
    return not folder or path == folder or path.startswith(folder.rstrip(SEPARATOR) + SEPARATOR)
