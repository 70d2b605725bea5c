"""Find what a sync has to do: a listing compared with what is recorded, in a temporary file, not in memory.

SQLite keeps that file, below its temporary folder (SQLITE_TMPDIR, TMPDIR), without a name, so that nothing is left of
it; about 150 bytes a photo. Memory holds a page of both sides at a time.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from ..scan import SEPARATOR, FileStat
from .paths import is_below
from .sandboxed_decode import ends_process
from .store import Photo

#: Share of a root's photos that have new inodes where its file system numbers them anew; of so many at least.
RENUMBERED, FEWEST_RENUMBERED = 0.9, 10
#: Rows that are written at a time.
_ROWS = 4096

#: "new": not recorded under this path, its content may be known; "changed": recorded, but the stat differs or is too
#: young to be trusted; "renumbered": recorded, with another inode and nothing else; "came back": it was missing;
#: "missing": recorded, judged, not there, and not marked yet.
Kind = Literal["new", "changed", "renumbered", "came back", "missing"]


class Listed:
    """Hold the photos that a scan saw, by path, on disk."""

    def __init__(self) -> None:
        self._db = _temporary("CREATE TABLE photos (path BLOB PRIMARY KEY, stat TEXT NOT NULL) WITHOUT ROWID")
        self._rows: dict[bytes, str] = {}

    def add(self, path: bytes, stat: FileStat) -> None:
        """Add one."""
        self._rows[path] = _text(stat)
        if len(self._rows) >= _ROWS:
            self._write()

    def __contains__(self, path: bytes) -> bool:
        self._write()
        return self._db.execute("SELECT 1 FROM photos WHERE path = ?", (path,)).fetchone() is not None

    def in_order(self) -> Iterator[tuple[bytes, FileStat]]:
        """Yield the paths with their stats, in order."""
        self._write()
        rows = self._db.execute("SELECT path, stat FROM photos ORDER BY path")
        return ((path, _stat(text)) for path, text in rows)

    def close(self) -> None:
        """Drop the file."""
        self._db.close()

    def _write(self) -> None:
        if self._rows:
            self._db.executemany("INSERT OR REPLACE INTO photos VALUES (?, ?)", self._rows.items())
            self._rows.clear()


class Item(NamedTuple):
    """Hold a file, with the stat as it was listed, or as it is recorded for one that was not."""

    path: bytes
    stat: FileStat


class Plan:
    """Hold what is to be done, by kind, in the order of the paths.

    Attributes:
        unchanged: how many photos have the stat that is recorded, and it is trusted.
        failed: how many of them have no vector.
        counts: how many there are of each kind.
        crashed: those whose decoder once ended its process.
        new_inodes: whether what is "renumbered" is believed to be the file it was; if not, it is read again.
    """

    def __init__(self) -> None:
        self.unchanged = self.failed = 0
        self.counts: dict[Kind, int] = {"new": 0, "changed": 0, "renumbered": 0, "came back": 0, "missing": 0}
        self.crashed: set[bytes] = set()
        self.new_inodes = False
        self._db = _temporary("CREATE TABLE work (kind TEXT NOT NULL, path BLOB NOT NULL, stat TEXT NOT NULL)")
        self._rows: list[tuple[Kind, bytes, str]] = []

    def add(self, kind: Kind, path: bytes, stat: FileStat) -> None:
        """Add what is to be done with a photo; after those with smaller paths."""
        self.counts[kind] += 1
        self._rows.append((kind, path, _text(stat)))
        if len(self._rows) >= _ROWS:
            self._write()

    @property
    def to_read(self) -> int:
        """Return how many files are to be read."""
        return sum(self.counts[kind] for kind in self._read)

    def todo(self) -> Iterator[Item]:
        """Yield the files that are to be read."""
        return self._of(*self._read)

    def there(self) -> Iterator[Item]:
        """Yield the recorded photos that are there as they were, but for an inode or for having been missing."""
        return self._of("came back", "renumbered") if self.new_inodes else self._of("came back")

    def missing(self) -> Iterator[Item]:
        """Yield the recorded photos that are not there."""
        return self._of("missing")

    def close(self) -> None:
        """Drop the file."""
        self._db.close()

    @property
    def _read(self) -> tuple[Kind, ...]:
        return ("new", "changed") if self.new_inodes else ("new", "changed", "renumbered")

    def _of(self, *kinds: Kind) -> Iterator[Item]:
        self._write()
        marks = ", ".join("?" * len(kinds))
        rows = self._db.execute(f"SELECT path, stat FROM work WHERE kind IN ({marks}) ORDER BY rowid", kinds)
        return (Item(path, _stat(text)) for path, text in rows)

    def _write(self) -> None:
        self._db.executemany("INSERT INTO work VALUES (?, ?, ?)", self._rows)
        self._rows.clear()


def make_plan(
    listed: Iterable[tuple[bytes, FileStat]],
    recorded: Iterable[Photo],
    errors: Mapping[bytes, str],
    folder: bytes = b"",
    inside: Callable[[bytes], FileStat | None] = lambda path: None,
) -> Plan:
    """Compare a listing with what is recorded; no file is touched.

    Args:
        listed: what a scan of `folder` saw, in the order of the paths.
        recorded: the photos of the root, in the order of the paths.
        errors: what could not be examined, see `Listing.errors`; what lies below is not judged.
        folder: what was scanned, relative to the root; photos outside are not judged.
        inside: returns the stat of the file, if any, that a path which was not listed leads into, such as an archive.
    """
    plan = Plan()
    same = renumbered = 0
    for path, stat, photo in _joined(listed, recorded):
        if photo is None:
            if stat is not None:  # as it is
                plan.add("new", path, stat)
            continue
        if not is_below(path, folder):
            continue
        if ends_process(photo.error):
            plan.crashed.add(path)
        if stat is None:
            around = inside(path)
            if around and (around.size, around.mtime_ns) == (photo.stat.size, photo.stat.mtime_ns):
                if photo.state == "missing":
                    plan.add("came back", path, photo.stat)
            elif photo.state != "missing" and not _unknown(path, errors):
                plan.add("missing", path, photo.stat)
        else:
            like = stat != photo.stat and _same_file(stat, photo.stat)
            same += like or stat == photo.stat
            renumbered += like
            if not photo.settled or not (like or stat == photo.stat):
                plan.add("changed", path, stat)
            elif like:
                plan.add("renumbered", path, stat)
            elif photo.state == "missing":
                plan.add("came back", path, stat)
            else:
                plan.unchanged += 1
                plan.failed += photo.content_hash is None
    # One file of unchanged size and times with another inode was replaced by such a file, and is to be read. That
    # nearly all were is not to be believed: exFAT, sshfs and others number their files anew at each mount.
    plan.new_inodes = same >= FEWEST_RENUMBERED and renumbered >= RENUMBERED * same
    return plan


def _joined(
    listed: Iterable[tuple[bytes, FileStat]], recorded: Iterable[Photo]
) -> Iterator[tuple[bytes, FileStat | None, Photo | None]]:
    """Yield every path of the two with what each knows of it, in order."""
    left, right = iter(listed), iter(recorded)
    one, other = next(left, None), next(right, None)
    while one is not None and other is not None:
        path = min(one[0], other.path)
        here, there = one[0] == path, other.path == path
        yield path, one[1] if here else None, other if there else None
        one, other = next(left, None) if here else one, next(right, None) if there else other
    if one is not None:
        yield from ((path, stat, None) for path, stat in itertools.chain([one], left))
    if other is not None:
        yield from ((photo.path, None, photo) for photo in itertools.chain([other], right))


def _same_file(one: FileStat, other: FileStat) -> bool:
    return one._replace(inode=0) == other._replace(inode=0)


def _unknown(path: bytes, errors: Mapping[bytes, str]) -> bool:
    """Return whether the path or a folder above it could not be examined."""
    parts = path.split(SEPARATOR) if errors else []
    return any(SEPARATOR.join(parts[:n]) in errors for n in range(1, len(parts) + 1))


def _temporary(table: str) -> sqlite3.Connection:
    """Return a database that ends with its connection."""
    # Its user is one thread at a time, but not always the one that made it: an embedder may draw what it embeds.
    db = sqlite3.connect("", isolation_level=None, check_same_thread=False)
    for pragma in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -8192"):
        db.execute(f"PRAGMA {pragma}")
    db.execute(table)
    db.execute("BEGIN")  # ended by nothing but the end
    return db


def _text(stat: FileStat) -> str:
    return " ".join(map(str, stat))  # text, since times and inodes may exceed SQLite's integers


def _stat(text: str) -> FileStat:
    return FileStat(*map(int, text.split()))
