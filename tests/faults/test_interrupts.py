"""Ctrl-C while something does not end: a decoder, a read, a model; what is kept, and what the next sync does."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from index_fakes import FakeEmbedder, check_index, make_photo
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub import Embedder, SimCLRModel, _threads, headers, progress
from simclr_hub import embedder as embedder_module
from simclr_hub.cli import _interrupts, main
from simclr_hub.embedder import Embedding, Failure
from simclr_hub.errors import UnsupportedImageError
from simclr_hub.formats import _preview
from simclr_hub.images import FileBytes, load_image, read_file
from simclr_hub.index import SimilarityIndex, check, sandboxed_decode, sync
from simclr_hub.index.store import STORE_NAME, Store
from simclr_hub.training import data

Ended = list[tuple[int, float]]
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
    monkeypatch.setattr(sync, "BATCH_PHOTOS", 2)
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
    asked: list[list[bytes]] = []

    def find(paths: list[bytes]) -> dict[bytes, str]:
        asked.append(paths)
        why = f"{sandboxed_decode.DOES_NOT_END}: no end within 60 s"
        return {path: f"{os.fsdecode(path)}: {why}" for path in paths if path == stuck}

    monkeypatch.setattr(sync, "decode_sandboxed", find)
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
    monkeypatch.setattr(sync, "decode_sandboxed", lambda paths: {})
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

    for module in (sync, check):
        monkeypatch.setattr(module, "read_file", read)
    with interrupted(gate):
        index.sync(photos)
    assert index._store.in_flight() == {stuck}
    with interrupted(gate):
        index.check(deep=True)
    text = f"{os.fsdecode(stuck)}: {sandboxed_decode.UNREAD} within 60 s"
    monkeypatch.setattr(sync, "decode_sandboxed", lambda paths: dict.fromkeys(set(paths) & {stuck}, text))
    report = index.sync(photos)
    assert (report.failed, report.found, index.failures()) == (1, 4, [(os.fsdecode(stuck), text)])
    assert np.array_equal(index.vectors()[1], before[1])  # what it was stays
    asked: list[list[bytes]] = []
    monkeypatch.setattr(sync, "decode_sandboxed", lambda paths: asked.append(paths) or {})
    gate.opened.set()
    assert index.sync(photos).unchanged == 4 and asked == [[stuck]] and index.failures() == []


@pytest.mark.parametrize("how", ["one batch", "a core for each", "compiled"])
def test_a_model_that_does_not_end(
    tiny_model: SimCLRModel, photos: Path, tmp_path: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    embedder = Embedder(tiny_model, batch_size=4 if how == "one batch" else 1, workers=2)
    ran: list[threading.Thread] = []

    class Run:
        has_own_thread = how == "compiled"

        def __call__(self, pixels: np.ndarray, *, alone: bool = False) -> None:
            ran.append(threading.current_thread())
            gate.wait()

    monkeypatch.setattr(embedder, "_run", Run())
    with SimilarityIndex.create(tmp_path / "i", model=embedder) as index:
        with interrupted(gate):
            index.sync(photos)
        assert index._store.in_flight() == set()  # no photo's fault
    assert (threading.main_thread() in ran) == (how == "one batch")  # which C code would hold


@pytest.mark.parametrize("door", ["embed", "search", "a file object", "training data"])
def test_other_doors(
    door: str,
    tiny_index: SimilarityIndex,
    photos: Path,
    gate: Gate,
    stuck_decoder: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Slow(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            gate.wait()
            return b""

    (photos / "stuck.jpg").write_bytes(STUCK)
    embedder = tiny_index._maker.embedder()
    assert isinstance(embedder, Embedder)
    monkeypatch.setattr(data, "load_image", embedder_module.load_image)
    with interrupted(gate):
        match door:
            case "embed":
                embedder([photos / "a.png", STUCK])
            case "search":
                tiny_index.search(photos / "stuck.jpg")
            case "a file object":
                embedder(Slow())
            case _:
                data.decode_all([FileBytes("a.jpg", STUCK)], 64, photos / "array")


def test_a_bar_is_shown_before_the_first_photo_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = threading.Event()
    monkeypatch.setattr(progress, "DELAY", 0.05)
    monkeypatch.setattr("rich.progress.Progress.start", lambda self: shown.set())
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.progress_bar("indexing", None):
        assert shown.wait(10)
    shown.clear()
    with progress.progress_bar("indexing", None) as advance:  # soon done
        advance(1)
    time.sleep(0.1)
    assert not shown.is_set()


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


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> Ended:
    """The exit codes with which the process would have been ended, and when."""
    codes: Ended = []
    monkeypatch.setattr(_interrupts.os, "_exit", lambda code: codes.append((code, time.monotonic())) or sys.exit())
    return codes


def press(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # of `ended`
@pytest.mark.parametrize("presses", [1, 2])
def test_the_command_line_ends_without_its_main_thread(
    ended: Ended, presses: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """At a second Ctrl-C at once, otherwise before two seconds are over."""
    with _interrupts.ended_by_signals():
        with pytest.raises(KeyboardInterrupt):
            pressed = time.monotonic()
            press()
            time.sleep(10)
        if presses == 1:
            time.sleep(2)
        else:
            time.sleep(_interrupts.AGAIN + 0.1)
            with pytest.raises(KeyboardInterrupt):
                press()
                time.sleep(10)
            time.sleep(0.2)
    ((code, when),) = ended
    assert code == 130 and when - pressed < (2 if presses == 1 else 0.8)
    assert "stopped; what was recorded is kept" in capfd.readouterr().err


def test_one_signal_that_comes_twice_is_one(ended: Ended) -> None:
    with _interrupts.ended_by_signals():
        for _ in range(2):
            with pytest.raises(KeyboardInterrupt):
                press()
                time.sleep(10)
        time.sleep(0.1)
    assert not ended


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("left", [False, True])
def test_a_command_that_is_stopped(
    number: int, code: int, left: bool, ended: Ended, gate: Gate, photos: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """SIGTERM is as Ctrl-C; threads that still work are not waited for."""
    monkeypatch.setattr(_interrupts, "_terminated", False)
    monkeypatch.setattr("simclr_hub.cli.index.open_or_create", lambda path, *_, **__: SimilarityIndex.create(
        path, model=FakeEmbedder()))  # fmt: skip
    make_photo(photos / "e.png", 9)

    def read(path: bytes, **settings: Any) -> Any:
        if path.endswith(b"e.png"):
            if left:
                threading.Thread(target=lambda: (time.sleep(0.2), press(number))).start()
                gate.wait()
            else:
                press(number)
        return read_file(path, **settings)

    monkeypatch.setattr(sync, "read_file", read)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as exit:
        main(["index", str(photos), "-o", str(tmp_path / "i")])
    assert ([c for c, _ in ended] if left else [exit.value.code]) == [code]
    assert "photos are in the index. Go on with: simclr-hub index" in capsys.readouterr().err
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    with SimilarityIndex.open(tmp_path / "i", model=FakeEmbedder()) as index:
        check_index(index)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_does_not_tell_its_parent_of_signals() -> None:
    with _interrupts.ended_by_signals():
        if (child := os.fork()) == 0:
            fine = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL and signal.set_wakeup_fd(-1) == -1
            os._exit(0 if fine else 1)
        assert os.waitpid(child, 0)[1] == 0


STUB = """
import sys, time
import PIL.Image
real = PIL.Image.open
def open(file, *args, **kwargs):
    start = file.read(4)
    file.seek(0)
    if start == b"HANG":
        time.sleep(1000)
    return real(file, *args, **kwargs)
PIL.Image.open = open
"""


@pytest.mark.slow
def test_a_whole_run(tmp_path: Path, photos: Path, tiny_dir: Path) -> None:
    """Ctrl-C ends it, the next run tries the photo alone and goes on with the rest."""
    (photos / "hang.jpg").write_bytes(b"HANG" * 10)
    make_photo(photos / "z.png", 9)
    child = tmp_path / "python"
    child.write_text(f"#!{sys.executable}\n{STUB}\nexec(sys.argv[-1])\n")
    child.chmod(0o755)
    arguments = ["index", str(photos), "-o", str(tmp_path / "i"), "--model", str(tiny_dir)]
    run = f"{STUB}\nfrom simclr_hub.cli import main\nfrom simclr_hub.index import sandboxed_decode\n"
    run += f"sandboxed_decode.SECONDS, sys.executable = 5, {str(child)!r}\nmain({arguments})"
    with subprocess.Popen([sys.executable, "-c", run], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "i").exists() or not in_flight(tmp_path / "i"):
            assert process.poll() is None
            time.sleep(0.2)
        time.sleep(1)
        pressed = time.monotonic()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130 and time.monotonic() - pressed < 2
        assert process.stderr and "stopped; " in process.stderr.read()
    assert in_flight(tmp_path / "i") == {bytes(photos / "hang.jpg")}
    subprocess.run([sys.executable, "-c", run], check=True)
    with SimilarityIndex.open(tmp_path / "i", model=tiny_dir) as index:
        ((path, why),) = index.failures()
        assert why == f"{photos / 'hang.jpg'}: decoding it ends the process: no end within 5 s"
        assert len(index) == 5 and index._store.in_flight() == set()


def in_flight(directory: Path) -> set[bytes]:
    with closing(Store(directory / STORE_NAME)) as store:
        return store.in_flight()


def jpeg_of_many_scans(number: int) -> bytes:
    """One of 2,000 x 2,000 pixels, its shortest scan again and again."""
    file = BytesIO()
    Image.new("RGB", (2000, 2000), (200, 100, 50)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    starts = [i for i in range(len(data)) if data.startswith(b"\xff\xda", i)]
    scans = [data[a:b] for a, b in zip(starts, [*starts[1:], len(data) - 2], strict=True)]
    return data[:-2] + min(scans[1:], key=len) * number + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path: Path, photos: Path, index: SimilarityIndex) -> None:
    slow = jpeg_of_many_scans(5000)
    assert len(slow) < 1_000_000
    (photos / "slow.jpg").write_bytes(slow)
    started = time.monotonic()
    text = "JPEG of 2,000 x 2,000 pixels in 5,010 scans is not read"
    opened = Image.open(BytesIO(slow))
    for given in (slow, photos / "slow.jpg", opened, FileBytes("slow.jpg", slow)):
        with pytest.raises(UnsupportedImageError, match=text):
            load_image(given)
        with pytest.raises(UnsupportedImageError, match=text):
            load_image(given, reduce_to=128)
    assert index.sync(photos).failed == 1 and text in index.failures()[0][1]
    assert time.monotonic() - started < 2
    assert load_image(jpeg_of_many_scans(3)).pixels.shape == (3, 2000, 2000)


def test_scans_that_are_not_read_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sequential JPEG of one scan, and whatever follows it."""
    file = BytesIO()
    Image.new("RGB", (64, 64)).save(file, "JPEG")
    monkeypatch.setattr(headers, "MAX_SCANNED", 64 * 64)
    assert load_image(file.getvalue() + 99 * b"\xff\xda").pixels.shape == (3, 64, 64)
    # Three scans of one colour each are all read.
    data = file.getvalue().replace(b"\xff\xda\x00\x0c\x03", b"\xff\xda\x00\x0c\x01")
    with pytest.raises(UnsupportedImageError, match="JPEG of 64 x 64 pixels in 2 scans is not read"):
        load_image(data + b"\xff\xda")


def test_such_a_preview_of_a_raw_file_is_none() -> None:
    for number, used in ((3, True), (5000, False)):
        thumbnail = SimpleNamespace(format="JPEG", data=jpeg_of_many_scans(number))
        rawpy: Any = SimpleNamespace(ThumbFormat=SimpleNamespace(JPEG="JPEG"))
        preview = _preview(rawpy, SimpleNamespace(extract_thumb=lambda thumbnail=thumbnail: thumbnail))
        assert (preview is not None) == used
