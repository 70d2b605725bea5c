"""A pool of threads that can be left behind."""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

#: How long a closed pool waits for what has begun, in seconds: three, one after another, take 1.2.
GRACE = 0.4
_left: set[threading.Thread] = set()


class Pool:
    """Threads that call functions, in the order in which they are given.

    Args:
        workers: how many threads at most.
        name: of the threads.
        initializer: called first on each thread.
    """

    def __init__(self, workers: int, name: str, initializer: Callable[[], object] | None = None):
        self._workers, self._name, self._initializer = workers, name, initializer
        self._tasks: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[[], T]) -> "Future[T]":
        """Call `function` on a thread; `result_of` waits for what it returns."""
        future: Future[T] = Future()
        self._tasks.put((future, function))
        if len(self._threads) < self._workers:
            name, arguments = f"{self._name}-{len(self._threads)}", (self._tasks, self._initializer)
            # Python's own pools wait for their threads, when they are closed and again when the interpreter ends. A
            # decoder that works on one photo for minutes, or a read from a disk that does not answer, cannot be
            # stopped from outside; so these are daemons, for which `close` waits a moment only.
            thread = threading.Thread(target=_work, name=name, args=arguments, daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def map(self, function: Callable[[Any], T], items: Iterable[Any], ahead: int) -> Iterator[tuple[Any, T]]:
        """Yield each item with what `function` makes of it, in order, working on so many of the next meanwhile."""
        waiting: deque[tuple[Any, Future[T]]] = deque()
        for item in items:
            waiting.append((item, self.submit(lambda item=item: function(item))))  # type: ignore[misc]
            if len(waiting) > ahead:
                item, future = waiting.popleft()
                yield item, result_of(future)
        for item, future in waiting:
            yield item, result_of(future)

    def close(self) -> None:
        """Cancel what has not begun, wait a moment for what has, and leave it behind."""
        with suppress(queue.Empty):
            while (task := self._tasks.get_nowait()) is not None:
                task[0].cancel()
        for _ in self._threads:
            self._tasks.put(None)
        until = time.monotonic() + GRACE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        _left.update(thread for thread in self._threads if thread.is_alive())

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _work(
    tasks: "queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None]", initializer: Callable[[], object] | None
) -> None:
    if initializer:
        initializer()
    while (task := tasks.get()) is not None:
        future, function = task
        if future.set_running_or_notify_cancel():
            try:
                result = function()
            except BaseException as e:
                future.set_exception(e)
            else:
                future.set_result(result)
                del result
        del task, future, function  # nothing is kept while this waits for more


def result_of(future: "Future[T]") -> T:
    """Wait for a result in steps, since Windows interrupts no wait without an end."""
    while not future.done():
        wait([future], timeout=0.2)
    return future.result()


def left_behind() -> bool:
    """Return whether threads that were left behind still work; an interpreter that ends meanwhile may crash."""
    _left.difference_update([thread for thread in _left if not thread.is_alive()])
    return bool(_left)
