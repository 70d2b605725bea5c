"""Paths and metadata of the photos that a search may find, a million as a few arrays rather than as objects."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np

from ..store import parse_info
from .arrays import ArrayFile, ArrayWriter, CheckedArray, StringArray, StringSpool

#: A content hash for numpy: compared and sorted as bytes are, but an item loses the zeros at its end.
HASH = "S32"


def is_in(hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return which of these hashes (M,) are among the known, which are sorted: bool (M,); faster than `np.isin`."""
    if not len(known):
        return np.zeros(len(hashes), bool)
    found: np.ndarray = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
    return found


def _as_bytes(hashes: np.ndarray) -> list[bytes]:
    data = hashes.tobytes()
    return [data[start : start + 32] for start in range(0, len(data), 32)]


@dataclass(frozen=True)
class PhotoTable:
    """The photos of N contents; row i is the content whose vector has the number i.

    The attributes are the names of the arrays in a file.

    Attributes:
        hashes: the contents' hashes, sorted (N,).
        rows: the row of each of them (N,).
        gone: hashes of contents that were known before and have no photo any more, sorted.
        first: the first photo of each row, and at the end P, the number of photos (N + 1,).
        roots: each photo's root folder, by its id (P,).
        paths: each photo's path below its root (P).
        metadata: each file's metadata, JSON (P).
        info: each content's metadata, JSON (N).
    """

    hashes: CheckedArray
    rows: CheckedArray
    gone: CheckedArray
    first: CheckedArray
    roots: CheckedArray
    paths: StringArray
    metadata: StringArray
    info: StringArray

    def __len__(self) -> int:
        """Return the number of contents."""
        return len(self.rows)

    @property
    def photo_count(self) -> int:
        """Return the number of photos."""
        return len(self.roots)

    @cached_property
    def contents(self) -> np.ndarray:
        """Return the hashes of all contents, also of those that are gone: HASH (N + gone,)."""
        both: np.ndarray = np.concatenate([self.hashes.all(), self.gone.all()])
        return both

    def content_hashes(self) -> list[bytes]:
        """Return `contents` as bytes."""
        return _as_bytes(self.contents)

    def find(self, hashes: np.ndarray) -> np.ndarray:
        """Return the rows of these contents, HASH (M,), in no order; unknown ones are left out."""
        known = hashes[is_in(hashes, self.hashes.all())]
        rows: np.ndarray = self.rows.all()[np.searchsorted(self.hashes.all(), known)].astype(np.int64)
        return rows

    @cached_property
    def _places(self) -> np.ndarray:
        """Return where in `hashes` each row's is."""
        places = np.empty(len(self), np.uint32)
        places[self.rows.all()] = np.arange(len(self), dtype=np.uint32)
        return places

    def hashes_of(self, rows: np.ndarray) -> list[bytes]:
        """Return the content hashes of rows (M,)."""
        return _as_bytes(self.hashes.all()[self._places[rows]])

    def metadata_of(self, row: int, photo: int) -> dict[str, Any]:
        """Return the metadata of a photo, which is of this row."""
        (info,), (own,) = self.info.take(np.array([row])), self.metadata.take(np.array([photo]))
        return parse_info(info) | parse_info(own)

    def row_of_photo(self) -> np.ndarray:
        """Return the row of each photo (P,)."""
        rows: np.ndarray = np.repeat(np.arange(len(self)), np.diff(self.first.all()))
        return rows

    def all_metadata(self) -> Iterator[dict[str, object]]:
        """Yield the metadata of each photo, its content's and its file's, in order."""
        rows, at = self.row_of_photo(), 0
        for texts in self.metadata.pieces():
            own, which = np.unique(rows[at : at + len(texts)], return_inverse=True)
            at += len(texts)
            infos = [parse_info(text) for text in self.info.take(own)]
            for text, info in zip(texts, which.tolist(), strict=True):
                yield infos[info] | parse_info(text)

    @classmethod
    def make(
        cls,
        row_hashes: np.ndarray,
        info: StringArray,
        gone: np.ndarray,
        contents: np.ndarray,
        roots: np.ndarray,
        paths: StringSpool,
        metadata: StringSpool,
    ) -> "PhotoTable":
        """Make the table whose row i is the content `row_hashes[i]`, HASH (N,), with the metadata `info[i]`.

        Args:
            row_hashes: see above.
            info: see above.
            gone: as in the table.
            contents: of the photos, in any order, HASH (P,); each must be among `row_hashes`.
            roots: of the photos, int64 (P,).
            paths: of the photos (P).
            metadata: of the photos (P).
        """
        rows = np.argsort(row_hashes).astype(np.uint32)
        hashes = row_hashes[rows]
        row_of_photo = rows[np.searchsorted(hashes, contents)]
        order = np.argsort(row_of_photo, kind="stable")
        first = np.searchsorted(row_of_photo[order], np.arange(len(rows) + 1))
        return cls(
            hashes=CheckedArray(hashes),
            rows=CheckedArray(rows),
            gone=CheckedArray(gone),
            first=CheckedArray(first.astype(np.int64)),
            roots=CheckedArray(roots[order]),
            paths=paths.all(order),
            metadata=metadata.all(order),
            info=info,
        )

    def write(self, writer: ArrayWriter) -> None:
        """Add it to a file."""
        for each in fields(self):
            getattr(self, each.name).write(writer, each.name)

    @classmethod
    def read(cls, file: ArrayFile) -> "PhotoTable":
        """Return the table in a file."""
        return cls(
            hashes=file.array("hashes"),
            rows=file.array("rows"),
            gone=file.array("gone"),
            first=file.array("first"),
            roots=file.array("roots"),
            paths=file.strings("paths"),
            metadata=file.strings("metadata"),
            info=file.strings("info"),
        )


@dataclass(frozen=True)
class Column:
    """The values of one key of the metadata, for conditions.

    Attributes:
        numbers: float64 (P,), NaN where a photo has no number; (0,) if none has.
        codes: int32 (P,), which word a photo has, -1 for none; (0,) if none has.
        words: the words, sorted.
    """

    numbers: CheckedArray
    codes: CheckedArray
    words: StringArray


def make_columns(table: PhotoTable) -> dict[str, Column]:
    """Return the numbers and words in the photos' metadata by key; other values are left out."""
    numbers: dict[str, np.ndarray] = {}
    codes: dict[str, np.ndarray] = {}
    words: dict[str, dict[str, int]] = {}
    for photo, values in enumerate(table.all_metadata()):
        for key, value in values.items():
            if isinstance(value, str):
                if key not in codes:
                    codes[key], words[key] = np.full(table.photo_count, -1, np.int32), {}
                codes[key][photo] = words[key].setdefault(value, len(words[key]))
            elif isinstance(value, (int, float)):
                if key not in numbers:
                    numbers[key] = np.full(table.photo_count, np.nan)
                numbers[key][photo] = value
    columns = {}
    for key in sorted(numbers.keys() | codes.keys()):
        known = words.get(key, {})
        order = sorted(known)
        place = np.empty(len(order) + 1, np.int32)
        place[np.fromiter((known[word] for word in order), np.int64, len(order))] = np.arange(len(order))
        place[-1] = -1
        columns[key] = Column(
            CheckedArray(numbers.get(key, np.empty(0))),
            CheckedArray(place[codes[key]] if key in codes else np.empty(0, np.int32)),
            StringArray.of(word.encode(errors="surrogatepass") for word in order),
        )
    return columns


def write_columns(writer: ArrayWriter, columns: dict[str, Column]) -> list[str]:
    """Add them to a file; return their keys, to read them by."""
    for number, column in enumerate(columns.values()):
        for each in fields(column):
            getattr(column, each.name).write(writer, f"column.{number}.{each.name}")
    return list(columns)


def read_columns(file: ArrayFile, keys: list[str]) -> dict[str, Column]:
    """Return the columns in a file."""
    return {
        key: Column(
            file.array(f"column.{number}.numbers"),
            file.array(f"column.{number}.codes"),
            file.strings(f"column.{number}.words"),
        )
        for number, key in enumerate(keys)
    }
