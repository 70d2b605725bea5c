"""A writer of TensorFlow V2 bundles in pieces, so that tests can also write what TensorFlow never would."""

from pathlib import Path

import google_crc32c
import numpy as np

DTYPES = {"float32": 1, "float64": 2, "int32": 3, "uint8": 4, "int64": 9, "bool": 10, "float16": 19}
HEADER = b"\x08\x01\x1a\x02\x08\x01"  # one shard, little-endian, version 1


def varint(n: int) -> bytes:
    out = b""
    while n > 127:
        out += bytes([n & 127 | 128])
        n >>= 7
    return out + bytes([n])


def masked(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return (((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF).to_bytes(4, "little")


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    return varint(number << 3) + varint(value)


def entry(*, dtype=1, shape=(), shard=0, offset=0, size=0, crc=b"\0\0\0\0", more=b"") -> bytes:
    """A BundleEntryProto."""
    dims = b"".join(field(2, field(1, n)) for n in shape)
    numbers = b"".join(field(number, n) for number, n in ((3, shard), (4, offset), (5, size)) if n)
    return field(1, dtype) + field(2, dims) + numbers + b"\x35" + crc + more


def block(pairs, interval=4) -> bytes:
    """Entries with shared prefixes, then the restart points."""
    out, restarts, previous = b"", [], b""
    for i, (key, value) in enumerate(pairs):
        shared = 0
        if i % interval == 0:
            restarts.append(len(out))
        else:
            while shared < min(len(key), len(previous)) and key[shared] == previous[shared]:
                shared += 1
        out += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        previous = key
    restarts = restarts or [0]
    return out + b"".join(n.to_bytes(4, "little") for n in (*restarts, len(restarts)))


def sealed(contents: bytes, compression=0) -> bytes:
    data = contents + bytes([compression])
    return data + masked(data)


def footer(meta, index) -> bytes:
    handles = b"".join(map(varint, (*meta, *index)))
    return handles.ljust(40, b"\0") + (0xDB4775248B80FB57).to_bytes(8, "little")


def table(blocks: list[bytes], compression=0) -> bytes:
    """A LevelDB table of data blocks that `block` made."""
    out, handles = b"", []
    for i, contents in enumerate(blocks):
        handles.append((b"%06d" % i, varint(len(out)) + varint(len(contents))))
        out += sealed(contents, compression)
    meta = (len(out), len(block([])))
    out += sealed(block([]))
    index = (len(out), len(block(handles, interval=1)))
    return out + sealed(block(handles, interval=1)) + footer(meta, index)


def write_bundle(prefix: Path, tensors: dict[str, np.ndarray], *, shards=1, per_block=16, extra=()) -> Path:
    """Write `tensors`, in turn to each of `shards` files, with a `checkpoint` file; `extra` are raw (key, value)."""
    parts = [bytearray() for _ in range(shards)]
    pairs = list(extra)
    for i, (name, array) in enumerate(tensors.items()):
        raw, shard = array.astype(array.dtype.newbyteorder("<")).tobytes(), i % shards
        where = {"shard": shard, "offset": len(parts[shard]), "size": len(raw), "crc": masked(raw)}
        pairs.append((name.encode(), entry(dtype=DTYPES[str(array.dtype)], shape=array.shape, **where)))
        parts[shard] += raw
    pairs = [(b"", field(1, shards) + HEADER[2:]), *sorted(pairs)]
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for shard, raw in enumerate(parts):
        Path(f"{prefix}.data-{shard:05d}-of-{shards:05d}").write_bytes(raw)
    blocks = [block(pairs[i : i + per_block]) for i in range(0, len(pairs), per_block)]
    Path(f"{prefix}.index").write_bytes(table(blocks))
    (prefix.parent / "checkpoint").write_text(f'model_checkpoint_path: "{prefix.name}"\n')
    return prefix
