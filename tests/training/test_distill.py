import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from simclr_hub import SimCLRConfig, SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel
from simclr_hub.errors import RecipeError
from simclr_hub.training.augmentations import Views
from simclr_hub.training.distill import DISTILL, DistillArguments, DistillTrainer, Teacher, distill
from simclr_hub.training.finetune import classifier_on, plan
from simclr_hub.training.optimization import scale_learning_rate
from simclr_hub.training.pretrain import load_recipe
from simclr_hub.training.supervised import mixed_loss

SECTION = {
    "depths": [1, 1],
    "layer_type": "basic",
    "width_multiplier": 0.125,
    "stem_type": "small",
    "projection_layers": 0,
    "image_size": 16,
}
RECIPE = {
    "side": 16,
    "model": SECTION,
    "training": {
        "batch_size": 8,
        "num_train_epochs": 4,
        "learning_rate": 0.2,
        "optimizer": "sgd",
        "max_grad_norm": 0,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


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
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def losses(checkpoint: Path) -> list[float]:
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in log if "loss" in entry]


def test_a_student_learns_from_photos_without_labels_and_resumes(
    photos: Path, teacher: Path, recipe: str, tmp_path: Path
) -> None:
    def run(output: str) -> dict[str, Tensor]:
        final = distill(recipe, (f"data={photos}", f"teacher={teacher}", f"output_dir={tmp_path / output}"))
        return load_file(final / "model.safetensors")

    whole = run("whole")
    steps = losses(tmp_path / "whole" / "checkpoint-7")
    assert len(steps) == 7 and steps[0] == pytest.approx(np.log(2), rel=1e-4)  # the student starts from zeros
    (tmp_path / "half").mkdir()
    shutil.copytree(tmp_path / "whole" / "checkpoint-2", tmp_path / "half" / "checkpoint-2")
    torch.rand(3)
    half = run("half")
    assert whole.keys() == half.keys() and all(torch.equal(whole[key], half[key]) for key in whole)
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
    loss, expected = trainer._loss(logits, pixels, labels)
    predicted = taught(pixels)
    assert loss == mixed_loss(logits, predicted, labels, 0.5, 0.25) and torch.equal(expected, predicted.argmax(1))
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
        (f"teacher={tmp_path / 'headless'}", "has no trained classifier|does not hold the weights"),
        ("temperature=0", "temperature=0 must be positive"),
        ("alpha=1.5", r"alpha=1.5 must be within \[0, 1\]"),
        ("alhpa=1", "unknown key alhpa; is it alpha"),
        ("class_weights=balanced", "class_weights are of finetune"),
        ("patience=1", "patience=1 needs evaluations"),
    ):
        with pytest.raises(RecipeError, match=named):
            distill(recipe, (f"data={photos}", f"teacher={teacher}", f"output_dir={tmp_path / 'refused'}", settings))


@pytest.mark.parametrize(("name", "temperature"), [("simclr_v2_distill_small", 1.0), ("simclr_v2_distill_self", 0.1)])
def test_the_papers_recipes(name: str, temperature: float) -> None:
    args = DistillArguments(**{**load_recipe(name, ("bf16=false",), DISTILL)["training"], "output_dir": "unused"})
    plan(args, 1_281_167)
    assert (args.temperature, args.alpha, args.max_steps, args.warmup_steps) == (temperature, 1, 125114, 6255)
    assert scale_learning_rate(args.learning_rate, args.global_batch, args.lr_scaling) == pytest.approx(6.4)
