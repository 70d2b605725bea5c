"""Named arrays in one memory-mapped file; no byte is used before it has been compared with its checksum."""

import hashlib
import io
import json
import mmap
import os
import tempfile
import threading
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import google_crc32c
import numpy as np

from ...errors import IndexDamagedError

#: Bytes a checksum covers. A block is verified when it is first used, so that opening gigabytes takes no time.
BLOCK = 1 << 15
_ALIGN = 64
#: Bytes that are written at a time.
_PIECE = 1 << 20
#: Bytes of the list of arrays; a damaged file must not make us read more.
_MAX_HEAD = 16 << 20
#: An array of up to this many blocks is verified as a whole, which later uses need not look up.
_SMALL = 32


class DamagedArraysError(IndexDamagedError):
    """A file of arrays is damaged; its reader makes it anew or does without."""


class ArrayWriter:
    """Write arrays one after another into a binary file; `finish` returns the SHA-256 to open it with."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._pending = bytearray()
        self._written = 0
        self._checksums = array("I")
        self._sections: dict[str, tuple[str, tuple[int, ...], int]] = {}

    def add(self, name: str, pieces: Iterable[np.ndarray], dtype: str, width: tuple[int, ...] = ()) -> None:
        """Add an array (N, *width), whose rows come in pieces (n, *width)."""
        start, rows = self._begin(), 0
        for piece in pieces:
            self._write(np.ascontiguousarray(piece, dtype).reshape(-1).view(np.uint8).data)
            rows += len(piece)
        self._sections[name] = (dtype, (rows, *width), start)

    def add_bytes(self, name: str, write: Callable[[Callable[[bytes], object]], object]) -> None:
        """Add an array of bytes, which `write` gives piece by piece to what it is called with."""
        start = self._begin()
        write(self._write)
        self._sections[name] = ("|u1", (self._written + len(self._pending) - start,), start)

    def finish(self, about: dict[str, Any]) -> str:
        """Write the list of arrays with `about`, which must be JSON; nothing may be added afterwards."""
        self._flush(len(self._pending))
        head = json.dumps({"size": self._written, "sections": self._sections, "about": about}).encode()
        tail = self._checksums.tobytes() + head + len(head).to_bytes(8, "little")
        self._file.write(tail)
        return hashlib.sha256(tail).hexdigest()

    def _begin(self) -> int:
        self._write(bytes(-(self._written + len(self._pending)) % _ALIGN))
        return self._written + len(self._pending)

    def _write(self, data: bytes | memoryview) -> None:
        for start in range(0, len(data), _PIECE):  # of a large array no copy is made as a whole
            self._pending += data[start : start + _PIECE]
            self._flush(len(self._pending) // BLOCK * BLOCK)

    def _flush(self, size: int) -> None:
        whole = bytes(self._pending[:size])
        del self._pending[:size]
        for start in range(0, size, BLOCK):
            self._checksums.append(google_crc32c.value(whole[start : start + BLOCK]))
        self._file.write(whole)
        self._written += size


class ArrayFile:
    """A file of arrays, open for reading.

    Args:
        path: written by `ArrayWriter`.
        sha256: what its `finish` returned; it covers the checksums of all blocks.

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
        # The file's last words say where its tail begins; only the SHA-256 says whether they are true.
        try:
            head_size = int.from_bytes(self._read(end - 8, 8), "little")
            if head_size > min(end, _MAX_HEAD):
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
        self._data = np.frombuffer(mmap.mmap(self._file, size, access=mmap.ACCESS_READ) if size else b"", np.uint8)

    def array(self, name: str) -> "CheckedArray":
        """Return one of the arrays."""
        dtype, shape, start = self._sections[name]
        values: np.ndarray = np.frombuffer(self._data, dtype, int(np.prod(shape)), start).reshape(shape)
        return CheckedArray(values, self, start)

    def strings(self, name: str) -> "StringArray":
        """Return one of the arrays that `StringArray.write` added."""
        return StringArray(self.array(f"{name}.starts"), self.array(f"{name}.data"))

    def __contains__(self, name: str) -> bool:
        return name in self._sections

    def verify(self, blocks: np.ndarray | None = None) -> None:
        """Compare the blocks of these numbers, or all, that have not been compared yet with their checksums.

        Raises:
            DamagedArraysError: one is damaged.
        """
        if blocks is None:
            blocks = np.arange(len(self._good))
        if self._good[blocks].all():  # most often
            return
        with self._lock:
            for block in np.unique(blocks[~self._good[blocks]]).tolist():
                # Read, not taken from the map: of a failing disk reading raises an error, mapped memory a signal.
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
    """An array (N, ...) whose rows are verified when they are first used.

    Args:
        values: the array.
        file: the file it lies in; None for one in memory, which needs no check.
        start: its first byte there.
    """

    def __init__(self, values: np.ndarray, file: ArrayFile | None = None, start: int = 0):
        self._values, self._file, self._start = values, file, start
        self._row_bytes = values.dtype.itemsize * int(np.prod(values.shape[1:]))
        self._verified = file is None or not values.size

    def __len__(self) -> int:
        return len(self._values)

    def all(self) -> np.ndarray:
        """Return the array, all of it verified."""
        if not self._verified and self._file is not None:
            self._file.verify(np.arange(self._start // BLOCK, (self._start + self._values.nbytes - 1) // BLOCK + 1))
            self._verified = True
        return self._values

    def rows(self, first: np.ndarray, last: np.ndarray | None = None) -> np.ndarray:
        """Return the whole array, of which these rows, or the ranges from `first` to before `last`, are verified."""
        if self._verified or not len(first):
            return self._values
        if self._file is None or self._values.nbytes <= _SMALL * BLOCK:
            return self.all()
        if last is not None:
            full = last > first
            first, last = first[full], last[full]
            if not len(first):
                return self._values
        start = self._start + first.astype(np.int64) * self._row_bytes
        stop = start + self._row_bytes if last is None else self._start + last.astype(np.int64) * self._row_bytes
        low, high = start // BLOCK, (stop - 1) // BLOCK
        for step in range(int((high - low).max()) + 1):
            self._file.verify(np.minimum(low + step, high))
        return self._values

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return these rows."""
        taken: np.ndarray = self.rows(rows)[rows]
        return taken

    def bounds(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, of an array of starts, where these rows begin and end."""
        starts = self.rows(rows, rows + 2)
        return starts[rows], starts[rows + 1]

    def write(self, writer: ArrayWriter, name: str) -> None:
        """Add it to a file."""
        values = self.all()
        writer.add(name, [values], values.dtype.str, values.shape[1:])


@dataclass(frozen=True)
class StringArray:
    """N byte strings one behind the other: number i is `data[starts[i]:starts[i + 1]]`."""

    starts: CheckedArray  # int64 (N + 1,)
    data: CheckedArray  # uint8 (bytes,)

    @classmethod
    def of(cls, strings: Iterable[bytes]) -> "StringArray":
        """Return them as an array in memory."""
        starts, data = [0], bytearray()
        for string in strings:
            data += string
            starts.append(len(data))
        return cls(CheckedArray(np.array(starts, np.int64)), CheckedArray(np.frombuffer(bytes(data), np.uint8)))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, numbers: np.ndarray) -> list[bytes]:
        """Return the strings of these numbers."""
        first, last = self.starts.bounds(numbers)
        data = self.data.rows(first, last).data
        return [data[a:b].tobytes() for a, b in zip(first.tolist(), last.tolist(), strict=True)]

    def verify(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compare the strings of these numbers with their checksums; return where they begin and end."""
        first, last = self.starts.bounds(numbers)
        self.data.rows(first, last)
        return first, last

    def pieces(self, size: int = 1 << 14) -> Iterator[list[bytes]]:
        """Yield all of them, in lists of at most `size`."""
        for start in range(0, len(self), size):
            yield self.take(np.arange(start, min(start + size, len(self))))

    def write(self, writer: ArrayWriter, name: str) -> None:
        """Add it to a file, to be read by `ArrayFile.strings`."""
        self.starts.write(writer, f"{name}.starts")
        self.data.write(writer, f"{name}.data")


@dataclass(frozen=True)
class OrderedStrings(StringArray):
    """Hold the same in another order: number i is that of the number `order[i]`, int (N,)."""

    order: np.ndarray

    def __len__(self) -> int:
        return len(self.order)

    def take(self, numbers: np.ndarray) -> list[bytes]:
        """Return the strings of these numbers."""
        return super().take(self.order[numbers])

    def verify(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Compare the strings of these numbers with their checksums; return where they begin and end."""
        return super().verify(self.order[numbers])

    def write(self, writer: ArrayWriter, name: str) -> None:
        """Add it to a file, in this order."""
        starts = np.zeros(len(self) + 1, np.int64)
        np.cumsum(np.diff(self.starts.all())[self.order], out=starts[1:])
        writer.add(f"{name}.starts", [starts], "<i8")
        writer.add(f"{name}.data", (np.frombuffer(b"".join(some), np.uint8) for some in self.pieces()), "|u1")


class Spool:
    """Gather bytes that are put one behind the other, to be read when all are there.

    Args:
        folder: where they lie, in a file without a name; None: in memory.
    """

    def __init__(self, folder: Path | None = None):
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=folder) if folder else io.BytesIO()
        if folder:
            weakref.finalize(self, self._file.close)

    def add(self, data: bytes | memoryview) -> None:
        """Add some."""
        self._file.write(data)

    def all(self, dtype: str, width: tuple[int, ...] = ()) -> np.ndarray:
        """Return all as an array (N, *width), to be read alone."""
        self._file.flush()
        size = self._file.seek(0, os.SEEK_END)
        if not size:
            return np.empty((0, *width), dtype)
        if isinstance(self._file, io.BytesIO):
            data = np.frombuffer(self._file.getbuffer(), np.uint8)
        else:
            data = np.frombuffer(mmap.mmap(self._file.fileno(), size, access=mmap.ACCESS_READ), np.uint8)
        return data.view(dtype).reshape(-1, *width)


class StringSpool:
    """Gather byte strings that are put one behind the other; see `Spool`."""

    def __init__(self, folder: Path | None = None):
        self._data, self._starts, self._end = Spool(folder), Spool(folder), 0
        self._starts.add(bytes(8))

    def add(self, strings: Sequence[bytes]) -> None:
        """Add some."""
        ends = self._end + np.cumsum([len(one) for one in strings], dtype=np.int64)
        self._data.add(b"".join(strings))
        self._starts.add(ends.tobytes())
        self._end = int(ends[-1]) if len(ends) else self._end

    def all(self, order: np.ndarray | None = None) -> StringArray:
        """Return all, or in another order."""
        starts, data = CheckedArray(self._starts.all("<i8")), CheckedArray(self._data.all("|u1"))
        return StringArray(starts, data) if order is None else OrderedStrings(starts, data, order)
