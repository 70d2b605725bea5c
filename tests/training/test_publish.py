"""The staged folder: what is in it, what is refused, what the command says. Uploading: tests/test_hub_roundtrip.py."""

import copy
import hashlib
import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import SAMPLE_PHOTOS, randomized, tiny_config

from simclr_hub import Embedder, SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel
from simclr_hub.errors import CheckpointError, PublishError
from simclr_hub.loading import load_whitening, weights_hash
from simclr_hub.training.evaluate import evaluate
from simclr_hub.training.publish import stage_model
from simclr_hub.training.stage import CODE, apache_licence, check_staged
from simclr_hub.training.trained_cards import write_record
from simclr_hub.whitening import Whitening

ROOT = Path(__file__).parents[2]
ALWAYS = {"README.md", "LICENSE", "config.json", "preprocessor_config.json", *CODE}
SECRET = "not-a-known-form-of-token-0123"


@pytest.fixture
def source(tiny_dir, tmp_path):
    """A copy of the tiny model's directory, to be spoiled."""
    return Path(shutil.copytree(tiny_dir, tmp_path / "source"))


@pytest.fixture
def stage(tmp_path):
    """Stage a directory: the folder that would be uploaded."""

    def stage(source, **options):
        out = tmp_path / "staged"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        stage_model(source, "org/name", out, **options)
        return out

    return stage


@pytest.fixture(scope="module")
def clean(tiny_dir, tmp_path_factory):
    """A staged folder with nothing wrong in it."""
    out = tmp_path_factory.mktemp("clean")
    stage_model(tiny_dir, "org/name", out)
    return out


def names(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_model_has_all_it_needs_and_nothing_else(source, stage):
    for name in (
        "training_args.bin",
        "optimizer.pt",
        "pytorch_model.bin",
        "scheduler.pt",
        "trainer_state.json",
        "x.py",
    ):
        (source / name).write_bytes(pickle.dumps({"a": 1}))
    before = {path: path.read_bytes() for path in source.iterdir()}
    out = stage(source)
    assert names(out) == ALWAYS | {"model.safetensors"}
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert {path: path.read_bytes() for path in source.iterdir()} == before
    for name in CODE:
        assert (out / name).read_bytes() == (ROOT / "simclr_hub" / name).read_bytes()
    assert (out / "LICENSE").read_text() == apache_licence() == (ROOT / "LICENSE").read_text()


def test_the_config_names_every_auto_class(clean):
    config = json.loads((clean / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": "configuration_simclr.SimCLRConfig",
        "AutoModel": "modeling_simclr.SimCLRModel",
        "AutoBackbone": "modeling_simclr.SimCLRBackbone",
        "AutoImageProcessor": "image_processing_simclr.SimCLRImageProcessor",
    }
    assert config["depths"] == [1, 1, 1, 1] and config["architectures"] == ["SimCLRModel"]
    assert json.loads((clean / "preprocessor_config.json").read_text())["size"] == {"height": 64, "width": 64}


def test_a_classifier_in_shards(tmp_path, stage):
    torch.manual_seed(0)
    model = randomized(SimCLRForImageClassification(tiny_config(num_labels=3)))
    model.save_pretrained(tmp_path / "source", max_shard_size="500KB")
    out = stage(tmp_path / "source")  # without a processor: one for the config's image size is added
    shards = {name for name in names(out) if name.startswith("model-")}
    assert len(shards) > 1 and names(out) == ALWAYS | shards | {"model.safetensors.index.json"}
    config = json.loads((out / "config.json").read_text())
    assert config["auto_map"]["AutoModelForImageClassification"] == "modeling_simclr.SimCLRForImageClassification"
    assert json.loads((out / "preprocessor_config.json").read_text())["size"]["height"] == 64
    again = SimCLRForImageClassification.from_pretrained(out)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True)
    )


def test_the_record_of_a_model_in_shards(tiny_model, tiny_dir, tmp_path, stage):
    hashes = []
    for size in ("10KB", "50GB"):
        source = tmp_path / size
        tiny_model.save_pretrained(source, max_shard_size=size)
        shutil.copy(tiny_dir / "preprocessor_config.json", source)
        write_record(source, "a run", {"data": "photos", "training": {"seed": 3}}, "1 step", 10, {})
        files = sorted(source.glob("*.safetensors"))
        assert (len(files) > 10) == (size == "10KB")
        hashes.append(json.loads((source / "results.json").read_text())["weights"])
        assert hashes[-1] == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        assert {file.name for file in files} <= names(stage(source))
        save_file({name: value + 1 for name, value in load_file(files[-1]).items()}, files[-1])
        with pytest.raises(PublishError, match="is of other weights"):
            stage(source)
    assert hashes[0] != hashes[1]


def test_what_is_known_of_where_it_was_loaded_from_is_left_out(source, stage):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"_name_or_path": "/home/somebody/runs/final"}))
    assert "somebody" not in (stage(source) / "config.json").read_text()


def test_publishing_what_was_published_gives_the_same(clean, stage):
    out = stage(clean)
    assert {n: (out / n).read_bytes() for n in names(out)} == {n: (clean / n).read_bytes() for n in names(clean)}


def _add(name, content):
    def spoil(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return spoil


def _append(name, content):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes() + content)


def _metadata(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "pt", "made_in": "/home/somebody/run"})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_add("training_args.bin", pickle.dumps(1)), "training_args.bin is not a file that"),
        (_add("model.bin", b"x"), "model.bin"),
        (_add("model.safetensors", pickle.dumps({"a": 1})), "model.safetensors is not a complete safetensors"),
        (_append("model.safetensors", pickle.dumps({"a": 1})), "model.safetensors is not a complete safetensors"),
        (_add("LICENSE", pickle.dumps({"a": 1}, protocol=4)), "LICENSE is not text"),
        (_add("sub/README.md", b"x"), "sub/README.md is not a file that"),
        (_add(".eval_results/a.json", b"{}"), ".eval_results/a.json"),
        (_add("setup.py", b""), "setup.py"),
        (
            _append("README.md", b"\nsee /home/somebody/x\n"),
            "README.md holds a path of this machine: 'see /home/somebody",
        ),
        (_append("README.md", b"\ndata: /srv/photos/mine\n"), "holds a path"),
        (_append("README.md", b"\ndata: C:\\Users\\me\n"), "holds a path"),
        (_append("README.md", b"\nfile:///x\n"), "holds a path"),
        (_append("modeling_simclr.py", b'\nPATH = "/opt/x"\n'), "modeling_simclr.py holds a path"),
        (_metadata, "model.safetensors holds a path"),
        (_append("README.md", b"\nhf_" + b"abcDEF1234" * 3), "README.md holds what looks like a token"),
        (_append("config.json", b'"ghp_' + b"a1B2" * 9 + b'"'), "config.json holds what looks like a token"),
        (_append("README.md", b"\n" + SECRET.encode()), "README.md holds what looks like a token"),
    ],
)
def test_what_must_not_leave_is_refused(clean, tmp_path, monkeypatch, spoil, message):
    monkeypatch.setenv("SOME_SERVICE_TOKEN", SECRET)
    folder = Path(shutil.copytree(clean, tmp_path / "folder"))
    check_staged(folder)
    spoil(folder)
    with pytest.raises(PublishError) as e:
        check_staged(folder)
    assert message in str(e.value) and SECRET not in str(e.value)


@pytest.mark.parametrize(
    "text", ["https://arxiv.org/abs/2002.05709", "a/b/c", "</table>", "v1/v2 and 3/4/5", "[x](/docs)", "~/Pictures"]
)
def test_ordinary_text_is_no_path(clean, tmp_path, text):
    folder = Path(shutil.copytree(clean, tmp_path / "folder"))
    _append("README.md", text.encode())(folder)
    check_staged(folder)


def _weights(change):
    def spoil(folder):
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, metadata={"format": "pt"})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (_weights(lambda t: t.popitem()), CheckpointError, "missing"),
        (
            _weights(lambda t: t["encoder.stem.layers.0.convolution.weight"].fill_(torch.nan)),
            CheckpointError,
            "non-finite",
        ),
        (lambda d: (d / "model.safetensors").unlink(), CheckpointError, "only safetensors are published"),
        (lambda d: (d / "config.json").unlink(), CheckpointError, "no config.json"),
        (_add("preprocessor_config.json", b'{"image_processor_type": "ViTImageProcessor"}'), PublishError, "ViTImage"),
        (_add("results.json", b"[1]"), PublishError, "results.json"),
        (_add("results.json", b'{"reslts": []}'), PublishError, "reslts"),
        (_add("results.json", b'{"weights": "0"}'), PublishError, "other weights"),
        (
            _add("results.json", b'{"results": [{"measure": "m", "value": 1, "dataset": "d"}]}'),
            PublishError,
            "command",
        ),
        (_add("recipe.yaml", b"data: /mnt/photos\n"), PublishError, "README.md holds a path of this machine"),
    ],
)
def test_a_bad_source_is_named(source, stage, spoil, error, message):
    spoil(source)
    with pytest.raises(error, match=message):
        stage(source)


def test_an_index_that_leads_elsewhere_is_refused(source, stage):
    (source / "model.safetensors").rename(source.parent / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": {"a": "../model-00001-of-00001.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="names '../model"):
        stage(source)


def test_the_card_of_a_model_with_a_recipe_and_results(source, stage):
    (source / "recipe.yaml").write_text("data: null  # yours\n# a comment\ntraining: {seed: 3}\n")
    result = {"measure": "accuracy (%)", "value": 12.5, "dataset": "ours | theirs", "command": "make x"}
    (source / "results.json").write_text(json.dumps({"data": "10 photos", "results": [result]}))
    card = (stage(source) / "README.md").read_text()
    assert (
        "Trained on 10 photos." in card and "data: null\ntraining: {seed: 3}\n```" in card and "a comment" not in card
    )
    assert r"| accuracy (%) | 12.5 | ours \| theirs | `make x` |" in card
    card = (stage(source, recipe="tiny_imagenet_default", results=source / "none.json") / "README.md").read_text()
    assert "stem_type: small" in card and "None were measured." in card


def test_the_card_takes_the_numbers_of_evaluate_if_they_are_of_its_weights(source, stage, tmp_path, tiny_model):
    data = tmp_path / "my photos"
    for label, value in (("cat", 60), ("dog", 200)):
        for i in range(8):
            (data / label).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (value, 10 * i, i)).save(data / label / f"{i}.png")
    other = tmp_path / "other"
    randomized(SimCLRModel(tiny_config())).save_pretrained(other)
    SimCLRImageProcessor(size=64).save_pretrained(other)
    settings = [
        f"data={data}",
        f"output_dir={tmp_path / 'out'}",
        f"cache={tmp_path / 'cache'}",
        "layers=[h,g1]",
        "ks=1",
    ]
    evaluate([str(source), str(other)], [*settings, "protocols=[knn,retrieval]", "k=3"])
    file = tmp_path / "out" / "results.json"
    found = json.loads(file.read_text())
    own = {"measure": "accuracy (%)", "value": 12.5, "dataset": "ours", "command": "make x"}
    (source / "results.json").write_text(json.dumps({"data": "10 photos", "results": [own]}))
    card = (stage(source, results=file) / "README.md").read_text()
    assert "Trained on 10 photos." in card and "| accuracy (%) | 12.5 |" in card  # what it says itself stays
    index = yaml.safe_load(card.split("---")[1])["model-index"][0]["results"]
    metrics = [(m["type"], m["name"], m["value"]) for result in index for m in result["metrics"]]
    mine = [one for one in found["results"] if one["model"] == str(source)]
    assert len(metrics) == len(mine) == 2 * (2 + 3) and not [m for m in metrics if "None" in m[1]]
    assert {kind for kind, _, _ in metrics} == {"accuracy", "precision", "recall", "mean_average_precision"}
    for one in mine:
        name = f"{one['measure']} (%), {one['protocol']} on {one['layer']} ["
        assert [value for _, told, value in metrics if told.startswith(name)] == [round(one["value"], 2)]
    dataset = index[0]["dataset"]
    assert dataset["type"] == "imagefolder" and dataset["name"] == "my photos, 2 images held out of split train"
    assert "simclr-hub evaluate source other 'data=my photos' 'layers=[h,g1]'" in card.replace("''", "'")
    assert str(tmp_path) not in card

    # Of other weights, or not as it was written: refused.
    with pytest.raises(PublishError, match="is of other weights .*source.*other.*; evaluate .* and give its"):
        spoilt = {
            name: {k: {**v, "weights": "0"} for k, v in kinds.items()} for name, kinds in found["models"].items()
        }
        file.write_text(json.dumps({**found, "models": spoilt}))
        stage(source, results=file)
    for spoilt in ({**found, "models": 3}, {**found, "results": [{}]}, {**found, "data": {}}):
        file.write_text(json.dumps(spoilt))
        with pytest.raises(PublishError, match="not as simclr-hub evaluate writes it"):
            stage(source, results=file)
    found["results"][0]["value"] = float("nan")
    file.write_text(json.dumps(found))
    with pytest.raises(PublishError, match="nan is not a number"):
        stage(source, results=file)
    # A weight of g changed: the numbers of h are its own still, those of g are not.
    file.write_text(json.dumps({**found, "results": found["results"][1:]}))
    changed = copy.deepcopy(tiny_model)
    with torch.no_grad():
        next(changed.projection.parameters()).add_(1)
    changed.save_pretrained(source)
    card = (stage(source, results=file) / "README.md").read_text()
    assert "knn on h" in card and "on g1" not in card


def test_a_processor_with_a_mean_is_described(source, stage):
    processor = json.loads((source / "preprocessor_config.json").read_text())
    processor |= {"do_normalize": True, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.2]}
    (source / "preprocessor_config.json").write_text(json.dumps(processor))
    out = stage(source)
    assert (
        "less the mean [0.5, 0.4, 0.3] and over the standard deviation [0.2, 0.2, 0.2]"
        in (out / "README.md").read_text()
    )
    assert json.loads((out / "preprocessor_config.json").read_text())["image_mean"] == [0.5, 0.4, 0.3]


def test_another_licence_takes_another_text(source, stage):
    assert "LICENSE" not in names(stage(source, licence="cc-by-nc-4.0"))
    (source / "LICENSE").write_text("ours\n")
    out = stage(source, licence="cc-by-nc-4.0")
    assert (out / "LICENSE").read_text() == "ours\n" and "license: cc-by-nc-4.0" in (out / "README.md").read_text()
    with pytest.raises(PublishError, match="no licence identifier"):
        stage(source, licence="apache")


def test_a_dry_run_writes_the_folder_and_asks_nobody(run, tiny_dir):
    code, out, _ = run("publish", tiny_dir, "org/name", "--stage", "out", "--json")
    assert code == 0 and set(json.loads(out)["files"]) == names(Path("out")) == ALWAYS | {"model.safetensors"}
    assert not (Path("out") / "model.safetensors").is_symlink()
    code, out, _ = run("publish", "default", "org/name", "--stage", "default")
    assert code == 0 and "nothing was uploaded" in out
    measured = json.loads((SAMPLE_PHOTOS.parent / "default" / "results.json").read_text())["results"][0]["value"]
    assert f"| {measured} |" in (Path("default") / "README.md").read_text()
    code, _, err = run("publish", tiny_dir, "org/name", "--stage", "out")
    assert code == 1 and "exists already" in err


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (["publish"], 2, "SOURCE ORG/NAME"),
        (["publish", "."], 2, "SOURCE ORG/NAME"),
        (["publish", "--official", "all"], 2, "--org ORG"),
        (["publish", ".", "org/x", "--org", "o"], 2, "--org ORG"),
        (["publish", ".", "name"], 1, "give org/name"),
        (["publish", ".", "org/name"], 1, "no config.json"),
        (["publish", "no/dir", "org/name"], 1, "no/dir"),
        (["publish", "simclr-v2-r51", "org/name"], 1, "simclr-v2-r50"),
        (["publish", "default", "org/name"], 1, "offline"),
        (["publish", "--official", "simclr-v9", "--org", "o"], 1, "simclr-v9"),
    ],
)
def test_bad_input_is_one_line(run, args, code, message):
    got, _, err = run(*args)
    assert got == code and message in err
    assert code == 2 or len(err.strip().splitlines()) == 1


def test_the_tiny_processor_is_what_is_said(clean):
    assert SimCLRImageProcessor.from_pretrained(clean).size["height"] == 64
    assert SimCLRModel.from_pretrained(clean).config.hidden_size == 256


def test_a_whitening_leaves_with_the_weights_and_only_with_its_own(source, stage, tiny_model):
    features = np.random.default_rng(0).normal(size=(300, 256)).astype(np.float32)
    whitening = Whitening.learn(features, shrinkage=0.5, learnt_from="noise", weights=weights_hash(tiny_model))
    whitening.save(source / "whitening.safetensors")
    out = stage(source)
    assert names(out) == ALWAYS | {"model.safetensors", "whitening.safetensors"}
    assert load_whitening(out) == whitening and Embedder(out, whiten=True).dim == whitening.dim
    card = (out / "README.md").read_text()
    assert f"256 to {whitening.dim} numbers. Learnt without labels by PCA on 300 images (noise)" in card
    replace(whitening, weights="of others").save(source / "whitening.safetensors")
    with pytest.raises(CheckpointError, match="whitening.safetensors: learnt with other weights"):
        stage(source)
    (source / "whitening.safetensors").write_bytes(whitening.to_bytes()[:-1])
    with pytest.raises(CheckpointError, match="not a whitening that can be used"):
        stage(source)
    (source / "whitening.safetensors").unlink()
    replace(whitening, learnt_from="/home/somebody/photos").save(source / "whitening.safetensors")
    with pytest.raises(PublishError, match="holds a path of this machine"):
        stage(source)
