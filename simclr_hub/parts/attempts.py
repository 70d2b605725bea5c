"""Keep which parts are still to be tried, for an engine that hands them out; a lost worker costs one attempt."""

from collections import Counter, deque
from collections.abc import Callable, Sequence

from .part import Result

#: Attempts at a part in one run; those of a run before do not count.
TRIES = 3


class Attempts:
    """Hold the parts of a run; true until the end of each was told.

    Args:
        names: of the parts.
        tell: called with the last result of each.
    """

    def __init__(self, names: Sequence[str], tell: Callable[[Result], object]):
        self._waiting, self._tries, self._tell = deque(names), Counter[str](), tell
        self._open = len(names)

    def __bool__(self) -> bool:
        return self._open > 0

    @property
    def waiting(self) -> bool:
        """Return whether there is a part to be taken."""
        return bool(self._waiting)

    def take(self) -> str | None:
        """Return the next part, for one attempt; None if there is none now."""
        if not self._waiting:
            return None
        self._tries[self._waiting[0]] += 1
        return self._waiting.popleft()

    def end(self, result: Result) -> None:
        """Hear of the end of an attempt; a part that may still be made waits again."""
        if result.state == "failed" and result.attempt and self._tries[result.name] < TRIES:
            self._waiting.append(result.name)
        else:
            self._open -= 1
            self._tell(result)

    def lost(self, name: str, why: str) -> None:
        """Hear that the worker is gone that was at a part."""
        self.end(Result(name, "failed", error=f"its worker {why}", attempt=self._tries[name]))
