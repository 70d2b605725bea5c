"""From the files that have to be read to committed rows: read ahead, recognise, embed what is unknown, commit.

Unusual: content that the store knows is never embedded again, whatever its name; and the paths that are about to be
decoded are recorded first, so that after a crash the photo that caused it is found. One that is still being read or
decoded when the sync is interrupted stays recorded, and the next sync tries it alone.
"""

import hashlib
import itertools
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from .._threads import Pool
from ..errors import CorruptImageError, ImageError, IndexError_, UnreadableImageError
from ..images import FileBytes, describe, read_file
from ..scan import Listing
from .isolated import UNREAD, find_guilty, is_guilty
from .maker import EmbedderLike, unit_vector
from .plan import Plan
from .records import Photo, Root, Stamp, file_metadata, is_below
from .report import SyncReport
from .spelling import letters
from .store import Store

if TYPE_CHECKING:
    from ..embedder import Embedding, Failure

#: A transaction holds what came in this many photos, bytes of their files, or seconds, whatever is first.
BATCH_PHOTOS, BATCH_BYTES, BATCH_SECONDS = 64, 64 << 20, 2.0
#: Files that are read ahead.
READ_AHEAD = 8


@dataclass(frozen=True)
class _Seen:
    """A file that was read."""

    path: bytes
    stamp: Stamp
    content_hash: bytes


#: What was seen and the file's bytes; what is wrong; or None if it is gone.
_Read = tuple[_Seen, bytes] | ImageError | None


class Pipeline:
    """One sync of one root.

    Args:
        store: what to bring up to date; `Store.writing` is held.
        root: the root.
        recorded: its photos by path, as they were.
        listing: its photos as they are.
        report: counted up.
        scan_time: nanoseconds since 1970 at which the listing began.
        progress: called with (done, total) of the files that have to be read.
        on_failure: called with why a photo cannot be used, as it is found.
    """

    def __init__(
        self,
        store: Store,
        root: Root,
        recorded: dict[bytes, Photo],
        listing: Listing,
        report: SyncReport,
        *,
        scan_time: int,
        progress: Callable[[int, int], object] | None = None,
        on_failure: Callable[[ImageError], object] | None = None,
    ):
        self._store, self._root, self._recorded, self._listing = store, root, recorded, listing
        self._report, self._scan_time, self._progress, self._on_failure = report, scan_time, progress, on_failure
        self._roots = store.roots()
        self._done = self._total = 0
        # Given to the embedder: by position there, and by content those that wait for the same.
        self._given: dict[int, _Seen] = {}
        self._positions = itertools.count()
        self._waiting: dict[bytes, list[_Seen]] = {}
        self._gone: dict[bytes, list[Photo]] = {}  # by content: recorded photos whose file is gone
        self._spellings: dict[str, Stamp] | None = None  # of the listed photos, made when it is needed
        self._in_flight: set[bytes] = set()
        self._reading: set[bytes] = set()
        self._guilty: dict[bytes, str] = {}  # by content: why it must not be decoded here, without the name
        # For the next commit.
        self._embedded: dict[bytes, tuple[np.ndarray, Embedding]] = {}
        self._changes: list[Callable[[], None]] = []
        self._decoded: list[bytes] = []
        self._committed = time.monotonic()

    def run(self, plan: Plan, folder: bytes, embedder: Callable[[], EmbedderLike]) -> None:
        """Do what the plan says about the photos below `folder` (absolute); a batch is committed as a whole."""
        self._judge(plan)
        todo = sorted(plan.new + plan.rehash)
        self._total = len(todo)
        self._embed(self._without_guilty(todo, folder), embedder)

    def _judge(self, plan: Plan) -> None:
        """What needs no reading."""
        for photo in plan.unchanged + plan.came_back:
            self._report.came_back += photo.state == "missing"
            if photo.content_hash:
                self._report.unchanged += 1
            else:
                self._report.failed += 1
        for photo in plan.unchanged:
            if photo.stamp != self._recorded[photo.path].stamp:  # the file system numbers its files anew
                self._put(photo)
        for photo in plan.came_back:
            self._put(replace(photo, state="live" if photo.content_hash else "failed"))
        for photo in plan.missing:
            self._put(replace(photo, state="missing"))
        self._commit()

    def _without_guilty(self, todo: list[bytes], folder: bytes) -> list[bytes]:
        """Try the last sync's suspects alone; return the photos that do not end the process that decodes them.

        So is what was found guilty once, should its file have changed.
        """
        suspects = {path for path in self._store.in_flight() if is_below(path, folder)}
        known = {path for path, photo in self._recorded.items() if is_guilty(photo.error)}
        alone = [path for path in todo if path in known or self._root.join(path) in suspects]
        if alone and self._progress:  # which may take a minute for each
            self._progress(0, self._total)
        guilty = find_guilty([self._root.join(path) for path in alone])
        for path in alone:
            if (why := guilty.get(self._root.join(path))) is None:
                continue
            if UNREAD in why:
                self._fail(path, self._listing.photos[path], UnreadableImageError(why))
                continue
            self._fail(path, self._listing.photos[path], CorruptImageError(why))
            if is_guilty(why) and isinstance(read := self._read(path), tuple):  # its copies would not end either
                self._guilty[read[0].content_hash] = why.replace(self._name(path), "", 1)
        self._decoded += suspects
        self._commit()
        return [path for path in todo if self._root.join(path) not in guilty]

    def _embed(self, todo: list[bytes], embedder: Callable[[], EmbedderLike]) -> None:
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

    def _sources(self, todo: list[bytes]) -> Generator[FileBytes, None, None]:
        """The files of unknown content, each recorded as in flight before it is given away."""
        batch: deque[tuple[_Seen, bytes]] = deque()
        size = 0
        for path, read in self._read_ahead(todo):
            if isinstance(read, ImageError):
                self._fail(path, self._listing.photos[path], read)
            elif read is None:
                self._vanish(path)
            elif (why := self._guilty.get(read[0].content_hash)) is not None:
                self._fail(path, read[0].stamp, CorruptImageError(self._name(path) + why))
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

    def _read_ahead(self, todo: list[bytes]) -> Iterator[tuple[bytes, _Read]]:
        """The files in order, read by threads."""
        with Pool(2, "simclr-read") as pool:
            yield from pool.map(self._read, todo, READ_AHEAD)

    def _read(self, path: bytes) -> _Read:
        self._reading.add(path)
        try:
            data, stat = read_file(self._root.join(path), follow_symlinks=False)
        except ImageError as e:
            return None if isinstance(e.__cause__, (FileNotFoundError, NotADirectoryError)) else e
        finally:
            self._reading.discard(path)
        return _Seen(path, Stamp.of(stat), hashlib.sha256(data).digest()), data

    def _known(self, seen: _Seen) -> bool:
        """Record a photo whose content needs no embedding; False if it is to be given to the embedder."""
        if seen.content_hash in self._embedded or self._store.details_of(seen.content_hash) is not None:
            self._recognise(seen)
        elif seen.content_hash in self._waiting:
            self._waiting[seen.content_hash].append(seen)
        else:
            self._waiting[seen.content_hash] = []
            return False
        return True

    def _recognise(self, seen: _Seen) -> None:
        """A photo whose content the store has, or will have with the next commit."""
        old = self._recorded.get(seen.path)
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
            found = os.lstat(file)
        except (FileNotFoundError, NotADirectoryError):
            return True
        except OSError:
            return False  # unknown
        return self._is_listed_otherwise(photo, found.st_ino)

    def _is_listed_otherwise(self, photo: Photo, inode: int) -> bool:
        """Whether its file has another spelling now: where case does not matter, the old one still opens it."""
        if photo.root_id != self._root.id or photo.path in self._listing.photos or photo.path not in self._recorded:
            return False
        if self._spellings is None:
            self._spellings = {letters(path).casefold(): stamp for path, stamp in self._listing.photos.items()}
        stamp = self._spellings.get(letters(photo.path).casefold())
        return stamp is not None and stamp.inode == inode

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
            self._fail(seen.path, seen.stamp, error)
            for one in waiting:  # of the same bytes
                self._fail(one.path, one.stamp, type(error)(self._renamed(str(error), seen.path, one.path)))
            return
        self._embedded[seen.content_hash] = vector, item
        self._succeed(seen)
        self._report.embedded += 1
        for one in waiting:
            self._recognise(one)

    def _renamed(self, text: str, old: bytes, new: bytes) -> str:
        """Return what is said of one photo, said of another."""
        return text.replace(self._name(old), self._name(new), 1)

    def _succeed(self, seen: _Seen) -> None:
        metadata = file_metadata(seen.stamp)
        settled = seen.stamp.settled(self._scan_time)
        self._finish(
            Photo(self._root.id, seen.path, seen.stamp, settled, seen.content_hash, "live", metadata=metadata)
        )

    def _fail(self, path: bytes, stamp: Stamp, error: ImageError) -> None:
        # What could not be read is tried again each time; what could not be decoded, when the file changes.
        settled = stamp.settled(self._scan_time) and not isinstance(error, UnreadableImageError)
        text = str(error).encode(errors="backslashreplace").decode()
        self._report.failed += 1
        if self._on_failure:
            self._on_failure(error)
        old = self._recorded.get(path)
        if old is not None and old.content_hash and isinstance(error, UnreadableImageError):
            # It is there, and nobody knows what it holds now: until that is read, it is what it was.
            self._finish(replace(old, state="live", settled=False, error=text))
            return
        self._finish(Photo(self._root.id, path, stamp, settled, None, "failed", error=text))

    def _vanish(self, path: bytes) -> None:
        self._report.vanished += 1
        old = self._recorded.get(path)
        if old is not None and old.state != "missing":
            self._put(replace(old, state="missing"))
        self._step()

    def _finish(self, photo: Photo) -> None:
        old = self._recorded.get(photo.path)
        self._report.came_back += old is not None and old.state == "missing"
        self._put(photo)
        self._step()

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
        """One transaction for all that came since the last, and for what is given away next."""
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
