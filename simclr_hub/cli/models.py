"""`convert`: other people's weights into a loadable directory."""

import json
from pathlib import Path

import click

from ._output import json_option, print_json


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
@json_option
def convert_command(
    source: Path, out: Path, ema: bool, classifier_layer: int | None, image_size: int | None, as_json: bool
) -> None:
    """Convert an official TensorFlow checkpoint into a directory OUT that `from_pretrained` loads.

    SOURCE is the checkpoint's directory, or the path of its model.ckpt-STEP. TensorFlow is not needed.
    """
    from ..checkpoints.convert import convert
    from ..loading import quiet_transformers

    with quiet_transformers():
        config = convert(source, out, ema=ema, classifier_layer=classifier_layer, image_size=image_size)
    if as_json:
        print_json({"output": str(out), "config": json.loads(config.to_json_string())})
    else:
        kernel = "selective kernels, " if config.sk_ratio else ""
        click.echo(
            f"{out}: {config.layer_type} ResNet, blocks {config.depths}, width {config.width_multiplier:g}x, {kernel}"
            f"h of {config.hidden_size}, head of {config.projection_layers} layers"
        )
