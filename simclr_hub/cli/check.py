"""`simclr-hub check`: is the index sound, what could not be verified, and a repair."""

import dataclasses
from pathlib import Path

import click

from ..index.check import CheckReport, check_index
from ..progress import counting_bar
from ._output import echo, json_option, print_json


@click.command("check")
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--repair", is_flag=True, help="If it is damaged, save what is sound; the damaged file is kept.")
@click.option("--deep", is_flag=True, help="Also read the photos again and embed a few; may be stopped and goes on.")
@json_option
def check_command(index: Path, repair: bool, deep: bool, as_json: bool) -> int:
    """Check that INDEX is sound: its file, every row's checksum, a vector for every photo.

    Exit code 1 if it is not, 3 if it is but photos are damaged or could not be read.
    """
    with counting_bar("checking photos") as progress:
        report = check_index(index, repair=repair, deep=deep, progress=progress)
    if as_json:
        print_json({"sound": report.sound} | dataclasses.asdict(report))
    else:
        _print(report)
    if not report.sound:
        return 1
    return 3 if report.photos.get("damaged") or report.photos.get("unreadable") else 0


def _print(report: CheckReport) -> None:
    if report.repair:
        saved = ", ".join(f"{n:,} {table.replace('_', ' ')}" for table, n in report.repair.saved.items() if n)
        echo(f"repaired: saved {saved or 'nothing'}; the damaged file is kept as {report.repair.kept_as}")
        echo(f"  {report.repair.lost_photos:,} photos were lost: index their folders again")
    echo(f"{report.path}: {'sound' if report.sound else 'damaged'}")
    for problem in report.problems:
        echo(f"  wrong: {problem}")
    if report.verified:
        echo("  verified: " + ", ".join(f"{n:,} {what}" for what, n in report.verified.items()))
    if report.photos:
        echo("  photos read again: " + ", ".join(f"{n:,} {what}" for what, n in report.photos.items() if n))
    for path in report.damaged_photos[:10]:
        echo(f"  damaged, though its size and times are as before: {path}")
    for note in report.notes:
        echo(f"  note: {note}")
    for what in report.unverified:
        echo(f"  not verified: {what}")
    if not report.sound and not report.repair:
        echo("  `simclr-hub check --repair` saves what is sound")
