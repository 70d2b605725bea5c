"""Images per second of the whole training loop, and the share of it spent waiting for data, beside lightly's.

    python benchmarks/train_step.py --data FOLDER [--steps 20] [--batch-size 256] [--workers 2] [--repeat 3]

Both train the same network (the recipe tiny_imagenet_default's) with LARS on the same images, batches and kinds of
views (crop to 32 pixels, flip, jitter), in turns:
- simclr_hub: `SimCLRTrainer`; images decoded once, views drawn for the whole batch at once;
- lightly: the loop of its tutorial: a DataLoader whose workers decode each image and draw its two views.

lightly is not a dependency; `pip install lightly` makes it take part. --data is a folder of class folders or parquet.
"""

import argparse
import importlib.util
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from simclr_hub import SimCLRConfig, SimCLRModel
from simclr_hub.training.augmentations import Views
from simclr_hub.training.data import ImageArray, Rows
from simclr_hub.training.optimization import create_optimizer
from simclr_hub.training.pretrain import load_recipe
from simclr_hub.training.trainer import SimCLRTrainer, SimCLRTrainingArguments

RECIPE = load_recipe("tiny_imagenet_default")


def ours(data: ImageArray, options: argparse.Namespace) -> tuple[float, float]:
    """Measure images/s and share of waiting of the Trainer's loop, without its first step."""
    with tempfile.TemporaryDirectory() as output:
        args = SimCLRTrainingArguments(
            output_dir=output,
            batch_size=options.batch_size,
            max_steps=options.steps + 1,
            learning_rate=0.1,
            max_grad_norm=0,
            temperature=RECIPE["training"]["temperature"],
            dataloader_num_workers=0,  # rows of an array: a worker would only copy them
            logging_steps=options.steps + 1,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
        )
        trainer = Timed(
            SimCLRModel(SimCLRConfig(**RECIPE["model"])), args, Views(**RECIPE["views"]), train_dataset=data
        )
        trainer.train()
    elapsed = time.perf_counter() - trainer.started
    return options.steps * options.batch_size / elapsed, trainer.waited / elapsed


class Timed(SimCLRTrainer):
    """Starts its clock when the first step is done."""

    started = 0.0
    waited = 0.0

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        """Time the Trainer's own."""
        if self.state.global_step == 1:
            self.started = time.perf_counter()
        before = time.perf_counter()
        samples = super().get_batch_samples(*args, **kwargs)
        self.waited += time.perf_counter() - before if self.state.global_step >= 1 else 0
        return samples


class TwoViews(Dataset[list[torch.Tensor]]):
    """Encoded images through lightly's transform."""

    def __init__(self, rows: Rows, transform: Any):
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        row = self.rows[i]
        source = row if isinstance(row, str) else io.BytesIO(row.data)
        views: list[torch.Tensor] = self.transform(Image.open(source).convert("RGB"))
        return views


def lightly(rows: Rows, options: argparse.Namespace) -> tuple[float, float]:
    """Measure the same of lightly's loop."""
    peer: Any = importlib.import_module("lightly.loss")
    transforms: Any = importlib.import_module("lightly.transforms")
    views = RECIPE["views"]
    brightness, contrast, saturation = views["jitter"]
    transform = transforms.SimCLRTransform(
        input_size=views["size"],
        cj_prob=views["jitter_p"],
        cj_strength=1.0,
        cj_bright=brightness,
        cj_contrast=contrast,
        cj_sat=saturation,
        cj_hue=0.0,
        min_scale=views["area"][0],
        random_gray_scale=views["greyscale_p"],
        gaussian_blur=0.0,
        normalize=None,
    )
    loader = DataLoader(
        TwoViews(rows, transform), options.batch_size, shuffle=True, drop_last=True, num_workers=options.workers
    )
    model = SimCLRModel(SimCLRConfig(**RECIPE["model"])).train()
    criterion = peer.NTXentLoss(temperature=RECIPE["training"]["temperature"])
    optimizer = create_optimizer(model, "lars", 0.1, 1e-6)
    batches: Iterator[list[torch.Tensor]] = iter(loader)
    started, waited = 0.0, 0.0
    for step in range(options.steps + 1):
        if step == 1:
            started = time.perf_counter()
        before = time.perf_counter()
        view_a, view_b = next(batches)
        waited += time.perf_counter() - before if step else 0
        z_a, z_b = (model(view, output_projections=True).projections[-1] for view in (view_a, view_b))
        loss = criterion(z_a, z_b)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    elapsed = time.perf_counter() - started
    return options.steps * options.batch_size / elapsed, waited / elapsed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cache", type=Path, default=Path("runs/benchmarks"), help="for the images, decoded")
    options = parser.parse_args()
    data, rows = ImageArray.load(options.data, "train", RECIPE["side"], options.cache), Rows(options.data, "train")
    contenders: dict[str, Callable[[], tuple[float, float]]] = {
        "simclr_hub": lambda: ours(data, options),
        "lightly": lambda: lightly(rows, options),
    }
    if importlib.util.find_spec("lightly") is None:
        contenders.pop("lightly")
        print("lightly is not installed: `pip install lightly` to compare")
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(options.repeat):
        for name, run in contenders.items():
            found[name].append(run())
    print(f"| loop, batch {options.batch_size}, {torch.get_num_threads()} threads | images/s | waiting for data |")
    print("|---|---|---|")
    for name, results in found.items():
        speed, waiting = (statistics.median(column) for column in zip(*results, strict=True))
        print(f"| {name} | {speed:.0f} | {100 * waiting:.1f} % |")


if __name__ == "__main__":
    main()
