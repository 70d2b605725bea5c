"""Photos that kill the process that decodes them: stubs, since no known file does."""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder, make_photo

from simclr_hub.embedder import Embedding, Failure
from simclr_hub.images import FileBytes
from simclr_hub.index import SimilarityIndex, sandboxed_decode

PYTHON = sys.executable
STUB = """
import os, signal, sys, time
import PIL.Image
real = PIL.Image.open
def open(file, *args, **kwargs):
    start = file.read(4)
    file.seek(0)
    if start == b"SEGV":
        os.kill(os.getpid(), signal.SIGSEGV)
    if start == b"HANG":
        time.sleep(1000)
    if start == b"HUGE":
        bytearray(8 << 30)
    return real(file, *args, **kwargs)
PIL.Image.open = open
"""


@pytest.fixture
def stubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Paths of photos; children that decode them run the stub above."""
    child = tmp_path / "python"  # a child is isolated: nothing else gets the stub into it
    child.write_text(f"#!{PYTHON}\n{STUB}\nexec(sys.argv[-1])\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    make_photo(tmp_path / "photos/good.png", 0)
    for name in ("HANG", "HUGE", "SEGV", "nope"):
        (tmp_path / f"photos/{name}.jpg").write_bytes(name.encode() * 10)
    return [bytes(path) for path in sorted((tmp_path / "photos").iterdir())]


FAKE_CHILD = """#!{python} -IS
import os, signal, sys
print("ready", flush=True)
for path in sys.stdin.buffer.read().split(b"\\0"):
    if b"SEGV" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"HANG" in path:
        os._exit(1)
    print('"no image"' if b"nope" in path else "null", flush=True)
"""


def test_children_go_on_behind_the_guilty(stubs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = tmp_path / "child"
    child.write_text(FAKE_CHILD.format(python=PYTHON))
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    hang, _, segv, good, nope = stubs
    why = "decoding it ends the process"
    assert sandboxed_decode.decode_sandboxed([good, segv, good, nope, hang, good, good]) == {
        segv: f"{segv.decode()}: {why}: SIGSEGV",
        nope: "no image",
        hang: f"{hang.decode()}: {why}: no end within 60 s",
    }
    assert sandboxed_decode.decode_sandboxed([good, good]) == {}


def test_a_read_that_does_not_end_is_no_verdict_on_the_content(
    stubs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = tmp_path / "child"
    child.write_text(FAKE_CHILD.format(python=PYTHON).replace("SIGSEGV", "SIGALRM"))
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))
    hang, _, slow, good, _ = stubs
    guilty = sandboxed_decode.decode_sandboxed([good, slow, hang])
    assert guilty[slow] == f"{slow.decode()}: reading it does not end within 60 s" and list(guilty) == [slow, hang]
    assert sandboxed_decode.ends_process(guilty[slow]) and sandboxed_decode.ends_process(guilty[hang])
    assert not sandboxed_decode.ends_process("x.jpg: no image") and not sandboxed_decode.ends_process(None)


def test_reading_and_decoding_have_limits_of_their_own(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(sandboxed_decode.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sandboxed_decode.signal, "alarm", calls.append)
    monkeypatch.setattr(
        sandboxed_decode.faulthandler, "dump_traceback_later", lambda seconds, exit: calls.append("decoding")
    )
    monkeypatch.setattr(sandboxed_decode.faulthandler, "cancel_dump_traceback_later", lambda: calls.append("over"))
    assert sandboxed_decode._decode(bytes(photos / "a.png"), 7, 1 << 30) is None
    assert calls == [7, 0, "decoding", "over"]
    calls.clear()
    assert sandboxed_decode._decode(b"/nowhere.png", 7, 1 << 30) is None
    assert calls == [7, 0, "over"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nobody has waited for it
def test_an_interrupt_ends_the_child(stubs: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child, pid = tmp_path / "child", tmp_path / "pid"
    code = f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(99)"
    child.write_text(f"#!{PYTHON} -IS\n{code}")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))

    def press() -> None:
        while not pid.exists() or not pid.read_text():
            time.sleep(0.05)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    pressed: list[float] = []
    thread = threading.Thread(target=press)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        sandboxed_decode.decode_sandboxed(stubs)
    assert time.monotonic() - pressed[0] < 2
    thread.join()
    assert os.waitpid(int(pid.read_text()), 0)[1] == signal.SIGKILL


@pytest.mark.slow
def test_a_crash_costs_only_the_photo(stubs: list[bytes]) -> None:
    good, broken, segv = stubs[3], stubs[4], stubs[2]
    guilty = sandboxed_decode.decode_sandboxed([good, broken, segv])
    assert list(guilty) == [broken, segv]
    assert "not an image of a supported format" in guilty[broken]
    assert guilty[segv].endswith("SEGV.jpg: decoding it ends the process: SIGSEGV")


@pytest.mark.slow
def test_all_kinds_in_one_run(stubs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxed_decode, "SECONDS", 3)
    guilty = sandboxed_decode.decode_sandboxed([*stubs, b"/nowhere.png"])
    reasons = {path.rpartition(b"/")[2]: why.rpartition(": ")[2] for path, why in guilty.items()}
    assert reasons.pop(b"nope.jpg").startswith("not an image")
    del reasons[b"HUGE.jpg"]  # a MemoryError, said by the loader
    assert reasons == {b"HANG.jpg": "no end within 3 s", b"SEGV.jpg": "SIGSEGV"}


def test_no_child_no_verdict(stubs: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert sandboxed_decode.decode_sandboxed(stubs) == {}


def test_nothing_to_try_starts_no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandboxed_decode.subprocess, "run", lambda *_, **__: pytest.fail("started"))
    assert sandboxed_decode.decode_sandboxed([]) == {}


def test_reasons_are_readable() -> None:
    assert sandboxed_decode._reason(-signal.SIGKILL) == "SIGKILL"
    assert sandboxed_decode._reason(-99) == "signal 99"


def test_what_is_decoded_is_recorded_first(
    index: SimilarityIndex, photos: Path, embedder: FakeEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simclr_hub.index.sync.BATCH_PHOTOS", 2)
    real, recorded = embedder.stream, []

    def stream(sources: Iterable[FileBytes], *, signatures: bool) -> Iterator[Embedding | Failure]:
        def watch() -> Iterator[FileBytes]:
            for source in sources:
                recorded.append(os.fsencode(source.name) in index._store.in_flight())
                yield source

        return real(watch())

    monkeypatch.setattr(embedder, "stream", stream)
    index.sync(photos)
    assert recorded == [True] * 4 and index._store.in_flight() == set()


def test_the_guilty_become_failures_and_the_rest_is_embedded(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch, settled: None
) -> None:
    killer, innocent = bytes(photos / "a.png"), bytes(photos / "b.png")
    with index._store.writing(), index._store.transaction():
        index._store.put_in_flight([killer, innocent, b"/elsewhere/x.png"])
    asked: list[list[bytes]] = []

    def find(paths: list[bytes]) -> dict[bytes, str]:
        asked.append(paths)
        return {killer: "it crashed"} if killer in paths else {}

    monkeypatch.setattr("simclr_hub.index.sync.decode_sandboxed", find)
    report = index.sync(photos)
    assert (report.embedded, report.failed, report.found) == (3, 1, 4)
    assert index.failures() == [(str(photos / "a.png"), "it crashed")]
    assert index._store.in_flight() == {b"/elsewhere/x.png"}  # for the sync of that folder
    index.sync(photos)
    assert asked == [[killer, innocent], []]
