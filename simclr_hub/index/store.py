"""The store: photos, their vectors and details, root folders, and what made the index; the truth.

Unusual: every row carries a checksum, since SQLite does not notice a flipped bit; and the store itself counts its
photos and raises its generation, so that no caller can forget to.
"""

import itertools
import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .database import Database, create_file
from .records import ListingState, Photo, Root, State, checksum

SCHEMA_VERSION = 2
STORE_NAME = "store.sqlite3"
_APPLICATION_ID = 0x53434C52  # "SCLR"
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
)
#: What makes a store of this layout one of the next; content without details is embedded again by the next sync.
_MIGRATIONS = {1: _SCHEMA[-2:]}
_PHOTO = "root_id, path, stamp, settled, content_hash, state, error, metadata, crc"


@dataclass(frozen=True)
class About:
    """What an index is made of.

    Attributes:
        fingerprint: the embedder's.
        dim: width of its vectors.
        metric: how they are compared.
        gps: whether the places in photos are recorded.
    """

    fingerprint: dict[str, Any]
    dim: int
    metric: str = "cosine"
    gps: bool = False


class Details(NamedTuple):
    """What is known of a content beside its vector: `LoadedImage.info`, and `signature.picture_signature`."""

    info: dict[str, Any]
    signature: bytes


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

    def __init__(self, file: Path, *, read_only: bool = False):
        super().__init__(
            file,
            _SCHEMA,
            application_id=_APPLICATION_ID,
            version=SCHEMA_VERSION,
            migrations=_MIGRATIONS,
            read_only=read_only,
        )
        self._visible, self._added = False, 0  # what the open transaction did
        try:
            self.about = About(**self._meta("about"))
        except BaseException:
            self.close()
            raise

    @staticmethod
    def create(file: Path, about: About) -> None:
        """Make an empty store at `file`, which must not exist."""
        with closing(create_file(file, _SCHEMA, application_id=_APPLICATION_ID, version=SCHEMA_VERSION)) as db:
            _put_meta(db, "about", vars(about))
            _put_meta(db, "state", {"generation": 0, "photos": 0})
            _put_meta(db, "cache", {"generation": -1, "sha256": ""})
            db.execute("COMMIT")

    # What is there.

    def generation(self) -> int:
        """A number that grows with every commit that a search can see."""
        return int(self._meta("state")["generation"])

    def photos(self, root_id: int | None = None, state: State | None = None) -> list[Photo]:
        """All photos by root and path, or those of a root or in a state.

        All rows are read and verified, also for a part of them: a damaged page can show one row twice and another not
        at all.
        """
        with self.reading():
            rows = self._rows(f"SELECT {_PHOTO} FROM photos ORDER BY root_id, path")
            recorded = self._meta("state")["photos"] + self._added
        photos = [self._photo(row) for row in rows]
        in_order = all(a[:2] < b[:2] for a, b in itertools.pairwise(rows))
        if len(photos) != recorded or not in_order:
            raise self.damaged(f"{len(photos)} photos are there, {recorded} were recorded")
        return [p for p in photos if root_id in (None, p.root_id) and state in (None, p.state)]

    def photo(self, root_id: int, path: bytes) -> Photo | None:
        """One photo."""
        rows = self._rows(f"SELECT {_PHOTO} FROM photos WHERE root_id = ? AND path = ?", root_id, path)
        return self._photo(rows[0]) if rows else None

    def photos_with(self, content_hash: bytes) -> list[Photo]:
        """The photos of this content, in every state."""
        sql = f"SELECT {_PHOTO} FROM photos WHERE content_hash = ? ORDER BY root_id, path"
        return [self._photo(row) for row in self._rows(sql, content_hash)]

    def counts(self) -> dict[str, int]:
        """How many photos are "live", "missing", "failed", and how many "vectors" there are."""
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

    def locate(self, photo: Photo, roots: dict[int, Root]) -> bytes:
        """The absolute path of a photo."""
        root = roots.get(photo.root_id)
        if root is None:
            raise self.damaged("a photo without a root folder")
        return root.join(photo.path)

    def vector(self, content_hash: bytes) -> np.ndarray | None:
        """The vector (D,) of a content."""
        rows = self._rows("SELECT content_hash, vector, crc FROM vectors WHERE content_hash = ?", content_hash)
        return self._vector(rows[0]) if rows else None

    def vectors(self) -> Iterator[tuple[bytes, np.ndarray]]:
        """Every content hash with its vector (D,), in the order of the file; inside `reading`."""
        for row in self._connection().execute("SELECT content_hash, vector, crc FROM vectors"):
            yield row[0], self._vector(row)

    def details(self) -> Iterator[tuple[bytes, Details]]:
        """Every content hash with its details, in the order of the file; inside `reading`."""
        for row in self._connection().execute("SELECT content_hash, info, signature, crc FROM details"):
            yield row[0], self._details(row)

    def details_of(self, content_hash: bytes) -> Details | None:
        """The details of a content; None if an older version recorded it, or there is none such."""
        sql = "SELECT content_hash, info, signature, crc FROM details WHERE content_hash = ?"
        rows = self._rows(sql, content_hash)
        return self._details(rows[0]) if rows else None

    def without_details(self) -> set[bytes]:
        """The contents with a vector that an older version recorded, without details."""
        sql = "SELECT content_hash FROM vectors WHERE content_hash NOT IN (SELECT content_hash FROM details)"
        return {content_hash for (content_hash,) in self._rows(sql)}

    def distinct(self) -> set[tuple[bytes, bytes]]:
        """The pairs of contents that a person called different pictures, the smaller hash first."""
        pairs = set()
        for a, b, crc in self._rows("SELECT a, b, crc FROM distinct_pairs"):
            if crc != checksum(a, b):
                raise self.damaged("a pair of different pictures does not match its checksum")
            pairs.add((a, b))
        return pairs

    def in_flight(self) -> set[bytes]:
        """Absolute paths that were about to be decoded when the last sync ended, if it was killed."""
        return {path for (path,) in self._rows("SELECT path FROM in_flight")}

    def cache(self) -> tuple[int, str]:
        """The generation of the FAISS file and the SHA-256 of its bytes."""
        record = self._meta("cache")
        return record["generation"], record["sha256"]

    # Adding and dropping.

    def put(self, photo: Photo) -> None:
        """Add or replace a photo; its vector must be there at the end of the transaction."""
        old = self.photo(photo.root_id, photo.path)
        self._visible |= old is None or old.visible != photo.visible
        self._added += old is None
        columns = photo.columns()
        marks = ", ".join("?" * (len(columns) + 1))
        self._execute(f"INSERT OR REPLACE INTO photos ({_PHOTO}) VALUES ({marks})", *columns, checksum(*columns))

    def forget(self, photo: Photo) -> None:
        """Drop a photo's row; its vector stays until `forget_vectors`."""
        dropped = self._execute("DELETE FROM photos WHERE root_id = ? AND path = ?", photo.root_id, photo.path)
        self._visible |= dropped > 0
        self._added -= dropped

    def put_vector(self, content_hash: bytes, vector: np.ndarray) -> None:
        """Add the vector (D,) of a content."""
        if vector.shape != (self.about.dim,):
            raise ValueError(f"a vector of shape {vector.shape}; this index holds vectors of {self.about.dim}")
        data = vector.astype("<f4").tobytes()
        crc = checksum(content_hash, data)
        self._execute("INSERT OR REPLACE INTO vectors VALUES (?, ?, ?)", content_hash, data, crc)

    def put_details(self, content_hash: bytes, info: Mapping[str, Any], signature: bytes) -> None:
        """Add or replace the details of a content that has a vector; "gps" only if the index records places."""
        kept = {key: value for key, value in info.items() if key != "gps" or self.about.gps}
        columns = (content_hash, json.dumps(kept, sort_keys=True), signature)
        self._execute("INSERT OR REPLACE INTO details VALUES (?, ?, ?, ?)", *columns, checksum(*columns))
        self._visible = True

    def put_distinct(self, a: bytes, b: bytes) -> None:
        """Record that two contents are different pictures; it outlives both."""
        pair = (min(a, b), max(a, b))
        self._execute("INSERT OR REPLACE INTO distinct_pairs VALUES (?, ?, ?)", *pair, checksum(*pair))

    def forget_vectors(self) -> int:
        """Drop the vectors and details of contents that no photo has; how many vectors."""
        unused = "WHERE content_hash NOT IN (SELECT content_hash FROM photos WHERE content_hash IS NOT NULL)"
        self._execute(f"DELETE FROM details {unused}")
        return self._execute(f"DELETE FROM vectors {unused}")

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

    def _before_commit(self) -> None:
        if self._visible or self._added:
            state = self._meta("state")
            changed = {"generation": state["generation"] + 1, "photos": state["photos"] + self._added}
            _put_meta(self._connection(), "state", changed)

    def _after_transaction(self) -> None:
        self._visible, self._added = False, 0

    # Rows to records, verified.

    def _photo(self, row: tuple[Any, ...]) -> Photo:
        if checksum(*row[:-1]) != row[-1]:
            raise self.damaged("a photo's row does not match its checksum")
        return Photo.from_columns(*row[:-1])

    def _vector(self, row: tuple[Any, ...]) -> np.ndarray:
        content_hash, data, crc = row
        if not isinstance(data, bytes) or checksum(content_hash, data) != crc or len(data) != 4 * self.about.dim:
            raise self.damaged("a vector does not match its checksum")
        return np.frombuffer(data, "<f4").astype(np.float32, copy=False)

    def _details(self, row: tuple[Any, ...]) -> Details:
        _, info, signature, crc = row
        if checksum(*row[:-1]) != crc:
            raise self.damaged("the details of a photo do not match their checksum")
        return Details(json.loads(info), signature)

    def _meta(self, key: str) -> dict[str, Any]:
        rows = self._rows("SELECT value, crc FROM meta WHERE key = ?", key)
        if len(rows) != 1 or checksum(key, rows[0][0]) != rows[0][1]:
            raise self.damaged(f"its {key} record does not match its checksum")
        value: dict[str, Any] = json.loads(rows[0][0])
        return value


def _put_meta(db: sqlite3.Connection, key: str, value: dict[str, Any]) -> None:
    text = json.dumps(value)
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, checksum(key, text)))
