"""Check an index: SQLite's own structures, every row's checksum, every photo's vector; and what was not checked.

Unusual: rows are read by a connection of its own that goes on behind a damaged one, so that the report tells of all.
"""

import json
import math
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import IndexDamagedError
from ...images import describe
from ..database import refuse_foreign_journal
from ..records import Photo, checksum
from ..report import CheckReport
from ..search.segments import cache_fits
from ..store import About, Store

#: How far from 1 the length of a vector may be: float32 rounds 4096 squares by far less.
LENGTH_TOLERANCE = 1e-4
#: What reading a damaged file raises; the last from sqlite3 itself, for a message that quotes damaged text.
READ_ERRORS = (sqlite3.Error, MemoryError, UnicodeDecodeError)
#: Problems of one kind that are told one by one.
TOLD = 3


def check_store(file: Path, report: CheckReport, *, read_only: bool) -> None:
    """Check the store at `file` and its cache, and add to the report; the caller holds the writer's lock.

    Raises:
        IndexMismatchError: a newer version of this package made it.
    """
    try:
        store = Store(file, read_only=read_only)
    except IndexDamagedError as e:
        report.problems.append(str(e))
        report.unverified.append("the rows: the store cannot be opened")
        return
    with closing(store), closing(connect(file)) as db:
        if _check_pages(db, report):
            _check_rows(db, store.about, report)
            _check_as_a_whole(store, report)
        else:
            report.unverified.append("the rows: SQLite cannot be relied on to find them")


def connect(file: Path, *, writable: bool = False) -> sqlite3.Connection:
    """A connection for reading that gives damaged text as it is; a writable one plays a journal back first."""
    mode = "rw" if writable else "ro"
    refuse_foreign_journal(file)
    db = sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, timeout=30)
    db.text_factory = lambda data: data.decode(errors="surrogateescape")
    return db


def _check_pages(db: sqlite3.Connection, report: CheckReport) -> bool:
    """What SQLite checks itself; whether its pages are sound."""
    try:
        found = [text for (text,) in db.execute("PRAGMA integrity_check(20)")]
        orphans = db.execute("PRAGMA foreign_key_check").fetchall()
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    except READ_ERRORS as e:
        found, orphans, pages = [str(e)], [], 0
    if found == ["ok"]:
        report.verified["pages"] = pages
    else:
        lines = [line for text in found for line in text.splitlines() if not line.startswith("***")]
        report.problems += [f"SQLite: {line}" for line in lines[:TOLD]]
    if orphans:
        report.problems.append(f"{len(orphans):,} rows refer to others that are not there")
    return found == ["ok"]


def _check_rows(db: sqlite3.Connection, about: About, report: CheckReport) -> None:
    """Every row of every table that has checksums."""
    for table, columns in checked_tables(db).items():
        good = 0
        bad: list[str] = []
        try:
            for row in db.execute(f"SELECT {', '.join(columns)} FROM {table}"):
                why = wrong_row(table, row, about.dim)
                if why is None:
                    good += 1
                else:
                    bad.append(f"{table}: {name_row(table, row)}: {why}")
        except READ_ERRORS as e:
            bad.append(f"{table}: reading stopped after {good:,} rows: {e}")
        report.verified[table] = good
        report.problems += bad[:TOLD]
        if len(bad) > TOLD:
            report.problems.append(f"{table}: {len(bad) - TOLD:,} more rows like these")


def checked_tables(db: sqlite3.Connection) -> dict[str, list[str]]:
    """The tables whose rows carry a checksum, with their columns, the checksum last; those referred to come first."""
    tables = {}
    for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY rowid").fetchall():
        columns = [row[1] for row in db.execute(f"PRAGMA table_info({table})")]
        if "crc" in columns:
            tables[table] = [column for column in columns if column != "crc"] + ["crc"]
    return tables


def wrong_row(table: str, row: tuple[Any, ...], dim: int) -> str | None:
    """What is wrong with a row beyond what SQLite sees to, None if nothing."""
    if checksum(*row[:-1]) != row[-1]:
        return "does not match its checksum"
    try:
        if table == "vectors":
            return _wrong_vector(row[1], dim)
        if table == "photos":
            return _wrong_photo(Photo.from_columns(*row[:-1]))
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


def _wrong_photo(photo: Photo) -> str | None:
    json.loads(photo.metadata)
    if photo.state != "failed" and photo.content_hash is None:
        return f"{photo.state} without content"
    return None


def name_row(table: str, row: tuple[Any, ...]) -> str:
    """A row for a message."""
    key = row[1] if table in ("photos", "roots") else row[0]
    if not isinstance(key, bytes):
        return describe(str(key))
    return describe(key.decode(errors="surrogateescape")) if table in ("photos", "roots") else key.hex()[:16]


def _check_as_a_whole(store: Store, report: CheckReport) -> None:
    """What only all rows together can tell: counts, order, and what depends on the store."""
    try:
        # Reading all of them compares their number with the one recorded: none is lost, none is doubled.
        report.verified["photos with a vector"] = _with_vector(store)
        if store.whitening():
            report.verified["whitening"] = 1
        if (counted := store.counts()["live"]) != (recorded := store.live()):
            report.problems.append(f"{counted:,} photos can be found, {recorded:,} were recorded")
        for photo_root in store.roots().values():
            if photo_root.listing != "ok":
                name = describe(photo_root.path.decode(errors="surrogateescape"))
                report.notes.append(f"{name}: its last listing was not complete")
    except IndexDamagedError as e:
        if str(e) not in report.problems:
            report.problems.append(str(e))
    with suppress(IndexDamagedError):
        if cache_fits(store):
            report.verified["search cache"] = 1
        else:
            report.notes.append("the search cache does not fit; the next sync makes it anew, a search does without")


def _with_vector(store: Store) -> int:
    with store.reading():
        photos = [photo for photo in store.photos() if photo.state != "failed"]
        vectors = {content_hash for (content_hash,) in store._rows("SELECT content_hash FROM vectors")}
    without = sum(photo.content_hash not in vectors for photo in photos)
    if without:
        raise store.damaged(f"{without:,} photos without a vector")
    return len(photos)
