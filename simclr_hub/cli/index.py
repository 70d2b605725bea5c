"""The commands on an index: `index`, `status`, `failures`, `missing`, `prune`, `check`, `export`, `import`."""

import dataclasses
import os
import shlex
from pathlib import Path
from typing import Any

import click

from .._files import FOLDER, check_output
from ..errors import ImageError, RootUnavailableError, SimCLRHubError
from ..images import describe
from ..index import SimilarityIndex, SyncReport
from ..index.check import CheckReport, check_index
from ..index.parquet import EXPORT
from ..index.store import STORE_NAME
from ..progress import counting_bar, progress_bar
from ._output import echo, json_option, print_json, print_table, short_path

#: The other layout of `export` and `import`.
CLIP = "clip-retrieval"
_index_argument = click.argument("index", type=click.Path(path_type=Path))


@click.command("index")
@click.argument("photos", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default="photos.index",
    show_default=True,
    help="Directory of the index.",
)
@click.option(
    "--model",
    help="An official name, a directory or a Hub id[@revision]; the checkpoint inside the package if not given.",
)
@click.option(
    "--moved-from",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where PHOTOS were when they were indexed: nothing is embedded again.",
)
@click.option(
    "--exclude",
    metavar="PATTERN",
    multiple=True,
    help="Leave out files and folders of this name, or path with a slash: 'Screenshots', '*.gif', 'raw/**'. "
    "Repeatable; the index remembers it, and '' makes it forget.",
)
@click.option(
    "--include-hidden/--no-include-hidden",
    default=None,
    help="Also read files and folders whose names begin with a dot; the index remembers it.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with code 3 if photos or folders could not be read; they are named either way.",
)
@click.option(
    "--gps", is_flag=True, help="For a new index: also record where photos were taken, where their files say so."
)
@click.option("--no-whiten", is_flag=True, help="For a new index: compare the model's features without whitening.")
@click.option(
    "--layer",
    type=click.Choice(["h", "h+stage3"]),
    help="For a new index: h, or h with stage 3 beside it, which finds a little more and takes more space.",
)
@json_option
def index_command(
    photos: Path,
    output: Path,
    model: str | None,
    moved_from: Path | None,
    exclude: tuple[str, ...],
    include_hidden: bool | None,
    strict: bool,
    gps: bool,
    no_whiten: bool,
    layer: str | None,
    as_json: bool,
) -> int:
    """Create an index of the folder PHOTOS, or bring it up to date.

    New and changed photos are embedded, renamed ones recognised, vanished ones marked missing. It may be stopped at
    any moment and run again. Nothing is written below PHOTOS.
    """
    with open_or_create(output, photos, model, gps=gps, no_whiten=no_whiten, layer=layer) as index:
        if moved_from is None:
            _tell_joined(index, photos, output)
        try:
            patterns = [pattern for pattern in exclude if pattern] if exclude else None
            report = sync(index, photos, moved_from, exclude=patterns, include_hidden=include_hidden)
        except KeyboardInterrupt:
            again = shlex.join(["simclr-hub", "index", str(photos), "-o", str(output)])
            echo(f"stopped; {len(index):,} photos are in the index. Go on with: {again}", err=True)
            return 130
    if as_json:
        print_json(dataclasses.asdict(report))
    else:
        print_report(report, output)
    tell_unlisted(report)
    return 3 if strict and (report.failed or report.listing_errors) else 0


def open_or_create(
    path: Path,
    photos: Path,
    model: str | None,
    *,
    gps: bool = False,
    no_whiten: bool = False,
    layer: str | None = None,
) -> SimilarityIndex:
    """Open the index at `path`, or make it, which must not lie in the folder `photos`."""
    if not (path / STORE_NAME).is_file():
        check_output(path, FOLDER, photos=[photos])
        if not os.path.isdir(os.path.expanduser(photos)):  # an index made before that is known would stay, empty
            raise RootUnavailableError(f"{photos}: there is no such folder; no index was made")
        try:
            return SimilarityIndex.create(
                path, model=model, gps=gps, whiten=False if no_whiten else None, layer=layer or "h"
            )
        except SimCLRHubError:
            raise
        except ValueError as e:  # a layer that the model does not have
            raise click.UsageError(str(e)) from e
    index = SimilarityIndex.open(path, model=model)
    status, name = index.status(), path
    wrong = ""
    if gps and not status["gps"]:
        wrong = f"--gps: {name} was made without places; make another index for them"
    elif no_whiten and status["whitening"]:
        wrong = f"--no-whiten: {name} is whitened; `simclr-hub whiten {name} --off` undoes it"
    elif layer and layer != status["made_by"].get("layer"):
        wrong = f"--layer: {name} was made of {status['made_by'].get('layer')}; make another index for {layer}"
    if wrong:
        index.close()
        raise click.UsageError(wrong)
    return index


def _tell_joined(index: SimilarityIndex, photos: Path, output: Path) -> None:
    """Say that other folders are in the index already, before this one is added to it."""
    roots = index.status()["roots"]
    if roots and not any(Path(os.path.realpath(photos)).is_relative_to(root) for root in roots):
        held = ", ".join(map(short_path, roots[:5])) + (f" and {len(roots) - 5:,} more" if len(roots) > 5 else "")
        echo(f"{output} holds {held}; {photos} is added to it. For an index of its own give -o NAME.", err=True)


def sync(index: SimilarityIndex, photos: Path, moved_from: Path | None = None, **settings: Any) -> SyncReport:
    """Synchronise with a progress bar that also counts the failures; `settings` as of `SimilarityIndex.sync`."""
    done = failed = 0
    with progress_bar("indexing", None) as advance:

        def progress(now: int, total: int) -> None:
            nonlocal done
            advance(now - done, total, f"indexing, {failed:,} failed" if failed else "indexing")
            done = now

        def on_failure(_: ImageError) -> None:
            nonlocal failed
            failed += 1

        try:
            return index.sync(photos, moved_from=moved_from, progress=progress, on_failure=on_failure, **settings)
        except ValueError as e:  # a pattern
            raise click.UsageError(str(e)) from e


def print_report(report: SyncReport, index: Path) -> None:
    """Print the counts of a sync in two or three lines."""
    parts = [
        f"{getattr(report, name):,} {name}"
        for name in ("embedded", "unchanged", "renamed", "copied", "failed")
        if getattr(report, name) or name == "embedded"
    ]
    echo(f"{report.found:,} photos found: {', '.join(parts)} ({report.seconds:.1f} s)")
    for reason, n in sorted(report.skipped.items()):
        echo(f"  {n:,} skipped: {reason}")
    if report.missing:
        echo(f"  {report.missing:,} missing, kept: `simclr-hub missing {index}` lists them, `prune` forgets them")
    if report.failed:
        echo(f"  {report.failed:,} could not be read: `simclr-hub failures {index}` says why")


def tell_unlisted(report: SyncReport) -> None:
    """Name the folders that could not be listed, on stderr."""
    for folder in report.listing_errors:
        echo(f"could not be listed, what the index knows below it is kept: {folder}", err=True)


@click.command("status")
@_index_argument
@json_option
def status_command(index: Path, as_json: bool) -> None:
    """Show what INDEX holds and what made it."""
    with SimilarityIndex.open(index) as opened:
        status = opened.status()
    if as_json:
        print_json(status)
    else:
        none = f"none; `simclr-hub whiten {index}` gives better matches and reads no photo"
        for key, value in status.items():
            if key == "whitening" and value is None:
                value = none
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
            text = ", ".join(map(str, text)) if isinstance(text, list) else text
            echo(f"{key:12} {text}")


@click.command("failures")
@_index_argument
@json_option
def failures_command(index: Path, as_json: bool) -> None:
    """List the photos that could not be read, and why."""
    with SimilarityIndex.open(index) as opened:
        failures = opened.failures()
    if as_json:
        print_json([{"path": path, "error": error} for path, error in failures])
    else:
        reasons = [error.removeprefix(f"{describe(path)}: ") for path, error in failures]
        print_table(["photo", "error"], [(short_path(f[0]), why) for f, why in zip(failures, reasons, strict=True)])


@click.command("missing")
@_index_argument
@json_option
def missing_command(index: Path, as_json: bool) -> None:
    """List the photos that were not there at the last sync of their folder; `prune` forgets them."""
    with SimilarityIndex.open(index) as opened:
        paths = opened.missing()
    if as_json:
        print_json(paths)
    else:
        print_table(["photo"], [(short_path(path),) for path in paths])


@click.command("prune")
@_index_argument
@click.option("--force", is_flag=True, help="Even if more than 10 % are missing or the last listing failed.")
@json_option
def prune_command(index: Path, force: bool, as_json: bool) -> None:
    """Forget the photos that are missing. Only the index changes, never a photo."""
    with SimilarityIndex.open(index) as opened:
        forgotten = opened.prune(force=force)
    if as_json:
        print_json({"forgotten": forgotten})
    else:
        echo(f"{forgotten:,} missing photos forgotten")


@click.command("check")
@_index_argument
@click.option("--repair", is_flag=True, help="If it is damaged, save what is sound; the damaged file is kept.")
@click.option("--deep", is_flag=True, help="Also read the photos again and embed a few; resumes where it was stopped.")
@json_option
def check_command(index: Path, repair: bool, deep: bool, as_json: bool) -> int:
    """Check that INDEX is sound: its file, every row's checksum, a vector for every photo.

    Exit code 1 if it is damaged, 3 if it is sound but photos are damaged or could not be read.
    """
    with counting_bar("checking photos") as progress:
        report = check_index(index, repair=repair, deep=deep, progress=progress)
    if as_json:
        print_json({"sound": report.sound} | dataclasses.asdict(report))
    else:
        _print_check(report)
    if not report.sound:
        return 1
    return 3 if report.photos.get("damaged") or report.photos.get("unreadable") else 0


def _print_check(report: CheckReport) -> None:
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


@click.command("export")
@_index_argument
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--layout",
    type=click.Choice(["simclr-hub", CLIP]),
    default="simclr-hub",
    show_default=True,
    help=f"{CLIP}: OUT is a folder of img_emb/*.npy and metadata/*.parquet, for programs that read that.",
)
@json_option
def export_command(index: Path, out: Path, layout: str, as_json: bool) -> None:
    """Write the photos of INDEX with their vectors and what is known of them to OUT, a Parquet file."""
    with SimilarityIndex.open(index) as opened, counting_bar("exporting") as progress:
        if layout == CLIP:
            from ..index.clip_layout import export_clip

            photos = export_clip(index / STORE_NAME, out, progress=progress)
        else:
            check_output(out, EXPORT, photos=opened.status()["roots"])
            photos = opened.export(out, progress=progress)
    _tell_moved(photos, out, as_json)


@click.command("import")
@click.argument("exported", type=click.Path(path_type=Path))
@click.argument("index", type=click.Path(path_type=Path))
@click.option("--model", help=f"For {CLIP}'s layout, which does not tell: what made the vectors, as for `index`.")
@json_option
def import_command(exported: Path, index: Path, model: str | None, as_json: bool) -> None:
    """Make INDEX, a new directory, of EXPORTED.

    EXPORTED is a Parquet file of `export`, the folder of parts of `parts run`, or a folder in clip-retrieval's layout.
    """
    check_output(index, FOLDER)
    clip = (exported / "img_emb").is_dir()
    if clip and model is None:
        raise click.UsageError(f"{exported}: does not tell which model made its vectors; name it: --model")
    if model and not clip:
        raise click.UsageError(
            f"--model: {exported} is not in {CLIP}'s layout (no img_emb in it); all else tells what made its vectors"
        )
    with counting_bar("importing") as progress:
        if clip:
            from ..index.clip_layout import import_clip

            import_clip(exported, index, model, progress=progress)
            opened = SimilarityIndex.open(index)
        elif exported.is_dir():
            from ..parts.to_index import import_parts

            import_parts(exported, index, progress=progress)
            opened = SimilarityIndex.open(index)
        else:
            opened = SimilarityIndex.from_export(exported, index, progress=progress)
    with opened:
        status = opened.status()
    _tell_moved(status["photos"] + status["missing"], index, as_json)


def _tell_moved(photos: int, where: Path, as_json: bool) -> None:
    if as_json:
        print_json({"photos": photos, "output": str(where)})
    else:
        echo(f"{photos:,} photos to {where}")
