"""`simclr-hub vectors`: load parts into a vector server, search there, check it, delete from it."""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from .._text import shown
from ..index.search.find import Match
from ..parts.storage import Folder
from ..progress import progress_bar
from ..vectors.check import CheckReport, check_vectors
from ..vectors.conditions import compile_where
from ..vectors.connect import connect
from ..vectors.find import search
from ..vectors.load import LoadReport, load_parts, write_tombstone
from ..vectors.recall import RECALL
from ..vectors.rows import photo_folders
from ..vectors.server import Progress, Setting, VectorServer
from ._output import echo, given, json_option, print_json
from .search import parse_where, print_matches

#: Parts that are told of each kind of fault.
_TOLD = 5


@click.group("vectors")
def vectors_command() -> None:
    """Search the vectors of parts on a server: PostgreSQL with pgvector, or Milvus.

    URL is postgresql://HOST/DATABASE[#TABLE], milvus://HOST:PORT[/COLLECTION], or a file NAME.db for milvus-lite.
    Passwords are best left to the environment: PGPASSWORD or ~/.pgpass, SIMCLR_MILVUS_TOKEN. See docs/vectors.md.
    """


@vectors_command.command("load")
@click.argument("parts")
@click.argument("url")
@click.option("--half", is_flag=True, help="Of a new table: numbers of 16 bits, half the memory and disk.")
@click.option("--again", is_flag=True, help="Also parts that were loaded before.")
@json_option
def load_command(parts: str, url: str, half: bool, again: bool, as_json: bool) -> None:
    """Load the folder PARTS into the server at URL, and delete there what its tombstones name.

    May be stopped or killed at any moment and run again: parts that are there are skipped.
    """
    with _server(url, make=True, photos=photo_folders(Folder(parts))) as server, _bar("loading parts") as progress:
        report = load_parts(parts, server, half=half, again=again, progress=progress)
    if as_json:
        print_json(dataclasses.asdict(report))
        return
    echo(f"{report.parts:,} parts: {report.there:,} were there, {report.loaded:,} loaded ({report.images:,} images)")
    if report.deleted or report.left_out:
        echo(f"deleted by tombstones: {report.deleted:,} from the server, {report.left_out:,} left out")
    echo(f"{server}: {report.count:,} images; {_tell_setting(report)}")


def _tell_setting(report: LoadReport) -> str:
    setting = report.setting or Setting()
    rounding = f"; numbers of 16 bits lose {setting.lost:.1%} of the nearest 10" if setting.lost else ""
    if not setting.breadth:
        return f"every search is exact{rounding}"
    some = f"where less than {setting.min_share:.0%} pass" if setting.min_share <= 1 else "under conditions"
    fast = f"searched with breadth {setting.breadth} (measured recall@10 {setting.recall:.3f})"
    return f"{fast}{f', {some} exactly' * (setting.min_share > 0)}{rounding}"


@vectors_command.command("search")
@click.argument("photo")
@click.argument("url")
@click.option("-k", default=10, show_default=True, type=click.IntRange(min=1, max=10_000), help="Number of matches.")
@click.option(
    "--where",
    multiple=True,
    metavar="KEY=VALUE",
    help="Only images with this metadata, or KEY=LOW..HIGH, such as taken=2019..2020-06 or width=1024..; repeatable.",
)
@click.option("--with-self", is_flag=True, help="Keep the query's own file among the results.")
@click.option("--model", help="What made the vectors, if it lies elsewhere than it did then.")
@json_option
def search_vectors_command(
    photo: str, url: str, k: int, where: tuple[str, ...], with_self: bool, model: str | None, as_json: bool
) -> None:
    """Find the images on the server at URL that are most similar to the image PHOTO."""
    conditions = parse_where(where)
    try:
        compile_where(conditions)
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    with _server(url) as server:
        found = search(server, photo, k, where=conditions, with_self=with_self, model=model)
    if as_json:
        recall = 1.0 if found.exact else found.recall
        told: dict[str, Any] = {"query": given(photo), "exact": found.exact, "recall": recall}
        print_json(told | {"matches": [_as_json(match) for match in found.matches]})
        return
    if not found.matches:
        echo(f"No image found{' that meets the conditions' if conditions else ''}.", err=True)
        return
    print_matches(found.matches, str)
    how = "exact" if found.exact else f"by a graph: of the nearest {found.recall:.1%} were found when it was measured"
    echo(f"({how})", err=True)


def _as_json(match: Match) -> dict[str, Any]:
    return {"path": match.path, "score": match.score, "hash": match.content_hash.hex(), "metadata": match.metadata}


@vectors_command.command("check")
@click.argument("parts")
@click.argument("url")
@json_option
def check_vectors_command(parts: str, url: str, as_json: bool) -> int:
    """Check that the server at URL has every image of PARTS, and finds what is nearest, also under conditions.

    Exit code 1 if images are missing, deleted ones are there, or less than 95 % of the nearest are found.
    """
    with _server(url) as server, _bar("comparing ids") as progress:
        report = check_vectors(parts, server, progress=progress)
    if as_json:
        print_json({"complete": report.complete} | dataclasses.asdict(report))
    else:
        _print_check(report, str(server))
    return 0 if report.complete else 1


def _print_check(report: CheckReport, name: str) -> None:
    missing = sum(report.missing.values())
    echo(
        f"{name}: {'complete' if report.complete else 'not complete'}: "
        f"{report.images - missing:,} of {report.images:,} images"
    )
    if report.others:
        echo(f"  {report.others:,} more that are of no part here")
    for part, count in list(report.missing.items())[:_TOLD]:
        echo(f"  missing: {count:,} of part {part}")
    if len(report.missing) > _TOLD:
        echo(f"  missing: of {len(report.missing) - _TOLD:,} more parts")
    if missing:
        echo("  `simclr-hub vectors load --again` loads them")
    if report.not_deleted:
        echo(f"  not deleted: {report.not_deleted:,}; `simclr-hub vectors load` deletes them")
    for share, recall in report.recall.items():
        among = "all" if share >= 1 else f"{share:.1%} that meet a condition"
        how = "exact" if report.exact[share] == 1 else f"{report.exact[share]:.0%} of the searches exact"
        echo(f"  found of the nearest 10 among {among}: {recall:.1%} ({how}){'' if recall >= RECALL else ', too few'}")


@vectors_command.command("delete")
@click.argument("parts")
@click.argument("images", nargs=-1)
@click.option(
    "--from",
    "listed",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A text file of more, one a line.",
)
@json_option
def delete_command(parts: str, images: tuple[str, ...], listed: Path | None, as_json: bool) -> None:
    """Write beside PARTS that IMAGES are deleted: paths as matches have them, or SHA-256s of contents.

    The next `vectors load` deletes them from its server, and no load brings them back. The vectors stay in the parts.
    """
    names = [*images, *(listed.read_text(errors="surrogateescape").splitlines() if listed else ())]
    if not names or not all(names):
        raise click.UsageError("give paths or SHA-256s, or a file of them by --from")
    name, count = write_tombstone(parts, names)
    if as_json:
        print_json({"tombstone": name, "images": count})
        return
    echo(f"{shown(parts)}: {name} names {count:,}; run `simclr-hub vectors load` for each server")


@contextmanager
def _server(url: str, *, make: bool = False, photos: Iterable[str] = ()) -> Iterator[VectorServer]:
    server = connect(url, make=make, photos=photos)
    try:
        yield server
    finally:
        server.close()


@contextmanager
def _bar(what: str) -> Iterator[Progress]:
    with progress_bar(what, None) as advance:
        kinds: dict[str, int] = {}

        def progress(n: int, total: int, of: str) -> None:
            kinds[of] = total
            advance(n, sum(kinds.values()), of)

        yield progress
