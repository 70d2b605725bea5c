"""Files that hold the same bytes, the same picture or a similar one, in groups; nothing is ever deleted.

Unusual: every file but the kept one is told with how it stands to the kept one; a RAW file and the JPEG of the same
shot are a pair, not duplicates; and several names of one file (hard links, a folder mounted twice) are one file.
"""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ..store import Store
from .calibration import Calibration
from .contents import LiveContents, read_contents
from .grouping import Contents, Grouping
from .keep import File, is_raw_name, preference, same_files, why_kept
from .stars import Star

Tier = Literal["same-bytes", "same-picture", "similar"]
#: From the surest to the least sure.
TIERS: tuple[Tier, ...] = ("same-bytes", "same-picture", "similar")


@dataclass(frozen=True)
class Member:
    """A file of a group.

    Attributes:
        path: absolute; undecodable bytes as surrogate escapes.
        tier: how it stands to the file that is kept.
        score: 1 for the same bytes; for the same picture the correlation of what both show; for similar ones the
            cosine of the features.
        metadata: what the index knows of it, as `Match.metadata`.
        sha256: of its bytes, in hexadecimal digits.
        pair: the other file of a RAW and JPEG of one shot.
        same_file: the path of another member, of whose file this is one more name: no copy, and no bytes to win.
    """

    path: str
    tier: Tier
    score: float
    metadata: dict[str, Any]
    sha256: str
    pair: str | None = None
    same_file: str | None = None


@dataclass(frozen=True)
class DuplicateGroup:
    """Files that belong together.

    Attributes:
        tier: of its least sure member.
        keep: the best of them; of similar ones only what the others are like, since those are no duplicates.
        why: what makes it the best, in words; "" for similar ones.
        others: the rest, the surest first.
    """

    tier: Tier
    keep: Member
    why: str
    others: list[Member]

    def as_values(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; similar ones have a "like" in place of "keep" and "why"."""
        values = asdict(self)
        if self.tier == "similar":
            values = {"tier": self.tier, "like": values["keep"], "others": values["others"]}
        return values


def find_duplicates(
    store: Store,
    calibration: Calibration,
    tiers: Collection[Tier] = TIERS,
    progress: Callable[[int, int], object] | None = None,
) -> list[DuplicateGroup]:
    """The groups of these tiers, the surest first. See `SimilarityIndex.duplicates`."""
    pictures = "same-picture" in tiers or "similar" in tiers
    with store.reading():
        contents = read_contents(store, with_vectors=pictures)
        distinct = store.distinct()
    shots = _shots(file for some in contents.files for file in some)
    best = [min(some, key=preference) for some in contents.files]
    same: list[Star] = []
    similar: list[Star] = []
    if pictures:
        rank = np.empty(len(best), np.int64)
        rank[sorted(range(len(best)), key=lambda row: preference(best[row]))] = np.arange(len(best))
        row_of = {content_hash: row for row, content_hash in enumerate(contents.hashes)}
        hashes_apart = distinct | {(raw.content_hash, other.content_hash) for raw, other in shots}
        rows = [(row_of[a], row_of[b]) for a, b in hashes_apart if a in row_of and b in row_of]
        apart = {(min(pair), max(pair)) for pair in rows}
        grouping = Grouping(Contents(contents.vectors, contents.signatures, rank, apart), calibration, progress)
        same = grouping.same()
        similar = grouping.similar(same, contents.whitening) if "similar" in tiers else []
    return _Writer(contents, best, shots).groups(same, similar, tiers)


class _Writer:
    """Rows of contents to groups of files."""

    def __init__(self, contents: LiveContents, best: list[File], shots: list[tuple[File, File]]):
        self._files, self._best = contents.files, best
        self._pair_of = {path: pair for a, b in shots for path, pair in ((a.path, b.path), (b.path, a.path))}

    def groups(self, same: list[Star], similar: list[Star], tiers: Collection[Tier]) -> list[DuplicateGroup]:
        """All of these tiers; a file is in one group of the first two at most."""
        groups = []
        grouped: set[int] = set()
        for star in same if "same-picture" in tiers else []:
            members: list[tuple[File, Tier, float]] = []
            for row, score in [(star.kept, 1.0), *star.others]:
                grouped.add(row)
                tier: Tier = "same-bytes" if row == star.kept else "same-picture"
                members += [(file, tier, score) for file in self._files[row]]
            groups.append(self._group("same-picture", star.kept, members))
        for row, files in enumerate(self._files if "same-bytes" in tiers else []):
            if len(files) > 1 and row not in grouped:
                group = self._group("same-bytes", row, [(file, "same-bytes", 1.0) for file in files])
                if any(other.same_file is None for other in group.others):
                    groups.append(group)
        for star in similar:
            members = [(self._best[row], "similar", score) for row, score in star.others]
            groups.append(self._group("similar", star.kept, [(self._best[star.kept], "same-bytes", 1.0), *members]))
        return sorted(groups, key=lambda group: (TIERS.index(group.tier), group.keep.path))

    def _group(self, tier: Tier, row: int, members: list[tuple[File, Tier, float]]) -> DuplicateGroup:
        kept = self._best[row]
        members.sort(key=lambda member: (member[0] != kept, TIERS.index(member[1]), -member[2], preference(member[0])))
        names = same_files([file for file, _, _ in members])
        keep, *others = [self._member(*member, names) for member in members]
        single = sorted((file for file, _, _ in members if file.path not in names), key=preference)
        return DuplicateGroup(tier, keep, "" if tier == "similar" else why_kept(single), others)

    def _member(self, file: File, tier: Tier, score: float, names: dict[str, str]) -> Member:
        score, path = round(min(float(score), 1.0), 4), file.path
        content = file.content_hash.hex()
        return Member(path, tier, score, dict(file.info), content, self._pair_of.get(path), names.get(path))


def _shots(files: Iterable[File]) -> list[tuple[File, File]]:
    """RAW files with the picture that the camera wrote beside: same folder, same name, and not taken at two times."""
    by_stem = defaultdict(list)
    for file in files:
        by_stem[os.path.splitext(file.path)[0].casefold()].append(file)
    return [
        (raw, other)
        for some in by_stem.values()
        if len(some) > 1
        for raw in some
        if is_raw_name(raw.path)
        for other in some
        if not is_raw_name(other.path) and _one_time(raw, other)
    ]


def _one_time(raw: File, other: File) -> bool:
    times = {str(file.info["taken"])[:19] for file in (raw, other) if "taken" in file.info}
    return len(times) < 2
