"""Storage of images and parts: local folders, S3 and Google Cloud Storage, the latter through pyarrow's file systems.

A place is an absolute path, or "s3://bucket/key" or "gs://bucket/key" with the key as it is, nothing escaped. Keys,
regions and endpoints come from the environment alone (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...): in a URI they would
be in every plan, part and log.
"""

import errno
import glob
import os
import re
import stat
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit

from .._files import write_file
from .._text import shown
from ..errors import MissingExtraError, PartsError

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+.-]+)://")
_BUCKET = re.compile(r"(s3|gs)://[a-zA-Z0-9._-]+(/|\Z)")


def is_remote(place: str) -> bool:
    """Return whether a place is in a bucket."""
    return place.startswith(("s3://", "gs://"))


def as_place(given: str | os.PathLike[str]) -> str:
    """Return the place that a user named: a path, file://, s3:// or gs://.

    Raises:
        PartsError: another kind of URI, or one with a password or an endpoint in it.
    """
    text = os.fspath(given)
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if scheme == "file":
        return os.path.abspath(unquote(urlsplit(text).path))
    if not scheme:
        return os.path.abspath(os.path.expanduser(text))
    if scheme not in ("s3", "gs"):
        why = "download the images first, e.g. with img2dataset" if scheme.startswith("http") else "it cannot be read"
        raise PartsError(f"{shown(text)}: neither a path nor file://, s3:// or gs://; {why}")
    if not _BUCKET.match(text):
        raise PartsError(
            f"{shown(text)}: not {scheme}://BUCKET/KEY; keys and endpoints come from the environment, as "
            "AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL, not from the URI, since it is recorded"
        )
    return text


def pyarrow() -> Any:
    """Load pyarrow, its Parquet module and its file systems, not before they are needed."""
    try:
        import pyarrow
        import pyarrow.fs
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtraError("pyarrow", "cluster") from e
    return pyarrow


@lru_cache(maxsize=64)
def _bucket(scheme: str, name: str) -> Any:
    return pyarrow().fs.FileSystem.from_uri(f"{scheme}://{name}")[0]  # asks once for the bucket's region


def locate(place: str) -> tuple[Any, str]:
    """Return the pyarrow file system of a place in a bucket, and its path there."""
    scheme, _, path = place.partition("://")
    return _bucket(scheme, path.partition("/")[0]), path.rstrip("/")


def size_and_time(place: str) -> tuple[int, int | None] | None:
    """Return a file's size and time; None for a folder.

    Raises:
        OSError: nothing is there, or it is no regular file.
    """
    if is_remote(place):
        system, path = locate(place)
        info = system.get_file_info(path)
        if info.is_file:
            return info.size, info.mtime_ns
        if info.type == pyarrow().fs.FileType.Directory:
            return None
    else:
        found = os.stat(place)
        if stat.S_ISREG(found.st_mode):
            return found.st_size, found.st_mtime_ns
        if stat.S_ISDIR(found.st_mode):
            return None
    raise FileNotFoundError(errno.ENOENT, "no such file or folder", place)


def open_file(place: str) -> IO[bytes]:
    """Open a file for reading anywhere in it.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    pa = pyarrow()
    if not is_remote(place):
        # No file of Python's: one of Arrow's threads may still hold it while Python ends, which then aborts.
        return pa.OSFile(os.fsencode(place))  # type: ignore[no-any-return]
    system, path = locate(place)
    opened: IO[bytes] = system.open_input_file(path)
    return opened


class Folder:
    """A folder of whole files, local or in a bucket; its files appear all or nothing.

    Args:
        given: what a user named.

    Attributes:
        place: see `as_place`.
    """

    def __init__(self, given: str | os.PathLike[str]):
        self.place = as_place(given)

    def __str__(self) -> str:
        return shown(self.place)

    def join(self, name: str) -> str:
        """Return the place of a file in it."""
        return f"{self.place.rstrip('/')}/{name}" if is_remote(self.place) else os.path.join(self.place, name)

    def sizes(self, below: str = "") -> dict[str, int]:
        """Return what lies directly in it, or in one of its folders: bytes by name, of a folder -1; {} if it is gone.

        Raises:
            OSError: it cannot be listed, or is a file.
        """
        if not is_remote(self.place):
            try:
                with os.scandir(os.path.join(self.place, below)) as entries:
                    return {entry.name: -1 if entry.is_dir() else entry.stat().st_size for entry in entries}
            except FileNotFoundError:
                return {}
        fs = pyarrow().fs
        system, path = locate(self.join(below))
        found = system.get_file_info(fs.FileSelector(path, allow_not_found=True))
        return {info.base_name: info.size if info.is_file else -1 for info in found}

    def size(self, name: str) -> int | None:
        """Return the bytes of one of its files; None if it is not there."""
        if not is_remote(self.place):
            with suppress(FileNotFoundError, NotADirectoryError):
                return os.stat(self.join(name)).st_size
            return None
        system, path = locate(self.join(name))
        info = system.get_file_info(path)
        return info.size if info.is_file else None

    def open(self, name: str) -> IO[bytes]:
        """Open one of its files."""
        return open_file(self.join(name))

    def put(self, name: str, data: bytes) -> None:
        """Write a file, or replace it; after a kill it is there whole or as it was.

        Raises:
            OSError: it could not be written.
        """
        if not is_remote(self.place):
            path = Path(self.place, name)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                write_file(path, lambda file: file.write(data))
            except OSError as e:
                raise OSError(e.errno or errno.EIO, e.strerror or str(e), str(self)) from e
            return
        system, path_there = locate(self.join(name))
        # In one piece: a `with` around the making of `data` would also publish what an error left half made.
        with system.open_output_stream(path_there) as file:
            file.write(data)

    def sweep(self, name: str) -> None:
        """Delete what kills left half written of a file, once it is an hour old: nobody writes it any more."""
        if not is_remote(self.place):
            for path in Path(self.place).glob(f".{glob.escape(name[:40])}.*"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > 3600:
                        path.unlink()

    def remove(self, name: str) -> None:
        """Delete a file of ours, if it is there."""
        with suppress(FileNotFoundError):
            if is_remote(self.place):
                system, path = locate(self.join(name))
                system.delete_file(path)
            else:
                os.unlink(self.join(name))
