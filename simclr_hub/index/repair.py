"""A damaged store: what its rows must be, and what is sound of it copied into a new one in its place."""

import json
import math
import os
import sqlite3
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .. import _files
from ..errors import IndexDamagedError, IndexWriteError
from ..whitening import Whitening
from .sqlite import refuse_foreign_journal
from .store import LENGTH_TOLERANCE, STORE_NAME, About, Photo, Store, checksum, put_meta

_PARTIAL = f".{STORE_NAME}.repair"
_PAGE = 16384
#: What reading a damaged file raises; the last from sqlite3 itself, for a message that quotes damaged text.
READ_ERRORS = (sqlite3.Error, MemoryError, UnicodeDecodeError)


@dataclass
class RepairReport:
    """The result of a repair.

    Attributes:
        saved: rows copied into the new store, by table.
        lost_photos: photos that were not saved; the next sync of their folders reads them again.
        kept_as: the damaged file, under its new name.
    """

    saved: dict[str, int]
    lost_photos: int
    kept_as: str


def connect(file: Path, *, writable: bool = False) -> sqlite3.Connection:
    """Connect to a store, to read damaged text as it is; a writable connection plays a journal back first."""
    mode = "rw" if writable else "ro"
    refuse_foreign_journal(file)
    db = sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30)
    db.text_factory = lambda data: data.decode(errors="surrogateescape")
    return db


def checked_tables(db: sqlite3.Connection) -> dict[str, list[str]]:
    """Return the tables with checksums and their columns, the checksum last; those that others refer to come first."""
    tables = {}
    for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid").fetchall():
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        if "crc" in columns:
            tables[table] = [column for column in columns if column != "crc"] + ["crc"]
    return tables


def wrong_row(table: str, row: tuple[Any, ...], dim: int) -> str | None:
    """Return what is wrong with a row beyond what SQLite sees to, None if nothing."""
    if checksum(*row[:-1]) != row[-1]:
        return "does not match its checksum"
    try:
        if table == "vectors":
            return _wrong_vector(row[1], dim)
        if table == "photos":
            photo = Photo.from_columns(*row[:-1])
            json.loads(photo.metadata)
            if photo.state == "live" and photo.content_hash is None:
                return "live without content"
        if table in ("meta", "details"):
            json.loads(row[1])
    except (TypeError, ValueError, RecursionError) as e:
        return f"cannot be read: {e}"
    return None


def _wrong_vector(data: bytes, dim: int) -> str | None:
    if len(data) != 4 * dim:
        return f"{len(data)} bytes, not {4 * dim}"
    length = float(np.linalg.norm(np.frombuffer(data, "<f4").astype(np.float64)))
    if not math.isfinite(length):
        return "not finite"
    return None if abs(length - 1) <= LENGTH_TOLERANCE else f"of length {length:.6g}, not 1"


class _Ways(NamedTuple):
    """Two ways to a table's rows, since SQLite stops at the first damaged page: by its key, and by an index of it."""

    key: tuple[str, ...]
    by: str | None = None
    order: str = ""


_WAYS = {
    "meta": _Ways(("key",)),
    "roots": _Ways(("id",), "sqlite_autoindex_roots_1", "path"),
    "vectors": _Ways(("rowid",), "sqlite_autoindex_vectors_1", "content_hash"),
    "photos": _Ways(("root_id", "path"), "photos_by_content", "content_hash"),
    "details": _Ways(("rowid",), "sqlite_autoindex_details_1", "content_hash"),
    "distinct_pairs": _Ways(("a", "b")),
}


def repair_store(directory: Path) -> RepairReport:
    """Replace the store in `directory` by what can be saved of it; the caller holds the writer's lock.

    Raises:
        IndexDamagedError: what made the index cannot be read: without that no vector means anything.
        IndexWriteError: the new store could not be written; the damaged one is as it was.
    """
    file = directory / STORE_NAME
    partial = directory / _PARTIAL
    _clean(directory)  # what a repair left that was killed
    try:
        with ExitStack() as stack:
            old = _readable(file, stack)
            about, whitening, generation, photos = _read_meta(old, file)
            Store.create(partial, about, whitening)
            new = stack.enter_context(closing(sqlite3.connect(partial, isolation_level=None)))
            new.execute("PRAGMA synchronous = EXTRA")
            new.execute("BEGIN IMMEDIATE")
            saved = _copy(old, new, about)
            _put_state(new, generation + 1)
            new.execute("COMMIT")
        kept_as = _replace_store(file, partial)
    except (OSError, sqlite3.Error, subprocess.CalledProcessError) as e:
        raise IndexWriteError(f"{directory}: {e}; it could not be repaired, the store is as it was") from e
    finally:
        _clean(directory)
    return RepairReport(saved, max(photos - saved["photos"], 0), str(kept_as))


def _clean(directory: Path) -> None:
    for partial in directory.glob(f"{_PARTIAL}*"):
        with suppress(OSError):
            partial.unlink()


def _readable(file: Path, stack: ExitStack) -> sqlite3.Connection:
    """Open the damaged store, or a copy of it with a new first page if SQLite cannot open it."""
    db = stack.enter_context(closing(connect(file, writable=True)))  # so that SQLite plays a journal back
    try:
        if {"meta", "photos", "vectors"} <= set(checked_tables(db)):
            return db
    except READ_ERRORS:
        pass
    copy, fresh = (file.with_name(f"{_PARTIAL}.{name}") for name in ("copy", "fresh"))
    # By another process: closing the file outside SQLite would drop the locks that this process has on it.
    subprocess.run(
        [sys.executable, "-I", "-c", "import shutil, sys; shutil.copyfile(*sys.argv[1:])", file, copy], check=True
    )
    Store.create(fresh, About({}, 1))
    page = bytearray(fresh.read_bytes()[:_PAGE])
    page[28:32] = (os.path.getsize(copy) // _PAGE).to_bytes(4, "big")  # how many there are
    page[32:40] = bytes(8)  # none is known to be free
    page[92:96] = page[24:28]  # so that their number is believed
    with open(copy, "r+b") as target:
        target.write(page)
    return stack.enter_context(closing(connect(copy)))


def _read_meta(db: sqlite3.Connection, file: Path) -> tuple[About, Whitening | None, int, int]:
    """Return what made the index; its whitening if it is sound; its generation and number of photos, 0 if lost."""
    meta: dict[str, dict[str, Any]] = {}
    for row in _saved(db, "meta", ["key", "value", "crc"]):
        if wrong_row("meta", row, 0) is None:
            meta[row[0]] = json.loads(row[1])
    if "about" not in meta:
        raise IndexDamagedError(
            f"{file}: damaged, and the record of the model that made it is lost, so that nothing can be saved; "
            "create the index anew from the photos"
        )
    state = meta.get("state", {"generation": 0, "photos": 0})
    about = About(**meta["about"])
    whitening = None
    with suppress(KeyError, TypeError, ValueError):
        whitening = Whitening.from_bytes(b64decode(meta["whitening"]["safetensors"]))
    if whitening and whitening.sha256 != about.fingerprint.get("whitening"):
        whitening = None  # the vectors are as the model gave them: without it, too, the index is whole
    return about, whitening, int(state["generation"]), int(state["photos"])


def _copy(old: sqlite3.Connection, new: sqlite3.Connection, about: About) -> dict[str, int]:
    """Copy every sound row whose references are there; return how many by table.

    A vector without a photo is kept: a sync recognises its photo by the content.
    """
    saved = {}
    for table, columns in checked_tables(new).items():
        if table in ("meta", "changes"):  # the latter are for the cache, which is made anew
            continue
        marks = ", ".join("?" * len(columns))
        insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        for row in _saved(old, table, columns):
            if wrong_row(table, row, about.dim) is None and _has_references(new, table, row):
                new.execute(insert, row)
        (saved[table],) = new.execute(f"SELECT count(*) FROM {table}").fetchone()
    return saved


def _has_references(new: sqlite3.Connection, table: str, row: tuple[Any, ...]) -> bool:
    def there(sql: str, key: object) -> bool:
        return new.execute(sql, (key,)).fetchone() is not None

    vector = "SELECT 1 FROM vectors WHERE content_hash = ?"
    if table == "details":
        return there(vector, row[0])
    if table == "photos":
        return there("SELECT 1 FROM roots WHERE id = ?", row[0]) and (row[4] is None or there(vector, row[4]))
    return True


def _saved(db: sqlite3.Connection, table: str, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield every row that can be reached, from both ends and one by one by the index; some perhaps more than once."""
    ways = _WAYS[table]
    key = ", ".join(ways.key)
    select = f"SELECT {key}, {', '.join(columns)} FROM {table} NOT INDEXED"
    n = len(ways.key)
    whole = yield from _until_damage(db, f"{select} ORDER BY {key}", n)
    if whole:
        return
    backwards = f"{key.replace(',', ' DESC,')} DESC"
    yield from _until_damage(db, f"{select} ORDER BY {backwards}", n)
    if ways.by is None:
        return
    find = f"SELECT coalesce({ways.order}, x''), {key}, {key} FROM {table} INDEXED BY {ways.by}"
    where = " AND ".join(f"{column} = ?" for column in ways.key)
    for order in (f"{ways.order}, {key}", f"{ways.order} DESC, {backwards}"):
        for found in _until_damage(db, f"{find} ORDER BY {order}", n + 1):
            yield from _until_damage(db, f"{select} WHERE {where}", n, found)


def _until_damage(
    db: sqlite3.Connection, sql: str, key: int, values: tuple[Any, ...] = ()
) -> Generator[tuple[Any, ...], None, bool]:
    """Yield a query's rows in order, without the first `key` columns, the order; return whether it came to its end.

    Damaged pages that refer to each other in a circle would never end, but they cannot be in order.
    """
    previous, down = None, " DESC" in sql
    try:
        for row in db.execute(sql, values):
            if previous is not None and not (row[:key] < previous if down else row[:key] > previous):
                return False
            previous = row[:key]
            yield row[key:]
    except (*READ_ERRORS, TypeError):  # TypeError: keys that do not compare
        return False
    return True


def _put_state(new: sqlite3.Connection, generation: int) -> None:
    (text,) = new.execute("SELECT value FROM meta WHERE key = 'state'").fetchone()
    (photos, live) = new.execute("SELECT count(*), count(*) FILTER (WHERE state = 'live') FROM photos").fetchone()
    put_meta(new, "state", json.loads(text) | {"generation": generation, "photos": photos, "live": live})


def _replace_store(file: Path, partial: Path) -> Path:
    """Put the new store in the place of the damaged one, which keeps another name; there is a store at any moment."""
    kept = file.with_name(f"{STORE_NAME}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    n = 1
    while kept.exists():
        n += 1
        kept = kept.with_name(f"{kept.name.partition('+')[0]}+{n}")
    try:
        os.link(file, kept)
    except OSError:  # no hard links there
        os.replace(file, kept)
    journal = file.with_name(f"{STORE_NAME}-journal")
    if journal.exists():  # would be played back into the new store
        os.replace(journal, kept.with_name(f"{kept.name}-journal"))
    os.replace(partial, file)
    try:
        _files.fsync_directory(file.parent)
    except OSError as e:
        raise IndexWriteError(f"{file}: repaired, but a power cut may bring the damaged one back: {e}") from e
    return kept
