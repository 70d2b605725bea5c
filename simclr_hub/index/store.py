"""The store: photos, their vectors and details, root folders, and what made the index, in one SQLite file."""

import json
import math
import operator
import os
import re
import sqlite3
import zlib
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..metadata import MAX_TEXT
from ..scan import FileStat, Rules
from ..whitening import Whitening
from .sqlite import Database

SCHEMA_VERSION = 2
STORE_NAME = "store.sqlite3"
#: How far from 1 the length of a vector may be: float32 rounds 4096 squares by far less.
LENGTH_TOLERANCE = 1e-4
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
    "CREATE TABLE details (content_hash BLOB PRIMARY KEY REFERENCES vectors, info TEXT NOT NULL,"
    " signature BLOB NOT NULL, crc INTEGER NOT NULL)",
    "CREATE TABLE distinct_pairs (a BLOB NOT NULL, b BLOB NOT NULL, crc INTEGER NOT NULL,"
    " PRIMARY KEY (a, b)) WITHOUT ROWID",
    # What searches that go on beside a sync have to read again; a cache of all that is emptied when that is written.
    "CREATE TABLE changes (generation INTEGER NOT NULL, crc INTEGER NOT NULL, content_hash BLOB NOT NULL)",
)
_META = "SELECT key, value, crc FROM meta"
_UNUSED = "WHERE content_hash NOT IN (SELECT content_hash FROM photos WHERE content_hash IS NOT NULL)"
_FAILED = "WHERE state = 'failed' OR (state = 'live' AND error <> '')"
_MISSING = "WHERE state = 'missing'"
_PHOTO = "root_id, path, stamp, settled, content_hash, state, error, metadata, crc"

State = Literal["live", "missing", "failed"]
#: How the last listing of a whole root went: "failed" below some folder, "unavailable" altogether.
ListingState = Literal["ok", "failed", "unavailable"]


@dataclass(frozen=True)
class Root:
    """A folder that was synchronised: its real path, and how its last listing went."""

    id: int
    path: bytes
    listing: ListingState

    def join(self, path: bytes) -> bytes:
        """Return the absolute path of a photo."""
        return os.path.join(self.path, path)


@dataclass(frozen=True)
class Photo:
    """A file below a root."""

    root_id: int
    path: bytes  # relative to the root; bytes, since file names need not be text
    stat: FileStat  # belongs to the bytes that `content_hash` is of
    settled: bool  # `stat` alone tells whether the file changed; if not, it is hashed again next time
    content_hash: bytes | None  # SHA-256 of the file; None if it has no vector because it failed
    state: State  # "failed": it has no vector; "missing": either, not there at the last listing, and kept
    error: str | None = None  # why it failed
    metadata: str = "{}"  # JSON object for `Match.metadata`

    def columns(self) -> tuple[Any, ...]:
        """Return the store's row."""
        stat = " ".join(map(str, self.stat))  # text, since times and inodes may exceed SQLite's integers
        file = (self.root_id, self.path, stat, int(self.settled))
        return *file, self.content_hash, self.state, self.error, self.metadata

    @classmethod
    def from_columns(cls, root_id: int, path: bytes, stat: str, settled: int, *others: Any) -> "Photo":
        """Return the photo of a row of the store."""
        return cls(root_id, path, FileStat(*map(int, stat.split())), bool(settled), *others)

    @property
    def visible(self) -> tuple[object, ...]:
        """Return what a search sees of it."""
        return self.state, self.content_hash, self.metadata


@dataclass(frozen=True)
class About:
    """The model, the whitening and the rules of an index."""

    fingerprint: dict[str, Any]  # the embedder's, and "whitening", the SHA-256 of what vectors are whitened with
    dim: int  # of the model's vectors, before whitening
    metric: str = "cosine"
    gps: bool = False  # whether the places in photos are recorded
    exclude: list[str] = field(default_factory=list)  # patterns, see `scan.Rules`
    include_hidden: bool = False  # whether hidden files and folders are read

    @property
    def rules(self) -> Rules:
        """Return what of a folder is left out."""
        return Rules(tuple(self.exclude), self.include_hidden)


class Details(NamedTuple):
    """The facts of a content beside its vector: `LoadedImage.info` and `signature.picture_signature`."""

    info: dict[str, Any]
    signature: bytes


class VectorRow(NamedTuple):
    """A content as a search needs it: its vector (D,), `Details.info` as JSON, and its signature, b"" for none."""

    content_hash: bytes
    vector: np.ndarray
    info: str
    signature: bytes


def file_metadata(stat: FileStat) -> str:
    """Return what a photo's file tells of it, for `Match.metadata`, as JSON."""
    return json.dumps({"bytes": stat.size, "modified": stat.mtime_ns / 1e9})


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable()


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _degrees(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= most


_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d([+-]\d\d:\d\d)?", re.ASCII)
#: The keys of `Details.info`, as `metadata.read_info` gives them, each with a test of its values.
KNOWN_INFO: dict[str, Callable[[Any], bool]] = {
    "format": _text,
    "camera": _text,
    "taken": lambda value: isinstance(value, str) and _TIME.fullmatch(value) is not None,
    "width": lambda value: _whole(value, 0, 1 << 31),
    "height": lambda value: _whole(value, 0, 1 << 31),
    "orientation": lambda value: _whole(value, 1, 8),
    "gps": lambda value: (
        isinstance(value, list) and len(value) == 2 and _degrees(value[0], 90) and _degrees(value[1], 180)
    ),
}


def parse_info(text: str | bytes) -> dict[str, Any]:
    """Read a stored JSON object without what no search could work with, which an older import may have let in."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: value for key, value in found.items() if KNOWN_INFO.get(key, _sane)(value)}


def _sane(value: Any) -> bool:
    """Return whether the value of an unknown key is text, or numbers that fit their types."""
    if isinstance(value, list):
        return len(value) <= 16 and all(not isinstance(one, list) and _sane(one) for one in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 128)


def checksum(*columns: object) -> int:
    """Return the CRC-32 of a row, which stands in its last column: SQLite does not notice a flipped bit."""
    return zlib.crc32(b"".join([c if isinstance(c, bytes) else repr(c).encode() for c in columns]))


class Store(Database):
    """An open store; its methods that add or drop are for inside a `transaction`.

    Args:
        file: made by `Store.create`.
        read_only: open without write access, for media that allow none.

    Attributes:
        about: what the index is made of.

    Raises:
        IndexDamagedError: it is damaged or not a store.
        IndexMismatchError: a newer version of this package made it.
    """

    application_id = 0x53434C52  # "SCLR"
    layout = SCHEMA_VERSION
    schema = _SCHEMA
    migrations = {1: _SCHEMA[-3:]}  # content without details is embedded again by the next sync

    def __init__(self, file: Path, *, read_only: bool = False):
        super().__init__(file, read_only=read_only)
        # What the open transaction did, counted here so that no caller can forget to.
        self._visible, self._added, self._lived = False, 0, 0
        self._changed: set[bytes] = set()
        self._whitening: Whitening | None = None
        try:
            try:
                self.about = About(**self._meta("about"))
                _ = self.about.rules
            except (TypeError, ValueError) as e:  # of a stranger's making: every row's checksum may be right
                raise self.damaged(f"its record of what made it cannot be read: {e}") from e
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(file: Path, about: About, whitening: Whitening | None = None) -> None:
        """Make an empty store at `file`, which must not exist; its vectors are whitened with `whitening`."""
        fingerprint = {k: v for k, v in about.fingerprint.items() if k != "whitening"}
        if whitening:
            fingerprint["whitening"] = whitening.sha256
        with Store.create_file(file) as db:
            put_meta(db, "about", vars(about) | {"fingerprint": fingerprint})
            if whitening:
                put_meta(db, "whitening", _whitening_record(whitening))
            put_meta(db, "state", {"generation": 0, "photos": 0, "live": 0, "changes": 0})
            put_meta(db, "cache", {"generation": -1, "files": []})

    # Reading.

    @contextmanager
    def beside(self) -> Iterator["Store"]:
        """Open the file once more, for reads that take long: those of this object would wait for them."""
        with self.lock, self._errors():
            self._connection()
            self._check_identity()
        with closing(Store(self.file, read_only=True)) as store:
            yield store

    def generation(self) -> int:
        """Return a number that grows with every commit that a search can see."""
        return int(self._meta("state")["generation"])

    def version(self) -> tuple[int, int]:
        """Return the generation and that of the search cache, which tell whether a search sees anything new."""
        self._check_identity()  # a repair may have put another in its place
        # One statement, which needs no transaction: this is asked before each search.
        rows = self._verified("its state or cache record", f"{_META} WHERE key IN ('state', 'cache')")
        found = {key: json.loads(value)["generation"] for key, value in rows}
        if len(found) != 2:
            raise self.damaged("its state or cache record is not there")
        return found["state"], found["cache"]

    def live(self) -> int:
        """Return how many photos a search can find, as they were counted when they were put."""
        live = self._meta("state").get("live")
        return self.counts()["live"] if live is None else int(live)  # an older layout did not count

    def whitening(self) -> Whitening | None:
        """Return what the vectors are to be whitened with before they are compared; None for nothing.

        Raises:
            IndexDamagedError: it is not there, or not the one that the fingerprint tells of.
        """
        with self.reading():
            self.about = About(**self._meta("about"))  # another process may have changed it
            sha256 = self.about.fingerprint.get("whitening")
            if sha256 is None:
                self._whitening = None
            elif self._whitening is None or self._whitening.sha256 != sha256:
                try:
                    self._whitening = Whitening.from_bytes(b64decode(self._meta("whitening")["safetensors"]))
                except (KeyError, TypeError, ValueError) as e:
                    raise self.damaged(f"its whitening cannot be read: {e}") from e
                if self._whitening.sha256 != sha256 or len(self._whitening.mean) != self.about.dim:
                    raise self.damaged("its whitening is not the one that it tells of")
            return self._whitening

    def map(self) -> dict[str, Any] | None:
        """Return what `put_map` recorded; None for nothing."""
        rows = self._verified("its map", f"{_META} WHERE key = 'map'")
        return json.loads(rows[0][1]) if rows else None

    def photos(self, root_id: int | None = None, state: State | None = None) -> list[Photo]:
        """Return all photos by root and path, or those of a root or in a state."""
        with self.reading():
            return list(self.each_photo(root_id, state))

    def each_photo(self, root_id: int | None = None, state: State | None = None) -> Iterator[Photo]:
        """Yield them, inside `reading` or `writing`.

        Raises:
            IndexDamagedError: also after the last, if photos are lost or doubled.
        """
        for page in self.photo_pages():  # also for a part all: a damaged page can show one row twice, another never
            yield from (p for p in page if root_id in (None, p.root_id) and state in (None, p.state))

    def photo_pages(self, size: int = 4096) -> Iterator[list[Photo]]:
        """Yield all photos by root and path in parts, inside `reading` or `writing`.

        Raises:
            IndexDamagedError: also after the last part, if photos are lost or doubled.
        """
        after, number = (-1, b""), 0
        while page := self.page(after, size):
            keys = [after, *((photo.root_id, photo.path) for photo in page)]
            if not all(map(operator.lt, keys, keys[1:])):
                raise self.damaged("photos are not in order")
            after = keys[-1]
            number += len(page)
            yield page
        recorded = self._meta("state")["photos"] + self._added
        if number != recorded:
            raise self.damaged(f"{number} photos are there, {recorded} were recorded")

    def page(self, after: tuple[int, bytes], limit: int) -> list[Photo]:
        """Return at most `limit` photos by root and path behind (root's id, path)."""
        return self._photos("WHERE (root_id, path) > (?, ?) ORDER BY root_id, path LIMIT ?", *after, limit)

    def photo(self, root_id: int, path: bytes) -> Photo | None:
        """Return one photo."""
        found = self._photos("WHERE root_id = ? AND path = ?", root_id, path)
        return found[0] if found else None

    def photos_with(self, content_hash: bytes) -> list[Photo]:
        """Return the photos of this content, in every state."""
        return self._photos("WHERE content_hash = ? ORDER BY root_id, path", content_hash)

    def missing(self, root_id: int) -> Iterator[bytes]:
        """Yield the paths of a root's missing photos."""
        after = b""
        while page := self._photos(
            "WHERE root_id = ? AND path > ? AND state = 'missing' ORDER BY path LIMIT 4096", root_id, after
        ):
            after = page[-1].path
            yield from (photo.path for photo in page)

    def failed(self, limit: int = -1, offset: int = 0) -> list[Photo]:
        """Return the photos that could not be used, or not be read again, by root and path, from a place on."""
        return self._photos(f"{_FAILED} ORDER BY root_id, path LIMIT ? OFFSET ?", limit, offset)

    def all_missing(self, limit: int = -1, offset: int = 0) -> list[Photo]:
        """Return the missing photos of all roots by root and path, from a place on."""
        return self._photos(f"{_MISSING} ORDER BY root_id, path LIMIT ? OFFSET ?", limit, offset)

    def trouble(self) -> tuple[int, int]:
        """Count what `failed` and `all_missing` return."""
        failed, missing = (self._rows(f"SELECT count(*) FROM photos {one}")[0][0] for one in (_FAILED, _MISSING))
        return failed, missing

    def sample(self, limit: int) -> list[Photo]:
        """Return live photos of the smallest content hashes: as good as by chance, and the same each time."""
        return self._photos("WHERE state = 'live' ORDER BY content_hash LIMIT ?", limit)

    def locate(self, photo: Photo, roots: dict[int, Root]) -> bytes:
        """Return the absolute path of a photo."""
        root = roots.get(photo.root_id)
        if root is None:
            raise self.damaged("a photo without a root folder")
        return root.join(photo.path)

    def counts(self) -> dict[str, int]:
        """Count the "live", "missing" and "failed" photos, those "with content", and the "vectors"."""
        with self.reading():
            counts = dict.fromkeys(("live", "missing", "failed"), 0)
            counts.update(self._rows("SELECT state, count(*) FROM photos GROUP BY state"))
            counts["with content"] = self._rows("SELECT count(content_hash) FROM photos")[0][0]
            counts["vectors"] = self._rows("SELECT count(*) FROM vectors")[0][0]
        return counts

    def roots(self) -> dict[int, Root]:
        """Return the root folders by id."""
        rows = self._verified("a root folder's row", "SELECT id, path, listing, crc FROM roots ORDER BY path")
        return {row[0]: Root(*row) for row in rows}

    def vector(self, content_hash: bytes) -> np.ndarray | None:
        """Return the vector (D,) of a content, as the model gave it."""
        rows = self._rows("SELECT content_hash, vector, crc FROM vectors WHERE content_hash = ?", content_hash)
        return self._vector(rows[0]) if rows else None

    def vector_pages(self, size: int = 1024) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """Yield all content hashes and vectors (N, D) in the order of the file, in parts, inside `reading`."""
        cursor = self._connection().execute("SELECT content_hash, vector, crc FROM vectors")
        while rows := cursor.fetchmany(size):
            yield [row[0] for row in rows], np.stack([self._vector(row) for row in rows])

    def vector_rows(self, contents: Sequence[bytes] | None = None, size: int = 1024) -> Iterator[list[VectorRow]]:
        """Yield all contents in the order of the file, or those of these that are there, in parts."""
        sql = (
            "SELECT v.rowid, v.content_hash, v.vector, v.crc, d.info, d.signature, d.crc"
            " FROM vectors v LEFT JOIN details d USING (content_hash)"
        )
        if contents is not None:
            for start in range(0, len(contents), size):
                some = [self._rows(f"{sql} WHERE v.content_hash = ?", one) for one in contents[start : start + size]]
                yield [self._vector_row(row) for rows in some for row in rows]
            return
        after = -(2**63)
        while rows := self._rows(f"{sql} WHERE v.rowid > ? ORDER BY v.rowid LIMIT ?", after, size):
            keys = [after, *(row[0] for row in rows)]
            if not all(map(operator.lt, keys, keys[1:])):
                raise self.damaged("vectors are not in order")
            after = keys[-1]
            yield [self._vector_row(row) for row in rows]

    def changes(self, since: int) -> list[bytes] | None:
        """Return the contents of which a search sees other than in generation `since`; None if that is not known.

        Raises:
            IndexDamagedError: the record of them is not whole.
        """
        with self.reading():
            if since < self.cache()[0]:
                return None
            sql = "SELECT generation, content_hash, crc FROM changes WHERE generation > ?"
            rows = self._verified("the record of changes", sql, since)
            ((number,),) = self._rows("SELECT count(*) FROM changes")
            if number != self._meta("state").get("changes", 0):
                raise self.damaged("the record of changes is not whole")
        return sorted({content_hash for _, content_hash in rows})

    def details(self) -> Iterator[tuple[bytes, Details]]:
        """Yield every content hash with its details, in the order of the file, inside `reading`."""
        for row in self._connection().execute("SELECT content_hash, info, signature, crc FROM details"):
            yield row[0], self._details(row)

    def details_of(self, content_hash: bytes) -> Details | None:
        """Return the details of a content; None if an older version recorded it, or there is none such."""
        sql = "SELECT content_hash, info, signature, crc FROM details WHERE content_hash = ?"
        rows = self._rows(sql, content_hash)
        return self._details(rows[0]) if rows else None

    def without_details(self) -> bool:
        """Return whether an older version recorded vectors without details."""
        sql = "SELECT content_hash FROM vectors WHERE content_hash NOT IN (SELECT content_hash FROM details) LIMIT 1"
        return bool(self._rows(sql))

    def distinct(self) -> set[tuple[bytes, bytes]]:
        """Return the pairs of contents that a person called different pictures, the smaller hash first."""
        rows = self._verified("a pair of different pictures", "SELECT a, b, crc FROM distinct_pairs")
        return {(a, b) for a, b in rows}

    def in_flight(self) -> set[bytes]:
        """Return the absolute paths that were about to be decoded when the last sync ended, if it was killed."""
        return {path for (path,) in self._rows("SELECT path FROM in_flight")}

    def cache(self) -> tuple[int, list[dict[str, Any]]]:
        """Return the generation of the search cache, and what `put_cache` recorded of its files."""
        record = self._meta("cache")
        return record["generation"], record.get("files", [])

    # Adding and dropping.

    def put_rules(self, rules: Rules) -> None:
        """Record what syncs leave out from now on."""
        about = self._meta("about") | {"exclude": list(rules.exclude), "include_hidden": rules.include_hidden}
        put_meta(self._connection(), "about", about)
        self.about = About(**about)

    def put_whitening(self, whitening: Whitening | None) -> None:
        """Whiten with another, or not any more: no vector changes, and what searches cached of them is void."""
        db = self._connection()
        fingerprint = {k: v for k, v in self._meta("about")["fingerprint"].items() if k != "whitening"}
        if whitening is None:
            self._execute("DELETE FROM meta WHERE key = 'whitening'")
        else:
            fingerprint["whitening"] = whitening.sha256
            put_meta(db, "whitening", _whitening_record(whitening))
        put_meta(db, "about", self._meta("about") | {"fingerprint": fingerprint})
        self.put_cache(self.generation() + 1, [])  # the one that this transaction makes
        self._visible = True

    def put_map(self, record: Mapping[str, Any]) -> None:
        """Record the map that was drawn of the photos, see `browse.map`; a search sees nothing of it."""
        put_meta(self._connection(), "map", dict(record))

    def put(self, photo: Photo) -> None:
        """Add or replace a photo; its vector must be there at the end of the transaction."""
        self._replace(self.photo(photo.root_id, photo.path), photo)
        columns = photo.columns()
        marks = ", ".join("?" * (len(columns) + 1))
        self._execute(f"INSERT OR REPLACE INTO photos ({_PHOTO}) VALUES ({marks})", *columns, checksum(*columns))

    def forget(self, photo: Photo) -> None:
        """Drop a photo's row; its vector stays until `forget_vectors`."""
        self._replace(self.photo(photo.root_id, photo.path), None)
        self._execute("DELETE FROM photos WHERE root_id = ? AND path = ?", photo.root_id, photo.path)

    def _replace(self, old: Photo | None, new: Photo | None) -> None:
        """Note what changes when a row becomes another."""
        for photo, sign in ((old, -1), (new, 1)):
            if photo is not None:
                self._added += sign
                self._lived += sign * (photo.state == "live")
        if (old and old.visible) != (new and new.visible):
            self._visible = True
            self._changed |= {photo.content_hash for photo in (old, new) if photo and photo.content_hash}

    def put_vector(self, content_hash: bytes, vector: np.ndarray) -> None:
        """Add the vector (D,) of a content."""
        if vector.shape != (self.about.dim,):
            raise ValueError(f"a vector of shape {vector.shape}; this index holds vectors of {self.about.dim}")
        data = vector.astype("<f4").tobytes()
        crc = checksum(content_hash, data)
        self._execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", content_hash, data, crc)
        self._changed.add(content_hash)

    def put_details(self, content_hash: bytes, info: Mapping[str, Any], signature: bytes) -> None:
        """Add or replace the details of a content that has a vector; "gps" only if the index records places."""
        kept = {key: value for key, value in info.items() if key != "gps" or self.about.gps}
        columns = (content_hash, json.dumps(kept, sort_keys=True), signature)
        self._execute("INSERT OR REPLACE INTO details VALUES (?, ?, ?, ?)", *columns, checksum(*columns))
        self._visible = True
        self._changed.add(content_hash)

    def put_distinct(self, a: bytes, b: bytes) -> None:
        """Record that two contents are different pictures; it outlives both."""
        pair = (min(a, b), max(a, b))
        self._execute("INSERT OR REPLACE INTO distinct_pairs VALUES (?, ?, ?)", *pair, checksum(*pair))

    def without_vector(self) -> int:
        """Count the photos that ought to have a vector and have none."""
        sql = "SELECT 1 FROM vectors v WHERE v.content_hash = p.content_hash"
        where = f"(p.state = 'live' OR p.content_hash IS NOT NULL) AND NOT EXISTS ({sql})"
        return int(self._rows(f"SELECT count(*) FROM photos p WHERE {where}")[0][0])

    def unused_vectors(self) -> int:
        """Count the vectors of contents that no photo has."""
        return int(self._rows(f"SELECT count(*) FROM vectors {_UNUSED}")[0][0])

    def forget_vectors(self) -> int:
        """Drop the vectors and details of contents that no photo has; return how many vectors."""
        self._execute(f"DELETE FROM details {_UNUSED}")
        return self._execute(f"DELETE FROM vectors {_UNUSED}")

    def put_root(self, path: bytes, listing: ListingState) -> Root:
        """Add a root, or record how its listing went."""
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

    def relocate_root(self, root: Root, path: bytes) -> None:
        """Record that a root has another absolute path now; the paths below it are the same."""
        columns = (root.id, path, root.listing)
        self._execute("UPDATE roots SET path = ?, crc = ? WHERE id = ?", path, checksum(*columns), root.id)
        self._visible = True

    def forget_root(self, root: Root) -> None:
        """Drop a root that has no photos."""
        self._execute("DELETE FROM roots WHERE id = ?", root.id)

    def put_in_flight(self, paths: list[bytes]) -> None:
        """Record absolute paths before they are decoded."""
        for path in paths:
            self._execute("INSERT OR IGNORE INTO in_flight VALUES (?)", path)

    def forget_in_flight(self, paths: list[bytes]) -> None:
        """Record that they were decoded."""
        for path in paths:
            self._execute("DELETE FROM in_flight WHERE path = ?", path)

    def put_cache(self, generation: int, files: list[dict[str, Any]]) -> None:
        """Record the files of the search cache, which are of this generation, the present one."""
        put_meta(self._connection(), "cache", {"generation": generation, "files": files})
        put_meta(self._connection(), "state", self._meta("state") | {"changes": 0})
        self._execute("DELETE FROM changes")

    def _before_commit(self) -> None:
        if not (self._visible or self._added or self._changed):
            return
        state = self._meta("state")
        generation = state["generation"] + 1
        for content_hash in self._changed:
            crc = checksum(generation, content_hash)
            self._execute("INSERT INTO changes VALUES (?, ?, ?)", generation, crc, content_hash)
        live = state["live"] + self._lived if "live" in state else self.counts()["live"]
        state |= {"generation": generation, "photos": state["photos"] + self._added, "live": live}
        state["changes"] = state.get("changes", 0) + len(self._changed)
        put_meta(self._connection(), "state", state)

    def _after_transaction(self) -> None:
        self._visible, self._added, self._lived = False, 0, 0
        self._changed = set()

    # Rows, verified.

    def _verified(self, what: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a query, whose last column is their checksum, without it."""
        rows = self._rows(sql, *values)
        if any(checksum(*row[:-1]) != row[-1] for row in rows):
            raise self.damaged(f"{what} does not match its checksum")
        return [row[:-1] for row in rows]

    def _photos(self, where: str, *values: object) -> list[Photo]:
        rows = self._verified("a photo's row", f"SELECT {_PHOTO} FROM photos {where}", *values)
        return [Photo.from_columns(*row) for row in rows]

    def _vector(self, row: tuple[Any, ...]) -> np.ndarray:
        content_hash, data, crc = row
        if not isinstance(data, bytes) or checksum(content_hash, data) != crc or len(data) != 4 * self.about.dim:
            raise self.damaged("a vector does not match its checksum")
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)

    def _vector_row(self, row: tuple[Any, ...]) -> VectorRow:
        _, content_hash, vector, crc, info, signature, details_crc = row
        if details_crc is not None:
            self._details((content_hash, info, signature, details_crc))
        return VectorRow(content_hash, self._vector((content_hash, vector, crc)), info or "{}", signature or b"")

    def _details(self, row: tuple[Any, ...]) -> Details:
        _, info, signature, crc = row
        if checksum(*row[:-1]) != crc:
            raise self.damaged("the details of a photo do not match their checksum")
        return Details(parse_info(info), signature)

    def _meta(self, key: str) -> dict[str, Any]:
        rows = self._verified(f"its {key} record", f"{_META} WHERE key = ?", key)
        if not rows:
            raise self.damaged(f"its {key} record is not there")
        value: dict[str, Any] = json.loads(rows[0][1])
        return value


def _whitening_record(whitening: Whitening) -> dict[str, str]:
    return {"safetensors": b64encode(whitening.to_bytes()).decode()}


def put_meta(db: sqlite3.Connection, key: str, value: dict[str, Any]) -> None:
    """Add or replace a row of the table `meta`."""
    text = json.dumps(value)
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, checksum(key, text)))
