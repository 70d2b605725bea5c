"""A photo that was found."""

from collections.abc import Callable
from typing import Any


class Match:
    """A photo that was found.

    Attributes:
        path: absolute; undecodable bytes as Python's surrogate escapes, so that `os.fsencode` restores them.
        score: cosine of the two vectors, at most 1.
        metadata: what the index knows of the picture, such as "width" and "taken", and of its file: "bytes" and
            "modified" (seconds since 1970).
    """

    __slots__ = ("_metadata", "path", "score")

    def __init__(self, path: str, score: float, metadata: dict[str, Any] | Callable[[], dict[str, Any]]):
        self.path = path
        self.score = score
        self._metadata = metadata  # read when it is asked for: most often it is not

    @property
    def metadata(self) -> dict[str, Any]:  # noqa: D102
        if not isinstance(self._metadata, dict):
            self._metadata = self._metadata()
        return self._metadata

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Match):
            return NotImplemented
        return (self.path, self.score, self.metadata) == (other.path, other.score, other.metadata)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Match(path={self.path!r}, score={self.score!r}, metadata={self.metadata!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Match, (self.path, self.score, self.metadata)
