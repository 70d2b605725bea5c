"""Publishing: a model directory, or official names, staged with their cards and uploaded as one commit.

One commit is what keeps half a model from ever being seen: weights travel first and are referred to by the commit
alone. That is why this uses `create_commit` and not `upload_folder`, which since huggingface_hub 2 commits in parts
and, when a commit fails, tries again with smaller ones. Repeating it without a change makes no commit.
"""

import hashlib
import json
import re
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from simclr_hub.checkpoints.catalog import entries
from simclr_hub.checkpoints.download import HTTPError
from simclr_hub.checkpoints.official import find, official
from simclr_hub.errors import PublishError
from simclr_hub.loading import DEFAULT
from simclr_hub.whitening import WHITENING_NAMES

from .cards import Card, Result, eval_results, render
from .evaluated_cards import FOLDER, evaluated, is_evaluation
from .official_cards import official_card
from .stage import INDEX, WEIGHTS, WHITENINGS, Source, stage, texts, weights_sha256
from .trained_cards import DEFAULT_DIRECTORY, measured, read_record, recipe_text, trained_card

ATTEMPTS = 3


@dataclass(frozen=True)
class Published:
    """What a publication did.

    Args:
        repo_id: "org/name".
        commit: the commit that now holds the model.
        changed: False if it was there already and no commit was made.
        url: where people see it.
    """

    repo_id: str
    commit: str
    changed: bool
    url: str


def upload(folder: Path, repo_id: str, *, private: bool = False, revision: str | None = None) -> Published:
    """Make `repo_id` hold the staged `folder`: created if it is not there, one commit if anything differs.

    Weights of another number of shards that it held are deleted in the same commit; other files of it stay.

    Args:
        folder: what `stage` made.
        repo_id: "org/name".
        private: the repository must be private; a new one is made so.
        revision: a branch, made from the main one if it is not there.

    Raises:
        PublishError: the Hub refused, could not be reached, or `private` was asked of a public repository. What was
            there before is untouched.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return _upload(HfApi(library_name="simclr_hub"), folder, repo_id, private, revision)
        except (HTTPError, OSError, ValueError, RuntimeError) as e:
            # An upload's error is wrapped in a RuntimeError; OSError and ValueError are of a token or a name that is
            # none, or a card that the Hub refuses.
            error = e.__cause__ if isinstance(e, RuntimeError) and e.__cause__ else e
            # The client itself repeats only some of its requests. What was uploaded is not sent again, and a commit
            # whose answer was lost is found to be there.
            if attempt == ATTEMPTS or not _passing(error):
                raise PublishError(f"{repo_id}: {' '.join(str(error).split()) or type(error).__name__}") from e
            time.sleep(2**attempt)
    raise AssertionError("unreachable")


def _passing(error: BaseException) -> bool:
    """Tell whether another attempt may fare better: the network, a busy or failing server, someone else's commit."""
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 412, 429, 500, 502, 503, 504)
    return isinstance(error, HTTPError)


def _upload(api: HfApi, folder: Path, repo_id: str, private: bool, revision: str | None) -> Published:
    url = api.create_repo(repo_id, private=True if private else None, exist_ok=True)
    if private and not api.model_info(repo_id).private:
        raise PublishError(f"{repo_id} is public already; make it private on the Hub first, or choose another name")
    if revision:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    before = api.model_info(repo_id, revision=revision)
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    there = {sibling.rfilename for sibling in before.siblings or ()}
    stale = sorted(name for name in there - names if WEIGHTS.fullmatch(name) or name in (INDEX, *WHITENINGS))
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationDelete(name) for name in stale),
            *(CommitOperationAdd(name, folder / name) for name in sorted(names)),
        ],
        commit_message="Publish with simclr_hub",
        revision=revision,
        parent_commit=before.sha,
    )
    return Published(repo_id, commit.oid, commit.oid != before.sha, str(url))


@dataclass(frozen=True)
class Outcome:
    """What became of one of many.

    Args:
        name: of the catalog.
        repo_id: "org/name".
        state: "published", "unchanged" or "failed".
        seconds: that it took.
        detail: the commit, or the reason.
    """

    name: str
    repo_id: str
    state: str
    seconds: float
    detail: str


def publish(
    source: str | Path, repo_id: str, *, private: bool = False, revision: str | None = None, **about: Any
) -> Published:
    """Stage `source` and upload it.

    Args:
        source: as in `stage_model`.
        repo_id: "org/name".
        private: as in `upload`.
        revision: as in `upload`.
        **about: `results`, `recipe` and `licence` of `stage_model`.

    Raises:
        PublishError: it cannot be staged or uploaded.
        CheckpointError: `source` is no model.
    """
    with tempfile.TemporaryDirectory(prefix="simclr-hub-") as folder:
        stage_model(source, repo_id, Path(folder), link=True, **about)
        return upload(Path(folder), repo_id, private=private, revision=revision)


def stage_model(
    source: str | Path,
    repo_id: str,
    out: Path,
    *,
    results: Path | None = None,
    recipe: str | None = None,
    licence: str = "apache-2.0",
    link: bool = False,
) -> None:
    """Fill the empty directory `out` with what `upload` puts into `repo_id`.

    Args:
        source: a directory of `save_pretrained` (`RUN/final`), "default", or an official name.
        repo_id: "org/name", which the card names.
        out: an existing, empty directory.
        results: a JSON file of measured numbers: what `evaluate` wrote, which is added to what a directory's own
            `results.json` says; or one as `trained_card` takes it, in its place.
        recipe: a recipe's name or path for the card of a directory; `recipe.yaml` in it if not given.
        licence: of a directory's weights, by its identifier on the Hub.
        link: link to the weights instead of copying them.

    Raises:
        PublishError: the name is none, or something that must not leave was found.
        CheckpointError: `source` is no model.
    """
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo_id):
        raise PublishError(f"{repo_id!r} is no name for a repository: give org/name")
    directory, official_name = _find(source)
    model = Source.open(directory)
    added: tuple[Result, ...] = ()
    if results and is_evaluation(found := read_record(results)):
        added, results = evaluated(found, directory, results), None
    extra: dict[str, str] = {}
    if official_name:
        extra["source.json"] = (directory / "source.json").read_text(encoding="utf-8")
        card = official_card(official_name, repo_id, json.loads(extra["source.json"]))
        numbers = measured(read_record(results)) if results else ()
        card = replace(card, config=model.config, processor=model.processor, measured=numbers)
    else:
        record = read_record(results or directory / "results.json")
        if "weights" in record and record["weights"] != weights_sha256(directory):
            raise PublishError(f"{results or directory / 'results.json'} is of other weights; measure these")
        if "recipe" in record and not re.fullmatch(r"[\w-]+", str(record["recipe"])):  # not any file of this machine
            raise PublishError(f"{results or directory / 'results.json'}: recipe must be the name of a recipe here")
        own = directory / "recipe.yaml"
        chosen = recipe or record.get("recipe") or (str(own) if own.is_file() else None)
        classes = (model.config.num_labels or 0) if model.classifier else 0
        text = recipe_text(chosen) if chosen else ""
        card = trained_card(repo_id, model.config, classes, record, text, licence, model.processor)
    card = replace(card, measured=(*card.measured, *added), whitening=model.whitenings.get(WHITENING_NAMES["h"]))
    stage(model, out, render(card), extra=extra | _eval_results(card), licence=card.licence, link=link)


def _find(source: str | Path) -> tuple[Path, str | None]:
    """Find the directory of what is to be published, and the official name if it is one."""
    if source == DEFAULT:
        return DEFAULT_DIRECTORY, None
    if Path(source).is_dir() or "/" in str(source):
        return Path(source), None
    return official(str(source)), find(str(source))[0].name


def publish_official(names: Iterable[str], org: str, *, private: bool = False) -> Iterator[Outcome]:
    """Download, convert and publish official checkpoints one after another; one outcome each, also of failures.

    What is on the Hub already, of the same source and with the same card and code, is not downloaded again.

    Args:
        names: of the catalog, or "all".
        org: where to: each becomes "org/name".
        private: as in `upload`.

    Raises:
        CheckpointError: a name is none; nothing was published.
    """
    chosen = list(names)
    for name in entries() if "all" in chosen else [find(name)[0].name for name in chosen]:
        start = time.monotonic()
        repo_id = f"{org}/{name}"
        try:
            done = _there(name, repo_id, private) or publish(name, repo_id, private=private)
            state, detail = "published" if done.changed else "unchanged", done.commit
        except Exception as e:  # whatever it is, it must not stop the rest; its row says it
            state, detail = "failed", " ".join(str(e).split()) or type(e).__name__
        yield Outcome(name, repo_id, state, round(time.monotonic() - start, 1), detail)


def _there(name: str, repo_id: str, private: bool) -> Published | None:
    """Find an equal publication that is there already, without the weights; None if `publish` has to look closer."""
    try:
        info = HfApi(library_name="simclr_hub").model_info(repo_id, files_metadata=True)
        origin = json.loads(Path(hf_hub_download(repo_id, "source.json", revision=info.sha)).read_text("utf-8"))
        card = official_card(name, repo_id, origin)
        wanted = texts(render(card)) | _eval_results(card)
    except (OSError, ValueError, LookupError, TypeError, PublishError, HTTPError):
        return None
    there = {sibling.rfilename: sibling.blob_id for sibling in info.siblings or ()}
    same = all(there.get(path) == _git_oid(text) for path, text in wanted.items())
    if not same or not any(WEIGHTS.fullmatch(path) for path in there) or (private and not info.private):
        return None
    return Published(repo_id, str(info.sha), False, f"{constants.ENDPOINT}/{repo_id}")


def _git_oid(text: str) -> str:
    data = text.encode()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _eval_results(card: Card) -> dict[str, str]:
    return eval_results(card, benchmarks({result.dataset_id for result in card.results} - {FOLDER}))


def benchmarks(dataset_ids: Iterable[str]) -> dict[str, str]:
    """Map a data set's id to its task, for those that an `eval.yaml` makes benchmarks of the Hub."""
    tasks = {}
    for dataset_id in dataset_ids:
        try:
            path = hf_hub_download(dataset_id, "eval.yaml", repo_type="dataset")
            tasks[dataset_id] = str(yaml.safe_load(Path(path).read_text(encoding="utf-8"))["tasks"][0]["id"])
        except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError, HTTPError):
            pass  # no benchmark, or nobody to ask
    return tasks
