"""What is Milvus's own: what its conditions are made of, tokens, and the real server, where it is installed."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from drawn_parts import draw_parts, units
from server_fixtures import DIM

from simclr_hub.errors import VectorServerError
from simclr_hub.vectors.conditions import compile_where
from simclr_hub.vectors.connect import connect
from simclr_hub.vectors.load import load_parts
from simclr_hub.vectors.milvus import TOKEN, _filter
from simclr_hub.vectors.server import Comparison

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
    from simclr_hub.vectors import milvus

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
    some = "milvus and (twice or stopped or tombstones_name or another_model or index_of or hostile or load_check)"
    files = [f"tests/vectors/test_vectors_{name}.py" for name in ("load", "search", "command")]
    script, data = ROOT / "tests" / "support" / "milvus_server.py", tmp_path / "milvus"
    pytest_command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-k", some, *files]
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

    def nearest(vector: Any, k: int, where: Any, ef: int, level: str) -> Any:
        return before if level == "Bounded" else late(vector, k, where, ef, level)

    before = late(vectors[0], k, (), 0, "Strong")
    server.forget([before[0].id, before[1].content_hash])
    monkeypatch.setattr(server, "_nearest", nearest)
    hits = server.search(vectors[0], k).hits
    assert len(hits) == k and not {hit.id for hit in hits} & {before[0].id, before[1].id}
    server.close()
