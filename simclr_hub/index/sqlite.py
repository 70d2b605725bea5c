"""An SQLite file that keeps what it acknowledged: opened, locked and written, every error named."""

import errno
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, ClassVar

import filelock

from ..errors import IndexDamagedError, IndexError_, IndexLockedError, IndexMismatchError, IndexWriteError

LOCK_NAME = "writer.lock"
_JOURNAL_MAGIC = bytes.fromhex("d9d505f920a163d7")
#: How long to wait for another process's transaction.
BUSY_SECONDS = 30.0
#: How long a commit waits for readers, as a search for duplicates among millions; what it ends may be hours of work.
COMMIT_SECONDS = 900.0


class Database:
    """An open file; a subclass tells its layout.

    All methods may be called from any thread; those that write, only inside `writing` and `transaction`.

    Args:
        file: made by `create_file`.
        read_only: open without write access, for media that allow none.

    Attributes:
        lock: held during each call; hold it over several to keep other threads out.

    Raises:
        IndexDamagedError: it is damaged, or not a file of this kind.
        IndexMismatchError: its layout is newer, or older and the file cannot be written.
    """

    application_id: ClassVar[int]  # tells whose file it is
    layout: ClassVar[int]  # the version of its tables
    schema: ClassVar[Sequence[str]]  # the statements that make them
    migrations: ClassVar[Mapping[int, Sequence[str]]]  # by older layout: statements to the next; a copy is kept

    def __init__(self, file: Path, *, read_only: bool = False):
        self.file, self.read_only = file, read_only
        self.lock = threading.RLock()
        self._writing = threading.Lock()
        self._pid = os.getpid()
        with self._errors():
            refuse_foreign_journal(file)
            # From here on the file is never opened outside SQLite: closing it would drop SQLite's locks.
            self._db: sqlite3.Connection | None = sqlite3.connect(
                f"{file.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}",
                uri=True,
                timeout=BUSY_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._identity = self._file_identity()
                self._check_owner(self._db)
                for old in sorted(self.migrations):
                    self._migrate(self._db, old)
                self._check_layout(self._db)
                self._check_identity()
            except BaseException:
                self.close()
                raise
        _open_databases.add(self)

    @classmethod
    @contextmanager
    def create_file(cls, file: Path) -> Iterator[sqlite3.Connection]:
        """Make an empty file, and give a transaction for first rows.

        Raises:
            OSError: there is no room, or the disk fails; whoever chose the place names it.
        """
        try:
            with closing(sqlite3.connect(file, isolation_level=None)) as db:
                for pragma in ("page_size = 16384", "journal_mode = DELETE", "synchronous = EXTRA"):
                    db.execute(f"PRAGMA {pragma}")
                db.execute("BEGIN")
                identity = (f"PRAGMA application_id = {cls.application_id}", f"PRAGMA user_version = {cls.layout}")
                for statement in (*cls.schema, *identity):
                    db.execute(statement)
                yield db
                db.execute("COMMIT")
        except sqlite3.OperationalError as e:
            full = e.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL
            raise OSError(errno.ENOSPC if full else errno.EIO, str(e)) from e

    def close(self) -> None:
        """Close the file; harmless twice, and in a forked child, where the connection is left to the parent."""
        with self.lock:
            db = self._db
            if db is not None and os.getpid() == self._pid:
                self._db = None
                db.close()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold the writer's lock and a transaction.

        Raises:
            IndexLockedError: another process or thread writes; names the process.
            IndexWriteError: the file was opened read-only, or the lock file cannot be written.
        """
        self._connection()
        directory = self.file.parent
        if self.read_only:
            raise IndexWriteError(f"{directory}: this index is read-only here; only searching works")
        if not self._writing.acquire(blocking=False):
            raise IndexLockedError(f"{directory}: another thread of this process ({os.getpid()}) writes to it; wait")
        try:
            with writer_lock(self.file):
                yield
        finally:
            self._writing.release()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit all of the block's writes, or none.

        Raises:
            IndexWriteError: it could not be written; the file is as before.
            IndexDamagedError: the file was moved, removed or replaced while open.
        """
        if not self._writing.locked():
            raise RuntimeError("a transaction needs Database.writing")
        with self.lock, self._errors():
            db = self._connection()
            self._check_identity()
            with _committed(db):
                try:
                    yield
                    self._before_commit()
                    self._check_identity()  # what is committed to a file that was replaced would be lost
                finally:
                    self._after_transaction()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Read one state of the file several times, whatever other processes write."""
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

    def damaged(self, why: str) -> IndexDamagedError:
        """Return the error that says so."""
        return IndexDamagedError(
            f"{self.file}: damaged: {why}; restore the index from a copy, or create it anew from the photos"
        )

    def _before_commit(self) -> None:
        """Add a subclass's part of a transaction."""

    def _after_transaction(self) -> None:
        """End a subclass's part of a transaction, committed or not."""

    def _rows(self, sql: str, *values: object) -> list[Any]:
        with self.lock, self._errors():
            return self._connection().execute(sql, values).fetchall()

    def _execute(self, sql: str, *values: object) -> int:
        """Run one statement; return how many rows it touched."""
        with self.lock, self._errors():
            return self._connection().execute(sql, values).rowcount

    def _connection(self) -> sqlite3.Connection:
        if os.getpid() != self._pid:
            raise IndexError_(
                f"{self.file.parent}: opened by process {self._pid}, used in its fork {os.getpid()}; "
                "open the index again there"
            )
        if self._db is None:
            raise IndexError_(f"{self.file.parent}: this index was closed; open it again")
        return self._db

    def _check_owner(self, db: sqlite3.Connection) -> None:
        # EXTRA, with a rollback journal: a commit that was reported must outlive a power loss.
        for pragma in ("synchronous = EXTRA", "foreign_keys = ON", "cell_size_check = ON", "trusted_schema = OFF"):
            db.execute(f"PRAGMA {pragma}")
        if db.execute("PRAGMA application_id").fetchone() != (self.application_id,):
            raise self.damaged("not a store of simclr_hub")

    def _migrate(self, db: sqlite3.Connection, old: int) -> None:
        """Bring layout `old` to the next, if that is what this is; a kill leaves the one or the other."""
        if db.execute("PRAGMA user_version").fetchone() != (old,):
            return
        if self.read_only:
            raise IndexMismatchError(
                f"{self.file}: layout {old}, made by an older simclr_hub; open it once where it can be written"
            )
        with self.writing():
            copy = self.file.with_name(f"{self.file.name}.layout{old}")
            copy.unlink(missing_ok=True)  # of an attempt that was killed
            db.execute("VACUUM INTO ?", (os.fspath(copy),))
            with _committed(db):
                if db.execute("PRAGMA user_version").fetchone() == (old,):  # not migrated by another meanwhile
                    for statement in (*self.migrations[old], f"PRAGMA user_version = {old + 1}"):
                        db.execute(statement)

    def _check_layout(self, db: sqlite3.Connection) -> None:
        (found,) = db.execute("PRAGMA user_version").fetchone()
        if found > self.layout:
            raise IndexMismatchError(
                f"{self.file}: layout {found}, made by a newer simclr_hub; this one reads up to {self.layout}: upgrade"
            )
        statements = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")}
        if found != self.layout or statements != set(self.schema):
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

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise SQLite's errors as ours."""
        try:
            yield
        except UnicodeDecodeError as e:  # from sqlite3: a message that quotes damaged text
            raise self.damaged("text that is no UTF-8") from e
        except sqlite3.Error as e:
            text = str(e).lower()
            if "locked" in text:
                raise IndexLockedError(f"{self.file}: another process holds it; try again") from e
            if "readonly" in text and os.path.exists(f"{self.file}-journal"):
                raise IndexWriteError(
                    f"{self.file}: a write to it was interrupted, and it cannot be undone where nothing can be "
                    "written: copy the index to another place, or make this one writable, and open it there"
                ) from e
            if any(word in text for word in ("full", "i/o", "readonly", "unable to open")):
                raise IndexWriteError(
                    f"{self.file}: {e}; what was committed before is safe. Check the disk's space and permissions"
                ) from e
            raise self.damaged(str(e)) from e


@contextmanager
def _committed(db: sqlite3.Connection) -> Iterator[None]:
    """Write in one transaction, undone if the block raises."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        until = time.monotonic() + COMMIT_SECONDS
        while db.in_transaction:
            try:
                db.execute("COMMIT")
            except sqlite3.OperationalError as e:  # after BUSY_SECONDS; what was written is still to be committed
                if "locked" not in str(e) or time.monotonic() > until:
                    raise
    except BaseException:
        with suppress(sqlite3.Error):
            db.execute("ROLLBACK")
        raise


def refuse_foreign_journal(file: Path) -> None:
    """Refuse a store whose journal names another file.

    SQLite deletes the file that the end of a journal names as the super-journal of a transaction over several stores.
    This package never makes one: whoever did wanted a file gone. Format: sqlite.org/fileformat2.html, section 3.

    Raises:
        IndexDamagedError: it does.
    """
    try:
        with open(f"{file}-journal", "rb") as journal:
            journal.seek(-8, os.SEEK_END)
            end = journal.read()
    except OSError:  # there is none, or it is shorter than that
        return
    if end == _JOURNAL_MAGIC:
        raise IndexDamagedError(f"{file}-journal: names another file to be deleted, so this package did not write it")


@contextmanager
def writer_lock(file: Path) -> Iterator[None]:
    """Hold the lock of a database's one writer, with the process's id in its file for others to name.

    Raises:
        IndexLockedError: another holds it; names the process.
        IndexWriteError: its file cannot be written.
    """
    lock_file = file.with_name(LOCK_NAME)
    lock = filelock.FileLock(lock_file, timeout=0, thread_local=False)
    try:
        lock.acquire()
    except filelock.Timeout as e:
        pid = "another process"
        with suppress(OSError, ValueError):
            pid = f"process {int(lock_file.read_text())}"
        raise IndexLockedError(f"{lock_file.parent}: {pid} writes to it; wait until it is done") from e
    except OSError as e:
        raise IndexWriteError(f"{lock_file}: {e.strerror or e}") from e
    try:
        with suppress(OSError):  # on Windows nobody may write to it now, not even we
            lock_file.write_text(str(os.getpid()))
        yield
    finally:
        lock.release()


# A fork in the middle of a transaction would let the child's exit roll it back under the parent: wait for its end.
_open_databases: "weakref.WeakSet[Database]" = weakref.WeakSet()
_held: list[Database] = []


def _before_fork() -> None:
    for database in list(_open_databases):
        database.lock.acquire()
        _held.append(database)


def _after_fork() -> None:
    while _held:
        _held.pop().lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork)
