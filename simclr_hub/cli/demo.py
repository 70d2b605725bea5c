"""`simclr-hub demo`: the whole product once, offline, on the photos inside this package."""

from importlib.resources import files
from pathlib import Path

import click

from ..gallery import Row, write_gallery
from .index import open_or_create, print_report, sync
from .search import print_matches

QUERY = "banana_1.jpg"
#: One query of each of these is on the page.
SHOWN = ("cat_1", "banana_1", "dress_1", "chess_1", "carrots_1", "shoes_2", "watermelon_1", "hat_1")


@click.command("demo")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=".", help="Where demo.index and gallery.html go."
)
def demo_command(output: Path) -> None:
    """Index the sample photos, search with one of them, write gallery.html."""
    photos = Path(str(files("simclr_hub") / "assets" / "sample-photos"))
    output.mkdir(parents=True, exist_ok=True)
    index_path, page = output / "demo.index", output / "gallery.html"
    click.echo("Indexing 58 sample photos with the default checkpoint ...")
    with open_or_create(index_path, None) as index:
        print_report(sync(index, photos), index_path)
        click.echo(f"\nPhotos most similar to {QUERY}:")
        print_matches(index.search(photos / QUERY, k=5), name=lambda path: Path(path).name)
        queries = [photos / f"{name}.jpg" for name in SHOWN]
        rows = [Row([q], found) for q, found in zip(queries, index.search(queries, k=6), strict=True)]
    note = (
        "Sample photos found by one another with the default checkpoint, a small encoder pretrained without labels. "
        "The official checkpoints see far more."
    )
    write_gallery(page, rows, title="Photos found by photos", note=note)
    click.echo(
        f"\nWrote {page}: open it in a browser."
        "\nNext, your own photos:  simclr-hub index ~/Pictures -o photos.index"
        "\n                        simclr-hub search photos.index some_photo.jpg --html results.html"
    )
