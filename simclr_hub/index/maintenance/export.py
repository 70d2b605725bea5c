"""An index as a Parquet file, for other programs and for another place.

Unusual: rows are written as they are read, so that memory is bounded; every page of the file has a checksum; and the
file is complete or not there.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import numpy as np

from ... import _files
from ...errors import IndexWriteError, OutputError
from ...images import describe
from ..records import Photo, Root
from ..store import Store
from .export_schema import INFO, Header, arrow, schema

#: Bytes of vectors in a row group, which is what a reader holds in memory.
GROUP_BYTES = 16 << 20
PAGE = 256
#: The kind of file that this writes.
EXPORT = _files.Kind("an export", (".parquet",))


def export_index(
    file: Path, out: str | os.PathLike[str], *, progress: Callable[[int, int], object] | None = None
) -> int:
    """`SimilarityIndex.export` of the store in `file`, and its errors; how many photos."""
    arrow()
    out = Path(out)
    _files.check_output(out, EXPORT)
    with closing(Store(file, read_only=True)) as store, store.reading():
        counts = store.counts()
        header = Header(
            store.about,
            [(os.fsdecode(root.path), root.listing) for root in store.roots().values()],
            os.sep,
            sorted((a.hex(), b.hex()) for a, b in store.distinct()),
            counts["live"] + counts["missing"],
            store.whitening(),
        )
        try:
            _files.write_output(out, lambda target: _write(target, store, header, progress), EXPORT)
        except (FileExistsError, OutputError):  # something came there meanwhile
            raise
        except OSError as e:
            raise IndexWriteError(f"{describe(out)}: {e.strerror or e}; nothing was written") from e
    return header.photos


def _write(target: IO[bytes], store: Store, header: Header, progress: Callable[[int, int], object] | None) -> None:
    pa = arrow()
    columns = schema(header)
    text = [field.name for field in columns if field.type == pa.string()]
    group = max(1, GROUP_BYTES // (4 * header.about.dim))
    done = 0
    rows: list[dict[str, Any]] = []

    def table() -> Any:
        if header.whitening and rows:
            features = np.stack([row["features"] for row in rows])
            for row, vector in zip(rows, header.whitening.apply(features, normalize=True), strict=True):
                row["vector"] = vector
        return pa.Table.from_pylist(rows, columns)

    with pa.parquet.ParquetWriter(
        target, columns, compression="zstd", use_dictionary=text, write_page_checksum=True
    ) as writer:
        for row in _rows(store, header):
            rows.append(row)
            if len(rows) >= group:
                writer.write_table(table(), row_group_size=group)
                done += len(rows)
                rows.clear()
                if progress:
                    progress(done, header.photos)
        if rows or not done:
            writer.write_table(table())


def _rows(store: Store, header: Header) -> Iterator[dict[str, Any]]:
    roots = store.roots()
    positions = {root_id: position for position, root_id in enumerate(roots)}
    after = (0, b"")
    while page := store.page(after, PAGE):
        for photo in page:
            if photo.state != "failed":
                yield _row(store, photo, roots[photo.root_id], positions[photo.root_id], gps=header.about.gps)
        after = (page[-1].root_id, page[-1].path)


def _row(store: Store, photo: Photo, root: Root, position: int, *, gps: bool) -> dict[str, Any]:
    vector = None if photo.content_hash is None else store.vector(photo.content_hash)
    if photo.content_hash is None or vector is None:
        raise store.damaged("a photo without a vector")
    details = store.details_of(photo.content_hash)
    info = dict(details.info) if details else {}
    place = info.pop("gps", None) if gps else None
    return {
        "path": describe(os.fsdecode(root.join(photo.path))),
        "hash": photo.content_hash,
        "vector": vector,
        "features": vector,
        "state": photo.state,
        **{name: info.pop(name, None) for name in INFO},
        "bytes": photo.stamp.size if photo.stamp.size < 1 << 63 else None,
        "modified": _microseconds(photo.stamp.mtime_ns),
        "latitude": place[0] if place else None,
        "longitude": place[1] if place else None,
        "root": position,
        "name": photo.path,
        "stamp": " ".join(map(str, photo.stamp)),
        "settled": photo.settled,
        "other": json.dumps(info, sort_keys=True) if details else None,
        "signature": details.signature if details else None,
    }


def _microseconds(mtime_ns: int) -> int | None:
    """For a time stamp; None where 64 bits or the calendar end."""
    return mtime_ns // 1000 if abs(mtime_ns) < 1 << 62 else None
