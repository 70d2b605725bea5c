"""The n-th write, fsync, rename, truncation or creation of a file fails below Python and SQLite: for every n.

A library loaded before all others makes it fail. What was acknowledged is there, the error is one of ours, nothing
else lies around, and the next sync completes.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CHILD = """
import sys
sys.path[:0] = {paths!r}
from io_errors_child import main
main({library!r}, {folder!r}, {step})
"""


def every_call(folder: Path, step: int) -> str:
    """Sync, prune and repair with every step-th call failing; what came of it, in a line."""
    library = folder / "io_errors.so"
    compiler = shutil.which("cc")
    if compiler is None or sys.platform != "linux":
        pytest.skip("needs Linux and a C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, HERE / "io_errors.c", "-ldl"], check=True)
    paths = [str(HERE), str(HERE.parent / "index"), *sys.path]
    code = CHILD.format(paths=paths, library=str(library), folder=str(folder), step=step)
    environment = os.environ | {"LD_PRELOAD": str(library)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return run.stdout


@pytest.mark.slow
def test_every_tenth_call(tmp_path: Path) -> None:
    assert "0 lost" in every_call(tmp_path, 10)
