"""A picture of a run: what the log says, over the steps."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from simclr_hub._files import write_file

#: One panel each: its title, and the keys of the log that it shows, with their names.
PANELS = (
    ("NT-Xent loss", {"loss": "loss"}),
    ("accuracy, %", {"contrastive_top1": "contrastive top-1", "probe_top1": "online probe", "eval_knn": "kNN"}),
    ("learning rate", {"learning_rate": "learning rate"}),
    ("images/s", {"images_per_second": "images/s"}),
)


def draw_curves(log: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Write the curves of `log`, the Trainer's `state.log_history`, as a PNG."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    figure = Figure(figsize=(10, 6), layout="constrained", dpi=100)
    figure.suptitle(title)
    for axes, (name, series) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for key, label in series.items():
            points = [(entry["step"], float(entry[key])) for entry in log if key in entry]
            if points:
                scale = 100 if key in ("contrastive_top1", "probe_top1") else 1
                axes.plot(
                    *zip(*((x, y * scale) for x, y in points), strict=True),
                    label=label,
                    marker="." * (key == "eval_knn"),
                )
        axes.set_title(name)
        axes.set_xlabel("step")
        axes.grid(alpha=0.3)
        if len(axes.lines) > 1:
            axes.legend()
    write_file(path, lambda file: figure.savefig(file, format="png"))
