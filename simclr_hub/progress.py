"""A progress bar with rate and time left, on a terminal, for work of over two seconds."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._text import shown

#: Work that ends sooner shows no bar.
DELAY = 2.0


@contextmanager
def progress_bar(
    what: str, total: int | None, *, show: bool | None = None, in_bytes: bool = False
) -> Iterator[Callable[..., None]]:
    """Give a function that is told how many more are done, the total if it is known only then, and what to show.

    Args:
        what: shown before the bar.
        total: how many there will be, None if unknown.
        show: True at once, False never; None on a terminal after two seconds.
        in_bytes: what is counted are bytes.
    """
    if show is None and not sys.stderr.isatty():
        show = False
    if show is False:
        yield lambda n, total=None, what=None: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            speed = task.finished_speed or task.speed
            return Text(f"{speed:,.{0 if speed >= 10 else 1}f}/s" if speed else "", style="progress.data.speed")

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn() if in_bytes else MofNCompleteColumn(),
        TransferSpeedColumn() if in_bytes else Rate(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(shown(what), total=total)
    start = threading.Timer(0 if show else DELAY, bar.start)  # also while the first of all does not end
    start.daemon = True
    start.start()

    def advance(n: int, total: int | None = total, what: str | None = None) -> None:
        bar.update(task, advance=n, total=total, description=what and shown(what))

    try:
        yield advance
    finally:
        start.cancel()
        start.join()
        bar.stop()


@contextmanager
def counting_bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show the same bar as a function of how many are done by now and how many there are."""
    done = 0
    with progress_bar(what, None) as advance:

        def progress(now: int, total: int) -> None:
            nonlocal done
            advance(now - done, total)
            done = now

        yield progress


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Leave out transformers' own progress bars, for loading and saving, which take a moment."""
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()
