"""snapshot(): a model of the Hub by its id, in huggingface_hub's cache, with what arrived compared with its checksum.

huggingface_hub compares sizes alone. Its cache names each file by a hash of the content, so that a bit that changed on
the way can be found here; such a file is dropped and downloaded once more.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from ..errors import CheckpointError

#: The base of what huggingface_hub's HTTP client raises: httpx's before version 2, httpx2's since.
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


def snapshot(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The folder of a model's files, whose name is the commit.

    Args:
        repo_id: "org/name".
        revision: a branch, tag or commit; the main branch if not given.
        patterns: which files.

    Raises:
        CheckpointError: there is none, the Hub cannot be reached, or what arrives is damaged time and again.
    """
    name = f"{repo_id}@{revision}" if revision else repo_id
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}" / "blobs"
    for _ in range(2):
        before = {blob.name for blob in blobs.glob("*")}
        try:
            folder = Path(huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
        except (OSError, ValueError, _HTTPError) as e:
            raise CheckpointError(
                f"{name}: no such directory here, and from the Hub: {' '.join(str(e).split())}"
            ) from e
        damaged = [file for file in folder.rglob("*") if file.is_symlink() and _damaged(file.resolve(), before)]
        if not damaged:
            return folder
        for file in damaged:
            file.resolve().unlink()
            file.unlink()
    names = ", ".join(sorted(file.name for file in damaged))
    raise CheckpointError(f"{name}: {names} arrived damaged twice and was dropped; try again later")


def _damaged(blob: Path, before: set[str]) -> bool:
    """Whether a file that was not there before differs from the hash that is its name; git's for small ones."""
    if blob.name in before or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return False
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
    with blob.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest() != blob.name
