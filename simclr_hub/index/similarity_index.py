"""SimilarityIndex: create, sync, search, prune; a directory with a store, a cache of it, and a lock."""

import operator
import os
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np

from .. import _files
from ..duplicates.calibrate import calibrate_index, index_thresholds
from ..duplicates.find import TIERS, DuplicateGroup, Tier, find_duplicates
from ..duplicates.thresholds import Thresholds
from ..errors import (
    ImageError,
    IndexExistsError,
    IndexMismatchError,
    IndexNotFoundError,
    PruneRefusedError,
)
from ..images import describe
from ..labels import Labels
from ..scan import Rules
from ..whitening import IMAGES, Whitening
from .check import CheckReport, check_index
from .copies import SamePicture, record_distinct
from .examples import Given, label_snapshot
from .maker import Maker, as_embedder, choose_whitening
from .parquet import export_index, import_index
from .paths import as_recorded, on_disk, relocate_roots
from .queries import combine, query_vectors
from .results import Groups, Matches, Searches
from .search.arrays import DamagedArraysError
from .search.explain import explain_empty
from .search.filters import make_condition
from .search.find import Match, Search
from .search.segments import try_update_cache
from .search.snapshot import Snapshot, take_snapshot
from .store import SCHEMA_VERSION, STORE_NAME, About, Photo, Store
from .sync import SyncReport, sync_folder

if TYPE_CHECKING:
    from ..browse.browsing import Browsing

#: `prune` is refused when more of the photos than this are missing: a disk may be unplugged.
MOST_MISSING = 0.1
#: Photos that are forgotten at a time.
_PAGE = 4096
#: From so many photos on `status` says that one machine's index ends at about ten million.
NEAR_LIMIT = 8_000_000
NEAR_LIMIT_ADVICE = "one machine's index is meant for up to about 10 million photos; docs/cluster.md: how to go beyond"
_T = TypeVar("_T")


class SimilarityIndex:
    """An index on disk; get one by `create` or `open`, use it in a `with` block or `close` it.

    Searching is safe from any thread, also during a sync, and then sees what was committed by then.

    Example:
        >>> with SimilarityIndex.create("photos.index") as index:  # doctest: +SKIP
        ...     index.sync("photos/")
        ...     index.search("photos/cat.jpg", k=5)
    """

    def __init__(self, store: Store, model: Any = None):
        self._store = store
        self._maker = Maker(store.about, str(store.file.parent), model)
        directory = os.stat(store.file.parent)
        self._own = (directory.st_dev, directory.st_ino)  # not to be indexed
        self._snapshot: Snapshot | None = None
        self._snapshot_cost = self._snapshot_time = 0.0
        self._syncing = False
        self._browsed = ExitStack()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        model: Any = None,
        *,
        gps: bool = False,
        whiten: Whitening | bool | None = None,
        **embedder_kwargs: Any,
    ) -> "SimilarityIndex":
        """Make an empty index.

        Args:
            path: a directory, which must not exist or must be empty.
            model: as `Embedder` takes it, or an embedder.
            gps: also record where photos were taken, if they tell.
            whiten: None whitens if a whitening comes with the checkpoint, or the given embedder whitens; True demands
                it, False does not; or a `Whitening`. `SimilarityIndex.whiten` changes it later.
            **embedder_kwargs: for `Embedder`: layer, device, dtype, ...

        Raises:
            IndexExistsError: there is something at `path`.
            CheckpointError: the model, or the whitening that comes with it, cannot be loaded.
            ValueError: a whitening of another model or layer.
        """
        directory = Path(path)
        _refuse_existing(directory)
        embedder = as_embedder(model, **embedder_kwargs)
        whitening = choose_whitening(model, embedder, whiten)
        try:
            with _files.new_directory(directory) as partial:
                about = About(dict(embedder.fingerprint), embedder.dim, gps=gps)
                Store.create(partial / STORE_NAME, about, whitening)
        except FileExistsError as e:
            raise IndexExistsError(str(e)) from e
        return cls(Store(directory / STORE_NAME), embedder)

    @classmethod
    def open(cls, path: str | os.PathLike[str], model: Any = None) -> "SimilarityIndex":
        """Open an index.

        Args:
            path: its directory.
            model: the model that made it, as `Embedder` takes it, or an embedder; None loads it by the recorded name
                when it is needed.

        Raises:
            IndexNotFoundError: there is none at `path`.
            IndexDamagedError: its store is damaged.
            IndexMismatchError: made by another model, or by a newer version of this package.
        """
        directory = Path(path)
        file = directory / STORE_NAME
        if not file.is_file():
            raise IndexNotFoundError(
                f"{describe(directory)}: no index there; `simclr-hub index PHOTOS -o {describe(directory)}` makes one"
            )
        store = Store(file, read_only=not (os.access(directory, os.W_OK) and os.access(file, os.W_OK)))
        try:
            return cls(store, model)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the store, and pages that `browse` opened; the index cannot be used after that."""
        self._browsed.close()
        self._snapshot = None  # maps the cache's files
        self._store.close()

    def __enter__(self) -> "SimilarityIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def store(self) -> Store:
        """Return the store, for this package's own doors."""
        return self._store

    def __len__(self) -> int:
        """Return how many photos a search can find."""
        return self._store.live()

    def sync(
        self,
        folder: str | os.PathLike[str],
        *,
        moved_from: str | os.PathLike[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        include_hidden: bool | None = None,
        progress: Callable[[int, int], object] | None = None,
        on_failure: Callable[[ImageError], object] | None = None,
    ) -> SyncReport:
        """Bring the index up to date with the photos below a folder.

        New and changed photos are embedded, renamed and copied ones recognised by their content, those that are not
        there marked missing. Folders that were not synchronised now are not judged. It may be stopped at any moment:
        what was committed stays, and the next sync goes on.

        Args:
            folder: nothing is written there.
            moved_from: where the photos were when they were recorded, if the whole folder was moved or its disk has
                another mount point or drive letter now: nothing is embedded, and no file is read whose size,
                times and inode are as before.
            exclude: patterns of files and folders to leave out, as "Screenshots", "*.gif" or "2019/**/raw"; remembered
                by the index, in place of those before; None: those that it remembers. What was recorded and is left
                out now is marked missing.
            include_hidden: whether files and folders whose names begin with a dot are read; remembered likewise.
                Trash, thumbnails and what systems keep in folders of their own are left out in any case.
            progress: called with (done, total) of the photos that had to be read.
            on_failure: called with why a photo cannot be used, as it is found.

        Raises:
            RootUnavailableError: the folder is not there or cannot be listed; nothing was changed.
            ValueError: a pattern in `exclude` that is none; nothing was changed.
            IndexLockedError: another process writes to the index.
            IndexWriteError: the index could not be written; what was committed before is safe.
        """
        with self._store.writing():
            self._syncing = True
            try:
                path = as_recorded(on_disk(folder), self._store.roots().values())
                if moved_from is not None:
                    relocate_roots(self._store, moved_from, path)
                report = sync_folder(
                    self._store,
                    self._maker.embedder,
                    path,
                    rules=self._rules(exclude, include_hidden),
                    exclude={self._own},
                    progress=progress,
                    on_failure=on_failure,
                )
            finally:
                self._syncing = False
            self._write_cache()
        return report

    @overload
    def search(
        self,
        query: list[Any] | tuple[Any, ...],
        k: int = 10,
        *,
        negative: None = None,
        negative_weight: float = 0.5,
        with_self: bool = False,
        all_copies: bool = False,
        path: str | os.PathLike[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[list[Match]]: ...

    @overload
    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        negative: Any = None,
        negative_weight: float = 0.5,
        with_self: bool = False,
        all_copies: bool = False,
        path: str | os.PathLike[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Match]: ...

    def search(
        self,
        query: Any,
        k: int = 10,
        *,
        negative: Any = None,
        negative_weight: float = 0.5,
        with_self: bool = False,
        all_copies: bool = False,
        path: str | os.PathLike[str] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> list[Match] | list[list[Match]]:
        """Return the photos most similar to a query, best first; the query's own file is left out.

        Files of one picture, of the same bytes or re-encoded, resized, mirrored and the like, are one match, whose
        `copies` are the others. `explain_empty` says why nothing was found.

        In a large index, and for k up to 100, on average at least 95 % of the true k best are found (docs/search.md);
        otherwise all of them, also with `path` or `where`.

        Args:
            query: an image as `load_image` takes it, or a vector (D,) of floats; a list or tuple of them gives a list
                of results, one for each.
            k: how many; fewer come back if the index has fewer.
            negative: one or a list of what results should not be like. With it, also with [], a list of queries is one
                search for what is like all of them, and gives one list of results: the direction of their mean less
                `negative_weight` times the negatives' mean.
            negative_weight: how much the negatives count.
            with_self: also find the query's own file, and those of the negatives.
            all_copies: a match for every file; the fastest for many queries.
            path: only photos whose path, absolute or relative to the folder that was synchronised, matches this
                pattern: `*` and `?` stay within a folder, `**` stands for any folders.
            where: only photos whose metadata have these values, or lie between both ends of a pair (low, high), one
                of which may be None: `{"camera": "Canon EOS 5D", "width": (1024, None)}`.

        Raises:
            TypeError: k is no whole number.
            ValueError: k below 1; a vector of another width, of other numbers than floats, zero or not finite; a
                condition that cannot be compared; negatives without a query, or that cancel it.
            ImageError: a query image that cannot be read.
            IndexMismatchError: the model that made the index cannot be had.
        """
        number = _count(k)
        condition = make_condition(path, where)
        queries, unlike = _as_list(query), [] if negative is None else _as_list(negative)
        together = negative is not None
        if not queries:
            if together:
                raise ValueError("no photo that results should be like: give at least one beside the negatives")
            return []

        def find(snapshot: Snapshot) -> list[list[Match]]:
            # The queries are whitened as the snapshot's vectors are, whatever another process does meanwhile.
            vectors, own = query_vectors([*queries, *unlike], self._store, self._maker, snapshot.whitening)  # (Q, D)
            if together:
                vectors = combine(vectors[: len(queries)], vectors[len(queries) :], negative_weight)
                own = [set().union(*own)]
            same = None if all_copies else SamePicture(self._store)
            left_out = [] if with_self or not any(own) else own
            return Search(snapshot, number, condition, same).run(vectors, left_out)

        found = self.use_snapshot(find)
        if together and len(queries) + len(unlike) > 1:
            for match in found[0]:
                match.closer_than = None  # which is of pairs of photos
        if isinstance(query, (list, tuple)) and not together:
            return Searches(map(Matches, found))
        return Matches(found[0])

    def query_vector(self, query: Any) -> np.ndarray:
        """Return what a search compares for a query (D,), of length 1, and takes in the query's place.

        Raises:
            ImageError: an image that cannot be read.
            IndexMismatchError: the model that made the index cannot be had.
        """

        def embed(snapshot: Snapshot) -> np.ndarray:
            vector: np.ndarray = query_vectors([query], self._store, self._maker, snapshot.whitening)[0][0]
            return vector

        return self.use_snapshot(embed)

    def explain_empty(
        self, *, path: str | os.PathLike[str] | None = None, where: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Return why a search with these conditions finds nothing, in sentences for people.

        Raises:
            ValueError: a condition that cannot be compared.
        """
        condition = make_condition(path, where)
        missing = 0 if len(self) else self._store.counts()["missing"]
        return self.use_snapshot(lambda snapshot: explain_empty(snapshot, condition, missing))

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """Return the paths of the live photos, sorted, and what a search compares: float32 (N, D) of length 1.

        They are whitened if the index is; `whiten(False)` makes them h again, as does `embed`.
        """
        return self.use_snapshot(Snapshot.vectors)

    def features(self) -> tuple[list[str], np.ndarray]:
        """Return the paths of the live photos, sorted, and what the model gave: float32 (N, D) of length 1.

        They are never whitened. An index keeps which way h points, not its length.
        """
        with self._store.reading():
            roots = self._store.roots()
            photos = [(os.fsdecode(self._store.locate(p, roots)), p) for p in self._store.photos(state="live")]
            photos.sort(key=lambda pair: pair[0])
            wanted: dict[bytes, list[int]] = {}
            for place, (_, photo) in enumerate(photos):
                wanted.setdefault(photo.content_hash or b"", []).append(place)
            vectors = np.empty((len(photos), self._store.about.dim), np.float32)
            left = set(wanted)
            for contents, some in self._store.vector_pages():
                for content, vector in zip(contents, some, strict=True):
                    if content in left:
                        vectors[wanted[content]] = vector
                        left.remove(content)
            if left:
                raise self._store.damaged("a photo without a vector")
        return [path for path, _ in photos], vectors

    def label(
        self,
        examples: str | os.PathLike[str] | Mapping[str, Sequence[Any]],
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> Labels:
        """Label every photo by a few examples of each class; no photo is moved.

        Args:
            examples: a folder with a folder of photos for each class, or class -> its photos: paths, what else
                `load_image` takes, or contents of this index by their SHA-256, 32 bytes. Those whose content is in the
                index need no model.
            progress: called with (done, total) contents.

        Raises:
            LabelError: fewer than two classes, one without a photo that can be read, a photo in two classes, or more
                examples than `labels.MOST_EXAMPLES`.
            IndexMismatchError: the model that made the index cannot be had.
        """
        given = Given.of(examples)
        return self.use_snapshot(lambda snapshot: label_snapshot(snapshot, self._store, self._maker, given, progress))

    def status(self) -> dict[str, Any]:
        """Return what the index holds and what made it; plain values, ready for JSON."""
        with self._store.beside() as store:
            counts = store.counts()
        with self._store.reading():
            whitening, about = self._store.whitening(), self._store.about
            told = ("learnt_from", "images", "shrinkage", "dim")
            return {
                "path": os.fspath(self._store.file.parent.absolute()),
                "photos": counts["live"],
                "missing": counts["missing"],
                "failed": counts["failed"],
                "vectors": counts["vectors"],
                "dim": about.dim,
                "metric": about.metric,
                "gps": about.gps,
                "exclude": list(about.exclude),
                "include_hidden": about.include_hidden,
                "roots": [os.fsdecode(root.path) for root in self._store.roots().values()],
                "whitening": whitening and {name: getattr(whitening, name) for name in told},
                "made_by": about.fingerprint,
                "layout": SCHEMA_VERSION,
                **({"advice": NEAR_LIMIT_ADVICE} if counts["live"] >= NEAR_LIMIT else {}),
            }

    def whiten(
        self, whiten: Whitening | bool | None = None, *, progress: Callable[[int, int], object] | None = None
    ) -> Whitening | None:
        """Whiten an index that exists, with another whitening than before, or not any more; no photo is read.

        The change is one short transaction; then the search cache is made anew. It may be stopped at any moment and
        called again.

        Args:
            whiten: None for what comes with the checkpoint, or else one learnt on the index's own photos; a
                `Whitening`; True for the checkpoint's alone; False for none.
            progress: called with (done, total) vectors of the new cache.

        Returns:
            What the index is whitened with now.

        Raises:
            ValueError: a whitening of another model or layer; or the index has too few photos to learn one.
            CheckpointError: what comes with the checkpoint is damaged, or nothing does, but `whiten` is True.
            IndexLockedError: another process writes to the index.
        """
        with self._store.writing():
            new = None if whiten is False else _choose_whitening(self._store, self._maker, whiten)
            if new != self._store.whitening():
                with self._store.transaction():
                    self._store.put_whitening(new)
            self._write_cache(progress)
            return self._store.whitening()

    def failures(self) -> list[tuple[str, str]]:
        """Return the photos that could not be used, or not be read again, as (path, why)."""
        return [(path, photo.error or "") for path, photo in self._those(Store.failed)]

    def missing(self) -> list[str]:
        """Return the photos that were not there at the last sync of their folder."""
        return [path for path, _ in self._those(Store.all_missing)]

    def prune(self, force: bool = False) -> int:
        """Forget the photos that are missing, and vectors that no photo has; return how many photos were forgotten.

        Args:
            force: even if much is missing or a listing failed; then also the photos of root folders that were not
                there at their last sync and still are not.

        Raises:
            PruneRefusedError: more than a tenth of the photos are missing, or the last listing of a root failed.
        """
        with self._store.writing():
            forgotten = _forget_missing(self._store, force)
            self._write_cache()
        return forgotten

    def duplicates(
        self, tiers: Collection[Tier] = TIERS, *, progress: Callable[[int, int], object] | None = None
    ) -> list[DuplicateGroup]:
        """Return groups of photos that hold the same bytes, the same picture or a similar one; nothing is deleted.

        The same picture is one that was re-encoded, resized, mirrored, turned by quarters, made brighter or grey,
        framed, cropped or written on a little. A file is in one group of the first two tiers at most; a similar group
        has each picture's best file.

        Args:
            tiers: which of "same-bytes", "same-picture" and "similar".
            progress: called with (done, total) pairs that are compared.

        Returns:
            The groups by tier, each with the file to keep and why.

        Raises:
            ValueError: a tier that is none.
        """
        if unknown := set(tiers) - set(TIERS):
            raise ValueError(f"tiers={sorted(unknown)}: the tiers are {', '.join(TIERS)}")
        with self._store.beside() as store:
            return Groups(find_duplicates(store, index_thresholds(store), tiers, progress))

    def browse(self, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None) -> "Browsing":
        """Serve a page to look at the photos, from threads of its own, until it or the index is closed.

        Args:
            host: address to listen on; any but this machine's own needs a token.
            port: 0 for a free one.
            token: at least 16 characters that the page's address holds; None for a new one.

        Returns:
            What tells the address, in a notebook as a link, and closes the page; also a context manager.

        Raises:
            MissingExtraError: the extra `web` is not installed.
            OutputError: the address cannot be listened on, or is open to others without a token.
            ValueError: a token that is too short.
        """
        # By its name, since the page stands on the index; what it needs is loaded for it alone.
        browsing: Browsing = import_module("simclr_hub.browse.browsing").Browsing(self, host, port, token)
        self._browsed.callback(browsing.close)
        return browsing

    def not_duplicates(self, *paths: str | os.PathLike[str]) -> None:
        """Record that no two of these photos are duplicates or similar, whatever they look like.

        It holds for their contents: also after they are renamed, moved or copied.

        Raises:
            ValueError: fewer than two photos, one that the index does not hold, or two of the same bytes.
        """
        with self._store.writing():
            record_distinct(self._store, paths)

    def calibration(self) -> Thresholds:
        """Return the thresholds of `duplicates`; `measured` is empty if none were measured for the model."""
        return index_thresholds(self._store)

    def calibrate(self, *, copies: int = 100, progress: Callable[[int, int], object] | None = None) -> Thresholds:
        """Measure those thresholds for this index's model on its own photos, and store them in the index.

        Copies are made in memory and embedded. The default checkpoint comes with thresholds.

        Args:
            copies: of how many photos each kind of copy is made.
            progress: called with (done, total) copies.

        Raises:
            ValueError: fewer than ten photos can be read.
            IndexMismatchError: the model that made the index cannot be had.
        """
        with self._store.writing():
            return calibrate_index(self._store, self._maker.embedder(), copies=copies, progress=progress)

    def check(
        self, *, repair: bool = False, deep: bool = False, progress: Callable[[int, int], object] | None = None
    ) -> CheckReport:
        """Check whether the index is sound, and what could not be verified; `check_index` also takes a damaged one.

        Args:
            repair: if the store is damaged, save what is sound; the damaged file is kept under another name.
            deep: also read the photos again and embed a sample; a deep check that was stopped goes on.
            progress: called with (done, total) photos of a deep check.

        Raises:
            IndexLockedError: another process or thread writes to it.
        """
        file = self._store.file
        report = check_index(file.parent, repair=repair, deep=deep, model=self._maker, progress=progress)
        if report.repair:
            self._store.close()
            self._store = Store(file)
            self._snapshot = None
        return report

    def export(self, path: str | os.PathLike[str], *, progress: Callable[[int, int], object] | None = None) -> int:
        """Write the photos that have a vector to a Parquet file; return how many. See `from_export` and docs/index.md.

        Args:
            path: ends in .parquet; must not exist.
            progress: called with (done, total) photos.

        Raises:
            FileExistsError: there is something at `path`.
            OutputError: another suffix, or a folder that is missing or read-only.
            IndexWriteError: it could not be written; nothing is there then.
            MissingExtraError: pyarrow is not installed.
        """
        return export_index(self._store.file, path, progress=progress)

    @classmethod
    def from_export(
        cls,
        path: str | os.PathLike[str],
        directory: str | os.PathLike[str],
        model: Any = None,
        *,
        progress: Callable[[int, int], object] | None = None,
    ) -> "SimilarityIndex":
        """Make an index of a file that `export` wrote; every row is checked.

        Args:
            path: the Parquet file.
            directory: the new index; must not exist or be empty.
            model: as for `open`.
            progress: called with (done, total) photos.

        Raises:
            ExportError: the file is damaged or no export, or a row is not what it must be; nothing was made.
            IndexExistsError: there is something at `directory`.
            IndexNotFoundError: there is no file at `path`.
            MissingExtraError: pyarrow is not installed.
            OutputError: `directory` lies below a photo folder that the file tells of.
        """
        import_index(path, directory, progress=progress)
        return cls.open(directory, model)

    def _rules(self, exclude: str | Sequence[str] | None, include_hidden: bool | None) -> Rules:
        """Return what a sync leaves out: what it was told, else what the index remembers."""
        old = self._store.about.rules
        exclude = [exclude] if isinstance(exclude, str) else exclude
        return Rules(
            old.exclude if exclude is None else tuple(exclude),
            old.include_hidden if include_hidden is None else include_hidden,
        )

    def _those(self, wanted: Callable[[Store], list[Photo]]) -> list[tuple[str, Photo]]:
        """Return the photos that are wanted, with their paths, sorted by these."""
        with self._store.beside() as store, store.reading():
            roots, photos = store.roots(), wanted(store)
        return sorted(((os.fsdecode(store.locate(p, roots)), p) for p in photos), key=lambda pair: pair[0])

    def _current(self) -> Snapshot:
        """Return the newest snapshot; during a sync by this object an older one, not to read anew each time."""
        with self._store.lock:
            snapshot, now = self._snapshot, time.monotonic()
            recent = self._syncing and now - self._snapshot_time < 10 * self._snapshot_cost
            if snapshot is None or (not recent and self._store.version() != snapshot.version):
                snapshot = self._snapshot = take_snapshot(self._store, snapshot)
                self._snapshot_time = time.monotonic()
                self._snapshot_cost = self._snapshot_time - now
            return snapshot

    def use_snapshot(self, work: Callable[[Snapshot], _T]) -> _T:
        """Work on the newest snapshot; if its cache turns out to be damaged, on one from the store alone."""
        try:
            return work(self._current())
        except DamagedArraysError:
            with self._store.lock:
                self._snapshot = snapshot = take_snapshot(self._store, cached=False)
            return work(snapshot)

    def _write_cache(self, progress: Callable[[int, int], object] | None = None) -> None:
        """Bring the cache up to date; inside `Store.writing`."""
        try_update_cache(self._store, progress)


def _count(k: Any) -> int:
    """Return `k` as a whole number from 1 on."""
    try:
        number = operator.index(k)
    except TypeError:
        number = None
    if number is None or isinstance(k, (bool, np.bool_)):
        raise TypeError(f"k={k!r}: give how many photos are wanted, as a whole number")
    if number < 1:
        raise ValueError(f"k={k} must be at least 1")
    return number


def _as_list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _refuse_existing(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise IndexExistsError(f"{describe(path)}: there is something there already; open it, or choose another name")


def _choose_whitening(store: Store, maker: Maker, whiten: Whitening | bool | None) -> Whitening:
    """Return what was asked for, or what comes with the checkpoint, or else one learnt on the index's photos."""
    try:
        if found := choose_whitening(None, maker.embedder(), whiten):
            return found
    except IndexMismatchError:  # the model cannot be had
        if whiten is not None:
            raise
    hashes = sorted({photo.content_hash for photo in store.sample(IMAGES) if photo.content_hash})
    vectors = [vector for content_hash in hashes if (vector := store.vector(content_hash)) is not None]
    about = store.about
    return Whitening.learn(
        np.array(vectors, np.float32).reshape(-1, about.dim),
        learnt_from="the photos of the index itself",
        layer=about.fingerprint.get("layer", "h"),
        weights=str(about.fingerprint.get("weights", "")),
    )


def _forget_missing(store: Store, force: bool) -> int:
    """Do what `SimilarityIndex.prune` tells, the one place where the index drops something."""
    roots, used, number, failed, missing = store.roots(), set(), 0, 0, 0
    # No sync can mark the photos of a root that is not there.
    lost = {root.id for root in roots.values() if root.listing == "unavailable" and not os.path.isdir(root.path)}

    def doomed(photo: Photo) -> bool:
        return photo.state == "missing" or (force and photo.root_id in lost)

    for photo in store.each_photo():
        used.add(photo.root_id)
        number += 1
        failed += photo.state == "failed"
        missing += doomed(photo)
    if not force:
        for root in roots.values():
            if root.id in used and root.listing != "ok":
                raise PruneRefusedError(
                    f"{describe(os.fsdecode(root.path))} could not be listed in full at its last sync; "
                    "sync it again, or force the pruning"
                )
        # Vectors of photos that failed since: what they held once is not to be lost for a disk that answered wrongly.
        orphans = min(failed, store.unused_vectors())
        if missing + orphans > MOST_MISSING * number:
            unread = f" and {orphans:,} can no longer be decoded" if orphans else ""
            raise PruneRefusedError(
                f"{missing:,} of {number:,} photos are missing{unread}, more than {MOST_MISSING:.0%}: "
                "is a disk unplugged or failing? Sync again, or force the pruning"
            )
    with store.transaction():
        after = (-1, b"")
        while page := store.page(after, _PAGE):
            after = (page[-1].root_id, page[-1].path)
            for photo in filter(doomed, page):
                store.forget(photo)
        store.forget_vectors()
        for root in roots.values():
            first = store.page((root.id, b""), 1)
            if not first or first[0].root_id != root.id:
                store.forget_root(root)
    return missing
