"""Photos per second from files to features, beside what a user would write instead, in the same run.

    python benchmarks/embed.py [--photos FOLDER] [--repeat 5]

Same network (ResNet-50 at 224 pixels, random weights: the time does not depend on them), same files, one process:
ours; a loop over torchvision's ResNet-50; a DataLoader over it with two workers.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from simclr_hub import Embedder, SimCLRConfig, SimCLRModel
from simclr_hub.sources import folder_images

TRANSFORM = v2.Compose([v2.Resize(256), v2.CenterCrop(224), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])


class Files(Dataset[torch.Tensor]):
    """Image files as tensors (3, 224, 224)."""

    def __init__(self, paths: list[Path]):
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> torch.Tensor:
        pixels: torch.Tensor = TRANSFORM(Image.open(self.paths[i]).convert("RGB"))
        return pixels


def contenders(paths: list[Path]) -> dict[str, Callable[[], object]]:
    """Name -> a function that embeds every path once."""
    embedder = Embedder(SimCLRModel(SimCLRConfig.v1(50)))
    resnet = torchvision.models.resnet50().eval()
    resnet.fc = torch.nn.Identity()
    loader = DataLoader(Files(paths), batch_size=16, num_workers=2)
    return {
        "simclr_hub": lambda: list(embedder.stream(paths)),
        "loop over torchvision": lambda: [resnet(x[None]) for x in (Files(paths)[i] for i in range(len(paths)))],
        "DataLoader, 2 workers": lambda: [resnet(x) for x in loader],
    }


def main() -> None:
    """Time the contenders in turn and print photos per second."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", default=str(files("simclr_hub") / "assets" / "sample-photos"))
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    paths = folder_images(arguments.photos)
    rates: dict[str, list[float]] = {}
    with torch.inference_mode():
        runs = contenders(paths)
        for _ in range(arguments.repeat + 1):  # in turn, so that a noisy moment hits all; the first is the warm-up
            for name, run in runs.items():
                start = time.perf_counter()
                run()
                rates.setdefault(name, []).append(len(paths) / (time.perf_counter() - start))
    ours = statistics.median(rates["simclr_hub"][1:])
    print(
        f"| {len(paths)} photos, {torch.get_num_threads()} threads | photos/s, median | ours over it |\n|---|---|---|"
    )
    for name, values in rates.items():
        median = statistics.median(values[1:])
        print(f"| {name} | {median:.1f} | {ours / median:.2f} |")


if __name__ == "__main__":
    main()
