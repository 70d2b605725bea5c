"""The model equals the official inference graph; where no official numbers exist, formulas written out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from official_graph import OfficialGraph
from tiny import randomized, tiny_config

from simclr_hub import SimCLRConfig, SimCLRForImageClassification, SimCLRModel
from simclr_hub.checkpoints.convert import convert
from simclr_hub.checkpoints.tf_bundle import TFBundle

OFFICIAL = Path(__file__).parent / "data" / "official"
CASES = [
    ("cifar_basic_head2", 32),
    ("v1_sk0_nohead", 64),
    ("v1_sk0_nohead", 97),
    ("v2_sk1_head3", 64),
    ("v2_sk1_head3", 97),
]
# Encoder parameters in millions, as published: v2's Table 1 counts BatchNorm's moving statistics, v1's 375.4 does not.
PUBLISHED_SIZES = [  # depth, width, selective kernels; v1's 1x and 2x are the first and third
    *((50, w, sk, m) for w, sk, m in ((1, False, 24), (1, True, 35), (2, False, 94), (2, True, 140))),
    *((101, w, sk, m) for w, sk, m in ((1, False, 43), (1, True, 65), (2, False, 170), (2, True, 257))),
    *(
        (152, w, sk, m)
        for w, sk, m in ((1, False, 58), (1, True, 89), (2, False, 233), (2, True, 354), (3, True, 795))
    ),
    (50, 4, False, 375.4),
]


def relative(ours, reference):
    """The largest difference over the largest reference value."""
    ours, reference = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x) for x in (ours, reference))
    assert ours.shape == reference.shape
    return np.abs(ours - reference).max() / np.abs(reference).max()


def endpoints(model, x):
    """Everything that the official graph names, from a SimCLRForImageClassification; maps as they are."""
    initial = []
    hook = model.simclr.encoder.stem.layers[-1].convolution.register_forward_hook(lambda *a: initial.append(a[-1]))
    with torch.no_grad():
        out = model.simclr(x, output_hidden_states=True, output_projections=True)
        hook.remove()
        logits = model(x).logits
    groups = {f"block_group{i}": m for i, m in enumerate(out.hidden_states) if i}
    heads = {f"proj_{j}": z for j, z in enumerate(out.projections, 1)}
    named = {"h": out.pooler_output, "logits": logits, "initial_max_pool": out.hidden_states[0], **groups, **heads}
    return named | {"initial_conv": initial[0]}


def official_numbers(case, size):
    data = np.load(OFFICIAL / case / "expected.npz")
    x = torch.from_numpy(data[f"images_{size}"]).permute(0, 3, 1, 2).float() / 255
    names = [key.removesuffix(f"_{size}") for key in data if key.endswith(f"_{size}") and "images" not in key]
    return x, {name: data[f"{name}_{size}"] for name in names}


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    root = tmp_path_factory.mktemp("converted")
    for case in {case for case, _ in CASES}:
        convert(OFFICIAL / case, root / case)
    convert(OFFICIAL / "v2_sk1_head3", root / "ema", ema=True)
    convert(OFFICIAL / "v2_sk1_head3", root / "on_out_0", classifier_layer=1)
    return root


def load(path):
    return SimCLRForImageClassification.from_pretrained(path).eval()


@pytest.mark.parametrize(("case", "size"), CASES)
def test_every_endpoint_equals_the_official_codes(converted, case, size):
    x, expected = official_numbers(case, size)
    ours = endpoints(load(converted / case), x)
    assert ours.keys() == expected.keys()
    errors = {
        name: relative(ours[name].mean((2, 3)) if ours[name].ndim == 4 else ours[name], value)
        for name, value in expected.items()
    }
    assert max(errors.values()) < 1e-5, errors


@pytest.mark.parametrize(("case", "size"), CASES)
def test_the_tests_own_graph_is_the_official_one_too(converted, case, size):
    x, expected = official_numbers(case, size)
    bundle = TFBundle(OFFICIAL / case)
    variables = {name: bundle.read(name) for name in bundle.shapes}
    config = SimCLRConfig.from_pretrained(converted / case)
    graph = OfficialGraph(config, variables, num_classes=config.num_labels)
    for name, value in graph(x).items():
        assert relative(value.mean((2, 3)) if value.ndim == 4 else value, expected[name]) < 5e-6, name
    assert graph.shapes == {
        name: shape
        for name, shape in bundle.shapes.items()
        if name.startswith(("base_model/", "head_")) and not name.endswith("/Momentum")
    }


@pytest.mark.parametrize("size", [64, 97])
def test_a_classifier_on_the_first_layer_of_g(converted, size):
    x, expected = official_numbers("v2_sk1_head3", size)
    bundle = TFBundle(OFFICIAL / "v2_sk1_head3")
    kernel, bias = (bundle.read(f"head_supervised/linear_layer/dense/{name}") for name in ("kernel", "bias"))
    model = load(converted / "on_out_0")
    assert model.config.classifier_layer == 1
    with torch.no_grad():
        logits = model(x).logits
    assert relative(logits, expected["proj_1"] @ kernel + bias) < 1e-5
    assert relative(logits, expected["logits"]) > 0.1


def test_the_averaged_weights(converted):
    x, expected = official_numbers("v2_sk1_head3", 64)
    bundle = TFBundle(OFFICIAL / "v2_sk1_head3")
    model = load(converted / "ema")
    ours = endpoints(model, x)
    assert all(relative(ours[name], expected[name]) > 0.1 for name in ("h", "proj_3", "logits"))
    averaged = {n.removeprefix("ema_model/"): bundle.read(n) for n in bundle.shapes if n.startswith("ema_model/")}
    classifier = {n: bundle.read(n) for n in bundle.shapes if n.startswith("head_supervised/")}
    graph = OfficialGraph(model.config, averaged | classifier, num_classes=model.config.num_labels)
    for name, value in graph(x).items():
        assert relative(ours[name], value) < 1e-5, name
    first = averaged["base_model/conv2d/kernel"].transpose(3, 2, 0, 1)
    assert np.array_equal(model.simclr.encoder.stem.layers[0].convolution.weight.detach(), first)
    assert sum(array.size for array in averaged.values()) == sum(
        t.numel() for name, t in model.simclr.state_dict().items() if not name.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize("depth, width, selective, millions", PUBLISHED_SIZES)
def test_encoders_have_the_published_sizes(depth, width, selective, millions):
    with torch.device("meta"):
        model = SimCLRModel(SimCLRConfig.v2(depth, width, selective, projection_layers=0))
    if width == 4:
        assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions
    else:
        counted = sum(t.numel() for n, t in model.state_dict().items() if not n.endswith("num_batches_tracked"))
        assert round(counted / 1e6) == millions


@pytest.mark.slow
def test_the_largest_model_runs():
    with torch.no_grad():
        torch.manual_seed(0)
        model = SimCLRModel(
            SimCLRConfig.v2(152, width_multiplier=3, selective_kernel=True, projection_layers=0)
        ).eval()
        h = model(torch.rand(1, 3, 224, 224)).pooler_output
    assert h.shape == (1, 6144) and h.isfinite().all() and h.std() > 0


def test_in_training_batchnorm_uses_the_batch_and_moves_its_statistics():
    torch.manual_seed(0)
    model = randomized(SimCLRModel(tiny_config(projection_layers=2))).train()
    layer = model.encoder.stem.layers[0]
    norm, x = layer.normalization, torch.rand(4, 3, 16, 16)
    with torch.no_grad():
        y = torch.nn.functional.conv2d(x, layer.convolution.weight, stride=2, padding=3)  # (B, C, H, W)
        n, c = y.numel() / y.shape[1], (1, -1, 1, 1)
        mean = y.mean((0, 2, 3))
        biased = ((y - mean.view(c)) ** 2).mean((0, 2, 3))
        expected = (y - mean.view(c)) / (biased.view(c) + 1e-5).sqrt() * norm.weight.view(c) + norm.bias.view(c)
        moved_mean = 0.9 * norm.running_mean + 0.1 * mean
        # TensorFlow moves towards the biased variance, PyTorch towards n/(n-1) of it.
        moved_variance = 0.9 * norm.running_var + 0.1 * biased * n / (n - 1)
        torch.testing.assert_close(layer(x), expected.clamp(min=0))
        torch.testing.assert_close(norm.running_mean, moved_mean)
        torch.testing.assert_close(norm.running_var, moved_variance)


def test_in_training_the_head_uses_the_batch_and_its_last_layer_has_no_beta():
    torch.manual_seed(0)
    model = randomized(SimCLRModel(tiny_config(projection_layers=3))).train()
    x = h = torch.rand(6, 256)
    with torch.no_grad():
        outputs = model.projection(h)
        for j, (layer, output) in enumerate(zip(model.projection.layers, outputs, strict=True)):
            y = x @ layer.dense.weight.T
            x = (y - y.mean(0)) / (y.var(0, correction=0) + 1e-5).sqrt() * layer.normalization.weight
            if j < 2:
                x = (x + layer.normalization.bias).clamp(min=0)
            torch.testing.assert_close(output, x, rtol=1e-4, atol=1e-5)
    assert "projection.layers.2.normalization.bias" not in model.state_dict()
    torch.testing.assert_close(outputs[-1].mean(0), torch.zeros(128), rtol=0, atol=1e-6)
