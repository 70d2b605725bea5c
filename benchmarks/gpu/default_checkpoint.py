r"""Train the default checkpoint's recipe on one GPU within minutes, and measure what came of it.

    python benchmarks/gpu/default_checkpoint.py pack PACKED --train tiny-imagenet tiny-imagenet-extra \
        --validation tiny-imagenet --photos open-photos-128.tar
    python benchmarks/gpu/default_checkpoint.py train PACKED OUT [--minutes 7.5] [--set key=value ...]

`pack` is for the machine that has the data. It writes the images as they are, encoded, into shards of about 45 MB,
since often only so much travels to a GPU machine at a time: send the shards one after another into one folder PACKED
there, then `train`, which refuses if one is missing. Encoding them anew was measured and left out. Tiny ImageNet's
files take 1.3 KB each in a shard; as WebP of quality 30 they would have 0.8 KB (a PSNR of 28 dB), and 110,000 would
still not travel at once; what would, AVIF in mosaics at 0.47 KB, has 25 dB.

`train` needs a checkout of this repository and torch, torchvision, transformers, accelerate, pyyaml and Pillow; not
the package installed, and neither faiss, datasets nor pyarrow. Settings are those of `simclr-hub pretrain`, of which
steps, saving and logging mean nothing here. It

- decodes all images once and keeps them on the GPU, 1.2 GB;
- makes views on the GPU, on a thread and a stream of their own, while the model trains on those before;
- trains in bfloat16, channels last, compiled; with larger batches, the rate scaled by the root of how much larger, and
  the averaged weights looking back at as many images;
- runs the recipe's whole schedule in the time there is: how many steps that gives follows from how long they take;
- writes OUT/checkpoint (half precision, with its whitening) first and then what it measured: OUT/run.json.

Unusual: BatchNorm's moving variance is PyTorch's, unbiased, since the hooks of `use_biased_moving_variance` would
break the compiled graph; at 4,096 views the difference is below 0.03 %.
"""

import argparse
import contextlib
import importlib.util
import itertools
import json
import math
import os
import platform
import sys
import time
import types
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

ROOT = Path(__file__).parents[2]


def use_checkout() -> None:
    """Let `import simclr_hub.training` find this checkout where the package is not installed."""
    if importlib.util.find_spec("simclr_hub") is None:
        sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("simclr_hub.training") is None:  # its folder has another name until it is installed
        folder = ROOT / "training"
        spec = importlib.util.spec_from_file_location(
            "simclr_hub.training", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules["simclr_hub.training"] = module
        spec.loader.exec_module(module)


use_checkout()

from simclr_hub import SimCLRConfig, SimCLRImageProcessor, SimCLRModel  # noqa: E402
from simclr_hub.errors import RecipeError, SimCLRHubError, TrainingError  # noqa: E402
from simclr_hub.images import load_image  # noqa: E402
from simclr_hub.loading import weights_hash  # noqa: E402
from simclr_hub.training.augmentations import Views  # noqa: E402
from simclr_hub.training.data import _resized, open_rows  # noqa: E402
from simclr_hub.training.distributed import global_multi_view_loss  # noqa: E402
from simclr_hub.training.optimization import create_optimizer, warmup_cosine  # noqa: E402
from simclr_hub.training.pretrain import load_recipe  # noqa: E402
from simclr_hub.training.protocols import features, knn_accuracy, precision_at  # noqa: E402
from simclr_hub.training.trainer import SimCLRTrainingArguments, WeightAverage  # noqa: E402
from simclr_hub.whitening import IMAGES, SHRINKAGE, WHITENING_NAMES, Whitening  # noqa: E402

BANKS = (25_000, 75_000)
RESERVE = 60  # seconds kept for writing and measuring
AHEAD = 2  # batches of views made before they are needed


# Packing


def pack(files: Sequence[bytes], labels: Sequence[int], folder: Path, name: str, limit: int) -> list[Path]:
    """Write encoded images with their classes to `folder`/NAME-i-of-n.npz, each of at most `limit` bytes or one image.

    Raises:
        FileExistsError: there is one.
    """
    shards: list[list[int]] = []
    size = limit
    for i, file in enumerate(files):
        if size + len(file) > limit:
            shards.append([])
            size = 0
        shards[-1].append(i)
        size += len(file)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{name}-{n}-of-{len(shards)}.npz" for n in range(1, len(shards) + 1)]
    for path, shard in zip(paths, shards, strict=True):
        data = np.frombuffer(b"".join(files[i] for i in shard), np.uint8)
        ends = np.cumsum([len(files[i]) for i in shard])
        with path.open("xb") as out:
            np.savez_compressed(out, data=data, ends=ends, labels=np.array([labels[i] for i in shard]))
    return paths


def unpack(folder: Path, name: str) -> tuple[list[bytes], Tensor]:
    """Read the images and classes that `pack` wrote.

    Raises:
        FileNotFoundError: a shard is missing.
    """
    found = {path.name: path for path in folder.glob(f"{name}-*-of-*.npz")}
    counts = {path.stem.rpartition("-")[2] for path in found.values()}
    expected = [f"{name}-{n}-of-{counts.copy().pop()}.npz" for n in range(1, int(max(counts)) + 1)] if counts else []
    if len(counts) != 1 or set(expected) != set(found):
        missing = sorted(set(expected) - set(found)) or [f"{name}-1-of-..."]
        raise FileNotFoundError(f"{folder} holds {sorted(found)}: not all of one packing, missing {missing}")
    files: list[bytes] = []
    labels = []
    for shard in expected:
        with np.load(found[shard]) as arrays:
            data, ends = arrays["data"].tobytes(), arrays["ends"].tolist()
            files += [data[start:end] for start, end in itertools.pairwise([0, *ends])]
            labels.append(torch.from_numpy(arrays["labels"]))
    return files, torch.cat(labels)


def pack_all(train: Sequence[str], validation: str, photos: Path, folder: Path, limit: int) -> None:
    """Pack what `train` needs."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from features import Photos

    def encoded(row: Any) -> bytes:
        return Path(row).read_bytes() if isinstance(row, str) else row.data

    shown = Photos.load(photos)
    for name, source, split in (("train", list(train), "train"), ("validation", [validation], "validation")):
        rows = open_rows(source, split)
        if rows.labels is None:
            raise RecipeError(f"{source}, split {split}: no class folders and no labels")
        for path in pack([encoded(row) for row in rows], rows.labels, folder, name, limit):
            print(path, path.stat().st_size)
    for path in pack(shown.files, shown.labels.tolist(), folder, "photos", limit):
        print(path, path.stat().st_size)


# Training


@dataclass
class Images:
    """Decoded images (3, H, W), uint8, and their classes (N,)."""

    pixels: Sequence[Tensor] | Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def image(self, i: int) -> Tensor:
        """Return image i, uint8 (3, H, W)."""
        return self.pixels[i]

    def first(self, n: int) -> "Images":
        """Return the first n of them."""
        return Images(self.pixels[:n], self.labels[:n])


def decoded(folder: Path, name: str, side: int | None = None) -> Images:
    """Decode the images of a packing, resized to one side, or each as it is."""
    files, labels = unpack(folder, name)

    def one(file: bytes) -> Tensor:
        pixels = load_image(file).pixels
        return torch.from_numpy(pixels if side is None else np.array(_resized(pixels, side)))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        pixels = list(pool.map(one, files))
    return Images(pixels if side is None else torch.stack(pixels), labels)


class Producer:
    """Makes batches of views ahead of the model, on a thread and, on a GPU, a stream of their own.

    Everything random is drawn on that thread, from torch's default generator, one batch after another.

    Args:
        images: (N, 3, side, side), uint8, on the device.
        views: of the recipe.
        batch: images of a batch.
    """

    def __init__(self, images: Tensor, views: Views, batch: int):
        self.images, self.views, self.batch = images, views, batch
        self.order = torch.empty(0, dtype=torch.long)
        self.stream = torch.cuda.Stream(images.device) if images.is_cuda else None
        self.pool = ThreadPoolExecutor(1, "views")
        self.waiting: deque[Future[tuple[Tensor, Any]]] = deque()

    def make(self, share: float) -> tuple[Tensor, Any]:
        """Make the views of the next images, (kB, 3, size, size), and the event after which they are there."""
        if len(self.order) < self.batch:  # what is left of an epoch is dropped, as the Trainer does
            self.order = torch.randperm(len(self.images))
        rows, self.order = self.order[: self.batch], self.order[self.batch :]
        with torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext():
            views = self.views.at(share).batch(self.images[rows.to(self.images.device)])
            views = views.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            return views, self.stream.record_event() if self.stream else None

    def next(self, share: float) -> Tensor:
        """Views for the model, while the thread goes on with those after them.

        Args:
            share: of the run that is done; the views are of AHEAD batches earlier, which matters where sizes change.
        """
        while len(self.waiting) <= AHEAD:
            self.waiting.append(self.pool.submit(self.make, share))
        views, ready = self.waiting.popleft().result()
        if ready is not None:
            here = torch.cuda.current_stream(views.device)
            here.wait_event(ready)
            views.record_stream(here)  # or their memory would go to the next batch while the model reads them
        return views

    def close(self) -> None:
        """Drop what was made ahead and end the thread."""
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.waiting.clear()


class Progress:
    """What share of the run is done: counted in steps, or so that its end falls on a deadline.

    With a deadline the share goes on by one step of as many as still fit, at what the steps of each size take.

    Args:
        views: whose sizes change over the run.
        steps: of the run; None with a deadline.
        deadline: of `clock`, in seconds.
        seconds: of a step, by size of views.
        clock: gives the time.
    """

    def __init__(
        self,
        views: Views,
        steps: int | None,
        deadline: float,
        seconds: dict[int, float],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.views, self.steps, self.deadline, self.seconds, self.clock = views, steps, deadline, seconds, clock
        self.done, self.share, self.last = 0, 0.0, clock()

    def step(self) -> None:
        """Count one."""
        now = self.clock()
        size = self.views.at(self.share).size
        self.seconds[size] += 0.02 * (now - self.last - self.seconds[size])
        self.done, self.last = self.done + 1, now
        if self.steps is not None:
            self.share = self.done / self.steps
            return
        ahead = [self.share + (1 - self.share) * (i + 0.5) / 20 for i in range(20)]
        mean = sum(self.seconds[self.views.at(share).size] for share in ahead) / len(ahead)
        left = (self.deadline - now) / mean
        self.share = self.share + (1 - self.share) / left if left > 1 else 1.0


def sizes_of(views: Views) -> list[int]:
    """List the sizes that a run's views have, in order."""
    return list(dict.fromkeys(views.at(i / 1000).size for i in range(1000)))


@dataclass
class Trained:
    """A run's end: the averaged model, and what is told of it."""

    model: SimCLRModel
    told: dict[str, Any]


class Learner:
    """The recipe's model, loss and optimiser, one step at a time.

    Args:
        recipe: of `load_recipe`.
        batch: images of a batch.
        device: where.
        backend: of torch.compile; "none" for not compiled.
    """

    def __init__(self, recipe: dict[str, Any], batch: int, device: torch.device, backend: str):
        args = SimCLRTrainingArguments(**{"output_dir": "unused", **recipe["training"]})
        given = {"init_from": recipe.get("init_from")}
        given |= {key: getattr(args, key) for key in ("memory", "gradient_cache", "warmup_epochs")}
        if not_here := [key for key, value in given.items() if value]:
            raise RecipeError(f"{', '.join(not_here)}: not for this script; use simclr-hub pretrain")
        if not 0 <= args.warmup_steps < 1:
            raise RecipeError(f"warmup_steps={args.warmup_steps} must be a share of the run, below 1")
        self.device, self.count = device, Views(**recipe["views"]).count
        self.temperature, self.decoupled = args.temperature, args.loss == "dcl"
        larger = batch / args.per_device_train_batch_size
        self.rate = args.learning_rate * math.sqrt(larger)
        self.decay = args.ema_decay**larger
        torch.manual_seed(args.seed)
        self.model = SimCLRModel(SimCLRConfig(**recipe["model"])).train()
        torch.nn.Module.to(self.model, device)
        torch.nn.Module.to(self.model, memory_format=torch.channels_last)
        self.optimizer = create_optimizer(self.model, args.optimizer, self.rate, args.weight_decay, args.momentum)
        # Its factor at any share of a run that it takes to have a thousand steps.
        self.factor = warmup_cosine(self.optimizer, round(1000 * args.warmup_steps), 1000).lr_lambdas[0]
        self.embed = self._embed if backend == "none" else torch.compile(self._embed, backend=backend, dynamic=False)

    def _embed(self, pixels: Tensor) -> Tensor:
        z: Tensor = self.model(pixels, output_projections=True).projections[-1]
        return z

    def step(self, pixels: Tensor, rate: float) -> Tensor:
        """Learn from views (kB, 3, size, size); the loss before, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast(self.device.type, torch.bfloat16):
            z = self.embed(pixels)
        loss: Tensor = global_multi_view_loss(
            z.float().reshape(self.count, -1, z.shape[1]), self.temperature, decoupled=self.decoupled
        )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def warm_up(self, producer: Producer) -> dict[int, dict[str, float]]:
        """Compile, and time a step of each size of views and making its views; at a rate of 0 nothing is learnt.

        A network that cannot be compiled runs as it is, with a warning.
        """
        starts = {producer.views.at(i / 1000).size: i / 1000 for i in reversed(range(1000))}
        found: dict[int, dict[str, float]] = {}
        for size in sizes_of(producer.views):
            started = time.monotonic()
            views, _ = producer.make(starts[size])
            self.wait()
            try:
                self.step(views, 0.0)
                self.wait()
            except Exception as e:  # whatever a compiler raises: minutes of a GPU are not lost for it
                if self.embed == self._embed:
                    raise
                warnings.warn(f"not compiled: {type(e).__name__}: {e}", stacklevel=2)
                self.embed = self._embed
                self.step(views, 0.0)
            first = time.monotonic() - started
            self.step(views, 0.0)
            found[size] = {"first_step": first}
            for name, work in (
                ("step", lambda views=views: self.step(views, 0.0)),
                ("views", lambda size=size: producer.make(starts[size])),
            ):
                self.wait()
                started = time.monotonic()
                for _ in range(5):
                    work()
                self.wait()
                found[size][name] = (time.monotonic() - started) / 5
        return found

    def run(self, images: Tensor, views: Views, batch: int, steps: int | None, deadline: float) -> Trained:
        """Run the whole recipe on images (N, 3, side, side), uint8, on the device."""
        producer = Producer(images, views, batch)
        self.wait()  # the images are there before another stream reads them
        timed = self.warm_up(producer)
        average = WeightAverage(self.model, self.decay)
        state = types.SimpleNamespace(global_step=0)
        slower = {size: max(seconds["step"], seconds["views"]) for size, seconds in timed.items()}
        progress = Progress(views, steps, deadline, slower)
        log: list[dict[str, float]] = []
        started = time.monotonic()
        try:
            while progress.share < 1:
                rate = self.rate * self.factor(1000 * progress.share)  # type: ignore[arg-type]  # parts of steps, too
                loss = self.step(producer.next(progress.share), rate)
                progress.step()
                state.global_step = progress.done
                average.on_step_end(None, state, None, model=self.model)
                if progress.done % 100 == 0 or progress.share >= 1:
                    log.append(self._told(loss, progress, rate, batch, time.monotonic() - started))
            self.wait()
        finally:
            producer.close()
        seconds = time.monotonic() - started
        told = {
            "batch": batch,
            "views_per_image": self.count,
            "peak_learning_rate": self.rate,
            "ema_decay": self.decay,
            "compiled": self.embed != self._embed,
            "seconds_of_one": timed,
            "steps": progress.done,
            "epochs": progress.done * batch / len(images),
            "training_seconds": seconds,
            "images_per_second": progress.done * batch / seconds,
            "log": log,
        }
        return Trained(cast(SimCLRModel, average.model), told)

    def _told(self, loss: Tensor, progress: Progress, rate: float, batch: int, seconds: float) -> dict[str, float]:
        value = float(loss)
        if not math.isfinite(value):
            raise TrainingError(f"the loss is {value} at step {progress.done}: set a lower learning_rate")
        told = {
            "step": progress.done,
            "share": progress.share,
            "size": progress.views.at(progress.share).size,
            "loss": value,
            "rate": rate,
            "images_per_second": progress.done * batch / seconds,
        }
        if progress.done % 500 == 0:
            print(json.dumps(told), flush=True)
        return told


# Measuring


def write_checkpoint(model: SimCLRModel, train: Images, folder: Path, data: str) -> Whitening:
    """Save the model in half precision with its processor and its whitening, learnt on training images.

    Raises:
        ValueError: too few training images to learn it from.
    """
    torch.nn.Module.to(model, torch.float16)
    model.save_pretrained(folder)
    torch.nn.Module.to(model, torch.float32)  # what is measured has the weights that were written
    SimCLRImageProcessor(size=model.config.image_size).save_pretrained(folder)
    h, _ = features(model, train, IMAGES)
    whitening = Whitening.learn(h.numpy(), learnt_from=data, shrinkage=SHRINKAGE, weights=weights_hash(model))
    whitening.save(folder / WHITENING_NAMES["h"])
    return whitening


def measure(model: SimCLRModel, whitening: Whitening, train: Images, validation: Images, photos: Images) -> Any:
    """KNN and P@1, P@5 in percent, of h as it is and whitened."""
    banks = [n for n in BANKS if n < len(train)] or [len(train)]
    bank = features(model, train.first(banks[-1]), banks[-1])[0]
    queries, shown = (features(model, part, len(part))[0] for part in (validation, photos))
    told = {}
    for name, change in (("raw", lambda h: h), ("whitened", lambda h: torch.from_numpy(whitening.apply(h.numpy())))):
        knn = knn_accuracy(change(queries), validation.labels, change(bank), train.labels[: banks[-1]], banks)
        told[name] = {f"knn_{n}": value for n, value in zip(banks, knn, strict=True)}
        for k in (1, 5):
            told[name][f"p_at_{k}"] = 100 * float(precision_at(change(shown), photos.labels, k).mean())
    return told


def train(options: argparse.Namespace) -> None:
    """Decode, train, write the checkpoint, measure, write run.json."""
    started = time.monotonic()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
    recipe = load_recipe(options.recipe, tuple(options.set))
    views = Views(**recipe["views"])
    options.out.mkdir(parents=True, exist_ok=True)
    images = decoded(options.packed, "train", recipe["side"])
    if len(images) < options.batch:
        raise ValueError(f"--batch {options.batch}: there are {len(images)} training images")
    phases = {"decoding": time.monotonic() - started}
    assert isinstance(images.pixels, Tensor)
    learner = Learner(recipe, options.batch, device, options.compile)
    deadline = started + 60 * options.minutes - RESERVE
    trained = learner.run(images.pixels.to(device), views, options.batch, options.steps, deadline)
    phases["training, with compiling"] = time.monotonic() - started - sum(phases.values())
    source = f"Tiny ImageNet: {len(images):,} training images"
    whitening = write_checkpoint(trained.model, images, options.out / "checkpoint", source)
    parts = (decoded(options.packed, "validation", recipe["side"]), decoded(options.packed, "photos"))
    results = measure(trained.model, whitening, images, *parts)
    phases["writing and measuring"] = time.monotonic() - started - sum(phases.values())
    told = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "CPU",
        "torch": torch.__version__,
        "images": len(images),
        "recipe": recipe,
        **trained.told,
        "seconds": phases,
        "checkpoint_bytes": sum(path.stat().st_size for path in (options.out / "checkpoint").iterdir()),
        "results": results,
    }
    (options.out / "run.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({key: told[key] for key in ("steps", "epochs", "images_per_second", "compiled", "results")}))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one of the two commands."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    packing = commands.add_parser("pack", help="write the images into shards")
    packing.add_argument("packed", type=Path, help="a new folder")
    packing.add_argument("--train", nargs="+", required=True, help="folders, the bank's first")
    packing.add_argument("--validation", required=True, help="folder with a split of that name")
    packing.add_argument("--photos", type=Path, required=True, help="tar, or folder, of class folders")
    packing.add_argument("--shard-mb", type=float, default=65, help="of a shard's images; its file is a third smaller")
    packing.set_defaults(run=lambda o: pack_all(o.train, o.validation, o.photos, o.packed, round(o.shard_mb * 1e6)))
    training = commands.add_parser("train", help="train and measure")
    training.add_argument("packed", type=Path, help="folder of the shards")
    training.add_argument("out", type=Path, help="folder for checkpoint/ and run.json")
    training.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="as for simclr-hub pretrain")
    training.add_argument("--recipe", default="tiny_imagenet_default")
    training.add_argument("--minutes", type=float, default=7.5, help="of the whole command")
    training.add_argument("--steps", type=int, help="train so many steps instead, however long they take")
    training.add_argument("--batch", type=int, default=1024, help="images of a batch")
    training.add_argument("--device", help="a torch device; the GPU if there is one")
    training.add_argument("--compile", default="inductor", help="a backend of torch.compile, or none")
    training.set_defaults(run=train)
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (SimCLRHubError, OSError, TypeError, ValueError) as e:
        parser.exit(1, f"{type(e).__name__}: {' '.join(str(e).split())}\n")


if __name__ == "__main__":
    main()
