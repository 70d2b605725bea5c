"""The images in a zip or tar file, one after another: nothing is written to the disk, and a tar is only streamed.

What cannot be used (an encrypted member, an archive in the archive, a bomb, a cut-off end) comes out in its place as
an `UnusableImage`, so that it becomes one failure and the rest is read on.
"""

import bz2
import copy
import gzip
import lzma
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import repeat
from typing import IO, Any, cast

from .errors import CorruptImageError, ImageError, ImageTooLargeError, UnreadableImageError, UnsupportedImageError
from .images import MAX_BYTES, FileBytes, UnusableImage, describe, is_image_name

#: What is larger than `_SMALL` unpacked must not have been packed tighter than this.
MAX_RATIO = 200
SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")

_NESTED = (*SUFFIXES, ".7z", ".rar", ".tar.zst")
_SMALL, _MUCH = 1 << 26, 1 << 30  # of one, and of all in a zip file together
_MEMORY = 1 << 28  # of a decompressor; xz -9 takes 65 MiB
_HEADERS = 1 << 20  # of one tar member: names and attributes
_CHUNK = 1 << 20
_PATIENCE = 64  # reads at the end, of which tarfile makes a few
#: What the standard library raises on damaged archives.
_DAMAGED = (
    OSError, EOFError, ValueError, IndexError, KeyError, OverflowError, NotImplementedError, RuntimeError,
    zipfile.BadZipFile, tarfile.TarError, struct.error, zlib.error, lzma.LZMAError, MemoryError,
)  # fmt: skip


def is_archive(path: Any) -> bool:
    """Return whether this is a path of a file that `archive_images` reads, by its suffix."""
    return isinstance(path, (str, os.PathLike)) and os.fsdecode(path).lower().endswith(SUFFIXES)


def archive_images(
    path: str | os.PathLike[str], chosen: Iterator[bool] | None = None, file: IO[bytes] | None = None
) -> Iterator[FileBytes | UnusableImage]:
    """Yield the image files in a zip or tar archive by their suffix, in its order, named "archive/member".

    Args:
        path: .zip, .tar, or a tar packed by gzip, bzip2 or xz, as WebDataset's shards.
        chosen: drawn from once for each source, endless: whether it is wanted; a zip file's others are not read, a
            tar's are streamed past. None wants all.
        file: what lies at `path`, open for reading, where that is no local file; None opens it.

    Yields:
        Sources for `load_image` and `Embedder.stream`, also for what went wrong; the archive itself may be one.
    """
    name = describe(path)
    chosen = repeat(True) if chosen is None else chosen
    read = _zip_images if os.fsdecode(path).lower().endswith(".zip") else _tar_images
    try:
        yield from read(path if file is None else file, name, chosen)
    except _DAMAGED as e:
        if isinstance(e, ImageError):
            error: ImageError = e
        elif isinstance(e, OSError) and e.errno is not None:
            error = UnreadableImageError(f"{name}: {e.strerror}")
        else:
            error = CorruptImageError(f"{name}: damaged archive: {e or type(e).__name__}; what comes after is lost")
        if next(chosen):
            yield UnusableImage(name, error)


def _zip_images(
    path: str | os.PathLike[str] | IO[bytes], name: str, chosen: Iterator[bool]
) -> Iterator[FileBytes | UnusableImage]:
    packed = unpacked = 0
    with zipfile.ZipFile(path) as archive:
        overlapping = _overlapping(archive.infolist())
        for member in archive.infolist():
            shown = f"{name}/{describe(member.filename)}"
            if member.is_dir() or member.filename.startswith("__MACOSX/"):  # attributes under the images' names
                continue
            refused = _refused(shown, member.filename, member.file_size)
            if (refused is None and not is_image_name(member.filename)) or not next(chosen):
                continue
            if refused is None:
                if member.flag_bits & 1:
                    refused = UnsupportedImageError(f"{shown}: encrypted; unpack it with its password first")
                elif member.file_size > max(_SMALL, MAX_RATIO * member.compress_size):
                    refused = _bomb(shown)
                elif member.header_offset in overlapping:
                    refused = CorruptImageError(f"{shown}: its bytes are another member's, too")
                elif unpacked + member.file_size > max(_MUCH, MAX_RATIO * (packed + member.compress_size)):
                    refused = _bomb(f"{shown} and what stands before it")
                else:
                    packed, unpacked = packed + member.compress_size, unpacked + member.file_size
            yield _zip_member(archive, member, shown) if refused is None else UnusableImage(shown, refused)


def _zip_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, shown: str) -> FileBytes | UnusableImage:
    try:
        if member.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            return FileBytes(shown, _unpacked(archive, member))
        with archive.open(member) as file:
            data = file.read(member.file_size + 1)  # the checksum is compared at the end
        if len(data) < member.file_size:
            raise EOFError("it is less than was announced")
        return FileBytes(shown, data)
    except MemoryError:
        return UnusableImage(shown, ImageTooLargeError(f"{shown}: more memory than there is"))
    except _DAMAGED as e:
        return UnusableImage(shown, CorruptImageError(f"{shown}: damaged in the archive: {e or type(e).__name__}"))


def _overlapping(members: list[zipfile.ZipInfo]) -> set[int]:
    """Return the offsets of members that share bytes with a later one: a bomb without a high ratio."""
    found: set[int] = set()
    end = 0
    for member in sorted(members, key=lambda m: m.header_offset):
        if member.header_offset < end:
            found.add(member.header_offset)
        end = max(end, member.header_offset + 30 + len(member.orig_filename) + member.compress_size)
    return found


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """Unpack a member of bzip2 or LZMA, of which zipfile unpacks all that a piece holds, whatever was announced.

    Raises:
        zipfile.BadZipFile: it is more, less or another than announced.
    """
    raw = copy.copy(member)
    raw.compress_type, raw.file_size, raw.CRC = zipfile.ZIP_STORED, raw.compress_size, None  # type: ignore[assignment]
    with archive.open(raw) as packed:
        if member.compress_type == zipfile.ZIP_BZIP2:
            data = _Pieces(packed, bz2.BZ2Decompressor).read(member.file_size + 1)
        else:
            size = int.from_bytes(packed.read(4)[2:], "little")
            options = lzma._decode_filter_properties(lzma.FILTER_LZMA1, packed.read(size))  # type: ignore[attr-defined]
            # Nothing can refer further back than to the beginning, so that a larger window is memory for nothing.
            options["dict_size"] = min(options["dict_size"], max(member.file_size, 4096))
            pieces = _Pieces(packed, lambda: lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[options]))
            data = pieces.read(member.file_size + 1)
    if len(data) != member.file_size or zlib.crc32(data) != member.CRC:
        raise zipfile.BadZipFile(f"it is not the {member.file_size:,} bytes that were announced")
    return data


def _tar_images(
    path: str | os.PathLike[str] | IO[bytes], name: str, chosen: Iterator[bool]
) -> Iterator[FileBytes | UnusableImage]:
    with open(path, "rb") if isinstance(path, (str, os.PathLike)) else nullcontext(path) as raw:
        stream = _Unpacked(raw, name)
        stream.allow(_HEADERS)
        with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", tarinfo=_Header) as archive:
            while member := archive.next():
                archive.members = []  # type: ignore[attr-defined]  # or a large shard's headers would pile up
                shown = f"{name}/{describe(member.name)}"
                refused = _refused(shown, member.name, member.size)
                is_source = member.isreg() and (refused is not None or is_image_name(member.name))
                wanted = is_source and next(chosen)
                if wanted and refused is None and member.issparse():
                    refused = UnsupportedImageError(f"{shown}: a sparse file is not read; store it plain")
                if wanted and refused is not None:
                    yield UnusableImage(shown, refused)
                elif wanted:
                    stream.allow(None)
                    data = cast(IO[bytes], archive.extractfile(member)).read(member.size)
                    if len(data) < member.size:
                        raise EOFError(f"it ends in {describe(member.name)}")
                    yield FileBytes(shown, data)
                # What tarfile passes over it does not keep; what it reads as a header, it does.
                stream.allow(_HEADERS + archive.offset - archive.fileobj.tell())


class _Header(tarfile.TarInfo):
    """A member's header; a damaged one is an error, where tarfile would take it for the end."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(str(e)) from e


def _refused(shown: str, member: str, size: int) -> ImageError | None:
    """Return why a member is not even looked at, if so."""
    if member.lower().endswith(_NESTED):
        return UnsupportedImageError(f"{shown}: an archive inside an archive is not opened; unpack it first")
    if is_image_name(member) and size > MAX_BYTES:
        return ImageTooLargeError(f"{shown}: {size:,} bytes, more than {MAX_BYTES:,}")
    return None


def _bomb(shown: str) -> ImageTooLargeError:
    return ImageTooLargeError(f"{shown}: packed more than {MAX_RATIO} times smaller than it is; unpack it first")


class _Pieces:
    """A file, unpacked as it is read, and never more than is asked for.

    Args:
        raw: the packed file.
        decompressor: makes one for each of its streams, which may stand one after another.
    """

    def __init__(self, raw: IO[bytes], decompressor: Callable[[], Any]):
        self._raw, self._new = raw, decompressor
        self._now: Any = decompressor()

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes, fewer only at the end.

        Raises:
            EOFError: nothing is left, and its end never came.
        """
        pieces: list[bytes] = []
        while size > 0:
            packed = b""
            if self._now.eof:
                packed = (self._now.unused_data or self._raw.read(_CHUNK)).lstrip(b"\0")  # xz pads with zeros
                if not packed:
                    break
                self._now = self._new()
            elif self._now.needs_input and not (packed := self._raw.read(_CHUNK)):
                if not pieces:
                    raise EOFError("it ends within what is packed")
                break
            piece = self._now.decompress(packed, max_length=size)
            pieces.append(piece)
            size -= len(piece)
        return b"".join(pieces)


class _Unpacked:
    """The bytes of a tar file, unpacked as they are read, within limits."""

    def __init__(self, raw: IO[bytes], name: str):
        self._raw, self._name, self._got, self._nothing = raw, name, 0, 0
        self._allowed: int | None = None
        magic = raw.read(6)
        raw.seek(0)
        self._file: Any = raw
        if magic.startswith(b"\x1f\x8b"):
            self._file = gzip.open(raw, "rb")
        elif magic.startswith(b"BZh"):
            self._file = _Pieces(raw, bz2.BZ2Decompressor)
        elif magic.startswith(b"\xfd7zXZ\0"):
            self._file = _Pieces(raw, lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY))

    def allow(self, most: int | None) -> None:
        """Set how many bytes may be read until the next call; what tarfile keeps in memory is bounded by it."""
        self._allowed = most

    def read(self, size: int) -> bytes:
        """Read at most `size` bytes, fewer only at the end."""
        data: bytes = self._file.read(size)
        self._got += len(data)
        self._nothing = 0 if data else self._nothing + 1
        if self._nothing > _PATIENCE:  # tarfile passes over a member of 2^63 bytes block by block, also after the end
            raise EOFError("it ends before a member does")
        if self._got > max(_SMALL, MAX_RATIO * self._raw.tell()):
            raise _bomb(self._name)
        if self._allowed is not None:
            self._allowed -= len(data)
            if self._allowed < 0:
                raise ImageTooLargeError(f"{self._name}: a member's header of more than {_HEADERS:,} bytes")
        return data

    def close(self) -> None:
        """Do nothing: the file is closed by who opened it."""
