"""Decode suspects in a child process, where a crash, a hang or a hunger for memory costs only the child.

After a crash, the photos that were being decoded may hold the one that killed the process. Each is decoded here with
limits on time and memory, one after another in one child; when the child dies, the one it was at is guilty.
"""

import faulthandler
import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from ..errors import ImageError, UnreadableImageError
from ..images import FileBytes, describe, load_image, read_file

#: For one photo.
SECONDS = 60
#: On top of what the child needs itself; the largest image allowed takes about 2 GiB.
MEMORY = 4 << 30


def find_guilty(paths: list[bytes]) -> dict[bytes, str]:
    """Decode each photo (absolute path) alone; those that cannot be decoded so, with the reason."""
    guilty: dict[bytes, str] = {}
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
        guilty.update({path: error for path, error in zip(todo, verdicts, strict=False) if error is not None})
        if len(verdicts) < len(todo):
            path = todo[len(verdicts)]
            guilty[path] = f"{describe(os.fsdecode(path))}: decoding it ends the process: {_reason(child.returncode)}"
        todo = todo[len(verdicts) + 1 :]
    return guilty


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
    """The child: reads paths, separated by NUL, prints a line for each."""
    paths = sys.stdin.buffer.read().split(b"\0")
    _limit_memory(memory)
    print("ready", flush=True)
    for path in paths:
        faulthandler.dump_traceback_later(seconds, exit=True)  # works even while C code runs
        print(json.dumps(_decode(path, memory)), flush=True)
        faulthandler.cancel_dump_traceback_later()


def _decode(path: bytes, memory: int) -> str | None:
    """What is wrong with it, if anything."""
    name = describe(os.fsdecode(path))
    try:
        load_image(FileBytes(name, read_file(path, follow_symlinks=False)[0]))
    except UnreadableImageError:
        return None  # the sync will see that itself
    except ImageError as e:
        return str(e)
    except MemoryError:
        return f"{name}: decoding it takes more than {memory >> 20:,} MiB"
    return None


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
