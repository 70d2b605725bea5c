"""A photo that was found."""

from collections.abc import Callable, Sequence
from typing import Any


class Match:
    """A photo that was found.

    Attributes:
        path: absolute; undecodable bytes as Python's surrogate escapes, so that `os.fsencode` restores them.
        score: cosine of the two vectors, at most 1.
        metadata: what the index knows of the picture, such as "width" and "taken", and of its file: "bytes" and
            "modified" (seconds since 1970).
        closer_than: the share of the index's own pairs of photos that are less alike than the query and this one,
            below 1; None if the index is too small to tell, or several photos made the query.
        copies: the paths of other files that were found with it: of the same bytes, then of the same picture.
    """

    __slots__ = ("_copies", "_metadata", "closer_than", "path", "score")

    def __init__(
        self,
        path: str,
        score: float,
        metadata: dict[str, Any] | Callable[[], dict[str, Any]],
        closer_than: float | None = None,
        copies: Sequence[str] | Callable[[], list[str]] = (),
    ):
        self.path = path
        self.score = score
        self.closer_than = closer_than
        self._metadata = metadata  # read when it is asked for, as the copies are: most often it is not
        self._copies = copies

    @property
    def metadata(self) -> dict[str, Any]:  # noqa: D102
        if not isinstance(self._metadata, dict):
            self._metadata = self._metadata()
        return self._metadata

    @property
    def copies(self) -> list[str]:  # noqa: D102
        if not isinstance(self._copies, list):
            self._copies = self._copies() if callable(self._copies) else list(self._copies)
        return self._copies

    def _values(self) -> tuple[Any, ...]:
        return self.path, self.score, self.metadata, self.closer_than, self.copies

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if isinstance(other, Match) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return (
            f"Match(path={self.path!r}, score={self.score!r}, closer_than={self.closer_than!r},"
            f" copies={self.copies!r}, metadata={self.metadata!r})"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return Match, self._values()


def tell_share(share: float | None) -> str:
    """`Match.closer_than` for people: rounded down, and never 100 %."""
    if share is None:
        return ""
    if share > 0.9999:
        return "> 99.99 %"
    steps = 10000 if share >= 0.999 else 1000
    return f"{int(share * steps + 1e-9) * 100 / steps:.{2 if steps == 10000 else 1}f} %"
