"""Orders of an index's photos: by date, folder, camera or size, with where their groups begin."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from ..images import describe
from ..index.search.filters import Condition
from ..index.search.snapshot import Snapshot
from .path_order import by_folder_and_name

Sort = Literal["date", "folder", "camera", "size"]
SORTS: tuple[Sort, ...] = get_args(Sort)
#: Seconds since 1970 at which the years 1 and 10000 begin: no photo was made before or after.
YEARS = -62_135_596_800, 253_402_300_800


@dataclass(frozen=True)
class Order:
    """Hold photos in an order, and where its groups (months, folders, cameras) begin.

    Attributes:
        version: of the snapshot that the numbers belong to.
        photos: their numbers (P,).
        starts: the first place of each group (G,), rising.
        labels: of the groups.
    """

    version: tuple[int, int]
    photos: np.ndarray
    starts: np.ndarray
    labels: Sequence[str]

    def group(self, place: int) -> str:
        """Return the label of the group at a place."""
        return self.labels[int(np.searchsorted(self.starts, place, "right")) - 1]


def live_photos(snapshot: Snapshot, condition: Condition | None = None) -> np.ndarray:
    """Return the numbers of the photos of a snapshot that meet a condition (P,)."""
    parts = [np.empty(0, np.int64)]
    for number, (segment, allowed) in enumerate(zip(snapshot.segments, snapshot.allowed, strict=True)):
        some = np.ones(segment.photos.photo_count, bool)
        if allowed is not None:
            some &= np.repeat(allowed, np.diff(segment.photos.first.all()))
        if condition:
            some &= segment.passing(condition, snapshot.roots)
        parts.append(np.flatnonzero(some) + snapshot.photo_starts[number])
    return np.concatenate(parts)


def numbers_of(snapshot: Snapshot, key: str) -> np.ndarray:
    """Return the numbers of a key of the metadata for all photos of the snapshot (P,), NaN for none."""
    return _joined(snapshot, f"numbers of {key}", lambda: [_segment_numbers(s, key) for s in snapshot.segments])


def _segment_numbers(segment: Any, key: str) -> np.ndarray:
    column = segment.columns.get(key)
    if column is None or not len(column.numbers):
        return np.full(segment.photos.photo_count, np.nan)
    numbers: np.ndarray = column.numbers.all()
    return numbers


def times_of(snapshot: Snapshot) -> np.ndarray:
    """Return when each photo was taken, by its own clock, or else last written, in seconds since 1970 (P,)."""

    def read() -> list[np.ndarray]:
        parts = []
        for segment in snapshot.segments:
            times = _segment_numbers(segment, "modified").copy()
            with np.errstate(invalid="ignore"):
                times[~((times > YEARS[0]) & (times < YEARS[1]))] = np.nan  # a file system may say anything, too
            column = segment.columns.get("taken")
            if column is not None and len(column.codes):
                known = np.concatenate([[np.nan], *map(_seconds, column.words.pieces())])[1:]
                known = known if len(known) else np.array([np.nan])
                codes = column.codes.all()
                taken = np.where(codes >= 0, known[codes], np.nan)
                times = np.where(np.isnan(taken), times, taken)
            parts.append(times)
        return parts

    return _joined(snapshot, "times", read)


def _seconds(words: list[bytes]) -> np.ndarray:
    """Return the seconds since 1970 of times such as 2019-06-07T12:00:00 (N,), NaN for what is none."""
    try:  # all at once: where each photo has a time of its own, there are as many words
        seconds = np.array(words, "S19").astype("datetime64[s]").astype(np.float64)
    except ValueError:  # a camera's clock may say anything: month 0
        half = len(words) // 2
        seconds = np.concatenate([_seconds(words[:half]), _seconds(words[half:])]) if half else np.array([np.nan])
    return np.where((seconds >= YEARS[0]) & (seconds < YEARS[1]), seconds, np.nan)


def _words(snapshot: Snapshot, key: str) -> tuple[np.ndarray, list[str]]:
    """Return which word each photo has (P,), -1 for none, and the words, sorted."""
    words: set[bytes] = set()
    for segment in snapshot.segments:
        column = segment.columns.get(key)
        if column is not None and len(column.codes):
            words.update(itertools.chain.from_iterable(column.words.pieces()))
    known = sorted(words)
    place = {word: at for at, word in enumerate(known)}
    parts = []
    for segment in snapshot.segments:
        column = segment.columns.get(key)
        codes = np.full(segment.photos.photo_count, -1)
        if column is not None and len(column.codes):
            to = np.array([*(place[word] for piece in column.words.pieces() for word in piece), -1])
            codes = to[column.codes.all()]  # -1, for none, is the last
        parts.append(codes)
    return np.concatenate(parts), [word.decode(errors="surrogatepass") for word in known]


def _joined(snapshot: Snapshot, name: str, read: Callable[[], list[np.ndarray]]) -> np.ndarray:
    """Return the arrays of a snapshot's segments as one, which the snapshot keeps."""
    kept: dict[str, np.ndarray] = snapshot.__dict__.setdefault("_browse", {})
    if name not in kept:
        kept[name] = np.concatenate(read())
    return kept[name]


def _by_date(snapshot: Snapshot, photos: np.ndarray, reverse: bool) -> Order:
    times = times_of(snapshot)[photos]
    # The newest first, what has no time last either way.
    order = np.argsort(times if reverse else -times, kind="stable")
    months = times[order].astype("datetime64[s]").astype("datetime64[M]")
    return _grouped(snapshot, photos[order], months, lambda month: "no date" if np.isnat(month) else str(month))


def _by_folder(snapshot: Snapshot, photos: np.ndarray, reverse: bool) -> Order:
    order, starts, folders = by_folder_and_name(snapshot, photos, reverse)
    return Order(snapshot.version, photos[order], starts, [describe(folder) for folder in folders])


def _by_camera(snapshot: Snapshot, photos: np.ndarray, reverse: bool) -> Order:
    codes, words = _words(snapshot, "camera")
    of_photo = np.where(codes[photos] < 0, len(words), codes[photos])  # what names none is last
    order = np.lexsort((-times_of(snapshot)[photos], -of_photo if reverse else of_photo))
    names = [*map(describe, words), "no camera"]
    return _grouped(snapshot, photos[order], of_photo[order], names.__getitem__)


def _by_size(snapshot: Snapshot, photos: np.ndarray, reverse: bool) -> Order:
    sizes = numbers_of(snapshot, "bytes")[photos]
    order = np.argsort(sizes if reverse else -sizes, kind="stable")
    with np.errstate(divide="ignore", invalid="ignore"):
        magnitude = np.floor(np.log2(np.nan_to_num(sizes[order], nan=1.0).clip(1)))
    return _grouped(snapshot, photos[order], magnitude, lambda power: f"from {_human(2**power)}")


def _human(size: float) -> str:
    for unit, factor in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if size >= factor:
            return f"{size / factor:.0f} {unit}"
    return f"{size:.0f} bytes"


def _grouped(snapshot: Snapshot, photos: np.ndarray, keys: np.ndarray, label: Callable[[Any], str]) -> Order:
    """Return an order whose groups are the runs of equal keys (P,)."""
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]) & ~(_nothing(keys[1:]) & _nothing(keys[:-1]))
    starts = np.flatnonzero(new)
    return Order(snapshot.version, photos, starts, [label(keys[start]) for start in starts.tolist()])


def _nothing(keys: np.ndarray) -> np.ndarray:
    return np.isnat(keys) if keys.dtype.kind == "M" else np.zeros(len(keys), bool)


ORDERS: Mapping[Sort, Callable[[Snapshot, np.ndarray, bool], Order]] = {
    "date": _by_date,
    "folder": _by_folder,
    "camera": _by_camera,
    "size": _by_size,
}
