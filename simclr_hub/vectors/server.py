"""What a vector server must do for us, and what it is told.

A server is a cache of folders of parts: each image that could be embedded is a row there, with an id that follows from
its path, so that loading a part again changes nothing. The vectors there are those that a search compares: whitened,
where the parts bring a whitening, since a server searches where it stores; what the model gave stays in the parts.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..errors import VectorServerError
from ..index.store import About
from ..whitening import Whitening

#: Columns beside id, hash, path and vector, with the type of their values.
COLUMNS: dict[str, type] = {
    "format": str,
    "camera": str,
    "taken": str,
    "width": int,
    "height": int,
    "orientation": int,
    "bytes": int,
    "modified": float,
    "key": str,
}
#: A k beyond this is always searched exactly, as in an index: no setting is measured for it.
MOST_K = 100
_LAYOUT = 2  # 1 had HNSW in Milvus


@dataclass(frozen=True)
class Setting:
    """Hold what a measurement found to be enough, see `recall.tune`.

    Attributes:
        breadth: for k = 10, the candidates that a search of pgvector's graph keeps (hnsw.ef_search), or the lists that
            one of Milvus looks through (nprobe); 0: every search is exact.
        min_share: of a condition: where a smaller share of the images passes, what passes is compared exactly.
        recall: that was measured, of 1, at k = 10.
        rows: images that there were.
        exact_rows: where not more than so many images pass by the server's estimate, they are compared exactly, which
            costs milliseconds.
        lost: which part of the true nearest 10 an exact search does not find because of numbers of 16 bits.
    """

    breadth: int = 0
    min_share: float = 1.0
    recall: float = 1.0
    rows: int = 0
    exact_rows: int = 20_000
    lost: float = 0.0


@dataclass(frozen=True)
class Description:
    """Tell what made the vectors of a server, and how they are stored and searched.

    Attributes:
        about: the model; `about.dim` is the width before whitening.
        whitening: what made the vectors of the model's; None: they are the model's.
        half: numbers of 16 bits instead of 32.
        setting: None until one was measured.
        built: whether `VectorServer.build` has ended since the last `put`, where a server's searches differ by it; the
            server tells it.
    """

    about: About
    whitening: Whitening | None = None
    half: bool = False
    setting: Setting | None = None
    built: bool = True

    @property
    def dim(self) -> int:
        """Return the width of the vectors there."""
        return self.whitening.dim if self.whitening else self.about.dim

    def to_text(self) -> str:
        """Encode as ASCII."""
        whitening = b64encode(self.whitening.to_bytes()).decode() if self.whitening else None
        setting = vars(self.setting) if self.setting else None
        told = {"layout": _LAYOUT, "about": vars(self.about), "half": self.half, "setting": setting}
        return json.dumps(told | {"whitening": whitening})

    @classmethod
    def from_text(cls, text: str, name: str) -> "Description":
        """Decode what `to_text` gives.

        Raises:
            VectorServerError: something else, or by another version.
        """
        try:
            told = json.loads(text)
            if told["layout"] > _LAYOUT:
                raise VectorServerError(f"{name}: made by a newer simclr_hub: upgrade")
            if told["layout"] < _LAYOUT:
                raise VectorServerError(f"{name}: made by an older simclr_hub: load into another name")
            whitening = Whitening.from_bytes(b64decode(told["whitening"])) if told["whitening"] else None
            setting = Setting(**told["setting"]) if told["setting"] else None
            return cls(About(**told["about"]), whitening, bool(told["half"]), setting)
        except (ValueError, TypeError, KeyError, RecursionError) as e:
            raise VectorServerError(f"{name}: what it tells of its vectors cannot be read: {e}") from e


@dataclass(frozen=True)
class Rows:
    """Hold the images of a part as a server takes them.

    Attributes:
        ids: 16 bytes each, see `rows.image_id`.
        hashes: SHA-256 of the files, 32 bytes each.
        paths: as text, see `rows.path_text`.
        vectors: float32 (N, D) of length 1.
        values: of `COLUMNS`, by name, None where an image has none.
    """

    ids: list[bytes]
    hashes: list[bytes]
    paths: list[str]
    vectors: np.ndarray
    values: dict[str, list[Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, places: Sequence[int]) -> "Rows":
        """Return some of them."""
        return Rows(
            [self.ids[i] for i in places],
            [self.hashes[i] for i in places],
            [self.paths[i] for i in places],
            self.vectors[list(places)],
            {name: [column[i] for i in places] for name, column in self.values.items()},
        )


class Comparison(NamedTuple):
    """Compare a column, of `COLUMNS` or "id" (as 32 hexadecimal digits), with a value of its type."""

    column: str
    operator: str  # ">=", "<=" or "<"
    value: Any


class Hit(NamedTuple):
    """Hold an image that was found; `values` has what of `COLUMNS` it has."""

    id: bytes
    score: float
    content_hash: bytes
    path: str
    values: dict[str, Any]


class Found(NamedTuple):
    """Hold what was found, best first, and whether it was compared with everything that meets the conditions."""

    hits: list[Hit]
    exact: bool


class VectorServer(Protocol):
    """One table or collection of a server; every method raises VectorServerError where the server does.

    `str` of it names it without credentials.
    """

    def describe(self) -> Description | None:
        """Return what was created; None if nothing was."""

    def create(self, description: Description) -> None:
        """Make the table, or record another `Description.setting`."""

    def parts(self) -> set[str]:
        """Return the names of parts that were loaded."""

    def put(self, part: str, rows: Rows) -> None:
        """Put images, replacing those of the same ids, and record the part; all are durable when it returns.

        What was ever forgotten is left out.
        """

    def forget(self, marks: Collection[bytes]) -> int:
        """Delete images for ever, by id (16 bytes) or content (32 bytes); return how many were there."""

    def marks(self) -> set[bytes]:
        """Return what was forgotten."""

    def count(self) -> int:
        """Return how many images there are."""

    def there(self, ids: Sequence[bytes]) -> set[bytes]:
        """Return those of the ids that are there."""

    def build(self) -> bool:
        """Make what a fast search needs; return whether there is a setting to be measured."""

    def search(
        self, vector: np.ndarray, k: int, where: Sequence[Comparison] = (), setting: Setting | None = None
    ) -> Found:
        """Find the k images of the highest cosine with a vector (D,) of length 1 that meet all of `where`."""

    def close(self) -> None:
        """Close the connection."""


#: Called with how many more are done, how many there will be, and what they are.
Progress = Callable[[int, int, str], object]


def chunks(ids: Sequence[bytes], size: int = 10_000) -> Iterable[Sequence[bytes]]:
    """Yield ids in pieces that a server takes at once."""
    return (ids[start : start + size] for start in range(0, len(ids), size))
