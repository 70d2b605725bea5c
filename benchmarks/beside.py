"""What photos wait for, in one version beside another: embedding, a sync, a sync that finds nothing, searches.

Run it with the Python of each version's own environment, in turn, and compare medians:

    for i in 1 2 3; do for v in OLD NEW; do $v/.venv/bin/python benchmarks/beside.py PHOTOS; done; done

PHOTOS is a folder. Each run prints a JSON object: wall and processor seconds of each job, after the imports.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from simclr_hub import Embedder
from simclr_hub.index import SimilarityIndex


def timed(work: Callable[[], object]) -> list[float]:
    """Wall and processor seconds of a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return [round(time.perf_counter() - wall, 4), round(time.process_time() - cpu, 4)]


def large_photos(folder: Path, number: int) -> list[Path]:
    """Write JPEGs of 12 megapixels: smooth, with a camera's noise."""
    random = np.random.default_rng(0)
    paths = []
    for i in range(number):
        low = Image.fromarray(random.integers(0, 256, (30, 40, 3), dtype=np.uint8))
        pixels = np.asarray(low.resize((4000, 3000), Image.Resampling.BICUBIC)) + random.normal(0, 6, (3000, 4000, 1))
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1], quality=88)
    return paths


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    photos = parser.parse_args().photos
    small = sorted(photos.rglob("*.jpg"))[:1200]
    embedder = Embedder()
    list(embedder.stream(small[:400]))  # the faster runtime is there from here on
    with tempfile.TemporaryDirectory() as place:
        large = large_photos(Path(place), 24)
        times = {
            f"embed {len(small)} photos": timed(lambda: list(embedder.stream(small))),
            "embed 24 of 12 megapixels": timed(lambda: list(embedder.stream(large))),
        }
        with SimilarityIndex.create(Path(place, "photos.index"), embedder) as index:
            times["index the folder"] = timed(lambda: index.sync(photos))
            times["sync, nothing changed"] = timed(lambda: index.sync(photos))
            pictures = [Image.open(path).convert("RGB") for path in small[:100]]
            index.search(pictures[0])
            times["100 photos, one by one"] = timed(lambda: [index.search(picture) for picture in pictures])
            vectors = np.random.default_rng(0).standard_normal((1000, embedder.dim)).astype(np.float32)
            times["1000 vectors, one by one"] = timed(lambda: [index.search(vector) for vector in vectors])
            times["1000 vectors at once"] = timed(lambda: index.search(list(vectors)))
    print(json.dumps(times))


if __name__ == "__main__":
    main()
