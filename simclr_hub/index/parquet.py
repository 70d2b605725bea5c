"""An index as a Parquet file, for other programs and for another place, and back with every row checked."""

import itertools
import json
import ntpath
import os
import posixpath
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, get_args

import numpy as np

from .. import _files
from .._text import printable
from ..errors import ExportError, IndexExistsError, IndexNotFoundError, IndexWriteError, MissingExtraError, OutputError
from ..images import describe
from ..scan import FileStat, Rules
from ..whitening import Whitening
from .paths import is_below
from .search.segments import try_update_cache
from .store import (
    KNOWN_INFO,
    LENGTH_TOLERANCE,
    STORE_NAME,
    About,
    Details,
    ListingState,
    Photo,
    Root,
    Store,
    file_metadata,
)

#: The kind of file that an export is.
EXPORT = _files.Kind("an export", (".parquet",))
#: Bytes of vectors in a row group, which is what a reader holds in memory; photos that are read from a store at once.
GROUP_BYTES, PAGE = 16 << 20, 256
#: Rows and bytes of vectors that are imported at once.
BATCH, BATCH_BYTES = 256, 16 << 20
#: A row group of more bytes than this is refused: it would be held in memory at once.
GROUP_LIMIT = 1 << 30
#: Bytes of a text: paths, and JSON of few keys.
TEXT_LIMIT = 1 << 16
WIDEST = 1 << 17  # of a vector
LAYOUT = 3  # 2 without numbers of 16 bits, 1 without whitening either
_KEY, _CHECKSUM_KEY = b"simclr_hub", b"simclr_hub.crc32"  # pages have checksums of their own, the schema has none
#: Details that are columns of their own, with their Arrow types; what else is known is JSON in `other`.
INFO_COLUMNS = {"format": "string", "width": "int32", "height": "int32", "taken": "string", "camera": "string"}
#: Columns of vectors.
VECTORS = ("vector", "features")
#: How far a vector of numbers of 16 bits may be from length 1: each is rounded by 2^-11 of itself at most.
HALF_TOLERANCE = 1e-3
#: How far a number of a whitened vector may be from the features whitened again, of numbers of 16 bits.
HALF_WHITENED = 0.01
#: How far the numbers of one content's vectors may differ, which several machines or batches made.
SAME_CONTENT = 1e-3
#: Columns for other programs: the import knows it from the rest.
NOT_READ = ("path", "bytes", "modified")
#: A column of parts (`simclr_hub.parts.part`): why a photo of state "failed", which no export has, has no vector.
ERROR = "error"


@dataclass(frozen=True)
class Header:
    """The facts that are told once for all rows."""

    about: About
    roots: list[tuple[str, str]]  # the photo folders, as (path, state of the last listing); rows have positions in it
    separator: str  # of the folders in paths
    distinct: list[tuple[str, str]]  # contents, as hexadecimal hashes, that a person called different pictures
    photos: int  # how many rows there are
    whitening: Whitening | None = None  # makes the column `vector` of `features`, the model's; None: there is one only
    half: bool = False  # numbers of 16 bits instead of 32, as parts may have

    @property
    def maker(self) -> dict[str, Any]:
        """Return what made the vectors as they are here: the fingerprint, and their bits if those are few."""
        return self.about.fingerprint | ({"bits": 16} if self.half else {})


def _pyarrow() -> Any:
    """Load pyarrow and its Parquet module, not before they are needed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtraError("pyarrow", "parquet") from e
    return pyarrow


def export_schema(header: Header) -> Any:
    """Return the Arrow schema of an export."""
    pa = _pyarrow()
    string, number = pa.string(), pa.float64()
    real = pa.float16() if header.half else pa.float32()
    columns = [
        ("path", string),  # absolute; printable, so that any program can read it
        ("hash", pa.binary(32)),
        ("vector", pa.list_(real, header.whitening.dim if header.whitening else header.about.dim)),
        *([("features", pa.list_(real, header.about.dim))] if header.whitening else []),
        ("state", string),
        *((name, getattr(pa, kind)()) for name, kind in INFO_COLUMNS.items()),
        ("bytes", pa.int64()),
        ("modified", pa.timestamp("us", tz="UTC")),
        *((name, number) for name in (("latitude", "longitude") if header.about.gps else ())),
        # What an import needs to give the same index.
        ("root", pa.int32()),
        ("name", pa.binary()),  # below the root: the bytes that the file system knows
        ("stamp", string),
        ("settled", pa.bool_()),
        ("other", string),
        ("signature", pa.binary()),
    ]
    record = {
        "layout": 3 if header.half else 2 if header.whitening else 1,
        "about": vars(header.about),
        "roots": header.roots,
        "separator": header.separator,
        "distinct": header.distinct,
        "photos": header.photos,
    }
    if header.half:
        record["half"] = True
    if header.whitening:
        record["whitening"] = b64encode(header.whitening.to_bytes()).decode()
    text = json.dumps(record).encode()
    return pa.schema(columns, metadata={_KEY: text, _CHECKSUM_KEY: b"%d" % zlib.crc32(text)})


def read_header(found: Any, name: str) -> Header:
    """Return the header in an Arrow schema, whose columns must be those of an export.

    Raises:
        ExportError: it is no export, or of a newer version.
    """
    metadata = found.metadata or {}
    text = metadata.get(_KEY)
    if text is None:
        raise ExportError(f"{name}: not exported by simclr_hub: its schema does not tell what made the vectors")
    if metadata.get(_CHECKSUM_KEY) != b"%d" % zlib.crc32(text):
        raise ExportError(f"{name}: damaged: what it tells of the vectors does not match its checksum")
    try:
        record = json.loads(text)
        if record["layout"] > LAYOUT:
            raise ExportError(f"{name}: layout {record['layout']}, made by a newer simclr_hub: upgrade")
        about = About(**record["about"])
        header = Header(
            about,
            [(str(path), str(listing)) for path, listing in record["roots"]],
            str(record["separator"]),
            [(str(a), str(b)) for a, b in record["distinct"]],
            int(record["photos"]),
            Whitening.from_bytes(b64decode(record["whitening"])) if "whitening" in record else None,
            record.get("half") is True,
        )
        valid = type(about.dim) is int and 0 < about.dim < WIDEST and about.metric == "cosine"
        told = isinstance(about.fingerprint, dict) and all(map(_plain, about.fingerprint.values()))
        rules = isinstance(about.exclude, list) and all(isinstance(pattern, str) for pattern in about.exclude)
        if not (valid and told and rules and isinstance(about.gps, bool) and isinstance(about.include_hidden, bool)):
            raise ValueError(f"made by {_shortened(record['about'])}")
        Rules(tuple(about.exclude))  # which says what is wrong with a pattern
        whitening = header.whitening
        agrees = (whitening and whitening.sha256, len(whitening.mean) if whitening else about.dim)
        if agrees != (about.fingerprint.get("whitening"), about.dim):
            raise ValueError("its whitening is not the one that it tells of")
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError) as e:
        if isinstance(e, ExportError):
            raise
        raise ExportError(f"{name}: what it tells of the vectors cannot be read: {e}") from e
    expected = export_schema(header)
    for field in expected:
        at = found.get_field_index(field.name)
        if at < 0 or found.field(at).type != field.type:
            there = found.field(at).type if at >= 0 else "missing"
            raise ExportError(f"{name}: its column {field.name} is {there}, not {field.type}")
    return header


def _plain(value: Any) -> bool:
    """Return whether a fingerprint may hold a value: text, a number, yes or no."""
    return value is None or (isinstance(value, (bool, int, float, str)) and len(str(value)) <= 1000)


def _shortened(value: Any) -> str:
    """Return a value as text for a message, however long it is."""
    return text if len(text := repr(value)) <= 120 else f"{text[:117]}..."


def export_index(
    file: Path, out: str | os.PathLike[str], *, progress: Callable[[int, int], object] | None = None
) -> int:
    """Write the photos of the store in `file` as `SimilarityIndex.export` tells, with its errors; return how many."""
    _pyarrow()
    out = Path(out)
    _files.check_output(out, EXPORT)
    with closing(Store(file, read_only=True)) as store, store.reading():
        header = Header(
            store.about,
            [(os.fsdecode(root.path), root.listing) for root in store.roots().values()],
            os.sep,
            sorted((a.hex(), b.hex()) for a, b in store.distinct()),
            store.counts()["with content"],
            store.whitening(),
        )
        try:
            rows = _rows(store, header)
            _files.write_output(
                out, lambda target: write_rows(target, export_schema(header), header, rows, progress), EXPORT
            )
        except (FileExistsError, OutputError):  # something came there meanwhile
            raise
        except OSError as e:
            raise IndexWriteError(f"{describe(out)}: {e.strerror or e}; nothing was written") from e
    return header.photos


def write_rows(
    target: IO[bytes],
    columns: Any,
    header: Header,
    rows: Iterator[dict[str, Any]],
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Write rows, as `photo_row` makes them, as Parquet; the columns are `export_schema(header)`, or more."""
    pa = _pyarrow()
    text = [field.name for field in columns if field.type == pa.string()]
    group = max(1, GROUP_BYTES // (4 * header.about.dim))
    done = 0

    with pa.parquet.ParquetWriter(
        target, columns, compression="zstd", use_dictionary=text, write_page_checksum=True
    ) as writer:
        while (some := list(itertools.islice(rows, group))) or not done:  # of an empty index, too, there is a table
            if header.whitening and (whole := [row for row in some if row["features"] is not None]):
                vectors = header.whitening.apply(np.stack([row["features"] for row in whole]), normalize=True)
                for row, vector in zip(whole, vectors, strict=True):
                    row["vector"] = vector
            for row in some if header.half else ():
                row |= {name: row[name] if row[name] is None else row[name].astype(np.float16) for name in VECTORS}
            writer.write_table(pa.Table.from_pylist(some, columns), row_group_size=group)
            done += len(some)
            if progress and some:
                progress(done, header.photos)
            if len(some) < group:
                break


def _rows(store: Store, header: Header) -> Iterator[dict[str, Any]]:
    roots = store.roots()
    positions = {root_id: position for position, root_id in enumerate(roots)}
    after = (0, b"")
    while page := store.page(after, PAGE):
        for photo in page:
            if photo.content_hash is not None:  # what failed is read again where the import is
                yield _row(store, photo, roots[photo.root_id], positions[photo.root_id], gps=header.about.gps)
        after = (page[-1].root_id, page[-1].path)


def _row(store: Store, photo: Photo, root: Root, position: int, *, gps: bool) -> dict[str, Any]:
    vector = None if photo.content_hash is None else store.vector(photo.content_hash)
    if photo.content_hash is None or vector is None:
        raise store.damaged("a photo without a vector")
    details = store.details_of(photo.content_hash)
    return photo_row(photo, root, position, vector, details, gps=gps)


def photo_row(
    photo: Photo, root: Root, position: int, vector: np.ndarray | None, details: Details | None, *, gps: bool = False
) -> dict[str, Any]:
    """Return the row of a photo below a root, which has this position in the header."""
    info = dict(details.info) if details else {}
    place = info.pop("gps", None) if gps else None
    return {
        "path": describe(os.fsdecode(root.join(photo.path))),
        "hash": photo.content_hash,
        "vector": vector,
        "features": vector,
        "state": photo.state,
        **{name: info.pop(name, None) for name in INFO_COLUMNS},
        "bytes": photo.stat.size if photo.stat.size < 1 << 63 else None,
        # None where 64 bits or the calendar end.
        "modified": photo.stat.mtime_ns // 1000 if abs(photo.stat.mtime_ns) < 1 << 62 else None,
        "latitude": place[0] if place else None,
        "longitude": place[1] if place else None,
        "root": position,
        "name": photo.path,
        "stamp": " ".join(map(str, photo.stat)),
        "settled": photo.settled,
        "other": json.dumps(info, sort_keys=True) if details else None,
        "signature": details.signature if details else None,
    }


def vectors_of(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return an Arrow column of vectors as float32 (N, D), and which of them have not length 1.

    Those of numbers of 16 bits are scaled to it, whose rounding moved them from it.

    Raises:
        ValueError: one is missing, or a number of one.
    """
    flat = column.flatten()
    if column.null_count or flat.null_count:
        raise ValueError("an image without a vector")
    vectors: np.ndarray = flat.to_numpy(zero_copy_only=False).reshape(len(column), column.type.list_size)
    half = vectors.dtype == np.float16
    vectors = vectors.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
        good = np.abs(lengths - 1) <= (HALF_TOLERANCE if half else LENGTH_TOLERANCE)
        if half:
            vectors = np.where(good, vectors / lengths, vectors).astype(np.float32)
    return vectors, np.flatnonzero(~good)


def import_index(
    path: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Make what `SimilarityIndex.from_export` tells, with its errors; return how many photos."""
    return import_files([path], directory, progress=progress)


def import_files(
    paths: Sequence[str | os.PathLike[str]],
    directory: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Make one index of files that tell of the same model and folders, row by row; return how many photos.

    Raises:
        ExportError: as `SimilarityIndex.from_export`, or two of them differ in what made them; with its other errors.
    """
    pa = _pyarrow()
    name = describe(paths[0])
    try:
        with ExitStack() as made:
            headers = []
            for path in paths:
                name = describe(path)
                with pa.OSFile(os.fsencode(path)) as source:
                    headers.append(read_header(pa.parquet.read_schema(source), name))
                if replace(headers[-1], photos=headers[0].photos) != headers[0]:
                    raise ExportError(f"{name}: made by another model, or of other folders, than {describe(paths[0])}")
            first, photos = headers[0], sum(header.photos for header in headers)
            name = describe(paths[0])
            roots = _checked_roots(first, name)
            # All lies below "/", the folder above a list of files of many disks.
            _files.check_place(Path(directory), [os.fsdecode(root) for root, _ in roots if root != b"/"])
            partial = made.enter_context(_files.new_directory(Path(directory)))
            Store.create(partial / STORE_NAME, first.about, first.whitening)
            with closing(Store(partial / STORE_NAME)) as store, store.writing():
                with store.transaction():
                    recorded = [store.put_root(*root).id for root in roots]
                    done = 0
                    for path in paths:
                        name = describe(path)
                        done += _import_file(path, name, store, recorded, _added(progress, done, photos))
                # Without it each process would read the whole store and compare with every vector, until a sync.
                try_update_cache(store)
    except OutputError:
        raise
    except IndexWriteError as e:  # it names the store beside the place
        raise IndexWriteError(f"{describe(directory)}: {e.__cause__ or e}; nothing was made") from e
    except FileNotFoundError as e:
        raise IndexNotFoundError(f"{name}: no such file") from e
    except FileExistsError as e:
        raise IndexExistsError(str(e)) from e
    except (pa.ArrowException, OSError, UnicodeError) as e:
        raise ExportError(f"{name}: damaged, or not a Parquet file: {e}") from e
    return photos


def _added(progress: Callable[[int, int], object] | None, before: int, total: int) -> Callable[[int], object]:
    """Return a progress of one file, whose rows come after others."""
    return (lambda done: progress(before + done, total)) if progress else lambda done: None


def _import_file(
    path: str | os.PathLike[str], name: str, store: Store, roots: list[int], progress: Callable[[int], object]
) -> int:
    """Put the rows of one file into a store, whose transaction is open; return how many."""
    pa = _pyarrow()
    with pa.OSFile(os.fsencode(path)) as source:
        found = pa.parquet.read_schema(source)
        header = read_header(found, name)
        source.seek(0)
        columns = [field.name for field in export_schema(header) if field.name not in NOT_READ]
        columns += [ERROR] if ERROR in found.names else []
        # As dictionaries: a text that rows share must not be copied for each of them before it is looked at.
        texts = [field.name for field in found if field.type in (pa.string(), pa.binary())]
        file = pa.parquet.ParquetFile(source, page_checksum_verification=True, read_dictionary=texts)
        if file.metadata.num_rows != header.photos:
            raise ExportError(f"{name}: {file.metadata.num_rows:,} rows, but it tells of {header.photos:,}")
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group).total_byte_size
            if size > GROUP_LIMIT:
                raise ExportError(f"{name}: a row group of {size:,} bytes, more than {GROUP_LIMIT:,}")
        batch = max(1, min(BATCH, BATCH_BYTES // (4 * header.about.dim)))
        _Import(store, header, roots, name).run(file.iter_batches(batch, columns=columns), progress)
    return header.photos


def _checked_roots(header: Header, name: str) -> list[tuple[bytes, ListingState]]:
    """Return the root folders of a file, absolute, each with how its last listing ended.

    Raises:
        ExportError: one is no such path, contains another, or was listed in no way that there is.
    """
    roots: list[tuple[bytes, ListingState]] = []
    for path, listing in header.roots:
        root = os.fsencode(path)
        # It may come from another system, or from a bucket.
        absolute = posixpath.isabs(path) or ntpath.isabs(path) or path.startswith(("s3://", "gs://"))
        if not absolute or b"\0" in root or ".." in path.replace("\\", "/").split("/"):
            raise ExportError(f"{name}: a root folder {describe(path)}: not an absolute path")
        if any(is_below(root, other) or is_below(other, root) for other, _ in roots):
            raise ExportError(f"{name}: root folders that contain one another: {describe(path)}")
        if listing not in get_args(ListingState):
            raise ExportError(f"{name}: a root folder's listing: {listing!r}")
        roots.append((root, listing))  # type: ignore[arg-type]
    return roots


class _Import:
    """Puts the rows of the file `name` into a store, whose transaction is open; `roots` are the ids of its folders."""

    def __init__(self, store: Store, header: Header, roots: list[int], name: str):
        self._store, self._header, self._name = store, header, name
        self._row = 0
        self._roots = roots

    def run(self, batches: Iterator[Any], progress: Callable[[int], object]) -> None:
        for batch in batches:
            self._refuse_long_texts(batch)
            states = batch.column("state").to_pylist()
            has_vector = [not (state == "failed" and ERROR in batch.schema.names) for state in states]
            vectors = iter(self._vectors(batch.filter(_pyarrow().array(has_vector)), np.flatnonzero(has_vector)))
            rows = batch.drop_columns(["vector", *(["features"] if self._header.whitening else [])]).to_pylist()
            for row, has in zip(rows, has_vector, strict=True):
                self._row += 1
                try:
                    self._put(row, next(vectors) if has else None)
                except (TypeError, ValueError, OverflowError, RecursionError) as e:
                    raise self._wrong(str(e)) from e
            progress(self._row)
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

    def _vectors(self, batch: Any, places: np.ndarray) -> np.ndarray:
        """Return the batch's vectors (N, D) as the model gave them, checked; `places` are its rows among all."""
        whitening = self._header.whitening
        vectors = self._column(batch, "features" if whitening else "vector", places)
        if whitening:
            there = self._column(batch, "vector", places)
            differences = np.abs(there - whitening.apply(vectors, normalize=True)).max(1)
            tolerance = HALF_WHITENED if self._header.half else LENGTH_TOLERANCE
            for row in np.flatnonzero(~(differences <= tolerance))[:1]:
                self._row += int(places[row]) + 1
                raise self._wrong("its vector is not its features whitened")
        return vectors

    def _column(self, batch: Any, name: str, places: np.ndarray) -> np.ndarray:
        """Return a column of vectors (N, D); `places` are its rows among all."""
        try:
            vectors, wrong = vectors_of(batch.column(name))
        except ValueError:
            raise self._wrong(f"or one after it: no {name}") from None
        for row in wrong[:1]:
            self._row += int(places[row]) + 1
            raise self._wrong(f"a vector of length {np.linalg.norm(vectors[row]):.6g}, not 1")
        return vectors

    def _put(self, row: dict[str, Any], vector: np.ndarray | None) -> None:
        """Put a photo, or with `vector` None one that could not be used."""
        content_hash, state, position = row["hash"], row["state"], row["root"]
        whole = content_hash is not None and state in ("live", "missing")
        if not whole if vector is not None else content_hash is not None:
            raise ValueError(f"hash {content_hash!r}, state {state!r}")
        if position is None or not 0 <= position < len(self._roots):
            raise ValueError(f"root {position}, of {len(self._roots)}")
        root_id, path = self._roots[position], self._checked_path(row["name"])
        if self._store.photo(root_id, path) is not None:
            raise ValueError(f"a second row of {describe(os.fsdecode(path))}")
        info = self._info(row)
        if vector is not None:
            known = self._store.vector(content_hash)
            if known is None:
                self._store.put_vector(content_hash, vector)
                if row["signature"] is not None:
                    self._store.put_details(content_hash, info, row["signature"])
            elif not np.abs(known - vector).max() <= SAME_CONTENT:
                raise ValueError(f"another vector of the content {content_hash.hex()}")
        numbers = [int(number) for number in row["stamp"].split()]
        if len(numbers) != len(FileStat._fields) or any(abs(number) >= 1 << 128 for number in numbers):
            raise ValueError(f"stamp {_shortened(row['stamp'])}")
        stat = FileStat(*numbers)
        if not 0 <= stat.size < 1 << 63:
            raise ValueError(f"a file of {stat.size} bytes")
        settled, error = bool(row["settled"]), None if vector is not None else printable(str(row[ERROR]))
        self._store.put(Photo(root_id, path, stat, settled, content_hash, state, error, file_metadata(stat)))

    def _checked_path(self, name: bytes | None) -> bytes:
        """Return a name below a root with this system's separators; a search opens what is there and shows it."""
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
        """Return the details of a content, each key known and of the type that it must have."""
        try:
            other = json.loads(row["other"] or "{}", object_pairs_hook=_once)
        except RecursionError as e:
            raise ValueError("other is nested without end") from e
        if not isinstance(other, dict):
            raise ValueError(f"other {_shortened(row['other'])}")
        if unknown := sorted(other.keys() - (KNOWN_INFO.keys() - {*INFO_COLUMNS, "gps"})):  # those have columns
            raise ValueError(f"other has the key {_shortened(unknown[0])}, which has no place there")
        info = other | {name: row[name] for name in INFO_COLUMNS if row[name] is not None}
        if row.get("latitude") is not None or row.get("longitude") is not None:
            info["gps"] = [row["latitude"], row["longitude"]]
        for key, value in info.items():
            if not KNOWN_INFO[key](value):
                raise ValueError(f"{key} is {_shortened(value)}")
        return info


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a JSON object, refusing a key that comes twice."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError("other has a key twice")
    return found
