"""Time a sync that finds nothing changed: no file is read, only listed.

The photos are small files in 1,000 folders, with random vectors of 256 numbers put into the index as a sync would;
nothing is embedded. Times are medians, without loading a model.

Run: python benchmarks/resync.py [--photos 100000] [--repeat 5]
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from simclr_hub.index import SimilarityIndex, sync
from simclr_hub.index.store import Photo, file_metadata
from simclr_hub.scan import FileStat

DIM, FOLDERS = 256, 1000


class NoModel:
    """Has a width and a fingerprint; embeds nothing."""

    dim = DIM
    fingerprint = {"model": "none"}

    def stream(self, sources: object, **options: object) -> None:
        """Never called."""
        raise RuntimeError("nothing should be embedded")


def fill(index: SimilarityIndex, photos: Path, number: int) -> None:
    """Make the files, and their rows as a sync would, with file stats that are trusted."""
    store, draw = index._store, np.random.default_rng(0)
    with store.writing(), store.transaction():
        root = store.put_root(os.fsencode(photos), "ok")
        for n in range(number):
            path = f"{n % FOLDERS:03}/IMG_{n:06}.jpg"
            data = b"%d" % n
            if n < FOLDERS:
                (photos / path).parent.mkdir(parents=True)
            (photos / path).write_bytes(data)
            content, vector = hashlib.sha256(data).digest(), draw.normal(size=DIM)
            store.put_vector(content, (vector / np.linalg.norm(vector)).astype(np.float32))
            store.put_details(content, {"format": "JPEG"}, bytes(32))
            stat = FileStat.of(os.stat(photos / path))
            store.put(Photo(root.id, os.fsencode(path), stat, True, content, "live", metadata=file_metadata(stat)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        photos = Path(name).resolve() / "photos"
        photos.mkdir()
        with SimilarityIndex.create(Path(name) / "i", model=NoModel()) as index:
            started = time.monotonic()
            fill(index, photos, arguments.photos)
            index.sync(photos)
            print(f"{arguments.photos:,} files and rows made in {time.monotonic() - started:.1f} s", flush=True)

        def refuse(*_: object, **__: object) -> None:
            raise RuntimeError("a file was read")

        setattr(sync, "read_file", refuse)  # noqa: B010
        seconds, processor, listing = [], [], []
        for _ in range(arguments.repeat):
            ours = time.process_time()
            files = sum(len([os.stat(os.path.join(here, f)) for f in files]) for here, _, files in os.walk(photos))
            listing.append(time.process_time() - ours)
            started, ours = time.monotonic(), time.process_time()
            with SimilarityIndex.open(Path(name) / "i", model=NoModel()) as index:
                report = index.sync(photos)
            seconds.append(time.monotonic() - started)
            processor.append(time.process_time() - ours)
            if (report.unchanged, files) != (arguments.photos, arguments.photos):
                raise RuntimeError(f"{report}")
    print(json.dumps({
        "photos": arguments.photos, "seconds": round(statistics.median(seconds), 2),
        "processor_seconds": round(statistics.median(processor), 2),
        "of os.walk and os.stat alone": round(statistics.median(listing), 2),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }))  # fmt: skip


if __name__ == "__main__":
    main()
