"""What benchmarks/features.py counts, keeps and writes, on a few images."""

import io
import json

import features
import numpy as np
import pytest
import torch
from features import ROWS, Data, Features, Photos, Row, drawn, measured, network, record, tables
from PIL import Image
from tiny import tiny_config

from simclr_hub import Embedder, SimCLRModel
from simclr_hub.training.data import ImageArray

CLASSES = ["clothing_hat", "clothing_shirt", "grocery_Pink-Lady", "grocery_Royal-Gala", "grocery_Oat-Milk"]


@pytest.fixture(scope="module")
def data():
    random = np.random.default_rng(0)

    def tiny(n):
        return ImageArray(random.integers(0, 256, (n, 3, 64, 64), dtype=np.uint8), np.arange(n) % 4)

    labels = torch.arange(5).repeat_interleave(7)
    files = []
    for label in labels.tolist():  # of each class a colour
        shade = (np.random.default_rng(label).random(3) * 200 + random.random((8, 8, 3)) * 50).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(shade).resize((64, 64)).save(file, "png")
        files.append(file.getvalue())
    return Data(tiny(60), tiny(20), ["n01443537 goldfish", "b", "c", "d"], Photos(files, labels, CLASSES))


@pytest.fixture
def few(monkeypatch):
    """Fewer labels and draws, as there are few images."""
    monkeypatch.setattr(features, "LABELS", (1, 5))
    monkeypatch.setattr(features, "DRAWS", 2)
    monkeypatch.setattr(features, "BANK", 40)


def test_as_many_of_each_class_are_drawn_and_the_rest_is_the_others():
    labels = torch.tensor([0, 1, 2] * 10)
    chosen, rest = drawn(labels, 4, seed=1)
    assert labels[chosen].bincount().tolist() == [4, 4, 4]
    assert sorted([*chosen.tolist(), *rest.tolist()]) == list(range(30))
    assert drawn(labels, 4, seed=1)[0].tolist() == chosen.tolist() != drawn(labels, 4, seed=2)[0].tolist()


def test_what_tells_classes_apart_is_found_and_what_does_not_is_not(data, few):
    one_hot, group = torch.eye(8), torch.tensor([0, 1, 2, 2, 4])  # both sorts of apple look alike
    good = Features(
        one_hot[torch.tensor(data.train.labels)],
        one_hot[torch.tensor(data.validation.labels)],
        one_hot[group[data.photos.labels]],
    )
    row = Row("model", "made up", 8)
    row.add(good, data)
    assert row.mean("knn_all") == row.mean("tiny_imagenet_1") == row.mean("knn_all n01443537 goldfish") == 100
    assert row.mean("p_at_5 clothing_hat") == row.mean("p_at_5, clothes") == row.mean("clothes_5") == 100
    assert row.mean("p_at_5, groups") == 100 > row.mean("p_at_5, fine kinds")
    assert len(row.values["open_photos_5"]) == 2 and "±" in row.cell("open_photos_5") and "±" not in row.cell("p_at_1")


def test_a_networks_features_are_computed_once_and_for_these_images_only(data, tmp_path, monkeypatch):
    torch.manual_seed(0)
    embedder = Embedder(SimCLRModel(tiny_config()))
    first = network(embedder, data, tmp_path)
    assert [len(part) for part in first] == [60, 20, 35]
    monkeypatch.setattr(embedder, "stream", None)
    for ours, theirs in zip(first, network(embedder, data, tmp_path), strict=True):
        assert torch.equal(ours, theirs)
    others = Data(data.validation, data.train, data.classes, data.photos)
    with pytest.raises(TypeError):
        network(embedder, others, tmp_path)


def test_the_record_and_the_readme_say_what_was_measured(data, few, tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = tmp_path / "model"
    SimCLRModel(tiny_config()).save_pretrained(model)
    (model / "results.json").write_text(json.dumps({"about": "kept"}))
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{features.BEGIN}\nold\n{features.END}\nafter\n")
    monkeypatch.setattr(features, "README", readme)
    monkeypatch.setattr(features, "DEFAULT_DIRECTORY", model)
    rows = list(measured(ROWS, data, str(model), None, 2, tmp_path))
    names = ["model", "random"]
    assert [row.key for row in rows] == [
        *(name + how for name in names for how in ("", ", whitened")),
        "pixels",
        "thumbnail",
        "histogram",
        "histogram, whitened",
    ]
    # Both random networks, the second with the small bank alone.
    assert len(rows[2].values["knn_25k"]) == 2 and len(rows[2].values["knn_all"]) == 1
    record(model, rows, data, 64)
    told = json.loads((model / "results.json").read_text())
    assert told["about"] == "kept" and len(told["weights"]) == 64
    assert [r["value"] for r in told["results"]][4] == round(rows[1].mean("knn_all"), 1)
    by_thumbnail = f"thumbnail of 8 x 8 pixels {rows[5].mean('p_at_5, clothes'):.0f} % are"
    assert f"{rows[1].mean('p_at_5, clothes'):.0f} % are of its kind; by a {by_thumbnail}" in told["limits"][0]
    assert f"animals {rows[1].mean('knn_all n01443537 goldfish'):.0f}." in told["limits"][3]
    assert "goldfish (" in told["limits"][3] and "n01443537" not in told["limits"][3]
    page = readme.read_text()
    assert page.startswith("before\n") and page.endswith(f"{features.END}\nafter\n") and "\nold\n" not in page
    assert all(f"- {line}\n" in page for line in told["limits"])
    assert all(f"| {row.name} | {row.dim} |" in tables(rows, data) for row in rows)
