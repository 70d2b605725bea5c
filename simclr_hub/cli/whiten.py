"""`whiten`: an index that exists, in place; or a whitening for a checkpoint, learnt on photos, as a file."""

import dataclasses
from pathlib import Path

import click

from .._files import check_output
from ..errors import CheckpointError
from ..images import describe
from ..index import SimilarityIndex
from ..index.store import STORE_NAME
from ..progress import counting_bar, progress_bar
from ..whitening import IMAGES, WHITENING, Whitening
from ._output import echo, json_option, print_json


@click.command("whiten")
@click.argument("what", nargs=-1, required=True, metavar="INDEX | [MODEL] PHOTOS")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="For MODEL: the file to write, *.safetensors.")
@click.option(
    "--with", "given", type=click.Path(path_type=Path), help="For INDEX: a whitening file that this command wrote."
)
@click.option("--off", is_flag=True, help="For INDEX: stop whitening.")
@click.option(
    "--layer",
    type=click.Choice(["h", "h+stage3"]),
    default="h",
    show_default=True,
    help="For MODEL: what is to be whitened.",
)
@json_option
def whiten_command(
    what: tuple[str, ...], output: Path | None, given: Path | None, off: bool, layer: str, as_json: bool
) -> None:
    """Whiten INDEX in place, or learn a whitening for MODEL from PHOTOS.

    An index then finds better matches, and its scores tell more. It is whitened with what comes with its checkpoint,
    or with what is learnt on its own photos; no photo is read, and it may be stopped at any moment and run again.

    For a checkpoint without a whitening (the default one has its own), one is learnt on unlabelled PHOTOS, up to
    10,000 of them. Written to MODEL/whitening.safetensors it belongs to the checkpoint.
    """
    index = Path(what[0])
    if len(what) == 1 and output is None:
        if not (index / STORE_NAME).is_file():
            raise click.UsageError(
                f"{index}: no index there; to learn a whitening from photos, give -o FILE.safetensors"
            )
        _whiten_index(index, given, off, as_json)
        return
    if output is None:
        raise click.UsageError("give -o FILE.safetensors, where the whitening is to be written")
    if given or off or len(what) > 2:
        raise click.UsageError("give an INDEX, or one MODEL and PHOTOS, a folder or an archive")
    _learn(what[0] if len(what) == 2 else None, what[-1], output, layer, as_json)


def _whiten_index(path: Path, given: Path | None, off: bool, as_json: bool) -> None:
    if given and off:
        raise click.UsageError("--with and --off exclude each other")
    whiten = Whitening.load(given) if given else False if off else None
    with SimilarityIndex.open(path) as index, counting_bar("whitening") as progress:
        try:
            index.whiten(whiten, progress=progress)
        except CheckpointError:
            raise
        except ValueError as e:
            raise click.ClickException(str(e)) from e
        status = index.status()
    if as_json:
        print_json({"photos": status["photos"], "whitening": status["whitening"]})
    elif status["whitening"] is None:
        echo(f"{status['photos']:,} photos, not whitened")
    else:
        echo(f"{status['photos']:,} photos, whitened: learnt from {tell(status['whitening'])}")


def tell(whitening: dict[str, object]) -> str:
    """Describe what `SimilarityIndex.status` knows of a whitening."""
    return f"{whitening['images']:,} images ({whitening['learnt_from']})"


def _learn(model: str | None, photos: str, output: Path, layer: str, as_json: bool) -> None:
    import numpy as np

    from ..embedder import Embedder, Failure
    from ..sources import every_nth

    check_output(output, dataclasses.replace(WHITENING, is_own=None), photos=[photos])
    try:
        embedder = Embedder(model, layer=layer)
    except CheckpointError:
        raise
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    _, total = every_nth([photos], 1, 1)
    sources, _ = every_nth([photos], 1, max(1, (total or 0) // IMAGES))
    vectors, failures = [], 0
    with progress_bar("embedding", min(total, IMAGES) if total else None) as advance:
        for item in embedder.stream(sources):
            advance(1)
            if isinstance(item, Failure):
                failures += 1
                echo(f"left out: {item.error}", err=True)
            else:
                vectors.append(item.vector)
    try:
        whitening = Whitening.learn(
            np.array(vectors, np.float32).reshape(-1, embedder.dim),
            learnt_from=Path(describe(photos)).name or "photos",
            layer=layer,
            weights=embedder.fingerprint["weights"],
        )
    except ValueError as e:
        raise click.ClickException(str(e)) from e
    whitening.save(output)
    told = {
        "output": str(output),
        "dim": whitening.dim,
        "images": whitening.images,
        "learnt_from": whitening.learnt_from,
        "shrinkage": whitening.shrinkage,
        "failed": failures,
    }
    if as_json:
        print_json(told)
    else:
        echo(f"learnt from {tell(told)}; {len(whitening.mean)} to {whitening.dim} numbers: {output}")
