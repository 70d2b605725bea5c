"""What can be saved of a damaged store, copied into a new one that takes its place.

Unusual: rows are reached from both ends of a table and then one by one by the keys in its index, since SQLite stops at
the first damaged page; a vector without a photo is kept, because a sync recognises its photo by the content; and the
damaged file stays, under another name.
"""

import json
import os
import sqlite3
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, NamedTuple

from ... import _files
from ...errors import IndexDamagedError, IndexWriteError
from ...whitening import Whitening
from ..records import checksum
from ..report import RepairReport
from ..store import STORE_NAME, About, Store
from .check_store import READ_ERRORS, checked_tables, connect, wrong_row

_PARTIAL = f".{STORE_NAME}.repair"
_PAGE = 16384


class _Ways(NamedTuple):
    """The two ways to a table's rows: in the order of its key, and by an index that holds the key."""

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
            about, whitening, generation, photos = _records(old, file)
            Store.create(partial, about, whitening)
            new = stack.enter_context(closing(sqlite3.connect(partial, isolation_level=None)))
            new.execute("PRAGMA synchronous = EXTRA")
            new.execute("BEGIN IMMEDIATE")
            saved = _copy(old, new, about)
            _put_state(new, generation + 1)
            new.execute("COMMIT")
        kept_as = _publish(file, partial)
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
    """The damaged store, or a copy of it with a new first page if SQLite cannot open it."""
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


def _records(db: sqlite3.Connection, file: Path) -> tuple[About, Whitening | None, int, int]:
    """What made the index; its whitening if it is sound; its generation and number of photos, 0 if lost."""
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
    """Copy every sound row whose references are there; how many by table."""
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
    def there(key: object, column: str, other: str) -> bool:
        return new.execute(f"SELECT 1 FROM {other} WHERE {column} = ?", (key,)).fetchone() is not None

    if table == "details":
        return there(row[0], "content_hash", "vectors")
    if table == "photos":
        root_id, content_hash = row[0], row[4]
        return there(root_id, "id", "roots") and (
            content_hash is None or there(content_hash, "content_hash", "vectors")
        )
    return True


def _saved(db: sqlite3.Connection, table: str, columns: list[str]) -> Iterator[tuple[Any, ...]]:
    """Every row that can be reached, some perhaps more than once."""
    ways = _WAYS[table]
    key = ", ".join(ways.key)
    select = f"SELECT {key}, {', '.join(columns)} FROM {table} NOT INDEXED"
    n = len(ways.key)
    whole = yield from _until_damage(db, f"{select} ORDER BY {key}", n)
    if whole:
        return
    yield from _until_damage(db, f"{select} ORDER BY {key.replace(',', ' DESC,')} DESC", n)
    if ways.by is None:
        return
    find = f"SELECT coalesce({ways.order}, x''), {key}, {key} FROM {table} INDEXED BY {ways.by}"
    where = " AND ".join(f"{column} = ?" for column in ways.key)
    for order in (f"{ways.order}, {key}", f"{ways.order} DESC, {key.replace(',', ' DESC,')} DESC"):
        for found in _until_damage(db, f"{find} ORDER BY {order}", n + 1):
            yield from _until_damage(db, f"{select} WHERE {where}", n, found)


def _until_damage(
    db: sqlite3.Connection, sql: str, key: int, values: tuple[Any, ...] = ()
) -> Generator[tuple[Any, ...], None, bool]:
    """The rows of a query in order, without their first `key` columns, the order; returns whether it came to its end.

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
    text = json.dumps(json.loads(text) | {"generation": generation, "photos": photos, "live": live})
    new.execute("UPDATE meta SET value = ?, crc = ? WHERE key = 'state'", (text, checksum("state", text)))


def _publish(file: Path, partial: Path) -> Path:
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
