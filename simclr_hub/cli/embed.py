"""`simclr-hub embed`: features of images into a file."""

import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from .._files import Kind, check_output, write_output
from .._text import printable
from ..errors import MissingExtraError, SimCLRHubError
from ..images import FileBytes, UnusableImage
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
    """
    from ..embedder import Embedder, Failure

    check_output(output, FEATURES, force=force, photos=images)
    write = _write_npz if output.suffix.lower() == ".npz" else _parquet_writer()
    sources, total = every_nth(images, *shard)
    try:
        embedder = Embedder(model, layer=layer, normalize=normalize, batch_size=batch_size, device=device)
    except SimCLRHubError:
        raise
    except (ValueError, RuntimeError) as e:  # a layer or a device that there is not
        raise click.UsageError(str(e)) from e
    paths, vectors, failures = [], [], []
    with progress_bar("embedding", total) as advance:
        for item in embedder.stream(sources):
            advance(1)
            if isinstance(item, Failure):
                failures.append((_name(item.source), item.error))
                continue
            paths.append(_name(item.source))
            vectors.append(item.vector)
    matrix = np.stack(vectors) if vectors else np.empty((0, embedder.dim), np.float32)
    write_output(output, lambda file: write(file, paths, matrix), FEATURES, force=force)
    if as_json:
        record = {"embedded": len(paths), "dim": embedder.dim, "output": str(output)}
        print_json(record | {"failed": [{"path": given(path), "error": str(error)} for path, error in failures]})
    else:
        for _, error in failures:
            echo(f"left out: {error}", err=True)
        echo(f"{len(paths):,} vectors of {embedder.dim} to {output}")
    return 3 if strict and failures else 0


def _name(source: Any) -> str:
    return source.name if isinstance(source, (FileBytes, UnusableImage)) else str(source)


def _write_npz(file: Any, paths: list[str], vectors: np.ndarray) -> None:
    np.savez(file, paths=np.array([printable(p) for p in paths], dtype=np.str_), vectors=vectors)
    with zipfile.ZipFile(file, "a") as archive:
        archive.comment = _MARK


def _parquet_writer() -> Callable[[Any, list[str], np.ndarray], None]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as e:
        raise MissingExtraError("pyarrow", "parquet") from e

    def write(file: Any, paths: list[str], vectors: np.ndarray) -> None:
        flat = pyarrow.array(vectors.ravel(), pyarrow.float32())
        columns = {
            "path": pyarrow.array([printable(p) for p in paths], pyarrow.string()),
            "vector": pyarrow.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        }
        pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata({_MARK: b""}), file)

    return write


def _is_features(path: Path) -> bool:
    """Return whether `embed` wrote a file."""
    try:
        if path.suffix.lower() == ".npz":
            with zipfile.ZipFile(path) as archive:
                return archive.comment == _MARK
        import pyarrow.parquet

        return _MARK in (pyarrow.parquet.read_schema(path).metadata or {})
    except (OSError, ValueError, zipfile.BadZipFile, ImportError):  # pyarrow's errors are ValueErrors and OSErrors
        return False


#: The kind of file that `embed` writes, see `_files.check_output`, and what tells one from others.
FEATURES = Kind("a file of features", (".npz", ".parquet"), _is_features)
_MARK = b"simclr-hub embed"
