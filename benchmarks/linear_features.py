"""Time `linear_features`, and compare its optimum with scikit-learn's at the same l2, both in float64.

    OMP_NUM_THREADS=1 python benchmarks/linear_features.py default --data tiny-imagenet [--iterations 400] [-o FILE]

scikit-learn (`pip install scikit-learn`) minimises the same: C x the summed cross entropy + 1/2 x the squared weights,
with C = 1 / (l2 x images). It starts from nothing, and then from our optimum, which a better one would lie below.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from simclr_hub.training.evaluate import read_settings
from simclr_hub.training.features import layers_of
from simclr_hub.training.labelled import HELD_OUT, open_parts, share_of_each_class
from simclr_hub.training.protocols import L2_GRID, choose_l2, top1


def loss_of(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, l2: float) -> float:
    """Return what both minimise: x (N, D), y (N,), weight (D, C), bias (C,), float64."""
    parts = zip(x.split(10_000), y.split(10_000), strict=True)
    entropy = sum(F.cross_entropy(a.double() @ weight + bias, b, reduction="sum") for a, b in parts)
    return float(entropy) / len(y) + l2 / 2 * float(weight.square().sum())


def main() -> None:
    """Measure, and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--data", required=True)
    parser.add_argument("--cache", help="of features")
    parser.add_argument("--iterations", type=int, default=400, help="of scikit-learn from nothing, at most")
    parser.add_argument("--l2", type=float, help="leave the grid out")
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    from sklearn.linear_model import LogisticRegression

    train, evaluation, classes, _ = open_parts(read_settings([f"data={options.data}"]))
    of = next(layers_of(options.model, train, evaluation, ["h"], Path(options.cache) if options.cache else None))
    x, y = of.train, of.train_labels
    held_out = torch.zeros(len(y), dtype=torch.bool)
    held_out[torch.from_numpy(share_of_each_class(y.numpy(), HELD_OUT, 0))] = True
    wall, cpu = time.monotonic(), time.process_time()
    rest, validation = ((x[rows], y[rows]) for rows in (~held_out, held_out))
    best, measured = choose_l2(rest, validation, top1, L2_GRID if options.l2 is None else (options.l2,))
    found: dict[str, Any] = {
        "images": len(y),
        "dimensions": x.shape[1],
        "classes": len(classes),
        "threads": torch.get_num_threads(),
        "values of l2": len(measured),
        "l2": best.l2,
        "seconds": time.monotonic() - wall,
        "CPU seconds": time.process_time() - cpu,
        "top-1": top1(best.scores(of.evaluation), of.labels),
    }
    x = torch.cat([rest[0], validation[0]])
    y = torch.cat([rest[1], validation[1]])
    found["loss"] = loss_of(x, y, best.weight.double(), best.bias.double(), best.l2)
    print(json.dumps(found), flush=True)
    for name, start in (("scikit-learn from our optimum", True), ("scikit-learn from nothing", False)):
        theirs = LogisticRegression(
            C=1 / (best.l2 * len(y)), tol=1e-10, max_iter=20 if start else options.iterations, warm_start=True
        )
        if start:
            theirs.classes_ = np.arange(len(classes))
            theirs.coef_ = best.weight.T.double().numpy().copy()
            theirs.intercept_ = best.bias.double().numpy().copy()
        wall, cpu = time.monotonic(), time.process_time()
        theirs.fit(x.double().numpy(), y.numpy())
        weight, bias = torch.from_numpy(theirs.coef_.T.copy()), torch.from_numpy(theirs.intercept_)
        found[name] = {
            "seconds": time.monotonic() - wall,
            "CPU seconds": time.process_time() - cpu,
            "iterations": int(theirs.n_iter_[0]),
            "loss": (loss := loss_of(x, y, weight, bias, best.l2)),
            "ours is above by": found["loss"] - loss,
            "top-1": top1(of.evaluation.double() @ weight + bias, of.labels),
        }
        print(json.dumps(found), flush=True)
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
