import json
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from ship_default import exports
from tiny import SAMPLE_PHOTOS, randomized, tiny_config

from simclr_hub import Embedder, SimCLRImageProcessor, SimCLRModel, load, runtimes, torch_runtime
from simclr_hub.onnx_export import to_onnx
from simclr_hub.runtimes import SHIPPED, OnnxRunner, find_export, read_export, shipped_export
from simclr_hub.torch_runtime import TorchRunner, export_layer, facts_of, runner_of

PHOTO = SAMPLE_PHOTOS / "cat_1.jpg"
VARIANTS = [
    ({}, 64), ({}, 97), ({"sk_ratio": 0.0625}, 64), ({"sk_ratio": 0.0625}, 97), ({"se_ratio": 0.25}, 64),
    ({"stem_type": "cifar"}, 32), ({"stem_type": "small"}, 48), ({"layer_type": "basic"}, 64),
]  # fmt: skip


def tiny(**changes) -> SimCLRModel:
    torch.manual_seed(0)
    return randomized(SimCLRModel(tiny_config(**changes))).eval()


def run_of(model, layer="h"):
    run = runner_of(model, facts_of(model, layer)[1], "onnxruntime")  # warnings are errors
    assert isinstance(run, OnnxRunner)
    return run


@pytest.fixture
def folder(tiny_model, tmp_path, monkeypatch):
    """A model's folder of its own, and a cache with nothing in it."""
    monkeypatch.setattr(runtimes, "_cache", lambda: tmp_path / "cache")
    tiny_model.save_pretrained(tmp_path / "m")
    SimCLRImageProcessor(size=64).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


@pytest.fixture
def no_torch(monkeypatch):
    """Nothing is loaded by torch from now on."""

    def refuse(*_):
        raise AssertionError("loaded by torch")

    monkeypatch.setattr(torch_runtime, "load_folder", refuse)


@pytest.mark.parametrize(("changes", "size"), VARIANTS)
def test_onnxruntime_equals_the_model(changes, size):
    model = tiny(**changes, image_size=size)
    run = run_of(model)
    x = torch.rand(5, 3, size, size)
    with torch.inference_mode():
        expected = model(x).pooler_output.numpy()
    for n in (1, 3, 5):
        for alone in (False, True):
            assert np.abs(run(x[:n].numpy(), alone=alone) - expected[:n]).max() / np.abs(expected).max() < 1e-6
    one_picture = run(x[:1].expand(2, -1, -1, -1).contiguous(memory_format=torch.channels_last).numpy())
    assert np.abs(one_picture - expected[:1]).max() / np.abs(expected).max() < 1e-6


@pytest.mark.parametrize("j", [1, 2, 3])
def test_onnxruntime_gives_the_layers_of_g(j):
    model = tiny(projection_layers=3)
    run = run_of(model, f"g{j}")
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x, output_projections=True).projections[j - 1].numpy()
    assert np.abs(run(x.numpy()) - expected).max() / np.abs(expected).max() < 2e-6


def test_the_weights_are_not_in_the_graph_and_only_what_is_needed_is_named(tiny_model):
    facts = facts_of(tiny_model, "h")[1]
    export, weights = export_layer(tiny_model, facts)
    assert len(export.graph) < 30_000 and set(export.used) <= weights.keys() == export.shapes.keys()
    assert not any("projection.layers" in name for name in export.used) and 0 < export.drift < 1e-6


def test_an_unknown_function_and_a_constant_are_named():
    x = torch.zeros(2, 3, 8, 8)
    with pytest.raises(NotImplementedError, match="erfinv"):
        to_onnx(lambda x: x.mean((2, 3)).erfinv(), {}, x)
    one = torch.ones(1)
    with pytest.raises(NotImplementedError, match="constant"):
        to_onnx(lambda x: x + one, {}, x)


def test_networks_run_while_another_is_exported(tiny_model):
    """Nothing is changed for other threads."""
    facts = facts_of(tiny_model, "h")[1]
    x = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        expected = tiny_model(x).pooler_output
    done = threading.Event()

    def keep_running():
        while not done.is_set():
            with torch.inference_mode():
                assert torch.equal(tiny_model(x).pooler_output, expected)
        return True

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(keep_running) for _ in range(2)]
        graphs = {export_layer(tiny_model, facts)[0].graph for _ in range(3)}
        done.set()
        assert len(graphs) == 1 and all(run.result() for run in runs)


@pytest.mark.parametrize(("error", "used"), [(5e-6, True), (1e-4, False), (float("nan"), False)])
def test_what_drifts_is_not_used(folder, monkeypatch, error, used):
    run = OnnxRunner.__call__

    def drifting(self, pixels, *, alone=False):
        vectors = run(self, pixels)
        return vectors + np.float32(error * np.abs(vectors).max())

    monkeypatch.setattr(OnnxRunner, "__call__", drifting)
    if used:
        assert isinstance(Embedder(folder)._run, OnnxRunner)
        return
    with pytest.warns(RuntimeWarning, match="onnxruntime is not used.*differ by"):
        assert isinstance(Embedder(folder)._run, TorchRunner)
    assert isinstance(Embedder(folder)._run, TorchRunner)  # it is known by now
    with pytest.warns(RuntimeWarning, match="onnxruntime is not used"):
        Embedder(folder, runtime="onnxruntime")


def test_what_cannot_be_exported_is_not_used(folder, monkeypatch):
    def broken(*_):
        raise OSError("no such\nlibrary")

    monkeypatch.setattr(torch_runtime, "to_onnx", broken)
    with pytest.warns(RuntimeWarning, match="PyTorch: OSError: no such library"):
        assert Embedder(folder)(PHOTO).shape == (1, 256)


def test_what_cannot_run_is_refused(tiny_model):
    with pytest.raises(ValueError, match="'tpu' is not one of torch, onnxruntime, compile"):
        Embedder(tiny_model, runtime="tpu")
    with pytest.raises(ValueError, match="float32 on the CPU, not bfloat16 on cpu"):
        Embedder(tiny_model, runtime="onnxruntime", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match="dtype=int8 is not one of float32"):
        Embedder(tiny_model, dtype="int8")


def test_what_runs_the_model_by_default(folder, tiny_model):
    settings = [{}, {"exact": True}, {"dtype": torch.bfloat16}, {"runtime": "torch"}]
    assert [type(Embedder(folder, **one)._run) for one in settings] == [
        OnnxRunner,
        TorchRunner,
        TorchRunner,
        TorchRunner,
    ]
    assert isinstance(Embedder(tiny_model)._run, TorchRunner)
    SimCLRImageProcessor(size=64, exact=True).save_pretrained(folder)
    assert isinstance(Embedder(folder)._run, TorchRunner) and isinstance(
        Embedder(folder, exact=False)._run, OnnxRunner
    )


# Exports that were kept


@pytest.mark.parametrize("layer", ["h", "h+stage3", "z"])
def test_the_second_embedder_needs_no_torch(folder, layer, request):
    first = Embedder(folder, layer=layer)
    request.getfixturevalue("no_torch")
    second = Embedder(folder, layer=layer)
    assert second.fingerprint == first.fingerprint and np.array_equal(second(PHOTO), first(PHOTO))
    assert (second.dim, second.width_of_h) == (first.dim, first.width_of_h)
    with pytest.raises(AssertionError, match="loaded by torch"):
        Embedder(folder, layer="g1")


def test_a_classifier_s_folder_and_another_place_are_the_same_model(folder, tmp_path, tiny_model, request):
    Embedder(folder)
    shutil.move(folder, tmp_path / "moved")
    request.getfixturevalue("no_torch")
    assert isinstance(Embedder(tmp_path / "moved")._run, OnnxRunner)
    weights = load_file(tmp_path / "moved" / "model.safetensors")
    save_file({f"simclr.{name}": value for name, value in weights.items()}, tmp_path / "moved" / "model.safetensors")
    assert isinstance(Embedder(tmp_path / "moved")._run, OnnxRunner)


def changed_weights(folder, kept):
    weights = load_file(folder / "model.safetensors")
    weights["encoder.stem.layers.0.convolution.weight"][0, 0, 0, 0] += 1
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def changed_config(folder, kept):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"batch_norm_eps": 1e-3}))


def changed_processor(folder, kept):
    SimCLRImageProcessor(size=48).save_pretrained(folder)


def changed_export(folder, kept):
    kept.write_text(kept.read_text().replace('"crop": 0.875', '"crop": 0.775'))


def cut_export(folder, kept):
    kept.write_bytes(kept.read_bytes()[:-100])


def foreign_export(folder, kept):
    kept.write_text('{"sha256": 1, "export": []}')


def old_export(folder, kept):
    about = json.loads(kept.read_text())["export"] | {"format": 0}
    kept.write_text(json.dumps({"sha256": runtimes._checksum(about), "export": about}))


@pytest.mark.parametrize(
    "change",
    [changed_weights, changed_config, changed_processor, changed_export, cut_export, foreign_export, old_export],
)
def test_what_does_not_fit_is_made_anew(folder, tmp_path, change):
    Embedder(folder)
    (kept,) = (tmp_path / "cache").iterdir()
    change(folder, kept)
    assert find_export(folder, "h") is None
    embedder = Embedder(folder)
    assert find_export(folder, "h") is not None
    plain = Embedder(folder, runtime="torch")
    assert embedder.fingerprint == plain.fingerprint
    np.testing.assert_allclose(embedder(PHOTO), plain(PHOTO), rtol=1e-5, atol=1e-5)


def test_a_model_s_own_folder_supplies_no_export(folder, tmp_path):
    Embedder(folder)
    for kept in (tmp_path / "cache").iterdir():
        shutil.move(kept, folder / "onnx-h.json")
    assert find_export(folder, "h") is None


def test_a_cache_that_cannot_be_written_costs_only_time(folder, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert isinstance(Embedder(folder)._run, OnnxRunner) and find_export(folder, "h") is None


@pytest.mark.parametrize("layer", SHIPPED)
def test_the_default_checkpoint_s_exports_are_current(layer):
    """If not, run scripts/ship_default.py."""
    shipped, made = read_export(shipped_export(layer)), exports()[layer]
    assert (shipped.facts, shipped.shapes, shipped.used) == (made.facts, made.shapes, made.used)
    assert shipped.graph == made.graph and shipped.drift == pytest.approx(made.drift, abs=1e-6)
    assert find_export(runtimes.DEFAULT_FOLDER, layer) is not None


def test_the_default_checkpoint_equals_torch(no_torch, monkeypatch):
    light = Embedder()
    monkeypatch.undo()
    heavy = Embedder(runtime="torch")
    assert isinstance(light._run, OnnxRunner) and light.fingerprint == heavy.fingerprint
    photos = sorted(SAMPLE_PHOTOS.glob("*.jpg"))[:9]
    np.testing.assert_allclose(light(photos), heavy(photos), rtol=1e-5, atol=1e-5)
    assert load()[0].config.hidden_size == light.dim


def test_a_forked_process_goes_on():
    """Of one that never imported torch, whose own threads are another matter."""
    code = """
import os, sys, numpy as np
from simclr_hub import Embedder
embedder = Embedder(workers=2)
expected = embedder(sys.argv[1])
assert "torch" not in sys.modules
if not (child := os.fork()):
    os._exit(0 if np.array_equal(embedder(sys.argv[1]), expected) else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    subprocess.run([sys.executable, "-c", code, PHOTO], check=True, timeout=60)


def test_threads_are_those_of_torch_or_of_the_environment(monkeypatch):
    assert runtimes.cores() == torch.get_num_threads()
    monkeypatch.delitem(sys.modules, "torch")
    for value, expected in (("3", 3), ("", None), ("many", None), ("0", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", value)
        assert runtimes.cores() == expected or (expected is None and runtimes.cores() == len(os.sched_getaffinity(0)))


def test_streams_side_by_side_compile_once(tiny_model, monkeypatch):
    compiled = []

    def compile(self):
        compiled.append(self)
        time.sleep(0.2)
        return self._plain

    monkeypatch.setattr(torch_runtime.CompiledRunner, "_compile", compile)
    embedder = Embedder(tiny_model, runtime="compile")
    images = [np.zeros((80, 80, 3), np.uint8)] * 3
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(lambda: list(embedder.stream(images))) for _ in range(3)]
        assert [len(run.result()) for run in runs] == [3] * 3
    assert len(compiled) == 1 and pickle.loads(pickle.dumps(embedder))._run._compiled is None


@pytest.mark.slow
def test_compiled_pytorch_equals_plain(tiny_model):
    images = list(np.random.default_rng(0).integers(0, 256, (5, 80, 80, 3), dtype=np.uint8))
    rows = {
        name: [item.vector for item in Embedder(tiny_model, runtime=name, batch_size=2).stream(images)]
        for name in ("torch", "compile")
    }
    np.testing.assert_allclose(rows["compile"], rows["torch"], rtol=1e-5, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("runtime", ["torch", "compile"])
def test_a_gpu_gives_the_vectors_of_the_cpu(tiny_model, dtype, runtime):
    images = list(np.random.default_rng(0).integers(0, 256, (70, 300, 300, 3), dtype=np.uint8))
    expected = np.stack([item.vector for item in Embedder(tiny_model, device="cpu").stream(images)])
    embedder = Embedder(tiny_model, device="cuda", dtype=dtype, runtime=runtime)
    rows = np.stack([item.vector for item in embedder.stream(images)])
    limit = 5e-3 if dtype == torch.float32 else 5e-2  # float32 convolutions may use TF32
    assert np.abs(rows - expected).max() / np.abs(expected).max() < limit
