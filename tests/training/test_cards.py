"""Model cards: those that are checked in are current, valid, and say what the catalog and the measurements say."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import test_official
import torch
import yaml
from render_cards import all_cards
from tiny import tiny_config

from simclr_hub import SimCLRConfig, SimCLRForImageClassification
from simclr_hub.checkpoints.catalog import entries
from simclr_hub.checkpoints.convert import convert
from simclr_hub.errors import PublishError
from simclr_hub.training import cards, official_cards
from simclr_hub.training.cards import Counts, Result, check_card, count, describe, eval_results, render
from simclr_hub.training.official_cards import official_card
from simclr_hub.training.trained_cards import DEFAULT_DIRECTORY, default_card, read_record, trained_card, write_record

ROOT = Path(__file__).parents[2]
CHECKED_IN = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "model_cards").glob("*.md"))}
# Published ImageNet top-1 with a linear classifier: v2's table 1, v1's abstract and README.
LINEAR = {
    "simclr-v1-r50": 69.1, "simclr-v1-r50-2x": 74.2, "simclr-v1-r50-4x": 76.6,
    "simclr-v2-r50": 71.7, "simclr-v2-r50-sk": 74.6, "simclr-v2-r50-2x": 75.6, "simclr-v2-r50-2x-sk": 77.7,
    "simclr-v2-r101": 73.6, "simclr-v2-r101-sk": 76.3, "simclr-v2-r101-2x": 77.0, "simclr-v2-r101-2x-sk": 79.0,
    "simclr-v2-r152": 74.5, "simclr-v2-r152-sk": 77.2, "simclr-v2-r152-2x": 77.4, "simclr-v2-r152-2x-sk": 79.4,
    "simclr-v2-r152-3x-sk": 79.8,
}  # fmt: skip


def metadata(card):
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, re.S)[1])


@pytest.fixture
def uncounted(monkeypatch):
    """Cards without counting, which takes the longest."""
    monkeypatch.setattr(cards, "count", lambda config, classes: Counts(1, 1, 1, 10**9))


def test_the_cards_that_are_checked_in_are_current(uncounted):
    def words(text):
        return [
            line
            for line in text.splitlines()
            if not re.match(r"\| (parameters of f|projection|classifier|multi)", line)
        ]

    assert CHECKED_IN.keys() == {"default", *LINEAR}
    for name, text in all_cards().items():
        assert words(CHECKED_IN[name]) == words(text), f"{name}: run `python scripts/render_cards.py`"


def test_two_are_current_with_their_counts():
    assert CHECKED_IN["default"] == render(default_card()), "run `python scripts/render_cards.py`"
    assert CHECKED_IN["simclr-v2-r50-sk"] == render(official_card("simclr-v2-r50-sk", "org/simclr-v2-r50-sk"))


@pytest.mark.slow
def test_the_cards_that_are_checked_in_are_current_with_their_counts():
    assert CHECKED_IN == all_cards()


@pytest.mark.parametrize("name", CHECKED_IN)
def test_each_is_valid(name):
    text = CHECKED_IN[name]
    assert check_card(text) == []
    # Every section has something in it, nothing is left to fill in, and no path of a machine is in it.
    assert not re.search(r"^## [^\n]+\n+(?=## )|\bNone\b(?! were)|\{\{|TODO|/home/|/Users/|nan", text, re.M)
    sections = re.findall(r"^## (.+)$", text, re.M)
    proof = ["Proof of conversion"] if name != "default" else ["Where it fails"]
    assert sections == [
        "What it is for", "Use", "Architecture", "Training", "Results", *proof, "Which layer for what",
        "Preprocessing", "Limits", "Licence", "Citation",
    ]  # fmt: skip


@pytest.mark.parametrize("name", LINEAR)
def test_published_numbers_are_the_catalogs_and_the_papers(name):
    entry, text = entries()[name], CHECKED_IN[name]
    assert entry.top1 == {"linear": LINEAR[name]}
    (result,) = metadata(text)["model-index"][0]["results"]
    assert [metric["value"] for metric in result["metrics"]] == [LINEAR[name]]
    where = {1: "https://github.com/google-research/simclr", 2: "https://arxiv.org/abs/2006.10029"}[entry.version]
    assert result["source"]["url"].startswith(where)
    assert f"| top-1 accuracy (%), linear classifier on h | {LINEAR[name]} |" in text
    for training in ("finetuned-1pct", "finetuned-10pct", "finetuned-100pct"):
        if other := entries().get(f"{name}-{training}"):
            (value,) = other.top1.values()
            assert re.search(rf"\b{value} % fine-tuned with [^(]+ \(`{other.name}`, \[", text)
    assert (f"counted | {entry.parameters // 10**6} |" in text) == (entry.version == 2)
    assert f"https://storage.googleapis.com/{entry.location}`" in text and f"step {entry.step:,}." in text


def test_every_number_in_a_results_table_has_a_source_or_a_command():
    rows = 0
    for text in CHECKED_IN.values():
        results = text[text.index("## Results") :]
        for row in re.findall(r"^\| .+ \| [\d.]+ \| .+ \| (.+) \|$", results[: results.index("\n## ")], re.M):
            assert re.fullmatch(r"\[.+\]\(https://\S+\)|`.+`", row)
            rows += 1
    assert rows == 16 + 13 + 8


@pytest.mark.parametrize("name", entries())
def test_every_official_card_can_be_rendered(name, uncounted):
    entry = entries()[name]
    origin = {"url": "https://x.test/model.ckpt-5.data", "step": 5, "sha256": "ab" * 32}
    text = render(official_card(name, f"team/{name}", origin))
    assert "ab" * 32 in text and "filled in" not in text and f'"team/{name}", trust' in text
    data = metadata(text)
    if entry.training == "pretrained":
        assert data["pipeline_tag"] == "image-feature-extraction" and "base_model" not in data
    else:
        assert data["pipeline_tag"] == "image-classification"
    if entry.training.startswith("finetuned"):
        assert data["base_model"] == f"team/{name.partition('-finetuned')[0]}"
        assert data["model-index"][0]["results"][0]["metrics"][0]["value"] == next(iter(entry.top1.values()))
    assert ("On h it is useless" in text) == (entry.classifier_layer > 0)
    assert ("on the output of g's layer 1" in text) == (entry.classifier_layer > 0)
    assert ("No accuracy was found" in text) == (entry.training == "distilled-1pct")
    assert ("60 epochs" in text) == (entry.training == "finetuned-1pct" and entry.version == 2)


def test_the_shown_differences_are_what_the_official_fixtures_give(tmp_path):
    for case, shown in official_cards.words()["differences"].items():
        convert(test_official.OFFICIAL / case, tmp_path / case)
        model = test_official.load(tmp_path / case)
        worst = {}
        for size in (64, 97):
            x, expected = test_official.official_numbers(case, size)
            ours = test_official.endpoints(model, x)
            for layer, value in expected.items():
                map_or_vector = ours[layer].mean((2, 3)) if ours[layer].ndim == 4 else ours[layer]
                worst[layer] = max(worst.get(layer, 0), test_official.relative(map_or_vector, value))
        assert worst.keys() == shown.keys()
        for layer, value in worst.items():  # other processors round in another order
            assert value < 3 * shown[layer], (case, layer)


def test_the_default_cards_numbers_were_measured_on_what_is_shipped():
    import hashlib

    record = read_record(DEFAULT_DIRECTORY / "results.json")
    shipped = hashlib.sha256((DEFAULT_DIRECTORY / "model.safetensors").read_bytes()).hexdigest()
    assert record["weights"] == shipped, "measure the new default: benchmarks/features.py, then results.json"
    measured = (ROOT / "benchmarks" / "RESULTS.md").read_text(encoding="utf-8")
    for result in record["results"]:
        assert f"{result['value']}" in measured and f"| {result['value']} |" in CHECKED_IN["default"]
        assert result["command"] in measured
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(record["limits"]) >= 4
    for limit in record["limits"]:
        assert f"\n- {limit}\n" in readme and f"\n- {limit}\n" in CHECKED_IN["default"]


def test_a_trained_models_card_says_where_it_fails():
    told = {"limits": ["**Fog.** It sees nothing in it."]}
    text = render(trained_card("org/mine", tiny_config(), 0, told))
    assert "## Where it fails\n\n- **Fog.** It sees nothing in it.\n\n## Which layer" in text
    assert "Where it fails" not in render(trained_card("org/mine", tiny_config(), 0, {}))
    with pytest.raises(PublishError, match="limits must be a list of sentences, not 'In fog'"):
        trained_card("org/mine", tiny_config(), 0, {"limits": "In fog"})


def test_a_run_on_the_hub_says_what_it_came_from_and_its_numbers(tmp_path, uncounted):
    tiny_config().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    recipe = {"data": "org/photos", "init_from": "team/start@v1", "teacher": "team/big", "training": {}}

    def card_of(**changes):
        measured = {"top-1 accuracy (%)": 91.26}
        write_record(
            tmp_path, "small", {**recipe, **changes}, "5 steps", 9, measured, "split test: 4 images", 3, "test"
        )
        return metadata((tmp_path / "README.md").read_text())

    data = card_of()
    assert data["base_model"] == ["team/start", "team/big"]
    [result] = data["model-index"][0]["results"]
    assert (result["dataset"]["type"], result["dataset"]["split"]) == ("org/photos", "test")
    assert result["metrics"][0]["value"] == 91.26 and "distill" in result["metrics"][0]["args"]["command"]
    data = card_of(data=str(tmp_path), init_from="default", teacher=str(tmp_path))  # none of them is on the Hub
    assert "base_model" not in data and "model-index" not in data


def by_hand(blocks, width):
    """Multiply-adds of a bottleneck ResNet at 224 pixels, stride in the 3x3."""
    side, total, c_in = 112, 112 * 112 * 64 * width * 3 * 49, 64 * width
    side = 56
    for i, n in enumerate(blocks):
        c = 64 * width * 2**i
        for block in range(n):
            out = side // 2 if i and not block else side
            total += side**2 * c_in * c + out**2 * (9 * c * c + c * 4 * c)
            total += out**2 * c_in * 4 * c if not block else 0
            side, c_in = out, 4 * c
    return total


@pytest.mark.parametrize("width", [1, 2])
def test_multiply_adds_are_those_counted_by_hand(width):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert count(SimCLRConfig.v2(50, width), 0).macs == by_hand((3, 4, 6, 3), width)
    assert torch.equal(torch.get_rng_state(), state)  # no weights were made


def test_parameters_are_the_models():
    config = tiny_config(sk_ratio=0.0625, projection_layers=3)
    counts = count(config, 7)
    config.num_labels = 7
    model = SimCLRForImageClassification(config)
    assert counts.encoder + counts.projection + counts.classifier == sum(p.numel() for p in model.parameters())
    assert counts.classifier == sum(p.numel() for p in model.classifier.parameters())
    assert counts.projection == sum(p.numel() for p in model.simclr.projection.parameters())
    assert count(config, 0).classifier == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "bottleneck ResNet, width 0.125x, blocks 1-1-1-1"),
        ({"depths": (3, 4, 6, 3), "width_multiplier": 2}, "ResNet-50, width 2x, blocks 3-4-6-3"),
        ({"depths": (3, 4, 6, 3), "layer_type": "basic"}, "ResNet-34, width 0.125x, blocks 3-4-6-3"),
        ({"se_ratio": 0.25, "stem_type": "cifar"}, "squeeze-and-excitation, 3x3 stem without stride or pool"),
        ({"sk_ratio": 0.0625}, "selective kernels, ResNet-D stem and shortcuts"),
    ],
)
def test_architectures_in_words(changes, words):
    assert words in describe(tiny_config(**changes))


@pytest.mark.parametrize(
    "change", [{}, {"source": "a paper"}, {"source_url": "https://x.test"}, {"command": "c", "value": "9"}]
)
def test_a_number_from_nowhere_cannot_be_made(change):
    with pytest.raises(PublishError):
        Result(**{"measure": "accuracy", "value": 9.0, "dataset": "d", **change})


def test_results_on_a_benchmark_of_the_hub_become_eval_results():
    card = official_card("simclr-v2-r50", "org/x")
    assert eval_results(card, {}) == {}
    files = eval_results(card, {"ILSVRC/imagenet-1k": "top1"})
    (entry,) = yaml.safe_load(files[".eval_results/imagenet-1k.yaml"])
    assert entry == {
        "dataset": {"id": "ILSVRC/imagenet-1k", "task_id": "top1"},
        "value": 71.7,
        "source": {"url": "https://arxiv.org/abs/2006.10029", "name": "arXiv 2006.10029, table 1"},
        "notes": "top-1 accuracy (%), linear classifier on h",
    }


def test_measured_numbers_stand_apart_and_in_the_index(uncounted):
    measured = Result("accuracy (%)", 70.1, "ImageNet", command="make x", dataset_id="ILSVRC/imagenet-1k")
    text = render(replace(official_card("simclr-v2-r50", "org/x"), measured=(measured,)))
    assert text.index("Published by the authors") < text.index("Measured with simclr_hub:") < text.index("| 70.1 |")
    results = metadata(text)["model-index"][0]["results"]
    assert [r["metrics"][0]["args"] for r in results if "source" not in r] == [{"command": "make x"}]


def test_a_licence_of_its_own_needs_a_name(uncounted):
    with pytest.raises(PublishError, match="license_name"):
        render(trained_card("org/x", tiny_config(), 0, {}, licence="other"))
    text = render(trained_card("org/x", tiny_config(), 0, {"licence_name": "ours"}, licence="other"))
    assert metadata(text)["license_name"] == "ours" and "(ours)" in text


GOOD = {
    "license": "mit",
    "library_name": "transformers",
    "pipeline_tag": "image-feature-extraction",
    "tags": ["simclr"],
    "model-index": [
        {
            "name": "x",
            "results": [
                {
                    "task": {"type": "image-classification"},
                    "dataset": {"type": "a/b", "name": "B"},
                    "metrics": [{"type": "accuracy", "value": 1.5}],
                    "source": {"url": "https://x.test", "name": "x"},
                }
            ],
        }
    ],
}


def written(data):
    return f"---\n{yaml.safe_dump(data)}---\n\n# x\n"


@pytest.mark.parametrize(
    ("path", "value", "problem"),
    [
        ("license", None, "license is missing"),
        ("license", "apache", "no licence identifier"),
        ("license", "other", "license_name"),
        ("library_name", "timm", "library_name"),
        ("pipeline_tag", "features", "no task"),
        ("pipeline_tag", ["image-classification"], "no task"),
        ("tags", "simclr", "tags"),
        ("tags", [1], "tags"),
        ("datasets", ["a b"], "no data set's id"),
        ("base_model", "a/b/c", "base_model"),
        ("base_model", ["a/b", "a/b/c"], "base_model"),
        ("model-index", {}, "model-index"),
        ("model-index", [{"name": "x"}], "name and results"),
        ("model-index.0.name", None, "name and results"),
        ("model-index.0.results.0.task", None, "task.type"),
        ("model-index.0.results.0.dataset.type", None, "dataset.type"),
        ("model-index.0.results.0.dataset.name", 3, "dataset.name"),
        ("model-index.0.results.0.metrics", [], "no metrics"),
        ("model-index.0.results.0.metrics.0.value", "71", "needs a type and a number"),
        ("model-index.0.results.0.metrics.0.value", True, "needs a type and a number"),
        ("model-index.0.results.0.metrics.0.type", None, "needs a type and a number"),
        ("model-index.0.results.0.source", None, "neither a source nor a command"),
        ("model-index.0.results.0.source.url", "x", "no https address"),
    ],
)
def test_the_offline_check_finds(path, value, problem):
    assert check_card(written(GOOD)) == []
    data = yaml.safe_load(yaml.safe_dump(GOOD))
    *parents, last = path.split(".")
    place = data
    for key in parents:
        place = place[int(key) if key.isdigit() else key]
    place[last] = value
    assert any(problem in found for found in check_card(written(data))), check_card(written(data))


@pytest.mark.parametrize("text", ["# x\n", "---\na: [\n---\n", "---\n- a\n---\n", "---\nlicense: mit\n"])
def test_metadata_that_is_none_is_found(text):
    assert check_card(text)
