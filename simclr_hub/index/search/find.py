"""Find what is nearest to a query in a snapshot: one match for each picture, however many files show it."""

import itertools
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import numpy as np

from .ann import top_k
from .filters import Condition
from .segments import SHAPE
from .snapshot import Snapshot

#: Queries that are searched for at once.
QUERIES = 4096
#: Contents beyond the k wanted ones that are looked at, so that a few copies among them cost no second search; and the
#: most that are looked at where copies take all places: 20,000 of one picture.
SPARE, DEEPEST = 8, 1 << 15
#: Pairs of results that are compared at once, before it is known which of them is needed: most of the time a
#: comparison takes is for the call. With more, many are copies of few, and each line needs few of its own.
PAIRS = 1024
#: Numbers that are handled at once in a second search; and when shapes are compared, as fit a processor's cache.
NUMBERS, SHAPE_NUMBERS = 1 << 22, 1 << 17
#: Cosine of two shapes from which their signatures are compared; of copies in full view, correlated by 0.97, none was
#: below 0.966.
MIN_SHAPE_COSINE = 0.96
#: Rows whose shapes are compared at once, and with how many before them: copies have nearly the same score.
BLOCK, WINDOW = 64, 128

#: A query's own files: content, root folder's id, path below it.
Own = Collection[tuple[bytes, int, bytes]]
#: Tells which pairs of contents, by their hashes, show the same picture: bool (P,).
SameContents = Callable[[list[bytes], list[bytes]], np.ndarray]
#: Tells which pairs of rows, int64 (P,) each, show the same picture: bool (P,).
SameRows = Callable[[np.ndarray, np.ndarray], np.ndarray]


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
        content_hash: SHA-256 of the file's bytes as the index knows it; b"" for a match that no index made.
    """

    __slots__ = ("_content_hash", "_copies", "_metadata", "_snapshot", "closer_than", "path", "score")

    def __init__(
        self,
        path: str,
        score: float,
        metadata: dict[str, Any] | tuple[int, int],
        closer_than: float | None = None,
        copies: Sequence[str] | Callable[[], list[str]] = (),
        snapshot: Snapshot | None = None,
        content_hash: bytes = b"",
    ):
        self.path = path
        self.score = score
        self.closer_than = closer_than
        # Read when they are asked for, which they seldom are: metadata and hash by row and photo of a snapshot.
        self._metadata, self._snapshot, self._content_hash = metadata, snapshot, content_hash
        self._copies = copies

    @property
    def metadata(self) -> dict[str, Any]:  # noqa: D102
        return self._read()[0]

    @property
    def content_hash(self) -> bytes:  # noqa: D102
        return self._read()[1]

    def _read(self) -> tuple[dict[str, Any], bytes]:
        if not isinstance(self._metadata, dict):
            if self._snapshot:
                row, photo = self._metadata
                (self._content_hash,) = self._snapshot.hashes(np.array([row]))
                self._metadata = self._snapshot.metadata(row, photo)
                self._snapshot = None  # with all that it maps
            else:
                self._metadata = {}
        return self._metadata, self._content_hash

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
        return Match, (*self._values(), None, self.content_hash)


def tell_share(share: float | None) -> str:
    """Format `Match.closer_than` for people: rounded down, and never 100 %."""
    if share is None:
        return ""
    if share > 0.9999:
        return "> 99.99 %"
    steps = 10000 if share >= 0.999 else 1000
    return f"{int(share * steps + 1e-9) * 100 / steps:.{2 if steps == 10000 else 1}f} %"


class Search:
    """A search in one snapshot.

    A content has one vector, so that thousands of files of the same bytes cost nothing; only files of other bytes that
    show the same picture take one another's places, and then the search looks deeper, up to a bound.

    Args:
        snapshot: where.
        k: how many matches.
        condition: what photos must meet.
        same: compares contents: copies of one picture become one match; None: every file is a match.
    """

    def __init__(
        self, snapshot: Snapshot, k: int, condition: Condition | None = None, same: SameContents | None = None
    ):
        self._snapshot, self._same = snapshot, same
        self._k = min(k, sum(segment.photos.photo_count for segment in snapshot.segments))
        self._allowed: list[np.ndarray | None] = []  # which rows of each segment have a photo that passes
        self._most: list[int] = []  # how many rows that are
        passing = []
        for segment, allowed in zip(snapshot.segments, snapshot.allowed, strict=True):
            if condition:
                met = segment.passing(condition, snapshot.roots)
                passing.append(met)
                if len(met):
                    met = np.logical_or.reduceat(met, segment.photos.first.all()[:-1])
                allowed = met if allowed is None else met & allowed
            self._allowed.append(allowed)
            self._most.append(len(segment.vectors) if allowed is None else int(np.count_nonzero(allowed)))
        self._passing = np.flatnonzero(np.concatenate(passing)) if condition else None  # photos; None for all

    def run(self, queries: np.ndarray, own: Sequence[Own] = ()) -> list[list[Match]]:
        """Find for each query (Q, D) of length 1 the k photos (or all, if there are fewer) of the highest cosine.

        With a condition exactly those; without, most of them where `Segment.ivf` is there.

        Args:
            queries: of length 1.
            own: for each of them files that are not to be found; () for none.
        """
        found: list[list[Match]] = []
        for start in range(0, len(queries), QUERIES):
            some = slice(start, start + QUERIES)
            mine = [[found for file in files for found in self._snapshot.find(*file)] for files in own[some]]
            depth = self._k + max(map(len, mine), default=0) + (SPARE if self._same else 0)
            found += self._run(queries[some], mine, depth)
        return found

    def _run(self, queries: np.ndarray, own: Sequence[list[tuple[int, int]]], depth: int) -> list[list[Match]]:
        """Do so by the `depth` nearest contents of each, or more; `own` are rows and photos."""
        scores, rows = self._nearest(queries, depth)  # (Q, R)
        left_out = [{photo for _, photo in mine} for mine in own]
        for line, mine in enumerate(own):
            for row, _ in mine:
                if left_out[line].issuperset(self._photos_of(row).tolist()):
                    rows[line, rows[line] == row] = -1
        copies = self._fold(rows, self._same) if self._same and rows.size else {}
        if not copies or rows.shape[1] == sum(self._most) or depth >= DEEPEST + self._k:
            return self._matches(scores, rows, copies, left_out)
        lacking = np.flatnonzero(np.count_nonzero(rows >= 0, axis=1) < self._k)
        rows[lacking] = -1
        found = self._matches(scores, rows, copies, left_out)
        deeper = min(8 * depth, DEEPEST + self._k)
        step = max(1, NUMBERS // deeper)
        for start in range(0, len(lacking), step):
            some = lacking[start : start + step].tolist()
            again = self._run(queries[some], [own[line] for line in some] if own else (), deeper)
            for line, matches in zip(some, again, strict=True):
                found[line] = matches
        return found

    def _nearest(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows, counted through all segments, of the nearest contents: (Q, R) each, -1 for none."""
        snapshot, first = self._snapshot, self._snapshot.segments[0]
        probes = None
        if first.ivf and self._passing is None and depth <= self._most[0]:
            # A few more than k take what was measured for k: it was measured with one more.
            probes = first.ivf.probe(queries, self._k if depth <= self._k + SPARE + 1 else depth)
        scores, rows = [np.empty((len(queries), 0), np.float32)], [np.empty((len(queries), 0), np.int64)]
        for number, (segment, most) in enumerate(zip(snapshot.segments, self._most, strict=True)):
            if most:
                found = segment.search(queries, min(depth, most), self._allowed[number], probes)
                scores.append(found[0])
                rows.append(np.where(found[1] >= 0, found[1] + snapshot.starts[number], -1))
        if len(rows) == 2:
            return scores[1], rows[1]
        return top_k(np.concatenate(scores, 1), np.concatenate(rows, 1), depth)

    def _fold(self, rows: np.ndarray, same_contents: SameContents) -> dict[int, list[int]]:
        """Put -1 for rows (Q, R) that show the picture of a row before them; return those by the other's place."""
        copies: dict[int, list[int]] = {}
        width = rows.shape[1]
        step = max(1, SHAPE_NUMBERS // (SHAPE * width))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            lines = list(range(len(some)))
            same: SameRows = partial(self._same_rows, same_contents)
            if width <= 256:
                line_of, earlier, later = near_pairs(self._shapes(some.ravel()).reshape(*some.shape, SHAPE))
                if 0 < len(line_of) <= PAIRS:
                    first, second = some[line_of, earlier], some[line_of, later]
                    are_same = same(first, second)
                    line_of = line_of[are_same]
                    same = _known(set(zip(first[are_same].tolist(), second[are_same].tolist(), strict=True)))
                lines = np.unique(line_of).tolist() if len(line_of) else []
            for line in lines:
                shapes = self._shapes(some[line])
                there = np.flatnonzero((some[line] >= 0) & shapes.any(1))  # what has none is like nothing
                mine = some[line][there]
                first = fold(shapes[there], mine, same, self._k)
                for place in np.flatnonzero(first != np.arange(len(first))).tolist():
                    copies.setdefault((start + line) * width + int(there[first[place]]), []).append(int(mine[place]))
                    some[line, there[place]] = -1
        return copies

    def _shapes(self, rows: np.ndarray) -> np.ndarray:
        """Return the shapes of rows (M,), zero for -1: int8 (M, 63)."""
        shapes = np.zeros((len(rows), SHAPE), np.int8)
        there = np.flatnonzero(rows >= 0)
        shapes[there] = self._snapshot.shapes(rows[there])
        return shapes

    def _same_rows(self, same: SameContents, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Compare rows by the hashes of their contents."""
        rows, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        hashes = self._snapshot.hashes(rows)
        of_pairs = [hashes[place] for place in places.tolist()]
        return same(of_pairs[: len(first)], of_pairs[len(first) :])

    def _matches(
        self, scores: np.ndarray, rows: np.ndarray, copies: dict[int, list[int]], left_out: Sequence[set[int]]
    ) -> list[list[Match]]:
        """Return the first k of each line of rows (Q, R).

        Args:
            scores: (Q, R).
            rows: (Q, R).
            copies: rows of the same picture, by the place in `rows.ravel()` of the first.
            left_out: photos that are not to be found, for each line; () for none.
        """
        there = rows >= 0
        hits = np.flatnonzero(there & (np.cumsum(there, axis=1) <= self._k))  # in rows.ravel()
        hit_rows, hit_scores = rows.ravel()[hits], np.minimum(scores.ravel()[hits], 1)
        first, last = self._snapshot.photos_of(hit_rows)
        if self._passing is not None:
            first, last = np.searchsorted(self._passing, first), np.searchsorted(self._passing, last)
        spare = max(map(len, left_out), default=0)
        count = np.minimum(last - first, (1 if self._same else self._k) + spare)
        which = np.repeat(np.arange(len(hits)), count)
        photos = np.arange(len(which)) + (first - np.cumsum(count) + count)[which]
        if self._passing is not None:
            photos = self._passing[photos]
        if spare:
            lines = (hits[which] // rows.shape[1]).tolist()
            kept = [photo not in left_out[line] for photo, line in zip(photos.tolist(), lines, strict=True)]
            which, photos = which[kept], photos[kept]
            if self._same:
                which, only = np.unique(which, return_index=True)
                photos = photos[only]
        of_rows = hit_rows[which]
        self._snapshot.verify_metadata(of_rows, photos)  # now, while the store can be used instead
        shares = self._snapshot.cosines.closer_than(hit_scores[which])
        matches = list(
            map(
                Match,
                self._snapshot.paths(photos),
                hit_scores[which].tolist(),
                zip(of_rows.tolist(), photos.tolist(), strict=True),
                shares,
                itertools.repeat(()),
                itertools.repeat(self._snapshot),
            )
        )
        if self._same:
            several = (last - first)[which] > 1
            if copies:
                several |= np.isin(hits[which], list(copies))
            for i in np.flatnonzero(several).tolist():
                place = int(hits[which[i]])
                every = [int(of_rows[i]), *copies.get(place, [])]
                self._snapshot.verify_paths(np.concatenate([self._photos_of(row) for row in every]))
                others = left_out[place // rows.shape[1]] if left_out else set()
                matches[i]._copies = partial(self._paths, every, others | {int(photos[i])})
        ends = np.searchsorted(hits[which], np.arange(len(rows) + 1) * rows.shape[1]).tolist()
        return [matches[a : min(b, a + self._k)] for a, b in itertools.pairwise(ends)]

    def _paths(self, rows: list[int], left_out: set[int]) -> list[str]:
        photos = np.concatenate([self._photos_of(row) for row in rows])
        return self._snapshot.paths(photos[~np.isin(photos, list(left_out))])

    def _photos_of(self, row: int) -> np.ndarray:
        """Return the photos of a row that pass."""
        (first,), (last,) = self._snapshot.photos_of(np.array([row]))
        if self._passing is None:
            return np.arange(first, last)
        return self._passing[np.searchsorted(self._passing, first) : np.searchsorted(self._passing, last)]


def _known(pairs: set[tuple[int, int]]) -> SameRows:
    return lambda first, second: np.array(
        [pair in pairs for pair in zip(first.tolist(), second.tolist(), strict=True)], bool
    )


# Which results may show one picture. Their shapes tell: mirroring changes signs of them and turning exchanges them, so
# that eight orientations cost small products of matrices, and most searches read no signature.

#: Places in a shape, 8 x 8 without the first, by whether the frequencies down and across are odd, which says what
#: mirroring does to them: (2, 4, 16), of a picture as it is and turned by a quarter; place 0 is that of a zero.
_PLACES = np.array(
    [
        [places[down::2, across::2].ravel() for down in (0, 1) for across in (0, 1)]
        for places in (np.arange(64).reshape(8, 8), np.arange(64).reshape(8, 8).T)
    ]
)


def near_pairs(lines: np.ndarray) -> tuple[np.ndarray, ...]:
    """Find rows of lines (Q, R, 63) that may show one picture: each pair's line, earlier and later place, (P,)."""
    return np.nonzero(np.triu(_near(lines, lines), 1))


def fold(shapes: np.ndarray, rows: np.ndarray, same: SameRows, most: int) -> np.ndarray:
    """Return for rows (R,), best first, the place (R,) of the first that shows the same picture, its own if it is new.

    Args:
        shapes: of the rows, (R, 63).
        rows: of an index.
        same: compares two rows.
        most: pictures after which those that are new are not compared with one another.
    """
    first = np.arange(len(rows))
    known = np.empty(0, np.int64)
    for start in range(0, len(rows), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(rows)))
        earlier = np.concatenate([known[-WINDOW:], block if len(known) < most else block[:0]])
        near = _near(shapes[None, earlier], shapes[None, block])[0] & (earlier[:, None] < block)
        for one in np.flatnonzero(near.any(1)).tolist():
            if first[earlier[one]] == earlier[one]:
                others = block[near[one] & (first[block] == block)]
                if len(others):
                    same_ones = same(np.full(len(others), rows[earlier[one]]), rows[others])
                    first[others[same_ones]] = earlier[one]
        known = np.concatenate([known, block[first[block] == block]])
    return first


def _near(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return which pairs of lines (Q, A, 63) and (Q, B, 63) may show one picture in some orientation: (Q, A, B)."""
    turned = _with_zero(a)[..., _PLACES].transpose(2, 3, 0, 1, 4)  # (2, 4, Q, A, 16)
    as_it_is = _with_zero(b)[..., _PLACES[0]].transpose(2, 0, 3, 1)  # (4, Q, 16, B)
    both, across, down, odd = (turned @ as_it_is).swapaxes(0, 1)  # (2, Q, A, B) each
    # What is odd changes its sign in a mirror; the best of the two mirrors and both.
    best = np.maximum(both + down + np.abs(across + odd), both - down + np.abs(across - odd)).max(0)
    near: np.ndarray = best >= MIN_SHAPE_COSINE * 127**2
    return near


def _with_zero(shapes: np.ndarray) -> np.ndarray:
    padded = np.zeros((*shapes.shape[:-1], SHAPE + 1), np.float32)
    padded[..., 1:] = shapes
    return padded
