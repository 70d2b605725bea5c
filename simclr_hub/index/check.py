"""Check an index: the store's pages and rows, then the photos if asked for; and tell what was not verified."""

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from .. import _files
from .._threads import Pool
from ..errors import ImageError, IndexDamagedError, IndexNotFoundError, SimCLRHubError
from ..images import FileBytes, describe, read_file
from ..notebook import show_report
from ..scan import FileStat
from .maker import Maker, unit_vector
from .repair import READ_ERRORS, RepairReport, checked_tables, connect, repair_store, wrong_row
from .search.segments import cache_fits
from .sqlite import writer_lock
from .store import STORE_NAME, About, Photo, Store

#: Problems of one kind that are told one by one.
TOLD = 3
POSITION_NAME = "check.json"
#: Photos between two savings of the position; photos that are embedded again; damaged ones that are named.
PAGE, SAMPLE, NAMED = 256, 16, 1000
#: How far the cosine of a vector and its repetition may be below 1: batches of another size round otherwise.
COSINE_TOLERANCE = {"float32": 1e-5}
COSINE_TOLERANCE_OTHERWISE = 1e-2
#: What became of a photo; "damaged" if its content changed while its file stat did not.
Outcome = Literal["same", "changed", "missing", "unreadable", "damaged"]


@dataclass
class CheckReport:
    """The result of a check.

    Attributes:
        path: the index.
        verified: what was found right, and how many of it.
        problems: what is wrong with the index; empty if it is sound.
        unverified: what could not be checked or was not asked for, and why.
        notes: what mends itself, or is about the photos and not about the index.
        repair: what a repair saved and lost; None if there was none.
        photos: by a deep check: how many are the "same", "changed", "missing", "unreadable" or "damaged".
        damaged_photos: whose content changed while size and times did not: a disk or a program damaged them.
    """

    path: str
    verified: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    unverified: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    repair: RepairReport | None = None
    photos: dict[str, int] = field(default_factory=dict)
    damaged_photos: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Tell whether nothing is wrong with the index."""
        return not self.problems

    def _repr_html_(self) -> str:
        return show_report("Check: sound" if self.sound else "Check: problems were found", self)


def check_index(
    path: str | os.PathLike[str],
    *,
    repair: bool = False,
    deep: bool = False,
    model: Any = None,
    progress: Callable[[int, int], object] | None = None,
) -> CheckReport:
    """Check an index, also one that cannot be opened.

    Args:
        path: its directory.
        repair: if its store is damaged, copy what is sound into a new one and keep the damaged file under another
            name; a sound store is left alone.
        deep: also read the photos again and embed a sample of them; a deep check that was stopped goes on.
        model: for the sample, see `SimilarityIndex.open`; or the index's `Maker`.
        progress: called with (done, total) photos of a deep check.

    Raises:
        IndexNotFoundError: there is no index.
        IndexLockedError: another process writes to it.
        IndexMismatchError: a newer version of this package made it.
        IndexDamagedError: nothing of it can be saved.
        IndexWriteError: the repaired store could not be written; the index is as it was.
    """
    directory = Path(path)
    file = directory / STORE_NAME
    if not file.is_file():
        raise IndexNotFoundError(f"{describe(directory)}: no index there")
    read_only = not (os.access(directory, os.W_OK) and os.access(file, os.W_OK))
    with suppress(IndexDamagedError):
        Store(file, read_only=read_only).close()  # brings an older layout up to date, which needs the lock
    report = CheckReport(describe(directory))
    with ExitStack() as stack:  # works on a directory, since a damaged store may not open
        if repair or not read_only:
            stack.enter_context(writer_lock(file))
        _check_store(file, report, read_only=read_only)
        if repair and not report.sound:
            saved = repair_store(directory)
            report = CheckReport(describe(directory), repair=saved)
            _check_store(file, report, read_only=False)
    if not deep:
        report.unverified.append("the photos themselves: a deep check reads them again")
    elif not report.sound:
        report.unverified.append("the photos themselves: the index has to be repaired first")
    else:
        with closing(Store(file, read_only=read_only)) as store:
            maker = model if isinstance(model, Maker) else Maker(store.about, str(store.file.parent), model)
            _check_photos(store, maker, report, progress)
    return report


def _check_store(file: Path, report: CheckReport, *, read_only: bool) -> None:
    """Check the store at `file` and its cache, and add to the report; the caller holds the writer's lock.

    Raises:
        IndexMismatchError: a newer version of this package made it.
    """
    try:
        store = Store(file, read_only=read_only)
    except IndexDamagedError as e:
        report.problems.append(str(e))
        report.unverified.append("the rows: the store cannot be opened")
        return
    with closing(store), closing(connect(file)) as db:
        if _check_pages(db, report):
            _check_rows(db, store.about, report)
            _check_as_a_whole(store, report)
        else:
            report.unverified.append("the rows: SQLite cannot be relied on to find them")


def _check_pages(db: sqlite3.Connection, report: CheckReport) -> bool:
    """Let SQLite check itself; return whether its pages are sound."""
    try:
        found = [text for (text,) in db.execute("PRAGMA integrity_check(20)")]
        orphans = db.execute("PRAGMA foreign_key_check").fetchall()
        (pages,) = db.execute("PRAGMA page_count").fetchone()
    except READ_ERRORS as e:
        found, orphans, pages = [str(e)], [], 0
    if found == ["ok"]:
        report.verified["pages"] = pages
    else:
        lines = [line for text in found for line in text.splitlines() if not line.startswith("***")]
        report.problems += [f"SQLite: {line}" for line in lines[:TOLD]]
    if orphans:
        report.problems.append(f"{len(orphans):,} rows refer to others that are not there")
    return found == ["ok"]


def _check_rows(db: sqlite3.Connection, about: About, report: CheckReport) -> None:
    """Check every row of every table that has checksums, also behind a wrong one."""
    for table, columns in checked_tables(db).items():
        good = 0
        bad: list[str] = []
        try:
            for row in db.execute(f"SELECT {', '.join(columns)} FROM {table}"):
                why = wrong_row(table, row, about.dim)
                if why is None:
                    good += 1
                else:
                    bad.append(f"{table}: {_name_row(table, row)}: {why}")
        except READ_ERRORS as e:
            bad.append(f"{table}: reading stopped after {good:,} rows: {e}")
        report.verified[table] = good
        report.problems += bad[:TOLD]
        if len(bad) > TOLD:
            report.problems.append(f"{table}: {len(bad) - TOLD:,} more rows like these")


def _name_row(table: str, row: tuple[Any, ...]) -> str:
    """Return what to call a row in a message."""
    is_path = table in ("photos", "roots")
    key = row[1] if is_path else row[0]
    if not isinstance(key, bytes):
        return describe(str(key))
    return describe(key.decode(errors="surrogateescape")) if is_path else key.hex()[:16]


def _check_as_a_whole(store: Store, report: CheckReport) -> None:
    """Check what only all rows together can tell: counts, order, and what depends on the store."""
    try:
        # Reading all of them compares their number with the one recorded: none is lost, none is doubled.
        report.verified["photos with a vector"] = _with_vector(store)
        if store.whitening():
            report.verified["whitening"] = 1
        if (counted := store.counts()["live"]) != (recorded := store.live()):
            report.problems.append(f"{counted:,} photos can be found, {recorded:,} were recorded")
        for root in store.roots().values():
            if root.listing != "ok":
                name = describe(root.path.decode(errors="surrogateescape"))
                report.notes.append(f"{name}: its last listing was not complete")
    except IndexDamagedError as e:
        if str(e) not in report.problems:
            report.problems.append(str(e))
    with suppress(IndexDamagedError):
        if cache_fits(store):
            report.verified["search cache"] = 1
        else:
            report.notes.append("the search cache does not fit; the next sync makes it anew, a search does without")


def _with_vector(store: Store) -> int:
    with store.reading():
        number = sum(photo.content_hash is not None for photo in store.each_photo())
        without = store.without_vector()
    if without:
        raise store.damaged(f"{without:,} photos without a vector")
    return number


def _check_photos(
    store: Store, maker: Maker, report: CheckReport, progress: Callable[[int, int], object] | None
) -> None:
    """Read the live photos again, embed a sample of them, and add to the report; no lock is held for these hours."""
    position = _Position(store.file.with_name(POSITION_NAME))
    total = store.counts()["live"]
    roots = store.roots()
    with Pool(4, "simclr-check") as pool:
        while page := store.page((position.root_id, position.path), PAGE):
            live = [photo for photo in page if photo.state == "live"]
            paths = [store.locate(photo, roots) for photo in live]
            for (_, path), outcome in pool.map(_compare, zip(live, paths, strict=True), 8):
                position.add(path, outcome)
            position.move(page[-1])
            if progress:
                progress(position.done, max(total, position.done))
    report.photos = position.counts
    report.damaged_photos = position.damaged
    if position.resumed:
        report.notes.append("the check of the photos went on where an earlier one was stopped")
    _check_sample(store, maker, report)
    position.forget()


class _Position:
    """The progress of a deep check, saved beside the store after each page, since it may be stopped."""

    def __init__(self, file: Path):
        self._file = file
        self.root_id, self.path = 0, b""
        self.counts: dict[str, int] = dict.fromkeys(get_args(Outcome), 0)
        self.damaged: list[str] = []
        self.resumed = False
        with suppress(OSError, ValueError, KeyError, TypeError):  # whatever is there, the check begins anew
            saved: dict[str, Any] = json.loads(file.read_bytes())
            root_id, path = int(saved["root_id"]), bytes.fromhex(saved["path"])
            self.counts = {name: int(saved["counts"][name]) for name in self.counts}
            self.damaged = [str(name) for name in saved["damaged"]]
            self.root_id, self.path, self.resumed = root_id, path, True

    @property
    def done(self) -> int:
        return sum(self.counts.values())

    def add(self, path: bytes, outcome: Outcome) -> None:
        self.counts[outcome] += 1
        if outcome == "damaged" and len(self.damaged) < NAMED:
            self.damaged.append(os.fsdecode(path))

    def move(self, photo: Photo) -> None:
        self.root_id, self.path = photo.root_id, photo.path
        saved = {"root_id": photo.root_id, "path": photo.path.hex(), "counts": self.counts, "damaged": self.damaged}
        with suppress(OSError):  # a read-only index is checked, too
            _files.write_file(self._file, lambda file: file.write(json.dumps(saved).encode()))

    def forget(self) -> None:
        with suppress(OSError):
            self._file.unlink(missing_ok=True)


def _compare(given: tuple[Photo, bytes]) -> Outcome:
    photo, path = given
    try:
        data, stat = read_file(path, follow_symlinks=False)
    except ImageError as e:
        return "missing" if isinstance(e.__cause__, (FileNotFoundError, NotADirectoryError)) else "unreadable"
    if hashlib.sha256(data).digest() == photo.content_hash:
        return "same"
    return "damaged" if FileStat.of(stat) == photo.stat and photo.settled else "changed"


def _check_sample(store: Store, maker: Maker, report: CheckReport) -> None:
    """Embed a few photos again and compare with their recorded vectors."""
    images: list[tuple[FileBytes, bytes]] = []
    roots = store.roots()
    for photo in store.sample(4 * SAMPLE):
        path = store.locate(photo, roots)
        with suppress(ImageError):
            data, _ = read_file(path, follow_symlinks=False)
            if photo.content_hash is not None and hashlib.sha256(data).digest() == photo.content_hash:
                images.append((FileBytes(describe(os.fsdecode(path)), data), photo.content_hash))
        if len(images) == SAMPLE:
            break
    if not images:
        report.unverified.append("whether the model still gives the same vectors: no photo could be read")
        return
    try:
        results = list(maker.embedder().stream(image for image, _ in images))
    except SimCLRHubError as e:
        report.unverified.append(f"whether the model still gives the same vectors: {e}")
        return
    from ..embedder import Failure

    tolerance = COSINE_TOLERANCE.get(store.about.fingerprint.get("precision", "float32"), COSINE_TOLERANCE_OTHERWISE)
    lowest, name = 1.0, ""
    for item, (image, content_hash) in zip(results, images, strict=True):
        vector = None if isinstance(item, Failure) else unit_vector(item.vector)
        recorded = store.vector(content_hash)
        cosine = -1.0 if vector is None or recorded is None else float(np.dot(vector, recorded))
        if cosine < lowest:
            lowest, name = cosine, image.name
    if lowest < 1 - tolerance:
        report.problems.append(
            f"{name}: the model does not give the recorded vector again, cosine {lowest:.6f}: "
            "was another library, device or precision used? Create the index anew"
        )
    else:
        report.verified["vectors embedded again"] = len(images)
