"""What is Milvus's own: what its conditions are made of, tokens, and the real server, where it is installed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_parts import details, draw_parts, units
from server_fixtures import DIM, milvus_collection

from simclr_hub.errors import VectorServerError
from simclr_hub.parts.storage import Folder
from simclr_hub.vectors import milvus, recall
from simclr_hub.vectors.check import check_vectors
from simclr_hub.vectors.conditions import compile_where, meets
from simclr_hub.vectors.connect import connect
from simclr_hub.vectors.load import load_parts
from simclr_hub.vectors.milvus import LISTS, TOKEN, _filter
from simclr_hub.vectors.rows import part_names, read_rows
from simclr_hub.vectors.server import Comparison, Hit, Setting

ROOT = Path(__file__).parents[2]
SECRET = "s3cr3t"


@pytest.mark.parametrize(
    "where, expected",
    [
        ({"camera": 'a" or camera != "'}, r'camera >= "a\" or camera != \"" and camera != "" and '
         r'camera <= "a\" or camera != \"" and camera != ""'),
        ({"camera": ("\\", None)}, r'camera >= "\\" and camera != ""'),
        ({"width": (None, 5)}, "width <= 5 and width > -4611686018427387904"),
        ({"modified": (0.5, None)}, "modified >= 0.5 and modified > -1.7e+308"),
    ],
)  # fmt: skip
def test_conditions_are_quoted_and_nothing_lacks_what_they_ask_for(where: dict[str, Any], expected: str) -> None:
    assert _filter(compile_where(where)) == expected
    assert _filter((Comparison("id", "<", "80"),)) == 'id < "80"'


@pytest.mark.parametrize(
    "url", [f"http://user:{SECRET}@127.0.0.1:1/photos", f"milvus://user:{SECRET}@{SECRET}@127.0.0.1:1", "milvus://127.0.0.1:1"]
)  # fmt: skip
def test_no_token_is_told(url: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setenv(TOKEN, f"user:{SECRET}")
    monkeypatch.setattr(milvus, "_SECONDS", 1)
    with pytest.raises(VectorServerError) as raised:
        connect(url)
    assert SECRET not in str(raised.value) + caplog.text and raised.value.__cause__ is None


def in_own_network(*arguments: str) -> str:
    """Run a script that starts the real server in a network of its own; return what it printed."""
    if find_spec("milvus") is None:
        pytest.skip("the real Milvus is not installed: pip install milvus==2.3.5 (58 MB, Linux)")
    if os.geteuid() or subprocess.run(["unshare", "-n", "true"]).returncode:
        pytest.skip("Milvus listens on all interfaces, and only root can give it a network of its own (unshare -n)")
    done = subprocess.run(["unshare", "-n", sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_real_server_keeps_the_contract(tmp_path: Path) -> None:
    # Some of it: each load waits seconds for the strict answers of a real server.
    some = "twice or stopped or tombstones_name or another_model or index_of or hostile or load_check or on_the_real"
    files = [
        f"tests/vectors/test_{name}.py" for name in ("vectors_load", "vectors_search", "vectors_command", "milvus")
    ]
    script, data = ROOT / "tests" / "support" / "milvus_server.py", tmp_path / "milvus"
    pytest_command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rs",
        "-p",
        "no:cacheprovider",
        "-k",
        f"milvus and ({some})",
        *files,
    ]
    told = in_own_network(str(script), str(data), *pytest_command)
    assert " passed" in told or "100%" in told


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_no_acknowledged_row_is_lost_when_the_real_server_is_killed(tmp_path: Path) -> None:
    vectors = units(4000, DIM)
    parts = draw_parts(tmp_path / "p", [vectors[i : i + 100] for i in range(0, 4000, 100)])
    told = in_own_network(str(Path(__file__).with_name("milvus_child.py")), parts.place, str(tmp_path / "killed"))
    assert told.startswith("0 lost of ")


@pytest.mark.parametrize("k", [3])
def test_what_was_deleted_is_not_shown_however_late_the_server_is(
    k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if find_spec("milvus_lite") is None:
        pytest.skip("milvus-lite is not installed")
    server: Any = connect(str(tmp_path / "lite.db"))
    vectors = units(50, DIM)
    load_parts(draw_parts(tmp_path / "p", [vectors]).place, server)
    late = server._nearest

    def nearest(vector: Any, k: int, where: Any, lists: int, level: str) -> Any:
        return before if level == "Bounded" else late(vector, k, where, lists, level)

    before = late(vectors[0], k, (), 0, "Strong")
    server.forget([before[0].id, before[1].content_hash])
    monkeypatch.setattr(server, "_nearest", nearest)
    hits = server.search(vectors[0], k).hits
    assert len(hits) == k and not {hit.id for hit in hits} & {before[0].id, before[1].id}
    server.close()


@pytest.mark.parametrize(
    "where, met",
    [
        ((Comparison("width", ">=", 5),), True),
        ((Comparison("width", ">=", 6),), False),
        ((Comparison("width", "<=", 4),), False),
        ((Comparison("width", ">=", 5), Comparison("camera", "<=", "B")), False),
        ((Comparison("camera", ">=", "C"), Comparison("camera", "<=", "C\U0010ffff")), True),
        ((Comparison("height", ">=", -1),), False),  # which it lacks
        ((Comparison("id", "<", "80"),), True),
        ((Comparison("id", "<", "07"),), False),
        ((), True),
    ],
)
def test_what_was_found_meets_what_a_server_would_let_pass(where: Any, met: bool) -> None:
    assert meets(where, Hit(b"\x07" * 16, 1.0, b"", "", {"width": 5, "camera": "CD", "height": None})) == met


def sided_parts(folder: Path, count: int) -> tuple[Folder, np.ndarray]:
    """Images whose camera is told by what they show: A on one side, B on the other; and their vectors."""
    vectors = units(count, DIM, clusters=20)

    def info(at: int) -> dict[str, Any]:
        return details(at) | {"camera": "A" if vectors[at, 0] > 0 else "B"}

    return draw_parts(folder, [vectors[i : i + 500] for i in range(0, count, 500)], info=info), vectors


def rows_by_side(vectors: np.ndarray) -> tuple[list[int], list[int]]:
    """Return rows of whose nearest 100 many are of camera A, and such of which few are."""
    around = np.argsort(-(vectors[:1000] @ vectors.T), axis=1)[:, :100]
    share = (vectors[around, 0] > 0).mean(1)
    near, far = np.flatnonzero(share > 0.3)[:8].tolist(), np.flatnonzero(share < 0.08)[:8].tolist()
    assert len(near) == len(far) == 8
    return near, far


def assert_sided(server: Any, vectors: np.ndarray, rows: list[int], setting: Setting | None, *, exact: bool) -> float:
    """Search among A for what images show; return how much of the truth is found."""
    is_a, same = np.flatnonzero(vectors[:, 0] > 0), 0
    for row in rows:
        found = server.search(vectors[row], 10, compile_where({"camera": "A"}), setting)
        assert found.exact == exact and len(found.hits) == 10
        best = set(is_a[np.argsort(-(vectors[is_a] @ vectors[row]))[:10]].tolist())
        same += len({int(hit.path[-11:-4]) for hit in found.hits} & best)
    return same / 10 / len(rows)


def test_a_condition_is_exact_where_few_around_the_query_meet_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With milvus-lite, whose every search is exact, as a server whose lists are not."""
    if find_spec("milvus_lite") is None:
        pytest.skip("milvus-lite is not installed")
    parts, vectors = sided_parts(tmp_path / "sided", 2000)
    server: Any = connect(str(tmp_path / "lite.db"))
    load_parts(parts.place, server)
    asked: list[tuple[int, bool, int]] = []
    whole = server._nearest

    def nearest(vector: Any, k: int, where: Any, lists: int, level: str) -> Any:
        asked.append((k, bool(where), lists))
        with monkeypatch.context() as patch:
            patch.setattr(server, "_lite", True)
            return whole(vector, k, where, lists, level)

    monkeypatch.setattr(server, "_nearest", nearest)
    monkeypatch.setattr(server, "_lite", False)
    near, far = rows_by_side(vectors)
    few = Setting(16, 0.02)
    assert assert_sided(server, vectors, near, few, exact=False) == 1
    assert set(asked) == {(100, False, 51)}  # a condition is not Milvus's to apply
    asked.clear()
    assert assert_sided(server, vectors, far, few, exact=True) == 1
    assert set(asked[1::2]) == {(10, True, LISTS)}
    assert assert_sided(server, vectors, near, Setting(16, 1.1), exact=True) == 1  # it found too little, measured
    for k, chosen, lists in ((10, few, 16), (10, Setting(), LISTS), (100, few, 51), (101, few, LISTS)):
        asked.clear()
        assert server.search(vectors[0], k, (), chosen).exact == (lists == LISTS)
        assert asked == [(k, False, lists)]
    server.close()


def test_nothing_is_called_exact_while_rows_lie_in_no_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if find_spec("milvus_lite") is None:
        pytest.skip("milvus-lite is not installed")
    server: Any = connect(str(tmp_path / "lite.db"))
    vectors = units(60, DIM)
    parts = draw_parts(tmp_path / "p", [vectors[:30], vectors[30:]])
    load_parts(parts.place, server)
    assert server.search(vectors[0], 3).exact and server.describe().built
    rows = read_rows(parts, part_names(parts)[0])
    monkeypatch.setattr(server, "_lite", False)
    server.put("of another", rows)
    assert not server.search(vectors[0], 3).exact
    other: Any = connect(str(tmp_path / "lite.db"))
    assert not other.describe().built and not other.search(vectors[0], 3).exact
    built: list[bool] = []
    monkeypatch.setattr(other, "build", lambda: built.append(True))
    assert load_parts(parts.place, other).loaded == 0 and built  # as after a kill amid the build
    other.close()
    for name in ("flush", "describe_index", "refresh_load"):  # milvus-lite has them in another way
        monkeypatch.setattr(server._db, name, lambda *of, **how: {})
    assert server.build() and server.search(vectors[0], 3).exact and server.describe().built
    server.close()


def test_what_was_recorded_is_read_strictly_and_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A query says so by itself; an iterator of pymilvus only by its collection."""
    if find_spec("milvus_lite") is None:
        pytest.skip("milvus-lite is not installed")
    server: Any = connect(str(tmp_path / "lite.db"))
    levels: dict[str, set[Any]] = {"create_collection": set(), "query": set()}

    def spied(name: str) -> Any:
        whole = getattr(server._db, name)

        def spy(*of: Any, **how: Any) -> Any:
            levels[name].add(how.get("consistency_level"))
            return whole(*of, **how)

        return spy

    for name in levels:
        monkeypatch.setattr(server._db, name, spied(name))
    load_parts(draw_parts(tmp_path / "p", [units(9, DIM)]).place, server)
    marks = {bytes([i] * 16) for i in range(7)}
    server.forget(marks)
    assert server.marks() == marks
    monkeypatch.setattr(milvus, "_MOST_ROWS", 3)
    assert server.marks() == marks and server.describe() and server._marks == marks
    assert levels == {"create_collection": {"Strong"}, "query": {"Strong"}}
    server.close()


@pytest.mark.timeout(900)
def test_conditions_on_the_real_server(tmp_path: Path) -> None:
    if not os.environ.get("SIMCLR_MILVUS"):
        pytest.skip("for a real server: SIMCLR_MILVUS")
    for url in milvus_collection(tmp_path):
        parts, vectors = sided_parts(tmp_path / "sided", 20_000)
        server: Any = connect(url)
        setting = load_parts(parts.place, server).setting
        assert setting and setting.breadth and setting.min_share < 1 and setting.recall >= recall.RECALL
        near, far = rows_by_side(vectors)
        assert assert_sided(server, vectors, near, None, exact=False) >= recall.RECALL
        assert assert_sided(server, vectors, far, None, exact=True) == 1
        report = check_vectors(parts.place, server)
        assert report.complete and report.recall[0.001] == report.exact[0.001] == 1 > report.exact[1.0]
        server.close()
