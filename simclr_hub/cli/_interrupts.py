"""Ctrl-C and SIGTERM end a command within two seconds, whatever it is doing."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from .._threads import left_behind

#: How long the orderly end may take.
SECONDS = 1.7
#: A second signal that comes sooner is the same one, passed on by a wrapper or a shell.
AGAIN = 0.2
#: The exit code after Ctrl-C.
INTERRUPTED = 128 + signal.SIGINT
_terminated = False


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end what runs inside; SIGTERM raises KeyboardInterrupt, too."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    # Python raises KeyboardInterrupt in the main thread, once the code that runs there comes back from C. A read from
    # a disk that does not answer, or a GPU that hangs, does not. So this thread hears of the signals, too, and ends
    # the process if that takes too long, or at a second Ctrl-C. What was recorded is safe, as if it had been killed.
    watch = threading.Thread(target=_watch, args=(ours,), name="simclr-signals", daemon=True)
    watch.start()
    fd = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    default = signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # not ignored, as for a program that is to outlive it
    if default:
        signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.set_wakeup_fd(fd)
        if default:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        theirs.close()
        watch.join()
        ours.close()


def leave(code: int) -> NoReturn:
    """End the process: as ever, or at once where threads still work that cannot be stopped."""
    if code == INTERRUPTED and _terminated:
        code = 128 + signal.SIGTERM
    if left_behind():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _terminate(*_: object) -> None:
    global _terminated
    _terminated = True
    raise KeyboardInterrupt


def _watch(signals: socket.socket) -> None:
    """Read the number of each signal that comes, until the other end is closed."""
    first, since = 0, 0.0
    while True:
        signals.settimeout(max(0.01, since + SECONDS - time.monotonic()) if first else None)
        try:
            numbers = signals.recv(64)
        except TimeoutError:
            _end(first)
        if not numbers:
            return
        for number in numbers:
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            if not first:
                first, since = number, time.monotonic()
            elif time.monotonic() - since > AGAIN:
                _end(first)


def _end(number: int) -> NoReturn:
    """End the process without its main thread."""
    with suppress(AttributeError, OSError, ValueError):  # there may be no standard error, or a closed one
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # a progress bar hides the cursor
        os.write(2, f"{shown}\nstopped; what was recorded is kept\n".encode())
    os._exit(128 + number)


def _forget_in_child() -> None:
    """Stop a fork from passing the terminal's signals on to its parent; let SIGTERM end it at once."""
    if signal.getsignal(signal.SIGTERM) is _terminate:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
