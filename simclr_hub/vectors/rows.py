"""A part's file -> rows for a server, everything in it checked: a server is no place to find out."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote_from_bytes, unquote_to_bytes

import numpy as np

from .._text import printable
from ..errors import ExportError
from ..index.parquet import GROUP_LIMIT, INFO_COLUMNS, TEXT_LIMIT, vectors_of
from ..index.store import KNOWN_INFO, Root, parse_info
from ..parts.part import SUFFIX, PartHeader, part_header
from ..parts.storage import Folder, is_remote, pyarrow
from .server import COLUMNS, Rows

#: Begins a path that is no text.
_BYTES = "bytes:"
_LONGEST_KEY = 1000
#: Bytes of a path as text; Milvus takes no more.
_LONGEST_PATH = 65_000


def part_names(folder: Folder) -> list[str]:
    """Return the names of the parts in a folder, sorted.

    Raises:
        ExportError: there are none, or the folder cannot be listed.
    """
    try:
        found = folder.sizes()
    except OSError as e:
        raise ExportError(f"{folder}: {e.strerror or e}") from e
    names = sorted(name for name in found if name.endswith(SUFFIX) and not name.startswith((".", "_")))
    if not names:
        raise ExportError(f"{folder}: no parts in it; give a folder that `simclr-hub parts run` filled")
    return [name.removesuffix(SUFFIX) for name in names]


def photo_folders(folder: Folder) -> list[str]:
    """Return the local folders of which the parts in a folder tell.

    Raises:
        ExportError: there are none, or one is damaged.
    """
    roots = header_of(folder, part_names(folder)[0]).header.roots
    return [root for root, _ in roots if not is_remote(root) and root != os.sep]  # that is above files of many disks


def image_id(path: bytes) -> bytes:
    """Return the id of an image on a server, by its whole path: 16 bytes, so that billions do not meet."""
    return hashlib.sha256(path).digest()[:16]


def path_text(path: bytes) -> str:
    """Return a path as printable text, from which `path_bytes` makes it again, whatever bytes it has."""
    try:
        text = path.decode()
    except UnicodeDecodeError:
        text = ""
    return text if text and text.isprintable() and not text.startswith(_BYTES) else _BYTES + quote_from_bytes(path)


def path_bytes(text: str) -> bytes:
    """Return the path of which `path_text` made a text."""
    return unquote_to_bytes(text.removeprefix(_BYTES)) if text.startswith(_BYTES) else text.encode()


def header_of(folder: Folder, part: str) -> PartHeader:
    """Return what a part's file tells of itself.

    Raises:
        ExportError: it is damaged, or no part.
    """
    pa, name = pyarrow(), folder.join(part + SUFFIX)
    try:
        with folder.open(part + SUFFIX) as file:
            told = part_header(pa.parquet.read_schema(file), name)
    except (pa.ArrowException, OSError) as e:
        raise ExportError(f"{name}: damaged, or not a Parquet file: {e}") from e
    if told.part != part:
        raise ExportError(f"{name}: it is part {told.part} under another name; delete the copy")
    return told


def read_ids(folder: Folder, part: str) -> tuple[list[bytes], list[bytes]]:
    """Return the ids and content hashes of the images in a part that could be used.

    Raises:
        ExportError: it is damaged.
    """
    ids, hashes = [], []
    with _named(folder, part):
        for batch, roots in _batches(folder, part, ["root", "name", "hash"]):
            for row in batch.to_pylist():
                ids.append(image_id(_path(roots, row)))
                hashes.append(_hash(row))
    return ids, hashes


def read_vectors(folder: Folder, part: str) -> Iterator[tuple[list[bytes], np.ndarray]]:
    """Yield ids and vectors (n, D) of a part's images that could be used.

    Raises:
        ExportError: it is damaged.
    """
    with _named(folder, part):
        for batch, roots in _batches(folder, part, ["root", "name", "vector"]):
            vectors = _vectors(batch)
            yield [image_id(_path(roots, row)) for row in batch.drop_columns(["vector"]).to_pylist()], vectors


def read_rows(folder: Folder, part: str) -> Rows:
    """Return the images in a part that could be used.

    Raises:
        ExportError: it is damaged, or holds what no image has.
    """
    ids: list[bytes] = []
    hashes: list[bytes] = []
    paths: list[str] = []
    vectors: list[np.ndarray] = []
    values: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    columns = ["root", "name", "hash", "vector", "stamp", "other", "key", *INFO_COLUMNS]
    with _named(folder, part):
        for batch, roots in _batches(folder, part, columns):
            vectors.append(_vectors(batch))
            for row in batch.drop_columns(["vector"]).to_pylist():
                path = _path(roots, row)
                ids.append(image_id(path))
                hashes.append(_hash(row))
                paths.append(path_text(path))
                if len(paths[-1].encode()) > _LONGEST_PATH:
                    raise ValueError(f"a path of {len(path):,} bytes")
                told = _values(row)
                for key, column in values.items():
                    column.append(told.get(key))
        if len(set(ids)) < len(ids):
            raise ValueError(f"{len(ids) - len(set(ids)):,} of its images are there twice")
    return Rows(ids, hashes, paths, np.concatenate(vectors) if vectors else np.empty((0, 0), np.float32), values)


@contextmanager
def _named(folder: Folder, part: str) -> Iterator[None]:
    """Name the file in what is wrong with it."""
    name = folder.join(part + SUFFIX)
    try:
        yield
    except (ValueError, TypeError, OverflowError) as e:  # also ExportError, and text that is none
        raise ExportError(f"{name}: {e}") from e
    except (pyarrow().ArrowException, OSError) as e:
        raise ExportError(f"{name}: damaged, or not a Parquet file: {e}") from e


def _batches(folder: Folder, part: str, columns: list[str]) -> Iterator[tuple[Any, list[Root]]]:
    """Yield a part's images that could be used, with these columns, and the folders that they lie in."""
    pa = pyarrow()
    with folder.open(part + SUFFIX) as raw:
        file = pa.parquet.ParquetFile(raw, page_checksum_verification=True)
        header = part_header(file.schema_arrow, part).header
        roots = [Root(number, os.fsencode(path), "ok") for number, (path, _) in enumerate(header.roots)]
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).total_byte_size
            if size > GROUP_LIMIT:
                raise ValueError(f"a row group of {size:,} bytes, more than {GROUP_LIMIT:,}")
        for batch in file.iter_batches(4096, columns=["state", *columns]):
            live = [state == "live" for state in batch.column("state").to_pylist()]
            yield batch.filter(pa.array(live, pa.bool_())).drop_columns(["state"]), roots


def _vectors(batch: Any) -> np.ndarray:
    """Return a batch's vectors (n, D), checked."""
    vectors, wrong = vectors_of(batch.column("vector"))
    if len(wrong):
        raise ValueError("a vector that has not length 1")
    return vectors


def _path(roots: list[Root], row: dict[str, Any]) -> bytes:
    name, root = row["name"], row["root"]
    if not name or b"\0" in name or len(name) > TEXT_LIMIT or root is None or not 0 <= root < len(roots):
        raise ValueError(f"an image of the name {str(name)[:100]} below folder {root}")
    path: bytes = roots[root].join(name)
    return path


def _hash(row: dict[str, Any]) -> bytes:
    content: bytes | None = row["hash"]
    if content is None:
        raise ValueError("an image without a hash")
    return content


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """Return what an index would tell of a row as metadata, so that conditions mean the same."""
    told = {key: row[key] for key in INFO_COLUMNS if row[key] is not None}
    for key, value in told.items():
        if not KNOWN_INFO[key](value):
            raise ValueError(f"{key} is {printable(str(value))[:100]!r}")
    other = parse_info(row["other"] or "{}")
    if "orientation" in other:
        told["orientation"] = other["orientation"]
    size, mtime_ns, *_ = map(int, row["stamp"].split())
    if not (0 <= size < 1 << 63 and abs(mtime_ns) < 1 << 128):
        raise ValueError(f"stamp {printable(row['stamp'])[:100]!r}")
    told |= {"bytes": size, "modified": mtime_ns / 1e9}
    if row["key"] is not None:
        told["key"] = printable(row["key"])[:_LONGEST_KEY]
    return told
