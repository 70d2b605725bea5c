"""Measure what numbers of 16 bits lose of the nearest images.

    simclr-hub parts plan IMAGES -o plan && simclr-hub parts run plan -o parts
    OMP_NUM_THREADS=1 python benchmarks/half.py parts

2,000 of the images look for the ten nearest of all others by cosine, in the column `vector` and, where the checkpoint
brings a whitening, in `features`, what the model gave: once with numbers of 32 bits, once with all rounded to 16 as
`parts run --half` stores them, and once with only what is stored rounded, as a query from elsewhere meets it. Lost is
the share of the true ten that is not found; ties count as found. Also told: the largest difference of a number of a
whitened vector when features of 16 bits are whitened again, beside what an import lets pass.
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from simclr_hub.index.parquet import HALF_WHITENED, read_header, vectors_of
from simclr_hub.whitening import Whitening

QUERIES, K = 2000, 10


def read(folder: Path) -> tuple[dict[str, np.ndarray], Whitening | None]:
    """Return the columns of vectors (N, D), and the whitening that all parts have."""
    files = sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("_"))
    columns: dict[str, list[np.ndarray]] = {}
    for path in files:
        table = pq.read_table(path, filters=[("state", "==", "live")])
        header = read_header(pq.read_schema(path), path.name)
        if header.half:
            raise SystemExit(f"{path}: of 16 bits already")
        for name in ("vector", "features") if header.whitening else ("vector",):
            columns.setdefault(name, []).append(vectors_of(table.column(name).combine_chunks())[0])
    return {name: np.concatenate(pieces) for name, pieces in columns.items()}, header.whitening


def rounded(vectors: np.ndarray) -> np.ndarray:
    """Return vectors (N, D) as they come back from 16 bits."""
    vectors = vectors.astype(np.float16).astype(np.float32)
    scaled: np.ndarray = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return scaled


def lost(vectors: np.ndarray, queries: np.ndarray, stored: np.ndarray, chosen: np.ndarray) -> float:
    """Return which share of the nearest K that `vectors` (N, D) have, `queries` (Q, D) miss among `stored` (N, D)."""
    missed = 0
    for line, at in enumerate(chosen):
        true, found = vectors @ vectors[at], stored @ queries[line]
        true[at] = found[at] = -2
        nearest = np.argpartition(-found, K)[:K]
        missed += int((true[nearest] < np.sort(true)[-K] - 1e-7).sum())
    return missed / (K * len(chosen))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("parts", type=Path)
    columns, whitening = read(parser.parse_args().parts)
    for name, vectors in columns.items():
        chosen = np.random.default_rng(0).choice(len(vectors), min(QUERIES, len(vectors)), replace=False)
        stored = rounded(vectors)
        both, one = (lost(vectors, queries[chosen], stored, chosen) for queries in (stored, vectors))
        print(f"{name}: {len(vectors):,} x {vectors.shape[1]}; lost {both:.3%}, with queries of 32 bits {one:.3%}")
    if whitening:
        again = whitening.apply(rounded(columns["features"]), normalize=True)
        differs = np.abs(again - columns["vector"].astype(np.float16)).max()
        print(f"whitened again: a number differs by {differs:.5f} at most; an import lets {HALF_WHITENED} pass")


if __name__ == "__main__":
    main()
