"""`simclr-hub export` and `import`: an index as a Parquet file, and back."""

from pathlib import Path

import click

from .._files import FOLDER, check_output
from ..index import SimilarityIndex
from ..index.parquet import EXPORT
from ..progress import counting_bar
from ._output import echo, json_option, print_json


@click.command("export")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@json_option
def export_command(index: Path, out: Path, as_json: bool) -> None:
    """Write the photos of INDEX with their vectors and what is known of them to OUT, a Parquet file."""
    with SimilarityIndex.open(index) as opened, counting_bar("exporting") as progress:
        check_output(out, EXPORT, photos=opened.status()["roots"])
        photos = opened.export(out, progress=progress)
    _tell(photos, out, as_json)


@click.command("import")
@click.argument("exported", type=click.Path(path_type=Path))
@click.argument("index", type=click.Path(path_type=Path))
@json_option
def import_command(exported: Path, index: Path, as_json: bool) -> None:
    """Make INDEX, a new directory, of the Parquet file EXPORTED that `simclr-hub export` wrote."""
    check_output(index, FOLDER)
    with (
        counting_bar("importing") as progress,
        SimilarityIndex.from_export(exported, index, progress=progress) as opened,
    ):
        status = opened.status()
    _tell(status["photos"] + status["missing"], index, as_json)


def _tell(photos: int, where: Path, as_json: bool) -> None:
    if as_json:
        print_json({"photos": photos, "output": str(where)})
    else:
        echo(f"{photos:,} photos to {where}")
