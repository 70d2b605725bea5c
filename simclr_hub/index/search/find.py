"""What a search finds in a snapshot: the nearest contents, of which each is one match with the number of its copies.

Unusual: a content has one vector, however many files have it, so that thousands of copies cost nothing; only files of
other bytes that show the same picture take one another's places, and then the search looks deeper, up to a bound.
"""

import itertools
from collections.abc import Callable, Collection, Sequence
from functools import partial

import numpy as np

from .catalog import HASH
from .exact import keep_best
from .filters import Condition
from .folding import SHAPE, Same, fold, near_pairs
from .match import Match
from .snapshot import Snapshot

#: Queries that are searched for at once.
QUERIES = 4096
#: Contents beyond the k wanted ones that are looked at, so that a few copies among them cost no second search; and the
#: most that are looked at where copies take all places: 20,000 of one picture.
SPARE, DEEPEST = 8, 1 << 15
#: Pairs of results that are compared at once, before it is known which of them folding needs: most of the time a
#: comparison takes is for the call. With more, many are copies of few, and each line needs few of its own.
PAIRS = 1024
#: Numbers that are handled at once.
NUMBERS = 1 << 22

#: A query's own files: content, root folder's id, path below it.
Own = Collection[tuple[bytes, int, bytes]]
#: Which pairs of contents, by their hashes, show the same picture: bool (P,).
SameContents = Callable[[list[bytes], list[bytes]], np.ndarray]


class Search:
    """A search in one snapshot.

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
        self._k = min(k, sum(segment.catalog.photos for segment in snapshot.segments))
        self._photos: list[np.ndarray | None] = []  # that pass, in each segment; None for all
        self._allowed: list[np.ndarray | None] = []  # which rows have any
        self._most: list[int] = []  # how many rows that are
        for segment, allowed in zip(snapshot.segments, snapshot.allowed, strict=True):
            photos = None
            if condition:
                passing = segment.passing(condition, snapshot.roots)
                met = np.logical_or.reduceat(passing, segment.catalog.first.all()[:-1]) if len(passing) else passing
                allowed = met if allowed is None else met & allowed
                photos = np.flatnonzero(passing)
            self._photos.append(photos)
            self._allowed.append(allowed)
            self._most.append(len(segment.vectors) if allowed is None else int(np.count_nonzero(allowed)))

    def run(self, queries: np.ndarray, own: Sequence[Own] = ()) -> list[list[Match]]:
        """For each query (Q, D) of length 1 the k photos (or all, if there are fewer) of the highest cosine.

        With a condition exactly those; without, most of them where `Segment.approximate` is there.

        Args:
            queries: of length 1.
            own: for each of them files that are not to be found; () for none.
        """
        found: list[list[Match]] = []
        for start in range(0, len(queries), QUERIES):
            some = slice(start, start + QUERIES)
            mine = [self._own_photos(files) for files in own[some]]
            depth = self._k + max(map(len, mine), default=0) + (SPARE if self._same else 0)
            found += self._run(queries[some], mine, depth)
        return found

    def _run(self, queries: np.ndarray, own: Sequence[dict[int, set[int]]], depth: int) -> list[list[Match]]:
        """The same by the `depth` nearest contents of each, or more; `own` is by row: numbers of photos."""
        scores, rows = self._nearest(queries, depth)  # (Q, R)
        for line, mine in enumerate(own):
            for row, photos in mine.items():
                if len(self._photos_of(row)) == len(photos):
                    rows[line, rows[line] == row] = -1
        copies = self._fold(rows)
        if not copies or rows.shape[1] == sum(self._most) or depth >= DEEPEST + self._k:
            return self._matches(scores, rows, copies, own)
        lacking = np.flatnonzero(np.count_nonzero(rows >= 0, axis=1) < self._k)
        rows[lacking] = -1
        found = self._matches(scores, rows, copies, own)
        deeper = min(8 * depth, DEEPEST + self._k)
        step = max(1, NUMBERS // deeper)
        for start in range(0, len(lacking), step):
            some = lacking[start : start + step]
            again = self._run(queries[some], [own[line] for line in some.tolist()] if own else (), deeper)
            for line, matches in zip(some.tolist(), again, strict=True):
                found[line] = matches
        return found

    def _nearest(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores and rows, which count through all segments, of the nearest contents: (Q, R) each, -1 for none."""
        snapshot, first = self._snapshot, self._snapshot.segments[0]
        near = None
        if first.approximate and self._photos[0] is None and depth <= self._most[0]:
            # A few more than k take what was measured for k: it was measured with one more.
            near = first.approximate.near(queries, self._k if depth <= self._k + SPARE + 1 else depth)
        scores, rows = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        for segment, allowed, most, start in zip(
            snapshot.segments, self._allowed, self._most, snapshot.starts, strict=False
        ):
            if most:
                found = segment.search(queries, min(depth, most), allowed, near)
                found_rows = np.where(found[1] >= 0, found[1] + start, -1)
                scores, rows = np.concatenate([scores, found[0]], 1), np.concatenate([rows, found_rows], 1)
        if rows.shape[1] > depth or len(snapshot.segments) > 1:
            return keep_best(scores, rows, min(depth, rows.shape[1]))
        return scores, rows

    def _fold(self, rows: np.ndarray) -> dict[int, list[int]]:
        """Put -1 for rows (Q, R) that show a picture of a row before them; what became of those, by its place."""
        copies: dict[int, list[int]] = {}
        if self._same is None or not rows.size:
            return copies
        width = rows.shape[1]
        step = max(1, NUMBERS // (8 * SHAPE * width))
        for start in range(0, len(rows), step):
            some = rows[start : start + step]
            lines = list(range(len(some)))
            same: Same = partial(self._same_rows, self._same)
            if width <= 256:
                line_of, earlier, later = near_pairs(self._shapes(some.ravel()).reshape(*some.shape, SHAPE))
                if 0 < len(line_of) <= PAIRS:
                    first, second = some[line_of, earlier], some[line_of, later]
                    are_same = same(first, second)
                    line_of = line_of[are_same]
                    same = _known(set(zip(first[are_same].tolist(), second[are_same].tolist(), strict=True)))
                lines = np.unique(line_of).tolist()
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
        """Of the signatures of rows (M,), int8 (M, 63)."""
        shapes = np.zeros((len(rows), SHAPE), np.int8)
        for number, mine, own in self._snapshot.of_segments(rows):
            values = self._snapshot.segments[number].shapes
            if values is not None:
                shapes[mine] = values.rows(own)[own]
        return shapes

    def _same_rows(self, same: SameContents, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """Compare rows by the hashes of their contents."""
        rows, places = np.unique(np.concatenate([first, second]), return_inverse=True)
        hashes = [b""] * len(rows)
        for number, mine, own in self._snapshot.of_segments(rows):
            for place, content in zip(
                mine.tolist(), self._snapshot.segments[number].catalog.hashes_of(own), strict=True
            ):
                hashes[place] = content
        of_pairs = [hashes[place] for place in places.tolist()]
        return same(of_pairs[: len(first)], of_pairs[len(first) :])

    def _matches(
        self,
        scores: np.ndarray,
        rows: np.ndarray,
        copies: dict[int, list[int]],
        own: Sequence[dict[int, set[int]]],
    ) -> list[list[Match]]:
        """The first k of each line of rows (Q, R)."""
        hits = np.flatnonzero((rows >= 0) & (np.cumsum(rows >= 0, axis=1) <= self._k))  # in rows.ravel()
        hit_rows, hit_scores = rows.ravel()[hits], np.minimum(scores.ravel()[hits], 1)
        shares = self._snapshot.pairs.closer_than(hit_scores)
        each = 1 if self._same else self._k
        spare = max((len(photos) for mine in own for photos in mine.values()), default=0)
        matches: list[Match] = []
        places: list[np.ndarray] = []  # of each match, among the hits
        for number, mine, here in self._snapshot.of_segments(hit_rows):
            segment, photos = self._snapshot.segments[number], self._photos[number]
            ranges = segment.catalog.first.rows(here, here + 2)
            first, last = ranges[here], ranges[here + 1]
            if photos is not None:
                first, last = np.searchsorted(photos, first), np.searchsorted(photos, last)
            count = np.minimum(last - first, each + spare)
            which = np.repeat(np.arange(len(mine)), count)
            numbers = np.arange(len(which)) + (first - np.cumsum(count) + count)[which]
            if photos is not None:
                numbers = photos[numbers]
            if spare:
                kept = self._without_own(hits[mine[which]] // rows.shape[1], hit_rows[mine[which]], numbers, own)
                which, numbers = which[kept], numbers[kept]
            if self._same:
                which, only = np.unique(which, return_index=True)
                numbers = numbers[only]
            known = segment.catalog.metadata_later(here[which], numbers)
            place = mine[which]
            matches += map(
                Match,
                self._snapshot.paths(segment, numbers),
                hit_scores[place].tolist(),
                known,
                [shares[i] for i in place.tolist()],
                self._copies(hits[place], rows, numbers, last[which] - first[which], copies, own),
            )
            places.append(place)
        place = np.concatenate(places)
        if len(places) > 1:
            order = np.argsort(place, kind="stable")
            matches, place = [matches[i] for i in order.tolist()], place[order]
        ends = np.searchsorted(hits[place], np.arange(len(rows) + 1) * rows.shape[1]).tolist()
        return [matches[a : min(b, a + self._k)] for a, b in itertools.pairwise(ends)]

    def _copies(
        self,
        hits: np.ndarray,
        rows: np.ndarray,
        numbers: np.ndarray,
        count: np.ndarray,
        copies: dict[int, list[int]],
        own: Sequence[dict[int, set[int]]],
    ) -> "list[Callable[[], list[str]] | tuple[()]]":
        """For each match what gives the paths of its copies.

        Args:
            hits: places (M,) of its content in `rows`, flat.
            rows: (Q, R).
            numbers: of its photo (M,).
            count: how many photos its content has (M,).
            copies: rows of the same picture, by place.
            own: photos that are left out of each line.
        """
        found: list[Callable[[], list[str]] | tuple[()]] = [()] * len(hits)
        if self._same is None:
            return found
        for i in np.flatnonzero((count > 1) | np.isin(hits, list(copies))).tolist():
            place = int(hits[i])
            row = int(rows.flat[place])
            left_out = dict(own[place // rows.shape[1]]) if own else {}
            left_out[row] = left_out.get(row, set()) | {int(numbers[i])}
            every = [row, *copies.get(place, [])]
            for one in every:
                self._check(one)
            found[i] = partial(self._paths, every, left_out)
        return found

    def _paths(self, rows: list[int], left_out: dict[int, set[int]]) -> list[str]:
        paths: list[str] = []
        for row in rows:
            photos = self._photos_of(row)
            photos = photos[~np.isin(photos, list(left_out.get(row, ())))]
            paths += self._snapshot.paths(self._snapshot.segments[self._segment(row)], photos)
        return paths

    def _segment(self, row: int) -> int:
        return int(np.searchsorted(self._snapshot.starts, row, "right")) - 1

    def _range(self, row: int) -> tuple[int, int]:
        """The photos of a row, which counts through all segments: from one number to before another."""
        number = self._segment(row)
        here = np.array([row - self._snapshot.starts[number]])
        first, last = (
            self._snapshot.segments[number].catalog.first.rows(here, here + 2)[here[0] : here[0] + 2].tolist()
        )
        return first, last

    def _photos_of(self, row: int) -> np.ndarray:
        """Their numbers, if they pass."""
        first, last = self._range(row)
        passing = self._photos[self._segment(row)]
        if passing is None:
            return np.arange(first, last)
        return passing[np.searchsorted(passing, first) : np.searchsorted(passing, last)]

    def _check(self, row: int) -> None:
        """Compare what tells the paths of a row's photos with its checksums now, while another source can be used."""
        first, last = self._range(row)
        catalog = self._snapshot.segments[self._segment(row)].catalog
        catalog.roots.rows(np.array([first]), np.array([last]))
        catalog.paths.check_all(first, last)

    def _own_photos(self, own: Own) -> dict[int, set[int]]:
        """Of a query's own files those that could be found: numbers of photos by row."""
        found: dict[int, set[int]] = {}
        for content, root, path in own:
            for number, segment in enumerate(self._snapshot.segments):
                catalog, allowed = segment.catalog, self._allowed[number]
                for here in catalog.find(np.array([content], HASH)).tolist():
                    row = self._snapshot.starts[number] + here
                    photos = self._photos_of(row) if allowed is None or allowed[here] else np.empty(0, np.int64)
                    roots = catalog.roots.rows(photos)[photos].tolist()
                    paths = catalog.paths.some(photos) if len(photos) else []
                    for photo, *place in zip(photos.tolist(), roots, paths, strict=True):
                        if place == [root, path]:
                            found.setdefault(row, set()).add(photo)
        return found

    @staticmethod
    def _without_own(
        lines: np.ndarray, rows: np.ndarray, photos: np.ndarray, own: Sequence[dict[int, set[int]]]
    ) -> np.ndarray:
        """Which of photos (M,), of these rows and found for these lines, are not to be left out: bool (M,)."""
        kept = np.ones(len(photos), bool)
        for i in np.flatnonzero(np.isin(rows, [row for mine in own for row in mine])).tolist():
            kept[i] = photos[i] not in own[lines[i]].get(int(rows[i]), ())
        return kept


def _known(pairs: set[tuple[int, int]]) -> Same:
    """Return what says of pairs of rows whether they are among these."""
    return lambda first, second: np.array(
        [pair in pairs for pair in zip(first.tolist(), second.tolist(), strict=True)], bool
    )
