"""`simclr-hub parts`: plan, run and check what is embedded in parts, on one machine or many."""

import dataclasses
from functools import partial

import click

from .._text import shown
from ..parts.check import PartsReport, check_parts
from ..parts.part import Result
from ..parts.plan import IMAGES, MOST_IMAGES, Plan, make_plan
from ..parts.run import ENGINES, run_parts
from ..parts.storage import Folder
from ..progress import counting_bar, progress_bar
from ..scan import Rules
from ._output import echo, json_option, print_json
from .embed import parse_shard

#: Names that are told of each kind of fault.
_TOLD = 5


@click.group("parts")
def parts_command() -> None:
    """Embed more images than one machine can: list them once, embed them in parts, prove that all are there.

    `import` makes an index of a folder of parts. docs/cluster.md has the commands for clusters.
    """


@parts_command.command("plan")
@click.argument("sources", nargs=-1, required=True)
@click.option("-o", "--output", required=True, help="The plan: a new folder, or s3://bucket/key, gs://bucket/key.")
@click.option(
    "--images",
    type=click.IntRange(1, MOST_IMAGES),
    default=IMAGES,
    show_default=True,
    help="Of a part, at most; an archive is a part of its own.",
)
@click.option("--column", help="What holds the images in Parquet files, if its name does not tell.")
@click.option("--exclude", multiple=True, metavar="PATTERN", help="Leave out of folders, as `index` does.")
@click.option("--include-hidden", is_flag=True, help="Also what begins with a dot, in folders.")
@json_option
def plan_command(
    sources: tuple[str, ...],
    output: str,
    images: int,
    column: str | None,
    exclude: tuple[str, ...],
    include_hidden: bool,
    as_json: bool,
) -> None:
    """List the images of SOURCES, once, and write a plan of parts.

    SOURCES are folders, zip and tar files (as WebDataset's and img2dataset's), Parquet files with images, and text
    files (.txt) with a path or URI a line; on a disk, s3:// or gs://.
    """
    try:
        rules = Rules(exclude, include_hidden)
    except ValueError as e:
        raise click.UsageError(str(e)) from e
    with progress_bar("listing", None) as advance:
        plan = make_plan(sources, output, images=images, rules=rules, column=column, progress=advance)
    if as_json:
        record = {"plan": plan.id, "parts": len(plan.parts), "images": plan.images, "skipped": plan.skipped}
        print_json(record | {"output": plan.folder.place})
        return
    images_told = f"{plan.images:,} images" if plan.images is not None else "images not counted yet (archives)"
    echo(f"{len(plan.parts):,} parts to {plan.folder}: {images_told}")
    for why, n in sorted(plan.skipped.items()):
        echo(f"  left out: {n:,} {why}")


@parts_command.command("run")
@click.argument("plan")
@click.option("-o", "--output", required=True, help="The folder of the parts; those that are there stay.")
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="What runs the parts.")
@click.option(
    "--worker",
    default="1/1",
    metavar="I/N",
    callback=parse_shard,
    help="Only every N-th part from the I-th on, for N machines without an engine, such as a Slurm array.",
)
@click.option(
    "--workers", type=click.IntRange(min=1), help="Processes on this machine; if not given one, or one a GPU."
)
@click.option("--model", help="As for `embed`.")
@click.option("--layer", default="h", show_default=True, help="As for `embed`.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a forward pass.")
@click.option("--device", help="cpu, cuda, mps, ...")
@click.option("--no-whiten", is_flag=True, help="Without the whitening that comes with the checkpoint.")
@click.option("--half", is_flag=True, help="Numbers of 16 bits: half the bytes; docs/cluster.md tells what it costs.")
@click.option("--strict", is_flag=True, help="Exit with code 3 if images could not be used; they are rows either way.")
@json_option
def run_command(
    plan: str,
    output: str,
    engine: str,
    worker: tuple[int, int],
    workers: int | None,
    model: str | None,
    layer: str,
    batch_size: int | None,
    device: str | None,
    no_whiten: bool,
    half: bool,
    strict: bool,
    as_json: bool,
) -> int:
    """Embed the parts of PLAN, each into one Parquet file, written as a whole.

    May be stopped or killed at any moment and run again: only the parts in flight are made again. Exit code 1 if parts
    could not be made.
    """
    from ..embedder import Embedder

    planned = Plan.read(plan)
    make = partial(Embedder, model, layer=layer, batch_size=batch_size, device=device)
    with progress_bar("embedding", planned.images) as advance:

        def progress(result: Result | None, parts: int) -> None:
            if result is None and planned.images is None:
                advance(0, parts, "parts")
            elif result is not None:
                advance(1 if planned.images is None else result.rows)

        report = run_parts(
            planned,
            output,
            make,
            engine=engine,
            worker=worker,
            workers=workers,
            whiten=not no_whiten,
            half=half,
            progress=progress,
        )
    if as_json:
        print_json(dataclasses.asdict(report) | {"output": Folder(output).place})
    else:
        for name, why in list(report.failed.items())[:_TOLD]:
            echo(f"not made: part {name}: {why}", err=True)
        if len(report.failed) > _TOLD:
            echo(f"not made: {len(report.failed) - _TOLD:,} more parts", err=True)
        made = f"{report.made:,} made ({report.rows:,} images, {report.unusable:,} unusable)"
        echo(f"{report.planned:,} parts: {report.there:,} were there, {made}, {len(report.failed):,} failed")
    if report.failed:
        return 1
    return 3 if strict and report.unusable else 0


@parts_command.command("check")
@click.argument("plan")
@click.argument("output")
@click.option("--quick", is_flag=True, help="Read which images there are, but no vector.")
@json_option
def check_parts_command(plan: str, output: str, quick: bool, as_json: bool) -> int:
    """Check that every image of PLAN is in OUTPUT exactly once, made by one model and settings.

    Exit code 1 if not; what is missing, doubled, damaged, foreign or of another model is named.
    """
    with counting_bar("checking parts") as progress:
        report = check_parts(Plan.read(plan), Folder(output), quick=quick, progress=progress)
    if as_json:
        print_json({"complete": report.complete} | dataclasses.asdict(report))
    else:
        _print_check(report, output)
    return 0 if report.complete else 1


def _print_check(report: PartsReport, output: str) -> None:
    state = "complete" if report.complete else "not complete"
    echo(f"{shown(output)}: {state}: {report.whole:,} of {report.planned:,} parts, {report.rows:,} images")
    if report.unusable:
        echo(f"  {report.unusable:,} images could not be used; the column `error` says why")
    _tell("missing", [(name, "begun, not ended" if name in report.begun else "") for name in report.missing])
    for what in ("damaged", "doubled", "other_maker"):
        _tell(what.replace("other_maker", "made by another"), list(getattr(report, what).items()))
    _tell("does not belong there", [(name, "") for name in report.foreign])
    if report.damaged or report.doubled or report.other_maker or report.foreign:
        echo("  delete those files; `simclr-hub parts run` makes what is missing")


def _tell(what: str, named: list[tuple[str, str]]) -> None:
    for name, why in named[:_TOLD]:
        echo(f"  {what}: {name}{f': {why}' if why else ''}")
    if len(named) > _TOLD:
        echo(f"  {what}: {len(named) - _TOLD:,} more")
