"""`simclr-hub evaluate`: how good a model's features are; loads `simclr_hub.training` only here."""

import re

import click

from ..errors import MissingExtraError
from ._output import echo, json_option, print_json, print_table


@click.command("evaluate")
@click.argument(
    "models_and_settings", nargs=-1, required=True, metavar="MODEL [MODEL ...] data=FOLDER [key=value ...]"
)
@json_option
def evaluate_command(models_and_settings: tuple[str, ...], as_json: bool) -> None:
    """Measure how good the features of each MODEL are on labelled images.

    MODEL is "default", an official name, a directory or a Hub id. data is a folder of class folders or of parquet
    files, or a data set's id on the Hub.

    \b
    simclr-hub evaluate default data=FOLDER
    simclr-hub evaluate default runs/photos/final data=FOLDER labels=10%
    simclr-hub evaluate default data=FOLDER 'layers=[h,g1,z]' 'protocols=[knn,retrieval]'

    Results are written to runs/evaluate, or to output_dir: numbers, charts and a page of mistaken photos.
    """  # noqa: D301 (click's mark of lines that are not to be filled)
    settings = tuple(text for text in models_and_settings if re.match(r"[\w.]+=", text))
    models = tuple(dict.fromkeys(text for text in models_and_settings if text not in settings))
    if not models:
        raise click.UsageError('no MODEL; give "default", an official name, a directory or a Hub id')
    try:
        from ..training.evaluate import corruption_table, evaluate, read_settings, table
    except ImportError as e:
        raise MissingExtraError(e.name or "accelerate", "train") from e
    results = evaluate(models, settings)
    if as_json:
        print_json(results)
        return
    print_table(*table(results))
    if results["corruptions"]:
        print_table(*corruption_table(results))
    output = read_settings(settings)["output_dir"]
    echo(f"{results['seconds']:.0f} s; results.json, charts and mistakes.html in {output}")
