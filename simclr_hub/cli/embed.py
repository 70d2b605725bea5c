"""`simclr-hub embed`: features of images into a file."""

import hashlib
import re
from itertools import chain
from pathlib import Path
from typing import Any

import click
import numpy as np

from .._files import check_output, write_output
from .._text import printable
from ..errors import SimCLRHubError
from ..feature_files import FEATURES, parquet_writer, write_npz
from ..images import FileBytes, UnusableImage
from ..pieces import IMAGES, Piece, Pieces
from ..progress import progress_bar
from ..sources import every_nth
from ._output import echo, force_option, given, json_option, print_json


def parse_shard(_: click.Context, __: click.Parameter, text: str) -> tuple[int, int]:
    """Parse I/N as two numbers.

    Raises:
        click.BadParameter: it is something else, or I is not one of 1, ..., N.
    """
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    part, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= part <= parts:
        raise click.BadParameter(f"{text!r}: I/N, the I-th of N parts, such as 1/4, 2/4, 3/4 and 4/4")
    return part, parts


@click.command("embed")
@click.argument("images", nargs=-1, required=True, type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="A .npz or .parquet file.")
@click.option(
    "--model",
    help="An official name, a directory or a Hub id[@revision]; the checkpoint inside the package if not given.",
)
@click.option("--layer", default="h", show_default=True, help="h, or g1, g2, ..., z of the projection head.")
@click.option("--normalize", is_flag=True, help="Scale each vector to length 1.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a forward pass.")
@click.option("--device", help="cpu, cuda, mps, ...")
@click.option(
    "--shard",
    default="1/1",
    metavar="I/N",
    callback=parse_shard,
    help="Only the I-th of N parts, for N machines: every N-th image of all IMAGES, in their order, from the I-th on.",
)
@click.option(
    "--strict", is_flag=True, help="Exit with code 3 if images could not be read; they are named either way."
)
@force_option
@json_option
def embed_command(
    images: tuple[str, ...],
    output: Path,
    model: str | None,
    layer: str,
    normalize: bool,
    batch_size: int | None,
    device: str | None,
    shard: tuple[int, int],
    strict: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Write the features of IMAGES (files, folders, zip and tar files, URLs) to a file.

    The file has `paths` and `vectors` (N, D) float32, row by row; images that cannot be read are named and left out.
    Of many images pieces lie beside it meanwhile, in a folder named like it and .pieces: what was stopped goes on when
    it is run again.
    """
    from ..embedder import Embedder

    check_output(output, FEATURES, force=force, photos=images)
    write = write_npz if output.suffix.lower() == ".npz" else parquet_writer()
    pieces, listing = Pieces(output), hashlib.sha256()
    sources, total = every_nth(images, *shard, skip=pieces.sources, digest=listing)
    try:
        embedder = Embedder(model, layer=layer, normalize=normalize, batch_size=batch_size, device=device)
    except SimCLRHubError:
        raise
    except (ValueError, RuntimeError) as e:  # a layer or a device that there is not
        raise click.UsageError(str(e)) from e
    pieces.check({"listing": listing.hexdigest(), "shard": shard, "made by": embedder.fingerprint})
    some: list[Any] = []
    with progress_bar("embedding", total) as advance:
        if pieces.sources:
            advance(pieces.sources)
        for item in embedder.stream(sources):
            advance(1)
            some.append(item)
            if len(some) == IMAGES:
                pieces.put(_piece(some, embedder.dim))
                some.clear()
    last = _piece(some, embedder.dim)
    # Read once more for each pass over them: memory holds one.
    write_output(output, lambda file: write(file, lambda: chain(pieces, [last]), embedder.dim), FEATURES, force=force)
    embedded = sum(len(piece.paths) for piece in chain(pieces, [last]))
    failures = [pair for piece in chain(pieces, [last]) for pair in zip(piece.failed, piece.errors, strict=True)]
    pieces.remove()
    if as_json:
        record = {"embedded": embedded, "dim": embedder.dim, "output": str(output)}
        print_json(record | {"failed": [{"path": given(str(path)), "error": str(error)} for path, error in failures]})
    else:
        for _, error in failures:
            echo(f"left out: {error}", err=True)
        echo(f"{embedded:,} vectors of {embedder.dim} to {output}")
    return 3 if strict and failures else 0


def _name(source: Any) -> str:
    return source.name if isinstance(source, (FileBytes, UnusableImage)) else str(source)


def _piece(items: list[Any], dim: int) -> Piece:
    """Return results of a stream as a piece."""
    from ..embedder import Failure

    good = [item for item in items if not isinstance(item, Failure)]
    bad = [item for item in items if isinstance(item, Failure)]
    vectors = np.stack([item.vector for item in good]) if good else np.empty((0, dim), np.float32)
    return Piece(
        np.array([printable(_name(item.source)) for item in good], np.str_),
        vectors,
        np.array([_name(item.source) for item in bad], np.str_),
        np.array([str(item.error) for item in bad], np.str_),
    )
