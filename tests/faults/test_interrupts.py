"""Ctrl-C while something does not end: a decoder, a read, a model; what is kept, and what the next sync does."""

import _thread
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from index_fakes import FakeEmbedder, check_index, make_photo
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub import Embedder, SimCLRModel, _threads, embed, headers
from simclr_hub import embedder as embedder_module
from simclr_hub.cli import _interrupts, main
from simclr_hub.embedder import Embedding, Failure
from simclr_hub.errors import ImageError, UnsupportedImageError
from simclr_hub.images import FileBytes, load_image, read_file
from simclr_hub.index import SimilarityIndex, isolated, pipeline
from simclr_hub.index.maintenance import check_photos

pytestmark = pytest.mark.filterwarnings("error")
#: What starts with this is never done.
STUCK = b"\xff\xd8\xff stuck"


class Gate:
    """Where whatever does not end waits, until the test is over."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Semaphore(0), threading.Event()

    def wait(self) -> None:
        self.reached.release()
        self.opened.wait()


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()
    for thread in list(_threads._left):
        thread.join()
    assert not _threads.left_behind()


@pytest.fixture
def stuck_decoder(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoding what starts with `STUCK` does not end."""

    def load(source: Any, **settings: Any) -> Any:
        data = source.data if isinstance(source, FileBytes) else source
        if isinstance(data, bytes) and data.startswith(STUCK):
            gate.wait()
        return load_image(source, **settings)

    monkeypatch.setattr(embedder_module, "load_image", load)


@contextmanager
def interrupted(gate: Gate) -> Iterator[None]:
    """Press Ctrl-C once the gate is reached; inside, KeyboardInterrupt is raised within two seconds."""
    pressed: list[float] = []

    def press() -> None:
        if gate.reached.acquire(timeout=30):
            time.sleep(0.1)
            pressed.append(time.monotonic())
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        ended = time.monotonic()
        thread.join()
    assert pressed and ended - pressed[0] < 2


@pytest.fixture
def tiny_index(tmp_path: Path, tiny_model: SimCLRModel) -> Iterator[SimilarityIndex]:
    embedder = Embedder(tiny_model, batch_size=2, workers=2)
    with SimilarityIndex.create(tmp_path / "tiny.index", model=embedder) as index:
        yield index


def test_an_interrupted_sync_remembers_the_photo_that_did_not_end(
    tiny_index: SimilarityIndex, photos: Path, gate: Gate, stuck_decoder: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "BATCH_PHOTOS", 2)
    for i in range(4):
        make_photo(photos / f"z{i}.png", 10 + i)
    for name in ("c.jpg", "copy.jpg"):
        (photos / name).write_bytes(STUCK)
    with interrupted(gate):
        tiny_index.sync(photos)
    stuck = bytes(photos / "c.jpg")
    assert tiny_index._store.in_flight() == {stuck}
    assert len(tiny_index) >= 2  # a.png and b.png were embedded before
    check_photos_have_vectors(tiny_index)
    monkeypatch.setattr(tiny_index._store, "writing", tiny_index._store.writing)  # the lock is free
    asked: list[list[bytes]] = []

    def find(paths: list[bytes]) -> dict[bytes, str]:
        asked.append(paths)
        why = f"{isolated.DOES_NOT_END}: no end within 60 s"
        return {path: f"{os.fsdecode(path)}: {why}" for path in paths if path == stuck}

    monkeypatch.setattr(pipeline, "find_guilty", find)
    report = tiny_index.sync(photos)
    assert asked == [[stuck]]
    assert (report.found, report.failed, len(tiny_index)) == (10, 2, 8)
    for path, why in tiny_index.failures():  # its copy is not tried, and names itself
        assert why == f"{path}: decoding it ends the process: no end within 60 s"
    assert tiny_index._store.in_flight() == set()
    os.utime(photos / "c.jpg", ns=(1, 1))  # it changed: tried again, and alone again
    asked.clear()
    tiny_index.sync(photos)
    assert stuck in asked[0]


def check_photos_have_vectors(index: SimilarityIndex) -> None:
    paths, vectors = index.vectors()
    assert len(paths) == len(vectors) == len(index) and np.isfinite(vectors).all()
    assert index.check().sound


def test_what_the_embedder_does_not_answer_stays_recorded(
    index: SimilarityIndex, photos: Path, embedder: FakeEmbedder, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one that does not tell what it is at; what it was not given yet is no suspect."""
    real = embedder.stream

    def stream(sources: Iterable[FileBytes], *, signatures: bool) -> Iterator[Embedding | Failure]:
        def watched() -> Iterator[FileBytes]:
            for source in sources:
                if source.name.endswith("b.png"):
                    gate.wait()
                yield source

        return real(watched(), signatures=signatures)

    monkeypatch.setattr(embedder, "stream", stream)
    with interrupted(gate):
        index.sync(photos)
    assert index._store.in_flight() == {bytes(photos / "b.png")}
    assert check_index(index) == [str(photos / "a.png")]
    monkeypatch.undo()
    with SimilarityIndex.open(index._store.file.parent, model=embedder) as other:  # the lock was released
        assert other.sync(photos).embedded == 3


def test_an_ordinary_interrupt_leaves_no_suspects(
    tiny_index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(30):
        make_photo(photos / f"{i}.png", 100 + i)

    def progress(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tiny_index.sync(photos, progress=progress)
    assert tiny_index._store.in_flight() == set() and len(tiny_index) == 5
    assert tiny_index.sync(photos).embedded == 29


def test_an_error_beside_a_decoder_that_does_not_end(
    tiny_index: SimilarityIndex, photos: Path, gate: Gate, stuck_decoder: None
) -> None:
    (photos / "zz.jpg").write_bytes(STUCK)

    def progress(done: int, total: int) -> None:
        assert gate.reached.acquire(timeout=30)
        raise RuntimeError("no more")

    started = time.monotonic()
    with pytest.raises(RuntimeError, match="no more"):
        tiny_index.sync(photos, progress=progress)
    assert time.monotonic() - started < 10 and tiny_index._store.in_flight() == {bytes(photos / "zz.jpg")}


def test_a_disk_that_does_not_answer(
    index: SimilarityIndex, photos: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(photos)
    before = index.vectors()
    os.utime(photos / "b.png", ns=(1, 1))
    stuck = bytes(photos / "b.png")

    def read(path: Any, **settings: Any) -> Any:
        if os.fsencode(path) == stuck and not gate.opened.is_set():
            gate.wait()
        return read_file(path, **settings)

    for module in (pipeline, check_photos):
        monkeypatch.setattr(module, "read_file", read)
    with interrupted(gate):
        index.sync(photos)
    assert index._store.in_flight() == {stuck}
    with interrupted(gate):
        index.check(deep=True)
    text = f"{os.fsdecode(stuck)}: {isolated.UNREAD} within 60 s"
    monkeypatch.setattr(pipeline, "find_guilty", lambda paths: dict.fromkeys(set(paths) & {stuck}, text))
    report = index.sync(photos)
    assert (report.failed, report.found, index.failures()) == (1, 4, [(os.fsdecode(stuck), text)])
    assert np.array_equal(index.vectors()[1], before[1])  # what it was stays
    asked: list[list[bytes]] = []
    monkeypatch.setattr(pipeline, "find_guilty", lambda paths: asked.append(paths) or {})
    gate.opened.set()
    assert index.sync(photos).unchanged == 4 and asked == [[stuck]] and index.failures() == []


def test_a_model_that_does_not_end(
    tiny_model: SimCLRModel, photos: Path, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in (1, 4):  # one batch on all cores; many, each on one
        embedder = Embedder(tiny_model, batch_size=4 // number, workers=2)
        monkeypatch.setattr(embedder, "_torch", lambda pixels: gate.wait())
        with SimilarityIndex.create(tmp_path / f"{number}.index", model=embedder) as index:
            with interrupted(gate):
                index.sync(photos)
            assert index._store.in_flight() == set()  # no photo's fault


@pytest.mark.parametrize("door", ["embed", "search", "a file object"])
def test_other_doors(
    door: str, tiny_index: SimilarityIndex, photos: Path, tiny_model: SimCLRModel, gate: Gate, stuck_decoder: None
) -> None:
    class Slow(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            gate.wait()
            return b""

    (photos / "stuck.jpg").write_bytes(STUCK)
    tiny_index._maker._embedder = Embedder(tiny_model)
    with interrupted(gate):
        if door == "embed":
            embed([photos / "a.png", STUCK], model=tiny_model)
        elif door == "search":
            tiny_index.search(photos / "stuck.jpg")
        else:
            list(Embedder(tiny_model).stream([Slow()]))


def test_left_threads_keep_no_process(tiny_model: SimCLRModel, gate: Gate, stuck_decoder: None) -> None:
    with closing(Embedder(tiny_model, workers=2, batch_size=1).stream([SAMPLE_PHOTOS / "cat_1.jpg", STUCK])) as stream:
        next(stream)
        assert gate.reached.acquire(timeout=30)
    assert _threads.left_behind()
    assert all(thread.daemon for thread in _threads._left)


def test_a_pool_gives_results_in_order_and_errors(gate: Gate) -> None:
    with _threads.Pool(3, "test") as pool:
        assert list(pool.map(lambda x: x * x, range(50), 5)) == [(x, x * x) for x in range(50)]
        with pytest.raises(ZeroDivisionError):
            _threads.result_of(pool.submit(lambda: 1 / 0))
        assert len(pool._threads) == 3
    assert not any(thread.is_alive() for thread in pool._threads)
    with _threads.Pool(1, "test") as pool:
        pool.submit(gate.wait)
        waiting = pool.submit(gate.wait)
    assert waiting.cancelled()
