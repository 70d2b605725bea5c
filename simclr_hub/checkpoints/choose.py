"""Which released checkpoint to take: published accuracy beside parameters and measured speed.

`speed.json` is what `benchmarks/official_speed.py` measured, for each architecture.
"""

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from .catalog import entries

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
    """How the speeds were measured: `method`, `machine`, `threads`, `torch`, `date`, and each of `architectures`."""
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
    """The released checkpoints within limits.

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
    """Protocol -> the most accurate of `found`, and the fastest within `MARGIN` points of it.

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
