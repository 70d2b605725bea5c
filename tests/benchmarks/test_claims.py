"""What benchmarks/claims.py trains, how it goes on, and by what rule it decides."""

import csv
import math

import claims
import numpy as np
import pytest
from claims import CLAIMS, PANELS, RUNS, Claim, Run, differences, identity, verdict
from PIL import Image

BETTER = Claim("a is better", "paper", ((1.0, "a", "m"), (-1.0, "b", "m")))
ALIKE = Claim("a and b are alike", "paper", ((1.0, "a", "m"), (1.0, "b", "m")), alike=2.0)


def values(a, b):
    return {("a", "m"): dict(enumerate(a)), ("b", "m"): dict(enumerate(b))}


@pytest.mark.parametrize(
    ("claim", "a", "b", "told"),
    [
        (BETTER, [41, 42, 43], [38, 39.2, 40], "reproduced"),
        (BETTER, [38, 39.2, 40], [41, 42, 43], "the opposite"),
        (BETTER, [41, 38, 43], [38, 41, 40], "did not: no difference shown"),
        (
            BETTER,
            [41, 42, 50],
            [40, 40, 40],
            "did not: no difference shown",
        ),  # 4.3 +- 4.9, of which the interval is 12
        (BETTER, [41], [38], "open: fewer than two seeds"),
        (BETTER, [], [38, 39, 40], "open: fewer than two seeds"),
        (ALIKE, [41, 42, 43], [41.3, 42.5, 42.8], "reproduced"),
        (ALIKE, [41, 42, 43], [46, 47.2, 48], "did not reproduce"),
        (ALIKE, [41, 42, 43], [42.5, 45, 43], "undecided"),
    ],
)
def test_the_rule(claim, a, b, told):
    assert verdict(claim, differences(claim, values(a, b))) == told


def test_the_interval_is_students():
    assert claims.half_width([1.0, 2.0, 3.0]) == pytest.approx(4.303 / math.sqrt(3))
    assert claims.half_width([1.0]) == math.inf


def test_only_seeds_of_which_all_is_there_count():
    assert differences(BETTER, {("a", "m"): {0: 5.0, 2: 7.0}, ("b", "m"): {0: 4.0, 1: 1.0, 2: 4.0}}) == [1.0, 3.0]
    gap = Claim("shrinks", "", ((1.0, "a", "m"), (-1.0, "b", "m"), (1.0, "b", "n"), (-1.0, "a", "n")))
    four = {("a", "m"): {0: 9.0}, ("b", "m"): {0: 5.0}, ("a", "n"): {0: 9.5}, ("b", "n"): {0: 9.0}}
    assert differences(gap, four) == [3.5]


def test_every_claim_and_panel_is_of_runs_that_are_there_with_a_measure_that_they_have():
    for run, measure in [(r, m) for c in CLAIMS for _, r, m in c.terms] + [
        (r, m) for p in PANELS.values() for r, m, _ in p
    ]:
        kind = RUNS[run].command
        assert measure == claims.TOP1 if kind != "pretrain" else measure.removeprefix("linear ") in RUNS[run].layers
    names = list(RUNS)
    assert all(names.index(run.start) < names.index(name) for name, run in RUNS.items() if run.start)


def test_a_run_is_known_by_what_its_numbers_depend_on(monkeypatch):
    before = {name: identity(run) for name, run in RUNS.items()}
    assert len(set(before.values())) == len(RUNS)
    monkeypatch.setitem(RUNS, "deep g", Run("pretrain", ("model.projection_layers=4",)))
    changed = {name for name, run in RUNS.items() if identity(run) != before[name]}
    assert {"deep g", "g 3, from g1, 1%", "small, distilled"} <= changed and "base" not in changed
    assert "g 2, from h, 1%" not in changed


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Three short runs on 24 images: a pretraining, and a fine-tuning and a distillation of it."""
    random = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(24):
            path = tmp_path / "cifar" / split / f"class{i % 2}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    small = ("model.width_multiplier=0.125", "max_steps=2")
    runs = {
        "base": Run("pretrain", (*small, "batch_size=8"), layers=("h", "z")),
        "tuned": Run("finetune", ("max_steps=2", "batch_size=8", "projection_layer=1"), "base"),
        "taught": Run(
            "distill", (*small, "batch_size=8", "model.image_size=32", "model.projection_layers=0"), "tuned"
        ),
    }
    monkeypatch.setattr(claims, "RUNS", runs)
    monkeypatch.setattr(claims, "IMAGES", 10)
    return tmp_path / "cifar", tmp_path / "work", tmp_path / "claims.csv"


@pytest.mark.slow
def test_runs_are_trained_once_and_go_on_where_they_were_stopped(tiny, monkeypatch, capsys):
    data, work, results = tiny
    given = ["--data", str(data), "--work", str(work), "--results", str(results), "--seeds", "3"]
    real = claims.train

    def stopped(name, *rest):
        if name == "taught":
            raise KeyboardInterrupt
        return real(name, *rest)

    monkeypatch.setattr(claims, "train", stopped)
    with pytest.raises(KeyboardInterrupt):
        claims.main(given)
    assert len(list((work / "images" / "train").rglob("*.jpg"))) == 20
    trained = []
    monkeypatch.setattr(claims, "train", lambda name, *rest: trained.append(name) or real(name, *rest))
    claims.main(given)
    claims.main(given)
    assert trained == ["taught"]
    with results.open() as file:
        rows = list(csv.DictReader(file))
    found = [(row["run"], row["measure"]) for row in rows]
    measures = [("base", f"{kind} {layer}") for layer in ("h", "z") for kind in ("knn", "linear")]
    assert sorted(found) == sorted([*measures, ("tuned", "top-1"), ("taught", "top-1")])
    assert all(0 <= float(row["value"]) <= 100 and row["seed"] == "3" for row in rows)


def test_the_page_says_what_did_not_come_out(tmp_path, capsys):
    rows = []
    for seed in range(3):
        for name, run in RUNS.items():
            measures = [f"{k} {layer}" for layer in run.layers for k in ("knn", "linear")]
            for measure in measures if run.command == "pretrain" else [claims.TOP1]:
                value = 40 + seed + {"base": 6, "deep g": 6}.get(name, 0) - 9 * measure.endswith("z")
                rows.append((name, seed, measure, value, 10.0, identity(run)))
    results, page, picture = tmp_path / "claims.csv", tmp_path / "claims.md", tmp_path / "claims.png"
    claims.add_rows(results, rows[:7])
    claims.add_rows(results, rows[7:])
    old = ("base", 5, "linear h", 99.0, 1.0, "of before")
    claims.add_rows(results, [old])
    claims.main(["--report", "--results", str(results), "--page", str(page), "--picture", str(picture)])
    text = page.read_text()
    assert "| A nonlinear g is better than a linear one | v1 4.2: +3 | +6.0 +- 0.0 | 3 | reproduced |" in text
    assert "| Crop with colour is better than crop | v1 figure 5: 56.3 and 33.1 | +0.0 +- 0.0 | 3 | did not" in text
    assert (
        "- Crop with colour is better than crop: did not: no difference shown\n" in text
        and "Open:" not in text
        and "- A nonlinear g is better than a" not in text
    )
    assert "99" not in text and "| base | linear h | 47.0 +- 1.0 | 3 |" in text
    assert picture.stat().st_size < 300_000
    with Image.open(picture) as drawn:
        assert drawn.size[0] > 800
    with pytest.raises(SystemExit, match="nothing was measured"):
        claims.main(["--report", "--results", str(tmp_path / "none.csv")])
