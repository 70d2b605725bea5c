"""`convert`: other people's weights into a loadable directory."""

import json
import re
from pathlib import Path
from typing import Any

import click

from .._files import FOLDER, check_output
from ._output import echo, json_option, print_json


@click.command("convert")
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--ema", is_flag=True, help="Take the averaged copy of the weights (v2 pretrained checkpoints have one)."
)
@click.option(
    "--classifier-layer",
    type=click.IntRange(min=0),
    help="What the classifier sits on: 0 = h, 1 = g's first layer (the 1 % and 10 % fine-tuned v2 checkpoints).",
)
@click.option("--image-size", type=click.IntRange(min=1), help="Side in pixels; 224, or 32 for a CIFAR stem.")
@click.option(
    "--normalize",
    type=click.Choice(["imagenet", "none"]),
    help="Whether the image processor applies ImageNet's mean and std; as the layout's trainings do unless told.",
)
@json_option
def convert_command(
    source: Path,
    out: Path,
    ema: bool,
    classifier_layer: int | None,
    image_size: int | None,
    normalize: str | None,
    as_json: bool,
) -> None:
    """Convert an official TensorFlow checkpoint or a PyTorch file into a directory OUT that `from_pretrained` loads.

    SOURCE is the checkpoint's directory, the path of its model.ckpt-STEP, or an official name such as simclr-v2-r50,
    which is downloaded first; TensorFlow is not needed. Or it is a .pth, .pth.tar, .pt, .ckpt, .bin or .safetensors of
    torchvision, lightly, solo-learn, VISSL, simclr-converter or SimCLRv2-Pytorch (docs/convert.md); or the id of a
    repository on the Hub with such a file, org/name or org/name/FILE.
    """
    from ..checkpoints.convert import convert
    from ..checkpoints.hub_weights import convert_hub, parse
    from ..checkpoints.official import convert_official
    from ..progress import quiet_transformers

    check_output(out, FOLDER)
    options: dict[str, Any] = {"ema": ema, "classifier_layer": classifier_layer, "image_size": image_size}
    name, notes = str(source), list[str]()
    with quiet_transformers():
        # A name that looks official but is none is told the close ones.
        if re.fullmatch(r"simclr-?v\d[^/\\]*", name) and not (source.exists() or Path(f"{name}.index").exists()):
            if normalize == "imagenet":
                raise click.UsageError(f"--normalize imagenet: {name} was trained without mean and std")
            config = convert_official(name, out, **options)
        elif not source.exists() and not Path(name.partition("/")[0]).exists() and parse(name):
            config = convert_hub(name, out, normalize=normalize, on_note=notes.append, **options)
        else:
            config = convert(source, out, normalize=normalize, on_note=notes.append, **options)
    if as_json:
        print_json({"output": str(out), "config": json.loads(config.to_json_string()), "notes": notes})
    else:
        kernel = "selective kernels, " if config.sk_ratio else ""
        echo(
            f"{out}: {config.layer_type} ResNet, blocks {config.depths}, width {config.width_multiplier:g}x, {kernel}"
            f"h of {config.hidden_size}, head of {config.projection_layers} layers"
        )
        for note in notes:
            echo(f"- {note}")
