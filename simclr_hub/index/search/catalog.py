"""What a search tells of the photos it found: paths, metadata and contents of many photos as a few arrays.

Unusual: texts lie one behind the other in one array of bytes, and only those of the photos found are looked at, so
that a million photos cost neither a million objects nor the reading of a million rows.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import cached_property, partial
from typing import Any

import numpy as np

from ..store import parse_info
from .arrays import ArrayFile, ArrayWriter, CheckedArray

#: A content hash for numpy: compared and sorted as bytes are, but an item loses the zeros at its end.
HASH = "S32"


def among(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which of these hashes (M,) are among the known, which are sorted: bool (M,); in less time than `np.isin`."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    found: np.ndarray = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
    return found


@dataclass(frozen=True)
class Texts:
    """N byte strings: number i is `data[starts[i]:starts[i + 1]]`."""

    starts: CheckedArray  # int64 (N + 1,)
    data: CheckedArray  # uint8 (bytes,)

    @classmethod
    def of(cls, texts: Iterable[bytes]) -> "Texts":
        """Those, in memory."""
        starts, data = [0], bytearray()
        for text in texts:
            data += text
            starts.append(len(data))
        return cls(CheckedArray(np.array(starts, np.int64)), CheckedArray(np.frombuffer(bytes(data), np.uint8)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def some(self, numbers: np.ndarray) -> list[bytes]:
        """Those of these numbers."""
        first, last = self.check(numbers)
        read, start = self.data.bytes()
        return [read[a:b] for a, b in zip((first + start).tolist(), (last + start).tolist(), strict=True)]

    def check(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compare those of these numbers with their checksums; where they begin and end."""
        starts = self.starts.rows(numbers, numbers + 2)
        first, last = starts[numbers], starts[numbers + 1]
        self.data.rows(first, last)
        return first, last

    def check_all(self, first: int, last: int) -> None:
        """Compare those from one number to before another with their checksums."""
        starts = self.starts.rows(np.array([first]), np.array([last + 1]))
        self.data.rows(starts[[first]], starts[[last]])

    def pieces(self, size: int = 1 << 14) -> Iterator[list[bytes]]:
        """All of them, in lists of at most `size`."""
        for start in range(0, len(self), size):
            yield self.some(np.arange(start, min(start + size, len(self))))


@dataclass(frozen=True)
class Catalog:
    """The photos of N contents; row i is the content whose vector has the number i.

    Attributes:
        hashes: the contents' hashes, sorted (N,).
        rows: the row of each of them (N,).
        gone: hashes of contents that were known before and have no photo any more, sorted.
        first: the first photo of each row, and the number P of photos behind (N + 1,).
        roots: each photo's root folder, by its id (P,).
        paths: each photo's path below its root (P).
        metadata: what is known of each photo's file, JSON (P).
        info: what is known of each row's content, JSON (N).
    """

    hashes: CheckedArray
    rows: CheckedArray
    gone: CheckedArray
    first: CheckedArray
    roots: CheckedArray
    paths: Texts
    metadata: Texts
    info: Texts

    def __len__(self) -> int:
        """How many contents."""
        return len(self.rows)

    @property
    def photos(self) -> int:
        """How many photos."""
        return len(self.roots)

    @cached_property
    def contents(self) -> np.ndarray:
        """The hashes of all contents that it tells of, also of those that are gone: HASH (N + gone,)."""
        both: np.ndarray = np.concatenate([self.hashes.all(), self.gone.all()])
        return both

    def content_hashes(self) -> list[bytes]:
        """The same as bytes."""
        data = self.contents.tobytes()
        return [data[start : start + 32] for start in range(0, len(data), 32)]

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """The rows of these contents, HASH (M,), in no order; those it does not know are left out."""
        known = hashes[among(hashes, self.hashes.all())]
        rows: np.ndarray = self.rows.all()[np.searchsorted(self.hashes.all(), known)].astype(np.int64)
        return rows

    @cached_property
    def _places(self) -> np.ndarray:
        """Where in `hashes` each row's is."""
        places = np.empty(len(self), np.uint32)
        places[self.rows.all()] = np.arange(len(self), dtype=np.uint32)
        return places

    def hashes_of(self, rows: np.ndarray) -> list[bytes]:
        """The content hashes of rows (M,)."""
        data = self.hashes.all()[self._places[rows]].tobytes()
        return [data[start : start + 32] for start in range(0, len(data), 32)]

    def metadata_later(self, rows: np.ndarray, photos: np.ndarray) -> Iterator[Callable[[], dict[str, Any]]]:
        """For each of these photos, of these rows, what gives its metadata; they are compared with checksums now."""
        self.info.check(rows)
        self.metadata.check(photos)
        return map(partial, itertools.repeat(self._read_metadata), rows.tolist(), photos.tolist())

    def _read_metadata(self, row: int, photo: int) -> dict[str, Any]:
        (info,), (own,) = self.info.some(np.array([row])), self.metadata.some(np.array([photo]))
        return parse_info(info) | parse_info(own)

    def row_of_photo(self) -> np.ndarray:
        """The row of each photo (P,)."""
        rows: np.ndarray = np.repeat(np.arange(len(self)), np.diff(self.first.all()))
        return rows

    def write(self, writer: ArrayWriter) -> None:
        """Add its arrays to a file."""
        for name, values in self._arrays().items():
            array = values.all()
            writer.add(name, [array], array.dtype.str)

    @classmethod
    def read(cls, file: ArrayFile) -> "Catalog":
        """The catalog in a file."""
        arrays: dict[str, Any] = {name: file.array(name) for name in ("hashes", "rows", "gone", "first", "roots")}
        for name in ("paths", "metadata", "info"):
            arrays[name] = Texts(file.array(f"{name}.starts"), file.array(f"{name}.data"))
        return cls(**arrays)

    def _arrays(self) -> Mapping[str, CheckedArray]:
        arrays: dict[str, CheckedArray] = {}
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            if isinstance(value, Texts):
                arrays |= {f"{name}.starts": value.starts, f"{name}.data": value.data}
            else:
                arrays[name] = value
        return arrays


class CatalogBuilder:
    """Gathers photos in any order, then puts them in the order of the rows."""

    def __init__(self) -> None:
        self._hashes, self._roots = bytearray(), bytearray()
        self._texts: dict[str, tuple[bytearray, bytearray]] = {
            "paths": (bytearray(), bytearray()),
            "metadata": (bytearray(), bytearray()),
        }

    def add(self, content_hash: bytes, root_id: int, path: bytes, metadata: str) -> None:
        """Add a photo.

        Raises:
            ValueError: the hash is no SHA-256.
        """
        if len(content_hash) != 32:
            raise ValueError(f"a content hash of {len(content_hash)} bytes")
        self._hashes += content_hash
        self._roots += root_id.to_bytes(8, "little")
        for (starts, data), text in zip(self._texts.values(), (path, metadata.encode()), strict=True):
            starts += len(data).to_bytes(8, "little")
            data += text

    def contents(self) -> np.ndarray:
        """The contents of the photos so far, each once, sorted: HASH (N,)."""
        contents: np.ndarray = np.unique(np.frombuffer(bytes(self._hashes), HASH))
        return contents

    def build(self, row_hashes: np.ndarray, info: Texts, gone: np.ndarray) -> Catalog:
        """The catalog, if row i is the content `row_hashes[i]` (N,), of which `info[i]` is known.

        Each photo's content must be among them.
        """
        rows = np.argsort(row_hashes).astype(np.uint32)
        hashes = row_hashes[rows]
        row_of_photo = rows[np.searchsorted(hashes, np.frombuffer(bytes(self._hashes), HASH))]
        order = np.argsort(row_of_photo, kind="stable")
        first = np.searchsorted(row_of_photo[order], np.arange(len(rows) + 1))
        texts = {}
        for name, (starts, data) in self._texts.items():
            starts += len(data).to_bytes(8, "little")
            whole = Texts(
                CheckedArray(np.frombuffer(bytes(starts), "<i8")), CheckedArray(np.frombuffer(bytes(data), np.uint8))
            )
            texts[name] = Texts.of(
                text for at in range(0, len(order), 1 << 14) for text in whole.some(order[at : at + (1 << 14)])
            )
        return Catalog(
            CheckedArray(hashes),
            CheckedArray(rows),
            CheckedArray(gone),
            CheckedArray(first.astype(np.int64)),
            CheckedArray(np.frombuffer(bytes(self._roots), "<i8")[order]),
            texts["paths"],
            texts["metadata"],
            info,
        )
