"""TFBundle: read the tensors of a TensorFlow V2 checkpoint without TensorFlow.

A bundle is `PREFIX.index`, a LevelDB table of name -> where the tensor lies, and `PREFIX.data-XXXXX-of-YYYYY`, the raw
little-endian values. Every length, offset and count in it is checked before it is used, and every block of the index
and every tensor against its crc32c: a damaged file is a `CheckpointError`, never a wrong tensor.

Source: TensorFlow's `tensor_bundle.h`, `tensor_bundle.proto`, `tensor_shape.proto`; LevelDB's `table_format.md`.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER = 48  # two block handles padded to 40 bytes, then the magic number
# Far above the largest SimCLR checkpoint (3,000 names in 120 KB), and low enough to be done with a bomb in seconds.
_MAX_INDEX_BYTES, _MAX_KEYS, _MAX_KEY_BYTES, _MAX_RANK = 4 << 20, 100_000, 1024, 8
_COMPRESSION = {1: "snappy", 2: "zstd"}
#: TensorFlow's DataType -> NumPy's; the others (strings, resources, bfloat16, complex) are not offered.
_DTYPES = {1: "f4", 2: "f8", 3: "i4", 4: "u1", 5: "i2", 6: "i1", 9: "i8", 10: "?", 17: "u2", 19: "f2", 22: "u4"}


class _Entry(NamedTuple):
    dtype: str
    shape: tuple[int, ...]
    shard: Path
    offset: int
    size: int
    crc: int


class TFBundle:
    """The numeric tensors of one checkpoint; opening it reads and checks the index, `read` one tensor's bytes.

    Args:
        source: the prefix (`.../model.ckpt-250228`), its `.index` file, or a directory whose `checkpoint` file names
            the prefix.

    Attributes:
        prefix: path of the bundle without `.index`.
        shapes: name -> shape, in the order of the names.

    Raises:
        CheckpointError: nothing there, damaged, big-endian, compressed, or with sliced variables.
    """

    def __init__(self, source: str | os.PathLike[str]):
        path = Path(source)
        if os.path.isdir(path):  # unlike Path's methods, os.path's count what may not be looked at as absent
            path = _named_by_checkpoint_file(path)
        self.prefix = path.with_name(path.name.removesuffix(".index"))
        self._index = self.prefix.with_name(self.prefix.name + ".index")
        if not os.path.exists(self._index):
            raise CheckpointError(
                f"{path}: no TensorFlow checkpoint (no {self._index.name}); give its folder or prefix"
            )
        try:
            self._entries = self._parse(dict(_read_table(_read_small(self._index))))
        except _Damaged as e:
            raise CheckpointError(f"{self._index}: {e}") from None
        self.shapes: Mapping[str, tuple[int, ...]] = MappingProxyType({k: e.shape for k, e in self._entries.items()})

    def read(self, name: str) -> NDArray[Any]:
        """Return the tensor `name` as a new array.

        Raises:
            CheckpointError: no numeric tensor of that name, or its bytes are missing or damaged.
        """
        if name not in self._entries:
            raise CheckpointError(f"{self._index}: no numeric tensor {name!r}")
        entry = self._entries[name]
        try:
            with open(entry.shard, "rb") as file:
                file.seek(entry.offset)
                raw = file.read(entry.size)  # no more than the file holds
        except OSError as e:
            raise CheckpointError(f"{entry.shard}: {e.strerror}") from e
        if len(raw) != entry.size:
            raise CheckpointError(f"{entry.shard}: ends within {name!r}; the file is truncated, fetch it again")
        if _masked_crc(raw) != entry.crc:
            raise CheckpointError(f"{entry.shard}: {name!r} does not match its checksum; the file is damaged")
        return np.frombuffer(raw, "<" + entry.dtype).reshape(entry.shape).astype(entry.dtype)  # native, writable

    def _parse(self, table: dict[bytes, bytes]) -> dict[str, _Entry]:
        if b"" not in table:
            raise _Damaged("has no header; this is not a TensorFlow checkpoint's index")
        header = _message(table.pop(b""), {1: 0, 2: 0, 3: 2})
        shards = header.get(1, [0])[-1]
        if header.get(2, [0])[-1] != 0:
            raise _Damaged("big-endian checkpoints are not supported")
        sizes: dict[Path, int] = {}
        entries = {}
        for key, value in table.items():
            try:
                name = key.decode()
            except UnicodeDecodeError:
                raise _Damaged(f"the name {key!r} is not UTF-8 (sliced variables are not supported)") from None
            fields = _message(value, {1: 0, 2: 2, 3: 0, 4: 0, 5: 0, 6: 5, 7: 2})
            if 7 in fields:
                raise _Damaged(f"{name!r} is stored in slices, which are not supported")
            dtype = _DTYPES.get(fields.get(1, [0])[-1])
            if dtype is None:
                continue
            shard, offset, size, crc = (fields.get(field, [0])[-1] for field in (3, 4, 5, 6))
            if shard >= shards:
                raise _Damaged(f"{name!r} lies in part {shard} of {shards}")
            shape = _shape(name, fields.get(2, []))
            # Python's integers do not overflow; empty dimensions count as one, so that NumPy's do not either.
            if math.prod(n or 1 for n in shape) >= 1 << 48 or math.prod(shape) * np.dtype(dtype).itemsize != size:
                raise _Damaged(f"{name!r} of shape {shape} and type {np.dtype(dtype).name} cannot have {size} bytes")
            path = self.prefix.with_name(f"{self.prefix.name}.data-{shard:05d}-of-{shards:05d}")
            if path not in sizes:
                sizes[path] = _size(path)
            if offset + size > sizes[path]:
                raise CheckpointError(f"{path}: ends before {name!r} does; the file is truncated, fetch it again")
            entries[name] = _Entry(dtype, shape, path, offset, size, crc)
        ends: dict[Path, int] = {}  # a small file must not become a huge model
        for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
            if entry.size and entry.offset < ends.get(entry.shard, 0):
                raise _Damaged(f"{name!r} lies where another tensor does")
            ends[entry.shard] = max(ends.get(entry.shard, 0), entry.offset + entry.size)
        return entries


class _Damaged(Exception):
    """What is wrong with the index; `TFBundle` adds its name."""


def _named_by_checkpoint_file(directory: Path) -> Path:
    listing = directory / "checkpoint"
    text = _read_small(listing).decode("utf-8", "replace")
    found = re.search(r'^\s*model_checkpoint_path:\s*"([^"]*)"', text, re.MULTILINE)
    if not found:
        raise CheckpointError(f'{listing}: has no line model_checkpoint_path: "..."; give the path of the .index file')
    name = found[1]
    if name in ("", ".", "..") or re.search(r"[/\\\0]", name):  # escapes are backslashes too
        raise CheckpointError(f"{listing}: names {name!r}, not a plain name; give the path of the .index file")
    return directory / name


def _size(path: Path) -> int:
    try:
        if os.path.isfile(path):  # not a FIFO, which would hang
            return os.path.getsize(path)
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror}") from e
    raise CheckpointError(f"{path}: no such file")


def _read_small(path: Path) -> bytes:
    if (size := _size(path)) > _MAX_INDEX_BYTES:
        raise CheckpointError(f"{path}: {size:,} bytes are too many for an index (at most {_MAX_INDEX_BYTES:,})")
    try:
        return path.read_bytes()
    except OSError as e:
        raise CheckpointError(f"{path}: {e.strerror}") from e


def _masked_crc(data: bytes) -> int:
    """Compute crc32c, rotated and shifted as LevelDB stores it."""
    import google_crc32c  # needed for TensorFlow's files only: training machines do without

    crc = int(google_crc32c.value(data))
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def _read_table(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield a LevelDB table's keys and values in order; blocks and keys must ascend, so nothing is read twice."""
    if len(data) < _FOOTER or not data.endswith(_MAGIC):
        raise _Damaged("does not end in a LevelDB table's footer; truncated, or not a TensorFlow checkpoint's index")
    footer = data[-_FOOTER:-8]
    _, at = _handle(footer, 0)  # the block of meta blocks, which bundles do not use
    handle, _ = _handle(footer, at)
    previous, count, done = None, 0, 0
    for _, value in _block(data, handle):
        handle, end = _handle(value, 0)
        if end != len(value) or handle[0] < done:
            raise _Damaged("its list of blocks is malformed")
        done = sum(handle)
        for key, entry in _block(data, handle):
            count += 1
            if count > _MAX_KEYS or (previous is not None and key <= previous):
                raise _Damaged("its names are out of order, repeated or too many")
            previous = key
            yield key, entry


def _handle(data: bytes, at: int) -> tuple[tuple[int, int], int]:
    offset, at = _varint(data, at)
    size, at = _varint(data, at)
    return (offset, size), at


def _block(data: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of the block at (offset, size); a key is stored as its shared length and its rest."""
    offset, size = handle
    end = offset + size  # of the contents; then 1 byte for the compression, 4 for the checksum of both
    if size < 4 or end + 5 > len(data) - _FOOTER:
        raise _Damaged(f"a block of {size:,} bytes at {offset:,} does not fit in the file")
    if _masked_crc(data[offset : end + 1]) != int.from_bytes(data[end + 1 : end + 5], "little"):
        raise _Damaged(f"the block at {offset:,} does not match its checksum; the file is damaged")
    if data[end]:
        raise _Damaged(f"compressed with {_COMPRESSION.get(data[end], data[end])}; TensorFlow never compresses these")
    block = data[offset:end]
    stop = size - 4 - 4 * int.from_bytes(block[-4:], "little")  # the restart points lie from here
    key, at = b"", 0
    while at < stop:
        shared, at = _varint(block, at)
        unshared, at = _varint(block, at)
        length, at = _varint(block, at)
        if shared > len(key) or at + unshared + length > stop or shared + unshared > _MAX_KEY_BYTES:
            raise _Damaged(f"an entry of the block at {offset:,} has impossible lengths")
        key = key[:shared] + block[at : at + unshared]
        at += unshared + length
        yield key, block[at - length : at]
    if at != stop:
        raise _Damaged(f"the block at {offset:,} does not end at its restart points")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a base-128 integer below 2**64; return it and where it ends."""
    value = 0
    for shift, byte in zip(range(0, 70, 7), data[at : at + 10], strict=False):
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80 and value < 1 << 64:
            return value, at
    raise _Damaged("an integer runs past its end")


def _message(data: bytes, wires: dict[int, int]) -> dict[int, list[Any]]:
    """Parse a protobuf message to field -> values; `wires` are the wire types of the known fields."""
    fields: dict[int, list[Any]] = {}
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        field, wire = tag >> 3, tag & 7
        value: int | bytes
        if wire == 0:
            value, at = _varint(data, at)
        elif wire in (1, 2, 5):
            length, at = _varint(data, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value = data[at : at + length]
            at += length
            if wire == 5:
                value = int.from_bytes(value, "little")
        else:
            raise _Damaged(f"a record has wire type {wire}")
        if at > len(data) or wires.get(field, wire) != wire:
            raise _Damaged(f"field {field} of a record is malformed")
        fields.setdefault(field, []).append(value)
    return fields


def _shape(name: str, protos: list[bytes]) -> tuple[int, ...]:
    """Read the sizes of a TensorShapeProto's dimensions; without one, a scalar."""
    fields = _message(b"".join(protos), {2: 2, 3: 0})  # a message given in parts is their concatenation
    dims = fields.get(2, [])
    if len(dims) > _MAX_RANK or fields.get(3, [0])[-1]:
        raise _Damaged(f"{name!r} has {len(dims)} dimensions, or an unknown number")
    return tuple(_message(dim, {1: 0, 2: 2}).get(1, [0])[-1] for dim in dims)
