"""`simclr-hub publish`: a model, or the official ones, to the Hub."""

from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import click

from .._files import new_directory
from ..errors import MissingExtraError
from ._output import echo, json_option, print_json, print_table


@click.command("publish")
@click.argument("source", required=False)
@click.argument("repo", required=False, metavar="[ORG/NAME]")
@click.option("--private", is_flag=True, help="Make the repository private; refused if it is public already.")
@click.option("--revision", help="A branch, made if it is not there.")
@click.option("--stage", type=click.Path(path_type=Path), help="Write the folder here and upload nothing.")
@click.option(
    "--results",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Numbers for the card: results.json of `simclr-hub evaluate`, or JSON of the same form as a run's.",
)
@click.option("--recipe", help="The recipe for the card, a name or a .yaml file.")
@click.option("--license", "licence", default="apache-2.0", show_default=True, help="The weights' licence.")
@click.option("--official", multiple=True, help="An official name, or all; repeatable.")
@click.option("--org", help="With --official: where to.")
@json_option
def publish_command(
    source: str | None,
    repo: str | None,
    private: bool,
    revision: str | None,
    stage: Path | None,
    results: Path | None,
    recipe: str | None,
    licence: str,
    official: tuple[str, ...],
    org: str | None,
    as_json: bool,
) -> int:
    """Put a model on the Hub, with its card and the code that transformers needs, as one commit.

    SOURCE is a directory of save_pretrained, such as runs/NAME/final, or an official name. Log in first with
    `hf auth login`. Look first with --stage OUT.

    \b
    simclr-hub publish runs/photos/final my-org/photos --private
    simclr-hub publish --official all --org my-org
    """  # noqa: D301 (click's mark of lines that are not to be filled)
    if official and org and not (source or repo or stage):
        return _official(official, org, private, as_json)
    if not (source and repo) or official or org:
        raise click.UsageError("give SOURCE ORG/NAME, or --official NAME --org ORG")
    publishing = _publishing()
    about = {"results": results, "recipe": recipe, "licence": licence}
    if stage:
        with new_directory(stage) as folder:
            publishing.stage_model(source, repo, folder, **about)
        names = sorted(path.relative_to(stage).as_posix() for path in stage.rglob("*") if path.is_file())
        if as_json:
            print_json({"staged": str(stage), "files": names})
        else:
            echo(f"{stage}: {', '.join(names)}; nothing was uploaded")
        return 0
    done = publishing.publish(source, repo, private=private, revision=revision, **about)
    if as_json:
        print_json(asdict(done))
    else:
        echo(f"{done.url}: {'published as' if done.changed else 'is there already, unchanged, as'} {done.commit}")
    return 0


def _official(names: tuple[str, ...], org: str, private: bool, as_json: bool) -> int:
    outcomes = []
    for outcome in _publishing().publish_official(names, org, private=private):
        outcomes.append(outcome)
        echo(f"{outcome.name}: {outcome.state}", err=True)
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    else:
        print_table(["model", "repository", "state", "seconds", "detail"], map(astuple, outcomes))
    return int(any(outcome.state == "failed" for outcome in outcomes))


def _publishing() -> Any:
    try:
        from ..training import publish
    except ImportError as e:
        raise MissingExtraError(e.name or "pyyaml", "train") from e
    return publish
