"""The images of a part, one after another, from wherever they lie: files, archives, Parquet files, buckets.

What is wrong with an image is an `UnusableImage` in its place. What is wrong with a disk or a network raises OSError,
so that the part is not written and is tried again: a row would say for ever that a good image cannot be read.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import IO, Any

from .._threads import Pool
from ..archives import archive_images
from ..errors import CorruptImageError, ImageError, ImageTooLargeError, PartsError, UnreadableImageError
from ..images import MAX_BYTES, FileBytes, UnusableImage, describe, read_file
from ..scan import FileStat
from .listing import KEY_COLUMNS, Item
from .storage import is_remote, open_file, pyarrow, size_and_time

#: Files that are read at the same time, and so many ahead: a bucket answers late, but many at once.
READERS, AHEAD = 16, 32
#: What an operating system says of a file that another try would not read, either.
_FINAL = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO}
#: Bytes of a row group of images, which a reader holds at once.
_GROUP_LIMIT = 1 << 32


@dataclass(frozen=True)
class Found:
    """One image of a part.

    Attributes:
        item: the position of its item in the part.
        position: its own in the item: 0, the n-th image of an archive, or a row of a Parquet file.
        place: its file, then the name in an archive, or the row.
        key: its name in its data set, if it has one.
        stat: of its file as it was read; all that is known, if it lies elsewhere or in another.
        image: what `Embedder.stream` takes.
        gone: there is no such file.
    """

    item: int
    position: int
    place: bytes
    key: str | None
    stat: FileStat
    image: FileBytes | UnusableImage
    gone: bool = False


def read_images(items: Sequence[Item]) -> Iterator[Found]:
    """Yield the images of a part's items, in their order.

    Raises:
        OSError: a file that may be readable another time.
        PartsError: an archive or a Parquet file is not what was listed.
    """
    with Pool(READERS, "simclr-read") as pool:
        numbered = [(number, item) for number, item in enumerate(items) if item.kind == "image"]
        yield from (found for _, found in pool.map(lambda pair: _read_file(*pair), numbered, AHEAD))
    for number, item in enumerate(items):
        if item.kind != "image":
            yield from _read_within(number, item)


def _read_file(number: int, item: Item) -> Found:
    stat, gone = FileStat(item.size or 0, item.mtime_ns or 0, 0, 0), False
    try:
        if is_remote(item.text):
            image: FileBytes | UnusableImage = FileBytes(describe(item.text), _read_object(item.text))
        else:
            data, found = read_file(os.path.realpath(item.place) if os.path.islink(item.place) else item.place)
            image, stat = FileBytes(describe(item.text), data), FileStat.of(found)
    except FileNotFoundError as e:
        image, gone = UnusableImage(describe(item.text), UnreadableImageError(f"{describe(item.text)}: {e}")), True
    except ImageError as e:
        cause = e.__cause__
        if isinstance(cause, OSError) and cause.errno not in _FINAL:
            raise OSError(cause.errno, str(e)) from e
        image, gone = UnusableImage(describe(item.text), e), isinstance(cause, FileNotFoundError)
    return Found(number, 0, item.place, None, stat, image, gone)


def _read_object(place: str) -> bytes:
    """Read an object of a bucket, in one request.

    Raises:
        OSError: it cannot be read now.
        ImageError: it is empty or too large.
    """
    with open_file(place) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ImageTooLargeError(f"{describe(place)}: more than {MAX_BYTES:,} bytes")
    if not data:
        raise UnreadableImageError(f"{describe(place)}: empty file")
    return data


def _read_within(number: int, item: Item) -> Iterator[Found]:
    """Yield the images of an archive or of rows of a Parquet file."""
    _check_unchanged(item)
    stat = FileStat(item.size or 0, item.mtime_ns or 0, 0, 0)
    with closing(_Watched(open_file(item.text))) as file:
        read = _archive(item, file) if item.kind == "archive" else _rows(item, file)
        position = item.first
        while (one := next(read, None)) is not None:
            if file.error:  # not the archive's fault
                raise file.error
            name, key, image = one
            yield Found(number, position, item.place + b"/" + name, key, stat, image)
            position += 1
        if file.error:
            raise file.error


def _check_unchanged(item: Item) -> None:
    if size_and_time(item.text) != (item.size, item.mtime_ns):
        raise PartsError(f"{item.text}: changed since it was planned; plan again")


def _archive(item: Item, file: "_Watched") -> Iterator[tuple[bytes, str | None, FileBytes | UnusableImage]]:
    above, seen = describe(item.text), set()
    for position, image in enumerate(archive_images(item.text, file=file)):  # type: ignore[arg-type]
        member = image.name[len(above) + 1 :]
        # A name is a path below the archive, whatever the archive says, and no two are the same.
        name = "/".join(part for part in member.split("/") if part not in ("", ".", ".."))
        name = f"{name}#{position}" if name in seen or not name else name  # none: of the archive itself
        seen.add(name)
        folder, _, base = member.rpartition("/")
        key = f"{folder}/{base.partition('.')[0]}" if folder else base.partition(".")[0]  # as WebDataset
        yield os.fsencode(name), key or None, image


def _rows(item: Item, file: "_Watched") -> Iterator[tuple[bytes, str | None, FileBytes | UnusableImage]]:
    pa, row, end = pyarrow(), item.first, item.first + (item.images or 0)
    name = describe(item.text)
    try:
        table = pa.parquet.ParquetFile(pa.PythonFile(file, "r"), page_checksum_verification=True)
        keys = [one for one in KEY_COLUMNS if one in table.schema_arrow.names]
        columns = [str(item.column), *keys[:1]]
        before = 0
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            if item.first <= before < end:
                if about.total_byte_size > _GROUP_LIMIT:
                    raise PartsError(f"{name}: a row group of {about.total_byte_size:,} bytes; write smaller ones")
                for batch in table.iter_batches(64, row_groups=[group], columns=columns, use_threads=False):
                    for value, *key in zip(*(batch.column(c).to_pylist() for c in columns), strict=True):
                        shown = f"{name}/{row}"
                        data = value.get("bytes") if isinstance(value, dict) else value
                        image: FileBytes | UnusableImage = (
                            FileBytes(shown, data)
                            if data
                            else UnusableImage(shown, UnreadableImageError(f"{shown}: no bytes in this row"))
                        )
                        yield b"%d" % row, None if not key or key[0] is None else str(key[0])[:1000], image
                        row += 1
            before += about.num_rows
    except (pa.ArrowException, OSError, KeyError) as e:
        if file.error is None:  # damaged: each row that is lost is one
            for lost in range(row, end):
                yield b"%d" % lost, None, UnusableImage(f"{name}/{lost}", CorruptImageError(f"{name}/{lost}: {e}"))


class _Watched:
    """A file that is read by a library which takes any error for damage: the file's own are kept in `error`."""

    closed = False

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        """Read bytes."""
        try:
            return self._file.read(size)
        except OSError as e:
            self.error = e
            raise

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        self._file.close()
