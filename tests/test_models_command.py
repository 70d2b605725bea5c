"""`simclr-hub models`, what it is made of, and docs/models.md."""

import functools
import importlib.util
import json
import re
from pathlib import Path

import pytest

from simclr_hub import SimCLRModel
from simclr_hub.checkpoints.catalog import PROTOCOLS, Choice, choices, config_of, entries, measurement, recommend

ROOT = Path(__file__).parents[1]


@pytest.fixture
def run(run):
    """Run `simclr-hub models`: (exit code, standard output, standard error)."""
    return functools.partial(run, "models")


@pytest.fixture
def models(run):
    """The models of `simclr-hub models --json`."""

    def models(*args):
        code, out, _ = run(*args, "--json")
        assert code == 0
        return json.loads(out)["models"]

    return models


@pytest.mark.parametrize(
    ("labels", "training", "count"),
    [
        ("none", "pretrained", 16),
        ("linear", "pretrained", 16),
        ("1%", "finetuned-1pct", 13),
        ("10%", "finetuned-10pct", 16),
        ("100%", "finetuned-100pct", 16),
        ("supervised", "supervised", 13),
    ],
)
def test_labels_give_the_models_trained_with_them_and_their_published_accuracy(models, labels, training, count):
    found = models("--labels", labels)
    assert len(found) == count
    protocol = "linear" if labels == "none" else labels
    for model in found:
        entry = entries()[model["name"]]
        assert (entry.training, model["protocol"]) == (training, protocol)
        assert model["top1"] == entry.top1[protocol] and model["source"] == entry.sources["top1"]
        assert model["hidden_size"] == 2048 * entry.width_multiplier


def test_all_has_every_checkpoint_once_and_the_one_without_a_published_accuracy_last(models):
    names = [model["name"] for model in models("--labels", "all")]
    assert sorted(names) == sorted(entries()) and names[-1] == "simclr-v2-r152-3x-sk-distilled-1pct"


def test_without_options_it_is_the_pretrained_ones_the_most_accurate_first(models):
    assert models() == models("--labels", "none", "--sort", "accuracy")


def test_limits_are_inclusive_and_hold_together(models):
    every = models()
    parameters = sorted(m["parameters"] for m in every)[8]
    speed = sorted(m["images_per_second"] for m in every)[8]
    assert models("--max-params", parameters) == [m for m in every if m["parameters"] <= parameters]
    assert models("--min-speed", speed) == [m for m in every if m["images_per_second"] >= speed]
    both = models("--max-params", parameters, "--min-speed", speed)
    assert both == [m for m in every if m["parameters"] <= parameters and m["images_per_second"] >= speed]
    assert 0 < len(models("--max-params", parameters)) < len(every) > len(models("--min-speed", speed)) > 0


@pytest.mark.parametrize("text", ["100M", "100m", "0.1B", "100000K", "100000000"])
def test_parameters_are_counted_in_the_units_that_people_use(models, text):
    found = {m["name"] for m in models("--max-params", text)}
    assert "simclr-v2-r50-2x" in found and "simclr-v2-r50-2x-sk" not in found  # 94 and 140 million


@pytest.mark.parametrize(
    ("sort", "key", "reverse"),
    [
        ("accuracy", "top1", True),
        ("params", "parameters", False),
        ("speed", "images_per_second", True),
        ("name", "name", False),
    ],
)
def test_sorts(models, sort, key, reverse):
    values = [model[key] for model in models("--sort", sort)]
    assert values == sorted(values, reverse=reverse) and values[0] != values[-1]


def choice(name, top1, speed, protocol="linear"):
    return Choice(name, name, protocol, top1, 1_000_000, 2048, speed, "paper")


def names(found):
    return {protocol: (best.name, near.name) for protocol, (best, near) in recommend(found).items()}


def test_the_recommendation_follows_the_data():
    rows = [choice("big", 83.1, 1), choice("mid", 81.1, 3), choice("slow", 82, 2.5), choice("far", 81.0, 9)]
    assert names(rows) == {"linear": ("big", "mid")}  # two points are still within
    assert names([*rows, choice("even", 82, 2.6)]) == {"linear": ("big", "even")}  # as fast, within the noise
    assert names(rows[:1]) == {"linear": ("big", "big")}
    assert names([*rows, choice("even", 83.1, 2)]) == {"linear": ("even", "mid")}  # as accurate and faster
    assert names([*rows, choice("other", 90, 9, "1%")]) == {"linear": ("big", "mid"), "1%": ("other", "other")}
    assert names([choice("unknown", None, 1, None)]) == {}


def test_the_words_say_the_recommendation_within_the_limits_and_how_to_use_it(run):
    limits = ("--labels", "1%", "--max-params", "100M")
    ((best, near),) = recommend(choices("1%", max_parameters=100e6)).values()
    code, out, _ = run(*limits)
    table, _, words = out.partition("\n\n")
    assert code == 0 and table.splitlines()[0].split()[0] == "model"
    assert {line.split()[0] for line in table.splitlines()[1:]} == {
        m["name"] for m in json.loads(run(*limits, "--json")[1])["models"]
    }
    assert f"With 1 % of the labels: {best.name} is the most accurate ({best.top1} %)" in words
    if near != best:
        times = near.images_per_second / best.images_per_second
        assert f"{near.name} ({near.top1} %) is within 2 points and {times:.1f}x as fast" in words
    assert f'embed("photos/", model="{near.name}")' in words and f'load("{near.name}")' in words
    assert json.loads(run(*limits, "--json")[1])["recommended"] == {
        "1%": {"most_accurate": best.name, "fastest_near": near.name}
    }
    words = run("--labels", "all")[1].partition("\n\n")[2]
    assert re.findall("^With (.*):", words, re.M) == list(PROTOCOLS.values())


def test_where_one_model_is_best_and_fastest_it_is_named_once(run):
    words = run("--max-params", "24M", "--sort", "params")[1].partition("\n\n")[2]
    assert words.startswith("With no labels: simclr-v2-r50 is the most accurate (71.7 %).\n")


def test_the_table_shows_the_numbers(run):
    row = next(line.split() for line in run()[1].splitlines() if line.startswith("simclr-v1-r50 "))
    speed = measurement()["architectures"]["simclr-v1-r50"]["images_per_second"]
    assert row == ["simclr-v1-r50", "23.5", "2048", "69.1", "linear", f"{speed:.2f}"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["--labels", "5%"], 2, ["5%", "10%"]),
        (["--sort", "size"], 2, ["size", "params"]),
        (["--max-params", "many"], 2, ["many", "100M"]),
        (["--max-params", "-5"], 2, ["-5", "100M"]),
        (["--max-params", "nan"], 2, ["nan", "100M"]),
        (["--max-params", "100MB"], 2, ["100MB", "100M,"]),
        (["--min-speed", "-1"], 2, ["-1"]),
        (["--min-speed", "fast"], 2, ["fast"]),
        (["--max-params", "1M"], 1, ["at most 1,000,000 parameters:", "23.5M"]),
        (["--min-speed", "nan"], 1, ["nan"]),
        (["--min-speed", "100000"], 1, ["has at least 100000 images/s:"]),
        (["simclr-v2-r50"], 2, ["simclr-v2-r50"]),
    ],
)
def test_bad_values_end_with_one_line(run, args, code, words):
    got, out, err = run(*args)
    assert (got, out) == (code, "")
    last = err.strip().splitlines()[-1]
    assert last.lower().startswith("error: ") and all(word in last for word in words), last


def test_every_architecture_was_measured_and_the_file_says_how():
    measured = measurement()
    rows = measured["architectures"]
    assert sorted(rows) == sorted(name for name, e in entries().items() if e.training == "pretrained")
    assert all(
        row["slowest"] <= row["images_per_second"] <= row["fastest"] and row["passes"] >= 3 for row in rows.values()
    )
    assert measured["threads"] == 1 and "CPU time" in measured["method"] and "fast_copy" in measured["method"]
    assert {"machine", "torch", "date", "command"} <= set(measured)


@pytest.mark.parametrize("name", ["simclr-v2-r50", "simclr-v2-r101-2x-sk", "simclr-v1-r50-4x"])
def test_parameters_are_those_of_the_model(name):
    import torch

    with torch.device("meta"):
        encoder = SimCLRModel(config_of(entries()[name])).encoder
    assert measurement()["architectures"][name]["parameters"] == sum(p.numel() for p in encoder.parameters())


def test_the_page_is_current():
    spec = importlib.util.spec_from_file_location("models_page", ROOT / "scripts" / "models_page.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    page = generate.PAGE.read_text(encoding="utf-8")
    between = page.partition(generate.BEGIN)[2].partition(generate.END)[0]
    hint = "run: python scripts/models_page.py"
    assert between.strip() == generate.tables(), hint
    assert f"<dc:description>{generate.digest()}</dc:description>" in generate.PLOT.read_text(encoding="utf-8"), hint
    for name in re.findall(r"\bsimclr-v\d[\w-]*", page):
        assert name in entries()
