"""hub_weights(): weights on the Hub that have none of our config, recognised and converted once, then from the cache.

    HF_HOME/assets/simclr_hub/hub/ORG--NAME/
        .lock                       held while one process downloads and converts
        0a1b2c3d4e5f-6a7b8c9d/      the model, and source.json: where it is from; named by commit and file

What is downloaded goes through huggingface_hub's cache, as all that is from the Hub; of a repository it is one file.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
from filelock import FileLock
from huggingface_hub import cached_assets_path

from .._files import new_directory
from ..errors import CheckpointError
from . import SUFFIXES
from .catalog import OTHERS
from .download import HTTPError, snapshot

if TYPE_CHECKING:  # what is in the cache is found without torch
    from ..configuration_simclr import SimCLRConfig

#: Where converted models lie in the cache; another name once `convert` would write them otherwise.
_NAMESPACE = "hub"
#: Bytes of a file that is downloaded: the largest released model's weights with two states of an optimizer take 9.5e9.
LARGEST = 16 << 30
_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?:@(refs/[\w.-]+/[\w.-]+|[\w.-]+))?((?:/[^/\\\0]+)*)")
_TOLD = 8  # names of files in a message


@dataclass(frozen=True)
class Source:
    """Tell where converted weights are from, `source.json` beside them.

    Attributes:
        repo: "org/name".
        revision: that was asked for; "" for the main branch.
        commit: that it was then.
        file: its path in the repository.
        sha256: of the file.
        size: of the file, in bytes.
        notes: what the layout implies, see docs/convert.md.
    """

    repo: str
    revision: str
    commit: str
    file: str
    sha256: str
    size: int
    notes: list[str]


def parse(name: str) -> tuple[str, str, str] | None:
    """Take "org/name", "org/name@revision" or "org/name@revision/path/of/file.pth" apart; None if it is none of these.

    Returns:
        Repository, revision and file, the last two "" if not given. What follows a revision is a file only with a
        suffix of weights, since branches may have slashes.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    repo, revision, file = found[1], found[2] or "", found[3].lstrip("/")
    if file and not file.endswith(SUFFIXES):
        return (repo, f"{revision}/{file}", "") if revision and re.fullmatch(r"[\w./-]+", file) else None
    return repo, revision, file


def is_known(repo: str) -> bool:
    """Tell whether a repository is one of `OTHERS`."""
    return any(f"{known.name}/".startswith(f"{repo}/") for known in OTHERS)


def hub_weights(name: str) -> Path:
    """Return a directory for any `from_pretrained`, of weights on the Hub; download and convert them on first use.

    Args:
        name: "org/name", with "@revision" or "/path/of/file.pth" behind it, or both.

    Raises:
        CheckpointError: no such repository, none or several files of weights in it, or not of a known layout.
    """
    parsed = parse(name)
    if parsed is None:
        raise CheckpointError(f"{name}: not a Hub id such as org/name, org/name@revision or org/name/file.pth")
    repo, revision, asked = parsed
    home = cached_assets_path("simclr_hub", _NAMESPACE, repo.replace("/", "--"))
    try:
        commit, file, size = _remote(repo, revision, asked)
    except CheckpointError as e:
        if isinstance(e.__cause__, (OSError, HTTPError)) and (there := _converted(home, revision, asked)):
            return there  # without a network, what was converted last
        raise
    place = home / f"{commit[:12]}-{hashlib.sha256(file.encode()).hexdigest()[:8]}"
    try:
        if not place.is_dir():
            with FileLock(home / ".lock"):
                if not place.is_dir():  # another process may have done it
                    with new_directory(place) as directory:
                        _convert(repo, revision, commit, file, size, directory)
    except OSError as e:
        raise CheckpointError(f"{name}: {e}; make room, or set HF_HOME to a folder for the cache") from e
    return place


def convert_hub(
    name: str, out: str | Path, *, on_note: Callable[[str], None] = lambda note: None, **options: Any
) -> "SimCLRConfig":
    """Write weights on the Hub to `out`, otherwise than the cache has them if an option says so.

    Args:
        name: as for `hub_weights`.
        out: as for `convert`.
        on_note: as for `convert`.
        **options: as for `convert`.

    Raises:
        CheckpointError: as `hub_weights` and `convert`.
        FileExistsError: something is at `out`.
    """
    from .convert import convert

    repo, revision, asked = parse(name) or ("", "", "")
    commit, file, _ = _remote(repo, revision, asked)
    return convert(_downloaded(repo, commit, file), out, on_note=on_note, **options)


def lasting_name(directory: Path) -> str:
    """Return the lasting name of a directory that `hub_weights` returned: "org/name@commit/file"."""
    source = json.loads((directory / "source.json").read_text(encoding="utf-8"))
    return f"{source['repo']}@{source['commit']}/{source['file']}"


def choose(repo: str, files: Mapping[str, int | None], asked: str = "") -> str:
    """Choose the file of weights among a repository's.

    Args:
        repo: "org/name".
        files: path -> bytes.
        asked: the one that was asked for, or "".

    Raises:
        CheckpointError: there is none, or several and none was asked for or is known to be meant; names them.
    """
    candidates = sorted(file for file in files if file.endswith(SUFFIXES))
    told = ", ".join(candidates[:_TOLD]) + (f" and {len(candidates) - _TOLD:,} more" if candidates[_TOLD:] else "")
    meant = next((known.file for known in OTHERS if known.name == repo), "")
    if asked:
        if asked in candidates:
            return asked
        raise CheckpointError(f"{repo}: no file {asked} in it; of weights there are {told or 'none'}")
    if meant in candidates:
        return meant
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        there = ", ".join(sorted(files)[:_TOLD]) or "nothing"
        raise CheckpointError(f"{repo}: no config.json and no file of weights ({', '.join(SUFFIXES)}) but {there}")
    raise CheckpointError(f"{repo}: several files of weights, {told}; say which, such as {repo}/{candidates[0]}")


def _remote(repo: str, revision: str, asked: str) -> tuple[str, str, int]:
    """Ask the Hub for the commit, and choose the file: commit, path, bytes."""
    name = f"{repo}@{revision}" if revision else repo
    try:
        info = huggingface_hub.model_info(repo, revision=revision or None, files_metadata=True)
        files = {one.rfilename: one.size for one in info.siblings or ()}
        commit = str(info.sha)
    except (OSError, ValueError, LookupError, TypeError, HTTPError) as e:  # of a damaged answer, too
        raise CheckpointError(f"{name}: from the Hub: {' '.join(str(e).split()) or type(e).__name__}") from e
    file = choose(repo, files, asked)
    size = files[file]
    if not re.fullmatch(r"[0-9a-f]{40}", commit) or not isinstance(size, int):
        raise CheckpointError(f"{name}: the Hub's answer names no commit, or no size of {file}")
    if ".." in file.split("/") or file.startswith("/") or "\\" in file:
        raise CheckpointError(f"{name}: {file!r} is no path in a repository")
    if size > LARGEST:
        raise CheckpointError(f"{name}: {file} has {size:,} bytes, more than the {LARGEST:,} that are downloaded")
    return commit, file, size


def _downloaded(repo: str, commit: str, file: str) -> Path:
    """Download one file, compared with the hash that is its name in huggingface_hub's cache."""
    path = snapshot(repo, commit, [escape(file)]) / file
    if not path.is_file():
        raise CheckpointError(f"{repo}@{commit}: {file} is named in the list of files, but does not come")
    return path


def _convert(repo: str, revision: str, commit: str, file: str, size: int, directory: Path) -> None:
    from .convert import convert

    path = _downloaded(repo, commit, file)
    if path.stat().st_size != size:
        raise CheckpointError(f"{repo}@{commit}: {file} has {path.stat().st_size:,} bytes, not {size:,} as announced")
    notes: list[str] = []
    try:
        convert(path, directory, on_note=notes.append)
    except CheckpointError as e:  # by its name, not by its place in the cache
        raise CheckpointError(str(e).replace(str(path), f"{repo}@{commit[:12]}/{file}")) from e
    with path.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    source = Source(repo, revision, commit, file, digest, size, notes)
    (directory / "source.json").write_text(json.dumps(asdict(source), indent=2) + "\n", encoding="utf-8")


def _converted(home: Path, revision: str, asked: str) -> Path | None:
    """Find the newest conversion of a revision, and of a file if one was asked for."""
    found = []
    for path in home.glob("*/source.json"):
        source = json.loads(path.read_text(encoding="utf-8"))
        if revision in (source["revision"], source["commit"]) and asked in ("", source["file"]):
            found.append((path.stat().st_mtime, path.parent))
    return max(found)[1] if found else None
