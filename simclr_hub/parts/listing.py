"""Sources to items of a plan: an image, an archive, or some rows of a Parquet file; listed once."""

import io
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple

from ..archives import SUFFIXES, is_archive
from ..errors import PartsError, RootUnavailableError
from ..images import is_image_name
from ..index.paths import is_below
from ..scan import Rules, scan_whole
from .storage import as_place, is_remote, locate, open_file, pyarrow, size_and_time

#: What a text file of places is named like.
LISTS = (".txt", ".list", ".uris")
#: Columns with the bytes of images, as data sets and img2dataset name them; and with an image's name in its data set.
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "image_bytes", "content")
KEY_COLUMNS = ("key", "__key__", "id", "image_id", "uid")
#: Bytes of a line of a list.
_LINE = 1 << 13


class Item(NamedTuple):
    """Describe what is read as one: an image, an archive, or rows of a Parquet file."""

    place: bytes  # as `storage.as_place` says; bytes, since file names need not be text
    kind: str  # "image", "archive", "parquet"
    first: int = 0  # of a Parquet file's rows
    images: int | None = 1  # how many; None: what an archive holds is known when it was read
    size: int | None = None  # of the file in bytes, and its time in ns, when it was listed; None: not looked at
    mtime_ns: int | None = None
    column: str | None = None  # of a Parquet file: what holds the images

    @property
    def text(self) -> str:
        """Return the place as text, which opens it."""
        return os.fsdecode(self.place)


class Lister:
    """The items of some sources.

    Args:
        given: what a user named: folders, image files, archives, Parquet files, and text files with a place a line.
        rules: what of local folders is left out.
        images: rows of a Parquet file that are an item, at most, if its row groups allow.
        column: what holds the images in Parquet files; None: found by its name.

    Attributes:
        roots: folders, archives, Parquet files and buckets that hold all so far; none contains another.
        folders: local folders that were given, where nothing is written.
        skipped: how many files were left out, by reason.

    Raises:
        PartsError: a source that is none, is not there, or lies in another.
    """

    def __init__(self, given: tuple[str, ...], rules: Rules, images: int, column: str | None):
        self._places = [as_place(one) for one in given]
        self._rules, self._images, self._column = rules, images, column
        self.roots: list[bytes] = []
        self.folders: list[str] = []
        self.skipped: Counter[str] = Counter()
        for i, one in enumerate(self._places):
            for other in self._places[:i]:
                a, b = os.fsencode(one).rstrip(b"/"), os.fsencode(other).rstrip(b"/")
                if is_below(a, b) or is_below(b, a):
                    raise PartsError(f"{one} and {other}: one is in the other, so its images would be embedded twice")

    def items(self) -> Iterator[Item]:
        """Yield what there is in the sources, in their order.

        Raises:
            PartsError: nothing there, of an unknown kind, or damaged.
            RootUnavailableError: a folder that cannot be listed.
        """
        for place in self._places:
            found = False
            for item in self._of(place):
                found = True
                yield item
            if not found:
                told = ", ".join(f"{n:,} {why}" for why, n in sorted(self.skipped.items()))
                raise PartsError(f"{place}: no image, archive or Parquet file in it{f' ({told})' if told else ''}")

    def _of(self, place: str) -> Iterator[Item]:
        info = _info(place)
        if info is None or (is_remote(place) and place.count("/") == 2):
            yield from self._folder(place)
        elif place.lower().endswith(LISTS):
            yield from self._list(place)
        else:
            self._hold(os.path.dirname(place) if is_image_name(place) else place)
            yield from self._file(place, *info)

    def _hold(self, folder: str) -> None:
        """Make sure that a root holds what is in a folder."""
        path = os.fsencode(folder).rstrip(b"/") or b"/"
        if not any(is_below(path, root) for root in self.roots):
            self.roots = [*(root for root in self.roots if not is_below(root, path)), path]

    def _folder(self, place: str) -> Iterator[Item]:
        self._hold(place)
        if is_remote(place):
            yield from self._bucket(place.rstrip("/"))
            return
        self.folders.append(place)
        try:
            root, listing = scan_whole(place, self._rules, _is_wanted)
        except RootUnavailableError as e:
            raise PartsError(str(e)) from e
        self.skipped.update(listing.skipped)
        for path in sorted(listing.photos):
            if _beside_archive(path, listing.photos):
                self._beside(os.fsdecode(os.path.join(root, path)))
                continue
            found = listing.photos[path]
            yield from self._file(os.fsdecode(os.path.join(root, path)), found.size, found.mtime_ns)

    def _bucket(self, place: str) -> Iterator[Item]:
        """List a "folder" of a bucket: one after another, so that only one's names are in memory."""
        system, path = locate(place)
        try:
            found = system.get_file_info(pyarrow().fs.FileSelector(path))
        except OSError as e:
            raise PartsError(f"{place}: {e}") from e
        entries = sorted(found, key=lambda info: info.base_name)
        names = {os.fsencode(info.base_name) for info in entries}
        for info in entries:
            name, there = info.base_name, f"{place}/{info.base_name}"
            if name.startswith((".", "_")):
                self.skipped["hidden"] += 1
            elif not info.is_file:
                yield from self._bucket(there)
            elif _beside_archive(os.fsencode(name), names):
                self._beside(there)
            elif not _is_wanted(os.fsencode(name)):
                self.skipped["not an image by its name"] += 1
            else:
                yield from self._file(there, info.size, info.mtime_ns)

    def _beside(self, place: str) -> None:
        """Leave out the table beside an archive, counting the images that img2dataset could not get."""
        self.skipped["img2dataset's table beside an archive"] += 1
        pa = pyarrow()
        with suppress(pa.ArrowException, OSError, KeyError, ValueError), open_file(place) as raw:
            status = pa.parquet.ParquetFile(raw).read(columns=["status"])["status"].to_pylist()
            if lost := sum(one != "success" for one in status):
                self.skipped["not downloaded, as img2dataset's table says"] += lost

    def _list(self, place: str) -> Iterator[Item]:
        """Read a text file with a place a line; images are not looked at, archives and Parquet files are."""
        common: dict[str, str] = {}  # the folder above all so far, for each bucket and for the disk
        with open_file(place) as file:
            lines = io.BufferedReader(file)  # type: ignore[type-var]
            for number, line in enumerate(iter(lambda: lines.readline(_LINE + 1), b""), 1):
                if len(line) > _LINE or b"\0" in line:
                    raise PartsError(
                        f"{place}: line {number:,}: not a place; give a text file with a path or URI a line"
                    )
                text = os.fsdecode(line).strip("\r\n")
                if not text.strip():
                    continue
                try:
                    one = as_place(text)
                except PartsError as e:
                    raise PartsError(f"{place}: line {number:,}: {e}") from e
                where = "/".join(one.split("/")[:3]) if is_remote(one) else ""
                folder = os.path.dirname(one)
                common[where] = where or os.path.commonpath([common.get(where, folder), folder])
                if is_image_name(one):
                    yield Item(os.fsencode(one), "image")
                elif (info := _info(one)) is not None:
                    yield from self._file(one, *info)
                else:
                    raise PartsError(f"{place}: line {number:,}: {one}: a folder; give files")
        for folder in common.values():
            self._hold(folder)

    def _file(self, place: str, size: int, mtime_ns: int | None) -> Iterator[Item]:
        name = os.fsencode(place)
        if is_archive(place):
            yield Item(name, "archive", 0, None, size, mtime_ns)
        elif place.lower().endswith(".parquet"):
            yield from self._table(place, size, mtime_ns)
        elif is_image_name(place):
            yield Item(name, "image", 0, 1, size, mtime_ns)
        else:
            known = ", ".join((*SUFFIXES, ".parquet", *LISTS))
            raise PartsError(f"{place}: no folder, no image by its name, and none of {known}")

    def _table(self, place: str, size: int, mtime_ns: int | None) -> Iterator[Item]:
        """Yield the rows of a Parquet file as items of whole row groups."""
        pa = pyarrow()
        try:
            with open_file(place) as raw:
                file = pa.parquet.ParquetFile(raw)
                column = image_column(file.schema_arrow, place, self._column)
                groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        except pa.ArrowException as e:
            raise PartsError(f"{place}: damaged, or not a Parquet file: {e}") from e
        first = count = 0
        for rows in groups:
            if count and count + rows > self._images:
                yield Item(os.fsencode(place), "parquet", first, count, size, mtime_ns, column)
                first, count = first + count, 0
            count += rows
        if count:
            yield Item(os.fsencode(place), "parquet", first, count, size, mtime_ns, column)


def image_column(schema: Any, place: str, wanted: str | None) -> str:
    """Return the column of a Parquet file that holds images: bytes, or {"bytes", "path"} as data sets have them.

    Raises:
        PartsError: none, or several.
    """
    types = pyarrow().types

    def holds(kind: Any) -> bool:
        if types.is_struct(kind):
            return any(field.name == "bytes" and _is_binary(field.type) for field in kind)
        return _is_binary(kind)

    def _is_binary(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    held = [field.name for field in schema if holds(field.type)]
    found = [name for name in held if name == wanted or (wanted is None and name.lower() in IMAGE_COLUMNS)]
    if len(found) != 1:
        told = f"has the columns of bytes {', '.join(held)}" if held else "has no column of bytes"
        raise PartsError(f"{place}: {told}; name the one with the images: --column NAME, or leave the file out")
    return str(found[0])


def _is_wanted(name: bytes) -> bool:
    lower = name.lower()
    return is_image_name(name) or lower.endswith(b".parquet") or is_archive(os.fsdecode(lower))


def _beside_archive(path: bytes, others: Any) -> bool:
    """Return whether this is the table that img2dataset writes beside an archive: it holds no images."""
    return path.lower().endswith(b".parquet") and path[: -len(".parquet")] + b".tar" in others


def _info(place: str) -> tuple[int, int | None] | None:
    """Return a file's size and time; None for a folder.

    Raises:
        PartsError: nothing is there, or it is no regular file.
    """
    try:
        return size_and_time(place)
    except (OSError, ValueError) as e:  # of a bucket, also that the keys are wrong or nobody answers
        missing = isinstance(e, FileNotFoundError) or not is_remote(place)
        raise PartsError(f"{place}: {'no such file or folder' if missing else e}") from e
