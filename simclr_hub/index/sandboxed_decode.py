"""Decode photos in a child process, where a crash, a hang or a hunger for memory costs only the child.

After a crash, the photos that were being decoded may hold the one that killed the process, and after an interrupt one
that does not end. Each is read and decoded there with limits on time and memory, one after another in one child; when
the child dies, it was the photo that it was at.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import ImageError, UnreadableImageError
from ..images import decode, describe, read_file

#: For one photo.
SECONDS = 60
#: In the error, kept in stores, of a photo that must not be decoded in this process, and of one that cannot be read.
DOES_NOT_END, UNREAD = "decoding it ends the process", "reading it does not end"
#: On top of what the child needs itself; the largest image allowed takes about 2 GiB.
MEMORY = 4 << 30


def decode_sandboxed(paths: list[bytes]) -> dict[bytes, str]:
    """Decode each photo (absolute path) alone; return those that cannot be read or decoded so, with the reason."""
    failed: dict[bytes, str] = {}
    todo = list(paths)
    while todo:
        # -I: neither the current folder nor what the environment names is looked into for modules.
        code = f"import sys; sys.path[:] = {_module_path()!r}; from {__name__} import main; main({SECONDS}, {MEMORY})"
        try:
            child = subprocess.run(
                [sys.executable, "-I", "-c", code],
                input=b"\0".join(todo),
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=120 + (SECONDS + 5) * len(todo),
            )
        except subprocess.TimeoutExpired:
            break  # the child ends itself: this one never started
        lines = child.stdout.splitlines()
        if lines[:1] != [b"ready"]:
            break  # no child can be started here, which says nothing about the photos
        verdicts = [json.loads(line) for line in lines[1:]]
        failed.update({path: error for path, error in zip(todo, verdicts, strict=False) if error is not None})
        if len(verdicts) < len(todo):
            path, name = todo[len(verdicts)], describe(os.fsdecode(todo[len(verdicts)]))
            if child.returncode == -getattr(signal, "SIGALRM", 0) != 0:
                failed[path] = f"{name}: {UNREAD} within {SECONDS} s"
            else:
                failed[path] = f"{name}: {DOES_NOT_END}: {_reason(child.returncode)}"
        todo = todo[len(verdicts) + 1 :]
    return failed


def ends_process(error: str | None) -> bool:
    """Return whether a recorded error says that a photo must not be read or decoded in this process."""
    return error is not None and (f": {DOES_NOT_END}: " in error or f": {UNREAD} " in error)


def _module_path() -> list[str]:
    """Return where this process finds modules, without the current folder; and where this package lies."""
    package, here = str(Path(__file__).resolve().parents[2]), ""
    with suppress(OSError):  # the current folder may be gone
        here = os.getcwd()
    return [*(path for path in sys.path if path not in ("", here)), package]


def _reason(returncode: int) -> str:
    if returncode >= 0:
        return f"no end within {SECONDS} s"  # the watchdog exits with 1
    with suppress(ValueError):
        return signal.Signals(-returncode).name
    return f"signal {-returncode}"


def main(seconds: int, memory: int) -> None:
    """Be the child: read paths, separated by NUL, print a line for each."""
    paths = sys.stdin.buffer.read().split(b"\0")
    _limit_memory(memory)
    print("ready", flush=True)
    for path in paths:
        print(json.dumps(_decode(path, seconds, memory)), flush=True)


def _decode(path: bytes, seconds: int, memory: int) -> str | None:
    """Return what is wrong with a photo, if anything."""
    name = describe(os.fsdecode(path))
    try:
        with _limited_reading(seconds):
            data, _ = read_file(path, follow_symlinks=False)
        faulthandler.dump_traceback_later(seconds, exit=True)  # works even while C code runs
        decode(data, name)
    except UnreadableImageError:
        return None  # the sync will see that itself
    except ImageError as e:
        return str(e)
    except MemoryError:
        return f"{name}: decoding it takes more than {memory >> 20:,} MiB"
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


@contextmanager
def _limited_reading(seconds: int) -> Iterator[None]:
    """End the process by another signal than decoding does, where there are signals."""
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(seconds)
    try:
        yield
    finally:
        if hasattr(signal, "alarm"):
            signal.alarm(0)


def _limit_memory(memory: int) -> None:
    """Limit the address space, on Linux, where what is taken already is known."""
    try:
        import resource

        with open("/proc/self/statm") as file:
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + memory, resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        pass
