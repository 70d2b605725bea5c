"""The whitening itself: what it does to features, what it refuses, and how few photos may teach it."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from tiny import SAMPLE_PHOTOS, randomized, tiny_config

from simclr_hub import Embedder, SimCLRModel, load
from simclr_hub.errors import CheckpointError
from simclr_hub.loading import load_whitening, weights_hash
from simclr_hub.whitening import FEWEST, SHRINKAGE, STRENGTHS, WHITENING_NAMES, Whitening, unit_rows


def features(number: int, dim: int = 12, seed: int = 0) -> np.ndarray:
    """Positive, with few strong directions, like h."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(dim, dim)) * 0.7 ** np.arange(dim)[:, None]
    return (5 + random.normal(size=(number, dim)) @ mixing).astype(np.float32)


def learnt(**changes: object) -> Whitening:
    return replace(Whitening.learn(features(500), learnt_from="numbers"), **changes)


def test_it_is_pca_of_normalised_features_less_their_mean_over_the_root_of_shrunk_variances() -> None:
    x = features(400)
    whitening = Whitening.learn(x, shrinkage=0.1, learnt_from="numbers")
    units = x / np.linalg.norm(x, axis=1, keepdims=True)
    variances, directions = np.linalg.eigh(np.cov(units.astype(np.float64).T))
    added = 0.1 * variances.mean()
    expected = (units - units.mean(0)) @ (directions[:, ::-1] / np.sqrt(variances[::-1] + added))
    got = whitening.apply(x)
    assert got.dtype == np.float32 and got.shape == (400, whitening.dim) and whitening.dim < 12
    np.testing.assert_allclose(np.abs(got), np.abs(expected[:, : whitening.dim]), atol=1e-3)
    np.testing.assert_allclose(got.var(0, ddof=1), (variances / (variances + added))[::-1][: whitening.dim], rtol=1e-3)
    assert (whitening.images, whitening.shrinkage, whitening.layer) == (400, 0.1, "h")


def test_length_means_nothing_and_rows_do_not_depend_on_one_another() -> None:
    whitening, x = learnt(), features(20_000, seed=2)
    whole = whitening.apply(x, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(whole, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(whitening.apply(x[7:8] * 1e3, normalize=True), whole[7:8], atol=1e-6)
    np.testing.assert_allclose(whitening.apply(unit_rows(x)[0].astype(np.float32), normalize=True), whole, atol=2e-6)
    zero = whitening.apply(np.zeros((1, 12), np.float32), normalize=True)
    assert not zero.any() and zero.shape == (1, whitening.dim)
    with pytest.raises(ValueError, match=r"shape \(3, 11\).*\(N, 12\)"):
        whitening.apply(np.ones((3, 11), np.float32))


def test_a_file_gives_the_same_and_the_same_gives_equal_bytes(tmp_path: Path) -> None:
    whitening = learnt(weights="w1")
    whitening.save(tmp_path / "a.safetensors")
    again = Whitening.load(tmp_path / "a.safetensors")
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert again.sha256 == whitening.sha256 and again.weights == "w1" and again.images == 500
    assert np.array_equal(again.matrix, whitening.matrix)
    assert learnt(matrix=whitening.matrix * np.float32(1.01)).sha256 != whitening.sha256
    assert Whitening.learn(features(500)[::-1], learnt_from="in another order").sha256 != ""


BAD = {
    "mean": [np.zeros(11, np.float32), np.full(12, np.nan, np.float32), np.zeros(12), np.zeros((12, 1), np.float32)],
    "matrix": [np.zeros((12, 12), np.float32), np.zeros((12, 0), np.float32), np.full((12, 9), np.inf, np.float32)],
    "layer": ["z", 3, None],
    "learnt_from": [7, None],
    "images": [0, 1, -5, True, 2.5, "many", None],
    "shrinkage": [0.0, -1.0, math.nan, math.inf, 1, "some", None],
    "weights": [None, 3],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_file_of_a_stranger_is_not_trusted(tmp_path: Path, name: str, value: object) -> None:
    good = learnt()
    told = {key: getattr(good, key) for key in ("layer", "learnt_from", "images", "shrinkage", "weights")}
    tensors = {"mean": good.mean, "matrix": good.matrix}
    (tensors if name in tensors else told)[name] = value
    file = tmp_path / "bad.safetensors"
    file.write_bytes(save(tensors, {"simclr_hub.whitening": json.dumps(told)}))
    with pytest.raises(CheckpointError, match=r"bad.safetensors: not a whitening that can be used: \S"):
        Whitening.load(file)


def test_other_files_are_refused(tmp_path: Path) -> None:
    good = learnt()
    whole, file = good.to_bytes(), tmp_path / "bad.safetensors"
    tensors = {"mean": good.mean, "matrix": good.matrix}
    told = json.dumps({"layer": "h", "learnt_from": "", "images": 2, "shrinkage": 0.5, "weights": "", "more": 1})
    for data in (
        b"", b"no such file", whole[:-1], whole[:100], whole + b"\0", save({"mean": good.mean}), save(tensors),
        save(tensors, {"simclr_hub.whitening": "[]"}), save(tensors, {"simclr_hub.whitening": "{"}),
        save(tensors, {"simclr_hub.whitening": told}), save({**tensors, "code": good.mean}),
    ):  # fmt: skip
        file.write_bytes(data)
        with pytest.raises(CheckpointError, match="bad.safetensors"):
            Whitening.load(file)
    with pytest.raises(CheckpointError, match="nowhere"):
        Whitening.load(tmp_path / "nowhere.safetensors")


def test_few_photos_are_refused_or_shrink_more() -> None:
    strengths = []
    for number in (FEWEST, 300, 1000):
        whitening = Whitening.learn(features(number, 100), learnt_from="few")
        strengths.append(whitening.shrinkage)
    assert strengths == sorted(strengths, reverse=True) and strengths[0] > SHRINKAGE == strengths[-1]
    assert set(strengths) <= set(STRENGTHS)
    with pytest.raises(ValueError, match=f"99 images are too few.*{FEWEST}"):
        Whitening.learn(features(FEWEST - 1), learnt_from="few")
    noise = np.random.default_rng(0).normal(size=(150, 2000)).astype(np.float32)
    with pytest.raises(ValueError, match=r"150 images do not teach.*give 300 at least"):
        Whitening.learn(noise, learnt_from="noise")
    with pytest.raises(ValueError, match="all alike"):
        Whitening.learn(np.ones((5000, 8), np.float32), learnt_from="one photo")
    with pytest.raises(ValueError, match="nothing to whiten"):
        Whitening.learn(np.ones((500, 1), np.float32), learnt_from="one number")


def test_fewer_photos_than_numbers() -> None:
    x = features(150, 400)
    whitening = Whitening.learn(x, shrinkage=5.0, learnt_from="few")
    assert whitening.dim < 150 and np.isfinite(whitening.apply(x)).all()


def test_the_default_checkpoint_brings_one_for_either_layer() -> None:
    model, _ = load()
    for layer, name in WHITENING_NAMES.items():
        whitening = load_whitening("default", layer)
        assert whitening is not None and whitening.layer == layer and name.endswith(".safetensors")
        assert whitening.weights == weights_hash(model), "run scripts/ship_default.py"
        assert whitening.images == 10_000 and whitening.shrinkage == SHRINKAGE
    assert load_whitening("default", "z") is None


def test_the_embedder_whitens_only_when_asked() -> None:
    photo = SAMPLE_PHOTOS / "cat_1.jpg"
    plain, whitened = Embedder(), Embedder(whiten=True)
    assert Embedder(whiten=False).fingerprint == plain.fingerprint and "whitening" not in plain.fingerprint
    assert whitened.whitening is not None and plain.whitening is None
    assert whitened.fingerprint == plain.fingerprint | {"whitening": whitened.whitening.sha256}
    (h,), (vector,) = plain.stream([photo]), whitened.stream([photo])
    assert whitened.dim == len(vector.vector) < plain.dim == len(h.vector)
    np.testing.assert_allclose(vector.vector, whitened.whitening.apply(h.vector[None])[0], atol=1e-5)
    again = whitened.unwhitened()
    (same,) = again.stream([photo])
    assert np.array_equal(same.vector, h.vector) and (again.dim, again.fingerprint) == (plain.dim, plain.fingerprint)
    assert whitened.whitening is not None and "whitening" in whitened.fingerprint
    (one,) = Embedder(whiten=True, normalize=True).stream([photo])
    assert np.linalg.norm(one.vector) == pytest.approx(1)


def test_a_whitening_belongs_to_its_weights(tmp_path: Path) -> None:
    model, _ = load()
    assert Embedder(model).checkpoint_whitening() is not None
    with_other_weights = SimCLRModel(model.config)  # says "default", too
    assert Embedder(with_other_weights).checkpoint_whitening() is None
    with pytest.raises(CheckpointError, match="no whitening comes with it for layer h; learn one: simclr-hub whiten"):
        Embedder(with_other_weights, whiten=True)
    default = load_whitening()
    assert default is not None
    with pytest.raises(ValueError, match="give the one that was learnt with this model"):
        Embedder(with_other_weights, whiten=default)
    assert Embedder(with_other_weights, whiten=replace(default, weights="")).dim == default.dim
    with pytest.raises(ValueError, match="layer h, 256 wide"):
        Embedder(model, layer="h+stage3", whiten=default)
    randomized(SimCLRModel(tiny_config())).save_pretrained(tmp_path / "tiny")
    assert Embedder(tmp_path / "tiny").checkpoint_whitening() is None
    default.save(tmp_path / "tiny" / WHITENING_NAMES["h"])  # of another network, left beside these weights
    assert "whitening" not in Embedder(tmp_path / "tiny").fingerprint
    with pytest.raises(CheckpointError, match="learnt with others; learn it again"):
        Embedder(tmp_path / "tiny", whiten=True)


def test_stage_3_beside_h() -> None:
    photo = SAMPLE_PHOTOS / "cat_1.jpg"
    model, _ = load()
    (h,), (both,) = Embedder(model).stream([photo]), Embedder(model, layer="h+stage3").stream([photo])
    assert both.vector.shape == (256 + 128,)
    np.testing.assert_allclose(both.vector[:256], h.vector / np.linalg.norm(h.vector), atol=1e-6)
    assert np.linalg.norm(both.vector[256:]) == pytest.approx(1)
    assert Embedder(model, layer="h+stage3").fingerprint["layer"] == "h+stage3"
    pixels = None

    def keep(module: object, args: tuple, output: object) -> None:
        nonlocal pixels
        pixels = args[0]

    embedder = Embedder(model)
    handle = embedder._run.layer.register_forward_hook(keep)
    list(embedder.stream([photo]))
    handle.remove()
    with torch.inference_mode():
        stage3 = model(pixels, output_hidden_states=True).hidden_states[3].mean((2, 3))[0].numpy()
    np.testing.assert_allclose(both.vector[256:], stage3 / np.linalg.norm(stage3), atol=1e-5)
    with pytest.raises(ValueError, match=r"h\+stage3"):
        Embedder(SimCLRModel(tiny_config(depths=(1, 1, 1))), layer="h+stage3")


def test_stage_3_beside_h_on_the_faster_runtime() -> None:
    model = randomized(SimCLRModel(tiny_config()))
    photos = sorted(SAMPLE_PHOTOS.glob("*.jpg"))[:4]
    runs = [Embedder(model, layer="h+stage3", runtime=runtime).stream(photos) for runtime in ("torch", "onnxruntime")]
    for a, b in zip(*runs, strict=True):
        np.testing.assert_allclose(a.vector, b.vector, atol=1e-5)
