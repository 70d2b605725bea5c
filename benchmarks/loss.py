"""Time and peak memory of NT-Xent, forward and backward, beside lightly's and pytorch-metric-learning's, in one run.

    OMP_NUM_THREADS=1 python benchmarks/loss.py [--sizes 2048 8192] [--alone 65536] [--repeat 5] [--limit 8]

The peers are taken if they can be imported: `pip install lightly pytorch-metric-learning`, best in an environment of
their own. Times: the contenders in turn in one process, medians, after a warm-up. Memory: how far the resident set of
a fresh process rises above what it held with its inputs (Linux). A contender that needs more than `--limit` GiB fails.
"""

import argparse
import importlib
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from simclr_hub.training.losses import nt_xent_loss

DIMENSIONS, TEMPERATURE = 128, 0.1


def ours() -> Callable[[Tensor, Tensor], Tensor]:
    return lambda a, b: nt_xent_loss(a, b, TEMPERATURE)


def dense() -> Callable[[Tensor, Tensor], Tensor]:
    """Compute the whole matrix through torch's cross entropy, as it is usually written."""

    def loss(a: Tensor, b: Tensor) -> Tensor:
        z = torch.nn.functional.normalize(torch.cat([a, b]))
        logits = (z @ z.T / TEMPERATURE).fill_diagonal_(float("-inf"))
        return torch.nn.functional.cross_entropy(logits, torch.arange(len(z)).roll(len(a)))

    return loss


def lightly() -> Callable[[Tensor, Tensor], Tensor]:
    module: Any = importlib.import_module("lightly.loss")
    loss: Callable[[Tensor, Tensor], Tensor] = module.NTXentLoss(temperature=TEMPERATURE)
    return loss


def metric_learning() -> Callable[[Tensor, Tensor], Tensor]:
    module: Any = importlib.import_module("pytorch_metric_learning.losses")
    loss = module.NTXentLoss(temperature=TEMPERATURE)
    return lambda a, b: loss(torch.cat([a, b]), torch.arange(len(a)).repeat(2))


CONTENDERS = {
    "simclr_hub": ours,
    "dense cross entropy": dense,
    "lightly": lightly,
    "pytorch-metric-learning": metric_learning,
}


def inputs(rows: int) -> tuple[Tensor, Tensor]:
    z = torch.randn(2, rows // 2, DIMENSIONS, generator=torch.Generator().manual_seed(0))
    return z[0].clone().requires_grad_(), z[1].clone().requires_grad_()


def step(loss: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor) -> float:
    """Seconds of forward and backward."""
    a.grad = b.grad = None
    start = time.perf_counter()
    loss(a, b).backward()
    return time.perf_counter() - start


def status(field: str) -> int:
    """Bytes of a line of /proc/self/status."""
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def limit(gibibytes: float) -> None:
    """Let this process take so much more, so that a contender fails and not the machine."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (status("VmSize") + int(gibibytes * 2**30), hard))


def peak(name: str, rows: int) -> int:
    """Bytes that a step adds to what this fresh process holds."""
    loss = CONTENDERS[name]()
    step(loss, *inputs(64))  # libraries load at their first use
    a, b = inputs(rows)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    step(loss, a, b)
    return status("VmHWM") - before


def peak_in_child(name: str, rows: int, gibibytes: float) -> str:
    command = [sys.executable, __file__, "--limit", str(gibibytes), "--peak", name, str(rows)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode == 0:
        return f"{int(child.stdout) / 1e6:,.0f} MB"
    if "allocate memory" in child.stderr or "MemoryError" in child.stderr:
        return f"more than {gibibytes:g} GiB"
    raise RuntimeError(f"{' '.join(command)}: {child.stderr}")


def times(losses: dict[str, Callable[[Tensor, Tensor], Tensor]], rows: int, repeat: int) -> dict[str, list[float]]:
    """Seconds of each in turn, so that a noisy moment hits all; those that run out of memory are left out.

    Without a repeat it is the one run, else the first is the warm-up.
    """
    a, b = inputs(rows)
    found: dict[str, list[float]] = {name: [] for name in losses}
    for _ in range(repeat + 1):
        for name in list(found):
            try:
                found[name].append(step(losses[name], a, b))
            except (RuntimeError, MemoryError):
                del found[name]
    return {name: seconds[1:] or seconds for name, seconds in found.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="*", default=[2048, 8192], help="2N, of all contenders")
    parser.add_argument("--alone", type=int, nargs="*", default=[65536], help="2N, of ours alone")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--limit", type=float, default=8, help="GiB that a contender may take")
    parser.add_argument("--peak", nargs=2, metavar=("NAME", "2N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    limit(arguments.limit)
    if arguments.peak:
        print(peak(arguments.peak[0], int(arguments.peak[1])))
        return
    losses = {}
    for name, make in CONTENDERS.items():
        try:
            losses[name] = make()
        except ImportError as e:
            print(f"{name} is left out ({e}): pip install lightly pytorch-metric-learning\n")
    print(f"| 2N, {torch.get_num_threads()} threads | loss | seconds, median | over ours | peak memory |")
    print("|---|---|---|---|---|")
    for rows in [*arguments.sizes, *arguments.alone]:
        here = losses if rows in arguments.sizes else {"simclr_hub": losses["simclr_hub"]}
        seconds = times(here, rows, arguments.repeat if rows in arguments.sizes else 0)
        for name in here:
            memory = peak_in_child(name, rows, arguments.limit)
            if name in seconds:
                ratio = statistics.median(s / o for s, o in zip(seconds[name], seconds["simclr_hub"], strict=True))
                print(
                    f"| {rows} | {name} | {statistics.median(seconds[name]):.3g} | {ratio:.2f} | {memory} |",
                    flush=True,
                )
            else:
                print(f"| {rows} | {name} | out of memory | | {memory} |", flush=True)


if __name__ == "__main__":
    main()
