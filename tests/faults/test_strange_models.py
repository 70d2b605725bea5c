"""A model's folder from a stranger: nothing outside it is opened, no pickle, and every setting has bounds."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from tiny import tiny_config

from simclr_hub import SimCLRBackbone, SimCLRConfig, SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel
from simclr_hub.checkpoints.catalog import config_of, entries
from simclr_hub.configuration_simclr import BOUNDS, MAX_PARAMETERS
from simclr_hub.embedder import embed
from simclr_hub.errors import CheckpointError, PublishError
from simclr_hub.loading import load, load_whitening
from simclr_hub.model_folder import JSON_LIMIT
from simclr_hub.training.publish import stage_model
from simclr_hub.training.stage import Source


class Exploding:
    """Unpickling it leaves a trace."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.fixture
def model_dir(tiny_dir, tmp_path):
    """A model's folder to be spoilt, with a secret beside it."""
    copy = tmp_path / "model"
    shutil.copytree(tiny_dir, copy)
    shutil.copy(tiny_dir / "model.safetensors", tmp_path / "outside.safetensors")
    (tmp_path / "outside.bin").write_bytes(pickle.dumps(Exploding(tmp_path / "executed")))
    return copy


def index_of(folder: Path, name: str) -> None:
    """Replace the weights' file by an index that names another."""
    (folder / "model.safetensors").unlink(missing_ok=True)
    names = SimCLRModel(tiny_config()).state_dict()
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(names, name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Exploding(folder.parent / "executed")))


def pickled_index(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {"encoder.stem": "../outside.bin"}})
    )


def linked(name: str, target: str):
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).symlink_to(target)

    return spoil


def moved(folder: Path) -> None:
    """The settings lie elsewhere, behind a link that dangles or not."""
    shutil.move(folder / "config.json", folder.parent / "config.json")
    (folder / "config.json").symlink_to("../config.json")


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/other"}')


def distributed(folder: Path) -> None:
    shutil.move(folder / "model.safetensors", folder / "shard-00000-model-00001-of-00001.safetensors")


def replaced(folder: Path, make) -> None:
    (folder / "model.safetensors").unlink()
    make(folder / "model.safetensors")


SPOILT = {
    "a pickle": (pickled, "no model.safetensors.*pickle.*convert"),
    "an index of pickles": (pickled_index, "no model.safetensors"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors"),
    "an index that leads out": (lambda f: index_of(f, "../outside.safetensors"), "outside.safetensors"),
    "an index with an absolute path": (lambda f: index_of(f, str(f.parent / "outside.safetensors")), "not a safeten"),
    "an index of a pickle": (lambda f: index_of(f, "pytorch_model.bin"), "pytorch_model.bin"),
    "an index that names no file": (lambda f: index_of(f, "model-00001-of-00002.safetensors"), "no file"),
    "an index of another kind": (
        lambda f: (index_of(f, "x"), (f / "model.safetensors.index.json").write_text('{"weight_map": []}')),
        "no weight_map",
    ),
    "linked weights": (linked("model.safetensors", "../outside.safetensors"), "link .*outside the model's folder"),
    "weights that are a folder": (lambda f: replaced(f, os.mkdir), "no file"),
    "a pipe": (lambda f: replaced(f, os.mkfifo), "no file"),
    "a linked config": (moved, "link .*outside the model's folder"),
    "an adapter": (adapter, "adapter_config.json is not read"),
    "a distributed checkpoint": (distributed, "shard-00000.* is not read"),
}  # fmt: skip


@pytest.mark.skipif(os.name == "nt", reason="links and pipes")
@pytest.mark.parametrize("name", SPOILT)
def test_nothing_but_safetensors_in_the_folder_is_opened(name, model_dir, tmp_path):
    spoil, said = SPOILT[name]
    spoil(model_dir)
    with pytest.raises(CheckpointError, match=said):
        load(model_dir)
    with pytest.raises(ValueError, match=said):
        SimCLRModel.from_pretrained(model_dir)
    with pytest.raises(CheckpointError, match=said):
        Source.open(model_dir)
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif(os.name == "nt", reason="links")
@pytest.mark.parametrize("name", ["preprocessor_config.json", "whitening.safetensors", "LICENSE", "results.json"])
def test_no_other_file_is_followed_out_of_the_folder(name, model_dir, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("{}")
    linked(name, "../secret")(model_dir)
    if name.startswith("pre"):
        with pytest.raises(CheckpointError, match="outside the model's folder"):
            load(model_dir)
    if name.startswith("white"):
        with pytest.raises(CheckpointError, match="outside the model's folder"):
            load_whitening(model_dir)
    with pytest.raises(CheckpointError, match="outside the model's folder"):
        Source.open(model_dir)


def test_a_results_file_cannot_have_a_file_of_this_machine_published(model_dir, tmp_path):
    (tmp_path / "private.yaml").write_text("password: 1")
    (model_dir / "results.json").write_text(json.dumps({"recipe": str(tmp_path / "private.yaml")}))
    (out := tmp_path / "out").mkdir()
    with pytest.raises(PublishError, match="recipe"):
        stage_model(model_dir, "org/name", out)


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_the_hub_caches_links_are_followed_to_its_own_blobs_only(tiny_dir, tmp_path):
    repo = tmp_path / "models--org--name"
    snapshot = repo / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for number, file in enumerate(tiny_dir.iterdir()):
        shutil.copy(file, repo / "blobs" / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    load(snapshot)
    shutil.copy(tiny_dir / "model.safetensors", tmp_path / "other")
    linked("model.safetensors", "../../../other")(snapshot)
    with pytest.raises(CheckpointError, match="outside"):
        load(snapshot)


def test_a_file_or_a_wish_for_pickles_is_refused(model_dir):
    with pytest.raises(ValueError, match="not a folder"):
        SimCLRModel.from_pretrained(model_dir / "model.safetensors", config=tiny_config())
    with pytest.raises(ValueError, match="safetensors only"):
        SimCLRModel.from_pretrained(model_dir, use_safetensors=False)


def test_a_misspelt_path_is_not_asked_of_the_hub(model_dir, monkeypatch):
    monkeypatch.chdir(model_dir.parent)
    monkeypatch.setattr("simclr_hub.checkpoints.download.snapshot", lambda *_: pytest.fail("the Hub was asked"))
    with pytest.raises(CheckpointError, match="model/finall: neither a directory"):
        load("model/finall")


def test_code_and_foreign_files_beside_the_weights_are_not_run(model_dir, tmp_path):
    (model_dir / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nclass C: pass")
    (model_dir / "pytorch_model.bin").write_bytes(pickle.dumps(Exploding(tmp_path / "executed")))
    change(model_dir / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.C"})
    change(model_dir / "preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.C"})
    load(model_dir)
    assert not (tmp_path / "executed").exists()


def change(path: Path, **changes) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


BAD_CONFIG = [
    {"depths": [20000, 1, 1, 1]},
    {"depths": [1] * 20000},
    {"depths": [True, 1, 1, 1]},
    {"depths": [1.5, 1, 1, 1]},
    {"depths": "3463"},
    {"depths": []},
    {"projection_layers": 100_000},
    {"width_multiplier": 1e6},
    {"width_multiplier": True},
    {"width_multiplier": "1"},
    {"num_labels": 10**9},
    {"classifier_layer": 0.5},
    {"dtype": "load"},
    {"quantization_config": {"quant_method": "bitsandbytes"}},
    {"attn_implementation": "org/kernel"},
    {"experts_implementation": "org/kernel"},
    {"per_layer_config": {"0": {}}},
    {"transformers_weights": "../outside.safetensors"},
    {"width_multiplier": 16, "depths": [64, 64, 64, 64]},  # each in its bounds, but not together
    {"projection_hidden_dim": 1 << 16, "projection_layers": 16},
    *({name: bad} for name, (low, high) in BOUNDS.items() for bad in (low - 1, high + 1, float("nan"), float("inf"))),
]


@pytest.mark.parametrize("wrong", BAD_CONFIG, ids=lambda w: str(w)[:50])
def test_every_setting_of_an_architecture_is_bounded(wrong, model_dir):
    key = next(iter(wrong))
    with pytest.raises((ValueError, StrictDataclassError), match=key):
        tiny_config(**wrong)
    change(model_dir / "config.json", **wrong)
    with pytest.raises(CheckpointError, match=f"model: .*{key}") as e:
        load(model_dir)
    assert len(str(e.value)) < 1000


COUNTED = [
    SimCLRConfig.v1(18, 0.5, se_ratio=0.0625, stem_type="cifar"),
    SimCLRConfig.v2(50, 2, selective_kernel=True),
    tiny_config(projection_layers=0),
    tiny_config(sk_ratio=0.0625, se_ratio=0.3),
    tiny_config(sk_ratio=0.0625, stem_type="small"),
    tiny_config(projection_type="linear", projection_layers=1),
    tiny_config(projection_hidden_dim=50, depths=(1, 2)),
]


@pytest.mark.parametrize("config", COUNTED, ids=range(len(COUNTED)))
def test_a_config_counts_its_weights_as_torch_does(config):
    with torch.device("meta"):
        model = SimCLRModel(config)
    told = [sum(p.numel() for p in part.parameters()) for part in (model.encoder, model.projection)]
    assert told == [config.encoder_parameters, config.projection_parameters]


def test_the_bounds_leave_room_for_every_released_model():
    counts = [c.encoder_parameters + c.projection_parameters for c in map(config_of, entries().values())]
    assert len(counts) > 50 and MAX_PARAMETERS / 4 < max(counts) < MAX_PARAMETERS / 2


def test_a_config_that_announces_more_than_the_weights_hold_is_refused_before_it_is_made(model_dir, monkeypatch):
    change(model_dir / "config.json", width_multiplier=8, depths=[3, 4, 6, 3])
    monkeypatch.setattr(SimCLRModel, "__init__", lambda *_: pytest.fail("made"))
    for door in (load, SimCLRModel.from_pretrained):
        with pytest.raises(ValueError, match="weights are missing: .* by its config, in .* bytes"):
            door(model_dir)


def test_a_backbone_and_a_classifier_load_as_before(tmp_path):
    SimCLRBackbone(tiny_config(projection_hidden_dim=4096)).save_pretrained(tmp_path / "backbone")
    SimCLRBackbone.from_pretrained(tmp_path / "backbone")
    SimCLRForImageClassification(tiny_config(num_labels=3)).save_pretrained(tmp_path / "classifier")
    SimCLRForImageClassification.from_pretrained(tmp_path / "classifier", num_labels=3)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"a": ' + "[" * 200_000 + "]" * 200_000 + "}", "not valid JSON|nested"),
        ('{"id2label": ' + "[" * 20 + "]" * 20 + "}", "nested deeper"),
        ('{"image_size": 1' + "0" * 5000 + "}", "not valid JSON"),
        ("[]", "keys and values"),
        ("{" + " " * JSON_LIMIT + "}", "bytes, more than"),
    ],
    ids=["deep", "nested", "digits", "list", "long"],
)
def test_settings_are_small_and_flat(file, text, said, model_dir):
    if file.endswith("index.json"):
        (model_dir / "model.safetensors").unlink()
    (model_dir / file).write_text(text)
    with pytest.raises(CheckpointError, match=said):
        load(model_dir)


BAD_PROCESSOR = [
    *({"crop_proportion": bad} for bad in (2, 1e9, 0, -1, float("nan"), float("inf"), True, "0.9", [0.9])),
    *({"size": bad} for bad in (20000, 0, -3, "224", 64.0, True, {"height": 64, "width": 32}, {"shortest_edge": 64})),
    *({"size": bad} for bad in ([], [64, 64, 64], {"height": 20000, "width": 20000}, {})),
    *(
        {"image_std": bad, "image_mean": 0.5, "do_normalize": True}
        for bad in (1e-38, 0, -1, float("nan"), float("inf"), "0.5", [0.5, 0.5], [0.5, 0.5, 0], [], True, {})
    ),
    *(
        {"image_mean": bad, "image_std": 0.5, "do_normalize": True}
        for bad in (1e30, float("nan"), "0.5", [0.5, 0.5], [[0.5]] * 3)
    ),
    {"exact": 1},
    {"do_normalize": "yes"},
    {"rescale_factor": 1e30},
    {"_preprocess": 1},
    {"crop_proportoin": 0.5},
]


@pytest.mark.parametrize("wrong", BAD_PROCESSOR, ids=lambda w: str(w)[:50])
def test_every_setting_of_an_image_processor_is_bounded(wrong, model_dir):
    key = next(iter(wrong))
    with pytest.raises((ValueError, TypeError), match=key):
        SimCLRImageProcessor(**wrong)
    change(model_dir / "preprocessor_config.json", **wrong)
    with pytest.raises(CheckpointError, match=key):
        load(model_dir)


def test_what_is_within_bounds_gives_finite_vectors(model_dir):
    image = np.zeros((8, 8, 3), np.uint8)
    wanted = {"do_normalize": True, "image_mean": [100, -100, 0], "image_std": [1e-3, 100, 1], "crop_proportion": 1e-9}
    change(model_dir / "preprocessor_config.json", **wanted)
    assert np.isfinite(embed([image], model_dir)).all()


def test_options_of_a_call_are_bounded_too():
    image = np.zeros((8, 8, 3), np.uint8)
    for wrong in ({"size": 20000}, {"crop_proportion": 2.0}, {"crop_proportion": float("nan")}):
        with pytest.raises((ValueError, TypeError), match=next(iter(wrong))):
            SimCLRImageProcessor(size=64)(images=image, **wrong)
