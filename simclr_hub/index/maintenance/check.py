"""Is the index what it should be: the store first, the photos if asked for, and a repair if it is damaged.

Unusual: it works on a directory, since a damaged store may not open; the writer's lock is held meanwhile;
and what was not verified is told, too.
"""

import os
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

from ...errors import IndexDamagedError, IndexNotFoundError
from ...images import describe
from ..database import hold_writer_lock, writer_lock
from ..maker import Maker
from ..report import CheckReport
from ..store import STORE_NAME, Store
from .check_photos import check_photos
from .check_store import check_store
from .repair import repair_store


def check_index(
    path: str | os.PathLike[str],
    *,
    repair: bool = False,
    deep: bool = False,
    model: Any = None,
    progress: Callable[[int, int], object] | None = None,
) -> CheckReport:
    """Check an index, also one that cannot be opened.

    Args:
        path: its directory.
        repair: if its store is damaged, copy what is sound into a new one and keep the damaged file under another
            name; a sound store is left alone.
        deep: also read the photos again and embed a sample of them; a deep check that was stopped goes on.
        model: for the sample, see `SimilarityIndex.open`; or the index's `Maker`.
        progress: called with (done, total) photos of a deep check.

    Raises:
        IndexNotFoundError: there is no index.
        IndexLockedError: another process writes to it.
        IndexMismatchError: a newer version of this package made it.
        IndexDamagedError: nothing of it can be saved.
        IndexWriteError: the repaired store could not be written; the index is as it was.
    """
    directory = Path(path)
    file = directory / STORE_NAME
    if not file.is_file():
        raise IndexNotFoundError(f"{describe(directory)}: no index there")
    read_only = not (os.access(directory, os.W_OK) and os.access(file, os.W_OK))
    with suppress(IndexDamagedError):
        Store(file, read_only=read_only).close()  # brings an older layout up to date, which needs the lock
    report = CheckReport(describe(directory))
    with ExitStack() as stack:
        if repair or not read_only:
            stack.enter_context(hold_writer_lock(writer_lock(file)))
        check_store(file, report, read_only=read_only)
        if repair and not report.sound:
            saved = repair_store(directory)
            report = CheckReport(describe(directory), repair=saved)
            check_store(file, report, read_only=False)
    if not deep:
        report.unverified.append("the photos themselves: a deep check reads them again")
    elif not report.sound:
        report.unverified.append("the photos themselves: the index has to be repaired first")
    else:
        with closing(Store(file, read_only=read_only)) as store:
            maker = model if isinstance(model, Maker) else Maker(store, model)
            check_photos(store, maker, report, progress)
    return report
