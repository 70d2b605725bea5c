"""Processes that want to write at the same time: one does, others are told who, and no acknowledged row is lost."""

import multiprocessing
import os
import time
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path

import faults_child
import numpy as np
import pytest
from index_fakes import FakeEmbedder, check_index, make_photo

from simclr_hub.errors import IndexLockedError
from simclr_hub.index import SimilarityIndex
from simclr_hub.index.store import STORE_NAME, About, Photo, Store
from simclr_hub.scan import FileStat

CONTEXT = multiprocessing.get_context("fork")
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def write(file: Path, name: int, rows: int, pipe: Connection) -> None:
    """Fight for the lock until `rows` rows were committed; tell each, and how often another had it."""
    refused = 0
    for i in range(rows):
        path = b"%d-%d" % (name, i)
        while True:
            try:
                with closing(Store(file)) as store, store.writing(), store.transaction():
                    store.put(Photo(1, path, FileStat(1, 1, 1, 1), True, b"h", "live"))
                break
            except IndexLockedError as e:
                assert "writes to it" in str(e) or "another process holds it" in str(e)
                refused += 1
        pipe.send(path)
    pipe.send(refused)


def race(file: Path, rows: int, processes: int = 4) -> int:
    """Processes with a store of their own each; how often one was refused."""
    Store.create(file, About({"model": "m"}, 3))
    with closing(Store(file)) as store, store.writing(), store.transaction():
        store.put_root(b"/photos", "ok")
        store.put_vector(b"h", np.array([0.6, 0.8, 0], np.float32))
    pipes, children = [], []
    for name in range(processes):
        ours, theirs = CONTEXT.Pipe()
        child = CONTEXT.Process(target=write, args=(file, name, rows, theirs))
        child.start()
        theirs.close()
        pipes.append(ours)
        children.append(child)
    acknowledged, refused = set(), 0
    for pipe, child in zip(pipes, children, strict=True):
        while isinstance(message := pipe.recv(), bytes):
            acknowledged.add(message)
        refused += message
        child.join()
        assert child.exitcode == 0
    with closing(Store(file)) as store:
        assert {photo.path for photo in store.photos()} == acknowledged
    assert len(acknowledged) == rows * processes
    return refused


def test_a_race(tmp_path: Path) -> None:
    race(tmp_path / STORE_NAME, 10)


@pytest.mark.slow
def test_a_long_race(tmp_path: Path) -> None:
    assert race(tmp_path / STORE_NAME, 150) > 0


@pytest.mark.slow
def test_readers_see_whole_commits(tmp_path: Path, photos: Path) -> None:
    """Another process syncs batch by batch; here every snapshot is one of its commits."""
    for i in range(16):
        make_photo(photos / f"more/{i}.png", 100 + i)
    SimilarityIndex.create(tmp_path / "i", model=FakeEmbedder()).close()

    with faults_child.fork_server():
        child = faults_child.CONTEXT.Process(target=faults_child.sync, args=(tmp_path / "i", photos, 3))
        child.start()
    seen = set()
    while child.is_alive():
        with SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder()) as index:
            paths, vectors = index.vectors()
            assert len(paths) == len(vectors)
            seen.add(len(paths))
        time.sleep(0.02)
    child.join()
    assert child.exitcode == 0
    with SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder()) as index:
        assert len(check_index(index)) == 20


def test_a_lock_file_of_a_process_that_is_gone(tmp_path: Path, index: SimilarityIndex, photos: Path) -> None:
    """Stale, with the id of a process that runs again as another: what is in the file decides nothing."""
    (tmp_path / "photos.index/writer.lock").write_text(str(os.getppid()))
    assert index.sync(photos).embedded == 4
