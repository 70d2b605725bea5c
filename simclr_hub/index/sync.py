"""Bring the store up to date with a folder."""

import hashlib
import itertools
import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from stat import S_ISDIR
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .._threads import Pool
from ..errors import (
    CorruptImageError,
    ImageError,
    IndexError_,
    IndexWriteError,
    RootUnavailableError,
    UnreadableImageError,
)
from ..formats import reader_has_come
from ..images import FileBytes, describe, read_file
from ..notebook import show_report
from ..scan import SEPARATOR, FileStat, Rules, scan
from .maker import EmbedderLike, unit_vector
from .paths import is_below, letters, on_disk
from .plan import Item, Listed, Plan, make_plan
from .sandboxed_decode import UNREAD, decode_sandboxed, ends_process
from .store import Photo, Root, Store, file_metadata

if TYPE_CHECKING:
    from ..embedder import Embedding, Failure

#: A transaction holds what came in this many photos, bytes of their files, or seconds, whatever is first.
BATCH_PHOTOS, BATCH_BYTES, BATCH_SECONDS = 64, 64 << 20, 2.0
#: So many of what needs no reading; and photos that are moved from one root to another at a time.
JUDGED = MOVED = 4096
#: Contents whose files were looked for that are remembered.
_KNOWN_GONE = 10_000
#: Files that are read ahead.
READ_AHEAD = 8


@dataclass
class SyncReport:
    """The result of a sync; found = embedded + unchanged + renamed + copied + failed.

    Attributes:
        found: photos that are there.
        embedded: new content.
        unchanged: the content that was recorded under the same path.
        renamed: content of a photo whose file is gone: the same photo under another name.
        copied: content that the index knows, of a photo that is still there or was once.
        failed: photos that cannot be used; `SimilarityIndex.failures` says why. Those that could not be read but were
            known before stay as they were, also in searches.
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

    def _repr_html_(self) -> str:
        return show_report(f"Sync: {self.found:,} photos found", self)


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
        rules: what is left out, remembered from now on; None: what the store remembers.
        exclude: (device, inode) of directories that are not entered.
        progress: called with (done, total) photos that had to be read.
        on_failure: called with why a photo cannot be used, as it is found.

    Raises:
        RootUnavailableError: the folder is not there or cannot be listed; no photo was judged.
        IndexWriteError: the disk is full, that of the index or that for temporary files.
    """
    try:
        with closing(Listed()) as listed:
            return _sync(store, embedder, folder, listed, rules, exclude, progress, on_failure)
    except sqlite3.Error as e:  # the store's are errors of the index: this is the temporary file's
        raise IndexWriteError(
            f"the temporary file of a sync: {e}; what was committed is safe. Make room in the folder for temporary "
            "files, or name another by SQLITE_TMPDIR"
        ) from e


def _sync(
    store: Store,
    embedder: Callable[[], EmbedderLike],
    folder: bytes,
    listed: Listed,
    rules: Rules | None,
    exclude: Collection[tuple[int, int]],
    progress: Callable[[int, int], object] | None,
    on_failure: Callable[[ImageError], object] | None,
) -> SyncReport:
    started, scan_time = time.monotonic(), time.time_ns()
    where = place(folder, store.roots().values())
    path = where.root.path if where.root else folder
    try:
        listing = scan(path, where.folder, rules=rules or store.about.rules, exclude=exclude, add=listed.add)
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
    report = SyncReport(skipped=listing.skipped)
    recorded, inside = _recorded(store, root), _Inside(root)
    with closing(make_plan(listed.in_order(), recorded, listing.errors, where.folder, inside)) as plan:
        pipeline = _Pipeline(store, root, where.folder, listed, report, scan_time, progress, on_failure)
        pipeline.run(plan, embedder)
    report.found = report.embedded + report.unchanged + report.renamed + report.copied + report.failed
    report.listing_errors = [
        f"{describe(os.fsdecode(root.join(p)))}: {error}" for p, error in sorted(listing.errors.items())
    ]
    report.missing = sum(is_below(path, where.folder) for path in store.missing(root.id))
    report.seconds = time.monotonic() - started
    return report


def _recorded(store: Store, root: Root) -> Iterator[Photo]:
    """Yield a root's photos, those that are to be read again as not settled."""
    older = store.without_details()
    for photo in store.each_photo(root.id):
        incomplete = older and photo.content_hash and store.details_of(photo.content_hash) is None
        again = incomplete or (photo.error and reader_has_come(photo.error))
        yield replace(photo, settled=False) if again else photo


class _Inside:
    """Tells which file a path leads into: images of archives and of Parquet files, which parts bring, lie in one."""

    def __init__(self, root: Root):
        self._root = root
        self._last: tuple[bytes, FileStat | None] = (b"", None)

    def __call__(self, path: bytes) -> FileStat | None:
        above = os.path.dirname(path)
        if above != self._last[0]:  # paths come in order
            self._last = above, self._file(above)
        return self._last[1]

    def _file(self, path: bytes) -> FileStat | None:
        while path:
            try:
                found = os.stat(self._root.join(path))
            except OSError:
                path = os.path.dirname(path)
            else:
                return None if S_ISDIR(found.st_mode) else FileStat.of(found)
        return None


class Place(NamedTuple):
    """The place of a folder among the recorded roots."""

    root: Root | None  # that contains it; None if it becomes one
    folder: bytes  # its path relative to that root, b"" for the root itself
    absorbed: list[Root]  # those below it, which become part of it, so that no photo is recorded twice


def place(folder: bytes, roots: Iterable[Root]) -> Place:
    """Find the place of an absolute path; roots never contain one another."""
    roots = list(roots)
    for root in roots:
        if is_below(folder, root.path):
            return Place(root, folder[len(root.path) :].lstrip(SEPARATOR), [])
    return Place(None, b"", [root for root in roots if is_below(root.path, folder)])


def _absorb(store: Store, child: Root, root: Root) -> None:
    """Make the photos of a root below `root` its own."""
    prefix = os.path.relpath(child.path, root.path)
    for _ in store.each_photo(child.id):  # all are there, before the first moves
        pass
    while photos := [photo for photo in store.page((child.id, b""), MOVED) if photo.root_id == child.id]:
        for photo in photos:
            store.forget(photo)
            store.put(replace(photo, root_id=root.id, path=os.path.join(prefix, photo.path)))
    store.forget_root(child)


class _Seen(NamedTuple):
    """A file that was read."""

    path: bytes
    stat: FileStat
    content_hash: bytes


#: A file and its bytes; what is wrong; or None if it is gone.
_Read = tuple[_Seen, bytes] | ImageError | None


class _Pipeline:
    """One sync of one root: read ahead, recognise, embed what is unknown, commit.

    Args:
        store, root, report, progress, on_failure: see `sync_folder`.
        folder: what was listed, relative to the root.
        listed: its photos as they are.
        scan_time: nanoseconds since 1970 at which the listing began.
    """

    def __init__(
        self,
        store: Store,
        root: Root,
        folder: bytes,
        listed: Listed,
        report: SyncReport,
        scan_time: int,
        progress: Callable[[int, int], object] | None,
        on_failure: Callable[[ImageError], object] | None,
    ):
        self._store, self._root, self._folder, self._listed = store, root, folder, listed
        self._report, self._scan_time, self._progress, self._on_failure = report, scan_time, progress, on_failure
        self._roots = store.roots()
        self._done = self._total = 0
        # Given to the embedder: by position there, and by content those that wait for the same.
        self._given: dict[int, _Seen] = {}
        self._positions = itertools.count()
        self._waiting: dict[bytes, list[_Seen]] = {}
        self._gone: dict[bytes, list[Photo]] = {}  # by content: recorded photos whose file is gone
        self._in_flight: set[bytes] = set()
        self._reading: set[bytes] = set()
        self._crashing: dict[bytes, str] = {}  # by content: why it must not be decoded here, without the name
        # For the next commit.
        self._embedded: dict[bytes, tuple[np.ndarray, Embedding]] = {}
        self._changes: list[Callable[[], None]] = []
        self._decoded: list[bytes] = []
        self._committed = time.monotonic()

    def run(self, plan: Plan, embedder: Callable[[], EmbedderLike]) -> None:
        """Do what the plan says; a batch is committed as a whole."""
        self._judge(plan)
        self._total = plan.to_read
        self._embed(self._without_crashing(plan), embedder)

    def _judge(self, plan: Plan) -> None:
        """Record what needs no reading."""
        self._report.unchanged += plan.unchanged - plan.failed
        self._report.failed += plan.failed
        for item in plan.there():
            if (photo := self._old(item.path)) is not None:
                self._report.came_back += photo.state == "missing"
                self._report.unchanged += photo.content_hash is not None
                self._report.failed += photo.content_hash is None
                state = photo.state if photo.state != "missing" else "live" if photo.content_hash else "failed"
                self._judged(replace(photo, stat=item.stat, state=state))
        for item in plan.missing():
            if (photo := self._old(item.path)) is not None:
                self._judged(replace(photo, state="missing"))
        self._commit()

    def _judged(self, photo: Photo) -> None:
        self._put(photo)
        if len(self._changes) >= JUDGED:
            self._commit()

    def _without_crashing(self, plan: Plan) -> Iterator[Item]:
        """Decode the last sync's suspects in a child; return the photos that do not end the process.

        So is what once ended it, should its file have changed.
        """
        folder = self._root.join(self._folder)
        suspects = {path for path in self._store.in_flight() if is_below(path, folder)}
        alone: list[Item] = []
        if suspects or plan.crashed:
            alone = [one for one in plan.todo() if one.path in plan.crashed or self._root.join(one.path) in suspects]
        if alone and self._progress:  # which may take a minute for each
            self._progress(0, self._total)
        found = decode_sandboxed([self._root.join(one.path) for one in alone])
        for path, stat in alone:
            if (why := found.get(self._root.join(path))) is None:
                continue
            if UNREAD in why:
                self._fail(path, stat, UnreadableImageError(why))
                continue
            self._fail(path, stat, CorruptImageError(why))
            if ends_process(why) and isinstance(read := self._read(path), tuple):  # so would its copies
                self._crashing[read[0].content_hash] = why.replace(self._name(path), "", 1)
        self._decoded += suspects
        self._commit()
        return (one for one in plan.todo() if not found or self._root.join(one.path) not in found)

    def _embed(self, todo: Iterator[Item], embedder: Callable[[], EmbedderLike]) -> None:
        """Read the files, embed what is unknown, commit as it comes."""
        sources = self._sources(todo)
        made: EmbedderLike | None = None
        stream: Iterator[Embedding | Failure] = iter(())
        try:
            first = next(sources, None)
            if first is not None:  # otherwise no model is needed
                made = embedder()
                stream = made.stream(itertools.chain([first], sources), signatures=True)
                for item in stream:
                    self._result(item)
                    self._commit_if_due()
            self._commit()
        except BaseException as e:
            for generator in (stream, sources):
                if hasattr(generator, "close"):  # leaves behind what does not end
                    generator.close()
            suspects = self._suspects(made, isinstance(e, Exception))
            with suppress(IndexError_):  # the first error is the one to tell
                self._decoded += self._in_flight - suspects
                self._commit(in_flight=sorted(suspects - self._in_flight))
            raise
        finally:
            sources.close()
        if self._waiting:
            raise RuntimeError(f"the embedder gave no result for {len(self._waiting)} photos")

    def _suspects(self, embedder: EmbedderLike | None, failed: bool) -> set[bytes]:
        """Return what was begun and does not end; if the embedder does not tell, all that it still owes."""
        owed = list(self._given.values())
        if embedder is None or (failed and not hasattr(embedder, "decoding")):
            owed = []
        elif hasattr(embedder, "decoding"):
            begun = {source.content_hash for source in embedder.decoding() if isinstance(source, FileBytes)}
            owed = [seen for seen in owed if seen.content_hash in begun]
        return {self._root.join(path) for path in {*(seen.path for seen in owed), *self._reading}}

    def _sources(self, todo: Iterator[Item]) -> Generator[FileBytes, None, None]:
        """Yield the files of unknown content, each recorded as in flight before it is given away.

        After a crash, the photo that caused it is among those.
        """
        batch: deque[tuple[_Seen, bytes]] = deque()
        size = 0
        for (path, stat), read in self._read_ahead(todo):
            if isinstance(read, ImageError):
                self._fail(path, stat, read)
            elif read is None:
                self._vanish(path)
            elif (why := self._crashing.get(read[0].content_hash)) is not None:
                self._fail(path, read[0].stat, CorruptImageError(self._name(path) + why))
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
            self._given[next(self._positions)] = seen
            yield FileBytes(self._name(seen.path), data, seen.content_hash)

    def _read_ahead(self, todo: Iterator[Item]) -> Iterator[tuple[Item, _Read]]:
        """Yield the files in order, read by threads."""
        with Pool(2, "simclr-read") as pool:
            yield from pool.map(lambda item: self._read(item.path), todo, READ_AHEAD)

    def _read(self, path: bytes) -> _Read:
        self._reading.add(path)
        try:
            data, stat = read_file(self._root.join(path), follow_symlinks=False)
        except ImageError as e:
            return None if isinstance(e.__cause__, (FileNotFoundError, NotADirectoryError)) else e
        finally:
            self._reading.discard(path)
        return _Seen(path, FileStat.of(stat), hashlib.sha256(data).digest()), data

    def _known(self, seen: _Seen) -> bool:
        """Record a photo whose content needs no embedding; return False if it is to be given to the embedder."""
        if seen.content_hash in self._embedded or self._store.details_of(seen.content_hash) is not None:
            self._recognise(seen)
        elif seen.content_hash in self._waiting:
            self._waiting[seen.content_hash].append(seen)
        else:
            self._waiting[seen.content_hash] = []
            return False
        return True

    def _recognise(self, seen: _Seen) -> None:
        """Record a photo whose content the store has, or will have with the next commit."""
        old = self._old(seen.path)
        if old is not None and old.content_hash == seen.content_hash:
            self._succeed(seen)
            self._report.unchanged += 1
        else:
            self._rename_or_copy(seen)

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
            self._report.renamed += 1
        else:
            self._report.copied += 1
        self._succeed(seen)

    def _is_gone(self, photo: Photo) -> bool:
        file = self._store.locate(photo, self._roots)
        if photo.root_id != self._root.id and not _is_mounted(self._roots[photo.root_id].path, file):
            return False
        try:
            os.lstat(file)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # unknown
        return self._is_listed_otherwise(photo, file)

    def _is_listed_otherwise(self, photo: Photo, file: bytes) -> bool:
        """Return whether its file has another spelling now: where case does not matter, the old one opens it still."""
        here = photo.root_id == self._root.id and is_below(photo.path, self._folder)
        if not here or photo.path in self._listed:
            return False
        spelled = on_disk(os.fsdecode(file))
        alike = letters(spelled).casefold() == letters(file).casefold()
        return alike and spelled[len(self._root.path) :].lstrip(SEPARATOR) in self._listed

    def _result(self, item: "Embedding | Failure") -> None:
        from ..embedder import Failure

        seen = self._given.pop(item.position, None)
        if seen is None:
            raise RuntimeError(f"the embedder gave a result for position {item.position} that was not asked for")
        self._decoded.append(self._root.join(seen.path))
        waiting = self._waiting.pop(seen.content_hash)
        vector = None if isinstance(item, Failure) else unit_vector(item.vector)
        if isinstance(item, Failure) or vector is None:
            why = "its features are zero or not finite"
            error = item.error if isinstance(item, Failure) else CorruptImageError(f"{self._name(seen.path)}: {why}")
            self._fail(seen.path, seen.stat, error)
            for one in waiting:  # of the same bytes
                text = str(error).replace(self._name(seen.path), self._name(one.path), 1)
                self._fail(one.path, one.stat, type(error)(text))
            return
        self._embedded[seen.content_hash] = vector, item
        self._succeed(seen)
        self._report.embedded += 1
        for one in waiting:
            self._recognise(one)

    def _succeed(self, seen: _Seen) -> None:
        metadata, settled = file_metadata(seen.stat), seen.stat.settled(self._scan_time)
        self._finish(Photo(self._root.id, seen.path, seen.stat, settled, seen.content_hash, "live", metadata=metadata))

    def _fail(self, path: bytes, stat: FileStat, error: ImageError) -> None:
        # What could not be read is tried again each time; what could not be decoded, when the file changes.
        settled = stat.settled(self._scan_time) and not isinstance(error, UnreadableImageError)
        text = str(error).encode(errors="backslashreplace").decode()
        self._report.failed += 1
        if self._on_failure:
            self._on_failure(error)
        old = self._old(path)
        if old is not None and old.content_hash and isinstance(error, UnreadableImageError):
            # It is there, and nobody knows what it holds now: until that is read, it is what it was.
            self._finish(replace(old, state="live", settled=False, error=text))
        else:
            self._finish(Photo(self._root.id, path, stat, settled, None, "failed", error=text))

    def _vanish(self, path: bytes) -> None:
        self._report.vanished += 1
        old = self._old(path)
        if old is not None and old.state != "missing":
            self._put(replace(old, state="missing"))
        self._step()

    def _finish(self, photo: Photo) -> None:
        old = self._old(photo.path)
        self._report.came_back += old is not None and old.state == "missing"
        self._put(photo)
        self._step()

    def _old(self, path: bytes) -> Photo | None:
        """Return what is recorded of a photo."""
        return self._store.photo(self._root.id, path)

    def _put(self, photo: Photo) -> None:
        self._changes.append(lambda: self._store.put(photo))

    def _step(self) -> None:
        self._done += 1
        if self._progress:
            self._progress(self._done, self._total)

    def _commit_if_due(self) -> None:
        if len(self._changes) >= BATCH_PHOTOS or time.monotonic() - self._committed >= BATCH_SECONDS:
            self._commit()

    def _commit(self, in_flight: list[bytes] | None = None) -> None:
        """Write, in one transaction, all that came since the last, and what is given away next."""
        if self._changes or self._decoded or in_flight:
            with self._store.transaction():
                for content_hash, (vector, item) in self._embedded.items():
                    self._store.put_vector(content_hash, vector)
                    self._store.put_details(content_hash, item.info, item.signature)
                for change in self._changes:
                    change()
                self._store.forget_in_flight(self._decoded)
                self._store.put_in_flight(in_flight or [])
        self._in_flight.update(in_flight or [])
        self._in_flight.difference_update(self._decoded)
        self._embedded.clear()
        self._changes.clear()
        self._decoded.clear()
        if len(self._gone) > _KNOWN_GONE:
            self._gone.clear()
        self._committed = time.monotonic()

    def _name(self, path: bytes) -> str:
        return describe(os.fsdecode(self._root.join(path)))


def _is_mounted(root: bytes, file: bytes) -> bool:
    """Return whether a root is there, and the lowest folder above a file in it that is there holds anything.

    An empty folder may be where a disk is mounted.
    """
    if not os.path.isdir(root):
        return False
    folder = os.path.dirname(file)
    while folder != root and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        with os.scandir(folder) as entries:
            return next(entries, None) is not None
    except OSError:
        return False
