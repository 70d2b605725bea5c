"""Engine `local`: processes of this machine, each with a model of its own."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from ..runtimes import cores, gpus
from .attempts import Lost, hand_out
from .part import Job, Result


def run(job: Job, names: Sequence[str], workers: int | None, tell: Callable[[Result], object]) -> None:
    """Embed parts in so many processes; None: in one a GPU, or one with all cores."""
    crew = _Processes(job, min(workers or max(1, len(gpus())), len(names)))
    try:
        hand_out(names, tell, crew)
    finally:
        for process in crew.processes.values():
            process.kill()


class _Processes:
    """Workers by their pipes, which are their tickets; a place is a number."""

    def __init__(self, job: Job, workers: int):
        self._job, self._workers, self._gpus = job, workers, gpus()
        self.processes: dict[Any, Any] = {}

    def places(self) -> Collection[int]:
        return range(self._workers)

    def start(self, place: int) -> Any:
        spawn = multiprocessing.get_context("spawn")
        ours, theirs = spawn.Pipe()
        gpu = self._gpus[place % len(self._gpus)] if self._gpus else None
        threads = max(1, cores() // self._workers)
        self.processes[ours] = spawn.Process(target=_work, args=(theirs, self._job, gpu, threads), daemon=True)
        self.processes[ours].start()
        theirs.close()
        return ours

    def wait(self, tickets: list[Any]) -> list[Any]:
        return wait(tickets)

    def answer(self, ticket: Any) -> Result | str | None:
        try:
            return ticket.recv()  # type: ignore[no-any-return]
        except (EOFError, OSError):
            process = self.processes.pop(ticket)
            process.join()
            raise Lost(f"ended with {process.exitcode}") from None

    def give(self, ticket: Any, name: str | None) -> Any:
        with suppress(OSError):  # it has just died, which the next look at its pipe tells
            ticket.send(name)
        return ticket


def _work(pipe: Connection, job: Job, gpu: str | None, threads: int) -> None:
    """Be a worker: embed each part that is named, until none is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all; the parent ends its children
    parent: Any = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # also if it was killed
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    worker = job.load()
    pipe.send(worker if isinstance(worker, str) else None)
    while not isinstance(worker, str) and (name := pipe.recv()):
        pipe.send(worker.embed(name))
