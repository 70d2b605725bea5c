"""Tiny runs of fine-tuning and distillation for the tests, on one process or several, whole or killed."""

import importlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

SECTION = {
    "depths": [1, 1],
    "layer_type": "basic",
    "width_multiplier": 0.125,
    "stem_type": "small",
    "projection_dim": 16,
    "image_size": 16,
}
RECIPE: dict[str, Any] = {
    "side": 16,
    "model": SECTION,
    "views": {"area": [0.5, 1.0]},
    "training": {
        "batch_size": 8,
        "num_train_epochs": 4,
        "learning_rate": 0.5,
        "optimizer": "sgd",
        "max_grad_norm": 0,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


def write_recipe(folder: Path) -> str:
    """Write the recipe into a folder; its path."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def weights_of(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint or a result."""
    found = {"": "model.safetensors", "ema.": "ema/model.safetensors", "best.": "best.safetensors"}
    return {
        f"{prefix}{key}": value
        for prefix, name in found.items()
        if (folder / name).exists()
        for key, value in load_file(folder / name).items()
    }


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys() and ours
    assert not [key for key, value in ours.items() if not torch.equal(value, theirs[key])]


def assert_killed_runs_end_alike(command: str, settings: list[str], tmp_path: Path, last: int) -> None:
    """Kill a run at ten seeded moments behind a new checkpoint; when it has ended, all is as of one left alone.

    Args:
        command: "finetune" or "distill".
        settings: recipe and settings of a run that saves at every step.
        tmp_path: where both go.
        last: its number of steps.
    """

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["simclr_hub.training.distill"])  # imported once, which takes the most time

    def started(output: Path) -> Any:
        process = context.Process(target=_run, args=(command, [*settings, f"output_dir={output}"]))
        process.start()
        return process

    def finish(output: Path) -> None:
        process = started(output)
        process.join()
        assert process.exitcode == 0

    finish(tmp_path / "whole")
    generator = random.Random(0)
    for _ in range(10):
        before = set(tmp_path.glob("killed/checkpoint-*"))
        process = started(tmp_path / "killed")
        while process.is_alive() and set(tmp_path.glob("killed/checkpoint-*")) <= before:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run is too short to be killed ten times"
    finish(tmp_path / "killed")
    for name in ("final", f"checkpoint-{last}"):
        assert_same_bits(weights_of(tmp_path / "whole" / name), weights_of(tmp_path / "killed" / name))


def _run(command: str, settings: list[str]) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        module = importlib.import_module(f"simclr_hub.training.{command}")
        getattr(module, command)(settings[0], tuple(settings[1:]))


def run_on(processes: int, command: str, *settings: str) -> None:
    """Run a command under torchrun."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
    subprocess.run(
        [*launcher, "-m", f"simclr_hub.training.{command}", *settings],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
    )
