"""Minimal camera RAW files (DNG and other TIFF-like ones), written by hand for tests."""

import io
import struct

import numpy as np
from PIL import Image

SHORT, LONG, BYTE, ASCII, RATIONAL, SRATIONAL = 3, 4, 1, 2, 5, 10
_SIZES = {SHORT: 2, LONG: 4, BYTE: 1, ASCII: 1, RATIONAL: 8, SRATIONAL: 8}
_XYZ_TO_SRGB = (32406, -15372, -4986, -9689, 18758, 415, 557, -2040, 10570)


class Tiff:
    """A little-endian TIFF of directories; values that do not fit their entry follow it."""

    def __init__(self):
        self.data = bytearray(b"II*\0\0\0\0\0")

    def put(self, payload: bytes) -> int:
        self.data += b"\0" * (len(self.data) % 2)
        self.data += payload
        return len(self.data) - len(payload)

    def directory(self, tags: dict) -> int:
        entries = []
        for tag, (kind, values) in sorted(tags.items()):
            if kind in (BYTE, ASCII):
                raw, count = bytes(values), len(values)
            else:
                values = np.atleast_1d(values)
                code = {SHORT: "<u2", LONG: "<u4", RATIONAL: "<u4", SRATIONAL: "<i4"}[kind]
                raw = values.astype(code).tobytes()
                count = len(raw) // _SIZES[kind]
            value = raw.ljust(4, b"\0") if len(raw) <= 4 else struct.pack("<I", self.put(raw))
            entries.append(struct.pack("<HHI", tag, kind, count) + value)
        return self.put(struct.pack("<H", len(entries)) + b"".join(entries) + b"\0\0\0\0")

    def finish(self, first: int) -> bytes:
        self.data[4:8] = struct.pack("<I", first)
        return bytes(self.data)


def jpeg(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=92, **options)
    return buffer.getvalue()


def dng(
    picture: Image.Image,
    *,
    preview: Image.Image | bytes | None = None,
    orientation: int = 1,
    exif: dict | None = None,
    is_dng: bool = True,
    cfa: bool = True,
) -> bytes:
    """A 16-bit RGGB mosaic of `picture` (stored as it is), with a thumbnail in front and a JPEG preview.

    `is_dng=False` leaves DNG's version out, as the makers' own formats do.
    """
    tiff = Tiff()
    width, height = picture.size
    linear = (np.asarray(picture, np.float64) / 255) ** 2.2
    mosaic = np.empty((height, width))
    for y, x, band in ((0, 0, 0), (0, 1, 1), (1, 0, 1), (1, 1, 2)):
        mosaic[y::2, x::2] = linear[y::2, x::2, band]
    values = np.rint(mosaic * 16383).astype("<u2").tobytes()
    sensor = {
        254: (LONG, 0), 256: (LONG, width), 257: (LONG, height), 258: (SHORT, 16), 259: (SHORT, 1),
        262: (SHORT, 32803 if cfa else 1), 273: (LONG, tiff.put(values)), 277: (SHORT, 1), 278: (LONG, height),
        279: (LONG, len(values)), 33421: (SHORT, [2, 2]), 33422: (BYTE, [0, 1, 1, 2]),
        50714: (SHORT, 0), 50717: (SHORT, 16383),
    }  # fmt: skip
    below = [tiff.directory(sensor)]
    if preview is not None:
        encoded = preview if isinstance(preview, bytes) else jpeg(preview)
        shown = preview if isinstance(preview, Image.Image) else Image.open(io.BytesIO(preview))
        below.append(
            tiff.directory({
                254: (LONG, 1), 256: (LONG, shown.width), 257: (LONG, shown.height), 258: (SHORT, [8, 8, 8]),
                259: (SHORT, 7), 262: (SHORT, 6), 273: (LONG, tiff.put(encoded)), 277: (SHORT, 3),
                278: (LONG, shown.height), 279: (LONG, len(encoded)),
            })
        )  # fmt: skip
    thumbnail = Image.new("RGB", (16, 12), "magenta").tobytes()  # what must never be taken for the photo
    first = {
        254: (LONG, 1), 256: (LONG, 16), 257: (LONG, 12), 258: (SHORT, [8, 8, 8]), 259: (SHORT, 1), 262: (SHORT, 2),
        271: (ASCII, b"Maker\0"), 272: (ASCII, b"Model 1\0"), 273: (LONG, tiff.put(thumbnail)),
        274: (SHORT, orientation), 277: (SHORT, 3), 278: (LONG, 12), 279: (LONG, len(thumbnail)), 330: (LONG, below),
        306: (ASCII, b"2020:05:06 07:08:09\0"),
        50721: (SRATIONAL, [[value, 10_000] for value in _XYZ_TO_SRGB]),
        50728: (RATIONAL, [[1, 1], [1, 1], [1, 1]]), 50778: (SHORT, 21),
    }  # fmt: skip
    if is_dng:
        first |= {50706: (BYTE, [1, 4, 0, 0]), 50707: (BYTE, [1, 1, 0, 0]), 50708: (ASCII, b"Maker Model 1\0")}
    if exif:
        first |= exif
    return tiff.finish(tiff.directory(first))
