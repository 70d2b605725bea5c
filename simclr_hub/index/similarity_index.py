"""SimilarityIndex: create, sync, search, prune; a directory with a store, a cache of it, and a lock.

Unusual: an index knows what made it and refuses anything made otherwise; a photo that is not there is marked, and only
`prune` forgets it; the model is loaded when the first image has to be embedded, so most calls need none.
"""

import operator
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, overload

import numpy as np

from .. import _files
from ..errors import IndexError_, IndexExistsError, IndexNotFoundError
from ..images import describe
from . import faiss_cache
from .maker import Maker, as_embedder
from .prune import forget_missing
from .queries import query_vectors
from .records import Photo, State
from .report import SyncReport
from .snapshot import Match, Snapshot, take_snapshot
from .store import SCHEMA_VERSION, STORE_NAME, About, Store
from .sync import sync_folder


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
        self._maker = Maker(store, model)
        directory = os.stat(store.file.parent)
        self._own = (directory.st_dev, directory.st_ino)  # not to be indexed
        self._snapshot: Snapshot | None = None
        self._snapshot_cost = self._snapshot_time = 0.0
        self._syncing = False

    @classmethod
    def create(
        cls, path: str | os.PathLike[str], model: Any = None, *, gps: bool = False, **embedder_kwargs: Any
    ) -> "SimilarityIndex":
        """Make an empty index.

        Args:
            path: a directory, which must not exist or must be empty.
            model: as `Embedder` takes it, or an embedder.
            gps: also record where photos were taken, if they tell.
            **embedder_kwargs: for `Embedder`: layer, device, dtype, ...

        Raises:
            IndexExistsError: there is something at `path`.
            CheckpointError: the model cannot be loaded.
        """
        directory = Path(path)
        _refuse_existing(directory)
        embedder = as_embedder(model, **embedder_kwargs)
        try:
            with _files.new_directory(directory) as partial:
                Store.create(partial / STORE_NAME, About(dict(embedder.fingerprint), embedder.dim, gps=gps))
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
        """Close the store; the index cannot be used after that."""
        self._store.close()

    def __enter__(self) -> "SimilarityIndex":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        """How many photos a search can find."""
        return self._store.counts()["live"]

    def sync(
        self, folder: str | os.PathLike[str], *, progress: Callable[[int, int], object] | None = None
    ) -> SyncReport:
        """Bring the index up to date with the photos below a folder.

        New and changed photos are embedded, renamed and copied ones recognised by their content, those that are not
        there marked missing. Folders that were not synchronised now are not judged. It may be stopped at any moment:
        what was committed stays, and the next sync goes on.

        Args:
            folder: nothing is written there.
            progress: called with (done, total) of the photos that had to be read.

        Raises:
            RootUnavailableError: the folder is not there or cannot be listed; nothing was changed.
            IndexLockedError: another process writes to the index.
            IndexWriteError: the index could not be written; what was committed before is safe.
        """
        with self._store.writing():
            self._syncing = True
            try:
                report = sync_folder(
                    self._store,
                    self._maker.embedder,
                    os.fsencode(os.path.realpath(folder)),
                    exclude={self._own},
                    progress=progress,
                )
            finally:
                self._syncing = False
            self._write_cache()
        return report

    @overload
    def search(self, query: list[Any] | tuple[Any, ...], k: int = 10) -> list[list[Match]]: ...

    @overload
    def search(self, query: Any, k: int = 10) -> list[Match]: ...

    def search(self, query: Any, k: int = 10) -> list[Match] | list[list[Match]]:
        """The photos most similar to a query, best first.

        Args:
            query: an image as `load_image` takes it, or a vector (D,) of floats; a list or tuple of them gives a list
                of results.
            k: how many; fewer come back if the index has fewer.

        Raises:
            ValueError: k below 1, or a vector of another width, of other numbers than floats, zero or not finite.
            ImageError: a query image that cannot be read.
            IndexMismatchError: the model that made the index cannot be had.
        """
        if operator.index(k) < 1:
            raise ValueError(f"k={k} must be at least 1")
        queries = list(query) if isinstance(query, (list, tuple)) else [query]
        vectors = query_vectors(queries, self._store, self._maker)  # (Q, D)
        snapshot = self._current()
        found = snapshot.search(vectors, k) if queries else []
        return found if isinstance(query, (list, tuple)) else found[0]

    def vectors(self) -> tuple[list[str], np.ndarray]:
        """The paths of the live photos, sorted, and their vectors of length 1: float32 (N, D)."""
        return self._current().vectors()

    def status(self) -> dict[str, Any]:
        """What the index holds and what made it; plain values, ready for JSON."""
        with self._store.reading():
            counts = self._store.counts()
            return {
                "path": os.fspath(self._store.file.parent.absolute()),
                "photos": counts["live"],
                "missing": counts["missing"],
                "failed": counts["failed"],
                "vectors": counts["vectors"],
                "dim": self._store.about.dim,
                "metric": self._store.about.metric,
                "gps": self._store.about.gps,
                "roots": [os.fsdecode(root.path) for root in self._store.roots().values()],
                "made_by": self._store.about.fingerprint,
                "layout": SCHEMA_VERSION,
            }

    def failures(self) -> list[tuple[str, str]]:
        """The photos that could not be used, as (path, why)."""
        return [(path, photo.error or "") for path, photo in self._in_state("failed")]

    def missing(self) -> list[str]:
        """The photos that were not there at the last sync of their folder."""
        return [path for path, _ in self._in_state("missing")]

    def prune(self, force: bool = False) -> int:
        """Forget the photos that are missing, and vectors that no photo has; how many photos were forgotten.

        Args:
            force: even if much is missing or a listing failed; then also the photos of root folders that were not
                there at their last sync and still are not.

        Raises:
            PruneRefusedError: more than a tenth of the photos are missing, or the last listing of a root failed.
        """
        with self._store.writing():
            forgotten = forget_missing(self._store, force=force)
            self._write_cache()
        return forgotten

    def _in_state(self, state: State) -> list[tuple[str, Photo]]:
        with self._store.reading():
            roots, photos = self._store.roots(), self._store.photos(state=state)
        return sorted(((os.fsdecode(self._store.locate(p, roots)), p) for p in photos), key=lambda pair: pair[0])

    def _current(self) -> Snapshot:
        """The newest snapshot; during a sync of this object an older one, rather than to read all again each time."""
        with self._store.lock:
            snapshot, now = self._snapshot, time.monotonic()
            recent = self._syncing and now - self._snapshot_time < 10 * self._snapshot_cost
            if snapshot is None or (not recent and self._store.generation() != snapshot.generation):
                snapshot = self._snapshot = take_snapshot(self._store, snapshot)
                self._snapshot_time = time.monotonic()
                self._snapshot_cost = self._snapshot_time - now
            return snapshot

    def _write_cache(self) -> None:
        """Bring the cache file up to date; inside `Store.writing`: a search never writes."""
        if not faiss_cache.fits(self._store):
            self._snapshot = take_snapshot(self._store, self._snapshot)
            with suppress(OSError, IndexError_):  # the store is what counts
                faiss_cache.write(self._store, self._snapshot.index, self._snapshot.generation)


def _refuse_existing(path: Path) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise IndexExistsError(f"{describe(path)}: there is something there already; open it, or choose another name")
