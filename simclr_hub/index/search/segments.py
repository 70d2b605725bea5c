"""Segments, what a search runs on: a large one and small deltas, in the cache's files beside the store or in memory.

A later segment overrides an earlier one for every content that it tells of, so that adding, renaming and deleting
photos makes a small segment beside the large one. The cache can always be made anew from the store.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..._files import write_file
from ...errors import IndexLockedError, IndexWriteError
from ...signature import as_rows, low_frequencies
from ..store import Store, VectorRow
from . import ann
from .ann import (
    CosineSample,
    DeltaLists,
    IVFIndex,
    Probes,
    Setting,
    build_ivf,
    faiss,
    sample_cosines,
    search_exact,
)
from .arrays import BLOCK, ArrayFile, ArrayWriter, CheckedArray, DamagedArraysError, Spool, StringSpool
from .filters import Condition
from .photo_table import HASH, Column, PhotoTable, is_in, make_columns, read_columns, write_columns

#: Numbers of a shape, the low frequencies of a picture's signature.
SHAPE = 63
#: Changed contents beyond this share of all, or beyond what is searched exactly, make the cache be built anew.
DELTA_SHARE = 0.1
#: Up to so many numbers (vectors x width) of a delta are all compared, so that what was just added is found.
_MAX_EXACT_DELTA = 1 << 20
#: Answers of conditions that are kept.
_KEPT = 8
_CACHE_FILES = re.compile(r"\.?(search-\d+\.cache|vectors\.faiss)(\..*)?")  # the latter is of an older version


@dataclass(frozen=True)
class Segment:
    """Photos, and the vectors (N, D) of their contents; never changed.

    Attributes:
        photos: the photos.
        vectors: float32, of length 1.
        shapes: of the contents' signatures, int8 (N, 63), zero where there is none.
        ivf: FAISS's index over the vectors; None if there are few.
        delta: the vectors in the lists of an earlier segment's index; None if there is none, or few vectors.
        file: where it lies; None for memory.
    """

    photos: PhotoTable
    vectors: CheckedArray
    shapes: CheckedArray
    ivf: IVFIndex | None = None
    delta: DeltaLists | None = None
    file: ArrayFile | None = None
    _passing: dict[object, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Return the metadata of its photos by key."""
        return read_columns(self.file, self.file.about["columns"]) if self.file else make_columns(self.photos)

    @cached_property
    def cosines(self) -> CosineSample:
        """Sample the cosines between its vectors."""
        if self.file:
            return CosineSample(self.file.array("pairs.cosines"), self.file.array("pairs.ranks"))
        return sample_cosines(self.vectors)

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, probes: Probes | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best rows for queries (Q, D), as `search_exact` does; only of these lists, if there are any."""
        if probes and (lists := self.ivf or self.delta):
            return lists.search(self.vectors, queries, k, probes, allowed)
        return search_exact(self.vectors, queries, k, allowed)

    def passing(self, condition: Condition, roots: Mapping[int, bytes]) -> np.ndarray:
        """Return which of its photos meet a condition, bool (P,)."""
        key = (condition, tuple(sorted(roots.items())))
        found = self._passing.get(key)
        if found is None:
            found = condition.passes(self.photos, self.columns, roots)
            while len(self._passing) >= _KEPT:
                self._passing.pop(next(iter(self._passing)), None)
            self._passing[key] = found
        return found


def make_segment(store: Store, contents: Sequence[bytes] | None = None, ivf: IVFIndex | None = None) -> Segment:
    """Make a segment in memory of all live photos, or those of these contents; inside `reading` or `writing`.

    Args:
        store: whose.
        contents: None for all.
        ivf: the index that the segment is a delta to.

    Raises:
        IndexDamagedError: a row does not match its checksum, or one is not there.
    """
    reader = _Reader(store, contents)
    vectors = np.empty((len(reader.live), reader.width), np.float32)
    at = 0
    for piece in reader.vectors():
        vectors[at : at + len(piece)] = piece
        at += len(piece)
    checked = CheckedArray(vectors)
    return Segment(reader.photos(), checked, reader.shapes(), delta=_delta_lists(checked, ivf))


def write_segment(
    store: Store,
    file: IO[bytes],
    contents: Sequence[bytes] | None = None,
    ivf: IVFIndex | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> str:
    """Write such a segment into a file, with an index of its own if it is large; inside `writing`.

    Vectors pass through memory in pieces; FAISS reads them from the file.

    Returns:
        The SHA-256 to open it with.
    """
    writer = ArrayWriter(file)
    reader = _Reader(store, contents, progress, store.file.parent)
    shape = (len(reader.live), reader.width)
    writer.add("vectors", reader.vectors(), "<f4", shape[1:])
    writer.add("padding", [np.zeros(BLOCK, np.uint8)], "|u1")  # so that all of the vectors are out
    file.flush()
    vectors = CheckedArray(np.memmap(file, np.float32, "r", shape=shape) if shape[0] else np.empty(shape, np.float32))
    if delta := _delta_lists(vectors, ivf):
        writer.add("lists", [delta.lists], "<i4")
    own = build_ivf(vectors)
    cosines = sample_cosines(vectors)
    cosines.cosines.write(writer, "pairs.cosines")
    cosines.ranks.write(writer, "pairs.ranks")
    reader.shapes().write(writer, "shapes")
    photos = reader.photos()
    photos.write(writer)
    about: dict[str, Any] = {"columns": write_columns(writer, make_columns(photos)), "settings": []}
    if own:
        index = own.index
        writer.add_bytes("faiss", lambda put: faiss().write_index(index, faiss().PyCallbackIOWriter(put)))
        about["settings"] = [{"k": one.k, "lists": one.nprobe, "depth": one.rerank} for one in own.settings]
    return writer.finish(about)


def read_segment(file: ArrayFile, ivf: IVFIndex | None = None) -> Segment:
    """Return the segment in a file; `ivf` is the index that it was written as a delta to."""
    own = None
    if "faiss" in file:
        data = file.array("faiss").all().data  # verified first: FAISS loads many a damaged file without complaint
        at = 0

        def read(size: int) -> bytes:
            nonlocal at
            at += size
            return data[at - size : at].tobytes()

        index = faiss().read_index(faiss().PyCallbackIOReader(read))
        settings = (Setting(one["k"], one["lists"], one["depth"]) for one in file.about["settings"])
        own = IVFIndex(index, tuple(settings))
    delta = DeltaLists(file.array("lists").all(), ivf.index.nlist) if ivf and "lists" in file else None
    return Segment(PhotoTable.read(file), file.array("vectors"), file.array("shapes"), own, delta, file)


def _delta_lists(vectors: CheckedArray, ivf: IVFIndex | None) -> DeltaLists | None:
    if ivf is None or vectors.all().size <= _MAX_EXACT_DELTA:
        return None
    return DeltaLists(ivf.assign(vectors), ivf.index.nlist)


class _Reader:
    """Read the live photos of a store, or those of some contents: first `vectors`, then the rest in their order.

    Args:
        store: whose.
        contents: None for all.
        progress: called with (done, total) vectors.
        folder: where what was read waits; None: in memory.

    Attributes:
        live: the contents that have a live photo, HASH (N,).
        width: of the vectors.
    """

    def __init__(
        self,
        store: Store,
        contents: Sequence[bytes] | None,
        progress: Callable[[int, int], object] | None = None,
        folder: Path | None = None,
    ):
        self._store, self._contents, self._progress = store, contents, progress
        self._of_photos, self._roots = Spool(folder), Spool(folder)
        self._paths, self._metadata = StringSpool(folder), StringSpool(folder)
        self._hashes, self._shapes, self._info = Spool(folder), Spool(folder), StringSpool(folder)
        roots = store.roots()
        for photos in store.photo_pages() if contents is None else map(store.photos_with, contents):
            live = [photo for photo in photos if photo.state == "live"]
            for photo in live:
                if photo.content_hash is None or len(photo.content_hash) != 32:
                    raise store.damaged("a photo without content")
                store.locate(photo, roots)  # raises if there is no root for it
                self._of_photos.add(photo.content_hash)
            self._roots.add(np.array([photo.root_id for photo in live], "<i8").data)
            self._paths.add([photo.path for photo in live])
            self._metadata.add([photo.metadata.encode() for photo in live])
        self.live = np.unique(self._of_photos.all(HASH))
        self._whitening = store.whitening()
        self.width = self._whitening.dim if self._whitening else store.about.dim

    def vectors(self) -> Iterator[np.ndarray]:
        """Yield the vectors of the live contents (n, width) in pieces, whitened where the index is."""
        done = 0
        for page in self._store.vector_rows(self._contents):
            hashes = np.array([row.content_hash for row in page], HASH)
            kept = is_in(hashes, self.live)
            rows: list[VectorRow] = [page[i] for i in np.flatnonzero(kept).tolist()]
            if rows:
                self._hashes.add(hashes[kept].tobytes())
                self._info.add([row.info.encode() for row in rows])
                self._shapes.add(make_shapes([row.signature for row in rows]).tobytes())
                vectors = np.stack([row.vector for row in rows])
                yield self._whitening.apply(vectors, normalize=True) if self._whitening else vectors
                done += len(rows)
                if self._progress:
                    self._progress(done, len(self.live))
        if missing := len(self.live) - done:
            raise self._store.damaged(f"{missing:,} photos without a vector")

    def shapes(self) -> CheckedArray:
        return CheckedArray(self._shapes.all("|i1", (SHAPE,)))

    def photos(self) -> PhotoTable:
        asked = np.array(sorted(self._contents or []), HASH)
        return PhotoTable.make(
            self._hashes.all(HASH),
            self._info.all(),
            asked[~is_in(asked, self.live)],
            self._of_photos.all(HASH),
            self._roots.all("<i8"),
            self._paths,
            self._metadata,
        )


def make_shapes(signatures: Sequence[bytes]) -> np.ndarray:
    """Return the large shapes that pictures show, int8 (N, 63); zero without a signature."""
    shapes: np.ndarray = np.rint(127 * low_frequencies(as_rows(signatures))).astype(np.int8)
    return shapes


# The cache: files of segments. One counts only if the SHA-256 that the store recorded for it fits.


def read_cache(store: Store, known: Iterable[Segment] = ()) -> list[Segment] | None:
    """Return the cached segments, of the generation in `Store.cache`; None if a file is not there or damaged.

    Args:
        store: whose; inside `reading` or `writing`.
        known: segments that are open already, which are not opened again.
    """
    opened = {segment.file.sha256: segment for segment in known if segment.file}
    segments: list[Segment] = []
    try:
        for one in store.cache()[1]:
            ivf = segments[0].ivf if segments else None
            segments.append(opened.get(one["sha256"]) or read_segment(_open(store, one), ivf))
        return segments or None
    except (OSError, DamagedArraysError):
        return None


def cache_fits(store: Store) -> bool:
    """Tell whether the cache is of the present generation and undamaged, all of it."""
    generation, files = store.cache()
    return generation == store.generation() and _sound(store, files)


def update_cache(store: Store, progress: Callable[[int, int], object] | None = None) -> bool:
    """Bring the cache up to date; inside `Store.writing`. Return whether there was anything to do.

    Args:
        store: whose.
        progress: called with (done, total) vectors.

    Raises:
        OSError: the file could not be written.
        IndexWriteError: its checksum could not be recorded.
        IndexDamagedError: the store is damaged.
    """
    generation, files = store.cache()
    sound, now = _sound(store, files), store.generation()
    if sound and generation == now:
        _remove_others(store)
        return False
    first, contents = _changed(store, generation) if sound else (None, None)
    if contents == []:  # other roots: no file tells of those
        with store.transaction():
            store.put_cache(now, files)
        return True
    name = f"search-{now}.cache"
    sha256 = ""

    def write(file: Any) -> None:
        nonlocal sha256
        sha256 = write_segment(store, file, contents, first.ivf if first else None, progress)

    # A kill between the two leaves a file that is not recorded, so it is not read. FAISS does not write it by itself,
    # since it reports success on a full disk.
    write_file(store.file.with_name(name), write)
    with store.transaction():
        store.put_cache(now, [*(files[:1] if first else []), {"name": name, "sha256": sha256}])
    _remove_others(store)
    return True


def try_update_cache(store: Store, progress: Callable[[int, int], object] | None = None) -> None:
    """Do so, unless it cannot be written: the store is what counts, and a search never writes."""
    with suppress(OSError, IndexWriteError, IndexLockedError):
        update_cache(store, progress)


def _remove_others(store: Store) -> None:
    """Remove cache files that are not recorded, of earlier generations or left by a killed process."""
    used = {one["name"] for one in store.cache()[1]}
    for file in store.file.parent.iterdir():
        if _CACHE_FILES.fullmatch(file.name) and file.name not in used:
            with suppress(OSError):  # on Windows while another process has it open
                file.unlink()


def _changed(store: Store, generation: int) -> tuple[Segment, list[bytes]] | tuple[None, None]:
    """Return the first file and the contents of a new delta to it; None if they are many, so that all is rebuilt."""
    changed, segments = store.changes(generation), read_cache(store)
    if changed is None or segments is None:
        return None, None
    contents = set(changed).union(*(segment.photos.content_hashes() for segment in segments[1:]))
    most = min(DELTA_SHARE * len(segments[0].photos), ann.MAX_EXACT / store.about.dim)
    return (segments[0], sorted(contents)) if len(contents) <= most else (None, None)


def _sound(store: Store, files: list[dict[str, Any]]) -> bool:
    try:
        for one in files:
            _open(store, one).verify()
    except (OSError, DamagedArraysError):
        return False
    return bool(files)


def _open(store: Store, one: dict[str, Any]) -> ArrayFile:
    file = ArrayFile(store.file.with_name(one["name"]), one["sha256"])
    if "shapes" not in file or "pairs.ranks" not in file:
        raise DamagedArraysError(f"{one['name']}: of an older version")
    return file
