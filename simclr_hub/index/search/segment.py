"""A part of the index that never changes: the photos of some contents, their vectors, and FAISS's index of many.

Unusual: a later segment overrides an earlier one for every content that it tells of, so that adding, renaming and
deleting photos makes a small segment beside the large one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Any

import numpy as np

from ..store import Store
from .approximate import Approximate, Beside, Near, Setting, build_approximate
from .arrays import BLOCK, ArrayFile, ArrayWriter, CheckedArray
from .catalog import HASH, Catalog, CatalogBuilder, Texts, among
from .columns import Column, make_columns, read_columns, write_columns
from .exact import search_exactly
from .faiss_library import faiss
from .filters import Condition
from .folding import SHAPE, make_shapes
from .pairs import Pairs, sample_pairs

#: Up to so many numbers (vectors x width) beside FAISS's index are all compared, so that what was just added is found.
_BESIDE_NUMBERS = 1 << 20
#: Answers of conditions that are kept.
_KEPT = 8


@dataclass(frozen=True)
class Segment:
    """Photos, and the vectors (N, D) of their contents.

    Attributes:
        catalog: the photos.
        vectors: float32, of length 1.
        approximate: FAISS's index over them; None if there are few.
        beside: the vectors in the lists of an earlier segment's index; None if there is none, or few vectors.
        file: where it lies; None for memory.
        shapes: of the contents' signatures, int8 (N, 63); None in a file of an older version.
    """

    catalog: Catalog
    vectors: CheckedArray
    approximate: Approximate | None = None
    beside: Beside | None = None
    file: ArrayFile | None = None
    shapes: CheckedArray | None = None
    _passing: dict[object, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def columns(self) -> dict[str, Column]:
        """The metadata of its photos by key."""
        if self.file is not None:
            return read_columns(self.file, self.file.about["columns"])
        return make_columns(self.catalog)

    @cached_property
    def pairs(self) -> Pairs:
        """How near its vectors come to one another."""
        if self.file is not None and "pairs.ranks" in self.file:
            return Pairs(self.file.array("pairs.cosines"), self.file.array("pairs.ranks"))
        return sample_pairs(self.vectors)

    def search(
        self, queries: np.ndarray, k: int, allowed: np.ndarray | None = None, near: Near | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The best rows for queries (Q, D); as `search_exactly`, and without `near` by it."""
        if near and (lists := self.approximate or self.beside):
            return lists.search(self.vectors, queries, k, near, allowed)
        return search_exactly(self.vectors, queries, k, allowed)

    def passing(self, condition: Condition, roots: Mapping[int, bytes]) -> np.ndarray:
        """Which of its photos meet a condition, bool (P,)."""
        key = (condition, tuple(sorted(roots.items())))
        found = self._passing.get(key)
        if found is None:
            found = condition.passes(self.catalog, self.columns, roots)
            while len(self._passing) >= _KEPT:
                self._passing.pop(next(iter(self._passing)), None)
            self._passing[key] = found
        return found


def make_segment(
    store: Store, contents: Sequence[bytes] | None = None, approximate: Approximate | None = None
) -> Segment:
    """In memory: all live photos, or those of these contents as they are now; inside `reading` or `writing`.

    Args:
        store: whose.
        contents: None for all.
        approximate: the index that they come beside.

    Raises:
        IndexDamagedError: a row does not match its checksum, or one is not there.
    """
    builder = _gather(store, contents)
    live = builder.contents()
    reader = _Reader(store, contents, live)
    vectors = np.empty((len(live), reader.width), np.float32)
    at = 0
    for piece in reader:
        vectors[at : at + len(piece)] = piece
        at += len(piece)
    checked = CheckedArray(vectors)
    return Segment(reader.catalog(builder), checked, beside=_beside(checked, approximate), shapes=reader.shapes())


def write_segment(
    store: Store,
    file: IO[bytes],
    contents: Sequence[bytes] | None = None,
    approximate: Approximate | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> str:
    """The same into a file, with an index of its own if it is large; the SHA-256 to open it with; inside `writing`.

    Vectors pass through memory in pieces; FAISS reads them from the file.
    """
    writer = ArrayWriter(file)
    builder = _gather(store, contents)
    live = builder.contents()
    reader = _Reader(store, contents, live, progress)
    writer.add("vectors", reader, "<f4", (reader.width,))
    writer.add("padding", [np.zeros(BLOCK, np.uint8)], "|u1")  # so that all of the vectors are out
    file.flush()
    shape = (len(live), reader.width)
    vectors: np.ndarray = np.memmap(file, np.float32, "r", shape=shape) if len(live) else np.empty(shape, np.float32)
    checked = CheckedArray(vectors)
    beside = _beside(checked, approximate)
    if beside:
        writer.add("lists", [beside.lists], "<i4")
    own = build_approximate(checked)
    pairs = sample_pairs(checked)
    writer.add("pairs.cosines", [pairs.cosines.all()], "<f4")
    writer.add("pairs.ranks", [pairs.ranks.all()], "<i8")
    writer.add("shapes", [reader.shapes().all()], "|i1", (SHAPE,))
    catalog = reader.catalog(builder)
    catalog.write(writer)
    about: dict[str, Any] = {"columns": write_columns(writer, make_columns(catalog)), "settings": []}
    if own:
        stream = writer.stream("faiss")
        faiss().write_index(own.index, faiss().PyCallbackIOWriter(stream.write))
        stream.close()
        about["settings"] = [vars(setting) for setting in own.settings]
    return writer.finish(about)


def read_segment(file: ArrayFile, beside: Approximate | None = None) -> Segment:
    """The segment in a file; `beside` is the index that it was written beside."""
    approximate = None
    if "faiss" in file:
        data = file.array("faiss").all().data  # compared before FAISS sees it
        at = 0

        def read(size: int) -> bytes:
            nonlocal at
            at += size
            return data[at - size : at].tobytes()

        index = faiss().read_index(faiss().PyCallbackIOReader(read))
        approximate = Approximate(index, tuple(Setting(**setting) for setting in file.about["settings"]))
    vectors = file.array("vectors")
    lists = Beside(file.array("lists").all(), beside.index.nlist) if beside and "lists" in file else None
    shapes = file.array("shapes") if "shapes" in file else None
    return Segment(Catalog.read(file), vectors, approximate, lists, file, shapes)


def _beside(vectors: CheckedArray, approximate: Approximate | None) -> Beside | None:
    if approximate is None or vectors.all().size <= _BESIDE_NUMBERS:
        return None
    return Beside(approximate.lists_of(vectors), approximate.index.nlist)


def _gather(store: Store, contents: Sequence[bytes] | None) -> CatalogBuilder:
    builder, roots = CatalogBuilder(), store.roots()
    for photos in store.photo_pages() if contents is None else map(store.photos_with, contents):
        for photo in photos:
            if photo.state == "live":
                if photo.content_hash is None:
                    raise store.damaged("a photo without content")
                store.locate(photo, roots)  # is there a root for it?
                builder.add(photo.content_hash, photo.root_id, photo.path, photo.metadata)
    return builder


class _Reader:
    """Gives the vectors of live contents (n, width) in pieces, whitened where the index is.

    It remembers in which order they came, and what is known of them.
    """

    def __init__(
        self,
        store: Store,
        contents: Sequence[bytes] | None,
        live: np.ndarray,
        progress: Callable[[int, int], object] | None = None,
    ):
        self._progress = progress
        self._store, self._contents, self._live = store, contents, live
        self._hashes: list[np.ndarray] = []
        self._starts, self._info = [0], bytearray()
        self._shapes: list[np.ndarray] = []
        self._whitening = store.whitening()
        self.width = self._whitening.dim if self._whitening else store.about.dim

    def __iter__(self):  # type: ignore[no-untyped-def]
        for page in self._store.vector_rows(self._contents):
            hashes = np.array([row.content_hash for row in page], HASH)
            keep = among(hashes, self._live)
            if keep.any():
                self._hashes.append(hashes[keep])
                rows = [row for row, kept in zip(page, keep.tolist(), strict=True) if kept]
                for row in rows:
                    self._info += row.info.encode()
                    self._starts.append(len(self._info))
                self._shapes.append(make_shapes([row.signature for row in rows]))
                vectors = np.stack([row.vector for row in rows])
                yield self._whitening.apply(vectors, normalize=True) if self._whitening else vectors
                if self._progress:
                    self._progress(len(self._starts) - 1, len(self._live))
        if (missing := len(self._live) - len(self._starts) + 1) != 0:
            raise self._store.damaged(f"{missing:,} photos without a vector")

    def shapes(self) -> CheckedArray:
        return CheckedArray(np.concatenate([*self._shapes, np.empty((0, SHAPE), np.int8)]))

    def catalog(self, builder: CatalogBuilder) -> Catalog:
        hashes = np.concatenate([*self._hashes, np.empty(0, HASH)])
        asked = np.array(sorted(self._contents or []), HASH)
        info = Texts(
            CheckedArray(np.array(self._starts, np.int64)), CheckedArray(np.frombuffer(bytes(self._info), np.uint8))
        )
        return builder.build(hashes, info, asked[~among(asked, self._live)])
