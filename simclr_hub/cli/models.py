"""`convert` and `doctor`: weights into a loadable directory, and what works on this machine."""

import json
import platform
import sqlite3
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import click
import numpy as np

from ._output import json_option, print_json, print_table


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


@click.command("doctor")
@json_option
def doctor_command(as_json: bool) -> int:
    """What is installed, on what device, and whether a known photo gives the known vector."""
    import torch

    from ..embedder import Embedder

    facts = {"python": platform.python_version(), "platform": platform.platform(), "sqlite": sqlite3.sqlite_version}
    for package in ("simclr-hub", "torch", "torchvision", "transformers", "huggingface_hub", "pillow", "faiss-cpu"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["device"] = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else f"cpu, {torch.get_num_threads()} threads"
    )
    assets = files("simclr_hub") / "assets"
    known = np.array(json.loads((assets / "default" / "known_vector.json").read_text()))
    item = next(iter(Embedder().stream([Path(str(assets / "sample-photos" / "cat_1.jpg"))])))
    difference = float(np.abs(item.vector - known).max() / np.abs(known).max()) if hasattr(item, "vector") else 1.0
    healthy = difference < 1e-3  # JPEG decoders may differ by a grey level; a wrong layer differs by far more
    facts["known photo"] = f"{'right' if healthy else 'WRONG'} vector, largest difference {difference:.1e} relative"
    if as_json:
        print_json(facts | {"healthy": healthy})
    else:
        print_table(["what", "found"], facts.items())
    return 0 if healthy else 1
