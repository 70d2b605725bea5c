import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file
from training_runs import SECTION

from simclr_hub import SimCLRModel
from simclr_hub.errors import RecipeError, TrainingError
from simclr_hub.loading import weights_hash
from simclr_hub.scan import Rules
from simclr_hub.sources import folder_images
from simclr_hub.training.augmentations import Views
from simclr_hub.training.data import ImageArray, ImageViews, open_rows
from simclr_hub.training.pretrain import load_recipe, pretrain, start_model
from simclr_hub.training.protocols import features, knn_accuracy
from simclr_hub.training.publish import stage_model
from simclr_hub.training.trainer import SimCLRTrainer

RECIPE = {
    "side": 16,
    "model": SECTION,
    "views": {"size": 16},
    "training": {
        "per_device_train_batch_size": 8,
        "max_steps": 4,
        "save_steps": 2,
        "ema_decay": 0.9,
        "use_cpu": True,
        "disable_tqdm": True,
    },
}


@pytest.fixture(autouse=True)
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Class folders of 9 images each, one of them not 16 x 16."""
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (tmp_path / "photos" / label).mkdir(parents=True)
        for i in range(9):
            side = 32 if i == 0 else 16
            pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / label / f"{i}.png")
    return tmp_path / "photos"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(RECIPE))
    return str(path)


def test_the_shipped_recipe_and_settings() -> None:
    plain = load_recipe("tiny_imagenet_default")
    assert plain["model"]["width_multiplier"] == 0.5 and plain["training"]["learning_rate"] == 1.2
    changed = load_recipe(
        "tiny_imagenet_default",
        ("data=photos", "side=32", "views.size=24", "model.depths=[1, 1]", "learning_rate=1e-3", "training.seed=7")
        + ("eval_strategy=no", "bf16=true"),
    )
    assert (changed["training"]["eval_strategy"], changed["training"]["bf16"]) == ("no", True)  # YAML 1.1: False
    assert (changed["data"], changed["side"], changed["views"]["size"]) == ("photos", 32, 24)
    assert changed["model"]["depths"] == [1, 1]
    assert changed["training"]["learning_rate"] == 0.001  # plain YAML 1.1 would give the text "1e-3"
    assert changed["training"]["seed"] == 7
    assert plain == load_recipe("tiny_imagenet_default")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (("width",), "setting 'width' is not key=value"),
        (("learning_rat=1",), "learning_rat"),
        (("views.sise=1",), "sise"),
        (("model.widht=1",), "widht"),
        (("optimizer.lr=1",), "optimizer.lr"),
        (("views.size=0",), "size=0"),
        (("model.stem_type=large",), "stem_type='large'"),
        (("temperature=-1",), "temperature=-1"),
        (("temperature=warm",), "temperature=warm must be a number"),
        (("side=big",), "side=big"),
        (("views.size=[1",), r"views.size=\[1: not YAML"),
        (("data=",), "needs data=FOLDER"),
        (("data=no/such/folder/here",), "data=no/such/folder/here"),
        (("split=test",), "test"),
        (("init_from=/nowhere/model",), "init_from=/nowhere/model"),
        (("per_device_train_batch_size=32",), "18 images are fewer than a batch"),
    ],
)
def test_wrong_settings_are_named(settings: tuple[str, ...], named: str, recipe: str, photos: Path) -> None:
    output = f"output_dir={photos.parent / 'out'}"
    with pytest.raises(RecipeError, match=named):
        pretrain(recipe, (f"data={photos}", output, *settings))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("- a\n- b", "not list"),
        ("", "not NoneType"),
        ("model: [1", "not YAML"),
        ("model: 3", "model must have keys, not 3"),
        ("modle: {}\nviews: {size: 1}", "unknown key modle"),
    ],
)
def test_wrong_recipes_are_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=named) as e:
        load_recipe(str(path))
    assert "wrong.yaml" in str(e.value)


def test_an_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(RecipeError, match="no recipe 'tiny'; there are .*tiny_imagenet_default"):
        load_recipe("tiny")
    with pytest.raises(RecipeError, match="no recipe 'nowhere.yaml'"):
        load_recipe("nowhere.yaml")


def test_a_folder_to_a_loadable_model_and_further(recipe: str, photos: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    settings = (f"data={photos}", f"output_dir={output}")
    final = pretrain(recipe, settings)
    assert final == output / "final"
    model = SimCLRModel.from_pretrained(final).eval()
    assert model(torch.rand(2, 3, 16, 16)).pooler_output.shape == (2, 16)
    assert {path.name for path in output.iterdir()} == {
        "before.json",
        "cache",
        "checkpoint-2",
        "checkpoint-4",
        "curves.png",
        "final",
        ".lock",
    }
    ema = load_file(output / "checkpoint-4" / "ema" / "model.safetensors")
    assert all(torch.equal(value, ema[key]) for key, value in load_file(final / "model.safetensors").items())

    (output / ".checkpoint-6.killed").mkdir()  # what a kill leaves
    assert pretrain(recipe, (*settings, "max_steps=6")) == final
    state = json.loads((output / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["global_step"] == 6
    assert not list(output.glob(".checkpoint-*"))
    ema = load_file(output / "checkpoint-6" / "ema" / "model.safetensors")
    assert all(torch.equal(value, ema[key]) for key, value in load_file(final / "model.safetensors").items())

    other = pretrain(
        recipe, (f"data={photos}", f"output_dir={tmp_path / 'other'}", f"init_from={final}", "max_steps=1")
    )
    assert SimCLRModel.from_pretrained(other).config.depths == [1, 1]


def test_a_run_with_labels_ends_with_before_and_after(
    recipe: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    settings = (f"data={photos}", f"output_dir={output}", "seed=5")
    final = pretrain(recipe, settings)
    kept = json.loads((output / "before.json").read_text())
    # Of the weights it started from: every tenth of 18 images is one, looked up among 17.
    start, _ = start_model(load_recipe(recipe, settings)["model"], None, 5)
    array = ImageArray.load(str(photos), "train", 16, output / "cache")
    h, labels = features(start, array, 18)
    others = torch.arange(18) != 9
    expected = knn_accuracy(h[9:10], labels[9:10], h[others], labels[others])[0]
    assert (kept["knn"], kept["images"], kept["of"]["weights"]) == (expected, 1, weights_hash(start))
    after, before = json.loads((final / "results.json").read_text())["results"]
    assert after["dataset"].endswith("every tenth image") and before["value"] == expected
    told = f"1 images of every tenth image: {expected:.2f} % before training, {after['value']:.2f} % ["
    assert told in capsys.readouterr().err

    # Gone on with, a run reads it; with other data, or if it is damaged, it is measured again.
    measured: list[tuple[float, int]] = []
    knn = SimCLRTrainer.knn

    def watched(self: SimCLRTrainer) -> tuple[float, int]:
        measured.append(knn(self))
        return measured[-1]

    monkeypatch.setattr(SimCLRTrainer, "knn", watched)
    (output / "before.json").write_text(json.dumps({**kept, "knn": 12.5}))
    pretrain(recipe, (*settings, "max_steps=5"))
    assert "12.50 % before training" in capsys.readouterr().err and len(measured) == 1  # after
    (output / "before.json").write_text(json.dumps({**kept, "knn": 12.5})[:-9])
    pretrain(recipe, (*settings, "max_steps=6"))
    assert f"{expected:.2f} % before training" in capsys.readouterr().err and len(measured) == 3
    (output / "before.json").write_text(json.dumps({**kept, "knn": 12.5, "of": {**kept["of"], "weights": "x"}}))
    pretrain(recipe, (*settings, "max_steps=7"))
    assert "12.50" not in capsys.readouterr().err and len(measured) == 5
    # Without labels nothing is measured.
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.rglob("*.png"):
        (flat / f"{path.parent.name}-{path.name}").write_bytes(path.read_bytes())
    pretrain(recipe, (f"data={flat}", f"output_dir={tmp_path / 'none'}"))
    assert len(measured) == 5 and not (tmp_path / "none" / "before.json").exists()


def test_a_second_process_in_the_same_directory_is_refused(recipe: str, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"):
        with pytest.raises(RecipeError, match="another process trains in .*out"):
            pretrain(recipe, (f"data={photos}", f"output_dir={tmp_path / 'out'}"))


def test_images_are_decoded_once_with_labels(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ImageArray.load(str(photos), "train", 16, tmp_path / "cache")
    assert first.images.shape == (18, 3, 16, 16) and first.images.dtype == np.uint8
    assert first.labels is not None and first.labels.tolist() == [0] * 9 + [1] * 9
    expected = np.asarray(Image.open(photos / "cat" / "1.png")).transpose(2, 0, 1)
    assert np.array_equal(first[1]["images"].numpy(), expected)
    with monkeypatch.context() as patch:
        patch.setattr("simclr_hub.training.data.load_image", None)  # not called again
        again = ImageArray.load(str(photos), "train", 16, tmp_path / "cache")
    assert np.array_equal(again.images, first.images) and np.array_equal(again.labels, first.labels)
    Image.new("RGB", (16, 16), "red").save(photos / "dog" / "9.png")
    assert len(ImageArray.load(str(photos), "train", 16, tmp_path / "cache")) == 19  # the folder changed


def test_unreadable_images_are_left_out_and_listed(recipe: str, photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "3.png").write_bytes((photos / "cat" / "3.png").read_bytes()[:200])
    pretrain(recipe, (f"data={photos}", f"output_dir={tmp_path / 'out'}"))
    assert (tmp_path / "out" / "unreadable.txt").read_text().count("3.png") == 1
    data = ImageArray.load(str(photos), "train", 16, tmp_path / "out" / "cache")
    assert len(data) == 17 and data.labels is not None and data.labels.tolist() == [0] * 8 + [1] * 9
    expected = np.asarray(Image.open(photos / "cat" / "4.png")).transpose(2, 0, 1)
    assert np.array_equal(data.images[3], expected)


def test_views_from_the_originals_depend_on_epoch_and_position_alone(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "3.png").write_bytes(b"broken")
    data = ImageViews(str(photos), "train", Views(8), seed=1, log=tmp_path / "unreadable.txt")
    first = [data[i]["views"] for i in range(18)]
    assert first[0].shape == (2, 3, 8, 8) and not torch.equal(first[0][0], first[0][1])
    assert [data[i]["labels"] for i in (2, 3, 17)] == [0, 0, 1]
    assert "3.png" in (tmp_path / "unreadable.txt").read_text()
    loader = torch.utils.data.DataLoader(data, batch_size=6, num_workers=2)
    assert torch.equal(torch.cat([batch["views"] for batch in loader]), torch.stack(first))
    state = torch.random.get_rng_state()
    data.set_epoch(1)
    assert not torch.equal(data[0]["views"], first[0])
    assert torch.equal(torch.random.get_rng_state(), state)
    scheduled = ImageViews(str(photos), "train", Views(8, sizes=[{"from": 0.5, "size": 16}]), 1, tmp_path / "log")
    sides = []
    for epoch, progress in enumerate((0.0, 0.4, 0.5, 0.9)):
        scheduled.set_epoch(epoch, progress)
        sides.append(scheduled[0]["views"].shape[-1])
    assert sides == [8, 8, 16, 16]


def test_the_originals_are_trained_on_by_workers(recipe: str, photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "3.png").write_bytes(b"broken")
    settings = (f"data={photos}", f"output_dir={tmp_path / 'out'}", "side=null", "dataloader_num_workers=1")
    model = SimCLRModel.from_pretrained(pretrain(recipe, settings))
    assert model.config.image_size == 16
    assert (tmp_path / "out" / "unreadable.txt").read_text().count("3.png") == 1  # of two epochs


def test_a_run_that_diverged_after_its_last_log_leaves_no_model(recipe: str, photos: Path, tmp_path: Path) -> None:
    settings = (f"data={photos}", f"output_dir={tmp_path / 'out'}", "learning_rate=1e38", "save_strategy=no")
    with pytest.raises(TrainingError, match="not finite"):
        pretrain(recipe, settings)
    assert not (tmp_path / "out" / "final").exists()


def test_parquet_gives_the_same_array(photos: Path, tmp_path: Path) -> None:
    (tmp_path / "parquet").mkdir()
    datasets.load_dataset(str(photos), split="train").to_parquet(tmp_path / "parquet" / "train-00000-of-00001.parquet")
    from_folder = ImageArray.load(str(photos), "train", 16, tmp_path / "a")
    from_parquet = ImageArray.load(str(tmp_path / "parquet"), "train", 16, tmp_path / "b")
    assert np.array_equal(from_folder.images, from_parquet.images)
    assert np.array_equal(from_folder.labels, from_parquet.labels)


def test_several_sources_are_joined_and_classes_go_by_name(photos: Path, tmp_path: Path, recipe: str) -> None:
    more = tmp_path / "more"
    for i, label in enumerate(("cat", "bird")):
        (more / label).mkdir(parents=True)
        Image.new("RGB", (16, 16), (0, 100 * i, 200)).save(more / label / "0.png")
    first = ImageArray.load(str(photos), "train", 16, tmp_path / "a")
    joined = ImageArray.load([str(photos), str(more)], "train", 16, tmp_path / "b")
    assert len(joined) == 20 and np.array_equal(joined.images[:18], first.images)
    rows = open_rows([str(photos), str(more)], "train")
    assert rows.classes == ["cat", "dog", "bird"]
    # The folder of birds comes first in `more`, and its cats are the cats of the first source.
    assert joined.labels is not None and joined.labels[18:].tolist() == [2, 0]
    assert [joined.image(i)[1, 0, 0].item() for i in (18, 19)] == [100, 0]
    assert np.array_equal(joined.labels[:18], first.labels)
    (tmp_path / "plain").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "plain" / "0.png")
    assert open_rows([str(photos), str(tmp_path / "plain")], "train").labels is None
    final = pretrain(recipe, (f"data=[{photos}, {more}]", f"output_dir={tmp_path / 'run'}", "views.count=3"))
    record = json.loads((final / "results.json").read_text())
    assert record["data"] == "photos and more, split train: 20 images"
    assert record["trained"].startswith("4 steps of 8 images in 3 views")
    assert yaml.safe_load((final / "recipe.yaml").read_text())["data"] == ["photos", "more"]


NAMES = [
    "train_station.jpg",
    "2019 train ride/a.jpg",
    "test shots/b.png",
    "my dev board.jpg",
    "eval/c.jpg",
    "valid/d.jpg",
]


@pytest.mark.parametrize("inside", ["photos", "[2019] Trip", "train", "my test"])
def test_a_folder_is_what_the_index_finds_there_whatever_names_it_has(tmp_path: Path, inside: str) -> None:
    folder = tmp_path / inside
    side_files = ["a.txt", "b.txt", "c.mp4", "d.mp4", "IMG.jpg.json", "metadata.csv", "metadata.jsonl", "x/y.txt"]
    for name in (*NAMES, ".Trash-0/files/e.jpg", "._train.jpg", *side_files):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name in side_files:
            (folder / name).write_text("file_name,label\nnothing.jpg,1\n")
        else:
            Image.new("RGB", (16, 16)).save(folder / name)
    Image.new("RGB", (16, 16)).save(
        folder / "two.mpo", "MPO", save_all=True, append_images=[Image.new("RGB", (16, 16))]
    )
    Image.new("RGB", (16, 16)).save(folder / "three.avif")
    rows = open_rows(str(folder), "train")
    found = sorted(os.path.relpath(path, folder) for path in rows)
    assert found == sorted([*NAMES, "two.mpo", "three.avif"])
    assert found == sorted(os.path.relpath(path, folder) for path in folder_images(folder))
    assert rows.labels is None
    assert f"{folder}: 8 left out: not an image by its name" in rows.notes
    with pytest.raises(RecipeError, match="no split validation; the folder has no splits"):
        open_rows(str(folder), "validation")
    excluded = open_rows(str(folder), "train", Rules(exclude=("eval", "*.mpo")))
    assert len(excluded) == len(found) - 2


@pytest.mark.parametrize(
    ("tops", "splits"),
    [
        (("train", "val"), {"train": "train", "validation": "val"}),
        (("Train", "Test"), {"train": "Train", "test": "Test"}),
        (("train", "validation", "test"), {"train": "train", "validation": "validation", "test": "test"}),
        (("train", "val", "cats"), {}),
        (("train",), {}),
        (("val", "test"), {}),
        (("train", "val", "valid"), {}),
    ],
)
def test_splits_are_taken_only_where_the_top_folders_are_just_these(
    tmp_path: Path, tops: tuple[str, ...], splits: dict[str, str]
) -> None:
    for top in tops:
        for label in ("cat", "dog"):
            (tmp_path / top / label).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / top / label / "0.png")
    (tmp_path / "README.txt").write_text("words")
    if splits:
        for split, top in splits.items():
            rows = open_rows(str(tmp_path), split)
            assert (rows.classes, rows.labels) == (["cat", "dog"], [0, 1])
            assert all(Path(path).parts[-3] == top for path in rows)
            assert any(f"{split} is the folder {top} of it" in note for note in rows.notes)
    else:
        rows = open_rows(str(tmp_path), "train")
        assert (len(rows), rows.labels) == (2 * len(tops), None)


@pytest.mark.parametrize("source", ["/no/such/folder", "./here", "~/nowhere-at-all", "a/b/c", "[x]", "..."])
def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: object, **kwargs: object) -> None:
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(datasets, "load_dataset", asked)
    with pytest.raises(RecipeError, match="there is no such folder"):
        open_rows(source, "train")


def test_training_says_at_its_start_what_it_found(
    recipe: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "cat" / "3.png").write_bytes(b"broken")
    (photos / "notes.txt").write_text("words")
    pretrain(recipe, (f"data={photos}", f"output_dir={tmp_path / 'run'}", "max_steps=9"))
    told = capsys.readouterr().err
    assert "18 images found, 17 used, 1 unreadable (" in told and "2 classes" in told
    assert "9 steps of 8 images in 2 views, 4.5 epochs" in told
    assert "1 left out: not an image by its name" in told
    assert re.search(r"s a step: about 0:00:\d\d for the 5 that are left", told)


def test_broken_and_missing_data_are_named(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("words")
    with pytest.raises(RecipeError, match=r"texts: no photos in this folder \(1 not an image by its name\)"):
        ImageArray.load(str(tmp_path / "texts"), "train", 16, tmp_path / "cache")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "3.png").write_bytes((photos / "dog" / "3.png").read_bytes()[:200])
    with pytest.raises(RecipeError, match="no readable image in split train; first: .*3.png"):
        ImageArray.load(str(tmp_path / "broken"), "train", 16, tmp_path / "cache")

    def unreachable(*args: object, **kwargs: object) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(
        RecipeError, match="data=org/name: there is no such folder here, and the Hub says: Couldn't reach"
    ):
        ImageArray.load("org/name", "train", 16, tmp_path / "cache")


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(recipe: str, photos: Path, tmp_path: Path) -> None:
    settings = [recipe, f"data={photos}", "side=null", "batch_size=8", "logging_steps=1", "report_to=none"]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "datasets"), "OMP_NUM_THREADS": "1"}
    for processes in (1, 2):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--standalone"]
        command = [
            *launcher,
            "-m",
            "simclr_hub.training.pretrain",
            *settings,
            f"output_dir={tmp_path / str(processes)}",
        ]
        subprocess.run(command, check=True, env=environment, capture_output=True)
    for part in ("", "ema"):
        one, two = (load_file(tmp_path / n / "checkpoint-4" / part / "model.safetensors") for n in ("1", "2"))
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-5, msg=key)
    log = json.loads((tmp_path / "2" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    alone = json.loads((tmp_path / "1" / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    assert [a["loss"] for a in log] == pytest.approx([a["loss"] for a in alone], abs=1e-4)
    assert {"rng_state_0.pth", "rng_state_1.pth"} <= {
        path.name for path in (tmp_path / "2" / "checkpoint-4").iterdir()
    }


def test_a_run_is_ready_to_publish(recipe: str, photos: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    images = datasets.load_dataset(str(photos), split="train")
    for split in ("train", "test"):
        images.to_parquet(data / f"{split}-00000-of-00001.parquet")
    settings = (f"data={data}", f"output_dir={tmp_path / 'my run'}", "eval_split=test", "knn_bank=18")
    final = pretrain(recipe, settings)
    record = json.loads((final / "results.json").read_text())
    state = json.loads((tmp_path / "my run" / "checkpoint-4" / "trainer_state.json").read_text())
    assert record["data"] == "data, split train: 18 images"
    assert record["trained"] == "4 steps of 8 images, 2 epochs, weights averaged with a decay of 0.9"
    result, before = record["results"]
    assert before["measure"] == result["measure"] + ", before training" and 0 <= before["value"] <= 100
    assert 0 <= result["value"] <= 100 and state["global_step"] == 4
    again = load_recipe(str(final / "recipe.yaml"))
    assert again["data"] == "data" and again["eval_split"] == "test" and again["training"]["max_steps"] == 4
    (tmp_path / "staged").mkdir()
    stage_model(final, "org/my-run", tmp_path / "staged")
    card = (tmp_path / "staged" / "README.md").read_text()
    assert str(result["value"]) in card and "max_steps: 4" in card and str(tmp_path) not in card
    assert (final / "README.md").read_text() == card


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("extra", [[], ["memory=32"]])
def test_killed_at_any_moment_a_rerun_gives_the_same_weights(
    extra: list[str], recipe: str, photos: Path, tmp_path: Path
) -> None:
    def command(output: Path) -> list[str]:
        settings = [f"data={photos}", f"output_dir={output}", "max_steps=150", "save_steps=1", "save_total_limit=2"]
        settings += extra
        return [sys.executable, "-m", "simclr_hub.training.pretrain", recipe, *settings]

    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "datasets")}
    subprocess.run(command(tmp_path / "whole"), check=True, env=environment, capture_output=True)
    generator = random.Random(0)
    kills = 0
    for _ in range(10):
        process = subprocess.Popen(
            command(tmp_path / "killed"), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        before = set(tmp_path.glob("killed/checkpoint-*"))
        while process.poll() is None and set(tmp_path.glob("killed/checkpoint-*")) <= before:
            time.sleep(0.01)
        time.sleep(generator.uniform(0, 0.5))
        process.send_signal(signal.SIGKILL)
        kills += process.wait() == -signal.SIGKILL
        for checkpoint in tmp_path.glob("killed/checkpoint-*"):
            assert {"model.safetensors", "optimizer.pt", "trainer_state.json", "ema"} <= set(os.listdir(checkpoint))
    assert kills >= 3
    subprocess.run(command(tmp_path / "killed"), check=True, env=environment, capture_output=True)
    whole = load_file(tmp_path / "whole" / "final" / "model.safetensors")
    resumed = load_file(tmp_path / "killed" / "final" / "model.safetensors")
    assert not [key for key in whole if not torch.equal(whole[key], resumed[key])]
    for part in tmp_path.glob("whole/checkpoint-150/*.safetensors"):  # the memory and the probe as well
        ours, theirs = load_file(part), load_file(tmp_path / "killed" / "checkpoint-150" / part.name)
        assert not [key for key in ours if not torch.equal(ours[key], theirs[key])], part.name
