"""Draw how the default checkpoint's long run went: docs/default_run.png from default_run.csv.

Run: python benchmarks/default_run.py
"""

import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HERE = Path(__file__).parent
#: Column -> what it is, and the axes it is drawn on.
CURVES = {
    "knn_whitened": ("kNN, bank 25,000, whitened", 0),
    "knn_raw": ("kNN, bank 25,000, raw", 0),
    "p5_whitened": ("P@5, open-photos, whitened", 1),
    "p5_raw": ("P@5, open-photos, raw", 1),
}
#: What the run is for, in percent, by axes.
AIMS = (22.0, 57.0)


def main() -> None:
    with (HERE / "default_run.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    hours = [float(row["core_hours"]) for row in rows]
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for column, (label, place) in CURVES.items():
        axes[place].plot(hours, [float(row[column]) for row in rows], "o-", label=label)
    for axis, aim in zip(axes, AIMS, strict=True):
        axis.axhline(aim, color="grey", linestyle=":", label="aim, whitened")
        axis.set(xlabel="core-hours of this recipe, of 20", ylabel="%", xlim=(0, 20))
        axis.legend(fontsize=8)
    figure.savefig(HERE.parent / "docs" / "default_run.png", dpi=100)


if __name__ == "__main__":
    main()
