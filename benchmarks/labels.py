"""Measure how often `label` is right with few examples a class, beside other rules, and what its "unsure" is worth.

Of each set n photos a class are drawn as examples, `--draws` times, and all others labelled: by the examples' vote of
`simclr_hub.labels`, by the class means, and by the n nearest neighbours, alike (as `few_shot` has it) or weighted by
exp(cosine / 0.07). Vectors are whitened h of the default checkpoint.

Run: python benchmarks/labels.py --open-photos TAR_OR_FOLDER [--cifar10 PARQUET] [--draws 6]
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from features import Photos

from simclr_hub import Embedder
from simclr_hub.labels import Examples
from simclr_hub.training.protocols import knn_predictions

SHOTS = (2, 5, 10, 20)
CIFAR_IMAGES = 5000


def draw(labels: np.ndarray, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw examples of each class; their places, and those of all others."""
    random = np.random.default_rng(seed)
    drawn = [random.permutation(np.flatnonzero(labels == label))[:shots] for label in np.unique(labels)]
    examples = np.concatenate(drawn)
    return examples, np.setdiff1d(np.arange(len(labels)), examples)


def measure(vectors: np.ndarray, labels: np.ndarray, shots: int, draws: int) -> str:
    """Return a row of the table."""
    right: dict[str, list[float]] = {"knn": [], "weighted": [], "means": [], "examples": []}
    sure = []  # of each draw: photos that are sure, wrong ones of these, unsure, wrong ones of these
    for seed in range(draws):
        chosen, rest = draw(labels, shots, seed)
        bank, queries, truth = vectors[chosen], vectors[rest], labels[rest]
        voters = torch.from_numpy(bank), torch.from_numpy(labels[chosen])
        for name, temperature in (("knn", None), ("weighted", 0.07)):
            found = knn_predictions(torch.from_numpy(queries), *voters, neighbours=shots, temperature=temperature)[0]
            right[name].append(float((found.numpy() == truth).mean()))
        means = np.stack([bank[labels[chosen] == label].mean(0) for label in range(labels.max() + 1)])
        cosines = queries @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        right["means"].append(float((cosines.argmax(1) == truth).mean()))
        examples = Examples.learn(bank, labels[chosen], labels.max() + 1)
        classes, confidence = examples.confidences(queries)
        wrong, is_sure = classes[:, 0] != truth, confidence[:, 0] > examples.sure_above
        right["examples"].append(float(1 - wrong.mean()))
        sure.append((is_sure.sum(), wrong[is_sure].sum(), (~is_sure).sum(), wrong[~is_sure].sum()))
    cells = [f"{100 * np.mean(values):.1f} +- {100 * np.std(values):.1f}" for values in right.values()]
    some = np.array([row for row in sure if row[0]])
    counted = np.array(sure).sum(0)
    cells.append(f"{100 * counted[0] / (counted[0] + counted[2]):.0f} %")
    if len(some):
        cells.append(f"{100 * some[:, 1].sum() / some[:, 0].sum():.1f}")
        cells.append(f"{100 * some[:, 3].sum() / some[:, 2].sum():.1f}")
        ratios = [u / m / (w / n) for n, w, m, u in some.tolist() if w and m]
        cells.append(f"{min(ratios):.1f}" if ratios else "none wrong")
    else:
        cells += ["-"] * 3
    return " | ".join([*cells, f"{draws - len(some)} of {draws}"])


def sets(options: argparse.Namespace) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield name, whitened vectors (N, D) of length 1 and labels (N,) of each set."""
    embedder = Embedder(whiten=True, normalize=True)
    photos = Photos.load(options.open_photos)
    vectors, labels = embedder(photos.files), np.array(photos.labels)
    clothes = np.array([photos.classes[label].startswith("clothing") for label in labels])
    yield "open-photos", vectors, labels
    for name, of in (("clothes", clothes), ("groceries", ~clothes)):
        yield name, vectors[of], np.unique(labels[of], return_inverse=True)[1]
    if options.cifar10:
        import datasets

        rows = datasets.load_dataset("parquet", data_files=str(options.cifar10), split="train")
        rows = rows.shuffle(seed=0).select(range(CIFAR_IMAGES))
        (column,) = set(rows.column_names) - {"image"}
        vectors, labels = embedder(rows.remove_columns(column)), np.array(rows[column])
        yield "CIFAR-10", vectors, labels
        for pair in ((0, 9), (3, 5), (1, 8)):
            of = np.isin(labels, pair)
            yield f"CIFAR-10, classes {pair}", vectors[of], (labels[of] == pair[1]).astype(int)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--open-photos", required=True, type=Path, help="tar, or folder, of class folders")
    parser.add_argument("--cifar10", type=Path, help="a parquet file of CIFAR-10's test images")
    parser.add_argument("--draws", type=int, default=6, help="of examples")
    options = parser.parse_args()
    headers = "set | n | n nearest | weighted | class means | label | sure | sure, wrong | unsure, wrong | least ratio"
    print(f"| {headers} | draws with none sure |")
    print("|---" * 11 + "|")
    for name, vectors, labels in sets(options):
        for shots in SHOTS:
            print(f"| {name} | {shots} | {measure(vectors, labels, shots, options.draws)} |", flush=True)


if __name__ == "__main__":
    main()
