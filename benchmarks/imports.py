"""What each command costs before it does anything: CPU seconds and peak memory of its process.

On an index of the package's sample photos, each in a process of its own; medians. new.jpg is not in the index: it and
`index` need the default checkpoint.
They are run with the Python that runs this, so that another tree is measured with its own.

Run: python benchmarks/imports.py [--repeat 5]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

LINE = [sys.executable, "-c", "from simclr_hub.cli import main; main()"]
COMMANDS = """
--version
--help
search --help
models
status photos.index
failures photos.index
missing photos.index
prune photos.index
check photos.index
search photos.index photos/cat_1.jpg
search photos.index photos/cat_1.jpg --html page.html
search photos.index new.jpg
index photos -o new.index
duplicates photos.index --tier same-bytes
duplicates photos.index
export photos.index photos.parquet
import photos.parquet again.index
""".split("\n")[1:-1]
#: Bytes in a unit of `ru_maxrss`.
_UNIT = 1 if sys.platform == "darwin" else 1024


def measure(line: list[str], folder: Path) -> tuple[float, float]:
    """CPU seconds and peak MB of one run.

    Raises:
        RuntimeError: the command failed.
    """
    child = subprocess.Popen(line, cwd=folder, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"{line[3:]}: exit code {child.returncode}")
    return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * _UNIT / 1e6


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        # Not imported here: on Linux a child's peak is at least what this process takes.
        package = find_spec("simclr_hub")
        if package is None or package.origin is None:
            raise RuntimeError("simclr_hub is not installed")
        shutil.copytree(Path(package.origin).parent / "assets" / "sample-photos", folder / "photos")
        measure([*LINE, "index", "photos"], folder)
        (folder / "new.jpg").write_bytes((folder / "photos" / "cat_1.jpg").read_bytes() + b"of another hash")
        print("| command | CPU s | peak MB |\n|---|---|---|")
        lines = {f"`{command}`": [*LINE, *command.split()] for command in COMMANDS}
        for name, line in [("(Python alone)", [sys.executable, "-c", ""]), *lines.items()]:
            runs = []
            for _ in range(repeat):
                for made_before in ("again.index", "new.index"):
                    shutil.rmtree(folder / made_before, ignore_errors=True)
                if line[-1] == "photos.parquet":  # as `export` writes it, for `import` to read
                    (folder / "photos.parquet").unlink(missing_ok=True)
                runs.append(measure(line, folder))
            seconds, memory = (statistics.median(column) for column in zip(*runs, strict=True))
            print(f"| {name} | {seconds:.2f} | {memory:.0f} |", flush=True)


if __name__ == "__main__":
    main()
