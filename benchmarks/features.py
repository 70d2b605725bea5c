"""How good features are for finding things of the same class, beside what needs no training at all.

- kNN: Tiny ImageNet, 10,000 validation images, the 20 nearest of a bank of training images by cosine, plain majority
  vote (nearer neighbours break ties); top-1 in percent. Banks: the first 25,000 images, and all.
- P@5: open-photos, leave one out: of the 5 nearest other photos by cosine, the share of the same class, in percent.

Rows: the checkpoint; the same architecture with random weights; raw pixels, the central square averaged to 32 x 32,
less the image's mean (without that all cosines are near 1, and the numbers are lower); and a colour histogram,
8 x 8 x 8 bins, square root.

Run: python benchmarks/features.py --tiny-imagenet FOLDER --open-photos TAR_OR_FOLDER [--model DIR] [--size PX]
"""

import argparse
import json
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from simclr_hub import SimCLRModel, embed, load
from simclr_hub.images import is_image_name, load_image
from simclr_hub.training.data import ImageArray
from simclr_hub.training.evaluate import knn_accuracy, similarities

BANK, NEAREST = 25_000, 5
SIDE = 64  # of Tiny ImageNet's images


def features(model: SimCLRModel, images: Sequence[Any]) -> Tensor:
    """The encoder's h of each image, (N, D)."""
    return torch.from_numpy(embed(images, model=model, progress=None))


def pixels(images: Iterable[Any]) -> Tensor:
    """The central square of each image averaged to 32 x 32, less its mean, (N, 3072)."""

    def one(image: Any) -> Tensor:
        x = load_image(image).pixels.float() / 255  # (3, H, W)
        side = min(x.shape[1:])
        top, left = (x.shape[1] - side) // 2, (x.shape[2] - side) // 2
        small = F.adaptive_avg_pool2d(x[:, top : top + side, left : left + side], 32).flatten()
        return small - small.mean()

    return torch.stack([one(image) for image in images])


def histogram(images: Iterable[Any]) -> Tensor:
    """Square roots of the shares of 8 x 8 x 8 colours, (N, 512)."""

    def one(image: Any) -> Tensor:
        r, g, b = (load_image(image).pixels // 32).long().flatten(1)
        counts = torch.bincount(r * 64 + g * 8 + b, minlength=512)
        return (counts / counts.sum()).sqrt()

    return torch.stack([one(image) for image in images])


def precision(vectors: Tensor, labels: Tensor) -> float:
    """Share in percent of the NEAREST other images that are of the image's class."""
    hits = 0
    for start, chunk in enumerate(similarities(vectors, vectors)):
        own = torch.arange(len(chunk))
        chunk[own, own + 500 * start] = -2  # below every cosine
        nearest = labels[chunk.topk(NEAREST).indices]
        hits += int((nearest == labels[500 * start :][: len(chunk), None]).sum())
    return 100 * hits / (NEAREST * len(vectors))


def open_photos(source: Path) -> tuple[list[bytes], Tensor]:
    """Photos and labels of a tar, or a folder, of class folders, in the order of their names."""
    if source.is_dir():
        files = {str(path.relative_to(source)): path.read_bytes() for path in source.rglob("*") if is_image_name(path)}
    else:
        with tarfile.open(source) as tar:
            members = [m for m in tar if m.isfile() and is_image_name(m.name)]
            files = {m.name: file.read() for m in members if (file := tar.extractfile(m)) is not None}
    names = sorted(files)
    folders = sorted({name.split("/")[-2] for name in names})
    return [files[name] for name in names], torch.tensor([folders.index(name.split("/")[-2]) for name in names])


def measure(
    name: str,
    extract: Callable[[Sequence[Any]], Tensor],
    train: ImageArray,
    validation: ImageArray,
    photos: tuple[list[bytes], Tensor],
) -> dict[str, Any]:
    started = time.monotonic()

    def tiny(data: ImageArray) -> Tensor:
        return extract([data[i]["images"] for i in range(len(data))])

    bank, queries = tiny(train), tiny(validation)
    small, large = knn_accuracy(
        queries, torch.tensor(validation.labels), bank, torch.tensor(train.labels), (BANK, len(train))
    )
    row = {"features": name, "dim": bank.shape[1], "knn_all": large, "knn_25k": small}
    row["p_at_5"] = precision(extract(photos[0]), photos[1])
    row["seconds"] = round(time.monotonic() - started)
    print(f"{name}: {row}", file=sys.stderr)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny-imagenet", required=True, help="folder of parquet files or class folders")
    parser.add_argument("--open-photos", required=True, type=Path, help="tar, or folder, of class folders")
    parser.add_argument("--model", help="a SimCLRModel directory or Hub id; the default checkpoint without it")
    parser.add_argument(
        "--size", type=int, help="side in pixels of the model's input; the checkpoint's own without it"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random network")
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"), help="for Tiny ImageNet, decoded")
    parser.add_argument("--only", action="append", choices=("model", "random", "pixels", "histogram"))
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    options = parser.parse_args()

    train = ImageArray.load(options.tiny_imagenet, "train", SIDE, options.cache)
    validation = ImageArray.load(options.tiny_imagenet, "validation", SIDE, options.cache)
    photos = open_photos(options.open_photos)
    wanted = options.only or ["model", "random", "pixels", "histogram"]
    extractors: dict[str, tuple[str, Callable[[Sequence[Any]], Tensor]]] = {}
    if {"model", "random"} & set(wanted):
        trained, _ = load(options.model)
        if options.size:
            trained.config.image_size = options.size
        torch.manual_seed(options.seed)
        random = SimCLRModel(trained.config)
        at = f"at {trained.config.image_size} px"
        extractors["model"] = (
            f"{options.model or 'default checkpoint'}, {at}",
            lambda images: features(trained, images),
        )
        extractors["random"] = (
            f"same network, random weights (seed {options.seed}), {at}",
            lambda images: features(random, images),
        )
    extractors["pixels"] = ("raw pixels, 32 x 32", pixels)
    extractors["histogram"] = ("colour histogram, 512 bins, square root", histogram)
    rows = [measure(*extractors[name], train, validation, photos) for name in wanted]

    if options.json:
        print(
            json.dumps({"tiny_imagenet": [len(train), len(validation)], "open_photos": len(photos[0]), "rows": rows})
        )
        return
    print(f"| features | dimensions | kNN, bank {len(train):,} | kNN, bank {BANK:,} | P@{NEAREST} |")
    print("|---|---|---|---|---|")
    for row in rows:
        cells = (f"{row[key]:.1f}" for key in ("knn_all", "knn_25k", "p_at_5"))
        print(f"| {row['features']} | {row['dim']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
