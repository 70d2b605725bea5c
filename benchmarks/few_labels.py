"""CIFAR-10 with 1 % and 10 % of its labels, from SimCLR and from random weights, and a small student of the result.

    OMP_NUM_THREADS=1 python benchmarks/few_labels.py run --data FOLDER [--out runs/few_labels]
    python benchmarks/few_labels.py table [--out runs/few_labels]

Every number is of a run of the package's own `pretrain`, `finetune` or `distill`; what is finished is not run again,
and what was interrupted is gone on with. Rates are chosen on a tenth of the training images, with seed 0, not on the
test images.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import Tensor

from simclr_hub import SimCLRModel
from simclr_hub.loading import load
from simclr_hub.scan import Rules
from simclr_hub.training.data import ImageArray
from simclr_hub.training.distill import distill
from simclr_hub.training.finetune import finetune
from simclr_hub.training.labelled import Part, labelled, share_of_each_class
from simclr_hub.training.pretrain import pretrain
from simclr_hub.training.protocols import choose_l2, features, top1
from simclr_hub.whitening import Whitening

SHARES = ("1%", "10%")
STARTS = ("simclr", "default", "random")
SEEDS = (0, 1, 2)
#: Rates to choose from, times batch / 256.
RATES = {"simclr": (0.1, 0.4), "default": (0.1, 0.4), "random": (0.2, 0.8)}
#: Random weights learn twice as long: with the epochs of the others they are far from done.
EPOCHS = {"1%": {"simclr": 40, "default": 40, "random": 80}, "10%": {"simclr": 8, "default": 8, "random": 16}}
#: The default checkpoint's network; with a quarter of the parameters at half its width.
NETWORK = ("model.depths=[2,2,2,2]", "model.layer_type=basic", "model.stem_type=small", "model.image_size=32")
HALF, QUARTER = (*NETWORK, "model.width_multiplier=0.5"), (*NETWORK, "model.width_multiplier=0.25")
#: Of every run: 32 px, bfloat16 and few checkpoints.
COMMON = "side=32 views.size=32 bf16=true use_cpu=true disable_tqdm=true save_total_limit=1".split()
PRETRAIN = (*COMMON, "init_from=default", "model.image_size=32", "views.sizes=[]", "views.greyscale_p=0.2")
PRETRAIN = (*PRETRAIN, "views.jitter=[0.4,0.4,0.4,0.1]", "max_steps=500", "save_steps=100")
LEARN = (*COMMON, "views.resample=bilinear", "save_steps=500", "eval_strategy=no")
STUDENT_EPOCHS = 24
DISTILL = ("num_train_epochs=10", "batch_size=128", "learning_rate=0.4", "warmup_epochs=0.2")


class Results:
    """Keep what is finished, a line of JSON each."""

    def __init__(self, out: Path):
        self.file = out / "results.jsonl"
        lines = self.file.read_text().splitlines() if self.file.exists() else []
        self.found: dict[str, Any] = {row["name"]: row["value"] for row in map(json.loads, lines)}

    def of(self, name: str, measure: Callable[..., float], *told: Any) -> float:
        """Return a number, measured now if it is not there by what is called with the name and what it is told."""
        if name not in self.found:
            started = time.monotonic()
            self.found[name] = measure(name, *told)
            with self.file.open("a") as file:
                row = {"name": name, "value": self.found[name], "seconds": round(time.monotonic() - started)}
                file.write(json.dumps(row) + "\n")
            print(f"{name}: {self.found[name]:.2f}", flush=True)
        value: float = self.found[name]
        return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "table"))
    parser.add_argument("--data", help="CIFAR-10 with the splits train and test")
    parser.add_argument("--out", type=Path, default=Path("runs/few_labels"))
    options = parser.parse_args()
    if options.what == "table":
        print(table(Results(options.out).found))
        return
    if not options.data:
        parser.error("run needs --data")
    options.out.mkdir(parents=True, exist_ok=True)
    measure_all(options.data, options.out, Results(options.out))


def measure_all(data: str, out: Path, results: Results) -> None:
    """Run what is not finished, in the order of what is asked first."""
    encoder = out / "simclr" / "final"
    if not encoder.exists():
        pretrain("tiny_imagenet_default", (*PRETRAIN, f"data={data}", f"output_dir={out / 'simclr'}"))
    held_out = tuning_data(data, out / "tuning")
    starts = {"simclr": f"init_from={encoder}", "default": "init_from=default", "random": "init_from=null"}

    def learn(name: str, start: str, share: str, rate: float, seed: int, *further: str) -> float:
        batch = 32 if share == "1%" else 128
        settings = [f"labels={share}", f"learning_rate={rate}", f"batch_size={batch}", f"seed={seed}"]
        settings += ["patience=0", starts[start], *LEARN]
        settings += HALF if start == "random" else ("model.image_size=32",)
        return finished(finetune("finetune_photos", (*settings, *further, f"output_dir={out / name}")))

    def learn_small(name: str, seed: int) -> float:
        told = (f"teacher={teacher}", *of_test, f"seed={seed}", *QUARTER)
        return finished(distill("distill_photos", (*LEARN, *DISTILL, *told, f"output_dir={out / name}")))

    def best_rate(start: str) -> float:
        """Choose with 1 % of the labels, on the tenth that is held out; the same rate is taken with 10 %."""
        share = SHARES[0]
        of = (f"data={held_out}", "eval_split=validation", f"num_train_epochs={EPOCHS[share][start]}")
        found = {rate: results.of(f"tune-{start}-{rate}", learn, start, share, rate, 0, *of) for rate in RATES[start]}
        return max(found, key=lambda rate: found[rate])

    of_test = (f"data={data}", "eval_split=test")
    for share in SHARES:
        for start in STARTS:
            rate, epochs = best_rate(start), f"num_train_epochs={EPOCHS[share][start]}"
            for seed in SEEDS:
                results.of(f"{start}-{share}-{seed}", learn, start, share, rate, seed, *of_test, epochs)
        if share == SHARES[0]:
            measure_logistic(data, out, results, str(encoder))
    teacher = out / f"simclr-{SHARES[-1]}-0" / "final"
    student = (*of_test, *QUARTER, f"num_train_epochs={STUDENT_EPOCHS}")
    rate = best_rate("random")
    for seed in SEEDS:
        results.of(f"distilled-{seed}", learn_small, seed)
        results.of(f"student-{seed}", learn, "random", SHARES[-1], rate, seed, *student)


def finished(final: Path) -> float:
    """Return the top-1 that a run measured, and drop what only its resume needs."""
    for place in (*final.parent.glob("checkpoint-*"), final.parent / "cache"):
        shutil.rmtree(place, ignore_errors=True)
    [first, *_] = json.loads((final / "results.json").read_text())["results"]
    value: float = first["value"]
    return value


def tuning_data(data: str, folder: Path) -> Path:
    """Write the training images as a split train and, a tenth of each class, a split validation."""
    if not folder.exists():
        images = datasets.load_dataset(data, split="train")
        column = next(name for name, kind in images.features.items() if isinstance(kind, datasets.ClassLabel))
        validation = share_of_each_class(np.array(images[column]), 0.1, 0)
        partial = folder.with_name("tuning.partial")
        partial.mkdir(exist_ok=True)
        images.select(validation).to_parquet(str(partial / "validation.parquet"))
        images.select(np.setdiff1d(np.arange(len(images)), validation)).to_parquet(str(partial / "train.parquet"))
        os.replace(partial, folder)
    return folder


def measure_logistic(data: str, out: Path, results: Results, encoder: str) -> None:
    """Measure logistic regression on h and on whitened h, with the labels that the runs have."""
    part = Part.open(data, "train", Rules())
    train, test = (ImageArray.load(data, split, 32, out / "features") for split in ("train", "test"))
    torch.manual_seed(0)
    for name in STARTS:
        if f"h-{name}-{SHARES[-1]}-{SEEDS[-1]}" in results.found:
            continue
        model = load(encoder if name == "simclr" else "default")[0]
        model.config.image_size = 32
        model = SimCLRModel(model.config) if name == "random" else model
        h, _ = features(model, train, len(train))
        queries, labels = features(model, test, len(test))
        whitening = Whitening.learn(h.numpy(), learnt_from="CIFAR-10")
        whitened = [torch.from_numpy(whitening.apply(x.numpy())) for x in (h, queries)]
        for layer, (known, asked) in {"h": (h, queries), "whitened": (whitened[0], whitened[1])}.items():
            for share in SHARES:
                for seed in SEEDS:
                    places, _ = labelled(part, share, seed)
                    of_known = torch.from_numpy(part.labels[places])
                    told = (known[places], of_known, asked, labels, seed)
                    results.of(f"{layer}-{name}-{share}-{seed}", logistic, *told)


def logistic(name: str, known: Tensor, of_known: Tensor, asked: Tensor, of_asked: Tensor, seed: int) -> float:
    """Return the top-1 in percent; l2 is chosen on a tenth of what is known."""
    held_out = torch.zeros(len(known), dtype=torch.bool)
    held_out[torch.from_numpy(share_of_each_class(of_known.numpy(), 0.1, seed))] = True
    best, _ = choose_l2((known[~held_out], of_known[~held_out]), (known[held_out], of_known[held_out]), top1)
    return top1(best.scores(asked), of_asked)


def table(found: dict[str, float]) -> str:
    """Return the tables of what is finished, in Markdown."""

    def cell(name: str) -> str:
        values = [found[key] for seed in SEEDS if (key := f"{name}-{seed}") in found]
        if not values:
            return "-"
        several = f" ({', '.join(f'{value:.1f}' for value in values)})"
        return f"**{np.mean(values):.1f}**{several}"

    lines = ["| top-1 on 10,000 test images, %: mean (each seed) | 1 % of the labels | 10 % |", "|---|---|---|"]
    for start in STARTS:
        for name, of in (
            ("fine-tuned", start),
            ("logistic regression on h", f"h-{start}"),
            ("on whitened h", f"whitened-{start}"),
        ):
            lines.append(f"| {start}, {name} | " + " | ".join(cell(f"{of}-{share}") for share in SHARES) + " |")
    lines += ["", "| a quarter of the parameters | top-1, % |", "|---|---|"]
    lines += [
        f"| the teacher, fine-tuned with 10 % | {found.get('simclr-10%-0', float('nan')):.1f} |",
        f"| distilled, no labels | {cell('distilled')} |",
        f"| fine-tuned with the same 10 % | {cell('student')} |",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
