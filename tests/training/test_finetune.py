import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_supervised import CASES, DATA, assert_weights_are, images_of, network, relative
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from training_runs import (
    RECIPE,
    SECTION,
    assert_killed_runs_end_alike,
    assert_same_bits,
    run_on,
    weights_of,
    write_recipe,
)
from transformers import TrainerCallback, pipeline
from transformers.trainer_utils import get_last_checkpoint

from simclr_hub import SimCLRConfig, SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel
from simclr_hub.errors import RecipeError
from simclr_hub.scan import Rules
from simclr_hub.training.augmentations import Views
from simclr_hub.training.finetune import (
    FINETUNE,
    ClassifierArguments,
    ClassifierTrainer,
    Draws,
    Evaluation,
    class_weights,
    finetune,
    plan,
    since_best,
)
from simclr_hub.training.labelled import Part
from simclr_hub.training.optimization import official_steps, scale_learning_rate
from simclr_hub.training.pretrain import load_recipe
from simclr_hub.training.supervised import TRAINED_FROM, choose_trained, start_from_zeros

COLOURS = {"cat": (200, 40, 40), "dog": (40, 200, 40), "owl": (40, 40, 200)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of one colour each: 7, 4 and 2 to learn from, 4 each to evaluate on."""
    root, random = tmp_path_factory.mktemp("data") / "photos", np.random.default_rng(0)
    for split, counts in (("train", (7, 4, 2)), ("val", (4, 4, 4))):
        for (label, colour), count in zip(COLOURS.items(), counts, strict=True):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(np.array(colour) + random.normal(0, 40, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / label / f"{i}.png")
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    return write_recipe(tmp_path)


class Stop(TrainerCallback):
    """Ends a run after a step, as a kill does, with what was saved until then."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self.step


def test_the_trainers_steps_are_the_official_ones(tmp_path: Path) -> None:
    """The fixture of the released way (TF1's), through the trainer itself."""
    name = "v2_selector1_lars"
    case = np.load(DATA / f"steps_{name}.npz")
    flags = json.loads(str(case["flags"]))
    model, names, data = network(CASES[name][0], flags["ft_proj_selector"])
    start_from_zeros(model.classifier)
    choose_trained(model, TRAINED_FROM[flags["fine_tune_after_block"] + 1], "frozen")
    batch = flags["train_batch_size"]
    _, steps = official_steps(flags["num_examples"], batch, flags["train_epochs"], 0)
    pixels = [image for step in range(5) for image in images_of(data, step)]
    labels = [int(label) for step in range(5) for label in data["labels"][step]]
    rows = [{"pixels": p, "labels": label} for p, label in zip(pixels, labels, strict=True)]
    rows += rows[:batch] * (steps - 5)
    args = ClassifierArguments(
        output_dir=str(tmp_path),
        batch_size=batch,
        max_steps=steps,
        learning_rate=flags["learning_rate"],
        lr_scaling=flags["learning_rate_scaling"],
        momentum=flags["momentum"],
        weight_decay=flags["weight_decay"],
        optimizer="lars",
        max_grad_norm=0,
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    logits, losses, rates = [], [], []

    class Watched(ClassifierTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss, outputs = super().compute_loss(*args, **{**kwargs, "return_outputs": True})
            logits.append(outputs["logits"].detach())
            losses.append(loss.item())
            rates.append(self.optimizer.param_groups[0]["lr"])
            return loss

    trainer = Watched(model, args, Views(40), train_dataset=rows, callbacks=[Stop(5)])
    trainer.train()
    np.testing.assert_allclose(rates, case["lr"][:5], rtol=1e-6)
    assert relative(torch.stack(logits), case["logits"]) < 1e-4
    assert losses == pytest.approx(case["loss"].tolist(), rel=1e-5)
    assert_weights_are(model, names, data, case)


def part_of(photos: Path) -> Part:
    return Part.open(str(photos), "train", Rules())


def test_every_epoch_is_a_whole_one_and_batches_cross_its_end(photos: Path, tmp_path: Path) -> None:
    part = part_of(photos)
    small = Draws(part, 0, 16, Views(8, operations=["crop", "flip"]), tmp_path)
    small.count = 40
    labels = [small[j]["labels"] for j in range(40)]
    for epoch in range(3):
        assert sorted(labels[13 * epoch : 13 * (epoch + 1)]) == [0] * 7 + [1] * 4 + [2] * 2
    assert labels[:13] != labels[13:26]
    views = Draws(part, 0, None, Views(8, operations=["crop", "flip"]), tmp_path)
    ahead = views[30]["pixels"]  # whatever was drawn before
    assert [views[j]["labels"] for j in range(40)] == labels and ahead.shape == (3, 8, 8)
    assert torch.equal(views[30]["pixels"], ahead)
    assert [Draws(part, 1, 16, Views(8), tmp_path)[j]["labels"] for j in range(13)] != labels[:13]


def test_one_process_decodes_for_all(photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "some")
    (tmp_path / "some" / "train" / "dog" / "bad.png").write_bytes(b"text")
    views, parts = Views(8, operations=["crop", "flip"]), [part_of(tmp_path / "some") for _ in range(2)]
    first = Draws(parts[0], 0, 16, views, tmp_path)
    written = (tmp_path / "cache" / "labelled-16.npy").stat()
    other = Draws(parts[1], 0, 16, views, tmp_path, decodes=False)
    assert (tmp_path / "cache" / "labelled-16.npy").stat().st_mtime_ns == written.st_mtime_ns
    assert len(first.places) == 13 and parts[0].unreadable == parts[1].unreadable != {}
    first.count = other.count = 13
    assert all(torch.equal(first[j]["images"], other[j]["images"]) for j in range(13))
    assert [first[j]["labels"] for j in range(13)] == [other[j]["labels"] for j in range(13)]


@pytest.mark.parametrize(
    ("name", "images", "steps", "peak"),
    [
        ("simclr_v1_finetune_1pct", 12_811, 188, 0.8),
        ("simclr_v1_finetune_10pct", 128_116, 939, 0.8),
        ("simclr_v2_finetune_1pct", 12_811, 751, 0.16),
        ("simclr_v2_finetune_10pct", 128_116, 3754, 0.16),
        ("simclr_v2_finetune_100pct", 1_281_167, 37535, 0.16),
    ],
)
def test_the_papers_recipes_say_what_the_papers_do(name: str, images: int, steps: int, peak: float) -> None:
    recipe = load_recipe(name, ("bf16=false",), FINETUNE)
    args = ClassifierArguments(**{**recipe["training"], "output_dir": "unused"})
    plan(args, images)
    assert args.max_steps == steps and args.eval_steps == args.save_steps == -(-images // args.global_batch)
    assert scale_learning_rate(args.learning_rate, args.global_batch, args.lr_scaling) == pytest.approx(peak)
    v2 = name.startswith("simclr_v2")
    assert args.optimizer == ("lars" if v2 else "sgd") and args.weight_decay == 0 and args.max_grad_norm == 0
    assert args.projection_layer == (v2 and not name.endswith("100pct")) and args.head == "frozen"
    assert recipe["labels"] == {"1pct": "1%", "10pct": "10%", "100pct": None}[name.rpartition("_")[2]]
    assert args.warmup_epochs == 0 and args.patience == 0 and args.trained_from == "stem"


def test_classes_weigh_alike_and_images_one_on_the_mean() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [3])
    weights = class_weights(labels, 4)
    each = weights[labels]
    assert each.mean() == pytest.approx(1) and weights[2] == 0
    assert [float(each[labels == c].sum()) for c in (0, 1, 3)] == pytest.approx([10 / 3] * 3)


def test_the_loss_is_weighted_by_class(photos: Path, tmp_path: Path) -> None:
    trainer = small_trainer(photos, tmp_path, 16, 0)
    start_from_zeros(trainer.model.classifier)
    rows = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    for label in range(3):
        loss = trainer.compute_loss(trainer.model, {"images": rows, "labels": torch.full((8,), label)})
        assert loss.item() == pytest.approx(float(trainer.weights[label]) * np.log(3), rel=1e-5)


def test_moving_variances_are_the_biased_ones(photos: Path, tmp_path: Path) -> None:
    trainer = small_trainer(photos, tmp_path, 16, 0)
    norm = [module for module in trainer.model.modules() if isinstance(module, _BatchNorm)][-1]  # of g: n = 8
    seen: list[Tensor] = []
    norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    before = norm.running_var.clone()
    images = torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8)
    trainer.compute_loss(trainer.model, {"images": images, "labels": torch.zeros(8, dtype=torch.int64)})
    torch.testing.assert_close(norm.running_var, before.lerp(seen[0].var(0, correction=0), norm.momentum))


def test_the_best_is_the_first_of_equal_ones() -> None:
    assert [since_best([{"eval_top1": v} for v in values]) for values in ([], [1], [1, 3, 3], [1, 2, 3])] == [
        0,
        0,
        1,
        0,
    ]


def small_trainer(photos: Path, output: Path, side: int | None, patience: int) -> Any:
    torch.manual_seed(0)
    model = SimCLRForImageClassification(SimCLRConfig(**SECTION, num_labels=3, classifier_layer=1))
    choose_trained(model, "stem", "trained")
    part, views = part_of(photos), Views(16, operations=["crop", "flip"])
    output.mkdir(exist_ok=True)
    draws = Draws(part, 0, side, views, output)
    draws.count = 7 * 8
    training = {**RECIPE["training"], "save_steps": 1, "output_dir": str(output), "ema_decay": 0.5, "max_steps": 7}
    more_settings = {"patience": patience, "eval_strategy": "steps", "eval_steps": 2} if patience else {}
    args = ClassifierArguments(**{**training, **more_settings})
    processor = SimCLRImageProcessor(size=16)
    evaluation = Evaluation(Part.open(str(photos), "validation", Rules()), processor)
    weights = class_weights(draws.labels, 3)
    return ClassifierTrainer(model, args, views, processor, weights, train_dataset=draws, eval_dataset=evaluation)


@pytest.mark.parametrize(
    ("side", "patience", "stops"),
    [
        (16, 3, (2,)),
        pytest.param(16, 3, (1, 5, 6), marks=pytest.mark.slow),
        pytest.param(None, 0, (1, 2, 5, 6), marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_ends_with_the_same_bits(
    photos: Path, tmp_path: Path, side: int | None, patience: int, stops: tuple[int, ...]
) -> None:
    small_trainer(photos, tmp_path / "whole", side, patience).train()
    whole = weights_of(tmp_path / "whole" / "checkpoint-7")
    assert {key.partition(".")[0] for key in whole} >= ({"ema", "best"} if patience else {"ema"})
    for step in stops:
        output = tmp_path / f"after-{step}"
        output.mkdir()
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", output / f"checkpoint-{step}")
        torch.rand(step)  # another process's generator is elsewhere
        again = small_trainer(photos, output, side, patience)
        again.train(resume_from_checkpoint=get_last_checkpoint(str(output)))
        found = weights_of(output / "checkpoint-7")
        assert_same_bits(whole, found)


def test_a_run_ends_where_nothing_gets_better_and_keeps_the_best(
    photos: Path, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evaluations say 50, 60, 60, 55: the second is the best, and two later ones are no better."""
    values = iter([50.0, 60.0, 60.0, 55.0, 99.0, 99.0])
    seen: list[dict[str, Tensor]] = []

    def told(trainer: ClassifierTrainer, model: SimCLRForImageClassification | None = None) -> Any:
        found = (model or trainer.result).state_dict()
        seen.append({key: value.clone() for key, value in found.items()})
        return {"top1": next(values), "loss": 1.0}, 12

    monkeypatch.setattr(ClassifierTrainer, "measure", told)
    output = tmp_path / "out"
    settings = (f"data={photos}", f"output_dir={output}", "patience=2", "eval_strategy=epoch", "num_train_epochs=20")
    settings = (*settings, "save_steps=8")
    final = finetune(recipe, settings)
    assert len(seen) == 5  # the last is of the result
    best = load_file(final / "model.safetensors")
    assert all(torch.equal(best[key], value) for key, value in seen[1].items() if key in best)
    assert not all(torch.equal(best[key], value) for key, value in seen[3].items() if key in best)
    state = json.loads((output / "checkpoint-8" / "trainer_state.json").read_text())
    assert state["global_step"] == 8 and not (output / "checkpoint-10").exists()
    values = iter([77.0])
    finetune(recipe, settings)  # it had ended: it is not gone on with
    assert len(seen) == 6 and not (output / "checkpoint-10").exists()
    again = load_file(final / "model.safetensors")
    assert all(torch.equal(best[key], again[key]) for key in best)
    assert "the best of several evaluations" in (final / "results.json").read_text()


def test_a_folder_to_a_classifier_that_names_labels(
    photos: Path, recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    final = finetune(recipe, (f"data={photos}", f"output_dir={tmp_path / 'out'}", "num_train_epochs=15"))
    told = capsys.readouterr().err
    assert "13 images to learn 3 classes from, 12 to evaluate on; 25 steps of 8 images" in told
    state = json.loads((tmp_path / "out" / "checkpoint-3" / "trainer_state.json").read_text())
    assert state["log_history"][0]["loss"] == pytest.approx(np.log(3), rel=1e-4)  # the classifier starts from zeros
    classifier = pipeline("image-classification", str(final), device="cpu")
    found = classifier([str(photos / "val" / name / "0.png") for name in COLOURS])
    assert [one[0]["label"] for one in found] == list(COLOURS)
    record = json.loads((final / "results.json").read_text())
    [result] = record["results"]
    assert result["value"] > 90 and "95 % interval" in result["measure"] and "12 images" in result["dataset"]
    assert record["data"] == "photos, split train: 13 images" and str(tmp_path) not in json.dumps(record)
    card = (final / "README.md").read_text()
    assert "pipeline_tag: image-classification" in card and "`simclr-hub finetune`" in card
    assert load_recipe(str(final / "recipe.yaml"), (), FINETUNE)["training"]["num_train_epochs"] == 15
    assert isinstance(SimCLRModel.from_pretrained(final), SimCLRModel)  # and on from here


def test_a_start_takes_another_side(photos: Path, recipe: str, tmp_path: Path) -> None:
    start = tmp_path / "start"
    SimCLRModel(SimCLRConfig(**{**SECTION, "image_size": 32})).save_pretrained(start)
    settings = (f"data={photos}", f"output_dir={tmp_path / 'out'}", f"init_from={start}", "max_steps=1")
    final = finetune(recipe, settings)  # whose section model says 16
    assert SimCLRImageProcessor.from_pretrained(final).size["height"] == 16


def test_only_the_classifier_learns_if_only_that_is_to(photos: Path, recipe: str, tmp_path: Path) -> None:
    start = tmp_path / "start"
    SimCLRModel(SimCLRConfig(**SECTION)).save_pretrained(start)
    settings = (f"data={photos}", f"output_dir={tmp_path / 'out'}", f"init_from={start}", "labels=2", "max_steps=2")
    final = finetune(recipe, (*settings, "trained_from=classifier"))
    before, after = load_file(start / "model.safetensors"), load_file(final / "model.safetensors")
    encoder = [key for key in before if key.startswith("encoder.") and not key.endswith("num_batches_tracked")]
    assert encoder and all(torch.equal(before[key], after[f"simclr.{key}"]) for key in encoder)
    assert after["classifier.weight"].abs().max() > 0
    assert "split train: 6 images" in (final / "results.json").read_text()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("temperatur=1",), "unknown key temperatur"),
        (("temperature=1",), "unknown key temperature"),  # of pretraining
        (("patience_=3",), "unknown key patience_; is it patience"),
        (("head=thawed",), "head=thawed is not one of frozen, trained"),
        (("trained_from=stage9",), "trained_from=stage9 is not one of stem"),
        (("trained_from=stage4",), "is not one of stem, stage1, stage2, classifier"),  # the model has two
        (("class_weights=some",), "class_weights=some is not one of none, balanced"),
        (("projection_layer=3",), "the model's g has 2 layers"),
        (("projection_layer=-1",), "projection_layer=-1 must not be negative"),
        (("patience=2",), "patience=2 needs evaluations"),
        (("patience=-1",), "patience=-1 must not be negative"),
        (("labels=0%",), "labels=0%"),
        (("labels=nowhere.txt",), "labels=nowhere.txt"),
        (("eval_split=train",), "eval_split=train is what is learnt from"),
        (("init_from=/nowhere",), "init_from=/nowhere"),
        (("data=",), "needs data=FOLDER"),
    ],
)
def test_wrong_settings_are_named(settings: tuple[str, ...], named: str, recipe: str, photos: Path) -> None:
    with pytest.raises(RecipeError, match=named):
        finetune(recipe, (f"data={photos}", f"output_dir={photos.parent / 'refused'}", *settings))


def test_recipes_are_listed_by_command() -> None:
    with pytest.raises(RecipeError, match=r"there are finetune_photos, simclr_v1_finetune_10pct"):
        load_recipe("none", (), FINETUNE)
    with pytest.raises(RecipeError) as refused:
        load_recipe("none")
    assert "finetune" not in str(refused.value)


@pytest.mark.slow
def test_unreadable_images_are_left_out_and_listed(photos: Path, recipe: str, tmp_path: Path) -> None:
    shutil.copytree(photos, tmp_path / "some")
    for split in ("train", "val"):
        (tmp_path / "some" / split / "dog" / "bad.png").write_bytes(b"text")
    for side in ("16", "null"):
        output = tmp_path / f"out-{side}"
        data = (f"data={tmp_path / 'some'}", f"side={side}", f"output_dir={output}", "max_steps=3")
        final = finetune(recipe, data)
        assert (output / "unreadable.txt").read_text().count("bad.png") == 2
        assert "12 images" in (final / "results.json").read_text()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_any_moment_a_rerun_gives_the_same_classifier(photos: Path, recipe: str, tmp_path: Path) -> None:
    settings = [recipe, f"data={photos}", "max_steps=150", "save_steps=1", "save_total_limit=2", "ema_decay=0.9"]
    settings += ["patience=1000", "eval_strategy=epoch", "class_weights=balanced"]
    assert_killed_runs_end_alike("finetune", settings, tmp_path, 150)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [(), ("trained_from=classifier", "head=frozen")])
def test_two_processes_end_with_the_weights_of_one(
    photos: Path, recipe: str, tmp_path: Path, trained: tuple[str, ...]
) -> None:
    """With the classifier on g's first layer, whose second is computed for its statistics alone."""
    settings = [recipe, f"data={photos}", "side=null", "projection_layer=1", "head=trained", "ema_decay=0.5"]
    settings += ["class_weights=balanced", "eval_strategy=steps", "eval_steps=2", "patience=9", "learning_rate=0.05"]
    for processes in (1, 2):
        run_on(processes, "finetune", *settings, *trained, f"output_dir={tmp_path / str(processes)}")
    one, two = (tmp_path / n / "checkpoint-7" for n in ("1", "2"))
    theirs = weights_of(one)
    assert {key.partition(".")[0] for key in theirs} >= {"ema", "best", "simclr"}
    for key, value in weights_of(two).items():
        torch.testing.assert_close(value, theirs[key], rtol=1e-4, atol=1e-5, msg=key)
    logs = [json.loads((path / "trainer_state.json").read_text())["log_history"] for path in (one, two)]
    for name in ("loss", "eval_top1", "eval_loss"):
        ours, alone = ([entry[name] for entry in log if name in entry] for log in (logs[1], logs[0]))
        assert ours == pytest.approx(alone, abs=1e-4) and ours
    norm = "simclr.projection.layers.1.normalization.running_mean"
    assert "running_mean" in " ".join(theirs) and (norm not in theirs or theirs[norm].abs().max() > 0)
    assert {path.name for path in two.iterdir()} >= {"rng_state_0.pth", "rng_state_1.pth"}
    assert json.loads((tmp_path / "2" / "final" / "results.json").read_text())["data"].endswith("13 images")
