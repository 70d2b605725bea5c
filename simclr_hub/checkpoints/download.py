"""Downloads: one file over HTTP, resumed where it was cut, or a model of the Hub; checked before it has its name."""

import base64
import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants, get_session
from huggingface_hub.errors import HfHubHTTPError

from .._files import fsync_directory, fsync_file
from ..errors import CheckpointError
from ..progress import progress_bar

#: How many attempts in a row may bring nothing new, and the longest wait before another, in seconds.
ATTEMPTS, LONGEST_WAIT = 5, 300.0
_CHUNK = 1 << 20
_log = logging.getLogger(__name__)
#: The base of what huggingface_hub's HTTP client raises: httpx's before version 2, httpx2's since.
HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


class _PassingError(Exception):
    """Another attempt may fare better."""

    def __init__(self, reason: str, wait: float = 0):
        super().__init__(reason)
        self.wait = wait


def download(url: str, path: Path) -> None:
    """Write what is at `url` to `path`, going on from what an earlier call left of it.

    The size is compared with the one that the server tells, the content with the checksums that Google's buckets tell.

    Args:
        url: http or https.
        path: what is there is replaced; `PATH.*.partial` beside it are this function's.

    Raises:
        CheckpointError: it is not there, or even after several attempts cut, damaged or out of reach.
        OfflineModeIsEnabled: HF_HUB_OFFLINE is set.
        OSError: it cannot be written.
    """
    failures = reached = shown = 0
    with progress_bar(path.name, None, in_bytes=True) as advance:

        def show(position: int, size: int | None) -> None:
            nonlocal shown
            advance(position - shown, size)
            shown = position

        while True:
            wait = 0.0
            try:
                return _attempt(url, path, show)
            except HTTPError as e:
                reason = str(e) or type(e).__name__
            except _PassingError as e:
                reason, wait = str(e), e.wait
            held = _held(path)
            arrived = held.stat().st_size if held else 0
            failures = 1 if arrived > reached else failures + 1
            reached = max(reached, arrived)
            if failures == ATTEMPTS:
                raise CheckpointError(
                    f"{url}: {reason}, after {ATTEMPTS} attempts; try again later (what arrived is kept), or get "
                    "the files by other means and run: simclr-hub convert FOLDER OUT"
                )
            wait = min(max(wait, 2.0 ** (failures - 1)), LONGEST_WAIT)
            _log.warning("%s: %s; trying again in %.0f s", url, reason, wait)
            time.sleep(wait)


def _attempt(url: str, path: Path, show: Callable[[int, int | None], None]) -> None:
    held = _held(path)
    # The last byte is asked for again, so that a file that is whole but could not be renamed any more is answered like
    # any other, with its size and checksums.
    start = max(held.stat().st_size - 1, 0) if held else 0
    # Not compressed on the way: sizes and checksums are those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        told, etag = response.headers, response.headers.get("etag", "")
        # What is held is of one state of the remote file, told by its name.
        partial = path.with_name(f"{path.name}.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.partial")
        if response.status_code in (206, 416):
            fits = told.get("content-range", "").startswith(f"bytes {start}-")
            if response.status_code == 416 or not (fits and etag and partial == held):
                if held:
                    held.unlink()
                raise _PassingError("it has changed since its first part arrived")
        elif response.status_code == 200:  # all of it, whether that was asked for or not
            start = 0
            if held:
                held.unlink()
        else:
            raise _refusal(url, response)
        size = _size(told)
        if size and shutil.disk_usage(path.parent).free < size - start:
            raise OSError(errno.ENOSPC, f"{size - start:,} bytes are needed", str(partial))
        with open(partial, "r+b" if start else "wb") as file:
            file.seek(start)
            for chunk in response.iter_raw():  # as it comes: what a cut leaves of a larger piece would be lost
                file.write(chunk)
                show(file.tell(), size)
    arrived = partial.stat().st_size
    if size is not None and arrived < size:
        raise _PassingError(f"cut after {arrived:,} of {size:,} bytes")
    if not _as_told(partial, told):
        partial.unlink()
        raise _PassingError("damaged on the way")
    fsync_file(partial)
    os.replace(partial, path)
    fsync_directory(path.parent)


def _held(path: Path) -> Path | None:
    return next(path.parent.glob(f"{path.name}.*.partial"), None)


def _refusal(url: str, response: Any) -> Exception:
    """Turn a status other than success into an error: one to be tried again, or a final one."""
    answer = f"the server answers {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in (408, 429) or response.status_code >= 500:
        wait = response.headers.get("retry-after", "")
        return _PassingError(answer, float(wait) if re.fullmatch(r"\d{1,6}", wait) else 0)
    return CheckpointError(f"{url}: {answer}; if you have the files, run: simclr-hub convert FOLDER OUT")


def _size(told: Mapping[str, str]) -> int | None:
    """Return the size of the whole file in bytes; None if the server does not tell it."""
    length = told.get("content-range", "").rpartition("/")[2] or told.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _as_told(path: Path, told: Mapping[str, str]) -> bool:
    """Compare the file with the checksums that x-goog-hash gives, if any."""
    import google_crc32c  # needed for official checkpoints only: training machines do without

    expected = dict(re.findall(r"(crc32c|md5)=([\w+/]+=*)", told.get("x-goog-hash", "")))
    crc, md5 = 0, hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while expected and (chunk := file.read(_CHUNK)):
            crc = google_crc32c.extend(crc, chunk)
            md5.update(chunk)
    found = {"crc32c": crc.to_bytes(4, "big"), "md5": md5.digest()}
    return all(base64.b64encode(found[kind]).decode() == value for kind, value in expected.items())


def snapshot(repo_id: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """Download a model of the Hub and return the folder of its files, whose name is the commit.

    Args:
        repo_id: "org/name".
        revision: a branch, tag or commit; the main branch if not given.
        patterns: which files.

    Raises:
        CheckpointError: there is none, the Hub cannot be reached, or what arrives is damaged time and again.
    """
    name = f"{repo_id}@{revision}" if revision else repo_id
    # huggingface_hub compares sizes alone. Its cache names each file by a hash of the content, so that a bit that
    # changed on the way can be found here; such a file is dropped and downloaded once more.
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repo_id.replace('/', '--')}" / "blobs"
    for _ in range(2):
        before = {blob.name for blob in blobs.glob("*")}
        try:
            folder = Path(huggingface_hub.snapshot_download(repo_id, revision=revision, allow_patterns=list(patterns)))
        except (OSError, ValueError, LookupError, TypeError, HTTPError) as e:  # of a damaged answer, too
            raise CheckpointError(
                f"{name}: no such directory here, and from the Hub: {' '.join(str(e).split()) or type(e).__name__}"
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
    """Tell whether a file that is new differs from the hash that is its name (git's hash for small files)."""
    if blob.name in before or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return False
    digest = hashlib.sha256() if len(blob.name) == 64 else hashlib.sha1(b"blob %d\0" % blob.stat().st_size)
    with blob.open("rb") as file:
        return hashlib.file_digest(file, lambda: digest).hexdigest() != blob.name
