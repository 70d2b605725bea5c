"""An image file's bytes to a PIL image that shows what the file says, or one sentence on what of it is not read.

Travels to the Hub as remote code, so it imports only numpy and Pillow.

The mode that Pillow gives does not say all that a file says (which value is white, in how many planes,
whether a fourth sample is alpha), and some files it misreads without an error. So TIFF, BMP, PNG and PNM are judged by
their own headers: what is in the tables below is read, mostly by Pillow, and the rest raises `NotReadError`. Metadata
never costs the picture: what fails because of it is read again without it.

Sources: TIFF 6.0 and its technical notes, the PNG specification, Microsoft's BITMAPV5HEADER, Netpbm's format pages.
"""

import io
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, TypeVar

import numpy as np
from PIL import Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

T = TypeVar("T")

Image.init()  # fills Image.OPEN, which says what this Pillow was built with
#: Formats that Pillow decodes, by its names; none of their decoders starts another program. JPEG includes MPO.
FORMATS = tuple(
    name for name in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM", "JPEG2000") if name in Image.OPEN
)
#: Key of `Image.info`: (black, white) as sample values, where the mode alone does not tell them.
LEVELS = "simclr_levels"

#: Scans of a JPEG times its pixels: 12 s of decoding. The largest image that Pillow allows may have 22 scans.
MAX_SCANNED = 4_000_000_000


class NotReadError(ValueError):
    """A sound file, as far as can be seen, of a kind that is not read; the text says what of it."""


def read_picture(data: bytes, use: Callable[[Image.Image], T]) -> T:
    """Open the file, without its metadata where that is in the way, and return what `use` makes of the image.

    Args:
        data: a whole file of one of `FORMATS`, no camera RAW.
        use: loads the image, which is not decoded yet where possible.

    Raises:
        NotReadError: a kind of picture that is not in the tables.
        UnidentifiedImageError: none of `FORMATS`.
        Exception: whatever Pillow raises for damaged files, or `use`.
    """
    kind = next((kind for kind, start in _STARTS.items() if start.match(data)), "")
    first: Exception | None = None
    for version in _VERSIONS[kind](data) if kind in _VERSIONS else (data,):
        opened = False
        try:
            with _OPENERS.get(kind, _open)(version) as image:
                opened = True
                return use(image)
        except (NotReadError, Image.DecompressionBombError, Image.DecompressionBombWarning, MemoryError):
            raise
        except Exception as e:
            first = first or _reason(kind, version, e)
            if kind == "JPEG" and opened:  # which looks at its metadata when it is opened
                break
    if kind == "JPEG" and (whole := _jpeg_with_its_end(data)):
        return use(_open(whole))
    assert first is not None
    raise first


def is_misread(image: ImageFile.ImageFile) -> bool:
    """Tell whether Pillow misreads the file of an image that it has opened and not loaded yet.

    Raises:
        NotReadError: a kind of TIFF that is not in the tables, or a JPEG that would take minutes.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _kind_of(image).misread
    if image.format not in ("PNG", "BMP", "JPEG", "MPO") or image.fp is None:
        return False
    at = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(70 if image.format in ("PNG", "BMP") else -1)
    image.fp.seek(at)
    if image.format in ("JPEG", "MPO"):
        refuse_endless_jpeg(head, image)
        return False
    if image.format == "BMP":
        bmp = _Bmp(head)
        return bmp.by_masks or bmp.few_colours
    return "bbox" in image.info or ("transparency" in image.info and tuple(head[24:26]) in ((2, 0), (4, 0), (16, 2)))


def _open(data: bytes) -> ImageFile.ImageFile:
    return Image.open(io.BytesIO(data), formats=FORMATS)


def _reason(kind: str, data: bytes, error: Exception) -> Exception:
    """Return why Pillow did not identify a file whose first bytes are of one of its formats."""
    if not isinstance(error, UnidentifiedImageError) or kind not in Image.OPEN:
        return error
    try:
        Image.OPEN[kind][0](io.BytesIO(data), "")
    except Exception as e:
        return NotReadError(f"damaged, or a kind of {kind} that is not read: {str(e) or type(e).__name__}")
    return error


# JPEG


def _jpeg_segments(data: bytes) -> list[tuple[int, int, int]]:
    """Return marker, start and end of each segment up to the scan; [] if they do not follow one another."""
    found, at = [], 2
    while data[at : at + 1] == b"\xff" and at + 4 <= len(data):
        marker, size = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == 0xFF:  # padding
            at += 1
            continue
        found.append((marker, at, at + 2 + size))
        if marker == 0xDA:
            return found
        at += 2 + size
    return []


def refuse_endless_jpeg(data: bytes, image: Image.Image) -> None:
    """Refuse a JPEG whose decoding would take minutes: each of its scans costs a pass over all pixels.

    Encoders write about ten. libjpeg-turbo leaves this limit to its callers (its report on "two issues with the JPEG
    standard").

    Args:
        data: the file.
        image: opened from it, with its whole size.

    Raises:
        NotReadError: it has too many scans for its size.
    """
    at = {marker: start for marker, start, _ in _jpeg_segments(data)}
    colours = [data[at[0xDA] + 4 : at[0xDA] + 5]] if at else []
    if any(data[at[frame] + 9 : at[frame] + 10] in colours for frame in (0xC0, 0xC1, 0xC9) if frame in at):
        return  # not progressive, and the first scan holds all colours: no other is read
    scans = data.count(b"\xff\xda")  # which compressed values never hold
    if scans * image.width * image.height > MAX_SCANNED:
        raise NotReadError(f"JPEG of {image.width:,} x {image.height:,} pixels in {scans:,} scans is not read")


def _open_jpeg(data: bytes) -> ImageFile.ImageFile:
    image = _open(data)
    refuse_endless_jpeg(data, image)
    return image


def _jpeg_versions(data: bytes) -> Iterator[bytes]:
    yield data
    segments = _jpeg_segments(data)
    # Adobe's says what the colours are.
    starts = (b"Adobe", b"Exif\0\0", b"ICC_PROFILE\0", b"JFIF\0")
    for kept in (starts, starts[:3], starts[:2], starts[1:], starts[1:2], ()):
        parts, at = [], 0
        for marker, start, end in segments:
            if (0xE0 <= marker <= 0xEF or marker == 0xFE) and not data.startswith(kept, start + 4):
                parts.append(data[at:start])
                at = end
        if parts:
            yield b"".join((*parts, data[at:]))


def _jpeg_with_its_end(data: bytes) -> bytes:
    """Return a JPEG that lacks nothing but the marker of its end, with it; b"" if more is missing.

    Nothing is missing if the pixels do not depend on what follows.
    """
    segments = _jpeg_segments(data)
    if data.endswith(b"\xff\xd9") or not segments:
        return b""
    markers = {marker for marker, _, _ in segments}
    progressive = not markers.isdisjoint((0xC2, 0xC6, 0xCA, 0xCE))
    if progressive and 0xDD in markers:
        return b""  # what is missing from a restart marker on would be filled in
    data = data.rstrip(b"\xff")  # half a marker
    # Without the end one of its scans would be waited for; where there is one scan, the end would fill in.
    versions = [data + 256 * filler + (b"\xff\xd9" if progressive else b"") for filler in (b"\0", b"\x55", b"\xaa")]
    with suppress(Exception):
        if len({zlib.crc32(_open(version).tobytes()) for version in versions}) == 1:
            return versions[0]
    return b""


# PNG

#: (bits, colour type)
_PNG_KINDS = {(bits, 0) for bits in (1, 2, 4, 8, 16)} | {(bits, 3) for bits in (1, 2, 4, 8)}
_PNG_KINDS |= {(bits, colour) for bits in (8, 16) for colour in (2, 4, 6)}
#: What Pillow looks at for colours and orientation.
_PNG_TEXTS = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each chunk, the last one perhaps cut off."""
    at = 8
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at, at + 12 + size
        at += 12 + size


def _png_versions(data: bytes) -> Iterator[bytes]:
    """Yield the picture with less and less beside it; of an APNG the still picture."""
    before = b""
    kinds = (b"tRNS", b"eXIf", b"iCCP", b"tEXt", b"zTXt", b"iTXt")
    for kept in (kinds, kinds[:3], kinds[:2], kinds[:1], ()):
        parts = [data[:8]]
        for kind, start, end in _png_chunks(data):
            if not kind.isalpha():  # not the beginning of a chunk: Pillow finds out what this means
                parts.append(data[start:])
                break
            text = kind in (b"tEXt", b"zTXt", b"iTXt")
            if kind[:1].isupper() or (
                kind in kept
                and (kind != b"tRNS" or end - start - 12 >= {0: 2, 2: 6, 3: 1}.get(data[25], end))
                and zlib.crc32(data[start + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big")
                and (not text or data.startswith(_PNG_TEXTS, start + 8))
            ):
                parts.append(data[start:end])
            if kind == b"IEND":
                break
        version = b"".join(parts)
        if version != before:
            yield version
        before = version


def _open_png(data: bytes) -> Image.Image:
    _, _, bits, colour = struct.unpack_from(">IIBB", data.ljust(26, b"\0"), 16)
    if (bits, colour) not in _PNG_KINDS:
        raise NotReadError(f"PNG with colour type {colour} of {bits} bits is not read")
    image = _open(data)
    key = next((data[start + 8 : end - 4] for kind, start, end in _png_chunks(data) if kind == b"tRNS"), b"")
    if colour in (0, 2) and len(key) >= 2 + 2 * colour and "transparency" in image.info:
        values = struct.unpack_from(f">{1 + colour}H", key)
        if bits < 16:  # Pillow compares pixels of 8 bits with values of fewer
            scaled = tuple((value & (1 << bits) - 1) * 255 // ((1 << bits) - 1) for value in values)
            image.info["transparency"] = scaled if colour == 2 else scaled[0]
        elif colour == 2:  # and of the upper 8 bits with values of 16
            low = _open(data)
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            pixels = np.asarray(image).astype(np.uint16) << 8 | np.asarray(low)
            image.putalpha(Image.fromarray(np.where((pixels == values).all(-1), 0, 255).astype(np.uint8)))
            del image.info["transparency"]
    return image


# BMP

_BMP_COMPRESSIONS = ("none", "RLE8", "RLE4", "bit fields", "JPEG", "PNG", "bit fields with alpha")
_BMP_BITS = {0: (1, 4, 8, 16, 24, 32), 1: (8,), 2: (4,), 3: (16, 24, 32), 6: (16, 32)}
#: Bits and masks of red, green, blue and alpha that Pillow reads.
_BMP_MASKS = {
    (16, 0xF800, 0x7E0, 0x1F, 0), (16, 0x7C00, 0x3E0, 0x1F, 0), (24, 0xFF0000, 0xFF00, 0xFF, 0),
    (32, 0xFF0000, 0xFF00, 0xFF, 0), (32, 0xFF0000, 0xFF00, 0xFF, 0xFF000000),
    (32, 0xFF, 0xFF00, 0xFF0000, 0xFF000000), (32, 0xFF000000, 0xFF0000, 0xFF00, 0),
    (32, 0xFF000000, 0xFF0000, 0xFF00, 0xFF),
}  # fmt: skip


class _Bmp:
    """Read what the header of a BMP says.

    Raises:
        NotReadError: it is not in the tables.
    """

    def __init__(self, data: bytes):
        data = data[:70].ljust(70, b"\0")
        self.offset, size, self.width, self.height, _, self.bits, compression = struct.unpack_from(
            "<IIiiHHI", data, 10
        )
        (used,) = struct.unpack_from("<I", data, 46)
        if size not in (12, 40, 52, 56, 64, 108, 124):
            raise NotReadError(f"BMP with a header of {size} bytes is not read")
        if size == 12:  # with sides of 16 bits
            (self.bits,), compression, used = struct.unpack_from("<H", data, 24), 0, 0
        # In OS/2's header of 64 bytes 3 and 4 are Huffman and RLE24.
        if self.bits not in _BMP_BITS.get(compression, ()) or (size == 64 and compression > 2):
            names = dict(enumerate(_BMP_COMPRESSIONS)) if size != 64 else {}
            packed = f", {names.get(compression, f'compression {compression}')}" if compression else ""
            raise NotReadError(f"BMP with {self.bits} bits a pixel{packed} is not read")
        self.masks = struct.unpack_from("<4I", data, 54)
        if compression != 6 and size < 56:
            self.masks = (*self.masks[:3], 0)
        #: Masks that Pillow does not read, or of which it ignores alpha.
        self.by_masks = compression == 6 or (compression == 3 and (self.bits, *self.masks) not in _BMP_MASKS)
        if size == 40 and self.by_masks:  # which lie behind it
            self.offset = max(self.offset, 66 + 4 * (compression == 6))
        #: Pillow would take this for 1 bit a pixel, if the colours are black and white.
        self.few_colours = self.bits in (4, 8) and 0 < used <= 2 and self.offset > 14 + size


def _open_bmp(data: bytes) -> Image.Image:
    bmp = _Bmp(data)
    if bmp.by_masks:
        return _bmp_by_masks(data, bmp)
    image = _open(data[:46] + bytes(4) + data[50:] if bmp.few_colours else data)
    if (bmp.bits > 1 and image.mode == "1") or (bmp.bits < 8 and image.mode == "L"):
        raise NotReadError(f"BMP with {bmp.bits} bits a pixel and a palette that counts from black is not read")
    return image


def _bmp_by_masks(data: bytes, bmp: _Bmp) -> Image.Image:
    bits, width, height, offset = bmp.bits, bmp.width, bmp.height, bmp.offset
    masks = bmp.masks if bmp.masks[3] else bmp.masks[:3]
    shifts = [max((mask & -mask).bit_length() - 1, 0) for mask in masks]
    tops = [mask >> shift for mask, shift in zip(masks, shifts, strict=True)]
    if bits == 24 or not any(masks[:3]) or any(top & (top + 1) for top in tops):
        raise NotReadError(f"BMP with bit masks {', '.join(f'{mask:x}' for mask in masks)} is not read")
    limit = 2 * (Image.MAX_IMAGE_PIXELS or 1 << 62)
    if width * abs(height) > limit:
        raise Image.DecompressionBombError(f"{width:,} x {abs(height):,} pixels, more than {limit:,}")
    row = (width * bits + 31) // 32 * 4
    if width <= 0 or height == 0 or len(data) < offset + row * abs(height):
        raise OSError("image file is truncated")
    rows = np.frombuffer(data, np.uint8, row * abs(height), offset).reshape(abs(height), row)
    values = rows.view("<u2" if bits == 16 else "<u4")[:: 1 if height < 0 else -1, :width]
    channels = []
    for shift, top in zip(shifts, tops, strict=True):
        while top >= 1 << 16:  # bits that would change nothing
            shift, top = shift + 1, top >> 1
        scaled = np.rint(np.arange(top + 1) * (255 / (top or 1))).astype(np.uint8)
        channels.append(scaled[values >> shift & top])
    image = Image.fromarray(np.stack(channels, -1))
    image.format = "BMP"
    return image


# PNM


def _open_pnm(data: bytes) -> Image.Image:
    kind = data[:2].decode("latin-1")
    if kind not in ("P1", "P2", "P3", "P4", "P5", "P6", "Pf"):
        known = {"P7": " (PAM)", "PF": " (PFM in colour)"}.get(kind, "")
        raise NotReadError(f"PNM of kind {kind}{known} is not read")
    return _open(data)


# TIFF

_SAMPLES = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}
_PHOTOMETRIC = {
    0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "mask", 5: "CMYK", 6: "YCbCr", 8: "CIELAB", 9: "ICCLAB",
    10: "ITULAB", 32803: "sensor", 32844: "LogL", 32845: "LogLuv", 34892: "linear RAW",
}  # fmt: skip
_COMPRESSIONS = {
    1: "none", 2: "CCITT", 3: "Group 3", 4: "Group 4", 5: "LZW", 6: "old JPEG", 7: "JPEG", 8: "deflate",
    32773: "PackBits", 32946: "deflate", 34925: "LZMA", 50000: "Zstandard",
}  # fmt: skip
_UNREAD_COMPRESSIONS = {
    32809: "ThunderScan", 34661: "JBIG", 34676: "SGILog", 34677: "SGILog24", 34712: "JPEG 2000", 34887: "LERC",
    34933: "PNG", 50001: "WebP", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
#: Colours -> (sample format, bits): how many extra samples. Sample formats: 1 unsigned, 3 float.
_TIFF: dict[int, dict[tuple[int, int], int]] = {
    1: {(1, 1): 0, (1, 2): 0, (1, 4): 0, (1, 8): 1, (1, 12): 0, (1, 16): 0, (1, 32): 0, (3, 32): 0},
    2: {(1, 8): 3, (1, 16): 1},
    3: {(1, 1): 0, (1, 2): 0, (1, 4): 0, (1, 8): 1},
    5: {(1, 8): 2, (1, 16): 0},
    6: {(1, 8): 0},
    8: {(1, 8): 0},
}
#: Tags that the picture needs; orientation and profile are kept as long as they are sound.
_PICTURE = frozenset((
    256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338, 339,
    347, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532,
))  # fmt: skip
_LONG = (273, 279, 324, 325)  # where the strips or tiles lie, and how long they are
_TYPES = {1: "B", 3: "H", 4: "I", 5: "II", 13: "I", 16: "Q", 18: "Q"}


_RAW_MAGIC = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR")
_SENSOR_VALUES = (32803, 34892)  # photometric interpretation: a colour filter array, or linear RAW
_MAX_IFDS, _MAX_ENTRIES = 32, 1000


def is_raw(data: bytes) -> bool:
    """Tell whether these bytes are a camera's RAW file; not every camera's can be told by content."""
    if data.startswith(_RAW_MAGIC) or data[4:12] == b"ftypcrx ":
        return True
    return data[:4] in (b"II*\0", b"MM\0*") and (data[8:10] == b"CR" or _holds_sensor_values(data))


def _holds_sensor_values(tiff: bytes) -> bool:
    """Tell whether one of a TIFF's directories, or of those below them, is of RAW values."""
    order = "<" if tiff[:2] == b"II" else ">"
    todo, seen = [struct.unpack_from(order + "I", tiff, 4)[0]] if len(tiff) >= 8 else [], set[int]()
    while todo and len(seen) < _MAX_IFDS:
        at = todo.pop(0)
        if at in seen or at == 0:
            continue
        seen.add(at)
        with suppress(struct.error):  # it ends outside the file
            (count,) = struct.unpack_from(order + "H", tiff, at)
            for i in range(min(count, _MAX_ENTRIES)):
                tag, kind, n, value = struct.unpack_from(order + "HHII", tiff, at + 2 + 12 * i)
                if tag == 50706:
                    return True
                (short,) = struct.unpack_from(order + "H", tiff, at + 10 + 12 * i)
                if tag == 262 and short in _SENSOR_VALUES:
                    return True
                if tag == 330 and kind in (4, 13):
                    n = min(n, _MAX_IFDS)
                    todo += [value] if n == 1 else struct.unpack_from(f"{order}{n}I", tiff, value)
            todo.append(struct.unpack_from(order + "I", tiff, at + 2 + 12 * count)[0])
    return False


class _Tiff:
    """The first directory of a TIFF, and the same file with another."""

    def __init__(self, data: bytes):
        self.data, self.order, self.big = data, "<" if data[:2] == b"II" else ">", 43 in data[2:4]
        head, count, self.entry = ("8xQ", "Q", 20) if self.big else ("4xI", "H", 12)
        self.entries: dict[int, bytes] = {}
        with suppress(struct.error, OverflowError):  # it ends outside the file
            (at,) = struct.unpack_from(self.order + head, data)
            (n,) = struct.unpack_from(self.order + count, data, at)
            at += struct.calcsize(count)
            for i in range(min(n, 10_000)):
                entry = data[at + i * self.entry : at + (i + 1) * self.entry]
                self.entries[struct.unpack_from(self.order + "H", entry)[0]] = entry

    def __call__(self, tag: int) -> tuple[Any, ...]:
        """Return the numbers of a tag; () if there are none."""
        with suppress(struct.error, OverflowError, KeyError, ZeroDivisionError):
            entry = self.entries[tag]
            kind, count = struct.unpack_from(self.order + ("2xHQ" if self.big else "2xHI"), entry)
            values = f"{self.order}{count * len(_TYPES[kind])}{_TYPES[kind][0]}"
            field, size = entry[-8:] if self.big else entry[-4:], struct.calcsize(values)
            if size > len(self.data):
                return ()
            at = struct.unpack(self.order + ("Q" if self.big else "I"), field)[0]
            found = struct.unpack_from(
                values, field if size <= len(field) else self.data, at if size > len(field) else 0
            )
            return tuple(a / b for a, b in zip(found[::2], found[1::2], strict=True)) if kind == 5 else found
        return ()

    def changed(self, changes: dict[int, tuple[int, ...]], kept: frozenset[int] | None = None) -> bytes:
        """Return the file with a directory at its end that has other values for some tags; () leaves a tag out."""
        entries = {tag: entry for tag, entry in self.entries.items() if kept is None or tag in kept}
        tail = bytearray()
        wide, room, front = ("Q", 8, "HHQ") if self.big else ("I", 4, "HHI")
        for tag, values in changes.items():
            entries.pop(tag, None)
            if values:
                kind, letter = (4, "I") if tag in _LONG else (3, "H")
                field = struct.pack(f"{self.order}{len(values)}{letter}", *values)
                if len(field) > room:
                    tail += field
                    field = struct.pack(self.order + wide, len(self.data) + len(tail) - len(field))
                entries[tag] = struct.pack(self.order + front, tag, kind, len(values)) + field.ljust(room, b"\0")
        at = struct.pack(self.order + wide, len(self.data) + len(tail))
        tail += struct.pack(self.order + ("Q" if self.big else "H"), len(entries))
        tail += b"".join(entries[tag] for tag in sorted(entries)) + bytes(room)
        return self.data[:room] + at + self.data[2 * room :] + tail


class TiffKind:
    """What a TIFF's tags say of its pixels.

    Args:
        get: a tag's numbers, () where it is absent.
        order: of the bytes, "<" or ">".

    Attributes:
        planes: each sample lies in a plane of its own, and Pillow may misread them.
        levels: the values of black and white, of grey pixels that Pillow does not scale; None for others.
        misread: Pillow's pixels are not what the file says.

    Raises:
        NotReadError: it is not in the table.
    """

    def __init__(self, get: Callable[[int], tuple[Any, ...]], order: str):
        def one(tag: int, default: int) -> int:
            return int((get(tag) or (default,))[0])

        self.compression = one(259, 1)
        if self.compression not in _COMPRESSIONS:
            name = _UNREAD_COMPRESSIONS.get(self.compression, self.compression)
            raise NotReadError(f"TIFF with compression {name} is not read")
        self.photometric = 6 if self.compression == 6 else one(262, 0)
        colours = _PHOTOMETRIC.get(self.photometric, f"photometric interpretation {self.photometric}")
        if self.photometric not in _SAMPLES:
            raise NotReadError(f"TIFF with {colours} samples is not read")
        own = _SAMPLES[self.photometric]
        self.samples = one(277, own if self.compression == 6 else 1)
        depths, formats = set(get(258)[: self.samples] or (1,)), set(get(339)[: self.samples] or (1,))
        if self.photometric == 6 and self.samples == 1:  # a YCbCr of which only Y is there
            own = 1
        self.extra = tuple(2 if kind == 999 else kind for kind in get(338))[: max(self.samples - own, 0)]
        if self.photometric == 2 and self.samples == 4 and not self.extra:
            self.extra = (2,)  # as many write it
        self.bits, self.format = max(depths), max(formats)
        self.inverted = self.photometric == 0
        samples = "{}{}-bit {}".format(
            {2: "signed ", 3: "float ", 5: "complex ", 6: "complex "}.get(self.format, ""), self.bits, colours
        )
        if len(depths) > 1 or len(formats) > 1:
            raise NotReadError(f"TIFF with {colours} samples of different sizes or kinds is not read")
        self.undefined = self.format == 4
        allowed = _TIFF[self.photometric or 1].get((1 if self.undefined else self.format, self.bits))
        if allowed is None:
            raise NotReadError(f"TIFF with {samples} samples is not read")
        if self.samples < own:
            raise NotReadError(f"TIFF with {self.samples} of {own} {colours} samples is not read")
        if self.samples > own:
            alpha = self.extra[:1] in ((1,), (2,))
            more = "alpha" if alpha else f"{self.samples - own} more"
            if (
                len(self.extra) != self.samples - own
                or len(self.extra) > allowed
                or any(self.extra[alpha:])
                or (alpha and self.photometric == 5)
                or (self.photometric == 3 and self.extra[0] == 1)
            ):
                raise NotReadError(f"TIFF with {samples} samples and {more} is not read")
        if self.photometric == 5 and one(332, 1) != 1:
            raise NotReadError("TIFF with inks other than CMYK is not read")
        layout = tuple(get(530)) or (2, 2)
        in_planes = one(284, 1) == 2
        if (
            in_planes
            and self.samples > 1
            and (self.photometric in (3, 8) or (self.photometric == 6 and layout != (1, 1)))
        ):
            raise NotReadError(f"TIFF with {samples} samples in planes is not read")
        self.planes = in_planes and self.samples > 1 and self.photometric != 6
        self.single_plane = in_planes and self.samples == 1
        self.few_colours = self.photometric == 3 and max(get(320), default=256) < 256
        # libtiff reads these well, Pillow's own decoder only in their simplest form.
        self.plain_ycbcr = (
            self.photometric == 6
            and self.compression == 1
            and (in_planes or layout != (1, 1) or bool(get(529)) or bool(get(532)))
        )
        # libtiff puts samples into this machine's order, and Pillow does it again.
        self.turned_twice = order == ">" and self.bits == 32 and self.compression != 1
        self.misread = (
            self.single_plane or self.few_colours or self.plain_ycbcr or self.turned_twice
            or (self.planes and (self.bits != 8 or self.photometric not in (2, 5) or self.extra != ()))
        )  # fmt: skip
        self.levels: tuple[float, float] | None = None
        if self.samples == 1 and self.photometric < 2 and self.bits >= 12:
            white = 1.0 if self.format == 3 else 2.0**self.bits - 1
            self.levels = (white, 0.0) if self.inverted else (0.0, white)


def _kind_of(image: TiffImagePlugin.TiffImageFile) -> TiffKind:
    def get(tag: int) -> tuple[Any, ...]:
        with suppress(Exception):  # it cannot be read
            value = image.tag_v2.get(tag, ())
            return tuple(value) if isinstance(value, (tuple, bytes)) else (value,)
        return ()

    return TiffKind(get, "<" if image.tag_v2.prefix == b"II" else ">")


def loaded_levels(image: TiffImagePlugin.TiffImageFile) -> tuple[float, float] | None:
    """Return `TiffKind.levels` of an image that Pillow has opened and loaded.

    Raises:
        NotReadError: a kind that is not read, or that Pillow has misread.
    """
    kind = _kind_of(image)
    if kind.misread:
        raise NotReadError("Pillow misreads this kind of TIFF: give its path, or the image before it is loaded")
    return kind.levels


def _open_tiff(data: bytes) -> Image.Image:
    if is_raw(data):
        raise NotReadError("camera RAW is not read here, since what Pillow sees of it is a thumbnail")
    tiff = _Tiff(data)
    if tiff.big and tiff.order == ">":
        raise NotReadError("big-endian BigTIFF is not read")
    kind = TiffKind(tiff, tiff.order)
    changes: dict[int, tuple[int, ...]] = {}
    if kind.undefined:
        changes[339] = (1,) * kind.samples
    if kind.planes:
        return _tiff_of_planes(tiff, kind)
    if kind.single_plane:
        changes[284] = (1,)  # Pillow would look for several
    if kind.levels and kind.inverted:
        changes[262] = (1,)  # Pillow does not invert them, and for some has no mode
    if kind.few_colours:
        changes[320] = tuple(257 * value for value in tiff(320))  # of 8 bits, against the specification
    if kind.plain_ycbcr:
        tiff.data, moved = _deflated(tiff)
        changes |= moved
    if tiff.order == ">" and kind.bits == 12:
        raise NotReadError("big-endian TIFF with 12-bit grey samples is not read")
    if tiff.order == ">" and kind.bits == 32 and kind.format == 1:
        changes[339] = (2,)  # Pillow has no mode for them; bit for bit the same
    image = _open(tiff.changed(changes) if changes else data)
    if kind.turned_twice:
        for i, tile in enumerate(image.tile):
            assert isinstance(tile.args, tuple)
            image.tile[i] = tile._replace(args=(tile.args[0].replace("B", ""), *tile.args[1:]))
    if kind.levels:
        image.info[LEVELS] = kind.levels
    return image


def _deflated(tiff: _Tiff) -> tuple[bytes, dict[int, tuple[int, ...]]]:
    where, length = (324, 325) if tiff(324) else (273, 279)
    parts = [zlib.compress(tiff.data[at : at + n], 0) for at, n in zip(tiff(where), tiff(length), strict=False)]
    ends = np.cumsum([len(tiff.data), *map(len, parts)]).tolist()
    moved = {259: (8,), 317: (), where: tuple(ends[:-1]), length: tuple(map(len, parts))}
    return b"".join((tiff.data, *parts)), moved


def _tiff_of_planes(tiff: _Tiff, kind: TiffKind) -> Image.Image:
    """Open a picture whose samples lie in planes, each of them as a grey one."""
    where, length = (324, 325) if tiff(324) else (273, 279)
    parts = len(tiff(where)) // kind.samples
    alpha = 1 if kind.extra[:1] in ((1,), (2,)) else 0
    planes: list[Image.Image] = []
    info: dict[Any, Any] = {}
    for i in range(kind.samples - len(kind.extra) + alpha):
        own = slice(i * parts, (i + 1) * parts)
        changes = {258: (kind.bits,), 262: (1,), 277: (1,), 284: (1,), 338: (), 339: (1,), 332: ()}
        plane = _open(tiff.changed(changes | {where: tiff(where)[own], length: tiff(length)[own]}))
        values = np.asarray(plane)  # upright
        if kind.bits == 16:
            values = values >> 8  # as Pillow does where samples lie side by side
        planes.append(Image.fromarray((~values if kind.inverted and i == 0 else values).astype(np.uint8)))
        info = info or plane.info | {"exif": plane.getexif().tobytes()}
    mode = {1: "L", 2: "RGB", 5: "CMYK"}[kind.photometric or 1]
    if alpha:
        mode += "a" if kind.extra[0] == 1 else "A"
    image = Image.merge(mode, planes)
    if mode in ("La", "RGBa"):
        image = image.convert(mode.upper())
    image.format, image.info = "TIFF", info
    return image


def _tiff_versions(data: bytes) -> Iterator[bytes]:
    yield data
    tiff = _Tiff(data)
    before = len(tiff.entries)
    for kept in (_PICTURE | {274, 34675}, _PICTURE):
        n = len(kept & tiff.entries.keys())
        if 0 < n < before:
            yield tiff.changed({}, kept)
            before = n


def _avif_versions(data: bytes) -> Iterator[bytes]:
    yield data
    if b"Exif" in data:  # a kind of item; those of unknown kinds are skipped
        yield data.replace(b"Exif", b"none")


_STARTS = {
    "JPEG": re.compile(rb"\xff\xd8\xff"),
    "PNG": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "BMP": re.compile(rb"BM"),
    "TIFF": re.compile(rb"II[*+]\0|MM\0[*+]|MM\*\0|II\0\*"),
    "PPM": re.compile(rb"P[0-7Ffy]"),
    "GIF": re.compile(rb"GIF8[79]a"),
    "WEBP": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
    "AVIF": re.compile(rb".{4}ftyp(avi[fs]|mif1|msf1)", re.DOTALL),
}
_VERSIONS = {"JPEG": _jpeg_versions, "PNG": _png_versions, "TIFF": _tiff_versions, "AVIF": _avif_versions}
_OPENERS = {"JPEG": _open_jpeg, "PNG": _open_png, "BMP": _open_bmp, "PPM": _open_pnm, "TIFF": _open_tiff}
