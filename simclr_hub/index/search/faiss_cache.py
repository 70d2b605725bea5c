"""What a search runs on, in files beside the store: a cache of it that can always be rebuilt.

Unusual: a file counts only if the SHA-256 that the store recorded for it fits and, block by block, its checksums do,
since FAISS loads about every fourth damaged file without complaint and then finds the wrong photos; it is written by
us, since FAISS reports success on a full disk; and few changes are written into a small file beside the large one.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from ..._files import write_file
from ..store import Store
from . import approximate
from .arrays import ArrayFile, DamagedArraysError
from .segment import Segment, read_segment, write_segment

#: Changed contents beyond this share of all, or beyond what is searched exactly, make a rebuild.
DELTA_SHARE = 0.1
_OURS = re.compile(r"\.?(search-\d+\.cache|vectors\.faiss)(\..*)?")  # the latter is of an older version


def read(store: Store, known: Iterable[Segment] = ()) -> list[Segment] | None:
    """The cached segments, which are of the generation in `Store.cache`; None if a file is not there or damaged.

    Args:
        store: whose; inside `reading` or `writing`.
        known: those that are open already, which are not opened again.
    """
    opened = {segment.file.sha256: segment for segment in known if segment.file}
    segments: list[Segment] = []
    try:
        for one in store.cache()[1]:
            beside = segments[0].approximate if segments else None
            segments.append(opened.get(one["sha256"]) or read_segment(_open(store, one), beside))
        return segments or None
    except (OSError, DamagedArraysError):
        return None


def fits(store: Store) -> bool:
    """Whether the cache is of the present generation and undamaged, all of it."""
    generation, files = store.cache()
    return generation == store.generation() and bool(files) and _verified(store, files)


def update(store: Store, progress: Callable[[int, int], object] | None = None) -> bool:
    """Bring the cache up to date; inside `Store.writing`; whether there was anything to do.

    A file comes before its record: a kill between the two leaves one that is not read.

    Args:
        store: whose.
        progress: called with (done, total) vectors.

    Raises:
        OSError: the file could not be written.
        IndexWriteError: its checksum could not be recorded.
        IndexDamagedError: the store is damaged.
    """
    generation, files = store.cache()
    sound = bool(files) and _verified(store, files) and "shapes" in _open(store, files[0])  # not of an older version
    now = store.generation()
    if sound and generation == now:
        _remove_others(store)
        return False
    first, contents = _changed(store, generation) if sound else (None, None)
    if contents == []:  # other roots: no file tells of those
        with store.transaction():
            store.put_cache(now, files)
        return True
    name = f"search-{now}.cache"
    sha256 = ""

    def write(file: Any) -> None:
        nonlocal sha256
        sha256 = write_segment(store, file, contents, first.approximate if first else None, progress)

    write_file(store.file.with_name(name), write)
    with store.transaction():
        store.put_cache(now, [*(files[:1] if first else []), {"name": name, "sha256": sha256}])
    _remove_others(store)
    return True


def _remove_others(store: Store) -> None:
    """Remove cache files that are not recorded, of earlier generations or left by a killed process."""
    used = {one["name"] for one in store.cache()[1]}
    for file in store.file.parent.iterdir():
        if _OURS.fullmatch(file.name) and file.name not in used:
            with suppress(OSError):  # on Windows while another process has it open
                file.unlink()


def _changed(store: Store, generation: int) -> tuple[Segment, list[bytes]] | tuple[None, None]:
    """The first file and the contents to be told anew beside it; None if they are many, so that it is rebuilt."""
    changed, segments = store.changes(generation), read(store)
    if changed is None or segments is None:
        return None, None
    contents = set(changed).union(*(segment.catalog.content_hashes() for segment in segments[1:]))
    most = min(DELTA_SHARE * len(segments[0].catalog), approximate.EXACT_NUMBERS / store.about.dim)
    return (segments[0], sorted(contents)) if len(contents) <= most else (None, None)


def _verified(store: Store, files: list[dict[str, Any]]) -> bool:
    try:
        for one in files:
            _open(store, one).verify()
    except (OSError, DamagedArraysError):
        return False
    return True


def _open(store: Store, one: dict[str, Any]) -> ArrayFile:
    return ArrayFile(store.file.with_name(one["name"]), one["sha256"])
