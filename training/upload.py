"""upload(): a staged folder to a repository on the Hub, as one commit.

One commit is what keeps half a model from ever being seen: weights travel first and are referred to by the commit
alone. That is why this uses `create_commit` and not `upload_folder`, which since huggingface_hub 2 commits in parts
and, when a commit fails, tries again with smaller ones. Repeating it without a change makes no commit.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError

from simclr_hub.errors import PublishError

from .stage import INDEX, WEIGHTS, WHITENINGS

ATTEMPTS = 3
#: The base of what huggingface_hub and its HTTP client raise: httpx's before version 2, httpx2's since.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


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
    """Whether another attempt may fare better: the network, a busy or failing server, someone else's commit."""
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
