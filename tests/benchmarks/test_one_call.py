"""The GPU script's CPU form: each part, and what a failing or endless one costs the others."""

import importlib.util
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "one_call.py"


def loaded():
    spec = importlib.util.spec_from_file_location("one_call", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["one_call"] = module
    spec.loader.exec_module(module)
    return module


script = loaded()


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """30 images of three colours to learn from, and 12 to test on."""
    root, random = tmp_path_factory.mktemp("cifar"), np.random.default_rng(0)
    for split, n in (("train", 30), ("test", 12)):
        for i in range(n):
            path = root / "data" / split / f"class{i % 3}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(0, 60, (32, 32, 3)) + 150 * np.eye(3, dtype=int)[i % 3]
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    script.main(["pack", str(root / "packed"), "--data", str(root / "data")])
    return root / "packed"


def part(name, tmp_path, *options):
    out = tmp_path / f"{name}.json"
    script.main(["part", name, str(out), "--small", "--compile", "none", *options])
    return json.loads(out.read_bytes())


def test_h_of_the_device_is_compared_with_the_cpus(tmp_path):
    told = part("embed", tmp_path)
    assert told["within"] and told["error_float32"] <= 1e-5 and told["photos"] == 4
    assert 1e-4 < told["error_bfloat16"] < 0.1


def test_a_drift_is_told(tmp_path, monkeypatch):
    class Drifting(script.Embedder):
        def __call__(self, images):
            return super().__call__(images) * (1 if self.runtime == "torch" else 1.01)

        def __init__(self, *args, runtime=None, **kwargs):
            self.runtime = runtime
            super().__init__(*args, runtime=runtime, **kwargs)

    monkeypatch.setattr(script, "Embedder", Drifting)
    told = part("embed", tmp_path)
    assert not told["within"] and told["error_float32"] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("backend", ["none", pytest.param("eager", marks=pytest.mark.slow)])
def test_speeds_of_views_embedding_and_training(tmp_path, backend):
    told = part("speed", tmp_path, "--compile", backend)
    assert told["views"] > 0 and told["side"] == 32
    assert ("compiled" in told) is (backend != "none")
    for name in {"eager", "compiled"} & told.keys():
        assert told[name]["embedding"] > 0 and told[name]["training"] > 0


def test_cifar10_is_trained_by_the_official_command_and_measured(tmp_path, packed):
    told = part("cifar10", tmp_path, "--packed", str(packed))
    assert told["steps"] == 4 and told["batch"] == 8 and told["peak_learning_rate"] == 2.0
    assert 0 <= told["knn"]["top-1"] <= 100 and told["linear"]["epochs"] == 1
    recipe = script.load_recipe("simclr_cifar10")["training"]
    assert recipe["learning_rate"] * 512 / 256 == 2.0 and recipe["warmup_epochs"] / recipe["num_train_epochs"] == 0.01


def test_what_is_missing_is_skipped(tmp_path):
    assert "no --packed" in part("cifar10", tmp_path)["skipped"]
    if torch.cuda.device_count() < 2:
        assert "two are needed" in part("processes", tmp_path)["skipped"]


def test_what_a_part_wrote_before_it_failed_is_kept(tmp_path, packed, monkeypatch, capsys):
    def broken(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(script, "linear", broken)
    told = part("cifar10", tmp_path, "--packed", str(packed))
    assert told["failed"] == "RuntimeError: out of memory" and told["steps"] == 4 and "knn" in told


def test_a_part_that_hangs_or_crashes_costs_the_others_nothing(tmp_path, monkeypatch, capsys):
    """The parts are stand-ins; that they are processes, and ended, is real."""
    parts = {
        "processes": "import os; os.abort()",
        "embed": "import sys, time; open(sys.argv[3], 'w').write('{\"half\": 1}'); time.sleep(60)",
        "speed": "import sys; open(sys.argv[3], 'w').write('{\"done\": 1}')",
    }
    for name, code in parts.items():
        (tmp_path / f"{name}.py").write_text(code)
    real = script.subprocess.run

    def run(command, **kwargs):
        return real([command[0], str(tmp_path / f"{command[3]}.py"), *command[2:]], **kwargs)

    monkeypatch.setattr(
        script, "subprocess", SimpleNamespace(run=run, TimeoutExpired=script.subprocess.TimeoutExpired)
    )
    monkeypatch.setattr(script, "SECONDS", {"processes": 6, "embed": 6, "speed": 6})
    monkeypatch.setattr(script, "ENDING", -8)
    script.main(["run", str(tmp_path / "out"), "--parts", *parts, "--small", "--minutes", "1"])
    found = json.loads((tmp_path / "out" / "run.json").read_text())["parts"]
    assert found["processes"]["failed"].startswith("ended with exit code")
    assert found["embed"]["failed"] == "ended after 6 seconds" and found["embed"]["half"] == 1
    assert found["speed"]["done"] == 1 and "failed" not in found["speed"]


@pytest.mark.slow
def test_the_whole_call(tmp_path, packed):
    script.main(["run", str(tmp_path), "--small", "--packed", str(packed), "--compile", "none", "--minutes", "5"])
    told = json.loads((tmp_path / "run.json").read_text())
    assert not [part for part in told["parts"].values() if "failed" in part], told
    assert told["parts"]["cifar10"]["linear"]["top-1"] >= 0 and told["seconds"] < 300
