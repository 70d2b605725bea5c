"""What is PostgreSQL's own: the graph and its conditions, passwords, tables of others, a server that is killed."""

import multiprocessing
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vectors_child
from drawn_parts import details, draw_parts, units
from postgres_server import Postgres, postgres
from server_fixtures import DIM, postgres_table

from simclr_hub.errors import VectorServerError
from simclr_hub.parts.storage import Folder
from simclr_hub.vectors import pgvector, recall
from simclr_hub.vectors.check import check_vectors
from simclr_hub.vectors.conditions import compile_where
from simclr_hub.vectors.connect import connect
from simclr_hub.vectors.load import load_parts
from simclr_hub.vectors.rows import part_names, read_ids
from simclr_hub.vectors.server import Setting, VectorServer


@pytest.fixture
def url(postgres_server: Postgres | None) -> Iterator[str]:
    yield from postgres_table(postgres_server)


@pytest.fixture
def sided(tmp_path: Path) -> tuple[Folder, np.ndarray]:
    """3,000 images, whose camera is told by what they show: A on one side, B on the other; and their vectors."""
    vectors = units(3000, 16, clusters=40)

    def info(at: int) -> dict[str, Any]:
        return details(at) | {"camera": "A" if vectors[at, 0] > 0 else "B"}

    return draw_parts(tmp_path / "sided", [vectors[i : i + 500] for i in range(0, 3000, 500)], info=info), vectors


def test_conditions_hold_what_they_promise_on_a_graph(
    sided: tuple[Folder, np.ndarray], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector, "SMALL", 0)
    parts, vectors = sided
    server = connect(url)
    setting = load_parts(parts.place, server).setting
    assert setting and setting.breadth and setting.recall >= recall.RECALL
    assert not server.search(vectors[0], 10).exact
    report = check_vectors(parts.place, server)
    assert report.complete and report.exact == {1.0: 0, 0.5: 1, 0.02: 1, 0.001: 1}
    # Without what is compared exactly because it is little: the graph goes on until it has enough.
    patient = Setting(setting.breadth, 0.0, exact_rows=0)
    for share in (0.5, 0.02):
        truth = recall.find_truth(parts, set(), (share,))
        found, exact = truth.recall(server, share, patient)
        assert found >= 0.9 and exact < 1
    # What meets the condition lies on the other side of all.
    far = [i for i in range(3000) if vectors[i, 0] < -0.5][:20]
    is_a = np.flatnonzero(vectors[:, 0] > 0)
    for row in far:
        best = set(is_a[np.argsort(-(vectors[is_a] @ vectors[row]))[:10]].tolist())
        for one in (setting, replace(setting, exact_rows=0)):
            found = server.search(vectors[row], 10, compile_where({"camera": "A"}), one)
            assert found.exact and {int(hit.path[-11:-4]) for hit in found.hits} == best
    near = [i for i in range(3000) if vectors[i, 0] > 0.5][:20]
    seen = [
        server.search(vectors[row], 10, compile_where({"camera": "A"}), replace(setting, exact_rows=0)) for row in near
    ]
    assert not any(found.exact for found in seen)
    server.close()


def test_a_graph_that_finds_too_little_is_not_used(
    sided: tuple[Folder, np.ndarray], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgvector, "SMALL", 0)
    whole = pgvector.PgVector._nearest

    def poor(self: Any, vector: np.ndarray, k: int, where: Any, ef: int) -> list[Any]:
        return whole(self, vector, 2 * k, where, ef)[:: 2 if ef else 1][:k]

    monkeypatch.setattr(pgvector.PgVector, "_nearest", poor)
    server = connect(url)
    setting = load_parts(sided[0].place, server).setting
    assert setting and not setting.breadth and server.search(sided[1][0], 10).exact
    described = server.describe()
    monkeypatch.setattr(server, "_setting", Setting(40, 0.0, exact_rows=0))
    monkeypatch.setattr(server, "describe", lambda: described)  # someone else set it so
    report = check_vectors(sided[0].place, server)
    assert not report.complete and report.recall[1.0] < recall.RECALL
    server.close()


def test_many_results_are_exact(sided: tuple[Folder, np.ndarray], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pgvector, "SMALL", 0)
    server = connect(url)
    load_parts(sided[0].place, server)
    found = server.search(sided[1][0], 101)
    assert found.exact and len(found.hits) == 101
    assert len(server.search(sided[1][0], 100).hits) == 100
    server.close()


SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://someone:{SECRET}@127.0.0.1:1/db",
        f"postgresql://someone:{SECRET}@127.0.0.1:1/db?sslmode=never",
        f"postgresql://127.0.0.1:1/db?user=a&password={SECRET}",
        f"postgresql://127.0.0.1:1/db?passwort={SECRET}",
        f"postgresql://someone:{SECRET}@{SECRET}@127.0.0.1:1/db",
        f"postgresql://someone:{SECRET}/{SECRET}@127.0.0.1:1/db",
        f"postgresql://someone:a#{SECRET}@127.0.0.1:1/db",
        f"postgresql://someone:{SECRET}@127.0.0.1:port/db",
        f"postgresql://someone:{SECRET}%ZZ@127.0.0.1:1/db",
        f"http//someone:{SECRET}@127.0.0.1:1/db",
        f"mysql://someone:{SECRET}@127.0.0.1:1/db",
    ],
)
def test_no_password_is_told(url: str, run: Any, caplog: Any) -> None:
    with pytest.raises(VectorServerError) as raised:
        connect(url)
    cause: BaseException | None = raised.value
    while cause is not None:
        assert SECRET not in repr(cause) + str(cause) or cause.__suppress_context__
        assert SECRET not in str(cause)
        cause = cause.__cause__
    code, out, err = run("vectors", "search", "x.jpg", url)
    assert code == 1 and err.startswith("error: ") and SECRET not in out + err + caplog.text


def test_a_password_in_the_url_is_stored_nowhere(drawn: Folder, url: str, postgres_server: Postgres | None) -> None:
    if postgres_server is None:
        pytest.skip("the user's own server: its URL cannot be changed")
    server = connect(url.replace("postgres@/", f"postgres:{SECRET}@/"))
    load_parts(drawn.place, server)
    assert SECRET not in repr(server) + str(server) + str(server.describe())
    import psycopg

    name = url.partition("#")[2]
    with psycopg.connect(url.partition("#")[0]) as db:
        assert SECRET not in str(db.execute(f"SELECT * FROM {name}_state").fetchall())  # type: ignore[call-overload]
    server.close()


def test_tables_of_others_are_left_alone(url: str, drawn: Folder) -> None:
    import psycopg

    base, _, name = url.partition("#")
    with psycopg.connect(base) as db:
        db.execute(f"CREATE TABLE {name}_state (key text, value text)")  # type: ignore[call-overload]
    server = connect(url)
    with pytest.raises(VectorServerError, match="did not make it"):
        load_parts(drawn.place, server)
    server.close()
    for bad in ("Photos", "a b", "a;drop", "1", 'a"b', "x" * 41):
        with pytest.raises(VectorServerError, match="small letters"):
            connect(f"{base}#{bad}")


@pytest.mark.parametrize("layout, advice", [(9, "upgrade"), (1, "older simclr_hub: load into another name")])
def test_another_layout_is_told(layout: int, advice: str, url: str, server: VectorServer, drawn: Folder) -> None:
    load_parts(drawn.place, server)
    import psycopg

    base, _, name = url.partition("#")
    with psycopg.connect(base) as db:
        changed = f"replace(value, '\"layout\": 2', '\"layout\": {layout}')"
        db.execute(f"UPDATE {name}_state SET value = {changed}")  # type: ignore[call-overload]
    with pytest.raises(VectorServerError, match=advice):
        load_parts(drawn.place, server)


@pytest.mark.slow
def test_no_acknowledged_row_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    chance, count = random.Random(0), 6000
    vectors = units(count, DIM)
    parts = draw_parts(tmp_path / "p", [vectors[i : i + 50] for i in range(0, count, 50)])
    with postgres() as running:
        for _ in range(8):
            told = tmp_path / "told"
            told.write_text("")
            child = multiprocessing.get_context("spawn").Process(
                target=vectors_child.load, args=(parts.place, running.url, str(told))
            )
            child.start()
            while child.is_alive() and not told.read_text():
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 1))
            running.kill()
            child.join()
            running.start()
            server = connect(running.url)
            acknowledged = told.read_text().split()
            assert acknowledged and set(acknowledged) <= server.parts()
            for part in acknowledged:
                ids = read_ids(parts, part)[0]
                assert server.there(ids) == set(ids)
            assert server.count() == 50 * len(server.parts())
            server.close()
            if len(acknowledged) == len(part_names(parts)):
                break
        server = connect(running.url)
        assert load_parts(parts.place, server).count == count
        assert check_vectors(parts.place, server).complete
        server.close()
