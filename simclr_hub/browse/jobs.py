"""Work of minutes that the page starts and watches: one at a time of each kind, on a thread of its own."""

import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ..errors import SimCLRHubError
from ..images import describe

#: Called with (done, total).
Progress = Callable[[int, int], object]


@dataclass
class Job:
    """Describe work and how far it is.

    Attributes:
        state: "running", "done" or "failed".
        done: of `total`; both 0 as long as nothing is known.
        message: what it came to, or why it failed.
        seconds: since it began, or that it took.
    """

    state: Literal["running", "done", "failed"] = "running"
    done: int = 0
    total: int = 0
    message: str = ""
    seconds: float = 0.0


class Jobs:
    """Start and watch the jobs of a server, by their names."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[Job, float]] = {}
        self._lock = threading.Lock()

    def start(self, name: str, work: Callable[[Progress], str]) -> bool:
        """Begin a job; return False if one of this name is running.

        Args:
            name: of the job.
            work: called with what it tells its progress to; returns what it came to, in words.
        """
        with self._lock:
            if name in self._jobs and self._jobs[name][0].state == "running":
                return False
            job = Job()
            self._jobs[name] = job, time.monotonic()

        def progress(done: int, total: int) -> None:
            job.done, job.total = done, total

        def run() -> None:
            began = time.monotonic()
            try:
                job.message = work(progress)
                state: Literal["done", "failed"] = "done"
            except (SimCLRHubError, OSError, ValueError) as e:
                job.message, state = describe(str(e)), "failed"
            except BaseException as e:  # a fault of ours is told, too: the thread has nobody else to tell
                job.message, state = describe(f"{type(e).__name__}: {e}"), "failed"
            job.seconds = time.monotonic() - began
            job.state = state

        threading.Thread(target=run, name=f"simclr-{name}", daemon=True).start()
        return True

    def running(self, name: str) -> bool:
        """Tell whether a job of this name runs."""
        with self._lock:
            return name in self._jobs and self._jobs[name][0].state == "running"

    def as_values(self) -> dict[str, dict[str, Any]]:
        """Return all jobs, ready for JSON."""
        with self._lock:
            jobs = dict(self._jobs)
        now = time.monotonic()
        return {
            name: asdict(job) | {"seconds": round(now - began if job.state == "running" else job.seconds, 1)}
            for name, (job, began) in jobs.items()
        }
