"""download(): one file over HTTP, resumed where it was cut, under its final name only when it is whole.

Unusual: a request that resumes asks for the last byte once more, so that a file that is whole but could not be renamed
any more is answered like any other, with its size and checksums.
"""

import base64
import errno
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

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
_HTTPError: type[Exception] = HfHubHTTPError.__bases__[0]


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
            except _HTTPError as e:
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
    """What a status other than success means: to be tried again, or final."""
    answer = f"the server answers {response.status_code} {response.reason_phrase}".rstrip()
    if response.status_code in (408, 429) or response.status_code >= 500:
        wait = response.headers.get("retry-after", "")
        return _PassingError(answer, float(wait) if re.fullmatch(r"\d{1,6}", wait) else 0)
    return CheckpointError(f"{url}: {answer}; if you have the files, run: simclr-hub convert FOLDER OUT")


def _size(told: Mapping[str, str]) -> int | None:
    """Bytes of the whole file."""
    length = told.get("content-range", "").rpartition("/")[2] or told.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _as_told(path: Path, told: Mapping[str, str]) -> bool:
    """Whether the file has the checksums in x-goog-hash, those that are there."""
    import google_crc32c  # needed for official checkpoints only: training machines do without

    expected = dict(re.findall(r"(crc32c|md5)=([\w+/]+=*)", told.get("x-goog-hash", "")))
    crc, md5 = 0, hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while expected and (chunk := file.read(_CHUNK)):
            crc = google_crc32c.extend(crc, chunk)
            md5.update(chunk)
    found = {"crc32c": crc.to_bytes(4, "big"), "md5": md5.digest()}
    return all(base64.b64encode(found[kind]).decode() == value for kind, value in expected.items())
