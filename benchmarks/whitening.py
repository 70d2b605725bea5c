"""What whitening gains: how many photos must teach it, with which model, and with stage 3 beside h.

- P@5: open-photos, leave one out: of the 5 nearest other photos by cosine, the share of the same class, in percent.
- "own photos": drawn by chance from open-photos, the whitening learnt on just these, P@5 among them before and after;
  the mean over the seeds, and the least gain of any.
- "random R50": the same for ResNet-50 of random weights, small photos.
- "layers": the default checkpoint's h and "h+stage3", raw and whitened with what is shipped; beside P@5 the share of
  all pairs of one class that lie above the lowest cosine at which 90 % of the pairs above it are of one class.
- "search": with --tiny-imagenet, recall@10 of a large index on whitened features, as benchmarks/search.py measures it.

Run: python benchmarks/whitening.py --open-photos TAR_OR_FOLDER [--tiny-imagenet FOLDER] [--only PART ...]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from duplicates import read_photos
from search import recall_of_features

from simclr_hub import SimCLRConfig, SimCLRModel, embed
from simclr_hub.loading import load_whitening
from simclr_hub.whitening import Whitening, unit_rows

PARTS = ("own photos", "random R50", "layers", "search")


def precision(vectors: np.ndarray, labels: np.ndarray) -> float:
    """Return P@5 of (N, D)."""
    units = unit_rows(vectors)[0]
    cosines = units @ units.T
    np.fill_diagonal(cosines, -2)
    nearest = np.argpartition(-cosines, 5, axis=1)[:, :5]
    return 100 * float((labels[nearest] == labels[:, None]).mean())


def found_pairs(vectors: np.ndarray, labels: np.ndarray, least: float = 0.9) -> float:
    """Return the share in percent of a class's pairs above the lowest cosine with so much precision."""
    units = unit_rows(vectors)[0].astype(np.float32)
    upper = np.triu_indices(len(units), 1)
    cosines, same = (units @ units.T)[upper], (labels[:, None] == labels)[upper]
    nearest = np.argpartition(-cosines, 20_000)[:20_000]
    hits = same[nearest[np.argsort(-cosines[nearest])]].cumsum()
    enough = np.flatnonzero(hits >= least * np.arange(1, len(hits) + 1))
    return 100 * float(hits[enough[-1]] / same.sum()) if len(enough) else 0.0


def own_photos(features: np.ndarray, labels: np.ndarray, numbers: list[int], seeds: int) -> None:
    """Print the table by how many photos there are."""
    print("| photos | raw | whitened | gain, mean | gain, least | shrinkage chosen |\n|---|---|---|---|---|---|")
    for number in numbers:
        rows = []
        for seed in range(seeds if 2 * number < len(features) else 1):
            chosen = np.random.default_rng(seed).permutation(len(features))[:number]
            own, classes = features[chosen], labels[chosen]
            try:
                whitening = Whitening.learn(own, learnt_from="own photos")
            except ValueError:
                continue
            before, after = precision(own, classes), precision(whitening.apply(own), classes)
            rows.append((before, after, after - before, whitening.shrinkage))
        if rows:
            before, after, gain, _ = np.mean(rows, 0)
            strengths = ", ".join(f"{s:g}" for s in sorted({row[3] for row in rows}))
            least = min(row[2] for row in rows)
            print(
                f"| {number:,} | {before:.1f} | {after:.1f} | {gain:+.1f} | {least:+.1f} | {strengths} |", flush=True
            )
        else:
            print(f"| {number:,} | refused | | | | |")


def layers(photos: list[bytes], labels: np.ndarray) -> None:
    """Raw and whitened with what is shipped."""
    print("| layer | dimensions | P@5, raw | whitened | pairs at 90 %, raw | whitened | CPU s |")
    print("|---|---|---|---|---|---|---|")
    for layer in ("h", "h+stage3"):
        whitening = load_whitening(layer=layer)
        if whitening is None:
            raise SystemExit(f"no whitening of {layer} is shipped")
        started = time.process_time()
        features = embed(photos, layer=layer)
        seconds = time.process_time() - started
        whitened = whitening.apply(features)
        found = [f"{precision(vectors, labels):.1f}" for vectors in (features, whitened)]
        found += [f"{found_pairs(vectors, labels):.2f}" for vectors in (features, whitened)]
        print(
            f"| {layer} | {features.shape[1]} to {whitening.dim} | {' | '.join(found)} | {seconds:.0f} |", flush=True
        )


def search(data: str) -> None:
    """Recall of a large index of all training and validation images."""
    from simclr_hub.training.data import Rows

    whitening = load_whitening()
    if whitening is None:
        raise SystemExit("no whitening is shipped")
    splits = [Rows(data, split) for split in ("train", "validation")]
    features = np.concatenate([embed(rows) for rows in splits])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "features.npz")
        np.savez(file, vectors=whitening.apply(features))
        print(recall_of_features(file))


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-photos", type=Path, required=True, help="tar, or folder, of class folders")
    parser.add_argument("--tiny-imagenet", help="folder of parquet files")
    parser.add_argument("--only", action="append", choices=PARTS)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--r50-size", type=int, default=96, help="side in pixels for ResNet-50")
    options = parser.parse_args()
    found = read_photos(options.open_photos)
    photos = [data for _, data in found]
    names = sorted({name for name, _ in found})
    labels = np.array([names.index(name) for name, _ in found])

    def of_r50() -> None:
        torch.manual_seed(0)
        model = SimCLRModel(SimCLRConfig.v1(image_size=options.r50_size))
        some = np.random.default_rng(0).permutation(len(photos))[:1000]
        features = embed([photos[i] for i in some], model)
        own_photos(features, labels[some], [100, 300, 1000], options.seeds)

    parts: dict[str, Callable[[], None]] = {
        "own photos": lambda: own_photos(embed(photos), labels, [50, 100, 300, 1000, len(photos)], options.seeds),
        "random R50": of_r50,
        "layers": lambda: layers(photos, labels),
    }
    if options.tiny_imagenet:
        parts["search"] = lambda: search(options.tiny_imagenet)
    for name, run in parts.items():
        if name in (options.only or PARTS):
            print(f"\n{name}:", flush=True)
            run()


if __name__ == "__main__":
    main()
