"""Small TIFF, BMP, PNG and PNM files of any kind, written from their specifications; for tests."""

import struct
import zlib

import numpy as np

#: The TIFF tags that hold offsets or lengths.
_LONG = (273, 279, 324, 325)


def packed(values: np.ndarray, bits: int, order: str = "<") -> bytes:
    """Rows of samples (H, N) as the file has them: of fewer than 8 bits, or 12, the first in the highest bits."""
    if bits in (8, 16, 32, 64):
        kind = "f4" if values.dtype.kind == "f" else f"{values.dtype.kind}{bits // 8}"
        return values.astype(order + kind).tobytes()
    digits = (values[..., None].astype(np.int64) >> np.arange(bits)[::-1]) & 1
    return np.packbits(digits.reshape(len(values), -1).astype(np.uint8), axis=1).tobytes()


def tiff(
    samples: np.ndarray, photometric: int, bits: int, *, order: str = "<", planar: bool = False, deflate: bool = False,
    tile: bool = False, big: bool = False, tags: dict[int, tuple[int, ...]] | None = None, after: bytes = b"",
    strips: list[bytes] | None = None,
) -> bytes:  # fmt: skip
    """A TIFF of samples (H, W, N), in strips of two rows or tiles of 16 x 16.

    Args:
        samples: unsigned, signed or float values.
        photometric: what they are.
        bits: of each sample.
        order: of the bytes, "<" or ">".
        planar: each of the N in a plane of its own.
        deflate: compressed.
        tile: in tiles.
        big: BigTIFF.
        tags: further ones, or others; () leaves one out.
        after: lies between the header and the pixels.
        strips: in place of those made of the samples, uncompressed.
    """
    height, width, count = samples.shape
    parts = []
    for plane in samples.transpose(2, 0, 1)[..., None] if planar else (samples,):
        if tile:
            full = np.zeros((-(-height // 16) * 16, -(-width // 16) * 16, plane.shape[2]), plane.dtype)
            full[:height, :width] = plane
            pieces = [
                full[y : y + 16, x : x + 16] for y in range(0, len(full), 16) for x in range(0, full.shape[1], 16)
            ]
        else:
            pieces = [plane[y : y + 2] for y in range(0, height, 2)]
        parts += [packed(piece.reshape(len(piece), -1), bits, order) for piece in pieces]
    parts = strips or parts
    if deflate:
        parts = [zlib.compress(part) for part in parts]
    data = (b"II" if order == "<" else b"MM") + struct.pack(order + "H", 43 if big else 42)
    data += struct.pack(order + "HHQ", 8, 0, 0) if big else bytes(4)
    data += after + bytes(len(after) % 2)
    offsets = []
    for part in parts:
        offsets.append(len(data))
        data += part + bytes(len(part) % 2)
    found = {256: (width,), 257: (height,), 258: (bits,) * count, 259: (8 if deflate else 1,), 262: (photometric,)}
    found |= {277: (count,), 284: (2 if planar else 1,)}
    if samples.dtype.kind in "if":
        found[339] = ({"i": 2, "f": 3}[samples.dtype.kind],) * count
    where = {True: (324, 325), False: (273, 279)}[tile]
    found |= {where[0]: tuple(offsets), where[1]: tuple(map(len, parts))}
    found |= {322: (16,), 323: (16,)} if tile else {278: (2 if strips is None else height,)}
    found |= tags or {}
    entries = []
    for tag, values in sorted(found.items()):
        if not values:
            continue
        kind, letter = (4, "I") if tag in _LONG else (3, "H")
        field = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(field) > (8 if big else 4):
            at = len(data)
            data += field + bytes(len(field) % 2)
            field = struct.pack(order + ("Q" if big else "I"), at)
        entries.append(struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, len(values)))
        entries[-1] += field.ljust(8 if big else 4, b"\0")
    at, head = len(data), 8 if big else 4
    data += struct.pack(order + ("Q" if big else "H"), len(entries)) + b"".join(entries) + bytes(8)
    return data[:head] + struct.pack(order + ("Q" if big else "I"), at) + data[2 * head :]


def bmp(
    rows: np.ndarray, bits: int, *, masks: tuple[int, ...] = (), header: int = 40, compression: int | None = None,
    palette: np.ndarray | None = None, used: int = 0, top_down: bool = False,
) -> bytes:  # fmt: skip
    """A BMP of values (H, W) of so many bits a pixel, with masks of red, green, blue and alpha or a palette (N, 3)."""
    height, width = rows.shape
    if bits < 8:
        body = [packed(row[None], bits) for row in rows]
    else:
        body = [row.astype("<u4")[:, None].view(np.uint8)[:, : bits // 8].tobytes() for row in rows]
    body = [row + bytes(-len(row) % 4) for row in body]
    compression = (3 if masks else 0) if compression is None else compression
    extra = struct.pack(f"<{len(masks)}I", *masks)
    if header > 40:
        fields, extra = extra.ljust(header - 40, b"\0"), b""
    else:
        fields = b""
    colours = b"" if palette is None else np.pad(palette[:, ::-1], ((0, 0), (0, 1))).astype(np.uint8).tobytes()
    offset = 14 + header + len(extra) + len(colours)
    info = struct.pack(
        "<IiiHHIIiiII", header, width, -height if top_down else height, 1, bits, compression, 0, 0, 0, used, 0
    )
    pixels = b"".join(body if top_down else body[::-1])
    return struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset) + info + fields + extra + colours + pixels


def chunk(kind: bytes, body: bytes, *, sound: bool = True) -> bytes:
    """A PNG's chunk, or one with a wrong checksum."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ (not sound))


def png(samples: np.ndarray, colour: int, bits: int, *, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of samples (H, W, N) with chunks before and after the pixels."""
    height, width, _ = samples.shape
    rows = b"".join(b"\0" + packed(row.reshape(1, -1), bits, ">") for row in samples)
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + before + pixels + after + chunk(b"IEND", b"")


def pnm(samples: np.ndarray, kind: int, maxval: int) -> bytes:
    """P1 to P6 of samples (H, W, N)."""
    height, width, _ = samples.shape
    head = f"P{kind}\n# a comment\n{width} {height}\n" + ("" if kind in (1, 4) else f"{maxval}\n")
    if kind < 4:
        return head.encode() + b" ".join(str(value).encode() for value in samples.ravel()) + b"\n"
    if kind == 4:
        return head.encode() + packed(samples[..., 0], 1)
    return head.encode() + samples.astype("u1" if maxval < 256 else ">u2").tobytes()
