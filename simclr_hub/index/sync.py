"""Bring the store up to date with a folder: scan, plan, read, embed what is unknown, commit batch by batch.

Unusual: content that the store knows is never embedded again, whatever its name; the paths that are about to be decoded
are recorded first, so that after a crash the photo that caused it is found; nothing is written below the folder.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Protocol

import numpy as np

from ..embedder import Embedding, Failure
from ..errors import CorruptImageError, ImageError, IndexError_, RootUnavailableError, UnreadableImageError
from ..images import FileBytes, describe, read_file
from .isolated import find_guilty
from .plan import make_plan, place
from .records import Photo, Root, Stamp, is_below
from .scan import Listing, scan
from .store import Store

#: A transaction holds what came in this many photos, bytes of their files, or seconds, whatever is first.
BATCH_PHOTOS, BATCH_BYTES, BATCH_SECONDS = 64, 64 << 20, 2.0
#: Files that are read ahead.
READ_AHEAD = 8


class EmbedderLike(Protocol):
    """What the index needs of `simclr_hub.Embedder`."""

    @property
    def dim(self) -> int: ...  # noqa: D102
    @property
    def fingerprint(self) -> dict[str, str]: ...  # noqa: D102
    def stream(self, sources: Iterable[Any]) -> Iterator[Embedding | Failure]: ...  # noqa: D102


@dataclass
class SyncReport:
    """What a sync found and did; found = embedded + unchanged + renamed + copied + failed.

    Attributes:
        found: photos that are there.
        embedded: new content.
        unchanged: the content that was recorded under the same path.
        renamed: content of a photo whose file is gone: the same photo under another name.
        copied: content that the index knows, of a photo that is still there or was once.
        failed: photos that cannot be used; `SimilarityIndex.failures` says why.
        vanished: photos that went between listing and reading; not counted as found.
        skipped: entries that are no photos, by reason.
        missing: photos recorded below the folder that are not there; kept until `prune`.
        came_back: photos among the found that were missing before.
        listing_errors: folders that could not be listed, with the reason; their photos stay as they were.
        seconds: how long it took.
    """

    found: int = 0
    embedded: int = 0
    unchanged: int = 0
    renamed: int = 0
    copied: int = 0
    failed: int = 0
    vanished: int = 0
    skipped: dict[str, int] = field(default_factory=dict)
    missing: int = 0
    came_back: int = 0
    listing_errors: list[str] = field(default_factory=list)
    seconds: float = 0.0


def sync_folder(
    store: Store,
    embedder: Callable[[], EmbedderLike],
    folder: bytes,
    *,
    exclude: Collection[tuple[int, int]] = (),
    progress: Callable[[int, int], object] | None = None,
) -> SyncReport:
    """Synchronise the photos below `folder`; inside `Store.writing`.

    Args:
        store: what to bring up to date.
        embedder: called once, and only if there is unknown content.
        folder: real absolute path.
        exclude: (device, inode) of directories that are not entered.
        progress: called with (done, total) photos that had to be read.

    Raises:
        RootUnavailableError: the folder is not there or cannot be listed; no photo was judged.
    """
    started, scan_time = time.monotonic(), time.time_ns()
    where = place(folder, store.roots().values())
    path = where.root.path if where.root else folder
    try:
        listing = scan(path, where.folder, exclude=exclude)
    except RootUnavailableError:
        if where.root and not where.folder:
            with store.transaction():
                store.put_root(path, "unavailable")
        raise
    with store.transaction():
        if where.root and where.folder and not listing.errors:
            root = where.root  # the rest of it was not listed: what is known of its listing stays
        else:
            root = store.put_root(path, "failed" if listing.errors else "ok")
        for absorbed in where.absorbed:
            _absorb(store, absorbed, root)
    recorded = {photo.path: photo for photo in store.photos(root.id) if is_below(photo.path, where.folder)}
    run = _Run(store, root, listing, recorded, scan_time, progress)
    run.judge(where.folder, folder)
    run.embed(embedder)
    report = run.report
    report.found = report.embedded + report.unchanged + report.renamed + report.copied + report.failed
    report.skipped = listing.skipped
    report.listing_errors = [
        f"{describe(os.fsdecode(root.join(p)))}: {error}" for p, error in sorted(listing.errors.items())
    ]
    report.missing = sum(p.state == "missing" and is_below(p.path, where.folder) for p in store.photos(root.id))
    report.seconds = time.monotonic() - started
    return report


def _absorb(store: Store, child: Root, root: Root) -> None:
    """Make the photos of a root below `root` its own."""
    prefix = os.path.relpath(child.path, root.path)
    for photo in store.photos(child.id):
        store.forget(photo)
        store.put(replace(photo, root_id=root.id, path=os.path.join(prefix, photo.path)))
    store.forget_root(child)


@dataclass(frozen=True)
class _Seen:
    """A file that was read."""

    path: bytes
    stamp: Stamp
    content_hash: bytes


class _Run:
    """One sync of one root: what is waiting for the embedder, and what is waiting for the next commit."""

    def __init__(
        self,
        store: Store,
        root: Root,
        listing: Listing,
        recorded: dict[bytes, Photo],
        scan_time: int,
        progress: Callable[[int, int], object] | None,
    ):
        self.report = SyncReport()
        self._store, self._root, self._listing = store, root, listing
        self._recorded, self._scan_time, self._progress = recorded, scan_time, progress
        self._todo: list[bytes] = []
        self._done = 0
        # Given to the embedder: by position there, and by content those that wait for the same.
        self._given: list[_Seen | None] = []
        self._waiting: dict[bytes, list[_Seen]] = {}
        self._gone: dict[bytes, list[Photo]] = {}  # by content: recorded photos whose file is gone
        # For the next commit.
        self._vectors: dict[bytes, np.ndarray] = {}
        self._changes: list[Callable[[], None]] = []
        self._decoded: list[bytes] = []
        self._committed = time.monotonic()

    def judge(self, folder: bytes, absolute: bytes) -> None:
        """What the listing alone decides; and photos that may have ended the last sync are decoded alone."""
        plan = make_plan(self._listing, self._recorded, folder)
        self._todo = sorted(plan.new + plan.rehash)
        for photo in plan.came_back:
            self._put(replace(photo, state="live" if photo.content_hash else "failed"))
        for photo in plan.missing:
            self._put(replace(photo, state="missing"))
        for photo in plan.unchanged + plan.came_back:
            self.report.came_back += photo.state == "missing"
            if photo.content_hash:
                self.report.unchanged += 1
            else:
                self.report.failed += 1
        suspects = {path for path in self._store.in_flight() if is_below(path, absolute)}
        guilty = find_guilty([p for p in map(self._root.join, self._todo) if p in suspects])
        for path in self._todo:
            error = guilty.get(self._root.join(path))
            if error is not None:
                self._fail(path, self._listing.photos[path], CorruptImageError(error))
        self._todo = [path for path in self._todo if self._root.join(path) not in guilty]
        self._decoded += suspects
        self._commit()

    def embed(self, embedder: Callable[[], EmbedderLike]) -> None:
        """Read what has to be read, embed what is unknown, commit as it comes."""
        sources = self._sources()
        try:
            first = next(sources, None)
            if first is not None:  # otherwise no model is needed
                for item in embedder().stream(chain([first], sources)):
                    self._result(item)
                    self._commit_if_due()
            self._commit()
        except BaseException:
            with suppress(IndexError_):  # the first error is the one to tell
                self._decoded += [self._root.join(seen.path) for seen in self._given if seen]
                self._commit()
            raise
        finally:
            sources.close()
        if self._waiting:
            raise RuntimeError(f"the embedder gave no result for {len(self._waiting)} photos")

    def _sources(self) -> Iterator[FileBytes]:
        """The files of unknown content, each recorded as in flight before it is given away."""
        batch: deque[tuple[_Seen, bytes]] = deque()
        size = 0
        for path, read in self._read_ahead():
            if isinstance(read, ImageError):
                self._fail(path, self._listing.photos[path], read)
            elif read is None:
                self._vanish(path)
            elif not self._known(read[0]):
                batch.append(read)
                size += len(read[1])
                if len(batch) >= BATCH_PHOTOS or size >= BATCH_BYTES:
                    yield from self._give(batch)
                    size = 0
            self._commit_if_due()
        yield from self._give(batch)

    def _give(self, batch: deque[tuple[_Seen, bytes]]) -> Iterator[FileBytes]:
        self._commit(in_flight=[self._root.join(seen.path) for seen, _ in batch])
        while batch:
            seen, data = batch.popleft()
            self._given.append(seen)
            yield FileBytes(self._name(seen.path), data)

    def _read_ahead(self) -> Iterator[tuple[bytes, tuple[_Seen, bytes] | ImageError | None]]:
        """Each file to be read, in order: what was seen and its bytes; what is wrong; None if it is gone."""
        pool = ThreadPoolExecutor(2, "simclr-read")
        ahead: deque[tuple[bytes, Future[tuple[_Seen, bytes] | ImageError | None]]] = deque()
        try:
            for path in self._todo:
                ahead.append((path, pool.submit(self._read, path)))
                if len(ahead) > READ_AHEAD:
                    path, future = ahead.popleft()
                    yield path, future.result()
            for path, future in ahead:
                yield path, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _read(self, path: bytes) -> tuple[_Seen, bytes] | ImageError | None:
        try:
            data, stat = read_file(self._root.join(path), follow_symlinks=False)
        except ImageError as e:
            return None if isinstance(e.__cause__, (FileNotFoundError, NotADirectoryError)) else e
        return _Seen(path, Stamp.of(stat), hashlib.sha256(data).digest()), data

    def _known(self, seen: _Seen) -> bool:
        """Record a photo whose content needs no embedding; False if it is to be given to the embedder."""
        old = self._recorded.get(seen.path)
        if old is not None and old.content_hash == seen.content_hash:
            self._succeed(seen)
            self.report.unchanged += 1
        elif seen.content_hash in self._vectors or self._store.vector(seen.content_hash) is not None:
            self._rename_or_copy(seen)
        elif seen.content_hash in self._waiting:
            self._waiting[seen.content_hash].append(seen)
        else:
            self._waiting[seen.content_hash] = []
            return False
        return True

    def _rename_or_copy(self, seen: _Seen) -> None:
        gone = self._gone.get(seen.content_hash)
        if gone is None:
            gone = [p for p in self._store.photos_with(seen.content_hash) if self._is_gone(p)]
            # Taken from the end: best the same root, and in it the same file name.
            name = os.path.basename(seen.path)
            gone.sort(key=lambda p: (p.root_id == self._root.id, os.path.basename(p.path) == name))
            self._gone[seen.content_hash] = gone
        if gone:
            old = gone.pop()
            self._changes.append(lambda: self._store.forget(old))
            self.report.renamed += 1
        else:
            self.report.copied += 1
        self._succeed(seen)

    def _is_gone(self, photo: Photo) -> bool:
        root = self._store.roots()[photo.root_id]
        try:
            os.lstat(root.join(photo.path))
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # unknown
        return False

    def _result(self, item: Embedding | Failure) -> None:
        seen = self._given[item.position]
        if seen is None:
            raise RuntimeError(f"the embedder gave two results for position {item.position}")
        self._given[item.position] = None
        self._decoded.append(self._root.join(seen.path))
        waiting = self._waiting.pop(seen.content_hash)
        vector = None if isinstance(item, Failure) else unit_vector(item.vector)
        if vector is None:
            why = "its features are zero or not finite"
            error = item.error if isinstance(item, Failure) else CorruptImageError(f"{self._name(seen.path)}: {why}")
            for one in (seen, *waiting):
                self._fail(one.path, one.stamp, error)
            return
        self._vectors[seen.content_hash] = vector
        self._succeed(seen)
        self.report.embedded += 1
        for one in waiting:
            self._rename_or_copy(one)

    def _succeed(self, seen: _Seen) -> None:
        metadata = json.dumps({"bytes": seen.stamp.size, "modified": seen.stamp.mtime_ns / 1e9})
        settled = seen.stamp.settled(self._scan_time)
        self._finish(
            Photo(self._root.id, seen.path, seen.stamp, settled, seen.content_hash, "live", metadata=metadata)
        )

    def _fail(self, path: bytes, stamp: Stamp, error: ImageError) -> None:
        # What could not be read is tried again each time; what could not be decoded, when the file changes.
        settled = stamp.settled(self._scan_time) and not isinstance(error, UnreadableImageError)
        text = str(error).encode(errors="backslashreplace").decode()
        self.report.failed += 1
        self._finish(Photo(self._root.id, path, stamp, settled, None, "failed", error=text))

    def _vanish(self, path: bytes) -> None:
        self.report.vanished += 1
        old = self._recorded.get(path)
        if old is not None and old.state != "missing":
            self._put(replace(old, state="missing"))
        self._step()

    def _finish(self, photo: Photo) -> None:
        old = self._recorded.get(photo.path)
        self.report.came_back += old is not None and old.state == "missing"
        self._put(photo)
        self._step()

    def _put(self, photo: Photo) -> None:
        self._changes.append(lambda: self._store.put(photo))

    def _step(self) -> None:
        self._done += 1
        if self._progress and self._todo:
            self._progress(self._done, len(self._todo))

    def _commit_if_due(self) -> None:
        if len(self._changes) >= BATCH_PHOTOS or time.monotonic() - self._committed >= BATCH_SECONDS:
            self._commit()

    def _commit(self, in_flight: list[bytes] | None = None) -> None:
        """One transaction for all that came since the last, and for what is given away next."""
        if self._changes or self._decoded or in_flight:
            with self._store.transaction():
                for content_hash, vector in self._vectors.items():
                    self._store.put_vector(content_hash, vector)
                for change in self._changes:
                    change()
                self._store.forget_in_flight(self._decoded)
                self._store.put_in_flight(in_flight or [])
        self._vectors.clear()
        self._changes.clear()
        self._decoded.clear()
        self._committed = time.monotonic()

    def _name(self, path: bytes) -> str:
        return describe(os.fsdecode(self._root.join(path)))


def unit_vector(vector: np.ndarray) -> np.ndarray | None:
    """A vector (D,) scaled to length 1, float32; None if it is zero or not finite."""
    wide = vector.astype(np.float64)
    length = float(np.linalg.norm(wide))
    if not np.isfinite(length) or length == 0:
        return None
    unit: np.ndarray = (wide / length).astype(np.float32)
    return unit
