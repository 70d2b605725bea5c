"""`label` and `classify`, as a user runs them."""

import csv
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from index.index_fakes import FakeEmbedder, make_photo, tree_state
from PIL import Image
from tiny import randomized, tiny_config

from simclr_hub import SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel, SimilarityIndex
from simclr_hub.errors import LabelError

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def paint(path: Path, colour: str, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.array(COLOURS[colour]) + np.random.default_rng(seed).normal(0, 30, (8, 8, 3))
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.fixture
def painted(tmp_path: Path) -> Path:
    """A folder of 30 photos of three colours, an index of it, and examples: copies of five of each colour."""
    for seed in range(30):
        paint(tmp_path / "photos" / f"{list(COLOURS)[seed % 3]}{seed}.png", list(COLOURS)[seed % 3], seed)
    for seed in range(15):
        name = list(COLOURS)[seed % 3]
        (tmp_path / "examples" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(tmp_path / "photos" / f"{name}{seed}.png", tmp_path / "examples" / name)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as index:
        index.sync(tmp_path / "photos")
    return tmp_path


def test_the_others_are_labelled_and_no_photo_is_touched(run, painted) -> None:
    before = tree_state(painted / "photos"), tree_state(painted / "examples")
    code, out, err = run("label", "i", "examples", "-o", "l.csv", "--html", "l.html", "--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["classes"] == ["blue", "green", "red"] and told["examples"] == 15
    assert [label["path"] for label in told["labels"]] == sorted(str(p) for p in (painted / "photos").iterdir())
    for label in told["labels"]:
        assert Path(label["path"]).name.startswith(label["label"])
        assert label["example"] == (painted / "examples" / label["label"] / Path(label["path"]).name).exists()
    rows = list(csv.DictReader((painted / "l.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == [label["label"] for label in told["labels"]]
    page = (painted / "l.html").read_text()
    assert "<h2>blue: 5" in page and "red0.png" not in page and "red27.png" in page
    assert (tree_state(painted / "photos"), tree_state(painted / "examples")) == before
    code, out, _ = run("label", "i", "examples")
    assert code == 0 and out.splitlines()[0].split() == ["class", "examples", "sure"]
    assert "15 photos labelled: 15 sure" in out and "15 of 15 were labelled right by the others" in out


def test_examples_that_are_not_in_the_index_are_embedded(painted) -> None:
    for seed in range(40, 46):
        name = list(COLOURS)[seed % 3]
        paint(painted / "new" / name / "below" / f"{seed}.png", name, seed)
    (painted / "new" / "red" / "broken.png").write_bytes(b"no photo")
    (painted / "new" / "loose.png").write_bytes(b"")
    shutil.copy(painted / "photos" / "red0.png", painted / "new" / "red")
    embedder = FakeEmbedder()
    with SimilarityIndex.open(painted / "i", embedder) as index:
        found = index.label(painted / "new")
    assert embedder.embedded == 6 and found.examples == 7
    assert [Path(path).name for path, _ in found.unreadable] == ["loose.png", "broken.png"]
    assert all(Path(label.path).name.startswith(label.label) for label in found.labels)
    assert [Path(label.path).name for label in found.labels if label.example] == ["red0.png"]


def test_examples_by_content_path_and_picture(painted) -> None:
    """As a page calls it, again and again with corrections."""
    with SimilarityIndex.open(painted / "i", FakeEmbedder()) as index:
        photos = {Path(os_path).name: content for content, os_path in contents(index)}
        by_class = {
            "warm": [photos["red0.png"], painted / "photos" / "red3.png", photos["red0.png"]],
            "cold": [photos["blue2.png"], Image.open(painted / "photos" / "blue5.png")],
        }
        found = index.label(by_class)
        assert found.examples == 4 and found.classes == ["warm", "cold"]
        labels = {Path(label.path).name: label.label for label in found.labels}
        assert labels["red27.png"] == "warm" and labels["blue29.png"] == "cold"
        by_class["cold"].append(photos["red27.png"])  # corrected
        again = {Path(label.path).name: label for label in index.label(by_class).labels}
        assert again["red27.png"].label == "cold" and again["red27.png"].example
        with pytest.raises(LabelError, match="is not in the index"):
            index.label({"a": [bytes(32)], "b": [photos["red0.png"]]})
        with pytest.raises(LabelError, match="same photo.*warm and cold"):
            index.label({"warm": [photos["red0.png"]], "cold": [painted / "photos" / "red0.png"]})


def contents(index: SimilarityIndex) -> list[tuple[bytes, str]]:
    store = index._store
    roots = store.roots()
    return [(p.content_hash or b"", store.locate(p, roots).decode()) for p in store.photos()]


def test_bad_examples_are_one_line_that_names_them(run, painted) -> None:
    (painted / "empty").mkdir()
    (painted / "one" / "cats").mkdir(parents=True)
    shutil.copy(painted / "photos" / "red0.png", painted / "one" / "cats")
    shutil.copytree(painted / "one", painted / "two")
    (painted / "two" / "a\nb").mkdir()
    shutil.copytree(painted / "one", painted / "bad")
    (painted / "bad" / "dogs").mkdir()
    (painted / "bad" / "dogs" / "x.png").write_bytes(b"no photo")
    shutil.copytree(painted / "one", painted / "same")
    shutil.copytree(painted / "one" / "cats", painted / "same" / "dogs")
    for examples, words in (
        ("nowhere", "nowhere: "),
        ("l.txt", "give a folder"),
        ("empty", "empty: no class; put a few photos of each class into a folder"),
        ("one", "one: only the class cats"),
        ("two", "two: no photo of the class a\\nb"),
        ("same", "are the same photo, in the classes cats and dogs"),
    ):
        (painted / "l.txt").touch()
        code, out, err = run("label", "i", examples)
        assert (code, out) == (1, "") and words in err and err.startswith("error: ") and err.count("\n") == 1, err
    with (
        SimilarityIndex.open(painted / "i", FakeEmbedder()) as index,
        pytest.raises(LabelError, match="no photo of the class dogs can be used; first: .*x.png"),
    ):
        index.label(painted / "bad")
    for arguments, words in (
        (["-o", "photos/l.csv"], "in the photo folder"),
        (["-o", "examples/l.csv"], "in the photo folder"),
        (["--html", "i/l.html"], "inside the index"),
        (["-o", "l.txt"], "must end in .csv or .parquet"),
    ):
        code, _, err = run("label", "i", "examples", *arguments)
        assert code == 2 and words in err
    assert run("label", "nothing", "examples")[0] == 1
    (painted / "mine.csv").write_text("mine")
    assert run("label", "i", "examples", "-o", "mine.csv")[0] == 1 and (painted / "mine.csv").read_text() == "mine"


def test_unreadable_examples_are_told(run, painted) -> None:
    make_photo(painted / "photos" / "x.png", 1)
    (painted / "examples" / "red" / "broken.png").write_bytes(b"no photo")
    with SimilarityIndex.open(painted / "i", FakeEmbedder()) as index:
        found = index.label(painted / "examples")
    assert found.examples == 15 and [Path(path).name for path, _ in found.unreadable] == ["broken.png"]


@pytest.fixture(scope="session")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one encoder: on g's first layer, and on h of length 1 with a measured threshold."""
    folder = tmp_path_factory.mktemp("classifiers")
    torch.manual_seed(0)
    names = {"id2label": {0: "cat", 1: "=dog", 2: "owl"}, "label2id": {"cat": 0, "=dog": 1, "owl": 2}}
    encoder = None
    for name, changes in (("g1", {"classifier_layer": 1}), ("unit", {"classifier_normalized": True})):
        extra = {"sure_above": 0.34} if name == "unit" else {}
        model = randomized(SimCLRForImageClassification(tiny_config(**names, **changes, **extra)))
        encoder = encoder or model.simclr.state_dict()
        model.simclr.load_state_dict(encoder)
        model.save_pretrained(folder / name)
        SimCLRImageProcessor(size=64).save_pretrained(folder / name)
    return folder


def expected(folder: Path, photo: Path) -> torch.Tensor:
    model = SimCLRForImageClassification.from_pretrained(folder).eval()
    pixels = SimCLRImageProcessor.from_pretrained(folder)(images=str(photo), return_tensors="pt").pixel_values
    with torch.no_grad():
        found: torch.Tensor = model(pixels).logits[0].softmax(0)
    return found


@pytest.mark.parametrize("name", ["g1", "unit"])
def test_photos_are_classified_as_the_model_does(run, photos, classifiers, name) -> None:
    (photos / "broken.jpg").write_bytes(b"no photo")
    code, out, _ = run("classify", classifiers / name, photos, "--json", "--strict", "-o", "c.csv", "--html", "c.html")
    told = json.loads(out)
    assert code == 3 and [Path(one["path"]).name for one in told["failed"]] == ["broken.jpg"]
    assert told["classes"] == ["cat", "=dog", "owl"] and len(told["labels"]) == 6
    for label in told["labels"]:
        shares = expected(classifiers / name, Path(label["path"]))
        best, second = shares.topk(2).indices.tolist()
        assert [label["label"], label["second"]] == [told["classes"][best], told["classes"][second]]
        assert label["confidence"] == pytest.approx(float(shares[best]), abs=1e-4)
        assert label["unsure"] == (None if name == "g1" else label["confidence"] <= 0.34)
    assert ("was not measured" in run("classify", classifiers / name, photos)[1]) == (name == "g1")


def test_archives_and_missing_things(run, photos, classifiers, tiny_dir) -> None:
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write(photos / "0.jpg", "0.jpg")
    (label,) = json.loads(run("classify", classifiers / "unit", "a.zip", "--json")[1])["labels"]
    assert label["path"].endswith("0.jpg") and "a.zip" in label["path"]
    for arguments, words in (
        ([tiny_dir, photos], f"{tiny_dir}: an encoder without a classifier"),
        (["nowhere/at/all", photos], "nowhere/at/all"),
        ([classifiers / "unit", "nowhere", "--strict"], "left out: nowhere: no such file"),
        ([classifiers / "unit", photos, "-o", photos / "l.csv"], "in the photo folder"),
        ([photos, photos], "config.json"),
    ):
        code, out, err = run("classify", *arguments)
        assert code and words in out + err, err


def test_an_index_of_the_same_encoder_needs_no_photo(run, photos, classifiers) -> None:
    assert run("index", photos, "--model", classifiers / "unit")[0] == 0
    by_photo = json.loads(run("classify", classifiers / "unit", photos, "--json")[1])["labels"]
    hidden = photos.rename(photos.parent / "hidden")
    by_index = json.loads(run("classify", classifiers / "unit", "photos.index", "--json")[1])["labels"]
    hidden.rename(photos)
    assert [label["path"] for label in by_index] == sorted(str(photos.parent / label["path"]) for label in by_photo)
    confidences = {Path(label["path"]).name: label["confidence"] for label in by_photo}
    for label in by_index:
        assert label["confidence"] == pytest.approx(confidences[Path(label["path"]).name], abs=1e-5)
    code, _, err = run("classify", classifiers / "g1", "photos.index")
    assert code == 1 and "has layer g1" in err and "give the photos instead" in err
    torch.manual_seed(1)
    SimCLRModel(tiny_config()).save_pretrained("other")
    assert run("index", photos, "-o", "other.index", "--model", "other")[0] == 0
    code, _, err = run("classify", classifiers / "unit", "other.index")
    assert code == 1 and "has weights" in err and "index FOLDER --model" in err
    assert run("classify", classifiers / "unit", "photos.index", photos)[0] == 2


def test_a_classifier_that_needs_lengths_is_refused_for_an_index(run, photos, classifiers) -> None:
    shutil.copytree(classifiers / "unit", "plain")
    config = json.loads(Path("plain/config.json").read_text())
    Path("plain/config.json").write_text(json.dumps(config | {"classifier_normalized": False}))
    assert run("index", photos, "--model", "plain")[0] == 0
    code, _, err = run("classify", "plain", "photos.index")
    assert code == 1 and "not its length" in err and "give the photos instead" in err


@pytest.mark.parametrize(
    "change, words",
    [
        ({"sure_above": 2}, "sure_above=2 must be a number from 0 to 1"),
        ({"sure_above": "0.5"}, "sure_above"),
        ({"classifier_layer": True}, "classifier_layer"),
        ({"id2label": {"0": "cat"}}, "id2label"),
        ({"id2label": {"0": 1, "1": 2, "2": 3}}, "id2label"),
        ({"model_type": "vit"}, "'vit'"),
    ],
)
def test_a_strangers_config_is_not_trusted(run, photos, classifiers, change, words) -> None:
    shutil.copytree(classifiers / "unit", "strange")
    config = json.loads(Path("strange/config.json").read_text())
    Path("strange/config.json").write_text(json.dumps(config | change))
    code, _, err = run("classify", "strange", photos)
    assert code == 1 and words in err and err.count("\n") == 1
