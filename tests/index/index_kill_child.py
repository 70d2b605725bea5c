"""A process that syncs, reports each commit, and kills itself where it is told; started by test_kill.py."""

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from index_fakes import FakeEmbedder

from simclr_hub import _files
from simclr_hub.index import SimilarityIndex, pipeline
from simclr_hub.index.records import Photo
from simclr_hub.index.search import faiss_cache
from simclr_hub.index.store import Store


def sync(directory: Path, photos: Path, pipe: Connection, step: str, n: int) -> None:
    """Sync; `step` is what to die at, the n-th time; acknowledged photos go through the pipe after each commit."""
    pipeline.BATCH_PHOTOS = 8
    pipeline.find_guilty = lambda paths: {}  # test_isolated.py tries those
    calls = 0

    def die_at(here: str) -> None:
        nonlocal calls
        calls += here == step
        if here == step and calls == n:
            os.kill(os.getpid(), signal.SIGKILL)

    put: list[Photo] = []
    real_put, real_transaction = Store.put, Store.transaction

    class Acknowledging:
        def __init__(self, store: Store):
            self._real = real_transaction(store)

        def __enter__(self) -> None:
            put.clear()
            self._real.__enter__()

        def __exit__(self, *exception: object) -> bool | None:
            result = self._real.__exit__(*exception)  # type: ignore[arg-type]
            if exception[0] is None:
                pipe.send([(p.path, p.state) for p in put])
            die_at("after commit")
            return result

    def remember(store: Store, photo: Photo) -> None:
        real_put(store, photo)
        put.append(photo)

    Store.put = remember  # type: ignore[method-assign]
    Store.transaction = lambda store: Acknowledging(store)  # type: ignore[method-assign, assignment, misc]
    real_replace, real_write = os.replace, faiss_cache.write_file

    def replace(*args: str) -> None:
        die_at("before rename")
        real_replace(*args)
        die_at("after rename")

    def write(*args: object) -> None:
        die_at("before cache")
        real_write(*args)  # type: ignore[arg-type]
        die_at("after cache")

    _files.os.replace = replace  # type: ignore[assignment]
    faiss_cache.write_file = write  # type: ignore[assignment]
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:

        def trace(statement: str) -> None:
            die_at("statement")
            die_at(statement.partition(" ")[0])

        index._store._connection().set_trace_callback(trace)
        die_at("start")
        index.sync(photos)
    pipe.send("done")
