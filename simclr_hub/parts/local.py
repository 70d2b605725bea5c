"""Engine `local`: processes of this machine, each with a model of its own; a crash costs one attempt at one part."""

import glob
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

from ..errors import PartsError, SimCLRHubError
from ..runtimes import cores
from .attempts import Attempts
from .part import Job, Result, Worker


def run(job: Job, names: Sequence[str], workers: int | None, tell: Callable[[Result], object]) -> None:
    """Embed parts; `tell` hears of the last attempt at each.

    Args:
        job: what the workers load.
        names: of the parts.
        workers: processes; None: one a GPU, or one with all cores.
        tell: called in this process.

    Raises:
        PartsError: the workers cannot load the plan or the model.
    """
    gpus = _gpus()
    workers = min(workers or max(1, len(gpus)), len(names))
    threads = max(1, cores() // max(1, workers))
    spawn, parts = multiprocessing.get_context("spawn"), Attempts(names, tell)
    busy: dict[Any, tuple[Any, str | None, int]] = {}  # pipe: its process, the part that it is at, its number
    try:
        while parts:
            for number in set(range(workers)) - {number for _, _, number in busy.values()} if parts.waiting else ():
                ours, theirs = spawn.Pipe()
                gpu = gpus[number % len(gpus)] if gpus else None
                process = spawn.Process(target=_work, args=(theirs, job, gpu, threads), daemon=True)
                process.start()
                theirs.close()
                busy[ours] = process, None, number
            ready: list[Any] = wait(list(busy))
            for pipe in ready:
                process, name, number = busy.pop(pipe)
                try:
                    said = pipe.recv()
                except (EOFError, OSError):
                    process.join()
                    if name is None:
                        raise PartsError(f"a worker ended with {process.exitcode} while it loaded the model") from None
                    parts.lost(name, f"ended with {process.exitcode}")
                    continue
                if isinstance(said, str):
                    raise PartsError(said)
                if said:
                    parts.end(said)
                name = parts.take()
                with suppress(OSError):  # it has just died, which the next look at its pipe tells
                    pipe.send(name)
                if name:
                    busy[pipe] = process, name, number
                else:
                    process.join()
    finally:
        for process, _, _ in busy.values():
            process.kill()


def _gpus() -> list[str]:
    """Return the numbers of the NVIDIA GPUs that may be used."""
    if (told := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [number for number in told.split(",") if number]
    return [path.removeprefix("/dev/nvidia") for path in sorted(glob.glob("/dev/nvidia[0-9]*"))]


def _work(pipe: Connection, job: Job, gpu: str | None, threads: int) -> None:
    """Be a worker: embed each part that is named, until none is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends its children
    parent = multiprocessing.parent_process()
    if parent:  # also if it was killed
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    try:
        worker = Worker.load(job)
    except (SimCLRHubError, ValueError, OSError, RuntimeError) as e:
        pipe.send(str(e))
        return
    pipe.send(None)
    while name := pipe.recv():
        pipe.send(worker.embed(name))


def _end_with(parent: Any) -> NoReturn:
    parent.join()
    os._exit(1)
