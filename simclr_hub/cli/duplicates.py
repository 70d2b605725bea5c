"""`duplicates` and `calibrate`: copies among the photos of an index, and thresholds to find them by."""

import dataclasses
import os
from pathlib import Path

import click

from .._files import check_output
from ..duplicates.find import TIERS, DuplicateGroup, Tier
from ..duplicates.plan import PLAN, Rules, check_target, moves_of, write_plan
from ..duplicates.words import TIERS as NAMES
from ..duplicates.words import facts, first_word, relation, summary
from ..index import SimilarityIndex
from ..pages import PAGE, write_review
from ..progress import counting_bar
from ._output import echo, force_option, json_option, print_json, print_table, short_path

_index_argument = click.argument("index", type=click.Path(path_type=Path))


@click.command("duplicates")
@_index_argument
@click.option("--tier", "tiers", multiple=True, type=click.Choice(TIERS), help="Only this tier; repeatable.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page to look through.")
@click.option(
    "--not-duplicate",
    "distinct",
    nargs=2,
    multiple=True,
    metavar="PHOTO PHOTO",
    help="First record that these two are different pictures; repeatable.",
)
@click.option(
    "--script",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a script (.sh, .ps1) or list (.csv) that moves the copies away; it is yours to read and run.",
)
@click.option("--to", metavar="FOLDER", help="Where the script moves them; by default a folder beside it.")
@click.option("--never-from", multiple=True, metavar="FOLDER", help="The script moves nothing from it; repeatable.")
@click.option("--prefer", multiple=True, metavar="FOLDER", help="Its files are those to keep; repeatable.")
@force_option
@json_option
def duplicates_command(
    index: Path,
    tiers: tuple[Tier, ...],
    html: Path | None,
    distinct: tuple[tuple[str, str], ...],
    script: Path | None,
    to: str | None,
    never_from: tuple[str, ...],
    prefer: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Find photos of INDEX with the same bytes, the same picture, or a similar one, and say which to keep.

    Nothing is deleted or moved.
    """
    if not script and (to or never_from or prefer):
        raise click.UsageError("--to, --never-from and --prefer are about the --script, which was not asked for")
    target = ""
    with SimilarityIndex.open(index) as opened, counting_bar("comparing pairs") as progress:
        roots = opened.status()["roots"]
        if html:
            check_output(html, PAGE, force=force, photos=roots)
        if script:
            check_output(script, PLAN, force=force, photos=roots)
            target = check_target(os.path.abspath(to or script.with_name(f"{script.stem} moved")), roots)
        for pair in distinct:
            try:
                opened.not_duplicates(*pair)
            except ValueError as e:
                raise click.UsageError(str(e)) from e
        measured = bool(opened.calibration().measured)
        groups = opened.duplicates(tiers or TIERS, progress=progress)
    note = f"Found in {index}. " + summary(groups)
    if html:
        pages = write_review(html, groups, title="Duplicates", note=note, force=force)
    if script:
        rules = Rules(tuple(map(os.path.abspath, never_from)), tuple(map(os.path.abspath, prefer)))
        moves = [move for group in groups for move in moves_of(group, rules)]
        write_plan(script, moves, target, force=force)
    if as_json:
        print_json([group.as_values() for group in groups])
        return
    for number, group in enumerate(groups, 1):
        _print_group(number, group)
    echo(summary(groups))
    if not measured and set(tiers) != {"same-bytes"}:
        echo(f"This model has no measured thresholds: after `simclr-hub calibrate {index}` more crops are found.")
    if html:
        echo(f"wrote {html}" + (f" and further pages, to {pages[-1].name}" if len(pages) > 1 else ""))
    if script:
        echo(f"wrote {script}: it moves {len(moves):,} files to {target}. Read it before you run it.")


@click.command("calibrate")
@_index_argument
@click.option("--model", help="The model that made INDEX; by default the one it names.")
@click.option(
    "--copies", default=100, show_default=True, type=click.IntRange(min=10), help="Photos to make copies of."
)
@json_option
def calibrate_command(index: Path, model: str | None, copies: int, as_json: bool) -> None:
    """Measure the thresholds of `duplicates` for the model of INDEX, on its own photos.

    Copies of some photos are made in memory: re-encoded, resized, cropped, and so on. Only the index is written to.
    The default checkpoint comes with its thresholds.
    """
    with SimilarityIndex.open(index, model=model) as opened, counting_bar("embedding copies") as progress:
        try:
            thresholds = opened.calibrate(copies=copies, progress=progress)
        except ValueError as e:
            raise click.ClickException(str(e)) from e
    if as_json:
        print_json(dataclasses.asdict(thresholds))
        return
    same = thresholds.measured["same_picture"]
    echo(f"{thresholds.measured['photos']:,} photos, copies of {thresholds.measured['copies_of_each_kind']:,} of them")
    print_table(["copies", "found"], same["recall"].items())
    echo(
        f"{same['different_pairs_called_same']:,} of {same['different_pairs_compared']:,} pairs of different photos, "
        "the most alike, were called the same"
    )


def _print_group(number: int, group: DuplicateGroup) -> None:
    echo(f"{number}. {NAMES[group.tier][0]}: {first_word(group)} {short_path(group.keep.path)}")
    if group.why:
        echo(f"   {group.why}")
    if group.keep.pair:
        echo(f"   and {short_path(group.keep.pair)}: the two are one shot")
    for other in group.others:
        score = "" if other.tier == "same-bytes" or other.same_file else f" {other.score:.3f}"
        told = f"one more name of {short_path(other.same_file)}" if other.same_file else ", ".join(facts(other))
        echo(f"   {relation(other)}{score}  {short_path(other.path)}  ({told})")
