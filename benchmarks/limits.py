"""What one machine's index costs as it grows: memory and time of a sync that finds nothing, and of the cache's build.

    OMP_NUM_THREADS=1 python benchmarks/limits.py --folder FOLDER [--rows 1000000 2000000 5000000] [--dim 64]

FOLDER gets a store that grows to the largest number of rows (benchmarks/search.py draws them: vectors, metadata,
signatures of full length; about 2 KB a photo, and as much again while the cache is built). A sync lists the rows by
a stand-in for the scan, which asks no disk. Memory is the most that the process had for itself above the start, files
that are mapped and SQLite's temporary file not counted. It ends with a line through the sizes, drawn on
to ten million.
"""

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from search import Like, fill, measured, update

from simclr_hub.index import SimilarityIndex, sync
from simclr_hub.index.store import STORE_NAME, Store
from simclr_hub.scan import FileStat, Listing

ROOT = b"/photos"


def resync(directory: Path, rows: int) -> None:
    """Synchronise the root, of which every row is listed as it is recorded."""

    def scan(root: bytes, folder: bytes, *, add: Any, **_: Any) -> Listing:
        for path, stat in listed(rows):
            add(path, stat)
        return Listing({}, {}, {})

    setattr(sync, "scan", scan)  # noqa: B010
    with closing(Store(directory / STORE_NAME)) as store, store.writing():
        report = sync.sync_folder(store, _no_model, ROOT)
    if report.unchanged != rows or report.missing:
        raise RuntimeError(str(report))


def listed(rows: int) -> Iterator[tuple[bytes, FileStat]]:
    """Yield the files of the drawn rows, folder by folder."""
    for album in range(1000):
        for at in range(album, rows, 1000):
            yield b"album %03d/IMG_%07d.jpg" % (album, at), FileStat(3000000 + at, 1, 1, at)


def _no_model() -> Any:
    raise RuntimeError("nothing is to be embedded")


def processor(work: Any, *arguments: Any) -> None:
    """Do the work; what it took of the processor is told, too."""
    start = time.process_time()
    work(*arguments)
    print(f"  {work.__name__}: {time.process_time() - start:.0f} CPU s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 2_000_000, 5_000_000])
    parser.add_argument("--dim", type=int, default=64)
    options = parser.parse_args()
    directory = options.folder / "limits"
    if not directory.exists():
        SimilarityIndex.create(directory, model=Like(options.dim)).close()
    found: dict[str, list[float]] = {"resync": [], "update": []}
    for rows in sorted(options.rows):
        with closing(Store(directory / STORE_NAME)) as store:
            there = store.counts()["live"]
        if there > rows:
            parser.error(f"{directory} has {there:,} rows already; delete it")
        if there < rows:
            fill(directory, rows - there, options.dim, seed=there, first=there)
        for work, arguments in ((update, (directory,)), (resync, (directory, rows))):
            numbers = measured(processor, work, *arguments)
            found[work.__name__].append(numbers["MB"])
            print(f"{rows:,} rows, {work.__name__}: {numbers}", flush=True)
        sizes = {file.name: os.path.getsize(file) for file in directory.iterdir()}
        print(f"  files, GB: { {name: round(size / 1e9, 2) for name, size in sizes.items()} }", flush=True)
    for name, megabytes in found.items():
        slope, start = np.polyfit(sorted(options.rows), megabytes, 1) if len(megabytes) > 1 else (np.nan, np.nan)
        print(f"{name}: {slope * 2**20:.0f} bytes a photo, at 10,000,000: {(start + slope * 1e7) / 1024:.1f} GB")


if __name__ == "__main__":
    main()
