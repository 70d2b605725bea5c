"""Released checkpoints: Google's, where they lie, what was published, and which one to take; and others on the Hub.

`catalog.json` has the facts, as architectures x sets; this joins them. 74 were confirmed by the authors' own
notebooks; the distilled one is the only known place of its kind. `speed.json` is what `benchmarks/official_speed.py`
measured for each architecture.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..configuration_simclr import SimCLRConfig


#: Published protocol -> what of ImageNet's labels such a checkpoint has seen.
PROTOCOLS = {
    "linear": "no labels",
    "1%": "1 % of the labels",
    "10%": "10 % of the labels",
    "100%": "all labels",
    "supervised": "all labels, without pretraining",
}
#: How many points of top-1 a cheaper checkpoint may lose and still be recommended.
MARGIN = 2.0
#: Speeds nearer than this are equal: the same network came out so far apart beside other work on the machine.
NOISE = 0.15


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
        """Return the width of h, as `config_of` has it, but without transformers."""
        return 2048 * self.width_multiplier


@cache
def entries() -> dict[str, CatalogEntry]:
    """Return every released checkpoint by its name."""
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
    """Return the architecture that the checkpoint must turn out to have."""
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


@dataclass(frozen=True)
class Choice:
    """One released checkpoint as something to take or leave.

    Attributes:
        name: of the catalog.
        architecture: the name of the pretrained checkpoint of the same architecture.
        protocol: a key of `PROTOCOLS`; None where no accuracy was published.
        top1: published ImageNet top-1 in percent by that protocol, or None.
        parameters: of the encoder f, without BatchNorm's moving statistics.
        hidden_size: width of h.
        images_per_second: of its architecture, measured as `measurement()` says.
        source: of `top1`.
    """

    name: str
    architecture: str
    protocol: str | None
    top1: float | None
    parameters: int
    hidden_size: int
    images_per_second: float
    source: str


@cache
def measurement() -> dict[str, Any]:
    """Return how the speeds were measured: `method`, `machine`, `threads`, `torch`, `date`, and `architectures`."""
    found: dict[str, Any] = json.loads((files(__package__) / "speed.json").read_text(encoding="utf-8"))
    return found


#: What a list is sorted by -> its key; equals by what else matters, then by name.
ORDERS = {
    "accuracy": lambda c: (-(c.top1 or 0), -c.images_per_second, c.name),
    "params": lambda c: (c.parameters, -(c.top1 or 0), c.name),
    "speed": lambda c: (-c.images_per_second, -(c.top1 or 0), c.name),
    "name": lambda c: c.name,
}


def choices(
    protocol: str | None = None, *, max_parameters: float = math.inf, min_speed: float = 0, sort: str = "accuracy"
) -> list[Choice]:
    """List the released checkpoints within limits.

    Args:
        protocol: only those with an accuracy by this one of `PROTOCOLS`; None for all, the distilled one included.
        max_parameters: of the encoder.
        min_speed: images per second, as measured.
        sort: one of `ORDERS`: the most accurate, smallest or fastest first, or by name.
    """
    found = []
    for entry in entries().values():
        architecture = entry.name.removesuffix(f"-{entry.training}")
        measured = measurement()["architectures"][architecture]
        by, top1 = next(iter(entry.top1.items()), (None, None))
        choice = Choice(
            name=entry.name,
            architecture=architecture,
            protocol=by,
            top1=top1,
            parameters=measured["parameters"],
            hidden_size=entry.hidden_size,
            images_per_second=measured["images_per_second"],
            source=entry.sources["top1"],
        )
        fits = choice.parameters <= max_parameters and choice.images_per_second >= min_speed
        if fits and protocol in (None, by):
            found.append(choice)
    return sorted(found, key=ORDERS[sort])


def recommend(found: Iterable[Choice]) -> dict[str, tuple[Choice, Choice]]:
    """Return, for each protocol, the most accurate of `found` and the fastest within `MARGIN` points of it.

    Among those about as fast as the fastest (`NOISE`) that is the most accurate one. Accuracies are compared within
    one protocol only: they measure different things.
    """
    recommended = {}
    rows = list(found)
    for protocol in PROTOCOLS:
        ranked = sorted((c for c in rows if c.protocol == protocol), key=ORDERS["accuracy"])
        if ranked:
            least = (ranked[0].top1 or 0) - MARGIN - 1e-9  # 83.1 - 2 is a little more than 81.1
            good = [c for c in ranked if (c.top1 or 0) >= least]
            fast = max(c.images_per_second for c in good) * (1 - NOISE)
            recommended[protocol] = ranked[0], next(c for c in good if c.images_per_second >= fast)
    return recommended


@dataclass(frozen=True)
class Other:
    """A repository whose weights were made by others, and of which it is known what they are.

    Attributes:
        name: as `load` takes it.
        file: that is taken of it.
        network: in words.
        hidden_size: width of h.
        trained: how, as its page says.
        licence: as its page says; "" where it says none.
        source: where layout and names are known from.
    """

    name: str
    file: str
    network: str
    hidden_size: int
    trained: str
    licence: str
    source: str


_V1 = "Google's SimCLR v1, by simclr-converter"
_MACL = "https://huggingface.co/HaoxingChen/MACL_ICML23, the configs beside the weights (MMSelfSup)"
#: On the Hub, by others, without our config: `hub_weights` converts them.
OTHERS = (
    *(
        Other(
            f"lightly-ai/simclrv1-imagenet1k-resnet50-{width}x",
            f"resnet50-{width}x.pth",
            f"ResNet-50 {width}x",
            2048 * width,
            _V1,
            "apache-2.0",
            f"https://huggingface.co/lightly-ai/simclrv1-imagenet1k-resnet50-{width}x, card"
            + ("; the file's name as the others'" if width == 2 else " and list of files"),
        )
        for width in (1, 2, 4)
    ),
    Other(
        "DM-Diaz/SimCLR-ResNet18-ImageNet1K",
        "",
        "ResNet-18",
        512,
        "SimCLR with lightly, on ImageNet at 256 pixels",
        "apache-2.0",
        "https://huggingface.co/DM-Diaz/SimCLR-ResNet18-ImageNet1K, card; names in the file by users' code",
    ),
    Other(
        "erow/rn50_simclr_bs4096_e1000",
        "checkpoint.pth",
        "ResNet-50",
        2048,
        "SimCLR with FastSSL, batch 4096, 965 of 1000 epochs",
        "",
        "https://huggingface.co/erow/rn50_simclr_bs4096_e1000, card; https://github.com/erow/FastSSL, model/simclr.py",
    ),
    *(
        Other(f"HaoxingChen/MACL_ICML23/{folder}/latest.pth", "", "ResNet-50", 2048, trained, "", _MACL)
        for folder, trained in (
            ("simclr_256_e800", "SimCLR with MACL's loss, batch 256, 800 epochs"),
            ("simclr_2048_e200", "SimCLR with MACL's loss, batch 2048, 200 epochs"),
        )
    ),
)
