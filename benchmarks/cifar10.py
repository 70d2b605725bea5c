"""What a CIFAR-10 run learned: the accuracy of the nearest neighbours, beside random weights and raw pixels.

    python benchmarks/cifar10.py --data FOLDER --model runs/NAME/final [--bank 50000] [--queries 10000]

All three vote alike: the 20 nearest of `--bank` training images by cosine, for `--queries` test images.
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from simclr_hub import SimCLRModel
from simclr_hub.training.data import ImageArray
from simclr_hub.training.protocols import features, knn_accuracy


def pixels(data: ImageArray, limit: int) -> tuple[Tensor, Tensor]:
    """Every image less its mean, (n, 3072), without which all cosines are near 1; and labels (n,)."""
    if data.labels is None:
        raise SystemExit("the data has no labels")
    rows = torch.linspace(0, len(data) - 1, min(limit, len(data))).long().numpy()
    images = torch.from_numpy(data.images[rows]).float().flatten(1)
    return images - images.mean(1, keepdim=True), torch.from_numpy(data.labels[rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--bank", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks/cifar10"))
    options = parser.parse_args()
    train, test = (ImageArray.load(options.data, split, 32, options.cache) for split in ("train", "test"))
    trained = SimCLRModel.from_pretrained(options.model, dtype=torch.float32)
    torch.manual_seed(0)
    random = SimCLRModel(trained.config)
    print("| features | kNN top-1, % |")
    print("|---|---|")
    for name, extract in (
        ("trained", lambda data, limit: features(trained, data, limit)),
        ("the same network, random weights (seed 0)", lambda data, limit: features(random, data, limit)),
        ("raw pixels", pixels),
    ):
        accuracy = knn_accuracy(*extract(test, options.queries), *extract(train, options.bank))[0]
        print(f"| {name} | {accuracy:.1f} |", flush=True)


if __name__ == "__main__":
    main()
