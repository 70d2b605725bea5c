"""Write the tables of docs/models.md and the plot docs/models.svg from the catalog and the measured speeds.

python scripts/models_page.py        # matplotlib: pip install 'simclr-hub[train]'
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from simclr_hub.checkpoints.catalog import MARGIN, OTHERS, PROTOCOLS, Choice, choices, measurement, recommend

_DOCS = Path(__file__).parents[1] / "docs"
PAGE, PLOT = _DOCS / "models.md", _DOCS / "models.svg"
BEGIN, END = "<!-- begin: scripts/models_page.py -->", "<!-- end: scripts/models_page.py -->"
LIMITS = {"none": float("inf"), "100 million": 100e6, "50 million": 50e6}  # of parameters
COLOURS = {"linear": "#0072b2", "1%": "#d55e00", "10%": "#e69f00", "100%": "#009e73", "supervised": "#666666"}
TICKS = {"params": (25, 50, 100, 200, 400, 800), "speed": (0.25, 0.5, 1, 2, 4, 8)}
KINDS = {"v2, selective kernels": "o", "v2": "s", "v1": "x"}  # markers


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


#: How a checkpoint was trained -> what its classifier is, what it may be used for, and what not.
CLASSIFIERS = {
    "(nothing)": (
        "a linear one on h, of ImageNet's 1,000 classes, trained beside the encoder, which it did not change",
        "to check a conversion by its linear accuracy; take h, and a classifier of your own",
    ),
    "`-finetuned-1pct`, `-finetuned-10pct`": (
        "on g's first layer in v2, on h in v1; the network was fine-tuned with that share of the labels",
        "ImageNet's classes with few labels; numbers to compare a semi-supervised method with",
    ),
    "`-finetuned-100pct`": (
        "on h; the network was fine-tuned with all labels",
        "ImageNet's classes; a teacher for `distill`; not as features that saw no labels",
    ),
    "`-supervised`": ("on h; the network was trained with labels alone", "the comparison without pretraining"),
    "`-distilled-1pct`": (
        "taught by a checkpoint that was fine-tuned with 1 % of the labels",
        "ImageNet's classes; no accuracy was published for this very checkpoint, nor on which layer it sits",
    ),
    "`default`": ("none", "features, and a start for `finetune`"),
}


def classifiers() -> str:
    """Render the table of classifiers."""
    head = ("trained", "its classifier", "may be used for")
    return _table(head, [(name, *told) for name, told in CLASSIFIERS.items()])


def tables() -> str:
    """Render what stands between the markers: which to take, every architecture, and how its speed was measured."""
    picks = []
    for limit, parameters in LIMITS.items():
        for protocol, (best, near) in recommend(choices(max_parameters=parameters)).items():
            cells = [f"`{c.name}` ({c.top1:.1f} %)" for c in (best, near)]
            times = f"{near.images_per_second / best.images_per_second:.1f}x"
            picks.append(
                [limit, PROTOCOLS[protocol], *([cells[0], "the same", ""] if near == best else [*cells, times])]
            )
    top1 = {(c.architecture, c.protocol): c.top1 for c in choices()}
    rows = [
        [
            f"`{c.name}`",
            f"{c.parameters / 1e6:.1f}",
            str(c.hidden_size),
            *(f"{top1[c.name, p]:.1f}" if (c.name, p) in top1 else "" for p in PROTOCOLS),
            f"{c.images_per_second:.2f}",
        ]
        for c in choices("linear", sort="params")
    ]
    m = measurement()
    near_head = f"fastest within {MARGIN:g} points"
    labels = [f"{protocol} labels" if protocol[0].isdigit() else protocol for protocol in PROTOCOLS]
    return "\n\n".join(
        [
            "## Which to take",
            _table(["parameters, at most", "trained with", "most accurate", near_head, "speed-up"], picks),
            "## All of them",
            _table(["model", "parameters, M", "h", *labels, "images/s"], rows),
            "## What their classifiers may be used for",
            classifiers(),
            "None of them is for people, health or safety: ImageNet's classes hardly have persons, and what is unlike "
            "its photos is called one of the 1,000 all the same, often confidently. Google released weights and code "
            "under the Apache License 2.0; ImageNet's images have terms of their own (non-commercial research), and "
            "what these mean for weights trained on them is not settled here. `simclr-hub evaluate` says how good the "
            "features are on your photos, `calibration=true` how far a classifier's confidence can be believed.",
            "## How speed was measured",
            f"images/s: `{m['command']}`, {m['date']}: {m['method']}. {m['machine']}; threads: {m['threads']}; torch "
            f"{m['torch']}.",
            "## On the Hub, by others",
            _table(
                ["id", "network", "h", "trained, as its page says", "licence", "known from"],
                [
                    [f"`{o.name}`", o.network, str(o.hidden_size), o.trained, o.licence or "none told", o.source]
                    for o in OTHERS
                ],
            ),
        ]
    )


def digest() -> str:
    """Hash the numbers that the plot shows; the plot carries the hash, so that a stale one is found out."""
    return hashlib.sha256(repr(sorted(map(repr, choices()))).encode()).hexdigest()[:16]


def draw(path: Path) -> None:
    """Draw accuracy against parameters and against speed: all checkpoints, and a line along the best at each cost."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, by in zip(axes, ("params", "speed"), strict=True):
        for protocol, colour in COLOURS.items():
            family = choices(protocol, sort=by)  # the cheapest first
            best = [c for i, c in enumerate(family) if all((c.top1 or 0) > (d.top1 or 0) for d in family[:i])]
            axis.plot(*_points(best, by), color=colour, linewidth=1, alpha=0.6)
            for kind, marker in KINDS.items():
                axis.scatter(*_points([c for c in family if _kind(c) == kind], by), s=26, color=colour, marker=marker)
        axis.set_xscale("log")
        axis.set_xticks(ticks := TICKS[by], [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("ImageNet top-1, %")
    axes[0].set_xlabel("parameters of the encoder, millions")
    axes[1].set_xlabel("images/s, one CPU core")
    for protocol, colour in COLOURS.items():
        axes[0].plot([], [], color=colour, label=protocol)
    for kind, marker in KINDS.items():
        axes[0].scatter([], [], s=26, color="black", marker=marker, label=kind)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=8, frameon=False)
    with matplotlib.rc_context({"svg.hashsalt": "models"}):  # the same picture is the same file
        figure.savefig(path, metadata={"Date": None, "Description": digest()})


def _points(found: Iterable[Choice], by: str) -> tuple[list[float], list[float]]:
    shown = [(c.parameters / 1e6 if by == "params" else c.images_per_second, c.top1 or 0) for c in found]
    return [x for x, _ in shown], [y for _, y in shown]


def _kind(choice: Choice) -> str:
    if "-v1-" in choice.name:
        return "v1"
    return "v2, selective kernels" if "-sk" in choice.name else "v2"


def main() -> None:
    """Rewrite the page between its markers, and the plot."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{tables()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    draw(PLOT)


if __name__ == "__main__":
    main()
