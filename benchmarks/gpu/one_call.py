r"""Measure on a GPU, in one call of at most eight minutes, what a machine without one cannot: one JSON.

    python benchmarks/gpu/one_call.py pack PACKED --data CIFAR10         # where the data is; send PACKED along
    python benchmarks/gpu/one_call.py run OUT [--packed PACKED] [--minutes 8]

Parts, in this order, each in a process of its own with a time after which it is ended, so that none costs another:

- `processes`: two processes train as one does (`doctor --distributed`), where there are two GPUs;
- `embed`: h of the sample photos by the CUDA path, beside the CPU's in float32; at most 1e-3 of the largest value;
- `speed`: images/s of a ResNet-50 at 224 pixels in bfloat16, channels last, compiled and not: embedding, a training
  step, and making the views on the device;
- `cifar10`: ResNet-18 by the official CIFAR-10 command, its whole schedule in what time is left; then the nearest
  neighbours and the official linear evaluation.

OUT/run.json is written after each part and, within `cifar10`, after training and after each measure; what failed or
was skipped says why. Like default_checkpoint.py, whose training this uses, it needs neither the package installed nor
datasets, pyarrow or faiss. `--small` is the form for a CPU, of seconds, which the tests run.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from default_checkpoint import Learner, Producer, decoded, pack  # noqa: E402  # it also finds the checkout

from simclr_hub import Embedder, SimCLRImageProcessor, SimCLRModel  # noqa: E402
from simclr_hub._files import write_file  # noqa: E402
from simclr_hub.sources import folder_images  # noqa: E402
from simclr_hub.training.augmentations import Views  # noqa: E402
from simclr_hub.training.equality import check_equality  # noqa: E402
from simclr_hub.training.linear import train_linear  # noqa: E402
from simclr_hub.training.optimization import official_steps  # noqa: E402
from simclr_hub.training.pretrain import load_recipe  # noqa: E402
from simclr_hub.training.protocols import features, interval, knn_accuracy  # noqa: E402

ROOT = Path(__file__).parents[2]
PHOTOS = ROOT / "simclr_hub" / "assets" / "sample-photos"
LIMIT = 1e-3  # of h by CUDA beside the CPU's, relative to the largest value
#: Seconds that a part may take; the last has what is left.
SECONDS = {"processes": 60, "embed": 60, "speed": 150}
#: Seconds of `cifar10` kept for its measures, and for ending.
MEASURES, ENDING = 60, 10
#: The official warm-up, 10 of 1000 epochs, and peak, linear in the batch, as this schedule has them.
OFFICIAL = ("warmup_epochs=0", "warmup_steps=0.01", "lr_scaling=none", "learning_rate=2.0")
SMALL = ("model.width_multiplier=0.125", "model.depths=[1,1]", "per_device_train_batch_size=8")
Write = Callable[[dict[str, Any]], None]


def device_of(options: argparse.Namespace) -> torch.device:
    """Return where to measure."""
    return torch.device("cuda" if torch.cuda.is_available() and not options.small else "cpu")


@contextmanager
def timed(told: dict[str, Any], name: str) -> Iterator[None]:
    """Put the seconds of a block down."""
    started = time.monotonic()
    yield
    told[name] = round(time.monotonic() - started, 2)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def write_json(path: Path, told: dict[str, Any]) -> None:
    """Write it whole, whenever the process is ended."""
    text = json.dumps(told, indent=1) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def processes(options: argparse.Namespace, write: Write) -> None:
    """Compare two processes with one, each with a GPU."""
    if torch.cuda.device_count() < 2:
        return write({"skipped": f"{torch.cuda.device_count()} GPUs; two are needed"})
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        "equality",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in run.stdout.splitlines() if line.startswith("{")]
    write(json.loads(lines[0]) if lines else {"failed": run.stderr[-2000:]})


def equality() -> None:
    """Print what one of the processes found."""
    report = check_equality()
    if os.environ.get("RANK") == "0":
        print(json.dumps({**vars(report), "equal": report.equal}), flush=True)


def embed(options: argparse.Namespace, write: Write) -> None:
    """Compare the device's h with the CPU's."""
    photos = list(folder_images(str(PHOTOS)))[: 4 if options.small else None]
    device = device_of(options)
    expected = torch.from_numpy(Embedder("default", device="cpu", runtime="torch")(photos))
    told: dict[str, Any] = {"photos": len(photos), "limit": LIMIT}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        embedder = Embedder("default", device=device, dtype=dtype)
        embedder(photos[:2])
        with timed(told, f"seconds_{name}"):
            found = torch.from_numpy(embedder(photos)).float()
        told[f"error_{name}"] = float((found - expected).abs().max() / expected.abs().max())
    write({**told, "within": told["error_float32"] <= LIMIT})


def speed(options: argparse.Namespace, write: Write) -> None:
    """Measure images/s, not compiled and compiled; each is written when it is there."""
    device = device_of(options)
    batch, side, repeats = (4, 32, 1) if options.small else (256, 224, 20)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    recipe = load_recipe("simclr_v1_imagenet", ("warmup_epochs=0", "bf16=false", f"views.size={side}"))
    if options.small:
        recipe["model"] |= {"width_multiplier": 0.125, "depths": [1, 1]}
    images = torch.randint(0, 256, (batch, 3, side + side // 8, side + side // 8), dtype=torch.uint8).to(device)
    told: dict[str, Any] = {"batch": batch, "side": side, "model": recipe["model"]}

    def rate(work: Callable[[], Any]) -> float:
        work()
        wait(device)
        started = time.monotonic()
        for _ in range(repeats):
            work()
        wait(device)
        return round(repeats * batch / (time.monotonic() - started), 1)

    producer = Producer(images, Views(**recipe["views"]), batch)
    told["views"] = rate(lambda: producer.make(0.0))
    views, _ = producer.make(0.0)
    producer.close()
    for name, backend in (("eager", "none"), ("compiled", options.compile)):
        if name == "compiled" and backend == "none":
            continue
        learner = Learner(recipe, batch, device, backend)
        h = learner.model if backend == "none" else torch.compile(learner.model, backend=backend, dynamic=False)
        told[name] = {}

        @torch.no_grad()
        def embedded(h: Any = h) -> Tensor:
            with torch.autocast(device.type, torch.bfloat16):
                found: Tensor = h(views[:batch]).pooler_output
            return found

        learner.model.eval()
        with timed(told[name], "first_embedding_seconds"):
            embedded()
            wait(device)
        told[name]["embedding"] = rate(embedded)
        write(told)
        learner.model.train()
        with timed(told[name], "first_step_seconds"):
            learner.step(views, 0.0)
            wait(device)
        told[name]["training"] = rate(partial(learner.step, views, 0.0))
        if device.type == "cuda":
            told[name]["peak_gigabytes"] = torch.cuda.max_memory_allocated(device) / 1e9
        write(told)


def cifar10(options: argparse.Namespace, write: Write) -> None:
    """Train by the official command until the time is up, and measure."""
    if options.packed is None:
        return write({"skipped": "no --packed"})
    device, started = device_of(options), time.monotonic()
    small = SMALL if options.small else ()
    recipe = load_recipe("simclr_cifar10", ("batch_size=0", "per_device_train_batch_size=512", *OFFICIAL, *small))
    batch = int(recipe["training"]["per_device_train_batch_size"])
    train, test = (decoded(options.packed, split, recipe["side"]) for split in ("train", "test"))
    told: dict[str, Any] = {"images": len(train), "decoding_seconds": time.monotonic() - started}
    if len(train) < batch:
        return write({"failed": f"{len(train)} images are fewer than a batch of {batch}"})
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    learner = Learner(recipe, batch, device, options.compile)
    deadline = started + options.seconds - MEASURES - ENDING
    pixels = torch.as_tensor(train.pixels).to(device)
    trained = learner.run(pixels, Views(**recipe["views"]), batch, 4 if options.small else None, deadline)
    model = learner.model.eval()
    told |= trained.told
    write(told)
    h, labels = features(model, test, len(test))
    bank = features(model, train, len(train))
    value = knn_accuracy(h, labels, *bank)[0]
    told["knn"] = {"top-1": value, "interval": interval(value, len(labels))}
    write(told)
    told["linear"] = linear(model, pixels, train.labels, h, labels, started + options.seconds - ENDING, options.small)
    write(told)


def linear(
    model: SimCLRModel, pixels: Tensor, classes: Tensor, h: Tensor, labels: Tensor, deadline: float, small: bool
) -> dict[str, Any]:
    """Evaluate linearly as the official code does, 100 epochs or as many as there is time for."""
    processor = SimCLRImageProcessor(size=model.config.image_size)
    count = int(classes.max()) + 1
    batch = min(512, len(classes))

    def trained(epochs: int, places: Tensor) -> Any:
        one = train_linear(
            model,
            processor,
            lambda rows: list(pixels[places[rows].to(pixels.device)]),
            classes[places],
            count,
            {"h": 0},
            epochs=epochs,
            batch_size=min(batch, len(places)),
        )
        return one["h"]

    few = torch.arange(min(8 * batch, len(classes)))
    trained(1, few[:batch])  # warms up
    started = time.monotonic()
    trained(1, few)
    each = (time.monotonic() - started) / official_steps(len(few), batch, 1, 0)[1]
    an_epoch = each * len(classes) / batch
    epochs = 1 if small else max(1, min(100, int((deadline - time.monotonic()) / an_epoch)))
    classifier = trained(epochs, torch.arange(len(classes))).cpu()
    with torch.no_grad():
        value = 100 * float((classifier(h).argmax(1) == labels).double().mean())
    return {"top-1": value, "interval": interval(value, len(labels)), "epochs": epochs, "batch": batch}


PARTS = {"processes": processes, "embed": embed, "speed": speed, "cifar10": cifar10}


def run_part(options: argparse.Namespace) -> None:
    """Run one part, and keep what it wrote and why it failed."""
    kept: dict[str, Any] = {}

    def write(told: dict[str, Any]) -> None:
        kept.update(told)
        write_json(options.out, kept)

    try:
        PARTS[options.part](options, write)
    except Exception as e:  # whatever it is, the other parts go on
        traceback.print_exc()
        write({"failed": f"{type(e).__name__}: {e}"})


def run(options: argparse.Namespace) -> None:
    """Run all parts, each in a process that is ended when its time is up, and write run.json after each."""
    started = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    told: dict[str, Any] = {
        "gpus": gpus,
        "cpu": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "small": options.small,
        "parts": {},
    }
    for name in options.parts:
        left = 60 * options.minutes - (time.monotonic() - started) - ENDING
        seconds = min(left, SECONDS.get(name, left))
        told["parts"][name] = limited(name, seconds, options) if seconds > 5 else {"skipped": "no time left"}
        told["seconds"] = round(time.monotonic() - started, 1)
        write_json(options.out / "run.json", told)
        print(
            name, json.dumps({k: v for k, v in told["parts"][name].items() if k not in ("log", "model")}), flush=True
        )


def limited(name: str, seconds: float, options: argparse.Namespace) -> dict[str, Any]:
    """Run one part in a process of its own; what it wrote, and that it was ended, if it was."""
    place = options.out / f"{name}.json"
    place.unlink(missing_ok=True)
    command = [sys.executable, __file__, "part", name, str(place), "--seconds", f"{seconds:.0f}"]
    command += ["--compile", options.compile, *(["--small"] if options.small else [])]
    command += ["--packed", str(options.packed)] if options.packed else []
    began, ended = time.monotonic(), ""
    with (options.out / f"{name}.log").open("wb") as log:
        try:
            code = subprocess.run(
                command, stdout=log, stderr=log, timeout=seconds + ENDING / 2, check=False
            ).returncode
            ended = f"ended with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            ended = f"ended after {seconds:.0f} seconds"
    found: dict[str, Any] = json.loads(place.read_bytes()) if place.exists() else {}
    if ended or not found:
        found.setdefault("failed", ended or "wrote nothing")
    return {**found, "seconds": round(time.monotonic() - began, 1)}


def pack_cifar10(options: argparse.Namespace) -> None:
    """Write CIFAR-10's files, encoded as they are, into shards that travel."""
    from simclr_hub.training.data import open_rows

    for split in ("train", "test"):
        rows = open_rows(options.data, split)
        files = [Path(row).read_bytes() if isinstance(row, str) else row.data for row in rows]
        labels = rows.labels
        if labels is None:
            raise SystemExit(f"{options.data}, split {split}: no class folders and no labels")
        for path in pack(files, labels, options.packed, split, round(options.shard_mb * 1e6)):
            print(path, path.stat().st_size)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="the data, for a machine without it")
    packing.add_argument("packed", type=Path, help="folder to write")
    packing.add_argument("--data", required=True, help="CIFAR-10: class folders or parquet with train and test")
    packing.add_argument("--shard-mb", type=float, default=45)
    packing.set_defaults(run=pack_cifar10)
    running = commands.add_parser("run", help="measure all")
    running.add_argument("out", type=Path, help="folder for run.json")
    running.add_argument("--minutes", type=float, default=8, help="of the whole call")
    running.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    running.set_defaults(run=run)
    one = commands.add_parser("part", help="measure one part")
    one.add_argument("part", choices=PARTS)
    one.add_argument("out", type=Path, help="JSON to write")
    one.add_argument("--seconds", type=float, default=300)
    one.set_defaults(run=run_part)
    for command in (running, one):
        command.add_argument("--packed", type=Path, help="folder of `pack`; without it CIFAR-10 is left out")
        command.add_argument("--compile", default="inductor", help="a backend of torch.compile, or none")
        command.add_argument("--small", action="store_true", help="tiny networks, on the CPU")
    commands.add_parser("equality").set_defaults(run=lambda options: equality())
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
