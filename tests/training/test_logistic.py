"""Logistic regression on whitened h: which method is taken, what it folds into, and what a run leaves."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline

from simclr_hub import Embedder, SimCLRConfig, SimCLRForImageClassification
from simclr_hub.classify import Classifier
from simclr_hub.errors import RecipeError
from simclr_hub.training import logistic as module
from simclr_hub.training.finetune import FINETUNE, classifier_on, finetune
from simclr_hub.training.logistic import _Fit, _folded, choose_method
from simclr_hub.training.pretrain import full_name, load_recipe
from simclr_hub.training.protocols import fit_linear
from simclr_hub.training.publish import stage_model
from simclr_hub.whitening import Whitening

COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "owl & co": (40, 40, 200)}


def make(folder: Path, count: int = 6) -> Path:
    random = np.random.default_rng(0)
    for label, colour in COLOURS.items():
        (folder / label).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(np.array(colour) + random.normal(0, 60, (20, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / label / f"{i}.png")
    return folder


def test_a_run_leaves_a_classifier_that_is_the_regression(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make(tmp_path / "my photos")
    (data / "cat" / "broken.png").write_bytes(b"no photo")
    settings = (f"data={data}", "use_cpu=true")
    final = finetune("photos", settings)
    err = capsys.readouterr().err
    assert final == Path("runs/finetune_photos/final") and "19 labelled images, fewer than 500: logistic" in err
    assert "each left out in turn" in err
    record = json.loads((final / "results.json").read_text())
    assert record["trained"].startswith("Logistic regression on whitened h, l2 ")
    assert record["data"] == "my photos, split train: 18 images"
    (accuracy, *_) = record["results"]
    assert accuracy["value"] == 100 and "each left out in turn" in accuracy["measure"]
    assert "broken.png" in (final.parent / "unreadable.txt").read_text()

    model = SimCLRForImageClassification.from_pretrained(final)
    assert model.config.id2label == dict(enumerate(sorted(COLOURS))) and model.config.classifier_normalized
    assert 0.5 <= model.config.sure_above <= 1
    found = pipeline("image-classification", str(final))(str(data / "dog" / "0.png"))
    (label,) = Classifier(final).stream([data / "dog" / "0.png"])
    assert (found[0]["label"], label.label) == ("dog", "dog")  # type: ignore[union-attr]
    assert found[0]["score"] == pytest.approx(label.confidence, abs=1e-4)  # type: ignore[union-attr]
    again = finetune("photos", settings)  # replaces what it made
    assert (again / "model.safetensors").read_bytes() == (final / "model.safetensors").read_bytes()

    staged = tmp_path / "staged"
    staged.mkdir()
    stage_model(final, "org/name", staged)  # publishing keeps the threshold
    assert AutoModelForImageClassification.from_pretrained(staged).config.sure_above == model.config.sure_above
    fresh = classifier_on(model.simclr, ["a", "b"])
    assert fresh.config.sure_above is None and not fresh.config.classifier_normalized


def test_a_split_to_evaluate_on_is_measured_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "data" / "train"), make(tmp_path / "data" / "val", 2)
    final = finetune("finetune_photos", ("data=data", "method=logistic", "use_cpu=true", "class_weights=none"))
    measures = {one["measure"]: one["value"] for one in json.loads((final / "results.json").read_text())["results"]}
    assert [value for measure, value in measures.items() if "on split val" in measure] == [100]


def test_folding_is_exact() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(400, 24, generator=generator).numpy() + 1
    whitening = Whitening.learn(vectors, learnt_from="noise")
    x, y = torch.from_numpy(whitening.apply(vectors)), torch.randint(3, (400,), generator=generator)
    linear = fit_linear(x, y, 0.01)
    weight, bias = _folded(linear, whitening)
    units = torch.nn.functional.normalize(torch.from_numpy(vectors))
    torch.testing.assert_close(units @ weight.T + bias, linear.scores(x), rtol=1e-4, atol=1e-4)


def test_what_is_held_out_is_not_learnt_from() -> None:
    """Of random labels nothing can be known: a look at them would show."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 40, generator=generator), torch.arange(200) % 2
    scores, how = _Fit(2, True, 0).held_out(x, y)
    assert how == "10-fold cross-validation"
    assert 35 < 100 * float((scores.argmax(1) == y).double().mean()) < 65
    assert (_Fit(2, True, 0)(x, y).scores(x).argmax(1) == y).double().mean() > 0.6


def test_unbalanced_classes_count_alike() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.tensor([0] * 180 + [1] * 20)
    x = torch.randn(200, 4, generator=generator)
    x[:, 0] += 1.5 * y
    rates = [
        (_Fit(2, balanced, 0)(x, y).scores(x).argmax(1)[y == 1] == 1).double().mean() for balanced in (True, False)
    ]
    assert rates[0] > rates[1] + 0.2


@pytest.mark.parametrize(
    "change, method, words",
    [
        ({}, "network", "method=network"),
        ({"method": "auto"}, "logistic", "18 labelled images, fewer than 500"),
        ({"method": "auto", "init_from": None}, "network", "random weights"),
        ({"method": "network"}, "network", "method=network"),
        ({"method": "logistic"}, "logistic", "method=logistic"),
    ],
)
def test_the_method_follows_from_the_number_of_labels(
    tmp_path: Path, change: dict[str, Any], method: str, words: str
) -> None:
    recipe = {"data": str(make(tmp_path / "data")), "init_from": "default", **change}
    found, why = choose_method(recipe, 0)
    assert found == method and words in why


def test_many_labels_take_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW", 18)
    recipe = {"data": str(make(tmp_path / "data")), "init_from": "default", "method": "auto"}
    assert choose_method(recipe, 0)[0] == "network"
    assert choose_method(recipe | {"labels": 2}, 0)[0] == "logistic"


def test_what_cannot_be_fitted_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = make(tmp_path / "data", 2)
    for settings, words in (
        (("method=guess",), "method=guess is not one of auto, logistic, network"),
        (("method=logistic", "init_from=null"), "needs init_from"),
    ):
        with pytest.raises(RecipeError, match=words):
            finetune("photos", (f"data={data}", "use_cpu=true", *settings))
    for label in ("dog", "owl & co"):
        for photo in (data / label).iterdir():
            photo.write_bytes(b"no photo")
    with pytest.raises(RecipeError, match="1 class of which images can be read.*first left out"):
        finetune("photos", (f"data={data}", "use_cpu=true"))
    shutil.rmtree(data)
    with pytest.raises(RecipeError, match="data"):
        finetune("photos", (f"data={data}", "use_cpu=true"))
    assert not list(tmp_path.glob("runs/*/final"))


def test_a_recipes_name_may_go_without_its_command() -> None:
    assert full_name("photos", FINETUNE) == "finetune_photos" and full_name("x.yaml", FINETUNE) == "x.yaml"
    assert load_recipe("finetune_photos", (), FINETUNE)["method"] == "auto"


def test_a_config_bounds_the_threshold() -> None:
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(Exception, match="sure_above"):
            SimCLRConfig(sure_above=value)
    assert SimCLRConfig(sure_above=1).sure_above == 1 and SimCLRConfig().sure_above is None


def test_the_embedder_of_a_classifier_is_its_encoders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an index of the default checkpoint can be classified by what was fitted on it."""
    monkeypatch.chdir(tmp_path)
    final = finetune("photos", (f"data={make(tmp_path / 'data', 3)}", "use_cpu=true"))
    ours, theirs = Embedder().fingerprint, Classifier(final).embedder.fingerprint
    assert {k: v for k, v in ours.items() if k != "model"} == {k: v for k, v in theirs.items() if k != "model"}
