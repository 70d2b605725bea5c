import threading
import time

import numpy as np
import pytest
import torch
from tiny import randomized, tiny_config

from simclr_hub import Embedder, SimCLRModel, runtimes
from simclr_hub.errors import MissingExtraError
from simclr_hub.fast import Layer, fast_copy
from simclr_hub.onnx_export import to_onnx

CPU, FLOAT = torch.device("cpu"), torch.float32
VARIANTS = [
    ({}, 64), ({}, 97), ({"sk_ratio": 0.0625}, 64), ({"sk_ratio": 0.0625}, 97), ({"se_ratio": 0.25}, 64),
    ({"stem_type": "cifar"}, 32), ({"stem_type": "small"}, 48), ({"layer_type": "basic"}, 64),
]  # fmt: skip


def layer_of(model, projection=0):
    return Layer(fast_copy(model, CPU, FLOAT), projection)


@pytest.fixture(scope="module")
def layer(tiny_model):
    return layer_of(tiny_model)


@pytest.mark.parametrize(("changes", "size"), VARIANTS)
def test_onnxruntime_equals_the_model(changes, size):
    torch.manual_seed(0)
    model = randomized(SimCLRModel(tiny_config(**changes))).eval()
    run = runtimes.build("onnxruntime", layer_of(model), size, 4, CPU, FLOAT)  # warnings are errors
    x = torch.rand(5, 3, size, size)
    with torch.inference_mode():
        expected = model(x).pooler_output.numpy()
    for n in (1, 3, 5):
        assert np.abs(run(x[:n]) - expected[:n]).max() / np.abs(expected).max() < 1e-6
    one_picture = run(x[:1].expand(2, -1, -1, -1).contiguous(memory_format=torch.channels_last))
    assert np.abs(one_picture - expected[:1]).max() / np.abs(expected).max() < 1e-6


@pytest.mark.parametrize("projection", [1, 2, 3])
def test_onnxruntime_gives_the_layers_of_g(projection):
    torch.manual_seed(0)
    model = randomized(SimCLRModel(tiny_config(projection_layers=3))).eval()
    run = runtimes.build("onnxruntime", layer_of(model, projection), 64, 4, CPU, FLOAT)
    x = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model(x, output_projections=True).projections[projection - 1].numpy()
    assert np.abs(run(x) - expected).max() / np.abs(expected).max() < 2e-6


def test_the_weights_are_not_in_the_file_and_only_what_is_needed_is_kept(layer):
    file, weights = to_onnx(layer, torch.zeros(2, 3, 64, 64))
    assert len(file) < 20_000 and weights and not any("projection_layers" in name for name in weights)


def test_an_unknown_operator_is_named():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3)).erfinv()

    with pytest.raises(NotImplementedError, match="erfinv"):
        to_onnx(Odd(), torch.zeros(2, 3, 8, 8))


@pytest.mark.parametrize(("error", "used"), [(5e-6, True), (1e-4, False), (float("nan"), False)])
def test_what_drifts_is_not_used(layer, monkeypatch, error, used):
    plain = runtimes.torch_runner(layer, CPU, FLOAT)
    top = np.abs(plain(runtimes._probe(64))).max()
    monkeypatch.setattr(runtimes, "_onnxruntime", lambda *_: lambda x: plain(x) + np.float32(error * top))
    x = torch.rand(1, 3, 64, 64)
    if used:
        assert not np.array_equal(runtimes.build("onnxruntime", layer, 64, 2, CPU, FLOAT)(x), plain(x))
    else:
        with pytest.warns(RuntimeWarning, match="onnxruntime is not used.*differ by"):
            run = runtimes.build("onnxruntime", layer, 64, 2, CPU, FLOAT)
        assert np.array_equal(run(x), plain(x))


def test_what_cannot_be_built_is_not_used(layer, monkeypatch):
    def broken(*_):
        raise OSError("no such\nlibrary")

    monkeypatch.setattr(runtimes, "_onnxruntime", broken)
    with pytest.warns(RuntimeWarning, match="PyTorch: OSError: no such library"):
        run = runtimes.build("onnxruntime", layer, 64, 2, CPU, FLOAT)
    assert run(torch.rand(2, 3, 64, 64)).shape == (2, 256)


def test_what_cannot_run_is_refused(tiny_model, monkeypatch):
    with pytest.raises(ValueError, match="'tpu' is not one of torch, onnxruntime, compile"):
        Embedder(tiny_model, runtime="tpu")
    with pytest.raises(ValueError, match="float32 on the CPU, not torch.bfloat16 on cpu"):
        Embedder(tiny_model, runtime="onnxruntime", dtype=torch.bfloat16)
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"simclr-hub\[fast\]"):
        Embedder(tiny_model, runtime="onnxruntime")
    assert len(list(Embedder(tiny_model).stream([np.zeros((80, 80, 3), np.uint8)] * 3))) == 3


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


def test_nothing_runs_while_a_network_is_traced(layer, monkeypatch):
    tracing, overlaps, done = threading.Event(), [], threading.Event()
    trace = runtimes.to_onnx

    def slow(*args):
        tracing.set()
        time.sleep(0.05)
        try:
            return trace(*args)
        finally:
            tracing.clear()

    class Watched(torch.nn.Module):
        def forward(self, pixels):
            overlaps.append(tracing.is_set())
            time.sleep(0.001)
            overlaps.append(tracing.is_set())
            return pixels.flatten(1)

    monkeypatch.setattr(runtimes, "to_onnx", slow)
    run = runtimes.torch_runner(Watched(), CPU, FLOAT)

    def keep_running():
        while not done.is_set():
            run(torch.zeros(1, 3, 2, 2))

    thread = threading.Thread(target=keep_running)
    thread.start()
    try:
        runtimes.build("onnxruntime", layer, 32, 2, CPU, FLOAT)
    finally:
        done.set()
        thread.join()
    assert overlaps and not any(overlaps)
