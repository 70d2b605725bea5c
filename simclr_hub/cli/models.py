"""`models`: the official checkpoints, their numbers, and which to take."""

import math
import re
from dataclasses import asdict

import click

from ..checkpoints.catalog import MARGIN, ORDERS, OTHERS, PROTOCOLS, choices, measurement, recommend
from ..errors import CheckpointError
from ._output import echo, json_option, print_json, print_table

_UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9}


def _count(_context: click.Context, _option: click.Parameter, text: str | None) -> float:
    """Parse a number of parameters, such as 100M."""
    if text is None:
        return math.inf
    found = re.fullmatch(r"(\d+\.?\d*)([KMB]?)", text.strip().upper())
    if not found:
        raise click.BadParameter(f"{text!r} is not a number of parameters such as 100M, 1.5B or 25000000")
    return float(found[1]) * _UNITS[found[2]]


@click.command("models")
@click.option(
    "--labels",
    type=click.Choice(["none", *PROTOCOLS, "all"]),
    default="none",
    show_default=True,
    help="Share of ImageNet's labels used in fine-tuning. none: only pretrained, ranked by a linear classifier "
    "on h (so is linear); supervised: never pretrained; all: everything.",
)
@click.option("--max-params", callback=_count, help="Most parameters in the encoder, such as 100M.")
@click.option("--min-speed", type=click.FloatRange(min=0), default=0, help="Fewest images/s.")
@click.option(
    "--sort", type=click.Choice(list(ORDERS)), default="accuracy", show_default=True, help="Order of the list."
)
@json_option
def models_command(labels: str, max_params: float, min_speed: float, sort: str, as_json: bool) -> None:
    """List the official checkpoints: accuracy, size and speed, and which to take for what; and others on the Hub.

    Top-1 is as published, on ImageNet; images/s were measured on one CPU core (docs/models.md).
    """
    protocol = None if labels == "all" else "linear" if labels == "none" else labels
    found = choices(protocol, max_parameters=max_params, min_speed=min_speed, sort=sort)
    if not found:
        every = choices(protocol)
        smallest, fastest = min(c.parameters for c in every), max(c.images_per_second for c in every)
        limits = [f"at most {max_params:,.0f} parameters"] * (max_params < math.inf)
        limits += [f"at least {min_speed:g} images/s"] * (min_speed != 0)
        raise CheckpointError(
            f"no official checkpoint has {' and '.join(limits)}: the smallest has {smallest / 1e6:.1f}M parameters, "
            f"the fastest makes {fastest:.2f} images/s"
        )
    picks = recommend(found)
    if as_json:
        names = {p: {"most_accurate": best.name, "fastest_near": near.name} for p, (best, near) in picks.items()}
        measured = {k: v for k, v in measurement().items() if k != "architectures"}
        others = [asdict(known) for known in OTHERS]
        print_json({"models": [asdict(c) for c in found], "recommended": names, "speed": measured, "others": others})
        return
    print_table(
        ["model", "parameters, M", "h", "top-1, %", "protocol", "images/s"],
        [
            [
                c.name,
                f"{c.parameters / 1e6:.1f}",
                str(c.hidden_size),
                "-" if c.top1 is None else f"{c.top1:.1f}",
                c.protocol or "-",
                f"{c.images_per_second:.2f}",
            ]
            for c in found
        ],
    )
    echo()
    for protocol, (best, near) in picks.items():
        line = f"With {PROTOCOLS[protocol]}: {best.name} is the most accurate ({best.top1:.1f} %)"
        if near != best:
            times = near.images_per_second / best.images_per_second
            line += f"; {near.name} ({near.top1:.1f} %) is within {MARGIN:g} points and {times:.1f}x as fast"
        echo(f"{line}.")
    name = next((near.name for _, near in picks.values()), found[0].name)
    echo(f'Use:  simclr_hub.embed("photos/", model="{name}")    or  simclr-hub index PHOTOS --model {name}')
    echo(f'      model, processor = simclr_hub.load("{name}")    gives the SimCLRModel')
    machine = measurement()["machine"]
    echo(f"top-1: as published; images/s: measured, one core of {machine}, float32, 224 px, from pixels to h")
    echo()
    print_table(
        ["on the Hub, by others", "network", "h", "trained", "licence"],
        [[k.name, k.network, str(k.hidden_size), k.trained, k.licence or "none told"] for k in OTHERS],
    )
