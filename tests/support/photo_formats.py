"""One photo in every format that is read, encoded here; used by tests and by `fuzz_formats.py`."""

import io
import random
import struct

import numpy as np
import pillow_heif
import pillow_jxl
from PIL import Image
from raw_writer import dng

pillow_heif.register_heif_opener()

#: Pillow's names of formats with EXIF, and how a picture is written as like itself as it goes.
WRITERS = {
    "JPEG": {"quality": 95, "subsampling": 0},
    "PNG": {},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "AVIF": {"quality": 95, "subsampling": "4:4:4"},
    "HEIF": {"quality": 95, "chroma": 444},
    "JXL": {"lossless": True},
}


def smooth(size=(96, 64), seed=0) -> Image.Image:
    """A picture of soft colours without any symmetry."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **(WRITERS.get(format, {}) | options))
    return buffer.getvalue()


def jxl_of_jpeg(jpeg: bytes, size: tuple[int, int], *, reconstructible: bool = True) -> bytes:
    """A JPEG packed as JPEG XL, as `cjxl` does; without its `jbrd` box it can only be decoded to pixels."""
    encoder = pillow_jxl.Encoder(
        mode="RGB", lossless=True, quality=100, decoding_speed=0, effort=3, use_container=True,
        use_original_profile=False, num_threads=1,
    )  # fmt: skip
    data, at, boxes = encoder(jpeg, *size, jpeg_encode=True), 0, []
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        length = length or len(data) - at
        if reconstructible or kind != b"jbrd":
            boxes.append(data[at : at + length])
        at += length
    return b"".join(boxes)


def seeds() -> dict[str, list[bytes]]:
    """Small good files of the formats beyond Pillow's old ones, to damage."""
    photo, large = smooth(), smooth((640, 520))
    exif = Image.Exif()
    exif.update({0x010F: "Maker", 0x0112: 6})
    extra = {"exif": exif.tobytes()}
    jpeg = encoded(photo, "JPEG", **extra)
    return {
        "HEIF": [encoded(photo, "HEIF", **extra), encoded(photo.convert("RGBA"), "HEIF"), encoded(photo, "HEIF")],
        "AVIF": [encoded(photo, "AVIF", **extra), encoded(photo.convert("RGBA"), "AVIF")],
        "JXL": [
            encoded(photo, "JXL", **extra),
            encoded(photo.convert("RGBA"), "JXL"),
            encoded(photo, "JXL", lossless=False, quality=80),
            jxl_of_jpeg(jpeg, photo.size),
            jxl_of_jpeg(jpeg, photo.size, reconstructible=False),
        ],
        "RAW": [dng(photo), dng(photo, preview=large), dng(photo, is_dng=False), dng(photo, preview=photo)],
    }


def mutant(data: bytes, rng: random.Random) -> bytes:
    """The file with some bytes changed, most of them in its headers, a part cut out or doubled, or its end missing."""
    out = bytearray(data)
    reach = len(out) if rng.random() < 0.4 else min(len(out), 600)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 10))):
        at = rng.randrange(reach)
        out[at] = rng.choice((0, 1, 127, 128, 255, out[at] ^ (1 << rng.randrange(8)), rng.randrange(256)))
    if rng.random() < 0.2:
        del out[rng.randrange(12, len(out)) :]
    if rng.random() < 0.1:
        at = rng.randrange(len(out))
        del out[at : at + rng.randrange(1, 64)]
    if rng.random() < 0.1:
        at = rng.randrange(len(out))
        out[at:at] = out[at : at + rng.randrange(1, 64)]
    return bytes(out)
