"""Peak memory of embedding and indexing many small files: whether it grows with their number.

    OMP_NUM_THREADS=2 python benchmarks/memory.py [--counts 10000 100000] [--folder SCRATCH]

Distinct JPEGs of 32 x 32 pixels are written below SCRATCH, 1000 a folder (and kept, so that a second run starts at
once); the network is tiny, with vectors of 256. Each measurement is a process of its own, which tells its largest
resident size after a warm-up on 500 files and at the end:

- `Embedder.stream` of paths from a generator, the results dropped;
- `embed` of paths from a generator, whose result alone is 1 KB an image;
- `SimilarityIndex.sync` of a folder into a new index, and a second sync, in which nothing changed; without the cache
  for searching, which holds all vectors at once (`--cache` with it).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from simclr_hub import Embedder, SimCLRConfig, SimCLRModel, SimilarityIndex, embed
from simclr_hub.index import similarity_index

WARM_UP = 500


def write_files(folder: Path, count: int) -> None:
    """Write files 0 .. count - 1, where they are not there."""
    for i in range(count):
        path = path_of(folder, i)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).resize((32, 32)).save(path, quality=80)


def path_of(folder: Path, i: int) -> Path:
    """Return the path of the i-th file."""
    return folder / f"{i // 1000:03}" / f"{i:06}.jpg"


def peak() -> int:
    """Largest resident size of this process so far, in KiB (Linux; ru_maxrss would inherit the parent's)."""
    return next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in line)


def measure(what: str, folder: Path, count: int, cache: bool) -> dict[str, int]:
    """Run one of them in this process."""
    torch.manual_seed(0)
    config = SimCLRConfig(depths=(1, 1, 1, 1), width_multiplier=0.125, image_size=32, stem_type="cifar")
    embedder = Embedder(model := SimCLRModel(config).train(False))

    def paths(n: int) -> Iterator[Path]:
        return (path_of(folder, i) for i in range(n))

    for _ in embedder.stream(paths(WARM_UP + 600)):
        pass
    if what == "stream":
        before = peak()
        for _ in embedder.stream(paths(count)):
            pass
    elif what == "embed":
        before = peak()
        embed(paths(count), model=model)
    else:
        if not cache:
            similarity_index.SimilarityIndex._write_cache = lambda self, progress=None: None  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory() as scratch, SimilarityIndex.create(Path(scratch, "i"), embedder) as index:
            index.sync(folder / "000")
            before = peak()
            for _ in range(2):
                index.sync(folder)
    return {"before": before, "after": peak()}


def main() -> None:
    """Print a table, or measure once as a child."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--cache", action="store_true")
    parser.add_argument("--only", choices=("stream", "embed", "sync"))
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        what, folder, count = arguments.child
        print(json.dumps(measure(what, Path(folder), int(count), arguments.cache)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = arguments.folder or Path(scratch)
        print(
            "| what | files | peak before, MiB | peak after, MiB | grown by, MiB |\n|---|---|---|---|---|", flush=True
        )
        for count in arguments.counts:
            folder = root / str(count)
            write_files(folder, count)
            for what in ("stream", "embed", "sync"):
                if arguments.only not in (None, what):
                    continue
                command = [sys.executable, __file__, "--child", what, str(folder), str(count)]
                child = subprocess.run([*command, *["--cache"] * arguments.cache], check=True, stdout=subprocess.PIPE)
                found = {key: value / 1024 for key, value in json.loads(child.stdout).items()}
                cells = [f"{found['before']:.0f}", f"{found['after']:.0f}", f"{found['after'] - found['before']:.1f}"]
                print(f"| {what} | {count:,} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
