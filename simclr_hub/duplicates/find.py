"""Duplicates of an index's photos: groups, how each file compares with the one to keep, and why that one is kept."""

import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..formats import RAW_SUFFIXES
from ..scan import lies_aside
from ..signature import SIGNATURE_BYTES, as_rows, in_colour
from ..whitening import Whitening
from .grouping import Grouping, StarCluster
from .thresholds import Thresholds

if TYPE_CHECKING:
    from ..index.store import Store

Tier = Literal["same-bytes", "same-picture", "similar"]
#: From the most to the least certain.
TIERS: tuple[Tier, ...] = ("same-bytes", "same-picture", "similar")

#: Formats from the camera's own data to those that pictures are converted to.
_FORMATS = ("RAW", "lossless", "JPEG", "HEIF", "JXL", "AVIF", "WEBP", "JPEG2000", "GIF")
_LOSSLESS = frozenset(("PNG", "TIFF", "BMP", "PPM"))
_EXIF = {"taken": "time", "camera": "camera", "gps": "place"}


@dataclass(frozen=True)
class Member:
    """A file of a group.

    Attributes:
        path: absolute; undecodable bytes as surrogate escapes.
        tier: how it compares with the file that is kept.
        score: 1 for the same bytes; the correlation of what both show for the same picture; the cosine of the
            features for similar ones.
        metadata: as `Match.metadata`.
        sha256: of its bytes, hexadecimal.
        pair: the other file of a RAW and JPEG of one shot.
        same_file: the path of another member if this is one more name of that file, so that deleting it frees nothing.
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
        tier: of its least certain member.
        keep: the best file; in a similar group, whose files are no duplicates, the one that the others resemble.
        why: what makes it the best, in words; "" in a similar group.
        others: the rest, the most certain first.
    """

    tier: Tier
    keep: Member
    why: str
    others: list[Member]

    def as_values(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; a similar group has "like" in place of "keep" and "why"."""
        values = asdict(self)
        if self.tier == "similar":
            values = {"tier": self.tier, "like": values["keep"], "others": values["others"]}
        return values


@dataclass(frozen=True, slots=True)
class File:
    """A photo's file as the index knows it.

    Attributes:
        path: absolute.
        content_hash: SHA-256 of its bytes.
        info: see `metadata.read_info`; also "bytes" and "modified" (seconds since 1970).
        in_colour: False for a grey picture.
    """

    path: str
    content_hash: bytes
    info: Mapping[str, Any]
    in_colour: bool = True

    @property
    def pixels(self) -> int:
        """Return width x height, or 0 if unknown."""
        return int(self.info.get("width", 0)) * int(self.info.get("height", 0))

    @property
    def modified(self) -> float:
        """Return when it was last written, in seconds since 1970, or 0 if unknown."""
        return float(self.info.get("modified", 0))

    @property
    def format(self) -> str:
        """Return a name in `_FORMATS`, or another format's own name."""
        name = "RAW" if _is_raw(self.path) else str(self.info.get("format", ""))
        return "lossless" if name in _LOSSLESS else name


@dataclass(frozen=True)
class UniqueImages:
    """The live photos of an index, files of the same bytes as one image, in the order of their hashes.

    Attributes:
        hashes: N hashes.
        files: the files of each image.
        signatures: uint8 (N, 455); zeros where there is none.
        vectors: float32 (N, D) of length 1, not whitened; (N, 0) if they were not read.
        whitening: the index's.
    """

    hashes: list[bytes]
    files: list[list[File]]
    signatures: np.ndarray
    vectors: np.ndarray
    whitening: Whitening | None


def find_duplicates(
    store: "Store",
    thresholds: Thresholds,
    tiers: Collection[Tier] = TIERS,
    progress: Callable[[int, int], object] | None = None,
) -> list[DuplicateGroup]:
    """Return the groups of these tiers, the most certain first; see `SimilarityIndex.duplicates`."""
    by_picture = "same-picture" in tiers or "similar" in tiers
    with store.reading():
        images = read_unique_images(store, with_vectors=by_picture)
        distinct = store.distinct()
    shots = _raw_pairs(file for files in images.files for file in files)
    best = [min(files, key=preference) for files in images.files]
    same: list[StarCluster] = []
    similar: list[StarCluster] = []
    if by_picture:
        rank = np.empty(len(best), np.int64)
        rank[sorted(range(len(best)), key=lambda row: preference(best[row]))] = np.arange(len(best))
        row_of = {content_hash: row for row, content_hash in enumerate(images.hashes)}
        # A RAW file and the JPEG that the camera wrote beside it are a pair, not duplicates.
        hashes_apart = distinct | {(raw.content_hash, other.content_hash) for raw, other in shots}
        rows_apart = [(row_of[a], row_of[b]) for a, b in hashes_apart if a in row_of and b in row_of]
        apart = {(min(pair), max(pair)) for pair in rows_apart}
        grouping = Grouping(images.vectors, images.signatures, rank, thresholds, apart, progress)
        same = grouping.same()
        similar = grouping.similar(same, images.whitening) if "similar" in tiers else []

    pair_of = {file.path: other.path for shot in shots for file, other in (shot, shot[::-1])}
    groups = []
    grouped: set[int] = set()  # a file is in one group of the first two tiers at most
    for cluster in same if "same-picture" in tiers else []:
        grouped.update([cluster.kept, *(row for row, _ in cluster.others)])
        members: list[tuple[File, Tier, float]] = [(file, "same-bytes", 1.0) for file in images.files[cluster.kept]]
        members += [(file, "same-picture", score) for row, score in cluster.others for file in images.files[row]]
        groups.append(_group("same-picture", members, pair_of))
    for row, files in enumerate(images.files if "same-bytes" in tiers else []):
        if len(files) > 1 and row not in grouped:
            group = _group("same-bytes", [(file, "same-bytes", 1.0) for file in files], pair_of)
            if any(other.same_file is None for other in group.others):
                groups.append(group)
    for cluster in similar:
        members = [(best[row], "similar", score) for row, score in cluster.others]
        groups.append(_group("similar", [(best[cluster.kept], "same-bytes", 1.0), *members], pair_of))
    return sorted(groups, key=lambda group: (TIERS.index(group.tier), group.keep.path))


def _group(tier: Tier, members: list[tuple[File, Tier, float]], pair_of: Mapping[str, str]) -> DuplicateGroup:
    """Return members, each with how it compares with the kept one, as a group; the best of "same-bytes" is kept."""
    members = sorted(members, key=lambda member: (TIERS.index(member[1]), -member[2], preference(member[0])))
    names = _names_of_one_file([file for file, _, _ in members])
    keep, *others = [
        Member(
            file.path,
            how,
            round(min(float(score), 1.0), 4),
            dict(file.info),
            file.content_hash.hex(),
            pair_of.get(file.path),
            names.get(file.path),
        )
        for file, how, score in members
    ]
    files = sorted((file for file, _, _ in members if file.path not in names), key=preference)
    return DuplicateGroup(tier, keep, "" if tier == "similar" else why_kept(files), others)


def read_unique_images(store: "Store", *, with_vectors: bool = True) -> UniqueImages:
    """Read them; inside `Store.reading`.

    Raises:
        IndexDamagedError: a row does not match its checksum, or is missing.
    """
    roots = store.roots()
    photos = defaultdict(list)
    for photo in store.photos(state="live"):
        if photo.content_hash is None:
            raise store.damaged("a photo without content")
        photos[photo.content_hash].append(photo)
    hashes = sorted(photos)
    row_of = {content_hash: row for row, content_hash in enumerate(hashes)}
    infos: list[dict[str, object]] = [{}] * len(hashes)
    signatures = np.zeros((len(hashes), SIGNATURE_BYTES), np.uint8)
    for content_hash, details in store.details():
        row = row_of.get(content_hash)
        if row is not None:
            infos[row] = details.info
            signatures[row] = as_rows([details.signature])[0]
    vectors = np.empty((len(hashes), store.about.dim if with_vectors else 0), np.float32)
    if with_vectors:
        found = 0
        for content_hashes, page in store.vector_pages():
            wanted = [i for i, content_hash in enumerate(content_hashes) if content_hash in row_of]
            vectors[[row_of[content_hashes[i]] for i in wanted]] = page[wanted]
            found += len(wanted)
        if found != len(hashes):
            raise store.damaged(f"{len(hashes) - found} photos without a vector")
    colourful = in_colour(signatures).tolist()
    files = [
        [
            File(
                os.fsdecode(store.locate(photo, roots)),
                content_hash,
                infos[row] | json.loads(photo.metadata),
                colourful[row],
            )
            for photo in photos[content_hash]
        ]
        for row, content_hash in enumerate(hashes)
    ]
    return UniqueImages(hashes, files, signatures, vectors, store.whitening())


def _raw_pairs(files: Iterable[File]) -> list[tuple[File, File]]:
    """Return RAW files with the picture of the same folder and name, unless their times of taking differ."""
    by_stem = defaultdict(list)
    for file in files:
        by_stem[os.path.splitext(file.path)[0].casefold()].append(file)
    return [
        (raw, other)
        for named_alike in by_stem.values()
        if len(named_alike) > 1
        for raw in named_alike
        if _is_raw(raw.path)
        for other in named_alike
        # To the second and without a time zone, which only one of them may have.
        if not _is_raw(other.path) and len({str(f.info["taken"])[:19] for f in (raw, other) if "taken" in f.info}) < 2
    ]


def _is_raw(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in RAW_SUFFIXES


def _names_of_one_file(files: Sequence[File]) -> dict[str, str]:
    """Find further names of a file (hard links, a folder mounted twice): {name: the file's first path}.

    Files of equal content are looked at on the disk; one that is not there counts as a file of its own.
    """
    first: dict[tuple[bytes, int, int], str] = {}
    names = {}
    contents = Counter(file.content_hash for file in files)
    for file in files:
        if contents[file.content_hash] > 1:
            try:
                status = os.stat(file.path)
            except (OSError, ValueError):
                continue
            if status.st_ino:  # 0 on file systems without inode numbers
                known = first.setdefault((file.content_hash, status.st_dev, status.st_ino), file.path)
                if known != file.path:
                    names[file.path] = known
    return names


#: What decides which file to keep, the most important first: a key, the smaller the better, and its words.
_CRITERIA: tuple[tuple[Callable[[File], Any], Callable[[File, File], str]], ...] = (
    (lambda file: lies_aside(file.path), lambda kept, next: "the next lies in a hidden, trash or system folder"),
    (lambda file: -file.pixels, lambda kept, next: f"most pixels: {_size(kept)}, the next has {_size(next)}"),
    (lambda file: not file.in_colour, lambda kept, next: "in colour, the next is grey"),
    (
        lambda file: _FORMATS.index(file.format) if file.format in _FORMATS else len(_FORMATS),
        lambda kept, next: f"{_format(kept)} rather than {_format(next)}",
    ),
    (
        lambda file: -sum(key in file.info for key in _EXIF),
        lambda kept, next: f"its EXIF tells more: {_exif(kept)}, the next {_exif(next)}",
    ),
    (
        lambda file: -int(file.info.get("bytes", 0)),
        lambda kept, next: f"as many pixels in a larger file: {_bytes(kept)}, the next has {_bytes(next)}",
    ),
    (lambda file: file.modified, lambda kept, next: _older(day(kept.modified), day(next.modified))),
    (lambda file: len(file.path), lambda kept, next: "the one with the shortest path"),
    (lambda file: file.path, lambda kept, next: "the first by its path"),
)


def preference(file: File) -> tuple[Any, ...]:
    """Return a key that sorts the file to keep first."""
    return tuple(key(file) for key, _ in _CRITERIA)


def why_kept(files: Sequence[File]) -> str:
    """Tell what sets the first of these files, sorted by `preference`, apart from the next."""
    kept = files[0]
    other = next((file for file in files if file.content_hash != kept.content_hash), None)
    copy = next((file for file in files[1:] if file.content_hash == kept.content_hash), None)
    parts = [_difference(kept, other)] if other else []
    if copy:
        parts.append(("of its exact copies " if other else "") + _difference(kept, copy))
    return "; ".join(parts)


def _difference(kept: File, next_best: File) -> str:
    words = (tell(kept, next_best) for key, tell in _CRITERIA if key(kept) != key(next_best))
    return next(words, "as good as the others")


def _older(kept: str, next_best: str) -> str:
    return (
        "the oldest by less than a second" if kept == next_best else f"the oldest: {kept}, the next is of {next_best}"
    )


def _size(file: File) -> str:
    return f"{file.info['width']} x {file.info['height']}" if file.pixels else "an unknown number"


def _format(file: File) -> str:
    return "RAW" if file.format == "RAW" else str(file.info.get("format", "an unknown format"))


def _exif(file: File) -> str:
    return " and ".join(word for key, word in _EXIF.items() if key in file.info) or "nothing"


def _bytes(file: File) -> str:
    return f"{file.info.get('bytes', 0):,} bytes"


def day(modified: float) -> str:
    """Return a file's time in words, in UTC."""
    try:
        return datetime.fromtimestamp(modified, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, OSError, ValueError):  # a file's time may be anything
        return "an unknown time"
