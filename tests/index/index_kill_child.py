"""Processes that sync or whiten, and kill themselves where they are told; for test_kill.py and test_whitened.py."""

import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from index_fakes import FakeEmbedder

from simclr_hub import _files
from simclr_hub.index import SimilarityIndex
from simclr_hub.index import sync as sync_module
from simclr_hub.index.search import segments
from simclr_hub.index.store import Photo, Store
from simclr_hub.whitening import Whitening


def sync(directory: Path, photos: Path, pipe: Connection, step: str, n: int) -> None:
    """Sync; `step` is what to die at, the n-th time; acknowledged photos go through the pipe after each commit."""
    sync_module.BATCH_PHOTOS = 8
    sync_module.decode_sandboxed = lambda paths: {}  # test_sandboxed_decode.py tries those
    die_at = killer(step, n)
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
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        watch(index, die_at)
        die_at("start")
        index.sync(photos)
    pipe.send("done")


def whiten(directory: Path, file: Path, pipe: Connection, step: str, n: int) -> None:
    """Whiten an index with a whitening in a file; `step` is what to die at, the n-th time."""
    die_at = killer(step, n)
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        watch(index, die_at)
        die_at("start")
        index.whiten(Whitening.load(file))
    pipe.send("done")


def killer(step: str, n: int) -> Callable[[str], None]:
    """What kills this process when it is told `step` for the n-th time."""
    calls = 0

    def die_at(here: str) -> None:
        nonlocal calls
        calls += here == step
        if here == step and calls == n:
            os.kill(os.getpid(), signal.SIGKILL)

    return die_at


def watch(index: SimilarityIndex, die_at: Callable[[str], None]) -> None:
    """Tell of SQL statements by their first word, and of what is done with the cache's file."""
    real_replace, real_write = os.replace, segments.write_file

    def replace(*args: str) -> None:
        die_at("before rename")
        real_replace(*args)
        die_at("after rename")

    def write(*args: object) -> None:
        die_at("before cache")
        real_write(*args)  # type: ignore[arg-type]
        die_at("after cache")

    _files.os.replace = replace  # type: ignore[assignment]
    segments.write_file = write  # type: ignore[assignment]

    def trace(statement: str) -> None:
        die_at("statement")
        die_at(statement.partition(" ")[0])

    index._store._connection().set_trace_callback(trace)
