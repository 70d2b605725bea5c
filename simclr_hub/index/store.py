"""The store: one SQLite file, the truth about photos and their vectors.

Unusual: a rollback journal with synchronous=EXTRA, because a commit that was reported must outlive a power loss; one
writer behind a lock file of its own, and the store's file is never opened outside SQLite, because closing it would drop
SQLite's locks; every row carries a checksum; the file's identity is checked again before each commit.
"""

import json
import os
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from ..errors import IndexDamagedError, IndexError_, IndexLockedError, IndexMismatchError, IndexWriteError
from .records import ListingState, Photo, Root, checksum

SCHEMA_VERSION = 1
STORE_NAME = "store.sqlite3"
LOCK_NAME = "writer.lock"
_APPLICATION_ID = 0x53434C52  # "SCLR", where `file` and SQLite look for it
#: How long to wait for another process's transaction.
_BUSY_SECONDS = 30.0

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE roots (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, listing TEXT NOT NULL,"
    " crc INTEGER NOT NULL)",
    "CREATE TABLE vectors (content_hash BLOB PRIMARY KEY, vector BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE photos (root_id INTEGER NOT NULL REFERENCES roots, path BLOB NOT NULL, stamp TEXT NOT NULL,"
    " settled INTEGER NOT NULL, content_hash BLOB REFERENCES vectors,"
    " state TEXT NOT NULL CHECK (state IN ('live', 'missing', 'failed')), error TEXT, metadata TEXT NOT NULL,"
    " crc INTEGER NOT NULL, PRIMARY KEY (root_id, path)) WITHOUT ROWID",
    "CREATE INDEX photos_by_content ON photos (content_hash)",
    "CREATE TABLE in_flight (path BLOB PRIMARY KEY) WITHOUT ROWID",
)
_PHOTO = "root_id, path, stamp, settled, content_hash, state, error, metadata, crc"


@dataclass(frozen=True)
class About:
    """What an index is made of: the embedder's fingerprint, the width of its vectors, how they are compared."""

    fingerprint: dict[str, str]
    dim: int
    metric: str = "cosine"


class Store:
    """An open store.

    All methods may be called from any thread; those that write, only inside `writing` and `transaction`.

    Args:
        file: the SQLite file, made by `Store.create`.
        read_only: open without write access, for media that allow none.

    Attributes:
        lock: held during each call; hold it over several to see one state (with `reading`).
        about: what the index is made of.

    Raises:
        IndexDamagedError: it is damaged or not a store.
        IndexMismatchError: a newer version of this package made it.
    """

    def __init__(self, file: Path, *, read_only: bool = False):
        self.file, self.read_only = file, read_only
        self.lock = threading.RLock()
        self._writer = filelock.FileLock(file.with_name(LOCK_NAME), timeout=0, thread_local=False)
        self._writing = threading.Lock()
        self._pid = os.getpid()
        self._visible = False
        self._added = 0
        with self._errors():
            mode = "ro" if read_only else "rw"
            self._db: sqlite3.Connection | None = sqlite3.connect(
                f"{file.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=_BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._identity = self._file_identity()
                self._check_layout(self._db)
                self._check_identity()
                self.about = About(**self._meta("about"))
            except TypeError as e:
                self.close()
                raise self.damaged("its description is incomplete") from e
            except BaseException:
                self.close()
                raise
        _open_stores.add(self)

    @staticmethod
    def create(file: Path, about: About) -> None:
        """Make an empty store at `file`, which must not exist."""
        db = sqlite3.connect(file, isolation_level=None)
        try:
            for pragma in ("page_size = 16384", "journal_mode = DELETE", "synchronous = EXTRA"):
                db.execute(f"PRAGMA {pragma}")
            db.execute("BEGIN")
            for statement in _SCHEMA:
                db.execute(statement)
            _put_meta(db, "about", vars(about))
            _put_meta(db, "state", {"generation": 0, "photos": 0})
            _put_meta(db, "cache", {"generation": -1, "sha256": ""})
            db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
            db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            db.execute("COMMIT")
        finally:
            db.close()

    def close(self) -> None:
        """Close the store; harmless twice, and in a forked child, where the connection is left to the parent."""
        with self.lock:
            db = self._db
            if db is not None and os.getpid() == self._pid:
                self._db = None
                db.close()

    # Transactions.

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the one writer.

        Raises:
            IndexLockedError: another process or thread is; names the process.
            IndexWriteError: the store was opened read-only.
        """
        self._connection()
        if self.read_only:
            raise IndexWriteError(f"{self.file.parent}: this index is read-only here; only searching works")
        if not self._writing.acquire(blocking=False):
            raise IndexLockedError(f"{self.file.parent}: a thread of this process ({os.getpid()}) writes to it; wait")
        try:
            lock_file = self.file.with_name(LOCK_NAME)
            try:
                self._writer.acquire()
            except filelock.Timeout as e:
                with suppress(OSError, ValueError):
                    raise IndexLockedError(
                        f"{self.file.parent}: process {int(lock_file.read_text())} writes to it; wait until it is done"
                    ) from e
                raise IndexLockedError(f"{self.file.parent}: another process writes to it; wait") from e
            except OSError as e:
                raise IndexWriteError(f"{lock_file}: {e.strerror or e}") from e
            try:
                with suppress(OSError):
                    lock_file.write_text(str(os.getpid()))
                yield
            finally:
                self._writer.release()
        finally:
            self._writing.release()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's writes, or none; a new generation if a search can see one of them.

        Raises:
            IndexWriteError: it could not be written; the store is as before.
            IndexDamagedError: the file was moved, removed or replaced while open.
        """
        if not self._writing.locked():
            raise RuntimeError("a transaction needs Store.writing")
        with self.lock, self._errors():
            db = self._connection()
            self._check_identity()
            self._visible, self._added = False, 0
            db.execute("BEGIN IMMEDIATE")
            try:
                yield
                if self._visible or self._added:
                    state = self._meta("state")
                    state["generation"] += self._visible
                    state["photos"] += self._added
                    _put_meta(db, "state", state)
                self._check_identity()
                db.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[None]:
        """One state of the store over several reads, whatever other processes do."""
        with self.lock, self._errors():
            db = self._connection()
            if db.in_transaction:
                yield
                return
            db.execute("BEGIN")
            try:
                yield
            finally:
                with suppress(sqlite3.Error):
                    db.execute("ROLLBACK")

    # Reading.

    def generation(self) -> int:
        """A number that grows with every commit that a search can see."""
        with self.lock:
            return int(self._meta("state")["generation"])

    def photos(self, root_id: int | None = None) -> Iterator[Photo]:
        """All photos of a root, or of all roots, each verified."""
        with self.reading():
            if root_id is None:
                rows = self._rows(f"SELECT {_PHOTO} FROM photos ORDER BY root_id, path")
                count = self._meta("state")["photos"]
                if len(rows) != count:
                    raise self.damaged(f"{len(rows)} photos are there, {count} were recorded")
            else:
                rows = self._rows(f"SELECT {_PHOTO} FROM photos WHERE root_id = ? ORDER BY path", root_id)
        return map(self._photo, rows)

    def photo(self, root_id: int, path: bytes) -> Photo | None:
        """One photo."""
        rows = self._rows(f"SELECT {_PHOTO} FROM photos WHERE root_id = ? AND path = ?", root_id, path)
        return self._photo(rows[0]) if rows else None

    def photos_with(self, content_hash: bytes) -> list[Photo]:
        """The photos of this content, in every state."""
        return [
            self._photo(r)
            for r in self._rows(
                f"SELECT {_PHOTO} FROM photos WHERE content_hash = ? ORDER BY root_id, path", content_hash
            )
        ]

    def counts(self) -> dict[str, int]:
        """How many photos are in each state, and how many vectors there are."""
        with self.reading():
            counts = dict.fromkeys(("live", "missing", "failed"), 0)
            counts.update(self._rows("SELECT state, count(*) FROM photos GROUP BY state"))
            counts["vectors"] = self._rows("SELECT count(*) FROM vectors")[0][0]
        return counts

    def roots(self) -> dict[int, Root]:
        """The root folders by id."""
        roots = {}
        for *columns, crc in self._rows("SELECT id, path, listing, crc FROM roots ORDER BY path"):
            if crc != checksum(*columns):
                raise self.damaged("a root folder's row does not match its checksum")
            roots[columns[0]] = Root(*columns)
        return roots

    def vector(self, content_hash: bytes) -> np.ndarray | None:
        """The vector (D,) of a content."""
        rows = self._rows("SELECT content_hash, vector, crc FROM vectors WHERE content_hash = ?", content_hash)
        return self._vector(rows[0]) if rows else None

    def vectors(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """Every content hash with its vector (D,), in no order; inside `reading`."""
        for row in self._connection().execute("SELECT content_hash, vector, crc FROM vectors"):
            yield row[0], self._vector(row)

    def in_flight(self) -> set[bytes]:
        """Absolute paths that were about to be decoded when the last sync ended, if it was killed."""
        return {path for (path,) in self._rows("SELECT path FROM in_flight")}

    def cache(self) -> tuple[int, str]:
        """The generation of the FAISS file and the SHA-256 of its bytes."""
        record = self._meta("cache")
        return record["generation"], record["sha256"]

    # Writing, inside a transaction.

    def put(self, photo: Photo) -> None:
        """Add or replace a photo; its vector must be there."""
        old = self.photo(photo.root_id, photo.path)
        self._visible |= old is None or old.visible != photo.visible
        self._added += old is None
        columns = photo.columns()
        marks = ", ".join("?" * (len(columns) + 1))
        self._execute(f"INSERT OR REPLACE INTO photos ({_PHOTO}) VALUES ({marks})", *columns, checksum(*columns))

    def forget(self, photo: Photo) -> None:
        """Drop a photo's row; its vector stays until `forget_vectors`."""
        gone = self._execute("DELETE FROM photos WHERE root_id = ? AND path = ?", photo.root_id, photo.path)
        self._added -= gone
        self._visible |= gone > 0

    def put_vector(self, content_hash: bytes, vector: np.ndarray) -> None:
        """Add a vector (D,) of length 1."""
        data = vector.astype("<f4").tobytes()
        self._execute(
            "INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", content_hash, data, checksum(content_hash, data)
        )

    def forget_vectors(self) -> int:
        """Drop the vectors that no photo refers to; how many."""
        return self._execute(
            "DELETE FROM vectors WHERE NOT EXISTS (SELECT 1 FROM photos WHERE photos.content_hash = vectors.content_hash)"
        )

    def put_root(self, path: bytes, listing: ListingState) -> Root:
        """Add a root or record how its listing went."""
        rows = self._rows("SELECT id FROM roots WHERE path = ?", path)
        root_id = rows[0][0] if rows else 1 + self._rows("SELECT coalesce(max(id), 0) FROM roots")[0][0]
        columns = (root_id, path, listing)
        self._execute(
            "INSERT INTO roots VALUES (?, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET listing = excluded.listing, crc = excluded.crc",
            *columns,
            checksum(*columns),
        )
        return Root(*columns)

    def forget_root(self, root: Root) -> None:
        """Drop a root that has no photos."""
        self._execute("DELETE FROM roots WHERE id = ?", root.id)

    def put_in_flight(self, paths: list[bytes]) -> None:
        """Record absolute paths before they are decoded."""
        for path in paths:
            self._execute("INSERT OR IGNORE INTO in_flight VALUES (?)", path)

    def forget_in_flight(self, paths: list[bytes]) -> None:
        """They were decoded."""
        for path in paths:
            self._execute("DELETE FROM in_flight WHERE path = ?", path)

    def put_cache(self, generation: int, sha256: str) -> None:
        """Record the FAISS file that was written."""
        _put_meta(self._connection(), "cache", {"generation": generation, "sha256": sha256})

    # Underneath.

    def _connection(self) -> sqlite3.Connection:
        if os.getpid() != self._pid:
            raise IndexError_(
                f"{self.file.parent}: opened by process {self._pid}, used in its fork {os.getpid()}; open it again there"
            )
        if self._db is None:
            raise IndexError_(f"{self.file.parent}: this index was closed; open it again")
        return self._db

    def _execute(self, sql: str, *values: object) -> int:
        """Run one statement; how many rows it touched."""
        with self.lock, self._errors():
            return self._connection().execute(sql, values).rowcount

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with self.lock, self._errors():
            return self._connection().execute(sql, values).fetchall()

    def _photo(self, row: tuple[Any, ...]) -> Photo:
        if checksum(*row[:-1]) != row[-1]:
            raise self.damaged("a photo's row does not match its checksum")
        return Photo.from_columns(*row[:-1])

    def _vector(self, row: tuple[Any, ...]) -> np.ndarray:
        content_hash, data, crc = row
        if not isinstance(data, bytes) or checksum(content_hash, data) != crc or len(data) != 4 * self.about.dim:
            raise self.damaged("a vector does not match its checksum")
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)

    def _meta(self, key: str) -> dict[str, Any]:
        rows = self._rows("SELECT value, crc FROM meta WHERE key = ?", key)
        if len(rows) != 1 or checksum(key, rows[0][0]) != rows[0][1]:
            raise self.damaged(f"its {key} record is damaged")
        value: dict[str, Any] = json.loads(rows[0][0])
        return value

    def _check_layout(self, db: sqlite3.Connection) -> None:
        for pragma in ("synchronous = EXTRA", "foreign_keys = ON", "cell_size_check = ON", "trusted_schema = OFF"):
            db.execute(f"PRAGMA {pragma}")
        if db.execute("PRAGMA application_id").fetchone() != (_APPLICATION_ID,):
            raise self.damaged("not a store of simclr_hub")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise IndexMismatchError(
                f"{self.file}: layout {version}, made by a newer simclr_hub; this one reads up to {SCHEMA_VERSION}: upgrade"
            )
        found = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
        if version != SCHEMA_VERSION or found != set(_SCHEMA):
            raise self.damaged("its tables are not those of a store")
        if db.execute("PRAGMA journal_mode").fetchone() != ("delete",):
            raise self.damaged("its journal mode was changed by another program")

    def _file_identity(self) -> tuple[int, int]:
        try:
            found = os.stat(self.file)
        except OSError as e:
            raise self._replaced() from e
        return found.st_dev, found.st_ino

    def _check_identity(self) -> None:
        if self._file_identity() != self._identity:
            raise self._replaced()

    def _replaced(self) -> IndexDamagedError:
        return IndexDamagedError(f"{self.file}: moved, removed or replaced while it was open; open the index again")

    def damaged(self, why: str) -> IndexDamagedError:
        """The error that says so."""
        return IndexDamagedError(
            f"{self.file}: damaged: {why}; restore the index from a copy, or create it anew from the photos"
        )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.Error as e:
            text = str(e).lower()
            if "locked" in text:
                raise IndexLockedError(f"{self.file}: another process holds it; try again") from e
            if any(w in text for w in ("full", "i/o", "readonly", "unable to open")):
                raise IndexWriteError(
                    f"{self.file}: {e}; what was committed before is safe. Check the disk's space and permissions"
                ) from e
            raise self.damaged(str(e)) from e


def _put_meta(db: sqlite3.Connection, key: str, value: dict[str, Any]) -> None:
    text = json.dumps(value)
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, checksum(key, text)))


# A fork in the middle of a transaction would let the child's exit roll it back under the parent: wait for its end.
_open_stores: "weakref.WeakSet[Store]" = weakref.WeakSet()
_held: list[Store] = []


def _before_fork() -> None:
    for store in list(_open_stores):
        store.lock.acquire()
        _held.append(store)


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
