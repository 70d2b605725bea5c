"""Google's released checkpoints: which there are, where they lie, and what was published about them.

`catalog.json` has the facts, as architectures x sets; this joins them. 74 were confirmed by the authors' own
notebooks; the distilled one is the only known place of its kind.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..configuration_simclr import SimCLRConfig


@dataclass(frozen=True)
class CatalogEntry:
    """One released checkpoint.

    Attributes:
        name: such as "simclr-v2-r152-3x-sk-finetuned-10pct"; width 1x and no selective kernels are not said.
        version: 1 or 2.
        depth: of the ResNet.
        width_multiplier: 1 to 4.
        selective_kernel: whether it has selective kernels.
        training: "pretrained", "finetuned-1pct", "finetuned-10pct", "finetuned-100pct", "supervised" or
            "distilled-1pct".
        location: path below the bucket's host.
        step: of the checkpoint, as far as known; the file `checkpoint` beside it is trusted over this.
        classifier_layer: what the classifier sits on: 0 = h, 1 = g's first layer.
        parameters: of the encoder with BatchNorm's moving statistics, rounded to millions as v2's are published.
        top1: published ImageNet top-1 in percent, by protocol: "linear", "1%", "10%", "100%" or "supervised".
        sources: where "top1", "parameters", "location", "step" and "classifier_layer" are from: a paper, a page or a
            `command`; "unverified" for what no source confirms.
    """

    name: str
    version: int
    depth: int
    width_multiplier: int
    selective_kernel: bool
    training: str
    location: str
    step: int | None
    classifier_layer: int
    parameters: int
    top1: dict[str, float]
    sources: dict[str, str]

    @property
    def hidden_size(self) -> int:
        """Width of h; as `config_of` has it, but without transformers."""
        return 2048 * self.width_multiplier


@cache
def entries() -> dict[str, CatalogEntry]:
    """Every released checkpoint by its name."""
    catalog = json.loads((files(__package__) / "catalog.json").read_text(encoding="utf-8"))
    found = (
        _entry(architecture, kind, catalog["sources"])
        for kind in catalog["sets"]
        for architecture in catalog["architectures"]
        if architecture["version"] == kind["version"]
        and architecture["directory"] in kind.get("only", [architecture["directory"]])
    )
    return {entry.name: entry for entry in found}


def config_of(entry: CatalogEntry) -> "SimCLRConfig":
    """The architecture that the checkpoint must turn out to have."""
    from ..configuration_simclr import SimCLRConfig

    head = {"classifier_layer": entry.classifier_layer, "num_labels": 1000}
    if entry.version == 1:  # released without g
        return SimCLRConfig.v1(entry.depth, entry.width_multiplier, **head | {"projection_layers": 0})
    layers = {"projection_layers": 0} if entry.training == "supervised" else {}
    return SimCLRConfig.v2(entry.depth, entry.width_multiplier, entry.selective_kernel, **head | layers)


def _entry(architecture: dict[str, Any], kind: dict[str, Any], sources: dict[str, str]) -> CatalogEntry:
    version, width, selective = architecture["version"], architecture["width"], architecture["selective_kernel"]
    parts = [f"simclr-v{version}-r{architecture['depth']}"]
    parts += [f"{width}x"] * (width > 1) + ["sk"] * selective
    parts += [kind["training"]] * (kind["training"] != "pretrained")
    steps = kind["steps"]
    protocol = kind["protocol"]
    return CatalogEntry(
        name="-".join(parts),
        version=version,
        depth=architecture["depth"],
        width_multiplier=width,
        selective_kernel=selective,
        training=kind["training"],
        location=kind["location"].format(directory=architecture["directory"]),
        step=steps[architecture["directory"]] if isinstance(steps, dict) else steps,
        classifier_layer=kind["classifier_layer"],
        parameters=architecture["millions"] * 10**6,
        top1={protocol: architecture["top1"][protocol]} if protocol else {},
        sources={fact: sources[where] for fact, where in kind["sources"].items()},
    )
