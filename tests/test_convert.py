"""An official checkpoint becomes a loadable directory, or nothing at all with an error that says why."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tf_writer
import torch
from huggingface_hub.errors import StrictDataclassError
from official_graph import OfficialGraph
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_official import PUBLISHED_SIZES, relative
from tiny import tiny_config

from simclr_hub import SimCLRBackbone, SimCLRConfig, SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel
from simclr_hub.checkpoints.convert import convert, infer_config
from simclr_hub.errors import CheckpointError

OFFICIAL = Path(__file__).parent / "data" / "official"
# What the official code can build and the official fixtures do not cover.
VARIANTS = {
    "none": tiny_config(projection_layers=0),
    "linear": tiny_config(projection_type="linear", projection_layers=1, projection_dim=24),
    "four layers": tiny_config(projection_layers=4, projection_dim=8),
    "excitation": tiny_config(se_ratio=0.25, depths=(2, 1, 1, 1)),
    "excitation, least width": tiny_config(se_ratio=0.01),
    "excitation, basic": tiny_config(se_ratio=0.25, layer_type="basic", depths=(1, 2, 1, 1)),
    "excitation, selective": tiny_config(se_ratio=0.5, sk_ratio=0.0625, projection_layers=3),
    "selective, other ratio": tiny_config(sk_ratio=0.75, width_multiplier=0.25, depths=(1, 2, 1, 1)),
    "selective, cifar": tiny_config(sk_ratio=0.0625, stem_type="cifar", image_size=32),
    "basic, imagenet": tiny_config(layer_type="basic", depths=(2, 1, 1, 2)),
    "bottleneck, cifar": tiny_config(stem_type="cifar", image_size=32),
    "two groups": tiny_config(depths=(1, 3)),
    "classifier on z": tiny_config(projection_layers=2, projection_dim=16, classifier_layer=2),
}
ARCHITECTURE = (
    "depths layer_type width_multiplier sk_ratio se_ratio stem_type projection_layers projection_type".split()
)


def architecture(config):
    return {name: getattr(config, name) for name in ARCHITECTURE}


def written(directory, variables, **more):
    """A checkpoint of these variables with what else TensorFlow stores."""
    other = {"global_step": np.array(3), "memory/bank": np.ones((4, 2), np.float32)}
    slots = {f"{name}/Momentum": array for name, array in variables.items() if "moving" not in name}
    tf_writer.write_bundle(directory / "model.ckpt-3", variables | other | slots | more)
    return directory


@pytest.fixture
def small():
    """Variables of a small network with a classifier; a test may change them."""
    graph = OfficialGraph(tiny_config(), num_classes=5)
    graph(torch.rand(1, 3, 32, 32))
    return dict(graph.drawn)


@pytest.mark.parametrize(
    ("variant", "num_classes"), [*((v, 5) for v in VARIANTS), ("none", 0), ("linear", 0), ("excitation", 0)]
)
def test_every_architecture_is_recognised_and_computes_the_official_graph(tmp_path, variant, num_classes):
    config = VARIANTS[variant]
    graph = OfficialGraph(config, num_classes=num_classes)
    x = torch.rand(2, 3, 33, 46, generator=torch.Generator().manual_seed(0))
    expected = graph(x)
    source = written(tmp_path / "tf", graph.drawn)
    layer = config.classifier_layer or None
    result = convert(source, tmp_path / "out", image_size=config.image_size, classifier_layer=layer)
    if variant == "excitation, least width":  # 1 channel everywhere: any small ratio says the same
        assert 0 < result.se_ratio < 1 / 32
    else:
        assert architecture(result) == architecture(config)
    if not num_classes:
        assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == ["SimCLRModel"]
        model = SimCLRModel.from_pretrained(tmp_path / "out").eval()
    else:
        classifier = SimCLRForImageClassification.from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            assert relative(classifier(x).logits, expected["logits"]) < 1e-5
        model = classifier.simclr
    with torch.no_grad():
        out = model(x, output_projections=True, output_hidden_states=True)
    assert relative(out.pooler_output, expected["h"]) < 1e-5
    assert relative(out.hidden_states[0], expected["initial_max_pool"]) < 1e-5
    for i, group in enumerate(out.hidden_states[1:], 1):
        assert relative(group, expected[f"block_group{i}"]) < 1e-5, i
    assert len(out.projections) == config.projection_layers
    for j, z in enumerate(out.projections, 1):
        assert relative(z, expected[f"proj_{j}"]) < 1e-5, j


@pytest.mark.parametrize("depth, width, selective, _", PUBLISHED_SIZES)
def test_the_released_architectures_are_recognised(depth, width, selective, _):
    config = SimCLRConfig.v2(depth, width, selective)
    graph = OfficialGraph(config, num_classes=1000, device="meta")
    graph(torch.empty(1, 3, 64, 64, device="meta"))
    if (depth, selective) == (50, True):
        assert (graph.convs, graph.norms) == (87, 71)
    found = infer_config(graph.shapes)
    assert architecture(found) == architecture(config)
    assert (found.num_labels, found.projection_dim, found.image_size) == (1000, 128, 224)


@pytest.mark.parametrize("ratio", [1 / 16, 0.05, 0.1, 0.3, 1.0])
def test_a_ratio_that_the_minimum_does_not_hide_gives_the_same_widths(ratio):
    config = SimCLRConfig(depths=(1, 2, 1, 1), width_multiplier=3, sk_ratio=ratio, projection_layers=0)
    graph = OfficialGraph(config, device="meta")
    graph(torch.empty(1, 3, 64, 64, device="meta"))
    found = OfficialGraph(infer_config(graph.shapes), device="meta")
    found(torch.empty(1, 3, 64, 64, device="meta"))
    assert found.shapes == graph.shapes
    assert found.config.sk_ratio == pytest.approx(ratio, abs=1 / 1536)


def test_sizes_and_processor(tmp_path):
    for case, given, expected in (
        ("cifar_basic_head2", None, 32),
        ("v1_sk0_nohead", None, 224),
        ("v1_sk0_nohead", 97, 97),
    ):
        out = tmp_path / f"{case}{given}"
        assert convert(OFFICIAL / case, out, image_size=given).image_size == expected
        assert SimCLRImageProcessor.from_pretrained(out).size["height"] == expected
    assert SimCLRConfig.from_pretrained(out).projection_layers == 0


def test_weights_are_copied_exactly(tmp_path, small):
    convert(written(tmp_path / "tf", small), tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    stem = "simclr.encoder.stem.layers.0"
    assert np.array_equal(state[f"{stem}.convolution.weight"], small["base_model/conv2d/kernel"].transpose(3, 2, 0, 1))
    variance = small["base_model/batch_normalization/moving_variance"]
    assert np.array_equal(state[f"{stem}.normalization.running_var"], variance)
    assert np.array_equal(state["classifier.weight"], small["head_supervised/linear_layer/dense/kernel"].T)
    assert state[f"{stem}.normalization.num_batches_tracked"] == 0


def change(variables, name, change):
    variables[name] = change(variables[name])


FIRST = "base_model/conv2d/kernel"
WRONG = {
    "missing": (lambda v: v.pop("base_model/conv2d_6/kernel"), r": 1 missing \(.*conv2d_6/kernel\)$"),
    "missing moving mean": (lambda v: v.pop("base_model/batch_normalization_3/moving_mean"), "3/moving_mean"),
    "left over": (lambda v: v.update({"base_model/conv2d_99/kernel": v[FIRST]}), "1 left over.*conv2d_99"),
    "left over in the head": (
        lambda v: v.update({"head_supervised/more": v[FIRST]}),
        "1 left over.*head_supervised/more",
    ),
    "another shape": (
        lambda v: change(v, "base_model/batch_normalization_2/gamma", lambda a: a[:-1]),
        r"1 of another shape.*\(7,\), not \(8,\)",
    ),
    "another classifier": (
        lambda v: change(v, "head_supervised/linear_layer/dense/kernel", lambda a: a[1:]),
        "of another shape",
    ),
    "NaN": (lambda v: v["base_model/conv2d_3/kernel"].flat.__setitem__(5, np.nan), "conv2d_3/kernel has NaN"),
    "infinite": (lambda v: v["head_contrastive/nl_1/dense/kernel"].fill(np.inf), "nl_1/dense/kernel has NaN, inf"),
    "negative variance": (
        lambda v: change(v, "base_model/batch_normalization_4/moving_variance", np.negative),
        "batch_normalization_4/moving_variance has",
    ),
    "half": (lambda v: change(v, FIRST, lambda a: a.astype(np.float16)), "is float16, not float32"),
    "rank": (lambda v: change(v, FIRST, lambda a: a[0]), "impossible shape"),
    "empty": (lambda v: change(v, FIRST, lambda a: a[..., :0]), "impossible shape"),
    "no classes": (
        lambda v: change(v, "head_supervised/linear_layer/dense/kernel", lambda a: a[:, :0]),
        "impossible shape",
    ),
    "another network": (
        lambda v: (v.clear(), v.update({"resnet/w": np.ones(2, np.float32)})),
        "not an official SimCLR",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, small, kind):
    damage, message = WRONG[kind]
    small = {name: array.copy() for name, array in small.items()}
    damage(small)
    source = written(tmp_path / "tf", small)
    with pytest.raises(CheckpointError, match=message) as e:
        convert(source, tmp_path / "out")
    assert "model.ckpt-3" in str(e.value)
    assert os.listdir(tmp_path) == ["tf"]


def test_damage_halfway_leaves_nothing(tmp_path, small):
    source = written(tmp_path / "tf", small)
    data = source / "model.ckpt-3.data-00000-of-00001"
    raw = bytearray(data.read_bytes())
    raw[len(raw) // 4] ^= 1
    data.write_bytes(raw)
    with pytest.raises(CheckpointError, match="checksum"):
        convert(source, tmp_path / "out")
    assert os.listdir(tmp_path) == ["tf"]


def test_what_is_asked_for_must_be_there(tmp_path, small):
    source = written(tmp_path / "tf", small)
    with pytest.raises(CheckpointError, match="no averaged weights"):
        convert(source, tmp_path / "out", ema=True)
    with pytest.raises(CheckpointError, match="classifier_layer=3"):
        convert(source, tmp_path / "out", classifier_layer=3)
    bare = {name: array for name, array in small.items() if "supervised" not in name}
    with pytest.raises(CheckpointError, match="classifier_layer=1, but it has no classifier"):
        convert(written(tmp_path / "bare", bare), tmp_path / "out", classifier_layer=1)
    with pytest.raises(CheckpointError, match="absent"):
        convert(tmp_path / "absent", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_basic_blocks_with_a_selective_stem_are_refused():
    shapes = {FIRST: (3, 3, 3, 4), "base_model/conv2d_1/kernel": (3, 3, 4, 4)}
    rest = [(3, 3, 4, 8), (1, 1, 8, 8), (3, 3, 8, 8), (3, 3, 8, 8)]
    shapes |= {f"base_model/conv2d_{n}/kernel": shape for n, shape in enumerate(rest, 2)}
    with pytest.raises((ValueError, StrictDataclassError), match="basic"):
        infer_config(shapes)


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(FileExistsError, match="out exists"):
        convert(OFFICIAL / "cifar_basic_head2", tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"] and os.listdir(tmp_path / "out") == ["mine"]
    (tmp_path / "out" / "mine").unlink()
    convert(OFFICIAL / "cifar_basic_head2", tmp_path / "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors", "preprocessor_config.json"]


def rewritten(change):
    def damage(directory):
        path = directory / "model.safetensors"
        state = load_file(path)
        save_file(change(state), path, {"format": "pt"})

    return damage


def config_with(**changes):
    def damage(directory):
        path = directory / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


KEY = "encoder.stages.1.0.layers.1.convolution.weight"
WRONG_WEIGHTS = {
    "a missing key": (rewritten(lambda s: {k: v for k, v in s.items() if k != KEY}), "1 missing.*stages.1.0.layers.1"),
    "module. before all": (rewritten(lambda s: {f"module.{k}": v for k, v in s.items()}), "missing.*unexpected"),
    "another prefix": (rewritten(lambda s: {f"resnet.{k}": v for k, v in s.items()}), "missing.*unexpected"),
    "no tensors": (rewritten(lambda s: {}), "missing"),
    "an empty file": (lambda d: (d / "model.safetensors").write_bytes(b""), "."),
    "a deeper config": (config_with(depths=[1, 2, 1, 1]), "missing.*stages.1.1"),
    "a shallower config": (
        config_with(depths=[1, 1, 1], out_features=["stage3"], out_indices=[3]),
        "unexpected|mismatched",
    ),
    "NaN": (rewritten(lambda s: s | {KEY: torch.full_like(s[KEY], torch.nan)}), "non-finite.*stages.1.0.layers.1"),
    "another shape": (rewritten(lambda s: s | {KEY: s[KEY][:-1].clone()}), "shape|size"),
    "a negative variance": (
        rewritten(lambda s: s | {"encoder.stem.layers.0.normalization.running_var": -torch.ones(8)}),
        "impossible.*running_var",
    ),
    "an unknown config key": (config_with(selective_kernels=True), "selective_kernels"),
}


@pytest.mark.parametrize("kind", WRONG_WEIGHTS)
@pytest.mark.parametrize("cls", [SimCLRModel, SimCLRForImageClassification, SimCLRBackbone])
def test_wrong_weights_never_load(tiny_dir, tmp_path, kind, cls):
    shutil.copytree(tiny_dir, tmp_path, dirs_exist_ok=True)
    damage, message = WRONG_WEIGHTS[kind]
    cls.from_pretrained(tmp_path)
    damage(tmp_path)
    with pytest.raises((ValueError, RuntimeError, OSError, SafetensorError), match=message):
        cls.from_pretrained(tmp_path)
