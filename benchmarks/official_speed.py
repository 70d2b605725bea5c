"""Images per second of every released architecture on one CPU core, into `simclr_hub/checkpoints/speed.json`.

    OMP_NUM_THREADS=1 python benchmarks/official_speed.py [--seconds 5] [--only NAME ...] [--out FILE]

The network alone, from pixels (1, 3, 224, 224) to h, with PyTorch: `simclr_hub.torch_runtime.fast_copy`, float32,
inference mode. Weights are random: the time does not depend on them. What is measured is the CPU time of one
thread, not the clock on the wall, so that other work on the machine does not count (it still competes for caches).
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from simclr_hub import SimCLRModel
from simclr_hub.checkpoints.catalog import CatalogEntry, config_of, entries
from simclr_hub.torch_runtime import fast_copy

SIZE = 224
FEWEST, MOST = 3, 15  # timed forward passes


def measure(entry: CatalogEntry, seconds: float) -> dict[str, Any]:
    """Parameters of the encoder, and images per CPU second of single forward passes after a warm-up."""
    torch.manual_seed(0)
    config = config_of(entry)
    config.projection_layers = 0  # g is not part of the way to h
    model = SimCLRModel(config)
    parameters = sum(p.numel() for p in model.encoder.parameters())
    fast = fast_copy(model, torch.device("cpu"), torch.float32)
    del model  # the largest has 3.2 GB
    pixels = torch.rand(1, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last)
    times: list[float] = []
    with torch.inference_mode():
        fast(pixels)  # warm-up
        while len(times) < FEWEST or (len(times) < MOST and sum(times) < seconds):
            start = time.process_time()
            fast(pixels)
            times.append(time.process_time() - start)
    rates = {"images_per_second": statistics.median(times), "slowest": max(times), "fastest": min(times)}
    rounded = {key: float(f"{1 / t:.3g}") for key, t in rates.items()}
    return {"parameters": parameters, **rounded, "passes": len(times)}


def machine() -> str:
    """Tell the processor's name, where the system knows it, and its instructions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5, help="CPU seconds for each architecture, at least")
    parser.add_argument("--only", action="append", help="one architecture, such as simclr-v2-r50; may be repeated")
    parser.add_argument(
        "--out", type=Path, default=Path(str(files("simclr_hub.checkpoints") / "speed.json")), help="where it goes"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    architectures: dict[str, dict[str, Any]] = {}
    networks: dict[tuple[int, int, bool], dict[str, Any]] = {}
    for name, entry in entries().items():
        if entry.training == "pretrained" and name in (options.only or [name]):
            network = entry.depth, entry.width_multiplier, entry.selective_kernel
            if network not in networks:  # v1's and v2's plain ResNet-50 are the same network
                networks[network] = measure(entry, options.seconds)
            architectures[name] = networks[network]
            print(f"{name}: {architectures[name]}", flush=True)
    result = {
        "command": "OMP_NUM_THREADS=1 python benchmarks/official_speed.py",
        "method": f"median CPU time of at least {FEWEST} single forward passes after one warm-up, {SIZE} px, batch 1, "
        "float32, from pixels in memory to h, through simclr_hub.torch_runtime.fast_copy, random weights; without "
        "reading photos; other work was running on the machine",
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.partition("+")[0],
        "date": date.today().isoformat(),
        "architectures": architectures,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
