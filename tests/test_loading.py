import shutil

import pytest
import torch
from tiny import tiny_config

from simclr_hub import SimCLRForImageClassification, SimCLRModel, errors, load
from simclr_hub.loading import weights_hash


def test_a_directory(tiny_dir, tiny_model):
    model, processor = load(tiny_dir)
    assert not model.training and processor.size["height"] == 64
    assert weights_hash(model) == weights_hash(tiny_model)


def test_the_default_checkpoint_is_inside_the_package():
    model, _ = load()
    again, _ = load("default")
    assert model.dtype == torch.float32
    assert weights_hash(model) == weights_hash(again)


def test_a_classifiers_directory_gives_its_encoder(tmp_path):
    classifier = SimCLRForImageClassification(tiny_config(num_labels=3))
    classifier.save_pretrained(tmp_path)
    model, processor = load(tmp_path)  # there is no processor in it: the config's image size
    assert isinstance(model, SimCLRModel) and processor.size["height"] == 64
    assert weights_hash(model) == weights_hash(classifier.simclr)


@pytest.mark.parametrize("name", ["nowhere", "org/none", "org/none@main", "/no/such/dir", "a b/c"])
def test_what_does_not_exist_is_named(name):
    with pytest.raises(errors.CheckpointError, match=name):
        load(name)


def test_damage_is_one_error(tiny_dir, tmp_path):
    for name, damage in (
        ("model.safetensors", lambda b: b[:1000]),
        ("model.safetensors", lambda b: b""),
        ("config.json", lambda b: b"{"),
        ("config.json", lambda b: b.replace(b"depths", b"deaths")),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tiny_dir, copy)
        (copy / name).write_bytes(damage((copy / name).read_bytes()))
        with pytest.raises(errors.CheckpointError, match="copy"):
            load(copy)


def test_a_directory_without_weights(tmp_path):
    tiny_config().save_pretrained(tmp_path)
    with pytest.raises(errors.CheckpointError):
        load(tmp_path)


def test_a_whole_width_is_the_same_written_either_way():
    model = SimCLRModel(tiny_config(width_multiplier=1))
    before = weights_hash(model)
    model.config.width_multiplier = 1.0
    assert weights_hash(model) == before


def test_a_damaged_answer_of_the_hub_is_one_error(monkeypatch):
    def answer(*_: object, **__: object) -> str:
        raise KeyError("path")  # of a listing in which a bit changed

    monkeypatch.setattr("huggingface_hub.snapshot_download", answer)
    with pytest.raises(errors.CheckpointError, match="org/model: no such directory here, and from the Hub: 'path'"):
        load("org/model")
