"""A recipe from a stranger trains, and does nothing else; and what is misspelt is told."""

import dataclasses
from itertools import pairwise
from pathlib import Path

import datasets
import huggingface_hub
import numpy as np
import pytest
import yaml
from huggingface_hub.errors import RepositoryNotFoundError
from PIL import Image
from transformers import TrainingArguments

from simclr_hub.errors import PublishError, RecipeError
from simclr_hub.training.data import open_rows
from simclr_hub.training.pretrain import RECIPE_LIMIT, load_recipe, pretrain
from simclr_hub.training.trained_cards import recipe_text
from simclr_hub.training.trainer import KIND_OF, SimCLRTrainingArguments

#: What uploads, reports, reads or writes elsewhere, or looks for code, in the versions of transformers up to 5.24.
REACHING_OUT = (
    "push_to_hub hub_model_id hub_token hub_strategy hub_private_repo hub_always_push hub_revision run_name project "
    "trackio_space_id trackio_bucket_id trackio_static_space_id deepspeed fsdp fsdp_config accelerator_config "
    "parallelism_config resume_from_checkpoint torch_compile_backend torch_compile_mode use_liger_kernel "
    "liger_kernel_config neftune_noise_alpha optim optim_args optim_target_modules auto_find_batch_size debug "
    "dataloader_multiprocessing_context enable_jit_checkpoint restore_callback_states_from_checkpoint do_predict"
).split()


@pytest.fixture
def write(tmp_path):
    def write(text: str | bytes | dict) -> str:
        path = tmp_path / "strange.yaml"
        text = yaml.safe_dump(text) if isinstance(text, dict) else text
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


@pytest.mark.parametrize("key", REACHING_OUT)
def test_what_reaches_out_is_refused_in_a_recipe_and_in_a_setting(key, write):
    assert key in {field.name for field in dataclasses.fields(TrainingArguments)}, "no longer there: drop it here"
    for value in ("true", "org/stranger", "/etc/passwd"):
        for recipe in ({"training": {key: value}}, {"gpu": {"training": {key: value}}}):
            with pytest.raises(RecipeError, match=f"strange.yaml: {key} cannot be set.*simclr-hub publish"):
                load_recipe(write(recipe))
        for setting in (f"{key}={value}", f"training.{key}={value}"):
            with pytest.raises(RecipeError, match=f"photos: {key} cannot be set"):
                load_recipe("photos", (setting,))


def test_every_argument_of_transformers_is_refused_unless_it_was_looked_at():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    assert KIND_OF.keys() <= fields
    assert not {name for name in KIND_OF if name.startswith(("hub_", "trackio_", "push_"))}


@pytest.mark.parametrize("value", ["wandb", "all", "trackio", "[tensorboard, comet_ml]", "[[wandb]]", "true"])
def test_only_reports_that_stay_here(value):
    with pytest.raises(RecipeError, match="report_to="):
        load_recipe("photos", (f"report_to={value}",))
    assert load_recipe("photos", ("report_to=none",))["training"]["report_to"] == "none"
    load_recipe("photos", ("report_to=[tensorboard]",))


def test_nothing_is_reported_unless_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setattr(TrainingArguments.__dataclass_fields__["report_to"], "default", "all")
    assert SimCLRTrainingArguments(output_dir=str(tmp_path), batch_size=2, use_cpu=True).report_to == []


@pytest.mark.parametrize("output", ["/etc", "../elsewhere", "a/../../b", "~/Pictures"])
def test_a_recipe_cannot_say_where_outside_the_folder_to_write(output, write):
    with pytest.raises(RecipeError, match="output_dir=.*leads out"):
        load_recipe(write({"training": {"output_dir": output}}))
    load_recipe(write({"training": {"output_dir": "runs/mine"}}), (f"output_dir={output}",))  # whoever starts it can


LAUGHS = "a: &a [x, x]\n" + "".join(f"{c}: &{c} [*{b}, *{b}, *{b}, *{b}]\n" for b, c in pairwise("abcdefghi"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (LAUGHS, "aliases .* are not read"),
        ("model: &m {depths: [1]}\nviews: *m", "aliases"),
        ("model: {<<: {depths: [1]}, depths: [2]}", "twice|unknown"),
        ("side: 1\nside: 2", "twice"),
        ("a: " + "[" * 2000, "not YAML"),
        ("#" + " " * RECIPE_LIMIT, "bytes, more than"),
        ("side: 1" + "0" * 5000, "not YAML"),
        ("data: 2019-02-31", "not YAML"),
        ("data: !!python/object/apply:os.system [true]", "not YAML"),
        (b"data: \xff\xfe\xfa", "cannot be read as text|not YAML"),
        ("1: 2", "unknown key 1"),
        ("? [a]\n: b", "not YAML"),
        ("training: {1: 2}", "unknown key 1"),
        ("model: {[a]: 2}", "not YAML"),
        ("---\na: 1\n---\nb: 2", "not YAML"),
        ("data: {a: b}", "data=.*text"),
        ("data: [[a]]", "data=.*text"),
        ("data: 3", "data=3 must be text"),
        ("split: [a]", "split="),
        ("side: true", "side=True"),
        ("side: 100000", "side=100000 must lie between"),
        ("include_hidden: 1", "include_hidden=1"),
        ("init_from: [a]", "init_from="),
        ("views: {size: 1000000}", "views.size=1000000"),
        ("views: {count: 1000000}", "views.count=1000000"),
        ("views: {colour: 1}", "unknown key in views colour"),
        ("model: {quantization_config: {}}", "unknown key in model quantization_config"),
        ("training: {learning_rate: fast}", "learning_rate=fast must be a number"),
        ("training: {learning_rate: .nan}", "learning_rate=nan must be a number"),
        ("training: {learning_rate: true}", "learning_rate=True must be a number"),
        ("training: {batch_size: 1.5}", "batch_size=1.5 must be a whole number"),
        ("training: {batch_size: 10000000000000000}", "batch_size=.*must lie between"),
        ("training: {dataloader_num_workers: 100000}", "dataloader_num_workers=100000 must lie"),
        ("training: {bf16: maybe}", "bf16=maybe must be true or false"),
        ("training: {output_dir: [a]}", "output_dir=.*must be text"),
        ("training: {lr_scheduler_kwargs: 3}", "lr_scheduler_kwargs=3"),
        ("training: {seed: null}", "seed=None must be a whole number"),
        ("gpu: {training: {learning_rate: fast}}", "learning_rate=fast"),
        ("gpu: {side: big}", "side=big"),
    ],
    ids=range(39),
)  # fmt: skip
def test_a_strange_recipe_is_one_error_that_names_the_key(text, said, write):
    with pytest.raises(RecipeError, match=said) as e:
        load_recipe(write(text))
    assert "strange.yaml" in str(e.value) and len(str(e.value)) < 600


@pytest.mark.parametrize(
    ("setting", "taken"),
    [
        ("data=2019", "2019"),
        ("data=2019-08-01", "2019-08-01"),
        ("data=[2019] Trip", "[2019] Trip"),
        ("data=[2019, a b]", ["2019", "a b"]),
        ("data={a}", "{a}"),
        ("data='2019'", "2019"),
        ("exclude=*.png", "*.png"),
        ("init_from=null", None),
        ("init_from=", None),
    ],
)
def test_a_folder_may_be_called_a_number(setting, taken):
    assert load_recipe("photos", (setting,))[setting.partition("=")[0]] == taken


@pytest.mark.parametrize(
    ("setting", "meant"),
    [
        ("epochs=3", "num_train_epochs"),
        ("lr=0.1", "learning_rate"),
        ("learning_rat=1", "learning_rate"),
        ("batch=8", "batch_size"),
        ("workers=2", "dataloader_num_workers"),
        ("size=32", "views.size"),
        ("depths=[1]", "model.depths"),
        ("evalsplit=test", "eval_split"),
        ("views.sise=1", "size"),
        ("model.widht_multiplier=1", "width_multiplier"),
    ],
)
def test_a_misspelt_setting_is_told_what_may_be_meant(setting, meant):
    with pytest.raises(RecipeError, match=f"unknown key .*is it .*{meant}"):
        load_recipe("photos", (setting,))


def test_a_batch_of_one_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "one" / "a.png")
    with pytest.raises(RecipeError, match="set batch_size=2"):
        pretrain("photos", ("data=one", "batch_size=1", "init_from=", "use_cpu=true"))
    with pytest.raises(RecipeError, match="1 images are fewer than a batch; add images: 2 are the least"):
        pretrain("photos", ("data=one", "batch_size=4", "init_from=", "use_cpu=true", "side=8"))


def test_a_name_that_is_not_there_asks_the_hub_once_and_a_path_never(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    asked = []

    def not_found(self, name, **kwargs):
        asked.append(name)
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", not_found)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: pytest.fail("asked again"))
    for path in ("photos/holliday", "./photo", "/nowhere/at/all"):
        with pytest.raises(RecipeError, match="no such folder"):
            open_rows(path, "train")
    assert not asked
    with pytest.raises(RecipeError, match="data=org/name: .*no such data set on the Hub"):
        open_rows("org/name", "train")
    assert asked == ["org/name"]


def test_a_recipe_without_end_is_not_put_on_a_card(tmp_path):
    (path := Path(tmp_path / "long.yaml")).write_bytes(b"#" * (1 << 20))
    with pytest.raises(PublishError, match="too long"):
        recipe_text(str(path))
