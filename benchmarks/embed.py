"""Photos per second from files to features, beside what a user would write instead, in the same run; and the drift.

    OMP_NUM_THREADS=2 python benchmarks/embed.py PHOTOS [--small 128] [--large 24] [--repeat 5] [--only speed|drift]

PHOTOS is a folder of small photos, of which an even sample is taken. The 12-megapixel photos are made of them, since
no collection of large ones is at hand: 12 photos side by side, each enlarged to 1000 x 1000, with camera-like noise
(sigma 3.7 of 255) that makes the JPEG of quality 90 as large as a camera's (2.7 MB).

All run a ResNet-50 at 224 pixels with random weights, on which the time does not depend, in float32:

- `SimilarityIndex.sync` into a new index, which is what `simclr-hub index` does, with a loaded model; and the command
  as a whole, in a process of its own, with start, imports and loading;
- a loop over torchvision: open, resize, crop, ResNet-50; the same in a DataLoader with two workers;
- transformers' image-feature-extraction pipeline with transformers' ResNet-50;
- imagededup's CNN encoder, if installed, with torchvision's ResNet-50, and with its own MobileNetV3-small, which does
  a twentieth of the work.

The contenders take turns. Rates are by the clock, and by the CPU time of the process and its children, which other
work on the machine disturbs less.
"""

import argparse
import io
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from simclr_hub import Embedder, SimCLRConfig, SimCLRImageProcessor, SimCLRModel, SimilarityIndex, load
from simclr_hub.sources import folder_images
from simclr_hub.torch_runtime import facts_of, fast_copy, runner_of

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


def contenders(model: SimCLRModel, model_dir: Path) -> dict[str, Callable[[Path], Any]]:
    """Name -> a function that embeds every photo of a folder once."""
    resnet = torchvision.models.resnet50().eval()
    resnet.fc = torch.nn.Identity()

    def command(folder: Path) -> None:
        code = "import sys; from simclr_hub.cli import main; sys.exit(main())"
        with tempfile.TemporaryDirectory() as scratch:
            arguments = ["index", str(folder), "-o", f"{scratch}/index", "--model", str(model_dir)]
            subprocess.run([sys.executable, "-c", code, *arguments], check=True, stdout=subprocess.DEVNULL)

    def loop(folder: Path) -> None:
        files = Files(folder_images(folder))
        for i in range(len(files)):
            resnet(files[i][None])

    def loader(folder: Path) -> None:
        for batch in DataLoader(Files(folder_images(folder)), batch_size=16, num_workers=2):
            resnet(batch)

    runs: dict[str, Callable[[Path], Any]] = {
        "simclr-hub index": indexing(Embedder(model, runtime="onnxruntime")),
        "simclr-hub index, the whole command": command,
        "loop over torchvision": loop,
        "torchvision, DataLoader": loader,
        "transformers pipeline": _pipeline(),
    }
    return runs | (_imagededup(resnet) if find_spec("imagededup") else {})


def indexing(embedder: Embedder) -> Callable[[Path], Any]:
    """Return what makes a new index of a folder."""

    def run(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            with SimilarityIndex.create(Path(scratch, "index"), embedder) as index:
                index.sync(folder)

    return run


def _pipeline() -> Callable[[Path], Any]:
    from transformers import ConvNextImageProcessor, ResNetConfig, ResNetModel, pipeline

    processor = ConvNextImageProcessor(size={"shortest_edge": 224}, crop_pct=0.875)
    extract = pipeline(
        "image-feature-extraction", model=ResNetModel(ResNetConfig()).eval(), image_processor=processor, device="cpu"
    )
    return lambda folder: extract([str(p) for p in folder_images(folder)], pool=True, return_tensors=True)


def _imagededup(resnet: torch.nn.Module) -> dict[str, Callable[[Path], Any]]:
    from imagededup.methods import CNN
    from imagededup.utils import CustomModel

    transform = v2.Compose([TRANSFORM, v2.Normalize([0.5] * 3, [0.5] * 3)])
    ours = CNN(verbose=False, model_config=CustomModel(name="resnet50", model=resnet, transform=transform))
    small = torchvision.models.mobilenet_v3_small().eval().features
    pooled = torch.nn.Sequential(small, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    mobile = CNN(verbose=False, model_config=CustomModel(name="mobilenet", model=pooled, transform=transform))
    return {
        "imagededup, ResNet-50": lambda folder: ours.encode_images(str(folder), recursive=True),
        "imagededup, MobileNetV3-small": lambda folder: mobile.encode_images(str(folder), recursive=True),
    }


def make_large(small: list[Path], n: int, folder: Path) -> None:
    """Write `n` photos of 4000 x 3000 pixels."""
    random = np.random.default_rng(0)
    for i in range(n):
        photo = Image.new("RGB", (4000, 3000))
        for k in range(12):
            part = Image.open(small[random.integers(len(small))]).convert("RGB")
            side = min(part.size)
            part = part.resize((1000, 1000), Image.Resampling.BICUBIC, box=(0, 0, side, side))
            photo.paste(part, (k % 4 * 1000, k // 4 * 1000))
        noisy = np.asarray(photo, np.float32) + 3.7 * random.standard_normal((3000, 4000, 1), np.float32)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg", quality=90)


def used_cpu() -> float:
    """Seconds of CPU time, of this process and its children that have ended."""
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    )


def race(title: str, folder: Path, runs: dict[str, Callable[[Path], Any]], repeat: int) -> None:
    """Time the contenders in turn and print a table."""
    n = len(folder_images(folder))
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeat + 1):  # in turn, so that a noisy moment hits all; the first is the warm-up
        for name, run in runs.items():
            start, cpu = time.perf_counter(), used_cpu()
            run(folder)
            rates[name].append((n / (time.perf_counter() - start), n / (used_cpu() - cpu)))
    ours = rates["simclr-hub index"][1:]
    print(
        f"\n| {n} {title} | photos/s | ours over it | photos per core-second | ours over it |\n|---|---|---|---|---|"
    )
    for name, values in rates.items():
        cells = []
        for kind in (0, 1):
            cells.append(f"{statistics.median(v[kind] for v in values[1:]):.1f}")
            cells.append(f"{statistics.median(a[kind] / b[kind] for a, b in zip(ours, values[1:], strict=True)):.2f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def share_of_peak(model: SimCLRModel) -> None:
    """Print what part of the machine's float32 matrix products the network's arithmetic reaches, on one thread."""
    network = fast_copy(model, torch.device("cpu"), torch.float32)
    operations = 0

    def count(module: torch.nn.Module, _: Any, out: torch.Tensor) -> None:
        nonlocal operations
        if isinstance(module, torch.nn.Conv2d):
            operations += 2 * module.weight[0].numel() * out[0].numel()

    hooks = [m.register_forward_hook(count) for m in network.modules()]
    x = torch.rand(2, 3, 224, 224)
    network(x)
    for hook in hooks:
        hook.remove()
    a = np.random.default_rng(0).random((2048, 2048), dtype=np.float32)
    t, threads = torch.from_numpy(a), torch.get_num_threads()
    torch.set_num_threads(1)
    peak = 2 * 2048**3 / min(best_time(lambda: t @ t), best_time(lambda: a @ a))
    print(f"\n| model part, one thread, batch 2 ({peak / 1e9:.0f} GFLOP/s sgemm) | photos/s | share |\n|---|---|---|")
    for name in ("torch", "onnxruntime"):
        run = runner_of(model, facts_of(model, "h")[1], name)
        rate = 2 / best_time(lambda run=run: run(x.numpy()))  # type: ignore[misc]
        print(f"| {name} | {rate:.1f} | {100 * rate * operations / peak:.0f} % |")
    torch.set_num_threads(threads)


def best_time(run: Callable[[], Any], repeat: int = 15) -> float:
    """Return the least CPU time of this process for a call, in seconds."""
    times = []
    for _ in range(repeat):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return min(times)


def drift(photos: dict[str, list[Path]], resnet: SimCLRModel) -> None:
    """Print how far h moves with each way of saving time."""
    default, _ = load()
    at_224, _ = load()
    at_224.config.image_size = 224
    print("\n| photos, network | what: against | 1 - cosine of h: largest, mean | mean-centred: largest, mean |")
    print("|---|---|---|---|")
    for kind, paths in photos.items():
        networks = {"default, 64 px": default, "default, 224 px": at_224, "ResNet-50, 224 px": resnet}
        for name, model in networks.items():
            rows: dict[str, np.ndarray] = {}
            whole = [Image.open(io.BytesIO(path.read_bytes())).convert("RGB") for path in paths]
            cases: dict[str, tuple[list[Any], dict[str, Any]]] = {
                "exact": (paths, {"exact": True, "runtime": "torch"}),
                "full": (whole, {"runtime": "torch"}),
                "reduced": (paths, {"runtime": "torch"}),
                "onnx": (paths, {"runtime": "onnxruntime"}),
                "bfloat16": (paths, {"dtype": torch.bfloat16}),
            }
            for case, (sources, options) in cases.items():
                items = Embedder(model, **options).stream(sources)
                rows[case] = np.stack([item.vector for item in items]).astype(np.float64)  # type: ignore[union-attr]
            pairs = {
                "JPEG decoded reduced: the same pixels from a full decode": ("full", "reduced"),
                "all of it: `exact=True`, every pixel, PyTorch": ("exact", "onnx"),
                "ONNX Runtime: PyTorch": ("reduced", "onnx"),
                "bfloat16: float32": ("reduced", "bfloat16"),
            }
            for text, (one, other) in pairs.items():
                mean = rows[one].mean(0)
                raw, centred = distances(rows[one], rows[other]), distances(rows[one] - mean, rows[other] - mean)
                cells = [f"{d.max():.0e}, {d.mean():.0e}" for d in (raw, centred)]
                print(f"| {kind}, {name} | {text} | {' | '.join(cells)} |", flush=True)


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return 1 - cosine, row by row."""
    result: np.ndarray = 1 - (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return result


@torch.no_grad()
def random_resnet(paths: list[Path]) -> SimCLRModel:
    """Make a ResNet-50 with random weights, whose BatchNorm has seen photos."""
    torch.manual_seed(0)
    model = SimCLRModel(SimCLRConfig.v1(50)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
            # Ones in blocks' last layers would let rounding grow from block to block as in no trained network.
            torch.nn.init.constant_(module.weight, 0.5)
    model(torch.stack([Files(paths)[i] for i in range(min(len(paths), 16))]))
    fixed: SimCLRModel = model.eval()
    return fixed


def main() -> None:
    """Make the large photos, race, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--small", type=int, default=128)
    parser.add_argument("--large", type=int, default=24)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--only", choices=("speed", "drift"))
    parser.add_argument("--skip", nargs="*", default=[], help="contenders to leave out, by name")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    warnings.filterwarnings("error", message=".*is not used for this model")  # PyTorch would be measured in its place
    found = folder_images(arguments.photos)
    sample = found[:: max(1, len(found) // arguments.small)][: arguments.small]
    with tempfile.TemporaryDirectory() as scratch:
        small, large, model_dir = (Path(scratch, name) for name in ("small", "large", "model"))
        for folder in (small, large):
            folder.mkdir()
        for i, path in enumerate(sample):
            (small / f"{i}{path.suffix}").write_bytes(path.read_bytes())
        make_large(found, arguments.large, large)
        model = random_resnet(sample)
        model.save_pretrained(model_dir)
        SimCLRImageProcessor(size=224).save_pretrained(model_dir)
        if arguments.only != "drift":
            with torch.inference_mode():
                every = contenders(model, model_dir)
                runs = {name: run for name, run in every.items() if name not in arguments.skip}
                race("small photos", small, runs, arguments.repeat)
                race("photos of 12 megapixels", large, runs, arguments.repeat)
                default = {"simclr-hub index": indexing(Embedder())}
                race("small photos, default checkpoint at 64 px", small, default, arguments.repeat)
                race("photos of 12 megapixels, default checkpoint at 64 px", large, default, arguments.repeat)
            share_of_peak(model)
        if arguments.only != "speed":
            medium = Path(scratch, "medium")
            medium.mkdir()
            for path in folder_images(large):
                photo = Image.open(path).resize((1633, 1225), Image.Resampling.LANCZOS)
                photo.save(medium / path.name, quality=90)
            photos = {"12 megapixels": folder_images(large), "2 megapixels": folder_images(medium)}
            drift(photos | {"small": folder_images(small)[:64]}, model)


if __name__ == "__main__":
    main()
