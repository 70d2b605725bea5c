"""The GPU script's CPU form: packing, a few steps, what it leaves; and its clock."""

import functools
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from simclr_hub import embed, load
from simclr_hub.training.augmentations import Views
from simclr_hub.training.losses import multi_view_loss
from simclr_hub.whitening import Whitening

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "default_checkpoint.py"
SMALL = ["model.width_multiplier=0.125", "model.depths=[1,1]", "views.size=16", "views.sizes=[{from: 0.5, size: 24}]"]


def loaded():
    spec = importlib.util.spec_from_file_location("default_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["default_checkpoint"] = module
    spec.loader.exec_module(module)
    return module


script = loaded()


class Clock:
    """Time that passes as it is told, and by `each` at a look."""

    def __init__(self, each=0.0):
        self.now, self.each = 0.0, each

    def __call__(self):
        self.now += self.each
        return self.now


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """48 training images of two folders, 12 for validation and 12 photos, of three colours with noise."""
    root = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for folder, split, n in (("a", "train", 24), ("a", "validation", 12), ("b", "", 24), ("photos", "", 12)):
        for i in range(n):
            path = root / folder / split / f"class{i % 3}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 90, (64, 64, 3)) + 50 * np.eye(3, dtype=int)[i % 3] * 3
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(root / "cache"))
        datasets.disable_progress_bars()
        script.main(
            [
                "pack",
                str(root / "packed"),
                "--train",
                str(root / "a"),
                str(root / "b"),
                "--validation",
                str(root / "a"),
            ]
            + ["--photos", str(root / "photos"), "--shard-mb", "0.2"]
        )
    return root / "packed"


def test_a_packing_gives_every_image_back_from_shards_below_the_limit(packed):
    shards = sorted(packed.glob("train-*"))
    assert len(shards) > 2 and all(path.stat().st_size < 210_000 for path in shards)
    files, labels = script.unpack(packed, "train")
    assert len(files) == 48 and labels.bincount().tolist() == [16, 16, 16]
    images = script.decoded(packed, "train", 64)
    assert images.pixels.shape == (48, 3, 64, 64) and images.pixels.dtype == torch.uint8
    for i in (0, 47):  # its class is the brightest channel
        assert images.image(i).float().mean((1, 2)).argmax() == labels[i]
    assert script.decoded(packed, "train", 32).pixels.shape == (48, 3, 32, 32)


def test_a_missing_shard_is_told(packed, tmp_path):
    for path in packed.glob("train-[13]-*"):
        (tmp_path / path.name).symlink_to(path)
    with pytest.raises(FileNotFoundError, match="missing .*train-2-of-3.npz"):
        script.unpack(tmp_path, "train")
    with pytest.raises(FileNotFoundError, match="missing .*photos-1"):
        script.unpack(tmp_path, "photos")
    (tmp_path / "train-1-of-2.npz").write_bytes(b"of another packing")
    with pytest.raises(FileNotFoundError, match="not all of one packing"):
        script.unpack(tmp_path, "train")


def run(packed, out, *options):
    settings = [option for option in options if "=" in option]
    options = [option for option in options if "=" not in option]
    script.main(
        ["train", str(packed), str(out), "--device", "cpu", "--batch", "16", *options, "--set", *SMALL, *settings]
    )
    return json.loads((out / "run.json").read_text())


@pytest.mark.parametrize("settings", [(), ("loss=dcl", "views.count=2")])
def test_a_few_steps_leave_a_checkpoint_with_its_whitening_and_numbers(packed, tmp_path, settings, capsys):
    told = run(packed, tmp_path, "--steps", "6", "--compile", "none", *settings)
    assert told["steps"] == 6 and told["epochs"] == 2 and not told["compiled"]
    assert list(told["seconds_of_one"]) == ["16", "24"]
    assert told["batch"] == 16 and told["images"] == 48 and told["images_per_second"] > 0
    assert told["peak_learning_rate"] == pytest.approx(1.2 * (16 / 128) ** 0.5)
    assert told["ema_decay"] == pytest.approx(0.999 ** (16 / 128))
    assert told["checkpoint_bytes"] < 16e6
    model, processor = load(tmp_path / "checkpoint")
    assert processor.size["height"] == 64
    start = script.Learner(script.load_recipe("tiny_imagenet_default", tuple(SMALL)), 16, torch.device("cpu"), "none")
    moved = [not torch.equal(a, b) for a, b in zip(start.model.parameters(), model.parameters(), strict=True)]
    assert all(moved)
    photos, labels = script.unpack(packed, "photos")
    h = embed(photos, model=tmp_path / "checkpoint", exact=True)
    whitened = Whitening.load(tmp_path / "checkpoint" / "whitening.safetensors").apply(h)
    for name, vectors in (("raw", h), ("whitened", whitened)):
        expected = 100 * float(script.precision_at(torch.from_numpy(vectors), labels, 5).mean())
        assert told["results"][name]["p_at_5"] == pytest.approx(expected)
        assert 0 <= told["results"][name]["knn_48"] <= 100
    assert '"steps": 6' in capsys.readouterr().out


@pytest.mark.parametrize("loss", ["nt_xent", "dcl"])
def test_a_steps_loss_is_the_recipes_and_a_rate_of_0_learns_nothing(loss):
    recipe = script.load_recipe("tiny_imagenet_default", (*SMALL, f"loss={loss}", "temperature=0.3"))
    learner = script.Learner(recipe, 8, torch.device("cpu"), "none")
    before = [p.clone() for p in learner.model.parameters()]
    pixels = torch.rand(4 * 8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        z = learner.embed(pixels).float().view(4, 8, -1)
    expected = multi_view_loss(z, 0.3, decoupled=loss == "dcl")
    assert float(learner.step(pixels, 0.0)) == pytest.approx(float(expected), rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, learner.model.parameters(), strict=True))


@pytest.mark.slow
def test_two_runs_of_one_seed_are_equal(packed, tmp_path):
    runs = [run(packed, tmp_path / name, "--steps", "3", "--compile", "none") for name in "ab"]
    assert runs[0]["log"][-1]["loss"] == runs[1]["log"][-1]["loss"]


def test_with_a_deadline_the_schedule_is_run_to_its_end(packed, monkeypatch):
    clock = Clock(each=0.02)  # a step's, whatever the machine does
    monkeypatch.setattr(script, "Progress", functools.partial(script.Progress, clock=clock))
    timed = {"step": 0.02, "views": 0.01}
    monkeypatch.setattr(script.Learner, "warm_up", lambda *_: {16: dict(timed), 24: dict(timed)})
    recipe = script.load_recipe("tiny_imagenet_default", tuple(SMALL))
    images = script.decoded(packed, "train", 64).pixels
    learner = script.Learner(recipe, 16, torch.device("cpu"), "none")
    told = learner.run(images, Views(**recipe["views"]), 16, None, 1.0).told
    last = told["log"][-1]
    assert 40 <= told["steps"] <= 51 and clock.now == pytest.approx(1, abs=0.05)
    assert last["share"] == 1 and last["size"] == 24 and last["rate"] < 0.05 * told["peak_learning_rate"]


@pytest.mark.slow
@pytest.mark.timeout(900)  # a compiler on a busy machine
def test_compiled_it_learns_the_same(packed, tmp_path):
    small = ("model.depths=[1]", "views.sizes=[]")
    told = [run(packed, tmp_path / b, "--steps", "3", "--compile", b, *small) for b in ("none", "inductor")]
    assert [run["compiled"] for run in told] == [False, True]
    losses = [run["log"][-1]["loss"] for run in told]
    assert losses == pytest.approx([losses[0]] * 2, rel=1e-2)  # bfloat16


def test_what_cannot_be_compiled_is_trained_as_it_is(packed, tmp_path, monkeypatch):
    def refuse(graph, inputs):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda f, **_: lambda x: refuse(f, x))
    with pytest.warns(UserWarning, match="not compiled: RuntimeError: no compiler"):
        assert not run(packed, tmp_path, "--steps", "2")["compiled"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--batch", "49"), "--batch 49: there are 48 training images"),
        (("memory=64",), "memory: not for this script"),
        (("warmup_steps=100",), "warmup_steps=100 must be a share"),
        (("learning_rte=1",), "learning_rte"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(packed, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit):
        run(packed, tmp_path, "--steps", "1", "--compile", "none", *options)
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    ("timed", "low", "high"),
    # What the steps take, and what was timed before the run: right, or wrong by half and by double.
    [({32: 0.05, 48: 0.1}, 0.69, 0.71), ({32: 0.025, 48: 0.2}, 0.5, 0.8)],
)
def test_a_run_by_the_clock_ends_on_its_deadline_with_its_sizes_share_of_steps(timed, low, high):
    views, clock = Views(32, sizes=[{"from": 0.7, "size": 48}]), Clock()
    progress = script.Progress(views, None, 100.0, timed, clock)
    steps = {32: 0, 48: 0}
    while progress.share < 1:
        size = views.at(progress.share).size
        clock.now += {32: 0.05, 48: 0.1}[size]
        steps[size] += 1
        progress.step()
    assert clock.now == pytest.approx(100, abs=0.2)
    assert low < steps[32] / progress.done < high


def test_batches_go_round_all_images_and_change_size_when_it_is_time():
    images = torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1).expand(10, 3, 8, 8).contiguous() * 20
    views = Views(8, sizes=[{"from": 0.5, "size": 12}], operations=["resize"], resample="bilinear")
    torch.manual_seed(0)
    producer = script.Producer(images, views, 5)
    epochs = [torch.cat([producer.next(0.0)[:5, 0, 0, 0] for _ in range(2)]) for _ in range(2)]
    for seen in epochs:
        assert sorted((seen * 255 / 20).round().int().tolist()) == list(range(10))
    assert epochs[0].tolist() != epochs[1].tolist()
    sizes = [producer.next(0.6).shape[-1] for _ in range(script.AHEAD + 2)]
    producer.close()
    assert sizes[0] == 8 and sizes[-1] == 12


@pytest.mark.slow
def test_it_runs_without_the_package_installed_and_without_what_a_gpu_machine_lacks(packed, tmp_path):
    code = f"""
import runpy, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
for name in ("faiss", "datasets", "pyarrow", "google_crc32c", "onnxruntime", "pillow_heif", "rawpy"):
    sys.modules[name] = None
sys.argv = [{str(SCRIPT)!r}, "train", {str(packed)!r}, {str(tmp_path / "out")!r}, "--device", "cpu", "--batch", "16",
            "--steps", "1", "--compile", "none", "--set", *{SMALL!r}]
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment, capture_output=True)
    assert json.loads((tmp_path / "out" / "run.json").read_text())["steps"] == 1
