"""An exported index read back into a new one: every row is checked, and nothing that exists is touched.

Unusual: names are taken as bytes below a root and may not leave it, since a search opens the photos it finds and shows
them; and a content that comes twice must come with the same vector.
"""

import json
import ntpath
import os
import posixpath
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, get_args

import numpy as np

from ... import _files
from ...errors import ExportError, IndexExistsError, IndexNotFoundError, OutputError
from ...images import describe
from ..records import INFO, ListingState, Photo, Stamp, file_metadata, is_below
from ..store import STORE_NAME, Store
from .check_store import LENGTH_TOLERANCE
from .export_schema import INFO as COLUMNS
from .export_schema import Header, arrow, read_header, schema, shortened

BATCH, BATCH_BYTES = 256, 16 << 20
#: For other programs: the import knows it from the rest.
NOT_READ = ("path", "bytes", "modified")
#: Bytes of a text: paths, and JSON of few keys.
TEXT_LIMIT = 1 << 16
#: A row group of more bytes than this is refused: it would be held in memory at once.
GROUP_LIMIT = 1 << 30


def import_index(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """What `SimilarityIndex.from_export` makes, and its errors; how many photos."""
    pa = arrow()
    name = describe(path)
    try:
        with pa.OSFile(os.fspath(path)) as source, ExitStack() as made:
            header = read_header(pa.parquet.read_schema(source), name)
            roots = _checked_roots(header, name)
            _files.check_place(Path(directory), [os.fsdecode(root) for root, _ in roots])
            partial = made.enter_context(_files.new_directory(Path(directory)))
            columns = [field.name for field in schema(header) if field.name not in NOT_READ]
            # As dictionaries: a text that rows share must not be copied for each of them before it is looked at.
            texts = [field.name for field in schema(header) if field.type in (pa.string(), pa.binary())]
            file = pa.parquet.ParquetFile(source, page_checksum_verification=True, read_dictionary=texts)
            if file.metadata.num_rows != header.photos:
                raise ExportError(f"{name}: {file.metadata.num_rows:,} rows, but it tells of {header.photos:,}")
            for group in range(file.num_row_groups):
                size = file.metadata.row_group(group).total_byte_size
                if size > GROUP_LIMIT:
                    raise ExportError(f"{name}: a row group of {size:,} bytes, more than {GROUP_LIMIT:,}")
            Store.create(partial / STORE_NAME, header.about, header.whitening)
            with closing(Store(partial / STORE_NAME)) as store, store.writing(), store.transaction():
                batch = max(1, min(BATCH, BATCH_BYTES // (4 * header.about.dim)))
                _Import(store, header, roots, name).run(file.iter_batches(batch, columns=columns), progress)
    except OutputError:
        raise
    except FileNotFoundError as e:
        raise IndexNotFoundError(f"{name}: no such file") from e
    except FileExistsError as e:
        raise IndexExistsError(str(e)) from e
    except (pa.ArrowException, OSError, UnicodeError) as e:
        raise ExportError(f"{name}: damaged, or not a Parquet file: {e}") from e
    return header.photos


def _checked_roots(header: Header, name: str) -> list[tuple[bytes, ListingState]]:
    """Return the root folders of a file, absolute, each with how its last listing ended.

    Raises:
        ExportError: one is no such path, contains another, or was listed in no way that there is.
    """
    roots: list[tuple[bytes, ListingState]] = []
    for path, listing in header.roots:
        root = os.fsencode(path)
        absolute = posixpath.isabs(path) or ntpath.isabs(path)  # it may come from another system
        if not absolute or b"\0" in root or ".." in path.replace("\\", "/").split("/"):
            raise ExportError(f"{name}: a root folder {describe(path)}: not an absolute path")
        if any(is_below(root, other) or is_below(other, root) for other, _ in roots):
            raise ExportError(f"{name}: root folders that contain one another: {describe(path)}")
        if listing not in get_args(ListingState):
            raise ExportError(f"{name}: a root folder's listing: {listing!r}")
        roots.append((root, listing))  # type: ignore[arg-type]
    return roots


class _Import:
    """Rows to a new store.

    Args:
        store: empty; a transaction is open.
        header: of the file.
        roots: its root folders.
        name: of the file, for messages.
    """

    def __init__(self, store: Store, header: Header, roots: list[tuple[bytes, ListingState]], name: str):
        self._store, self._header, self._name = store, header, name
        self._row = 0
        self._roots = [store.put_root(*root).id for root in roots]

    def run(self, batches: Iterator[Any], progress: Callable[[int, int], object] | None) -> None:
        for batch in batches:
            self._refuse_long_texts(batch)
            vectors = self._vectors(batch)
            rows = batch.drop_columns(["vector", *(["features"] if self._header.whitening else [])]).to_pylist()
            for row, vector in zip(rows, vectors, strict=True):
                self._row += 1
                try:
                    self._put(row, vector)
                except (TypeError, ValueError, OverflowError, RecursionError) as e:
                    raise self._wrong(str(e)) from e
            if progress:
                progress(self._row, self._header.photos)
        if self._row != self._header.photos:
            raise ExportError(f"{self._name}: {self._row:,} rows, but it tells of {self._header.photos:,}")
        for pair in self._header.distinct:
            try:
                self._store.put_distinct(*(bytes.fromhex(content_hash) for content_hash in pair))
            except ValueError as e:
                raise ExportError(f"{self._name}: a pair of different pictures: {e}") from e

    def _refuse_long_texts(self, batch: Any) -> None:
        """Look at each text once, before there is one for each row."""
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            if hasattr(column, "dictionary"):
                for text in column.dictionary:
                    if text.is_valid and text.as_buffer().size > TEXT_LIMIT:
                        raise self._wrong(f"or one after it: {name} of {text.as_buffer().size:,} bytes")

    def _wrong(self, why: str) -> ExportError:
        return ExportError(f"{self._name}: row {self._row:,}: {why}")

    def _vectors(self, batch: Any) -> np.ndarray:
        """The batch's vectors (N, D) as the model gave them, checked."""
        whitening = self._header.whitening
        vectors = self._column(batch, "features" if whitening else "vector", self._header.about.dim)
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        for row in np.flatnonzero(~(np.abs(lengths - 1) <= LENGTH_TOLERANCE))[:1]:
            self._row += int(row) + 1
            raise self._wrong(f"a vector of length {lengths[row]:.6g}, not 1")
        if whitening:
            differences = self._column(batch, "vector", whitening.dim) - whitening.apply(vectors, normalize=True)
            for row in np.flatnonzero(~(np.abs(differences).max(1) <= LENGTH_TOLERANCE))[:1]:
                self._row += int(row) + 1
                raise self._wrong("its vector is not its features whitened")
        return vectors

    def _column(self, batch: Any, name: str, dim: int) -> np.ndarray:
        """A column of vectors: (N, dim)."""
        column = batch.column(name)
        if column.null_count or column.flatten().null_count:
            raise self._wrong(f"or one after it: no {name}")
        vectors: np.ndarray = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, dim)
        return vectors

    def _put(self, row: dict[str, Any], vector: np.ndarray) -> None:
        content_hash, state, position = row["hash"], row["state"], row["root"]
        if content_hash is None or state not in ("live", "missing"):
            raise ValueError(f"hash {content_hash!r}, state {state!r}")
        if position is None or not 0 <= position < len(self._roots):
            raise ValueError(f"root {position}, of {len(self._roots)}")
        root_id, path = self._roots[position], self._checked_path(row["name"])
        if self._store.photo(root_id, path) is not None:
            raise ValueError(f"a second row of {describe(os.fsdecode(path))}")
        known, info = self._store.vector(content_hash), self._info(row)
        if known is None:
            self._store.put_vector(content_hash, vector)
            if row["signature"] is not None:
                self._store.put_details(content_hash, info, row["signature"])
        elif not np.array_equal(known, vector):
            raise ValueError(f"another vector of the content {content_hash.hex()}")
        numbers = [int(number) for number in row["stamp"].split()]
        if len(numbers) != len(Stamp._fields) or any(abs(number) >= 1 << 128 for number in numbers):
            raise ValueError(f"stamp {shortened(row['stamp'])}")
        stamp = Stamp(*numbers)
        if not 0 <= stamp.size < 1 << 63:
            raise ValueError(f"a file of {stamp.size} bytes")
        settled = bool(row["settled"])
        self._store.put(Photo(root_id, path, stamp, settled, content_hash, state, metadata=file_metadata(stamp)))

    def _checked_path(self, name: bytes | None) -> bytes:
        """A name below a root with this system's separators."""
        if not name or b"\0" in name:
            raise ValueError(f"the name {name!r}")
        separator = os.fsencode(self._header.separator)
        parts = name.split(separator)
        here = os.fsencode(os.sep)
        inside = all(part not in (b"", b".", b"..") and here not in part for part in parts)
        if not inside or ntpath.splitdrive(os.fsdecode(parts[0]))[0] and os.name == "nt":
            raise ValueError(f"the name {describe(os.fsdecode(name))} leaves its folder")
        return here.join(parts)

    def _info(self, row: dict[str, Any]) -> dict[str, Any]:
        """Details of a content, each key known and of the type that it must have."""
        try:
            other = json.loads(row["other"] or "{}", object_pairs_hook=_once)
        except RecursionError as e:
            raise ValueError("other is nested without end") from e
        if not isinstance(other, dict):
            raise ValueError(f"other {shortened(row['other'])}")
        if unknown := sorted(other.keys() - (INFO.keys() - {*COLUMNS, "gps"})):  # those have columns
            raise ValueError(f"other has the key {shortened(unknown[0])}, which has no place there")
        info = other | {name: row[name] for name in COLUMNS if row[name] is not None}
        if row.get("latitude") is not None or row.get("longitude") is not None:
            info["gps"] = [row["latitude"], row["longitude"]]
        for key, value in info.items():
            if not INFO[key](value):
                raise ValueError(f"{key} is {shortened(value)}")
        return info


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, refusing a key that comes twice."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("other has a key twice")
    return found
