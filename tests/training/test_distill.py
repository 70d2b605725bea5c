import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from training_runs import (
    RECIPE,
    SECTION,
    assert_killed_runs_end_alike,
    assert_same_bits,
    run_on,
    weights_of,
    write_recipe,
)

import simclr_hub
from simclr_hub import SimCLRConfig, SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel
from simclr_hub.errors import OutputError, RecipeError
from simclr_hub.training.augmentations import Views
from simclr_hub.training.distill import DISTILL, DistillArguments, DistillTrainer, distill
from simclr_hub.training.finetune import classifier_on, plan
from simclr_hub.training.optimization import scale_learning_rate
from simclr_hub.training.pretrain import load_recipe
from simclr_hub.training.supervised import mixed_loss
from simclr_hub.training.teacher import EncoderTeacher, Teacher


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    """A classifier of twice the width and side, of owls and cats."""
    torch.manual_seed(0)
    names = {"id2label": {0: "owl", 1: "cat"}, "label2id": {"owl": 0, "cat": 1}}
    config = SimCLRConfig(**{**SECTION, "width_multiplier": 0.25, "image_size": 32}, **names)
    model = SimCLRForImageClassification(config)
    model.classifier.weight.data.normal_(0, 5)
    model.save_pretrained(tmp_path / "teacher")
    SimCLRImageProcessor(size=32).save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photos in a folder without classes."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(12):
        pixels = random.integers(0, 256, (4, 4, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write_recipe(tmp_path)


def losses(checkpoint: Path) -> list[float]:
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_a_student_learns_from_photos_without_labels_and_resumes(
    photos: Path, teacher: Path, recipe: str, tmp_path: Path
) -> None:
    def run(output: str) -> dict[str, Tensor]:
        final = distill(recipe, (f"data={photos}", f"teacher={teacher}", f"output_dir={tmp_path / output}"))
        return weights_of(final)

    whole = run("whole")
    steps = losses(tmp_path / "whole" / "checkpoint-7")
    assert len(steps) == 7 and steps[0] == pytest.approx(np.log(2), rel=1e-4)  # the student starts from zeros
    (tmp_path / "half").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "half" / "checkpoint-3")
    torch.rand(3)
    half = run("half")
    assert_same_bits(whole, half)
    final = tmp_path / "whole" / "final"
    student = SimCLRForImageClassification.from_pretrained(final)
    assert student.config.id2label == {0: "owl", 1: "cat"}
    assert json.loads((final / "results.json").read_text())["results"] == []
    card = (final / "README.md").read_text()
    assert "`simclr-hub distill`" in card and str(tmp_path) not in card


def test_labels_are_found_by_name_and_mixed_in(photos: Path, teacher: Path, recipe: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for place, label in enumerate(("cat", "dog", "owl")):  # the teacher knows no dogs
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(4):
                shutil.copy(photos / f"{4 * place + i}.png", tmp_path / "data" / split / label)
    settings = (f"data={tmp_path / 'data'}", f"teacher={teacher}", f"output_dir={tmp_path / 'out'}", "max_steps=2")
    final = distill(recipe, (*settings, "alpha=0.5"))
    record = json.loads((final / "results.json").read_text())
    assert record["data"] == "data, split train: 12 images" and "8 images" in record["results"][0]["dataset"]
    with pytest.raises(RecipeError, match="alpha=0.5 needs labels"):
        distill(recipe, (*settings, "alpha=0.5", f"data={photos}", f"output_dir={tmp_path / 'none'}"))


def test_the_loss_is_of_the_teachers_predictions_and_the_rates_warm_up(teacher: Path, tmp_path: Path) -> None:
    training = {**RECIPE["training"], "num_train_epochs": 6, "warmup_epochs": 2, "output_dir": str(tmp_path / "run")}
    args = DistillArguments(**{**training, "temperature": 0.5, "alpha": 0.25})
    plan(args, 16)
    taught = Teacher(str(teacher))
    model = classifier_on(SimCLRModel(SimCLRConfig(**SECTION)), taught.classes)
    trainer = DistillTrainer(taught, model, args, Views(16), None, train_dataset=[])
    logits, pixels, labels = torch.randn(8, 2), torch.rand(8, 3, 16, 16), torch.tensor([0, 1, -1, 0, 1, 0, 0, -1])
    loss, watched = trainer._loss(logits, {"pixels": pixels, "labels": labels})
    predicted = taught(pixels)
    assert loss == mixed_loss(logits, predicted, labels, 0.5, 0.25)
    assert watched["top1"] == (logits.argmax(1) == predicted.argmax(1)).float().mean()
    trainer.create_scheduler(args.max_steps)
    factor = trainer.lr_scheduler.lr_lambdas[0]
    assert args.max_steps == 13 and [factor(step) for step in (0, 2, 4)] == [0, 0.5, 1]


def test_a_teacher_is_itself_and_stays(teacher: Path) -> None:
    pixels = torch.rand(3, 3, 32, 32)
    found = Teacher(str(teacher)).train()
    assert found.classes == ["owl", "cat"] and not found.model.training
    assert torch.equal(found(pixels), SimCLRForImageClassification.from_pretrained(teacher).eval()(pixels).logits)
    assert found(pixels[:, :, :16, :16]).shape == (3, 2)


def test_wrong_settings_are_named(photos: Path, teacher: Path, recipe: str, tmp_path: Path) -> None:
    SimCLRModel(SimCLRConfig(**SECTION)).save_pretrained(tmp_path / "headless")
    SimCLRImageProcessor(size=16).save_pretrained(tmp_path / "headless")
    for settings, named in (
        ("teacher=", "needs teacher=CLASSIFIER"),
        ("teacher=/nowhere", "teacher=/nowhere"),
        (f"teacher={tmp_path / 'headless'}", "no trained classifier .*target=features"),
        ("temperature=0", "temperature=0 must be positive"),
        ("alpha=1.5", r"alpha=1.5 must be within \[0, 1\]"),
        ("alhpa=1", "unknown key alhpa; is it alpha"),
        ("class_weights=balanced", "class_weights are of finetune"),
        ("patience=1", "patience=1 needs evaluations"),
        ("teacher=default", "teacher=default: .*target=features"),
        ("target=pixels", "target=pixels is not one of logits, features"),
        ("fixed_views=-1", "fixed_views=-1 must not be negative"),
        ("cache=INSIDE", "cache.*in the photo folder"),
        (f"cache={recipe}", "tiny.yaml is no folder"),
    ):
        settings = settings.replace("INSIDE", str(photos / "cache"))
        with pytest.raises((RecipeError, OutputError), match=named):
            distill(recipe, (f"data={photos}", f"teacher={teacher}", f"output_dir={tmp_path / 'refused'}", settings))


@pytest.mark.parametrize(("name", "temperature"), [("simclr_v2_distill_small", 1.0), ("simclr_v2_distill_self", 0.1)])
def test_the_papers_recipes(name: str, temperature: float) -> None:
    args = DistillArguments(**{**load_recipe(name, ("bf16=false",), DISTILL)["training"], "output_dir": "unused"})
    plan(args, 1_281_167)
    assert (args.temperature, args.alpha, args.max_steps, args.warmup_steps) == (temperature, 1, 125114, 6255)
    assert scale_learning_rate(args.learning_rate, args.global_batch, args.lr_scaling) == pytest.approx(6.4)


def test_fixed_views_are_taught_once_and_kept(
    photos: Path, teacher: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Tensor] = []
    looked = Teacher.forward

    def counted(self: Teacher, pixels: Tensor) -> Tensor:
        seen.extend(pixels)
        return looked(self, pixels)

    monkeypatch.setattr(Teacher, "forward", counted)
    (tmp_path / "twelve").mkdir()
    kept = tmp_path / "kept"

    def run(output: str, *further: str) -> dict[str, Tensor]:
        settings = (f"data={photos}", f"teacher={teacher}", f"output_dir={tmp_path / output}", f"cache={kept}")
        return weights_of(distill(recipe, (*settings, "fixed_views=2", *further)))

    whole = run("whole")
    assert len(seen) == 2 * 12 and len({crop.numpy().tobytes() for crop in seen}) == 24
    [file] = kept.iterdir()
    logits = np.load(file)
    assert logits.shape == (12, 2, 2)
    direct = Teacher(str(teacher))(torch.stack(seen[:8]))  # image by image, the views of each together
    np.testing.assert_allclose(logits.reshape(24, 2)[:8], direct, rtol=1e-5, atol=1e-5)
    seen.clear()
    (tmp_path / "half").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "half" / "checkpoint-3")
    assert_same_bits(run("half"), whole)
    assert not seen
    file.write_bytes(file.read_bytes()[:-7])  # damaged: made again
    assert_same_bits(run("again"), whole)
    assert len(seen) == 24
    for number, other in enumerate(("views.area=[0.2,1]", "data_seed=5", "fixed_views=3", "side=12"), 2):
        run(f"other-{number}", other, "max_steps=1")
        assert len(list(kept.iterdir())) == number
    config = json.loads((teacher / "config.json").read_text())
    (teacher / "config.json").write_text(json.dumps(config | {"batch_norm_eps": 1e-3}))
    run("other-teacher", "max_steps=1")
    assert len(list(kept.iterdir())) == 6


def test_fixed_views_of_originals_are_the_same_crops(photos: Path, teacher: Path, recipe: str, tmp_path: Path) -> None:
    settings = (f"data={photos}", f"teacher={teacher}", f"output_dir={tmp_path / 'run'}", "side=null", "fixed_views=1")
    distill(recipe, (*settings, "max_steps=4"))
    steps = losses(tmp_path / "run" / "checkpoint-4")
    assert steps[0] == pytest.approx(np.log(2), rel=1e-4) and steps[-1] < steps[0]


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    """An encoder of another width and side, without a classifier."""
    torch.manual_seed(1)
    model = SimCLRModel(SimCLRConfig(**{**SECTION, "width_multiplier": 0.25, "image_size": 32}))
    model.save_pretrained(tmp_path / "encoder")
    SimCLRImageProcessor(size=32).save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_an_encoder_without_labels_teaches_its_features(
    photos: Path, encoder: Path, recipe: str, tmp_path: Path
) -> None:
    for split in ("train", "val"):
        shutil.copytree(photos, tmp_path / "data" / split / "all")
    settings = ("target=features", f"data={tmp_path / 'data'}", f"teacher={encoder}", "learning_rate=0.3")
    settings += ("num_train_epochs=20",)
    final = distill(recipe, (*settings, f"output_dir={tmp_path / 'whole'}"))
    state = json.loads((tmp_path / "whole" / "checkpoint-30" / "trainer_state.json").read_text())
    cosines = [entry["cosine"] for entry in state["log_history"] if "cosine" in entry]
    assert np.mean(cosines[-5:]) > np.mean(cosines[:2]) + 0.2
    student = SimCLRModel.from_pretrained(final)
    assert student.config.num_labels == 2  # transformers' own default
    assert student.config.projection_layers == 0  # g has not learnt
    assert simclr_hub.embed([str(photos / "0.png")], model=str(final)).shape == (1, 16)
    [result] = json.loads((final / "results.json").read_text())["results"]
    assert "mean cosine with the teacher's h" in result["measure"] and "12 images" in result["dataset"]
    trained = SimCLRForImageClassification.from_pretrained(tmp_path / "whole" / "checkpoint-31")
    h = student.eval()(pixels := torch.rand(4, 3, 16, 16)).pooler_output
    assert torch.equal(trained.eval()(pixels).logits, trained.classifier(h))  # the map stays in the run's state
    card = (final / "README.md").read_text()
    assert "pipeline_tag: image-feature-extraction" in card and "`simclr-hub distill`" in card
    (tmp_path / "half").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-3", tmp_path / "half" / "checkpoint-3")
    again = distill(recipe, (*settings, f"output_dir={tmp_path / 'half'}"))
    assert_same_bits(weights_of(again), weights_of(final))
    for further, named in (
        ("alpha=0.5", "alpha=0.5 is of target=logits"),
        ("temperature=2", "temperature=2 is of target=logits"),
        ("projection_layer=1", "projection_layer=1 is of target=logits"),
        ("trained_from=classifier", "leaves an encoder nothing to learn"),
    ):
        with pytest.raises(RecipeError, match=named):
            distill(recipe, (*settings, further, f"output_dir={tmp_path / 'refused'}"))


def test_the_default_checkpoint_teaches_features() -> None:
    pixels = torch.rand(2, 3, 64, 64)
    found = EncoderTeacher("default").train()
    model, _ = simclr_hub.load("default")
    assert torch.equal(found(pixels), model(pixels).pooler_output) and found.width == model.config.hidden_size


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("pickle", "no model.safetensors there; pytorch_model.bin may be a pickle, which is not opened"),
        ("adapter", "adapter_config.json is not read"),
        ("link", "outside the model's folder"),
        ("backbone", "use_pretrained_backbone would open weights from elsewhere"),
        ("code", "trust_remote_code|auto_map|unknown|Unrecognized|does not recognize"),
        ("damaged", "incomplete metadata"),
    ],
)
def test_a_teachers_folder_is_not_trusted(teacher: Path, tmp_path: Path, change: str, named: str) -> None:
    weights, config = teacher / "model.safetensors", json.loads((teacher / "config.json").read_text())
    ran = tmp_path / "ran"
    if change == "pickle":
        weights.rename(teacher / "pytorch_model.bin")
    elif change == "adapter":
        (teacher / "adapter_config.json").write_text("{}")
    elif change == "link":
        weights.rename(tmp_path / "elsewhere.safetensors")
        weights.symlink_to(tmp_path / "elsewhere.safetensors")
    elif change == "backbone":
        (teacher / "config.json").write_text(json.dumps(config | {"use_pretrained_backbone": True}))
    elif change == "code":
        theirs = {"model_type": "theirs", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
        (teacher / "config.json").write_text(json.dumps(config | theirs))
        (teacher / "code.py").write_text(f"open({str(ran)!r}, 'w').close()")
    else:
        weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(RecipeError, match=f"teacher={teacher}.*({named})"):
        Teacher(str(teacher))
    assert not ran.exists()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("further", [(), ("fixed_views=2",), ("target=features",)])
def test_killed_at_any_moment_a_rerun_gives_the_same_student(
    photos: Path, teacher: Path, encoder: Path, recipe: str, tmp_path: Path, further: tuple[str, ...]
) -> None:
    settings = [recipe, f"data={photos}", f"teacher={encoder if 'target=features' in further else teacher}", *further]
    settings += ["max_steps=150", "save_steps=1", "save_total_limit=2", "ema_decay=0.9"]
    assert_killed_runs_end_alike("distill", settings, tmp_path, 150)


@pytest.mark.slow
@pytest.mark.parametrize("further", [("alpha=0.5", "labels=2"), ("fixed_views=2",)])
def test_two_processes_end_with_the_weights_of_one(
    photos: Path, teacher: Path, recipe: str, tmp_path: Path, further: tuple[str, ...]
) -> None:
    for label, places in {"owl": range(3), "cat": range(3, 12)}.items():  # a process may have more labels than another
        for split in ("train", "val"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in places:
                shutil.copy(photos / f"{i}.png", tmp_path / "data" / split / label)
    settings = [recipe, f"data={tmp_path / 'data'}", f"teacher={teacher}", "side=null", "learning_rate=0.05", *further]
    for processes in (1, 2):
        run_on(processes, "distill", *settings, f"output_dir={tmp_path / str(processes)}")
    one, two = (weights_of(tmp_path / n / "final") for n in ("1", "2"))
    assert one.keys() == two.keys()
    for key, value in two.items():
        torch.testing.assert_close(value, one[key], rtol=1e-4, atol=1e-5, msg=key)
