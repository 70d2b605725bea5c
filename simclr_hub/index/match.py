"""A photo that was found."""

import json
from typing import Any


class Match:
    """A photo that was found.

    Attributes:
        path: absolute; undecodable bytes as Python's surrogate escapes, so that `os.fsencode` restores them.
        score: cosine of the two vectors, at most 1.
        metadata: what the index knows of the picture, such as "width" and "taken", and of its file: "bytes" and
            "modified" (seconds since 1970).
    """

    __slots__ = ("_known", "path", "score")

    def __init__(self, path: str, score: float, metadata: dict[str, Any] | tuple[bytes, ...]):
        self.path = path
        self.score = score
        self._known = metadata  # as JSON texts until it is asked for: most often it is not

    @property
    def metadata(self) -> dict[str, Any]:  # noqa: D102
        if isinstance(self._known, tuple):
            self._known = {key: value for text in self._known for key, value in json.loads(text).items()}
        return self._known

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Match):
            return NotImplemented
        return (self.path, self.score, self.metadata) == (other.path, other.score, other.metadata)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Match(path={self.path!r}, score={self.score!r}, metadata={self.metadata!r})"
