"""Train the papers' claims in small, three seeds each, and say which of them come out.

    python benchmarks/claims.py --data FOLDER [--seeds 0 1 2]    # trains; what is in claims.csv is not trained again
    python benchmarks/claims.py --report                         # docs/claims.md and docs/claims.png from claims.csv

FOLDER is CIFAR-10: class folders or parquet, with the splits train and test. Everything is trained by the package's
own commands, on one thread: pretraining without labels, then `linear_features` on h (l2 chosen on a tenth of the
labels), and fine-tuning and distillation by their top-1. A number is percent of the test images.

The rule by which a claim counts as reproduced is computed, `verdict`: the 95 % interval of the mean over seeds of the
difference, by Student's t, lies above zero. Two runs of one seed see the same images, learnt from and tested on.
"""

import argparse
import csv
import hashlib
import json
import math
import shutil
import statistics
import textwrap
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
RESULTS, PAGE, PICTURE = HERE / "claims.csv", HERE.parent / "docs" / "claims.md", HERE.parent / "docs" / "claims.png"
IMAGES = 500  # of each class and split
EPOCHS, BATCH = 10, 128  # of a pretraining, if it says nothing else
COLUMNS = ("run", "seed", "measure", "value", "seconds", "settings")

_MODEL = ("model.depths=[1,1,1,1]", "model.layer_type=basic", "model.width_multiplier=0.25", "model.stem_type=small")
_SMALL = (*_MODEL[:2], "model.width_multiplier=0.125", _MODEL[3], "model.image_size=32", "model.projection_layers=0")
_PLAIN = ("save_strategy=no", "disable_tqdm=true", "side=32", "views.size=24", "views.resample=bilinear")
_PRETRAIN = (
    *_MODEL,
    *_PLAIN,
    "views.area=[0.2,1.0]",
    "eval_split=null",
    "eval_strategy=no",
    "learning_rate=2.4",
    "warmup_epochs=1",
    "weight_decay=1.0e-6",
    "temperature=0.2",
)
_FINETUNE = (
    *_PLAIN,
    "views.area=[0.2,1.0]",
    "class_weights=none",
    "patience=0",
    "eval_strategy=no",
    "eval_split=test",
    "head=trained",
)


@dataclass(frozen=True)
class Run:
    """Describe one training.

    Attributes:
        command: pretrain, finetune or distill.
        settings: beside those of its command.
        start: the run whose model it starts from, or learns from.
        layers: that are evaluated, of pretraining.
    """

    command: str
    settings: tuple[str, ...] = ()
    start: str = ""
    layers: tuple[str, ...] = ("h",)


def _pretrained(*settings: str, epochs: int = EPOCHS, batch: int = BATCH, layers: tuple[str, ...] = ("h",)) -> Run:
    return Run("pretrain", (f"num_train_epochs={epochs}", f"batch_size={batch}", *settings), layers=layers)


def _finetuned(start: str, layer: int, labels: str, epochs: int) -> Run:
    chosen = () if labels == "100%" else (f"labels={labels}",)
    return Run("finetune", (f"projection_layer={layer}", f"num_train_epochs={epochs}", *chosen), start)


def _one_branch(*operations: str) -> Run:
    """Pretrain as in the v1 paper's figure 5: both views are cropped, and one of them transformed."""
    return _pretrained("views.shared=[crop]", "views.one_branch=true", f"views.operations=[{', '.join(operations)}]")


#: Epochs of fine-tuning, by labels.
FRACTIONS = {"1%": 100, "10%": 30, "100%": 5}
#: In the order in which they are trained, for each seed.
RUNS: dict[str, Run] = {
    "untrained": _pretrained("max_steps=50", "learning_rate=0"),  # BatchNorm's statistics alone
    "base": _pretrained(layers=("h", "z")),
    "no g": _pretrained("model.projection_layers=0"),
    "linear g": _pretrained("model.projection_type=linear", "model.projection_layers=1"),
    "crop": _one_branch("crop"),
    "colour": _one_branch("{jitter: {p: 1}}", "greyscale"),
    "crop + colour": _one_branch("crop", "{jitter: {p: 1}}", "greyscale"),
    "deep g": _pretrained("model.projection_layers=3"),
    **{
        f"{name}, {labels}": _finetuned(start, layer, labels, epochs)
        for labels, epochs in FRACTIONS.items()
        for name, start, layer in (
            ("g 2, from h", "base", 0),
            ("g 3, from h", "deep g", 0),
            ("g 3, from g1", "deep g", 1),
        )
    },
    "small, labels": Run("finetune", (*_SMALL, "labels=10%", "num_train_epochs=80")),
    "small, distilled": Run("distill", (*_SMALL, "temperature=1", "num_train_epochs=8"), "g 3, from g1, 10%"),
    "same, distilled": Run(
        "distill",
        (*_MODEL, "model.image_size=32", "model.projection_layers=0", "temperature=1", "num_train_epochs=8"),
        "g 3, from g1, 10%",
    ),
    "width 8": _pretrained("model.projection_dim=8"),
    "width 32": _pretrained("model.projection_dim=32"),
    "batch 32": _pretrained(batch=32),
    "twice the epochs": _pretrained(epochs=2 * EPOCHS),
    "batch 32, twice the epochs": _pretrained(epochs=2 * EPOCHS, batch=32),
}

H, Z, TOP1 = "linear h", "linear z", "top-1"
Term = tuple[float, str, str]  # weight, run, measure


@dataclass(frozen=True)
class Claim:
    """State what a paper says, and by which numbers it is looked at here.

    Attributes:
        says: in one sentence.
        paper: its numbers, and where they stand.
        terms: whose weighted sum is the difference in points; with `alike` the range over them counts.
        alike: points within which they must lie, if the claim is that nothing changes.
    """

    says: str
    paper: str
    terms: tuple[Term, ...]
    alike: float = 0.0


def _more(better: str, worse: str, measure: str = H, worse_measure: str = "") -> tuple[Term, ...]:
    return ((1.0, better, measure), (-1.0, worse, worse_measure or measure))


V1, V2 = "v1", "v2"
CLAIMS: tuple[Claim, ...] = (
    Claim("A nonlinear g is better than a linear one", f"{V1} 4.2: +3", _more("base", "linear g")),
    Claim("A linear g is better than none", f"{V1} 4.2: +7, by the two others", _more("linear g", "no g")),
    Claim("A nonlinear g is much better than none", f"{V1} 4.2: more than +10", _more("base", "no g")),
    Claim("h is better than g(h)", f"{V1} 4.2: more than +10", _more("base", "base", H, Z)),
    Claim(
        "The width of g's output hardly matters",
        f"{V1} 4.2, figure 8: similar from 32 to 2048",
        tuple((1.0, run, H) for run in ("width 8", "width 32", "base")),
        alike=2.0,
    ),
    Claim("Crop with colour is better than crop", f"{V1} figure 5: 56.3 and 33.1", _more("crop + colour", "crop")),
    Claim("Crop with colour is better than colour", f"{V1} figure 5: 56.3 and 18.8", _more("crop + colour", "colour")),
    Claim("Crop alone is better than colour alone", f"{V1} figure 5: 33.1 and 18.8", _more("crop", "colour")),
    Claim("A longer training is better", f"{V1} 5.2, figure 9", _more("twice the epochs", "base")),
    Claim("A large batch is better, where epochs are few", f"{V1} 5.2, figure 9", _more("base", "batch 32")),
    Claim(
        "With more epochs that gap shrinks",
        f"{V1} 5.2, figure 9",
        (*_more("base", "batch 32"), *_more("batch 32, twice the epochs", "twice the epochs")),
    ),
    *(
        Claim(
            f"{labels} of labels: a deeper g, tuned from its first layer, is better than a g of 2 tuned from h",
            f"{V2} introduction: +14 % of the accuracy with 1 % of labels" if labels == "1%" else f"{V2} 3.3",
            _more(f"g 3, from g1, {labels}", f"g 2, from h, {labels}", TOP1),
        )
        for labels in ("1%", "10%")
    ),
    *(
        Claim(
            f"{labels} of labels: of one model, tuning from g's first layer is better than from h",
            f"{V2} 3.3",
            _more(f"g 3, from g1, {labels}", f"g 3, from h, {labels}", TOP1),
        )
        for labels in ("1%", "10%")
    ),
    Claim(
        "The fewer the labels, the more tuning from g's first layer gains over tuning from h",
        f"{V2} 3.3: with all labels nothing",
        (
            *_more("g 3, from g1, 1%", "g 3, from h, 1%", TOP1),
            *_more("g 3, from h, 100%", "g 3, from g1, 100%", TOP1),
        ),
    ),
    Claim(
        "A small student learns more from the teacher on unlabelled images than from the labels",
        f"{V2} table 2: with 10 % of labels 74.3 and 52.0",
        _more("small, distilled", "small, labels", TOP1),
    ),
    Claim(
        "A student like its teacher becomes better than it",
        f"{V2} tables 1, 3: 80.1 to 80.9 with 10 % of labels",
        _more("same, distilled", "g 3, from g1, 10%", TOP1),
    ),
)

Values = Mapping[tuple[str, str], Mapping[int, float]]  # (run, measure) -> seed -> percent
#: Student's t at 97.5 %, by degrees of freedom.
T = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


# Training


def identity(run: Run) -> str:
    """Name what a run's numbers depend on, so that they are measured again when it changes."""
    parts: list[Any] = [run.command, run.settings, run.layers, IMAGES, _PRETRAIN, _FINETUNE]
    if run.start:
        parts.append(identity(RUNS[run.start]))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def read_rows(path: Path) -> list[dict[str, str]]:
    """Read what was measured; nothing if nothing was."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def add_rows(path: Path, rows: Iterable[Sequence[Any]]) -> None:
    """Append what was measured, at once."""
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([*([COLUMNS] if new else []), *rows])


def subset(source: str, folder: Path) -> Path:
    """Write the first `IMAGES` of each class and split, as they are encoded, into class folders."""
    from simclr_hub.training.data import open_rows

    if folder.exists():
        return folder
    partial = folder.with_name(f".{folder.name}")
    shutil.rmtree(partial, ignore_errors=True)
    for split in ("train", "test"):
        rows = open_rows(source, split)
        if rows.labels is None:
            raise SystemExit(f"{source}, split {split}: no labels")
        counts: dict[int, int] = {}
        for i, label in enumerate(rows.labels):
            n = counts[label] = counts.get(label, 0) + 1
            if n <= IMAGES:
                row: Any = rows[i]
                place = partial / split / rows.classes[label]
                place.mkdir(parents=True, exist_ok=True)
                (place / f"{n:05d}.jpg").write_bytes(Path(row).read_bytes() if isinstance(row, str) else row.data)
    partial.rename(folder)
    return folder


def settings_of(name: str, seed: int, data: Path, work: Path) -> tuple[str, tuple[str, ...]]:
    """Return a run's recipe and all its settings."""
    run = RUNS[name]
    recipe, own = {
        "pretrain": ("simclr_cifar10", _PRETRAIN),
        "finetune": ("finetune_photos", _FINETUNE),
        "distill": ("distill_photos", tuple(s for s in _FINETUNE if s.split("=")[0] not in ("class_weights", "head"))),
    }[run.command]
    start = str(folder_of(run.start, seed, work) / "final") if run.start else "null"
    from_ = {"pretrain": (), "finetune": (f"init_from={start}",), "distill": (f"teacher={start}",)}[run.command]
    place = (f"data={data}", f"seed={seed}", f"output_dir={folder_of(name, seed, work)}")
    return recipe, (*own, *from_, *run.settings, *place)


def folder_of(name: str, seed: int, work: Path) -> Path:
    """Return where a run is trained."""
    return work / f"{name.replace(' ', '-').replace(',', '').replace('%', 'pct')}-{seed}"


def train(name: str, seed: int, data: Path, work: Path) -> dict[str, float]:
    """Train and measure one run: measure -> percent."""
    from simclr_hub.training.distill import distill
    from simclr_hub.training.evaluate import evaluate
    from simclr_hub.training.finetune import finetune
    from simclr_hub.training.pretrain import pretrain

    run = RUNS[name]
    if run.start and not (folder_of(run.start, seed, work) / "final").exists():  # measured on another machine
        train(run.start, seed, data, work)
    folder = folder_of(name, seed, work)
    shutil.rmtree(folder, ignore_errors=True)  # of a call that was stopped
    recipe, settings = settings_of(name, seed, data, work)
    final = {"pretrain": pretrain, "finetune": finetune, "distill": distill}[run.command](recipe, settings)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    if run.command != "pretrain":
        measured = json.loads((final / "results.json").read_text(encoding="utf-8"))["results"]
        return {TOP1: next(one["value"] for one in measured if one["measure"].startswith("top-1"))}
    given = (f"data={data}", f"layers=[{','.join(run.layers)}]", "protocols=[knn,linear_features]")
    found = evaluate([str(final)], (*given, f"cache={work / 'features'}", f"output_dir={folder / 'evaluate'}"))
    names = {"knn": "knn", "linear_features": "linear"}
    return {
        f"{names[one['protocol']]} {one['layer']}": one["value"]
        for one in found["results"]
        if "weighted" not in one["measure"]
    }


def train_all(data: str, work: Path, seeds: Sequence[int], results: Path, only: Sequence[str] = ()) -> None:
    """Train what is missing, seed by seed."""
    work.mkdir(parents=True, exist_ok=True)
    images = subset(data, work / "images")
    done = {(row["run"], int(row["seed"]), row["settings"]) for row in read_rows(results)}
    for seed in seeds:
        for name in only or RUNS:
            run = RUNS[name]
            if (name, seed, identity(run)) in done:
                continue
            started = time.monotonic()
            found = train(name, seed, images, work)
            seconds = round(time.monotonic() - started, 1)
            rows = [(name, seed, key, round(value, 3), seconds, identity(run)) for key, value in found.items()]
            add_rows(results, rows)
            print(f"{name}, seed {seed}: {found}, {seconds} s", flush=True)


# The report


def values_of(rows: Iterable[Mapping[str, str]]) -> dict[tuple[str, str], dict[int, float]]:
    """Sort what was measured by run and measure; of what has changed since only what is measured anew."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        if row["run"] in RUNS and row["settings"] == identity(RUNS[row["run"]]):
            found.setdefault((row["run"], row["measure"]), {})[int(row["seed"])] = float(row["value"])
    return found


def differences(claim: Claim, values: Values) -> list[float]:
    """Return a claim's difference, or range, in points for each seed of which everything is there."""
    columns = [values.get((run, measure), {}) for _, run, measure in claim.terms]
    seeds = sorted(set.intersection(*map(set, columns)))
    if claim.alike:
        return [max(column[s] for column in columns) - min(column[s] for column in columns) for s in seeds]
    return [
        sum(weight * column[s] for (weight, _, _), column in zip(claim.terms, columns, strict=True)) for s in seeds
    ]


def half_width(numbers: Sequence[float]) -> float:
    """Return half of the 95 % interval of a mean, by Student's t; endless for one number."""
    n = len(numbers)
    return math.inf if n < 2 else T[min(n, len(T)) - 1] * statistics.stdev(numbers) / math.sqrt(n)


def verdict(claim: Claim, found: Sequence[float]) -> str:
    """Decide on a claim by its differences.

    Of one that something is better: reproduced if the 95 % interval of the mean difference lies above 0, the opposite
    if below, else not shown. Of one that nothing changes: reproduced if the interval of the mean range lies below
    `alike`, not if above. With one seed nothing is decided.
    """
    if len(found) < 2:
        return "open: fewer than two seeds"
    mean, half = statistics.mean(found), half_width(found)
    if claim.alike:
        low, high = "reproduced", "did not reproduce"
        return low if mean + half < claim.alike else high if mean - half > claim.alike else "undecided"
    return "reproduced" if mean > half else "the opposite" if mean < -half else "did not: no difference shown"


def shown(numbers: Sequence[float], sign: str = "") -> str:
    """Return a mean with the standard deviation over seeds."""
    if not numbers:
        return "-"
    spread = f" +- {statistics.stdev(numbers):.1f}" if len(numbers) > 1 else ""
    return f"{statistics.mean(numbers):{sign}.1f}{spread}"


def page(values: Values, seconds: float) -> str:
    """Write the page: each claim beside what came out, and below it every run."""
    verdicts = [verdict(claim, differences(claim, values)) for claim in CLAIMS]
    told = list(zip(CLAIMS, verdicts, strict=True))
    open_yet = [claim.says for claim, v in told if v.startswith("open")]
    failed = [f"{claim.says}: {v}" for claim, v in told if v != "reproduced" and not v.startswith("open")]
    lines = [
        "# The papers' claims in small",
        "",
        "Made by `python benchmarks/claims.py --report` from benchmarks/claims.csv; not edited by hand.",
        "",
        *textwrap.wrap(
            f"CIFAR-10 (JPEG copy), {10 * IMAGES:,} images to learn from, as many to test on; a ResNet of one block "
            f"a stage and a quarter of the width on 24 pixels, {EPOCHS} epochs of batches of {BATCH}. The papers have "
            "ImageNet, a ResNet-50 and 100 to 1000 epochs: what does not come out here is not thereby wrong there. "
            "Percent of the test images; +- is the standard deviation over seeds. A claim counts as reproduced if the "
            "95 % interval of the mean difference over seeds (Student's t) lies above zero.",
            119,
        ),
        "",
        f"{verdicts.count('reproduced')} of {len(CLAIMS)} came out; {seconds / 3600:.1f} hours by the clock.",
        "",
        "![What each run reached, a point for each seed](claims.png)",
        "",
        "| claim | paper | here, points | seeds | |",
        "|---|---|---|---|---|",
    ]
    for claim, decided in told:
        found = differences(claim, values)
        here = f"range {shown(found)}, allowed {claim.alike:g}" if claim.alike else shown(found, "+")
        lines.append(f"| {claim.says} | {claim.paper} | {here} | {len(found)} | {decided} |")
    for title, listed in (("Did not reproduce", failed), ("Open", open_yet)):
        lines += ["", f"{title}:", "", *(f"- {says}" for says in listed)] if listed else []
    lines += ["", "## Every run", "", "| run | measure | % | seeds |", "|---|---|---|---|"]
    for (run, measure), by_seed in sorted(values.items(), key=lambda item: (list(RUNS).index(item[0][0]), item[0][1])):
        lines.append(f"| {run} | {measure} | {shown(list(by_seed.values()))} | {len(by_seed)} |")
    papers = (
        "v1: [arXiv 2002.05709](https://arxiv.org/abs/2002.05709); v2: [2006.10029](https://arxiv.org/abs/2006.10029)."
    )
    return "\n".join(
        [
            *lines,
            "",
            f"{papers} `linear` is `linear_features`, docs/evaluate.md; `top-1` that of the tuned",
            "network.",
            "",
        ]
    )


PANELS: dict[str, tuple[tuple[str, str, str], ...]] = {  # title -> run, measure, label
    "projection head": tuple(
        (run, H, run.replace("base", "nonlinear g")) for run in ("untrained", "no g", "linear g", "base")
    ),
    "h and g(h)": (("base", H, "h"), ("base", Z, "g(h)")),
    "width of g(h)": (("width 8", H, "8"), ("width 32", H, "32"), ("base", H, "128")),
    "views": tuple((run, H, run) for run in ("colour", "crop", "crop + colour")),
    "batch and epochs": tuple(
        (run, H, label)
        for run, label in (
            ("batch 32", f"32, {EPOCHS}"),
            ("base", f"{BATCH}, {EPOCHS}"),
            ("batch 32, twice the epochs", f"32, {2 * EPOCHS}"),
            ("twice the epochs", f"{BATCH}, {2 * EPOCHS}"),
        )
    ),
    **{
        f"fine-tuned, {labels} of labels": tuple(
            (f"{name}, {labels}", TOP1, name) for name in ("g 2, from h", "g 3, from h", "g 3, from g1")
        )
        for labels in FRACTIONS
    },
    "distilled, 10% of labels": (
        ("g 3, from g1, 10%", TOP1, "teacher"),
        ("same, distilled", TOP1, "same, distilled"),
        ("small, labels", TOP1, "small, labels"),
        ("small, distilled", TOP1, "small, distilled"),
    ),
}


def draw(values: Values, path: Path) -> None:
    """Draw every run, a point for each seed and a line at their mean, in a panel for each claim."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(3, 3, figsize=(11, 8), layout="constrained")
    for axis, (title, runs) in zip(axes.flat, PANELS.items(), strict=True):
        for x, (run, measure, _) in enumerate(runs):
            numbers = list(values.get((run, measure), {}).values())
            axis.plot([x] * len(numbers), numbers, "o", color="tab:blue", alpha=0.6)
            if numbers:
                mean = statistics.mean(numbers)
                axis.hlines(mean, x - 0.25, x + 0.25, color="black")
                axis.annotate(f"{mean:.1f}", (x + 0.27, mean), va="center", fontsize=8)
        axis.set_xticks(range(len(runs)), [label for *_, label in runs], fontsize=8, rotation=12)
        axis.set(title=title, ylabel="%", xlim=(-0.6, len(runs) - 0.3))
        axis.margins(y=0.2)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def report(results: Path, written: Path, picture: Path) -> None:
    """Write the page and the picture.

    Raises:
        SystemExit: nothing was measured yet.
    """
    rows = read_rows(results)
    values = values_of(rows)
    if not values:
        raise SystemExit(f"{results}: nothing was measured with these settings; run with --data first")
    each = {(row["run"], row["seed"], row["settings"]): float(row["seconds"]) for row in rows}
    draw(values, picture)
    written.write_text(page(values, sum(each.values())), encoding="utf-8")
    for claim in CLAIMS:
        found = differences(claim, values)
        print(f"{verdict(claim, found):30} {shown(found, '+'):14} {claim.says}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="CIFAR-10: a folder of class folders or parquet with train and test")
    parser.add_argument("--report", action="store_true", help="write the page and the picture from what was measured")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=RUNS, default=[], metavar="RUN", help="these runs alone")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="folder for what is trained")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, default=PAGE)
    parser.add_argument("--picture", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    if options.data:
        train_all(options.data, options.work, options.seeds, options.results, options.only)
    if options.report:
        report(options.results, options.page, options.picture)
    if not (options.data or options.report):
        parser.error("nothing to do: give --data or --report")


if __name__ == "__main__":
    main()
