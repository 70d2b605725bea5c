"""Hand out parts to the workers of an engine, which may be lost at any moment: that costs one attempt at a part."""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, Protocol

from ..errors import PartsError
from .part import Result

#: Attempts at a part in one run, and at a worker in one place; those of a run before do not count.
TRIES = 3
#: Seconds without a place for a worker, as while nodes start.
PATIENCE = 600.0


class Lost(Exception):
    """Tells that a worker is gone, and why; the engine has cleaned up after it."""


class Crew(Protocol):
    """What an engine knows of its workers. A ticket stands for what a worker does now, until it answers."""

    def places(self) -> Collection[Hashable]:
        """Return where a worker may be now."""

    def start(self, place: Any) -> Any:
        """Start a worker there; return a ticket, which answers once it has loaded the job."""

    def wait(self, tickets: list[Any]) -> Collection[Any]:
        """Wait some seconds at most; return the tickets that have an answer."""

    def answer(self, ticket: Any) -> Result | str | None:
        """Return the end of an attempt, or why the job cannot be loaded, or None: it is loaded.

        Raises:
            Lost: the worker is gone.
        """

    def give(self, ticket: Any, name: str | None) -> Any:
        """Give the next part to the worker that answered; return its new ticket. None ends it."""


def hand_out(names: Sequence[str], tell: Callable[[Result], object], crew: Crew) -> None:
    """Have all parts made; `tell` hears of the last attempt at each.

    Raises:
        PartsError: no worker can load the job, or there is no place for one.
    """
    waiting, tries, unloaded = deque(names), Counter[str](), Counter[Hashable]()
    busy: dict[Any, tuple[Hashable, str | None]] = {}  # by ticket: where, and at which part
    why, patience = "there is no place for a worker", time.monotonic() + PATIENCE

    def end(result: Result) -> None:
        if result.state == "failed" and result.attempt and tries[result.name] < TRIES:
            waiting.append(result.name)
        else:
            tell(result)

    while waiting or busy:
        if waiting:
            places = crew.places()
            for place in set(places) - {place for place, _ in busy.values()}:
                if unloaded[place] < TRIES:
                    busy[crew.start(place)] = place, None
            if busy:
                patience = time.monotonic() + PATIENCE
            elif places or time.monotonic() > patience:  # in all that there are it failed
                raise PartsError(why)
            else:
                time.sleep(0.5)
        for ticket in crew.wait(list(busy)) if busy else ():
            place, name = busy.pop(ticket)
            try:
                said = crew.answer(ticket)
            except Lost as e:
                why = str(e)
                if name is None:
                    unloaded[place] += 1
                else:
                    end(Result(name, "failed", error=f"its worker {why}", attempt=tries[name]))
                continue
            if isinstance(said, str):
                raise PartsError(said)
            if said:
                end(said)
            else:
                unloaded[place] = 0  # what fails now and then may go on for days
            name = waiting.popleft() if waiting else None
            new = crew.give(ticket, name)
            if name is not None:
                tries[name] += 1
                busy[new] = place, name
