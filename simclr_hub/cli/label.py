"""`label` and `classify`: photos into classes, by a few examples or by a trained classifier."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from .._files import INDEX_FILE, check_output
from ..label_files import LABELS, check_writer, write_labels
from ..labels import Label, LeftOut
from ..pages import PAGE, write_labelled
from ..progress import counting_bar, progress_bar
from ._output import echo, force_option, json_option, print_json, print_table

_output_option = click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write a row for each photo to a .csv or .parquet file."
)
_html_option = click.option(
    "--html", type=click.Path(path_type=Path, dir_okay=False), help="Also write a page to check the labels on."
)
_strict_option = click.option(
    "--strict", is_flag=True, help="Exit with code 3 if photos could not be read; they are named either way."
)


@click.command("label")
@click.argument("index", type=click.Path(path_type=Path))
@click.argument("examples", type=click.Path())
@_output_option
@_html_option
@_strict_option
@force_option
@json_option
def label_command(
    index: Path, examples: str, output: Path | None, html: Path | None, strict: bool, force: bool, as_json: bool
) -> int:
    """Label the photos of INDEX by EXAMPLES, a folder with a folder of a few photos for each class.

    Five of each class are a good beginning. What is called sure is estimated by leaving each example out. No photo is
    moved.
    """
    from ..index import SimilarityIndex

    with SimilarityIndex.open(index) as opened:
        _check(output, html, force, [*opened.status()["roots"], examples])
        with counting_bar("labelling") as progress:
            found = opened.label(examples, progress=progress)
    note = f"By {found.examples:,} examples. {_tell(found.left_out)}"
    _write(found.labels, found.classes, output, html, note, force)
    if as_json:
        told = {"classes": found.classes, "sure_above": found.sure_above, "examples": found.examples}
        told |= {"left_out": dataclasses.asdict(found.left_out)}
        _print_json(told, found.labels, found.unreadable)
    else:
        _print(found.labels, found.classes, found.unreadable)
        echo(note)
    _say_written(output, html, as_json)
    return 3 if strict and found.unreadable else 0


@click.command("classify")
@click.argument("model")
@click.argument("photos", nargs=-1, required=True, type=click.Path())
@_output_option
@_html_option
@click.option("--batch-size", type=click.IntRange(min=1), help="Images a forward pass.")
@click.option("--device", help="cpu, cuda, mps, ...")
@_strict_option
@force_option
@json_option
def classify_command(
    model: str,
    photos: tuple[str, ...],
    output: Path | None,
    html: Path | None,
    batch_size: int | None,
    device: str | None,
    strict: bool,
    force: bool,
    as_json: bool,
) -> int:
    """Classify PHOTOS (files, folders, zip and tar files, URLs, or one index) with MODEL.

    MODEL is a classifier: a directory of `finetune` or `distill`, an official name or a Hub id. Of an index the
    vectors that it holds are used; no photo is read.
    """
    from ..classify import Classifier, source_name
    from ..embedder import Failure
    from ..errors import SimCLRHubError
    from ..sources import every_nth

    of_index = [photo for photo in photos if (Path(photo) / INDEX_FILE).is_file()]
    if of_index and len(photos) > 1:
        raise click.UsageError(f"{of_index[0]} is an index: classify it alone")
    _check(output, html, force, photos)
    sources, total = ((), 0) if of_index else every_nth(photos, 1, 1)
    try:
        classifier = Classifier(model, batch_size=batch_size, device=device)
    except SimCLRHubError:
        raise
    except (ValueError, RuntimeError) as e:  # a device that there is not
        raise click.UsageError(str(e)) from e
    labels: list[Label] = []
    failures: list[tuple[str, str]] = []
    if of_index:
        labels = classifier.label_index(of_index[0])
    else:
        with progress_bar("classifying", total) as advance, closing(classifier.stream(sources)) as stream:
            for item in stream:
                advance(1)
                if isinstance(item, Failure):
                    failures.append((source_name(item.source), str(item.error)))
                else:
                    labels.append(item)
    note = f"By {classifier.name}."
    if classifier.sure_above is None:
        note += " Above which confidence its labels are sure was not measured."
    _write(labels, classifier.classes, output, html, note, force)
    if as_json:
        _print_json({"classes": classifier.classes, "sure_above": classifier.sure_above}, labels, failures)
    else:
        _print(labels, classifier.classes, failures)
        echo(note)
    _say_written(output, html, as_json)
    return 3 if strict and failures else 0


def _check(output: Path | None, html: Path | None, force: bool, photos: Sequence[str]) -> None:
    if output:
        check_output(output, LABELS, force=force, photos=photos)
        check_writer(output)
    if html:
        check_output(html, PAGE, force=force, photos=photos)


def _write(
    labels: Sequence[Label], classes: Sequence[str], output: Path | None, html: Path | None, note: str, force: bool
) -> None:
    if output:
        write_labels(output, labels, force=force)
    if html:
        write_labelled(html, labels, classes, title="Labels to check", note=note, force=force)


def _say_written(output: Path | None, html: Path | None, as_json: bool) -> None:
    for path in (output, html):
        if path and not as_json:
            echo(f"wrote {path}")


def _print(labels: Sequence[Label], classes: Sequence[str], failures: Iterable[tuple[str, str]]) -> None:
    """Print how many of each class there are, sure and unsure; a classifier's empty classes are left out."""
    for _, why in failures:
        echo(f"left out: {why}", err=True)
    counts = Counter((label.label, "example" if label.example else label.unsure) for label in labels)
    total: Counter[Any] = Counter()
    rows = []
    for name in classes:
        cells = [counts[name, kind] for kind in ("example", False, True, None)]
        if any(cells):
            rows.append([name, *cells])
            total.update(dict(enumerate(cells)))
    shown = [0, *(i + 1 for i in range(4) if total[i])]
    headers = ["class", "examples", "sure", "unsure", "photos"]
    print_table([headers[i] for i in shown], [[row[i] for i in shown] for row in rows])
    told = ", ".join(f"{total[i]:,} {headers[i + 1]}" for i in (1, 2) if total[i])
    number = len(labels) - total[0]
    echo(f"{number:,} photo{'' if number == 1 else 's'} labelled" + (f": {told}" if told else ""))


def _tell(left_out: LeftOut) -> str:
    """Tell what leaving examples out says, in a sentence or two."""
    if not left_out.examples:
        return (
            "Every class has one: how right the labels are cannot be estimated, so all are unsure. Give two or more."
        )
    right = f"{left_out.right:,} of {left_out.examples:,} were labelled right by the others"
    if not left_out.sure:
        return f"{right}: too few, or too few examples, to call any label sure. Give more, and look at all."
    of_sure = f"{left_out.sure_right:,} of the {left_out.sure:,} that would be sure"
    return f"Left out one by one, {right}, {of_sure}; photos of no class here are not counted in that."


def _print_json(told: dict[str, Any], labels: Sequence[Label], failures: Iterable[tuple[str, str]]) -> None:
    failed = [{"path": path, "error": why} for path, why in failures]
    print_json(told | {"labels": [dataclasses.asdict(label) for label in labels], "failed": failed})
