"""Bring the store up to date with a folder: scan, plan, then what the plan says.

Unusual: a root that cannot be listed is an error that changes nothing, and a root below which others were recorded
takes their photos over, so that no photo is there twice.
"""

import os
import time
from collections.abc import Callable, Collection
from dataclasses import replace

from ..errors import ImageError, RootUnavailableError
from ..formats import reader_has_come
from ..images import describe
from ..scan import Rules, scan
from .maker import EmbedderLike
from .pipeline import Pipeline
from .plan import make_plan, place
from .records import Root, is_below
from .report import SyncReport
from .store import Store


def sync_folder(
    store: Store,
    embedder: Callable[[], EmbedderLike],
    folder: bytes,
    *,
    rules: Rules | None = None,
    exclude: Collection[tuple[int, int]] = (),
    progress: Callable[[int, int], object] | None = None,
    on_failure: Callable[[ImageError], object] | None = None,
) -> SyncReport:
    """Synchronise the photos below `folder`; inside `Store.writing`.

    Args:
        store: what to bring up to date.
        embedder: called once, and only if there is unknown content.
        folder: real absolute path.
        rules: what of the folder is left out, remembered from now on; None: what the store remembers.
        exclude: (device, inode) of directories that are not entered.
        progress: called with (done, total) photos that had to be read.
        on_failure: called with why a photo cannot be used, as it is found.

    Raises:
        RootUnavailableError: the folder is not there or cannot be listed; no photo was judged.
    """
    started, scan_time = time.monotonic(), time.time_ns()
    where = place(folder, store.roots().values())
    path = where.root.path if where.root else folder
    try:
        listing = scan(path, where.folder, rules=rules or store.about.rules, exclude=exclude)
    except RootUnavailableError:
        if where.root and not where.folder:
            with store.transaction():
                store.put_root(path, "unavailable")
        raise
    with store.transaction():
        if rules is not None and rules != store.about.rules:
            store.put_rules(rules)
        if where.root and where.folder and not listing.errors:
            root = where.root  # the rest of it was not listed: what is known of its listing stays
        else:
            root = store.put_root(path, "failed" if listing.errors else "ok")
        for absorbed in where.absorbed:
            _absorb(store, absorbed, root)
    incomplete = store.without_details()  # of an older version: to be read again
    recorded = {
        photo.path: replace(photo, settled=False)
        if photo.content_hash in incomplete or (photo.error and reader_has_come(photo.error))
        else photo
        for photo in store.photos(root.id)
        if is_below(photo.path, where.folder)
    }
    report = SyncReport()
    pipeline = Pipeline(
        store, root, recorded, listing, report, scan_time=scan_time, progress=progress, on_failure=on_failure
    )
    pipeline.run(make_plan(listing, recorded, where.folder), folder, embedder)
    report.found = report.embedded + report.unchanged + report.renamed + report.copied + report.failed
    report.skipped = listing.skipped
    report.listing_errors = [
        f"{describe(os.fsdecode(root.join(p)))}: {error}" for p, error in sorted(listing.errors.items())
    ]
    report.missing = sum(is_below(path, where.folder) for path in store.missing(root.id))
    report.seconds = time.monotonic() - started
    return report


def _absorb(store: Store, child: Root, root: Root) -> None:
    """Make the photos of a root below `root` its own."""
    prefix = os.path.relpath(child.path, root.path)
    for photo in store.photos(child.id):
        store.forget(photo)
        store.put(replace(photo, root_id=root.id, path=os.path.join(prefix, photo.path)))
    store.forget_root(child)
