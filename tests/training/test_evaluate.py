import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from simclr_hub import Embedder, load
from simclr_hub.errors import OutputError, RecipeError
from simclr_hub.training.augmentations import Views
from simclr_hub.training.corruptions import corrupt
from simclr_hub.training.evaluate import SETTINGS, corruption_table, evaluate, read_settings, table
from simclr_hub.training.labelled import Part, class_balanced, labelled, open_parts, share_of_each_class
from simclr_hub.training.linear import batches, crops, learning_rates, train_linear
from simclr_hub.training.optimization import official_steps
from simclr_hub.training.protocols import few_shot, fit_linear, interval, knn_predictions, map11, retrieval
from simclr_hub.whitening import Whitening

CLASSES = {"ant": (200, 60, 40), "bee $1$": (60, 190, 60), "cat": (50, 70, 200)}


def draw(path: Path, colour: tuple[int, int, int], seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    pixels = np.clip(np.array(colour) + random.normal(0, 60, (8, 8, 3)), 0, 255).astype(np.uint8)
    Image.fromarray(pixels).resize((40, 36)).save(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three class folders of 11 images."""
    for c, (name, colour) in enumerate(CLASSES.items()):
        for i in range(11):
            draw(tmp_path / "data" / name / f"{name[:3]}_{i}.png", colour, 100 * c + i)
    return tmp_path / "data"


@pytest.fixture
def split_data(data: Path) -> Path:
    """The same as a train split, and validation of its second and third class alone."""
    root = data.parent / "split"
    shutil.move(data, root / "train")
    for c, name in enumerate(list(CLASSES)[1:]):
        for i in range(3):
            draw(root / "val" / name / f"{i}.png", CLASSES[name], 1000 + 10 * c + i)
    return root


@pytest.fixture
def run_it(tmp_path: Path, tiny_dir: Path) -> Callable[..., dict[str, Any]]:
    def run(data: Path, *settings: str, models: tuple[str, ...] = (str(tiny_dir),)) -> dict[str, Any]:
        own = (f"data={data}", f"output_dir={tmp_path / 'out'}", f"cache={tmp_path / 'cache'}")
        return evaluate(models, [*own, "shots=[1,2]", "ks=[1,3]", "k=5", "draws=3", *settings])

    return run


def values(results: dict[str, Any], layer: str = "h") -> dict[str, float]:
    return {f"{r['protocol']} {r['measure']}": r["value"] for r in results["results"] if r["layer"] == layer}


def test_numbers_are_the_protocols_on_the_embedders_vectors(
    split_data: Path, tiny_dir: Path, run_it: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    results = run_it(split_data)
    trained = sorted((split_data / "train").rglob("*.png"))
    held_out = sorted((split_data / "val").rglob("*.png"))
    embedder, names = Embedder(tiny_dir), list(CLASSES)
    x, y = (torch.from_numpy(embedder(paths)) for paths in (trained, held_out))
    of_x, of_y = (torch.tensor([names.index(path.parent.name) for path in paths]) for paths in (trained, held_out))
    assert set(of_y.tolist()) == {1, 2}  # classes are matched by their names, not their places
    found = values(results)
    right = 100 * float((knn_predictions(y, x, of_x, neighbours=5)[0] == of_y).float().mean())
    weighted = 100 * float((knn_predictions(y, x, of_x, neighbours=5, temperature=0.07)[0] == of_y).float().mean())
    assert found["knn top-1"] == pytest.approx(right) and found["knn top-1, weighted"] == pytest.approx(weighted)
    for name, value in retrieval(y, of_y, [1, 3]).items():
        assert found[f"retrieval {name}"] == pytest.approx(value, abs=1e-4)
    for n, (mean, spread) in few_shot(y, of_y, x, of_x, (1, 2), draws=3).items():
        assert found[f"few_shot top-1, {n} a class"] == pytest.approx(mean)
        assert spread in [pytest.approx(r["spread"]) for r in results["results"] if r["protocol"] == "few_shot"]
    knn = results["results"][0]
    assert knn["interval"] == pytest.approx(interval(knn["value"], 6)) and knn["images"] == 6
    linear = next(r for r in results["results"] if r["protocol"] == "linear_features")
    assert len(linear["settings"]["validation"]) == 45 and linear["settings"]["validation images"] == 3
    assert linear["value"] >= 50

    out = split_data.parent / "out"
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    assert results["data"]["train"]["images"] == 33 and results["data"]["evaluation"]["images"] == 6
    assert results["models"][str(tiny_dir)]["h"] == embedder.fingerprint
    for name in ("accuracy.png", "confusion.png"):
        with Image.open(out / name) as picture:
            assert picture.info["Software"] == "simclr-hub"
    assert "train is the folder train of it, not val" in capsys.readouterr().err
    headers, rows = table(results)
    assert headers == ["protocol", "measure (%)", f"{tiny_dir.name} h"] and rows[0][:2] == ["knn", "top-1"]


def test_the_page_shows_the_mistaken_most_confident_first(
    split_data: Path, run_it: Callable[..., dict[str, Any]]
) -> None:
    draw(split_data / "val" / "cat" / "red.png", CLASSES["ant"], 7)  # looks like an ant
    run_it(split_data, "protocols=knn")
    page = (split_data.parent / "out" / "mistakes.html").read_text()
    assert "red.png" in page and "cat, taken for ant" in page
    labels = [float(part.split("</b>")[0]) for part in page.split("<b>")[1:]]
    assert labels == sorted(labels, reverse=True) and labels


def test_features_are_computed_once(
    data: Path, run_it: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = values(run_it(data))
    seen: list[str] = []
    stream = Embedder.stream

    def watched(self: Embedder, sources: Any, **kwargs: Any) -> Any:
        listed = list(sources)
        seen.extend(map(str, listed))
        return stream(self, listed, **kwargs)

    monkeypatch.setattr(Embedder, "stream", watched)
    assert values(run_it(data)) == first and seen == []
    assert values(run_it(data, "layers=[g1,h]", "protocols=retrieval"), "g1") and seen == []
    # With fewer labels first, what is missing is added.
    shutil.rmtree(data.parent / "cache")
    run_it(data, "labels=2", "protocols=knn")
    assert len(seen) == 6 + 3
    run_it(data, "protocols=knn")
    assert len(seen) == 33 and len(set(seen)) == 33
    # Damaged, it is made anew; and of a folder that changed.
    [kept] = (data.parent / "cache").iterdir()
    kept.write_bytes(kept.read_bytes()[:-100])
    assert values(run_it(data)) == first and len(seen) == 66
    np.savez(kept.with_suffix(""), places=np.arange(33), vectors=np.zeros((33, 3), np.float32))
    assert values(run_it(data)) == first and len(seen) == 99
    draw(data / "cat" / "new.png", CLASSES["cat"], 77)
    run_it(data, "protocols=knn")
    assert len(seen) == 99 + 34


def test_without_a_split_a_tenth_of_each_class_is_held_out_and_retrieval_takes_all(
    data: Path, run_it: Callable[..., dict[str, Any]]
) -> None:
    results = run_it(data, "protocols=[knn,retrieval]")
    assert results["data"]["train"]["images"] == 30 and results["data"]["evaluation"]["images"] == 3
    assert any("no labelled split" in note and "3 images" in note for note in results["notes"])
    assert {r["protocol"]: r["images"] for r in results["results"]} == {"knn": 3, "retrieval": 33}


def test_unreadable_images_are_left_out_and_copies_are_told(
    split_data: Path, run_it: Callable[..., dict[str, Any]]
) -> None:
    (split_data / "train" / "ant" / "ant_3.png").write_bytes(b"no image")
    (split_data / "val" / "cat" / "9.png").write_bytes(b"no image either")
    shutil.copy(split_data / "train" / "cat" / "cat_0.png", split_data / "val" / "cat" / "again.png")
    results = run_it(split_data)
    assert results["data"]["train"]["images"] == 32 and results["data"]["evaluation"]["images"] == 7
    assert ["ant_3.png" in line for line in results["data"]["train"]["unreadable"]] == [True]
    assert "images that cannot be read and are left out: 2; results.json lists them" in results["notes"]
    assert "images to evaluate on that are, byte for byte, among those to learn from: 1" in results["notes"]
    # They stay left out when the features are those that were kept.
    assert values(run_it(split_data)) == values(results)


def test_layers_are_those_of_the_embedder(
    split_data: Path, tmp_path: Path, tiny_dir: Path, run_it: Callable[..., dict[str, Any]]
) -> None:
    model = tmp_path / "whitened"
    shutil.copytree(tiny_dir, model)
    random = np.random.default_rng(0).normal(size=(300, 256)).astype(np.float32)
    weights = Embedder(model).fingerprint["weights"]
    whitening = Whitening.learn(random, shrinkage=0.1, learnt_from="noise", weights=weights)
    whitening.save(model / "whitening.safetensors")
    results = run_it(split_data, "layers=[h,g1,z,h+stage3]", "protocols=knn", models=(str(model), str(tiny_dir)))
    paths = {part: sorted((split_data / part).rglob("*.png")) for part in ("train", "val")}
    names = list(CLASSES)
    labels = {part: torch.tensor([names.index(path.parent.name) for path in paths[part]]) for part in paths}
    embedders = {layer: Embedder(model, layer=layer) for layer in ("h", "g1", "z", "h+stage3")}
    embedders["h whitened"] = Embedder(model, whiten=True)
    kinds = results["models"][str(model)]
    assert set(kinds) == set(embedders) and set(results["models"][str(tiny_dir)]) == set(embedders) - {"h whitened"}
    for layer, embedder in embedders.items():
        x, y = (torch.from_numpy(embedder(paths[part])) for part in ("train", "val"))
        right = knn_predictions(y, x, labels["train"], neighbours=5, temperature=0.07)[0] == labels["val"]
        found = next(
            r
            for r in results["results"]
            if (r["model"], r["layer"], r["measure"]) == (str(model), layer, "top-1, weighted")
        )
        assert found["value"] == pytest.approx(100 * float(right.float().mean())), layer
        assert {k: v for k, v in kinds[layer].items() if k != "layer"} == {
            k: v for k, v in embedder.fingerprint.items() if k != "layer"
        }
    headers, _ = table(results)
    assert headers[2] == "whitened h" and headers[-1] == f"{tiny_dir.name} h+stage3"
    with pytest.raises(RecipeError, match="layer g9 is not one of h, g1, g2, z, h.stage3"):
        run_it(split_data, "layers=g9")


def test_a_metric_of_classes_that_count_alike(split_data: Path, run_it: Callable[..., dict[str, Any]]) -> None:
    shutil.rmtree(split_data / "val" / "cat")
    draw(split_data / "val" / "cat" / "red.png", CLASSES["ant"], 7)
    found = run_it(split_data, "protocols=linear_features", "metric=mean_per_class")["results"][0]
    assert found["measure"] == "mean per class"
    assert found["value"] == pytest.approx(50)  # three of three, and none of one
    low, high = found["interval"]  # of the bootstrap: some draws leave the one of the second class out
    assert 40 <= low <= 50 <= high <= 100


def test_several_labels_an_image_from_parquet(
    data: Path, tmp_path: Path, tiny_dir: Path, run_it: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()
    paths, folder = sorted(data.rglob("*.png")), tmp_path / "tables"
    folder.mkdir()
    lists = [[i % 3] + ([2] if i % 4 == 0 and i % 3 != 2 else []) if i % 7 else [] for i in range(len(paths))]

    def write(split: str, rows: slice, names: list[str]) -> None:
        features = datasets.Features(
            {"image": datasets.Image(), "objects": datasets.List(datasets.ClassLabel(names=names))}
        )
        theirs = [[names.index(list(CLASSES)[label]) for label in some] for some in lists[rows]]
        table = {"image": [{"bytes": p.read_bytes(), "path": p.name} for p in paths[rows]], "objects": theirs}
        datasets.Dataset.from_dict(table, features).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))

    write("train", slice(None, None, 2), list(CLASSES))
    write("test", slice(1, None, 2), list(CLASSES)[::-1])  # classes are matched by name
    with pytest.raises(RecipeError, match="several labels each, for protocols=linear_features metric=map11"):
        run_it(folder)
    results = run_it(folder, "metric=map11")
    (found,) = results["results"]
    assert (found["protocol"], found["measure"], found["images"]) == ("linear_features", "11-point mAP", 16)
    assert results["data"]["train"]["images"] == 17 and results["data"]["train"]["classes"] == 3

    # The same by hand: the classifier of the chosen l2, each class a decision of its own.
    x, y = (torch.from_numpy(Embedder(tiny_dir)(paths[start::2])) for start in (0, 1))
    shown = torch.zeros(len(paths), 3, dtype=torch.long)
    for i, some in enumerate(lists):
        shown[i, some] = 1
    expected = map11(fit_linear(x, shown[::2], found["settings"]["l2"]).scores(y), shown[1::2])
    assert found["value"] == pytest.approx(expected, abs=0.5)
    low, high = found["interval"]
    assert low <= found["value"] <= high and high - low > 1
    assert not (tmp_path / "out" / "confusion.png").exists() and not (tmp_path / "out" / "mistakes.html").exists()
    with pytest.raises(RecipeError, match="labels=10%: of images with several labels give a file"):
        run_it(folder, "metric=map11", "labels=10%")
    subset = tmp_path / "names.txt"
    subset.write_text("".join(f"{path.name}\n" for path in paths[:20:2]))
    assert run_it(folder, "metric=map11", f"labels={subset}")["data"]["train"]["images"] == 10


def test_a_file_in_several_class_folders_has_several_labels(
    split_data: Path, tmp_path: Path, run_it: Callable[..., dict[str, Any]]
) -> None:
    run_it(split_data, "protocols=knn")  # leaves charts, which are not of the results that follow
    assert (tmp_path / "out" / "confusion.png").exists()
    for split, name in (("train", "ant_0.png"), ("val", "0.png")):
        source = split_data / split / ("ant" if split == "train" else "cat") / name
        shutil.copy(source, split_data / split / "bee $1$" / "another name.png")
    results = run_it(split_data, "metric=map11")
    assert results["data"]["train"]["images"] == 33 and results["data"]["evaluation"]["images"] == 6
    assert [r["protocol"] for r in results["results"]] == ["linear_features"]
    assert not (tmp_path / "out" / "confusion.png").exists()
    train, evaluation, classes, _ = open_parts(read_settings([f"data={split_data}", "metric=map11"]))
    assert train.several is not None and evaluation.several is not None
    both = [np.flatnonzero(part.several[part.chosen].sum(1) == 2) for part in (train, evaluation)]
    assert [len(places) for places in both] == [1, 1]
    assert train.several[train.chosen[both[0][0]]].tolist() == [True, True, False]
    assert evaluation.several[evaluation.chosen[both[1][0]]].tolist() == [False, True, True]
    # Otherwise each counts for its folder, and it is told.
    results = run_it(split_data, "protocols=knn")
    assert results["data"]["train"]["images"] == 34
    assert any("under several labels, byte for byte: 2; metric=map11" in note for note in results["notes"])
    # Without a split, no image is on both sides under two names.
    shutil.rmtree(split_data / "val")
    train, evaluation, _, _ = open_parts(read_settings([f"data={split_data / 'train'}", "metric=map11"]))
    names = [{Path(part.name(place)).read_bytes() for place in part.chosen} for part in (train, evaluation)]
    assert not names[0] & names[1] and len(names[0]) + len(names[1]) == 33


def test_calibration_is_of_what_predicts(split_data: Path, run_it: Callable[..., dict[str, Any]]) -> None:
    results = run_it(split_data, "protocols=[knn,retrieval,few_shot,linear_features]", "calibration=true")
    told = {f"{r['protocol']} {r['measure']}": r["calibration"] for r in results["results"]}
    with_it = {name for name, one in told.items() if one is not None}
    assert with_it == {"knn top-1", "knn top-1, weighted", "linear_features top-1"}
    assert all(sum(one["images"] for one in told[name]["bins"]) == 6 for name in with_it)
    linear = told["linear_features top-1"]
    assert linear["temperature"] > 0 and 0 <= linear["ece, scaled"] <= 100 and "temperature" not in told["knn top-1"]
    _, rows = table(results)
    assert ["knn", "top-1: calibration error", f"{told['knn top-1']['ece']:.2f}"] in rows
    with Image.open(split_data.parent / "out" / "calibration.png") as picture:
        assert picture.info["Software"] == "simclr-hub"
    assert run_it(split_data, "protocols=knn")["results"][0]["calibration"] is None
    assert not (split_data.parent / "out" / "calibration.png").exists()


def test_corrupted_images_are_predicted_by_what_was_learnt_from_clean_ones(
    split_data: Path, tiny_dir: Path, run_it: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("corruptions=[contrast,pixelate]", "severities=[5,1]", "layers=[h,g1]", "calibration=true")
    results = run_it(split_data, *settings, "protocols=[knn,linear_features,retrieval]")
    found = results["corruptions"]
    kinds = [("none", 0), ("contrast", 1), ("contrast", 5), ("pixelate", 1), ("pixelate", 5)]
    assert list(dict.fromkeys((r["corruption"], r["severity"]) for r in found)) == kinds
    assert len(found) == 5 * 2 * 3 and all(r["images"] == 6 and r["ece"] is not None for r in found)
    # By hand: the pictures are corrupted at their own size, then embedded; the bank stays clean.
    trained, held_out = (sorted((split_data / part).rglob("*.png")) for part in ("train", "val"))
    names, embedder = list(CLASSES), Embedder(tiny_dir)
    corrupted = [corrupt(np.asarray(Image.open(p)), "contrast", 5, np.random.default_rng(0)) for p in held_out]
    x, y = torch.from_numpy(embedder(trained)), torch.from_numpy(embedder(corrupted))
    of_x, of_y = (torch.tensor([names.index(p.parent.name) for p in paths]) for paths in (trained, held_out))
    right = 100 * float((knn_predictions(y, x, of_x, neighbours=5)[0] == of_y).float().mean())
    mine = [r for r in found if (r["corruption"], r["severity"], r["layer"]) == ("contrast", 5, "h")]
    assert mine[0]["measure"] == "top-1" and mine[0]["value"] == pytest.approx(right)
    clean = [r for r in found if r["corruption"] == "none" and r["layer"] == "h"]
    assert [r["value"] for r in clean] == [
        r["value"] for r in results["results"] if r["layer"] == "h" and r["protocol"] != "retrieval"
    ]  # these are below the size at which pictures are framed
    headers, rows = corruption_table(results)
    assert [row[0] for row in rows] == ["none", "contrast", "pixelate"] and len(headers) == 1 + 2 * 3
    assert float(rows[1][1]) == pytest.approx(np.mean([r["value"] for r in found if r["corruption"] == "contrast"
        and r["layer"] == "h" and r["measure"] == "top-1" and r["protocol"] == "knn"]), abs=0.01)  # fmt: skip
    assert any(row[:2] == ["knn", "top-1, corrupted"] for row in table(results)[1])
    with Image.open(split_data.parent / "out" / "corruptions.png") as picture:
        assert picture.info["Software"] == "simclr-hub"

    # Kept: a second run computes no features; fewer images are class-balanced.
    monkeypatch.setattr(Embedder, "stream", lambda *args, **kwargs: pytest.fail("computed again"))
    again = run_it(split_data, *settings, "protocols=[knn,linear_features,retrieval]")
    assert again["corruptions"] == found
    few = run_it(split_data, *settings, "protocols=knn", "corruption_images=4")["corruptions"]
    assert {r["images"] for r in few} == {4}


def test_frost_needs_its_photos_and_all_leaves_it_out_without(
    split_data: Path, tmp_path: Path, run_it: Callable[..., dict[str, Any]]
) -> None:
    own = ("protocols=knn", "severities=1", "corruption_images=2")
    with pytest.raises(RecipeError, match="frost needs frost=FOLDER"):
        run_it(split_data, *own, "corruptions=frost")
    results = run_it(split_data, *own, "corruptions=all")
    assert len({r["corruption"] for r in results["corruptions"]}) == 15  # fourteen, and none
    assert "without frost, whose photos are to be given as frost=FOLDER" in results["notes"]
    draw(tmp_path / "frost" / "a.png", (200, 200, 200), 0)
    with pytest.raises(RecipeError, match="frost=.*needs photos of 8 bits, of more than 224 pixels"):
        run_it(split_data, *own, "corruptions=frost", f"frost={tmp_path / 'frost'}")
    (tmp_path / "frost" / "b.png").write_bytes(b"x")
    with pytest.raises(RecipeError, match="frost=.*b.png"):
        run_it(split_data, *own, "corruptions=frost", f"frost={tmp_path / 'frost'}")
    for path in (tmp_path / "frost").iterdir():
        Image.new("RGB", (300, 260), (220, 230, 240)).save(path)
    results = run_it(split_data, *own, "corruptions=frost", f"frost={tmp_path / 'frost'}")
    assert {r["corruption"] for r in results["corruptions"]} == {"none", "frost"}


@pytest.mark.parametrize(
    "setting, words",
    [
        ("corruptions=[contrast,foggy]", "unknown corruption foggy; is it fog"),
        ("severities=[1,6]", "severities=6 must be 1 to 5"),
        ("calibration=yes", "calibration=yes must be true or false"),
        ("metric=map11 protocols=[knn,linear_features]", "protocols=knn: with metric=map11"),
        ("metric=map11 calibration=true", "without calibration and corruptions"),
        ("protocols=retrieval calibration=true", "need a protocol that predicts"),
        ("corruptions=frost frost=nowhere", "nowhere"),
        ("protocol=knn", "unknown key protocol; is it protocols"),
        ("lr=1", "is it learning_rate"),
        ("protocols=[knn,linaer]", "unknown protocol linaer; is it linear"),
        ("metric=top2", "metric=top2 is not one of top1, mean_per_class, map11"),
        ("k=many", "k=many must be a whole number"),
        ("k=0", "k=0 must be a whole number, 1 or more"),
        ("k=2.5", "k=2.5 must be"),
        ("ks=[1,0]", "ks=0 must be"),
        ("shots=[[1]]", "must be whole numbers"),
        ("temperature=0", "temperature=0 must be above 0"),
        ("learning_rate=.inf", "learning_rate=inf must be"),
        ("weight_decay=-1", "weight_decay=-1 must be 0 or more"),
        ("seed=-1", "seed=-1 must be"),
        ("include_hidden=1", "include_hidden=1 must be true or false"),
        ("epochs=[", "not YAML"),
        ("k", "setting 'k' is not key=value"),
        ("labels=101%", "labels=101% of 30 images"),
        ("labels=0.1%", "are 0"),
        ("labels=-5", "no text file"),
        ("eval_split=train", "is what is learnt from"),
        ("split=test", "no split test"),
        ("data=nowhere/at/all", "no such folder"),
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(
    setting: str, words: str, data: Path, run_it: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(RecipeError) as error:
        run_it(data, *setting.split() if "=" in setting.partition(" ")[2] else [setting])
    assert words in str(error.value)
    assert not (data.parent / "out" / "results.json").exists()


def test_every_setting_has_a_default_of_its_kind_and_null_is_the_default() -> None:
    settings = read_settings(["data=x", "k=null", "labels=", "ks=2", "protocols=knn", "data=[a,b]"])
    assert settings["k"] == 20 and settings["labels"] is None and settings["ks"] == [2]
    assert settings["protocols"] == ["knn"] and settings["data"] == ["a", "b"] and set(settings) == set(SETTINGS)
    with pytest.raises(RecipeError, match="needs data="):
        read_settings([])


def test_nothing_of_the_users_is_replaced(data: Path, run_it: Callable[..., dict[str, Any]]) -> None:
    out = data.parent / "out"
    out.mkdir()
    for name in ("results.json", "accuracy.png", "mistakes.html"):
        (out / name).write_text('{"results": "mine"}')
        with pytest.raises(FileExistsError, match=name):
            run_it(data, "protocols=knn")
        assert (out / name).read_text() == '{"results": "mine"}'
        (out / name).unlink()
    for setting in (f"output_dir={data / 'out'}", f"cache={data / 'cache'}"):
        with pytest.raises(OutputError, match="in the photo folder"):
            run_it(data, setting)
    assert sorted(path.name for path in data.iterdir()) == sorted(CLASSES)


def test_data_that_cannot_be_evaluated_on_is_refused(
    data: Path, tmp_path: Path, run_it: Callable[..., dict[str, Any]]
) -> None:
    draw(tmp_path / "flat" / "a.png", (1, 2, 3), 0)
    with pytest.raises(RecipeError, match="has no labels; put the images of each class in a folder"):
        run_it(tmp_path / "flat")
    for name in ("ant", "dragon"):
        draw(tmp_path / "other" / name / "a.png", (1, 2, 3), 0)
    with pytest.raises(RecipeError, match="has no class dragon"):
        run_it(data, f"eval_data={tmp_path / 'other'}")
    for name in ("ant", "cat"):
        draw(tmp_path / "good" / name / "a.png", CLASSES[name], 5)
    results = run_it(data, f"eval_data={tmp_path / 'good'}", "protocols=knn")
    assert results["data"]["evaluation"]["images"] == 2 and results["data"]["train"]["images"] == 33
    with pytest.raises(RecipeError, match="retrieval: every class has one image"):
        run_it(data, f"eval_data={tmp_path / 'good'}", "protocols=retrieval")
    for path in (*data.rglob("*.png"),):
        path.write_bytes(b"x")
    with pytest.raises(RecipeError, match="hardly an image can be read; first: .*ant"):
        run_it(data, "protocols=knn")


def test_few_labels_are_of_each_class_as_many_or_one_more() -> None:
    labels = np.random.default_rng(0).integers(0, 7, 4000)
    one, ten = (class_balanced(labels, total, seed=3) for total in (40, 400))
    counts = np.bincount(labels[one])
    assert len(one) == 40 and sorted(counts.tolist()) == [5, 5, 6, 6, 6, 6, 6]
    assert len(ten) == 400 and set(np.bincount(labels[ten]).tolist()) == {57, 58}
    assert set(one.tolist()) < set(ten.tolist()) and (np.diff(ten) > 0).all()
    assert np.array_equal(one, class_balanced(labels, 40, seed=3))
    assert not np.array_equal(one, class_balanced(labels, 40, seed=4))
    for total in range(1, 60):  # whatever the numbers
        assert set(class_balanced(labels, total, 3).tolist()) < set(class_balanced(labels, total + 1, 3).tolist())
    rare = np.array([0] * 50 + [1])
    assert np.bincount(rare[class_balanced(rare, 10, 0)]).tolist() == [5, 1]


def test_a_share_of_each_class_leaves_some_of_each() -> None:
    labels = np.array([0] * 100 + [1] * 14 + [2] * 2 + [3])
    drawn = share_of_each_class(labels, 0.1, 0)
    assert np.bincount(labels[drawn], minlength=4).tolist() == [10, 1, 1, 0]
    assert not np.array_equal(drawn, share_of_each_class(labels, 0.1, 1))


def test_labels_by_share_by_number_and_by_the_official_lists(data: Path, tmp_path: Path) -> None:
    settings = read_settings([f"data={data}"])
    train, evaluation, classes, _ = open_parts(settings)
    assert classes == list(CLASSES) and len(train.chosen) == 30
    assert not set(train.chosen.tolist()) & set(evaluation.chosen.tolist())

    def names(labels: str) -> list[str]:
        chosen, _ = labelled(train, labels, 0)
        return sorted(Path(train.name(place)).name for place in chosen)

    assert len(names("10%")) == 3 and len({name[:3] for name in names("10%")}) == 3
    assert len(names("4")) == 12 and set(names("10%")) < set(names("4"))
    assert labelled(train, "10 %", 0)[1] == ["labels=10 %: 3 images, 1 of each class (seed 0)"]
    there = [Path(train.name(place)).name for place in train.chosen[::4]]
    subset = tmp_path / "1percent.txt"
    subset.write_text("\n".join([*there[::-1], "n04235860_14959.JPEG", ""]))  # as they are: shuffled, a name a line
    chosen, told = labelled(train, str(subset), 0)
    assert chosen.tolist() == train.chosen[::4].tolist()
    assert told == [f"labels={subset}: {len(there)} images; names of no training image: 1"]
    subset.write_text("cat/" + there[0])  # folders do not count
    assert labelled(train, str(subset), 0)[0].tolist() == train.chosen[:1].tolist()
    subset.write_text("n04235860_14959.JPEG\n")
    with pytest.raises(RecipeError, match="none of its 1 names is of a training image"):
        labelled(train, str(subset), 0)
    shutil.copy(data / "ant" / "ant_0.png", data / "cat" / "ant_0.png")
    both = Part.open(str(data), "train", open_rules())
    subset.write_text("ant_0.png\n")
    with pytest.raises(RecipeError, match="ant_0.png is the name of several images"):
        labelled(both, str(subset), 0)


def open_rules() -> Any:
    from simclr_hub.scan import Rules

    return Rules()


def test_parquet_with_labels(
    data: Path, tmp_path: Path, run_it: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()
    paths = sorted(data.rglob("*.png"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(CLASSES))})
    folder = tmp_path / "tables"
    for split, some in {"train": paths[::2], "test": paths[1::2]}.items():
        rows = {"image": [{"bytes": p.read_bytes(), "path": p.name} for p in some]}
        rows["label"] = [list(CLASSES).index(p.parent.name) for p in some]  # type: ignore[misc]
        folder.mkdir(exist_ok=True)
        datasets.Dataset.from_dict(rows, features).to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))
    subset = tmp_path / "names.txt"
    subset.write_text("".join(f"{path.name}\n" for path in paths[::2][::3]))
    results = run_it(folder, f"labels={subset}", "protocols=knn")
    assert results["data"]["evaluation"]["split"] == "test" and results["data"]["evaluation"]["images"] == 16
    assert results["data"]["train"]["images"] == len(paths[::2][::3])


# --- The official linear evaluation ---


def test_batches_cross_epoch_ends_and_nothing_is_dropped() -> None:
    _, steps = official_steps(10, 4, 3, 0)
    assert steps == 10 * 3 // 4 + 1 == 8
    assert official_steps(50_000, 512, 100, 0)[1] == 9766  # as the official commands
    assert official_steps(1_281_167, 4096, 90, 0)[1] == 28151
    seen = [i for batch in batches(10, 4, steps, torch.Generator().manual_seed(0)) for i in batch]
    assert len(seen) == 32
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert seen[:10] != seen[10:20]
    assert [len(batch) for batch in batches(3, 8, 2, torch.Generator())] == [8, 8]  # more than an epoch


def test_the_rate_is_a_cosine_to_zero() -> None:
    rates = list(learning_rates(8, 512))
    assert rates == pytest.approx([0.2 * 0.5 * (1 + math.cos(math.pi * t / 8)) for t in range(8)])
    assert rates[0] == 0.2 and rates[-1] > 0
    assert next(learning_rates(8, 512, 3.0)) == 3.0


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_training_equals_the_formulas_written_out(data: Path, tiny_dir: Path, weight_decay: float) -> None:
    model, processor = load(tiny_dir)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = [
        torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) for path in sorted(data.rglob("*.png"))[::3]
    ]
    images[1] = images[1][:, :30]  # of another shape
    labels = torch.arange(len(images)) % 3
    random = torch.get_rng_state()
    layers = {"h": 0, "z": model.config.projection_layers}
    counted: list[int] = []
    found = train_linear(
        model,
        processor,
        lambda rows: [images[i] for i in rows],
        labels,
        3,
        layers,
        epochs=2,
        batch_size=4,
        learning_rate=0.5,
        weight_decay=weight_decay,
        seed=5,
        on_step=lambda: counted.append(1),
    )
    assert torch.equal(torch.get_rng_state(), random) and len(counted) == 11 * 2 // 4 + 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    views = Views(64, operations=("crop", "flip"))
    widths = {"h": model.config.hidden_size, "z": model.config.projection_dim}
    weights = {name: torch.zeros(3, widths[name] + 1, dtype=torch.float64) for name in layers}
    velocities = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        steps = len(counted)
        for step, rows in enumerate(batches(11, 4, steps, torch.Generator().manual_seed(5))):
            rate = 0.25 * (1 + math.cos(math.pi * step / steps))
            output = model(crops(views, [images[i] for i in rows]), output_projections=True)
            for name, vectors in {"h": output.pooler_output, "z": output.projections[-1]}.items():
                x = torch.cat([vectors, torch.ones(4, 1)], 1).double()
                error = (x @ weights[name].T).softmax(1) - F.one_hot(labels[rows], 3)
                gradient = error.T @ x / 4 + weight_decay * weights[name]  # of the bias, too
                velocities[name] = 0.9 * velocities[name] + gradient
                weights[name] = weights[name] - rate * (gradient + 0.9 * velocities[name])
    for name, classifier in found.items():
        ours = torch.cat([classifier.weight, classifier.bias[:, None]], 1).detach()
        torch.testing.assert_close(ours, weights[name].float(), atol=1e-4, rtol=1e-3)
        assert ours.abs().max() > 0.01


def test_linear_is_measured_on_central_crops(split_data: Path, run_it: Callable[..., dict[str, Any]]) -> None:
    (split_data / "train" / "ant" / "ant_3.png").write_bytes(b"no image")
    results = run_it(
        split_data, "protocols=linear", "layers=[h,g1,h+stage3]", "epochs=20", "batch_size=16", "learning_rate=0.05"
    )
    found = {(r["layer"], r["measure"]): r for r in results["results"]}
    assert set(found) == {("h", "top-1"), ("g1", "top-1")}  # three classes have no top-5
    of_h = found["h", "top-1"]
    assert of_h["value"] >= 50 and of_h["settings"]["steps"] == 32 * 20 // 16 + 1
    assert of_h["settings"]["learning_rate"] == 0.05 and of_h["interval"] == pytest.approx(interval(of_h["value"], 6))


# --- The command ---


def test_the_command_prints_a_table_or_json(
    split_data: Path, tiny_dir: Path, run: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    own = [f"data={split_data}", f"cache={tmp_path / 'cache'}", "protocols=knn", "k=3"]
    code, out, err = run("evaluate", tiny_dir, *own)
    assert code == 0 and out.splitlines()[0].split()[:3] == ["protocol", "measure", "(%)"]
    assert "results.json, charts and mistakes.html in runs/evaluate" in out and "33 labelled images" in err
    code, out, _ = run("evaluate", tiny_dir, *own, "--json")
    assert code == 0 and json.loads(out) == json.loads((tmp_path / "runs/evaluate/results.json").read_text())
    code, _, err = run("evaluate", *own)
    assert code == 2 and "no MODEL" in err
    code, _, err = run("evaluate", tiny_dir, *own, "eval_splt=val")
    assert code == 1 and "unknown key eval_splt; is it eval_split" in err
    code, _, err = run("evaluate", "no/such/model", *own)
    assert code == 1 and "error" in err
