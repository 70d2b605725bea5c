"""`search`: the photos of an index that are most similar to some."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..gallery import Row, write_gallery
from ..index import Match, SimilarityIndex
from ..index.search.filters import make_condition
from ._output import json_option, print_json, print_table, short_path

#: What a table tells of each photo, where it is known of any.
_COLUMNS = ("taken", "camera", "size")


def parse_where(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE and KEY=LOW..HIGH as `SimilarityIndex.search` takes them.

    Raises:
        click.BadParameter: neither of them, or a key twice.
    """
    where: dict[str, Any] = {}
    for one in given:
        key, equals, value = one.partition("=")
        if not equals or not key or not value or value == "..":
            raise click.BadParameter(f"{one!r}: KEY=VALUE or KEY=LOW..HIGH; one of both ends may be left out")
        if key in where:
            raise click.BadParameter(f"{one!r}: {key} was given already")
        low, dots, high = value.partition("..")
        where[key] = (low or None, high or None) if dots else value
    return where


@click.command("search")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("query", nargs=-1, required=True, type=click.Path())
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="How many matches.")
@click.option("--path", "pattern", metavar="GLOB", help="Only photos whose path matches, such as 'holiday/**/*.jpg'.")
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only photos of this metadata, or KEY=LOW..HIGH, such as taken=2019..2020-06 or width=1024.. ; repeatable.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write the results as a page.")
@json_option
def search_command(
    index: Path,
    query: tuple[str, ...],
    k: int,
    pattern: str | None,
    where: tuple[str, ...],
    html: Path | None,
    as_json: bool,
) -> None:
    """Find the photos in INDEX that are most similar to the image QUERY (or several).

    The score is the cosine of the two feature vectors: 1 is the same picture.
    """
    conditions = parse_where(where)
    try:
        make_condition(pattern, conditions)
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    with SimilarityIndex.open(index) as opened:
        results = opened.search(list(query), k=k, path=pattern, where=conditions)
    if html:
        rows = [Row(q, [(m.path, m.score) for m in found]) for q, found in zip(query, results, strict=True)]
        write_gallery(html, rows, title="Similar photos", note=f"Found in {index} by cosine similarity.")
    if as_json:
        print_json(
            [
                {
                    "query": q,
                    "matches": [{"path": m.path, "score": m.score, "metadata": m.metadata} for m in found],
                }
                for q, found in zip(query, results, strict=True)
            ]
        )
        return
    for q, found in zip(query, results, strict=True):
        if len(query) > 1:
            click.echo(f"{short_path(q)}:")
        _print_matches(found)
    if html:
        click.echo(f"wrote {html}")


def _print_matches(found: Sequence[Match]) -> None:
    told = [_tell(m.metadata) for m in found]
    columns = [name for name in _COLUMNS if any(one.get(name) for one in told)]
    rows = [
        (m.score, short_path(m.path), *(one.get(name, "") for name in columns))
        for m, one in zip(found, told, strict=True)
    ]
    print_table(["score", "photo", *columns], rows)


def _tell(metadata: dict[str, Any]) -> dict[str, str]:
    told: dict[str, str] = {name: str(metadata[name]) for name in _COLUMNS if name in metadata}
    if "width" in metadata and "height" in metadata:
        told["size"] = f"{metadata['width']} x {metadata['height']}"
    return told
