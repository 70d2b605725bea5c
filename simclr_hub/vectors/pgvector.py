"""PostgreSQL with pgvector, from 0.8 on: a part is a transaction, there whole or not at all whatever is killed.

A graph (HNSW) is searched first and conditions come after, so that pgvector by itself finds almost nothing of what few
images meet. Here a condition that few meet is no search of the graph: what meets it is read by its own indexes and
compared exactly. Where many meet it, the graph is searched further until enough are found, with as many more
candidates as the planner's estimate asks for, and exactly if that ends short.
"""

import math
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._text import shown_url
from ..errors import MissingExtraError, VectorServerError
from .server import COLUMNS, MOST_K, Comparison, Description, Found, Hit, Rows, Setting, chunks

#: Images below which all are compared: milliseconds, and no graph to keep.
SMALL = 10_000
#: The widest vectors that pgvector makes a graph of: of 32 and of 16 bits.
_WIDEST = {False: 2000, True: 4000}
#: Candidates of a search that pgvector takes, and images that one with conditions looks at before it ends short.
_MOST_EF, _MOST_SCANNED = 1000, 50_000
#: Images around a query of which it is seen how many meet its conditions; if so many times fewer than of all, what
#: meets them is compared exactly.
_AROUND, _FEWER_AROUND = 100, 4
#: Bytes that the build of a graph may take; beyond, pgvector goes on several times as slowly, and says so.
BUILD_BYTES = 4 << 30
#: Columns with an index of their own.
_INDEXED = tuple(name for name in COLUMNS if name != "orientation")
_TYPES = {str: 'text COLLATE "C"', int: "bigint", float: "double precision"}
_SECONDS = 15  # until a server that does not answer is given up, unless the URL or PGCONNECT_TIMEOUT says otherwise


class PgVector:
    """A table of a database, and beside it one of what is told of it: see `server.VectorServer`.

    Args:
        url: as libpq takes it.
        table: its name.

    Raises:
        VectorServerError: it cannot be reached, or has no pgvector.
        MissingExtraError: psycopg or pgvector's client is not installed.
    """

    def __init__(self, url: str, table: str):
        self._psycopg = _psycopg()
        self._name = f"{shown_url(url)}, table {table}"
        try:
            options = self._psycopg.conninfo.conninfo_to_dict(url)
        except self._psycopg.Error:
            raise VectorServerError(
                f"{self._name}: not a URL that libpq can read; escape what is not in [a-z0-9._-]"
            ) from None
        self._secret = options.get("password")
        options = {"connect_timeout": _SECONDS, "application_name": "simclr_hub"} | options
        sql = self._psycopg.sql
        self._table, self._state = sql.Identifier(table), sql.Identifier(f"{table}_state")
        self._graph = f"{table}_vector"
        self._half = False
        self._setting: Setting | None = None
        self._rows = 0.0
        with self._errors():
            # Plans are made anew, by the values of the conditions; pools of connections know no prepared statements.
            self._db = self._psycopg.connect(**options, autocommit=True, prepare_threshold=None)
            self._db.add_notice_handler(_warn)

    def __str__(self) -> str:
        return self._name

    def __repr__(self) -> str:
        return f"<PgVector {self._name}>"

    def describe(self) -> Description | None:
        """Return what was created; None if nothing was."""
        with self._errors():
            if self._one("SELECT to_regclass(quote_ident({state_text}))") is None:
                return None
            text = self._one("SELECT value FROM {state} WHERE key = 'about'")
        if text is None:
            raise VectorServerError(f"{self}: a table of that name is there, but simclr_hub did not make it")
        self._prepare()
        found = Description.from_text(text, str(self))
        self._half, self._setting = found.half, found.setting
        return found

    def create(self, description: Description) -> None:
        """Make the table, or record another `Description.setting`."""
        with self._errors():
            if self._one("SHOW server_encoding") != "UTF8":
                raise VectorServerError(f"{self}: the database's encoding is not UTF8; make one with ENCODING 'UTF8'")
            if self._one("SELECT extversion FROM pg_extension WHERE extname = 'vector'") is None:
                self._run("CREATE EXTENSION IF NOT EXISTS vector")
        self._prepare()
        self._half, self._setting = description.half, description.setting
        columns = ", ".join(f"{name} {_TYPES[kind]}" for name, kind in COLUMNS.items())
        with self._errors(), self._db.transaction():
            self._run("SELECT pg_advisory_xact_lock({lock})")
            self._run('CREATE TABLE IF NOT EXISTS {state} (key text COLLATE "C" PRIMARY KEY, value text NOT NULL)')
            self._run(
                "CREATE TABLE IF NOT EXISTS {table} (id uuid PRIMARY KEY, hash bytea NOT NULL, path text NOT NULL,"
                f" vector {self._type}({description.dim}) NOT NULL, {columns})"
            )
            self._record({"about": description.to_text()})

    def parts(self) -> set[str]:
        """Return the names of parts that were loaded."""
        return {key.removeprefix("part ") for key in self._keys("part ")}

    def marks(self) -> set[bytes]:
        """Return what was forgotten."""
        return {bytes.fromhex(key.removeprefix("deleted ")) for key in self._keys("deleted ")}

    def put(self, part: str, rows: Rows) -> None:
        """Put images, replacing those of the same ids, and record the part, in one transaction."""
        names = ("id", "hash", "path", "vector", *COLUMNS)
        listed, new = ", ".join(names), ", ".join(f"{name} = excluded.{name}" for name in names[1:])
        types = [
            "uuid",
            "bytea",
            "text",
            self._type,
            *({str: "text", int: "int8", float: "float8"}[k] for k in COLUMNS.values()),
        ]
        with self._errors(), self._db.transaction():
            # Others may load at the same time, but not while something is forgotten: it would come back.
            self._run("SELECT pg_advisory_xact_lock_shared({lock})")
            self._run("CREATE TEMP TABLE IF NOT EXISTS simclr_incoming (LIKE {table}) ON COMMIT DROP")
            with self._db.cursor().copy(f"COPY simclr_incoming ({listed}) FROM STDIN (FORMAT BINARY)") as copy:
                copy.set_types(types)
                for i, (image, content, path) in enumerate(zip(rows.ids, rows.hashes, rows.paths, strict=True)):
                    others = [rows.values[name][i] for name in COLUMNS]
                    copy.write_row((_uuid(image), content, path, self._vector(rows.vectors[i]), *others))
            # In one order, so that two that load the same images do not wait for each other.
            self._run(
                f"INSERT INTO {{table}} ({listed}) SELECT {listed} FROM simclr_incoming i"
                " WHERE NOT EXISTS (SELECT FROM {state} WHERE key = 'deleted ' || replace(i.id::text, '-', ''))"
                " AND NOT EXISTS (SELECT FROM {state} WHERE key = 'deleted ' || encode(i.hash, 'hex'))"
                f" ORDER BY id ON CONFLICT (id) DO UPDATE SET {new}"
            )
            self._record({f"part {part}": str(len(rows))})

    def forget(self, marks: Collection[bytes]) -> int:
        """Delete images for ever, by id (16 bytes) or content (32 bytes); return how many were there."""
        gone = 0
        for some in chunks(sorted(marks)):
            with self._errors(), self._db.transaction():
                self._run("SELECT pg_advisory_xact_lock({lock})")
                self._record({f"deleted {mark.hex()}": "" for mark in some})
                ids = [_uuid(mark) for mark in some if len(mark) == 16]
                contents = [mark for mark in some if len(mark) == 32]
                gone += self._run("DELETE FROM {table} WHERE id = ANY(%s)", (ids,)).rowcount if ids else 0
                gone += self._run("DELETE FROM {table} WHERE hash = ANY(%s)", (contents,)).rowcount if contents else 0
        return gone

    def count(self) -> int:
        """Return how many images there are."""
        with self._errors():
            return int(self._one("SELECT count(*) FROM {table}"))

    def there(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of the ids that are there."""
        found: set[bytes] = set()
        for some in chunks(ids):
            with self._errors():
                rows = self._run("SELECT id FROM {table} WHERE id = ANY(%s)", ([_uuid(one) for one in some],))
                found |= {row[0].bytes for row in rows}
        return found

    def build(self) -> bool:
        """Make the graph and the columns' indexes, unless there are few images; return whether there is a graph."""
        rows = self.count()
        with self._errors():
            for name in (*_INDEXED, "hash"):
                self._run(f"CREATE INDEX IF NOT EXISTS {{table_{name}}} ON {{table}} ({name})")
            self._run("ANALYZE {table}")
            self._rows = 0.0
            width = int(
                self._one(
                    "SELECT atttypmod FROM pg_attribute WHERE attrelid = {table_text}::regclass AND attname = 'vector'"
                )
            )
            if rows >= SMALL and width <= _WIDEST[self._half]:
                self._build_graph(rows, width)
            return self._one("SELECT to_regclass(quote_ident({graph_text}))") is not None

    def _build_graph(self, rows: int, width: int) -> None:
        needed = int(1.5 * rows * ((2 if self._half else 4) * width + 300))
        memory = max(64 << 20, min(BUILD_BYTES, needed)) >> 10
        statement = f"CREATE INDEX IF NOT EXISTS {{graph}} ON {{table}} USING hnsw (vector {self._type}_ip_ops)"
        for workers in ("", "0"):
            try:
                with self._db.transaction():
                    self._run("SELECT set_config('maintenance_work_mem', %s, true)", (f"{memory}kB",))
                    if workers:
                        self._run("SELECT set_config('max_parallel_maintenance_workers', %s, true)", (workers,))
                    self._run(statement)
                return
            except self._psycopg.errors.DiskFull:  # little shared memory, as in containers: one process needs none
                if workers:
                    raise

    def search(
        self, vector: np.ndarray, k: int, where: Sequence[Comparison] = (), setting: Setting | None = None
    ) -> Found:
        """Find the k images of the highest cosine with a vector (D,) of length 1 that meet all of `where`."""
        setting = setting or self._setting or Setting()
        with self._errors():
            ef = self._candidates(vector, k, where, setting)
            hits = self._nearest(vector, k, where, ef) if ef else []
            if ef and (len(hits) == k or (not where and len(hits) == self.count())):
                return Found(hits, False)
            return Found(self._nearest(vector, k, where, 0), True)

    def _candidates(self, vector: np.ndarray, k: int, where: Sequence[Comparison], setting: Setting) -> int:
        """Return how many candidates a search of the graph takes; 0: what meets the conditions is compared exactly."""
        if not setting.breadth or k > MOST_K:
            return 0
        ef = setting.breadth * max(1.0, k / 10)
        if not where:
            return min(_MOST_EF, math.ceil(ef))
        conditions, values = _where(where)
        (plan,) = self._one(f"EXPLAIN (FORMAT JSON) SELECT FROM {{table}}{conditions}", values)
        passing = float(plan["Plan"]["Plan Rows"])
        if not self._rows:
            self._rows = float(self._one("SELECT reltuples FROM pg_class WHERE oid = {table_text}::regclass"))
        share = passing / max(self._rows, 1)
        if passing <= setting.exact_rows or share < setting.min_share:
            return 0
        # What many images meet may be met by none that the query is like.
        around = self._share_around(vector, where, max(_AROUND, math.ceil(ef)))
        if around < max(setting.min_share, share / _FEWER_AROUND):
            return 0
        return min(_MOST_EF, math.ceil(ef / min(share, around, 1.0)))

    def _share_around(self, vector: np.ndarray, where: Sequence[Comparison], number: int) -> float:
        """Return which share of the images around a query meets the conditions."""
        conditions, values = _where(where)
        found = self._graph_rows(
            f"SELECT ({conditions.removeprefix(' WHERE ')}) IS TRUE FROM {{table}}", values, vector, number, number
        )
        met = sum(bool(row[0]) for row in found)
        return met / max(len(found), 1)

    def _nearest(self, vector: np.ndarray, k: int, where: Sequence[Comparison], ef: int) -> list[Hit]:
        conditions, values = _where(where)
        given = self._vector(vector)
        select = f"SELECT id, vector <#> %s::{self._type}, hash, path, {', '.join(COLUMNS)} FROM {{table}}{conditions}"
        rows = self._graph_rows(select, [given, *values], vector, k, ef)
        return [
            Hit(one.bytes, min(-score, 1.0), content, path, dict(zip(COLUMNS, others, strict=True)))
            for one, score, content, path, *others in rows
        ]

    def _graph_rows(self, select: str, values: list[Any], vector: np.ndarray, k: int, ef: int) -> list[Any]:
        """Return the first k rows of a SELECT by the graph, with so many candidates; 0: by comparing all."""
        distance = f"vector <#> %s::{self._type}"
        # Nothing but a comparison with every image gives an order by a sum.
        order = distance if ef else f"({distance}) + 0"
        settings = {"jit": "off"}
        if ef:
            settings |= {
                "hnsw.ef_search": str(min(ef, _MOST_EF)),
                "hnsw.iterative_scan": "strict_order",
                "hnsw.max_scan_tuples": str(_MOST_SCANNED),
                "hnsw.scan_mem_multiplier": "8",
                "enable_sort": "off",  # by any other plan: the graph gives them in order
            }
        set_all = ", ".join(["set_config(%s, %s, true)"] * len(settings))
        with self._db.transaction(), self._db.pipeline():
            self._db.execute(f"SELECT {set_all}", [text for pair in settings.items() for text in pair])
            cursor = self._run(f"{select} ORDER BY {order} LIMIT %s", [*values, self._vector(vector), k])
            rows: list[Any] = cursor.fetchall()
        return rows

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @property
    def _type(self) -> str:
        return "halfvec" if self._half else "vector"

    def _vector(self, vector: np.ndarray) -> Any:
        from pgvector import HalfVector, Vector

        return HalfVector(vector) if self._half else Vector(vector)

    def _prepare(self) -> None:
        """Look at pgvector's version, and let vectors travel as bytes."""
        from pgvector.psycopg import register_vector

        with self._errors():
            version = str(self._one("SELECT extversion FROM pg_extension WHERE extname = 'vector'"))
            if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < (0, 8):
                raise VectorServerError(
                    f"{self}: pgvector {version}; 0.8 or newer is needed: ALTER EXTENSION vector UPDATE"
                )
            register_vector(self._db)

    def _record(self, values: dict[str, str]) -> None:
        self._run(
            "INSERT INTO {state} SELECT * FROM unnest(%s::text[], %s::text[])"
            " ON CONFLICT (key) DO UPDATE SET value = excluded.value",
            (list(values), list(values.values())),
        )

    def _keys(self, prefix: str) -> Iterator[str]:
        with self._errors():
            rows = self._run("SELECT key FROM {state} WHERE starts_with(key, %s)", (prefix,)).fetchall()
        return (row[0] for row in rows)

    def _run(self, statement: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement with the names of our tables in it."""
        sql = self._psycopg.sql
        table = self._table._obj[0]
        names = {f"table_{name}": sql.Identifier(f"{table}_{name}") for name in (*_INDEXED, "hash")}
        whole = sql.SQL(statement).format(
            table=self._table,
            state=self._state,
            graph=sql.Identifier(self._graph),
            table_text=sql.Literal(table),
            state_text=sql.Literal(f"{table}_state"),
            graph_text=sql.Literal(self._graph),
            lock=sql.SQL("hashtext({})").format(sql.Literal(f"simclr_hub {table}")),
            **names,
        )
        return self._db.execute(whole, values)

    def _one(self, statement: str, values: Sequence[Any] = ()) -> Any:
        row = self._run(statement, values).fetchone()
        return row[0] if row else None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what psycopg raises into our error, without the password."""
        try:
            yield
        except self._psycopg.Error as e:
            told = " ".join(str(e).split()) or type(e).__name__
            if self._secret:
                told = told.replace(self._secret, "***")
            raise VectorServerError(f"{self}: {told}{_advice(self._psycopg, e)}") from None


def _psycopg() -> Any:
    try:
        import pgvector
        import psycopg
        import psycopg.conninfo
        import psycopg.sql
    except ImportError as e:
        raise MissingExtraError("psycopg or pgvector", "pgvector") from e
    del pgvector
    return psycopg


def _advice(psycopg: Any, error: Exception) -> str:
    if isinstance(error, psycopg.errors.InsufficientPrivilege):
        return "; ask an administrator, for the extension: CREATE EXTENSION vector"
    if isinstance(error, psycopg.errors.UndefinedFile):
        return "; install pgvector on the server"
    if isinstance(error, psycopg.OperationalError):
        return "; is the server running? What was acknowledged is kept: run it again"
    return ""


def _warn(notice: Any) -> None:
    if notice.severity_nonlocalized == "WARNING" or "maintenance_work_mem" in str(notice.message_primary):
        warnings.warn(f"PostgreSQL: {notice.message_primary}", stacklevel=2)


def _uuid(value: bytes) -> Any:
    from uuid import UUID

    return UUID(bytes=value)


def _where(where: Sequence[Comparison]) -> tuple[str, list[Any]]:
    """Return comparisons as SQL, with their values apart."""
    if not where:
        return "", []
    parts = [f"{one.column} {one.operator} %s{'::uuid' if one.column == 'id' else ''}" for one in where]
    return " WHERE " + " AND ".join(parts), [one.value for one in where]
