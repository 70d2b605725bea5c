"""Milvus: a collection of images, and beside it one of what is told of it; a file of milvus-lite is the same.

There is no transaction: a part is upserted by its ids and recorded last, so that a kill between leaves images that the
next load writes again. Nor can anything be null there: an image that lacks a value has one that no image has. Counts
and deletes are asked for strictly; a search may be some seconds behind, but never shows what was deleted.

Vectors lie in lists of near ones (IVF_FLAT), since looking through all lists is an exact search there: HNSW under a
condition that half of all images met, but few around the query, found 62 % and could not do better. To apply a
condition Milvus looks at all images' columns, so it is asked to only where it must: of the nearest images without a
condition those that meet it are the nearest that do. Where they are too few, all that meet it are compared.
"""

import json
import logging
import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np

from .._text import shown_url
from ..errors import MissingExtraError, VectorServerError
from ..metadata import MAX_TEXT
from .conditions import meets
from .server import COLUMNS, MOST_K, Comparison, Description, Found, Hit, Rows, Setting, chunks

#: Holds a token, or user:password, where the URL has none.
TOKEN = "SIMCLR_MILVUS_TOKEN"
#: What stands for a value that an image lacks; no comparison lets it pass.
_NONE: dict[type, Any] = {str: "", int: -(1 << 62), float: -1.7e308}
#: Bytes of a text, and of the pieces of what is longer.
_TEXT, _VALUE = 65_535, 60_000
#: Bytes of vectors that are sent at once, and rows.
_BYTES, _ROWS = 8 << 20, 2000
#: Rows that one answer has at most.
_MOST_ROWS = 16_384
_SECONDS = 30
#: Lists of each segment, of a million vectors x 256 at most; looking through all of them is exact.
LISTS = 1024
#: Images around a query of which those that meet its conditions are kept: at least, and for each that is wanted.
_AROUND, _AROUND_EACH = 100, 10
#: A key of the state while rows lie in no list yet: Milvus compares with some of those, whatever it is told.
_UNBUILT = "about unbuilt"


class Milvus:
    """A collection: see `server.VectorServer`.

    Args:
        url: http(s)://[USER:PASSWORD@]HOST[:PORT], or a file of milvus-lite.
        name: of the collection.

    Raises:
        VectorServerError: it cannot be reached.
        MissingExtraError: pymilvus, or for a file milvus-lite, is not installed.
    """

    def __init__(self, url: str, name: str):
        pymilvus = _pymilvus()
        self._lite = "://" not in url
        self._collection, self._state = name, f"{name}_state"
        self._setting: Setting | None = None
        self._half = False
        self._built = True
        self._marks: set[bytes] = set()
        token = ""
        self._name = f"{shown_url(url) if not self._lite else url}, collection {name}"
        if not self._lite:
            parts = urlsplit(url)
            if parts.username:
                token = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._secret = token or os.environ.get(TOKEN, "")
        self._types = pymilvus.DataType
        self._failures = (pymilvus.MilvusException, OSError, ValueError)
        with self._errors():
            self._db = pymilvus.MilvusClient(url, token="" if self._lite else self._secret, timeout=_SECONDS)

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<Milvus {self._name}>"

    def describe(self) -> Description | None:
        """Return what was created; None if nothing was."""
        with self._errors():
            if not self._db.has_collection(self._state):
                if self._db.has_collection(self._collection):
                    raise VectorServerError(f"{self}: a collection of that name is there that simclr_hub did not make")
                return None
            for name in filter(self._db.has_collection, (self._state, self._collection)):
                self._db.load_collection(name)  # milvus-lite forgets what was loaded when its process ends
        told = self._values("about ", "deleted ")
        found = {key: value for key, value in told.items() if key.startswith("about ")}
        self._built = found.pop(_UNBUILT, None) is None
        if not found or not self._db.has_collection(self._collection):
            return None  # killed while it was made
        description = Description.from_text("".join(found[key] for key in sorted(found)), str(self))
        self._half, self._setting = description.half, description.setting
        self._marks = {bytes.fromhex(key.removeprefix("deleted ")) for key in told if key.startswith("deleted ")}
        return replace(description, built=self._built)

    def create(self, description: Description) -> None:
        """Make the collection, or record another `Description.setting`."""
        types = self._types
        self._half, self._setting = description.half, description.setting
        kinds = {str: types.VARCHAR, int: types.INT64, float: types.DOUBLE}
        with self._errors():
            if not self._db.has_collection(self._collection):
                schema = self._db.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("id", types.VARCHAR, is_primary=True, max_length=32)
                schema.add_field("hash", types.VARCHAR, max_length=64)
                schema.add_field("path", types.VARCHAR, max_length=_TEXT)
                vector = types.FLOAT16_VECTOR if description.half else types.FLOAT_VECTOR
                schema.add_field("vector", vector, dim=description.dim)
                for name, kind in COLUMNS.items():
                    length = {"max_length": 4000 if name == "key" else 4 * MAX_TEXT} if kind is str else {}
                    schema.add_field(name, kinds[kind], **length)
                self._create(self._collection, schema, "FLAT" if self._lite else "IVF_FLAT")
            if not self._db.has_collection(self._state):
                schema = self._db.create_schema(auto_id=False, enable_dynamic_field=False)
                schema.add_field("key", types.VARCHAR, is_primary=True, max_length=256)
                schema.add_field("value", types.VARCHAR, max_length=_TEXT)
                schema.add_field("vector", types.FLOAT_VECTOR, dim=2)  # every collection must have one
                self._create(self._state, schema, "FLAT")
        text = description.to_text()
        pieces = [text[start : start + _VALUE] for start in range(0, len(text), _VALUE)]
        self._record({f"about {number:06}": piece for number, piece in enumerate(pieces)})

    def _create(self, name: str, schema: Any, kind: str) -> None:
        index = self._db.prepare_index_params()
        parameters = {"nlist": LISTS} if kind == "IVF_FLAT" else {}
        index.add_index("vector", index_type=kind, metric_type="IP", params=parameters)
        # Of pymilvus's iterators this is the only way to say so; searches say "Bounded".
        self._db.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")

    def parts(self) -> set[str]:
        """Return the names of parts that were loaded."""
        return {key.removeprefix("part ") for key in self._values("part ")}

    def marks(self) -> set[bytes]:
        """Return what was forgotten."""
        return {bytes.fromhex(key.removeprefix("deleted ")) for key in self._values("deleted ")}

    def put(self, part: str, rows: Rows) -> None:
        """Put images, replacing those of the same ids, then record the part."""
        rows = rows.only([i for i in range(len(rows)) if not {rows.ids[i], rows.hashes[i]} & self._marks])
        vectors = rows.vectors.astype(np.float16) if self._half else rows.vectors
        step = max(1, min(_ROWS, _BYTES // (4 * vectors.shape[1])))
        if self._built and not self._lite:
            self._record({_UNBUILT: ""})
            self._built = False
        with self._errors():
            for start in range(0, len(rows), step):
                some = [
                    {
                        "id": rows.ids[i].hex(),
                        "hash": rows.hashes[i].hex(),
                        "path": rows.paths[i],
                        "vector": vectors[i],
                        **{
                            name: _NONE[kind] if rows.values[name][i] is None else rows.values[name][i]
                            for name, kind in COLUMNS.items()
                        },
                    }
                    for i in range(start, min(start + step, len(rows)))
                ]
                self._db.upsert(self._collection, some)
        self._record({f"part {part}": str(len(rows))})

    def forget(self, marks: Collection[bytes]) -> int:
        """Delete images for ever, by id (16 bytes) or content (32 bytes); return how many were there."""
        gone = 0
        self._marks |= set(marks)
        for some in chunks(sorted(marks), 1000):
            self._record({f"deleted {mark.hex()}": "" for mark in some})
            with self._errors():
                ids = {one.hex() for one in self.there([mark for mark in some if len(mark) == 16])}
                if contents := [mark.hex() for mark in some if len(mark) == 32]:
                    ids |= {
                        row["id"] for row in self._query(self._collection, f"hash in {json.dumps(contents)}", ["id"])
                    }
                for start in range(0, len(ids), 1000):
                    self._db.delete(self._collection, ids=sorted(ids)[start : start + 1000])
            gone += len(ids)
        return gone

    def count(self) -> int:
        """Return how many images there are."""
        with self._errors():
            found = self._db.query(self._collection, filter="", output_fields=["count(*)"], consistency_level="Strong")
            return int(found[0]["count(*)"])

    def there(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of the ids that are there."""
        found: set[bytes] = set()
        for some in chunks(ids, 5000):
            condition = f"id in {json.dumps([one.hex() for one in some])}"
            with self._errors():
                rows = self._db.query(
                    self._collection, filter=condition, output_fields=["id"], limit=5000, consistency_level="Strong"
                )
            found |= {bytes.fromhex(row["id"]) for row in rows}
        return found

    def build(self) -> bool:
        """Wait until what was put lies in lists; return whether there are any."""
        if self._lite:
            return False
        import time

        with self._errors():
            self._db.flush(self._collection, timeout=600)
            for _ in range(36_000):
                told = self._db.describe_index(self._collection, "vector")
                # "pending_index_rows" also counts segments that were merged meanwhile: it may never be 0.
                indexed, total = int(told.get("indexed_rows", 0)), int(told.get("total_rows", 0))
                if told.get("state", "Finished") == "Finished" and indexed >= total:
                    break
                time.sleep(0.1)
            self._db.refresh_load(self._collection)
            self._db.delete(self._state, ids=[_UNBUILT])
        self._built = True
        return True

    def search(
        self, vector: np.ndarray, k: int, where: Sequence[Comparison] = (), setting: Setting | None = None
    ) -> Found:
        """Find the k images of the highest cosine with a vector (D,) of length 1 that meet all of `where`."""
        setting = setting or self._setting or Setting()
        # What was deleted a moment ago may still come: then it is asked for anew, strictly.
        for level in ("Bounded", "Strong"):
            found = self._find(vector, k, where, setting, level)
            kept = [hit for hit in found.hits if not {hit.id, hit.content_hash} & self._marks]
            if len(kept) == len(found.hits):
                break
        return Found(kept, found.exact)

    def _find(self, vector: np.ndarray, k: int, where: Sequence[Comparison], setting: Setting, level: str) -> Found:
        number = max(_AROUND, _AROUND_EACH * k) if where else k
        # For ten times as many, three times as many lists.
        lists = math.ceil(setting.breadth * math.sqrt(max(1.0, number / 10)))
        if not self._lite and 0 < lists < LISTS and k <= MOST_K:
            around = self._nearest(vector, number, (), lists, level)
            met = [hit for hit in around if meets(where, hit)]
            if len(met) >= max(k, setting.min_share * len(around)):
                return Found(met[:k], False)
        return Found(self._nearest(vector, k, where, LISTS, level), self._built)

    def _nearest(self, vector: np.ndarray, k: int, where: Sequence[Comparison], lists: int, level: str) -> list[Hit]:
        parameters = {} if self._lite else {"nprobe": lists}
        with self._errors():
            (found,) = self._db.search(
                self._collection,
                data=[vector.astype(np.float16) if self._half else vector],
                limit=min(k, _MOST_ROWS),
                filter=_filter(where),
                output_fields=["hash", "path", *COLUMNS],
                search_params={"metric_type": "IP", "params": parameters},
                consistency_level=level,
            )
        hits = []
        for one in found:
            told = one["entity"]
            values = {name: None if told[name] == _NONE[kind] else told[name] for name, kind in COLUMNS.items()}
            score = min(float(one["distance"]), 1.0)
            hits.append(Hit(bytes.fromhex(one["id"]), score, bytes.fromhex(told["hash"]), told["path"], values))
        return hits

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    def _record(self, values: dict[str, str]) -> None:
        rows = [{"key": key, "value": value, "vector": [1.0, 0.0]} for key, value in values.items()]
        with self._errors():
            for start in range(0, len(rows), 50):
                self._db.upsert(self._state, rows[start : start + 50])

    def _values(self, *prefixes: str) -> dict[str, str]:
        # The exclamation mark follows the space at their end.
        ranges = [f'(key >= "{prefix}" and key < "{prefix[:-1]}!")' for prefix in prefixes]
        with self._errors():
            return {
                row["key"]: row["value"] for row in self._query(self._state, " or ".join(ranges), ["key", "value"])
            }

    def _query(self, collection: str, condition: str, columns: list[str]) -> list[dict[str, Any]]:
        """Return all rows that meet a condition, however many, also what was put a moment ago."""
        rows: list[dict[str, Any]] = list(
            self._db.query(
                collection, filter=condition, output_fields=columns, limit=_MOST_ROWS, consistency_level="Strong"
            )
        )
        if len(rows) < _MOST_ROWS:
            return rows
        rows = []
        iterator = self._db.query_iterator(collection, batch_size=500, filter=condition, output_fields=columns)
        try:
            while some := iterator.next():
                rows += some
        finally:
            iterator.close()
        return rows

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what pymilvus raises into our error, without the token."""
        try:
            yield
        except self._failures as e:
            told = " ".join(str(getattr(e, "message", "") or e).split())[:500]
            for secret in filter(None, {self._secret, self._secret.partition(":")[2]}):
                told = told.replace(secret, "***")
            lost = "connect" in told.lower() or "unavailable" in told.lower()
            advice = "; is the server running? What was acknowledged is kept: run it again" if lost else ""
            raise VectorServerError(f"{self}: {told}{advice}") from None


def _pymilvus() -> Any:
    try:
        import pymilvus
    except ImportError as e:
        raise MissingExtraError("pymilvus", "milvus") from e
    for name in ("pymilvus", "milvus_lite", "grpc._server"):  # what is an error is raised, too
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


def _filter(where: Sequence[Comparison]) -> str:
    """Return comparisons as Milvus reads them."""
    parts = []
    for column, operator, value in where:
        if isinstance(value, str):
            quoted = value.replace("\\", "\\\\").replace('"', '\\"')
            parts.append(f'{column} {operator} "{quoted}"')
        else:
            parts.append(f"{column} {operator} {value!r}")
        if column in COLUMNS:
            none = _NONE[COLUMNS[column]]
            parts.append(f'{column} != ""' if none == "" else f"{column} > {none!r}")
    return " and ".join(parts)
