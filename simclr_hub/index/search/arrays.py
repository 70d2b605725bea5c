"""Named arrays in one file that is mapped into memory; no byte is used before it was compared with its checksum.

Unusual: checksums belong to blocks of 32 KiB and are compared when a block is first used, so that opening gigabytes
takes no time and a search pays only for what it touches; the list of them is bound by the SHA-256 that the opener
gives. Blocks are compared by reading, since a failing disk gives an error there, but a signal in mapped memory.
"""

import hashlib
import json
import mmap
import os
import threading
import weakref
from array import array
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np

from ...errors import IndexDamagedError

BLOCK = 1 << 15
_ALIGN = 64
#: Bytes of the list of arrays; a damaged file must not make us read more.
_LARGEST_HEAD = 16 << 20
#: An array of so many blocks is compared as a whole, so that later uses need no look at which of them were.
_SMALL = 32


class DamagedArraysError(IndexDamagedError):
    """A file of arrays is not what was written; whoever reads it makes it anew or does without."""


class ArrayWriter:
    """Writes arrays one after another into a binary file; `finish` gives the SHA-256 to open it with."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._pending = bytearray()
        self._written = 0
        self._checksums = array("I")
        self._sections: dict[str, tuple[str, tuple[int, ...], int]] = {}

    def add(self, name: str, pieces: Iterable[np.ndarray], dtype: str, width: tuple[int, ...] = ()) -> None:
        """Add an array (N, *width), whose rows come in pieces (n, *width)."""
        self._write(bytes(-self._size % _ALIGN))
        start, rows = self._size, 0
        for piece in pieces:
            self._write(np.ascontiguousarray(piece, dtype).tobytes())
            rows += len(piece)
        self._sections[name] = (dtype, (rows, *width), start)

    def stream(self, name: str) -> "_Stream":
        """A file-like object for bytes of unknown number; the array `name` of bytes, once it is closed."""
        self._write(bytes(-self._size % _ALIGN))
        return _Stream(self, name)

    def finish(self, about: dict[str, Any]) -> str:
        """Write the list of arrays with `about`, which is JSON; nothing may be added after that."""
        self._flush(len(self._pending))
        head = json.dumps({"size": self._written, "sections": self._sections, "about": about}).encode()
        tail = self._checksums.tobytes() + head + len(head).to_bytes(8, "little")
        self._file.write(tail)
        return hashlib.sha256(tail).hexdigest()

    @property
    def _size(self) -> int:
        return self._written + len(self._pending)

    def _write(self, data: bytes) -> None:
        self._pending += data
        self._flush(len(self._pending) // BLOCK * BLOCK)

    def _flush(self, size: int) -> None:
        whole = bytes(self._pending[:size])
        del self._pending[:size]
        for start in range(0, size, BLOCK):
            self._checksums.append(google_crc32c.value(whole[start : start + BLOCK]))
        self._file.write(whole)
        self._written += size


class _Stream:
    def __init__(self, writer: ArrayWriter, name: str):
        self._writer, self._name, self._start = writer, name, writer._size

    def write(self, data: bytes) -> None:
        self._writer._write(data)

    def close(self) -> None:
        size = self._writer._size - self._start
        self._writer._sections[self._name] = ("|u1", (size,), self._start)


class ArrayFile:
    """A file of arrays, open for reading.

    Args:
        path: written by `ArrayWriter`.
        sha256: what its `finish` gave.

    Attributes:
        about: what was given to `finish`.
        sha256: as given.

    Raises:
        OSError: it cannot be opened.
        DamagedArraysError: it is another file, or its list of arrays is damaged.
    """

    def __init__(self, path: Path, sha256: str):
        self._path, self.sha256 = path, sha256
        self._lock = threading.Lock()
        self._file = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._file)
        end = os.fstat(self._file).st_size
        # The tail is found by its own last words; only its SHA-256 says whether they are true.
        try:
            head_size = int.from_bytes(self._read(end - 8, 8), "little")
            if head_size > min(end, _LARGEST_HEAD):
                raise self._damaged()
            head = json.loads(self._read(end - 8 - head_size, head_size))
            size, sections = int(head["size"]), dict(head["sections"])
            if size < 0 or end - size != 4 * -(-size // BLOCK) + head_size + 8:
                raise self._damaged()
            tail = self._read(size, end - size)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError):
            raise self._damaged() from None
        if hashlib.sha256(tail).hexdigest() != sha256:
            raise self._damaged()
        self.about: dict[str, Any] = head["about"]
        self._checksums = np.frombuffer(tail, "<u4", -(-size // BLOCK))
        self._size, self._sections = size, sections
        self._good = np.zeros(len(self._checksums), bool)
        self.map = mmap.mmap(self._file, size, access=mmap.ACCESS_READ) if size else b""
        self.data = np.frombuffer(self.map, np.uint8)

    def array(self, name: str) -> "CheckedArray":
        """One of the arrays."""
        dtype, shape, start = self._sections[name]
        values: np.ndarray = np.frombuffer(self.data, dtype, int(np.prod(shape)), start).reshape(shape)
        return CheckedArray(values, self, start)

    def __contains__(self, name: str) -> bool:
        return name in self._sections

    @property
    def names(self) -> list[str]:
        """Of the arrays."""
        return list(self._sections)

    def verify(self) -> None:
        """Compare all of it.

        Raises:
            DamagedArraysError: it is damaged.
        """
        self.compare(np.flatnonzero(~self._good))

    def compare(self, blocks: np.ndarray) -> None:
        """Compare the blocks of these numbers that were not compared yet."""
        if self._good[blocks].all():  # most often
            return
        todo = np.unique(blocks[~self._good[blocks]])
        with self._lock:
            for block in todo.tolist():
                try:
                    data = self._read(block * BLOCK, min(BLOCK, self._size - block * BLOCK))
                except OSError as e:
                    raise self._damaged() from e
                if google_crc32c.value(data) != self._checksums[block]:
                    raise self._damaged()
                self._good[block] = True

    def _read(self, start: int, size: int) -> bytes:
        os.lseek(self._file, start, os.SEEK_SET)
        parts = []
        while size > 0 and (part := os.read(self._file, min(size, 1 << 30))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _damaged(self) -> DamagedArraysError:
        return DamagedArraysError(f"{self._path}: not what was written")


class CheckedArray:
    """An array (N, ...) whose rows are compared with their checksums when they are first used.

    Args:
        values: the array.
        file: where it lies; None for one in memory, which needs no check.
        start: its first byte there.
    """

    def __init__(self, values: np.ndarray, file: ArrayFile | None = None, start: int = 0):
        self._values, self._file, self._start = values, file, start
        self._row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:]))
        self._complete = file is None or not len(values)
        self._bytes: bytes | None = None

    def __len__(self) -> int:
        return len(self._values)

    @property
    def in_memory(self) -> bool:
        """Whether it lies in memory, not in a file."""
        return self._file is None

    def bytes(self) -> tuple[bytes | mmap.mmap, int]:
        """What can be cut into bytes, and the place in it where the array begins; those must have been compared."""
        if self._file is not None:
            return self._file.map, self._start
        if self._bytes is None:
            self._bytes = self._values.tobytes()
        return self._bytes, 0

    def all(self) -> np.ndarray:
        """The array, all of it compared."""
        if not self._complete:
            last = self._start + len(self._values) * self._row_bytes
            if self._file is not None and last > self._start:
                self._file.compare(np.arange(self._start // BLOCK, (last - 1) // BLOCK + 1))
            self._complete = True
        return self._values

    def rows(self, first: np.ndarray, last: np.ndarray | None = None) -> np.ndarray:
        """The array, of which only these rows, or the ranges from `first` to before `last`, may be used."""
        if self._complete or not len(first):
            pass
        elif self._row_bytes * len(self._values) <= _SMALL * BLOCK:
            self.all()
        else:
            self._compare(first, last)
        return self._values

    def _compare(self, first: np.ndarray, last: np.ndarray | None) -> None:
        if self._file is None:
            return
        if last is not None:
            full = last > first
            first, last = first[full], last[full]
            if not len(first):
                return
        start = self._start + first.astype(np.int64) * self._row_bytes
        stop = start + self._row_bytes if last is None else self._start + last.astype(np.int64) * self._row_bytes
        low, high = start // BLOCK, (stop - 1) // BLOCK
        for step in range(int((high - low).max()) + 1):
            self._file.compare(np.minimum(low + step, high))
