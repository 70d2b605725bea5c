"""The store: photos, their vectors and details, root folders, and what made the index; the truth.

Unusual: every row carries a checksum, since SQLite does not notice a flipped bit; the store itself counts its photos
and raises its generation, so that no caller can forget to; and vectors are kept as the model gave them, a whitening
beside them, so that it can be changed without reading a photo.
"""

import itertools
import json
import operator
import sqlite3
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..scan import Rules
from ..whitening import Whitening
from .database import Database, create_file
from .records import ListingState, Photo, Root, State, checksum, parse_info

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
    # What searches that go on beside a sync have to read again; a cache of all that is emptied when that is written.
    "CREATE TABLE changes (generation INTEGER NOT NULL, crc INTEGER NOT NULL, content_hash BLOB NOT NULL)",
)
#: What makes a store of this layout one of the next; content without details is embedded again by the next sync.
_MIGRATIONS = {1: _SCHEMA[-3:]}
_UNUSED = "WHERE content_hash NOT IN (SELECT content_hash FROM photos WHERE content_hash IS NOT NULL)"
_PHOTO = "root_id, path, stamp, settled, content_hash, state, error, metadata, crc"


@dataclass(frozen=True)
class About:
    """What an index is made of.

    Attributes:
        fingerprint: the embedder's, and "whitening", the SHA-256 of what vectors are whitened with, if they are.
        dim: width of the model's vectors, before whitening.
        metric: how they are compared.
        gps: whether the places in photos are recorded.
        exclude: patterns of what is left out of the folders, see `scan.Rules`.
        include_hidden: whether hidden files and folders are read.
    """

    fingerprint: dict[str, Any]
    dim: int
    metric: str = "cosine"
    gps: bool = False
    exclude: list[str] = field(default_factory=list)
    include_hidden: bool = False

    @property
    def rules(self) -> Rules:
        """What of a folder is left out."""
        return Rules(tuple(self.exclude), self.include_hidden)


class Details(NamedTuple):
    """What is known of a content beside its vector: `LoadedImage.info`, and `signature.picture_signature`."""

    info: dict[str, Any]
    signature: bytes


class Content(NamedTuple):
    """What a search needs of a content: its vector (D,), `Details.info` as JSON, and its signature, if it has one."""

    content_hash: bytes
    vector: np.ndarray
    info: str
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
        # What the open transaction did.
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
        with closing(create_file(file, _SCHEMA, application_id=_APPLICATION_ID, version=SCHEMA_VERSION)) as db:
            _put_meta(db, "about", vars(about) | {"fingerprint": fingerprint})
            if whitening:
                _put_whitening(db, whitening)
            _put_meta(db, "state", {"generation": 0, "photos": 0, "live": 0, "changes": 0})
            _put_meta(db, "cache", {"generation": -1, "files": []})
            db.execute("COMMIT")

    # What is there.

    def generation(self) -> int:
        """A number that grows with every commit that a search can see."""
        return int(self._meta("state")["generation"])

    def version(self) -> tuple[int, int]:
        """The generation, and that of the search cache: what a search sees is as old as these."""
        self._check_identity()  # a repair may have put another in its place
        # One statement, which needs no transaction: this is asked before each search.
        rows = self._rows("SELECT key, value, crc FROM meta WHERE key IN ('state', 'cache')")
        found = {key: json.loads(value)["generation"] for key, value, crc in rows if checksum(key, value) == crc}
        if len(found) != 2:
            raise self.damaged("its state or cache record does not match its checksum")
        return found["state"], found["cache"]

    def live(self) -> int:
        """How many photos a search can find, as was counted when they were put."""
        live = self._meta("state").get("live")
        return self.counts()["live"] if live is None else int(live)  # an older layout did not count

    def whitening(self) -> Whitening | None:
        """What the vectors are to be whitened with before they are compared; None for as they are.

        Read from the file, since another process may have changed it; so is `about` then.

        Raises:
            IndexDamagedError: it is not there, or not the one that the fingerprint tells of.
        """
        with self.reading():
            self.about = About(**self._meta("about"))
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

    def photos(self, root_id: int | None = None, state: State | None = None) -> list[Photo]:
        """All photos by root and path, or those of a root or in a state.

        All rows are read and verified, also for a part of them: a damaged page can show one row twice and another not
        at all.
        """
        with self.reading():
            pages = list(self.photo_pages())
        return [p for page in pages for p in page if root_id in (None, p.root_id) and state in (None, p.state)]

    def photo_pages(self, size: int = 4096) -> Iterator[list[Photo]]:
        """The same in parts, inside `reading` or `writing`; their number is compared at the end.

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

    def missing(self, root_id: int) -> list[bytes]:
        """The paths of a root's missing photos, without reading the others."""
        sql = f"SELECT {_PHOTO} FROM photos WHERE root_id = ? AND state = 'missing'"
        return [self._photo(row).path for row in self._rows(sql, root_id)]

    def photo(self, root_id: int, path: bytes) -> Photo | None:
        """One photo."""
        rows = self._rows(f"SELECT {_PHOTO} FROM photos WHERE root_id = ? AND path = ?", root_id, path)
        return self._photo(rows[0]) if rows else None

    def page(self, after: tuple[int, bytes], limit: int) -> list[Photo]:
        """The next photos by root and path behind (root's id, path), at most `limit`: to go through all in parts."""
        sql = f"SELECT {_PHOTO} FROM photos WHERE (root_id, path) > (?, ?) ORDER BY root_id, path LIMIT ?"
        return [self._photo(row) for row in self._rows(sql, *after, limit)]

    def sample(self, limit: int) -> list[Photo]:
        """Live photos of the smallest content hashes, which is as good as by chance and the same each time."""
        sql = f"SELECT {_PHOTO} FROM photos WHERE state = 'live' ORDER BY content_hash LIMIT ?"
        return [self._photo(row) for row in self._rows(sql, limit)]

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

    def vector_pages(self, size: int = 1024) -> Iterator[tuple[list[bytes], np.ndarray]]:
        """All content hashes with the model's vectors (N, D), in the order of the file, in parts; inside `reading`."""
        cursor = self._connection().execute("SELECT content_hash, vector, crc FROM vectors")
        while rows := cursor.fetchmany(size):
            yield [row[0] for row in rows], np.stack([self._vector(row) for row in rows])

    def content_pages(self, contents: Sequence[bytes] | None = None, size: int = 1024) -> Iterator[list[Content]]:
        """All contents in the order of the file, or those of these that are there, in parts; as `photo_pages`."""
        sql = (
            "SELECT v.rowid, v.content_hash, v.vector, v.crc, d.info, d.signature, d.crc"
            " FROM vectors v LEFT JOIN details d USING (content_hash)"
        )
        if contents is not None:
            for start in range(0, len(contents), size):
                some = [self._rows(f"{sql} WHERE v.content_hash = ?", one) for one in contents[start : start + size]]
                yield [self._content(row) for rows in some for row in rows]
            return
        after = -(2**63)
        while rows := self._rows(f"{sql} WHERE v.rowid > ? ORDER BY v.rowid LIMIT ?", after, size):
            numbers = [after, *(row[0] for row in rows)]
            if not all(a < b for a, b in itertools.pairwise(numbers)):
                raise self.damaged("vectors are not in order")
            after = numbers[-1]
            yield [self._content(row) for row in rows]

    def changes(self, since: int) -> list[bytes] | None:
        """The contents of which a search sees other than in generation `since`; None if that is not known any more.

        Raises:
            IndexDamagedError: the record of them is not whole.
        """
        with self.reading():
            if since < self.cache()[0]:
                return None
            rows = self._rows("SELECT generation, content_hash, crc FROM changes WHERE generation > ?", since)
            ((number,),) = self._rows("SELECT count(*) FROM changes")
            recorded = self._meta("state").get("changes", 0)
        if number != recorded or any(checksum(*row[:2]) != row[2] for row in rows):
            raise self.damaged("the record of changes is not whole")
        return sorted({content_hash for _, content_hash, _ in rows})

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

    def cache(self) -> tuple[int, list[dict[str, Any]]]:
        """The generation of the search cache, and what `put_cache` recorded of its files."""
        record = self._meta("cache")
        return record["generation"], record.get("files", [])

    # Adding and dropping.

    def put_rules(self, rules: Rules) -> None:
        """Record what syncs leave out from now on."""
        about = self._meta("about") | {"exclude": list(rules.exclude), "include_hidden": rules.include_hidden}
        _put_meta(self._connection(), "about", about)
        self.about = About(**about)

    def put_whitening(self, whitening: Whitening | None) -> None:
        """Whiten with another, or not any more: no vector changes, and all that searches made of them is void."""
        db = self._connection()
        fingerprint = {k: v for k, v in self._meta("about")["fingerprint"].items() if k != "whitening"}
        if whitening is None:
            self._execute("DELETE FROM meta WHERE key = 'whitening'")
        else:
            fingerprint["whitening"] = whitening.sha256
            _put_whitening(db, whitening)
        _put_meta(db, "about", self._meta("about") | {"fingerprint": fingerprint})
        self.put_cache(self.generation() + 1, [])  # the one that this transaction makes
        self._visible = True

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

    def unused_vectors(self) -> int:
        """Return of how many contents that no photo has there is a vector."""
        return int(self._rows(f"SELECT count(*) FROM vectors {_UNUSED}")[0][0])

    def forget_vectors(self) -> int:
        """Drop the vectors and details of contents that no photo has; how many vectors."""
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

    def move_root(self, root: Root, path: bytes) -> None:
        """Its folder has another absolute path now; the paths below it are the same."""
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
        """They were decoded."""
        for path in paths:
            self._execute("DELETE FROM in_flight WHERE path = ?", path)

    def put_cache(self, generation: int, files: list[dict[str, Any]]) -> None:
        """Record the files of the search cache, which are of that generation, the present one."""
        _put_meta(self._connection(), "cache", {"generation": generation, "files": files})
        _put_meta(self._connection(), "state", self._meta("state") | {"changes": 0})
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
        _put_meta(self._connection(), "state", state)

    def _after_transaction(self) -> None:
        self._visible, self._added, self._lived = False, 0, 0
        self._changed = set()

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

    def _content(self, row: tuple[Any, ...]) -> Content:
        _, content_hash, vector, crc, info, signature, details_crc = row
        if details_crc is not None:
            self._details((content_hash, info, signature, details_crc))
        return Content(content_hash, self._vector((content_hash, vector, crc)), info or "{}", signature or b"")

    def _details(self, row: tuple[Any, ...]) -> Details:
        _, info, signature, crc = row
        if checksum(*row[:-1]) != crc:
            raise self.damaged("the details of a photo do not match their checksum")
        return Details(parse_info(info), signature)

    def _meta(self, key: str) -> dict[str, Any]:
        rows = self._rows("SELECT value, crc FROM meta WHERE key = ?", key)
        if len(rows) != 1 or checksum(key, rows[0][0]) != rows[0][1]:
            raise self.damaged(f"its {key} record does not match its checksum")
        value: dict[str, Any] = json.loads(rows[0][0])
        return value


def _put_whitening(db: sqlite3.Connection, whitening: Whitening) -> None:
    _put_meta(db, "whitening", {"safetensors": b64encode(whitening.to_bytes()).decode()})


def _put_meta(db: sqlite3.Connection, key: str, value: dict[str, Any]) -> None:
    text = json.dumps(value)
    db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, text, checksum(key, text)))
