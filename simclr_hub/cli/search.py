"""`search`: the photos of an index that are most similar to some."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from .._files import check_output
from ..index import Match, SimilarityIndex
from ..index.search.filters import make_condition
from ..index.search.find import tell_share
from ..pages import PAGE, Row, write_gallery
from ._output import echo, force_option, given, json_option, print_json, print_table, short_path

#: What "closer than" means on a page.
NOTE = "Closer than: the share of the index's own pairs of photos that are less alike."
#: What a table tells of each photo beside score and name, where it is known of any.
_COLUMNS = ("closer than", "copies", "taken", "camera", "size")


def parse_where(options: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE and KEY=LOW..HIGH to what `SimilarityIndex.search` takes.

    Raises:
        click.BadParameter: neither of them, or a key twice.
    """
    where: dict[str, Any] = {}
    for one in options:
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
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1), help="Number of matches.")
@click.option(
    "--together", is_flag=True, help="Search once for what is like all QUERY photos, instead of once for each."
)
@click.option(
    "--not",
    "unlike",
    multiple=True,
    metavar="PHOTO",
    help="A photo that results should not be like; repeatable; implies --together.",
)
@click.option(
    "--not-weight", default=0.5, show_default=True, type=click.FloatRange(min=0), help="How much --not counts."
)
@click.option("--with-self", is_flag=True, help="Keep the query's own file among the results.")
@click.option("--all-copies", is_flag=True, help="List every copy of a picture, instead of one for all.")
@click.option("--path", "pattern", metavar="GLOB", help="Only photos whose path matches, such as 'holiday/**/*.jpg'.")
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only photos with this metadata, or KEY=LOW..HIGH, such as taken=2019..2020-06 or width=1024..; repeatable.",
)
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write the results as a page.")
@force_option
@json_option
def search_command(
    index: Path,
    query: tuple[str, ...],
    k: int,
    together: bool,
    unlike: tuple[str, ...],
    not_weight: float,
    with_self: bool,
    all_copies: bool,
    pattern: str | None,
    where: tuple[str, ...],
    html: Path | None,
    force: bool,
    as_json: bool,
) -> None:
    """Find the photos in INDEX that are most similar to the image QUERY.

    Several QUERY photos make several searches, or one with --together or --not. The score is the cosine of the two
    feature vectors: 1 is the same picture; "closer than" is the share of the index's own pairs of photos that are less
    alike.
    """
    conditions = parse_where(where)
    try:
        make_condition(pattern, conditions)
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    together = together or bool(unlike)
    options: dict[str, Any] = {"k": k, "with_self": with_self, "all_copies": all_copies}
    with SimilarityIndex.open(index) as opened:
        if html:
            check_output(html, PAGE, force=force, photos=[*opened.status()["roots"], *query, *unlike])
        results: list[list[Match]]
        if together:
            try:
                found = opened.search(
                    query, negative=unlike, negative_weight=not_weight, path=pattern, where=conditions, **options
                )
            except ValueError as e:  # they cancel one another
                raise click.ClickException(str(e)) from e
            searches, results = [query], [found]
        else:
            searches = [(one,) for one in query]
            results = opened.search(query, path=pattern, where=conditions, **options)
        reasons = [] if all(results) else opened.explain_empty(path=pattern, where=conditions)
    if html:
        rows = [Row(one, found, unlike) for one, found in zip(searches, results, strict=True)]
        write_gallery(
            html, rows, title="Similar photos", note=f"Found in {index} by cosine similarity. {NOTE}", force=force
        )
    for reason in reasons:
        echo(f"No photo found: {reason}.", err=True)
    if as_json:
        print_json(
            [
                {"query": list(map(given, one)) if together else given(one[0])}
                | ({"not": list(map(given, unlike))} if unlike else {})
                | {"matches": [_as_json(match) for match in found]}
                for one, found in zip(searches, results, strict=True)
            ]
        )
        return
    for one, found in zip(searches, results, strict=True):
        if len(searches) > 1:
            echo(f"{short_path(one[0])}:")
        if found:
            print_matches(found)
        elif len(searches) > 1:
            echo("none")
    if html:
        echo(f"wrote {html}")


def print_matches(found: Sequence[Match], name: Callable[[str], str] = short_path) -> None:
    """Print matches as a table for people."""
    told = [
        {"closer than": tell_share(m.closer_than), "copies": f"+{len(m.copies):,}" if m.copies else ""}
        | _tell(m.metadata)
        for m in found
    ]
    columns = [column for column in _COLUMNS if any(one.get(column) for one in told)]
    cells = [{"score": m.score, "photo": name(m.path)} | one for m, one in zip(found, told, strict=True)]
    headers = [
        "score",
        *(c for c in columns if c == "closer than"),
        "photo",
        *(c for c in columns if c != "closer than"),
    ]
    print_table(headers, [[one.get(header, "") for header in headers] for one in cells])


def _as_json(match: Match) -> dict[str, Any]:
    return {
        "path": match.path,
        "score": match.score,
        "closer_than": match.closer_than,
        "copies": match.copies,
        "metadata": match.metadata,
    }


def _tell(metadata: dict[str, Any]) -> dict[str, str]:
    told: dict[str, str] = {name: str(metadata[name]) for name in ("taken", "camera") if name in metadata}
    if "width" in metadata and "height" in metadata:
        told["size"] = f"{metadata['width']} x {metadata['height']}"
    return told
