"""The deep check: every photo read again and compared with its recorded content, and a sample embedded again.

Unusual: it goes on where it was stopped, from a position kept beside the store; it holds no lock, since it may take
hours; and it tells a photo that was edited from one that was damaged, whose content changed under an unchanged stamp.
"""

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ... import _files
from ..._threads import Pool
from ...errors import ImageError, SimCLRHubError
from ...images import FileBytes, describe, read_file
from ..maker import Maker, unit_vector
from ..records import Photo, Stamp
from ..report import CheckReport
from ..store import Store

POSITION_NAME = "check.json"
#: Photos between two savings of the position; photos that are embedded again; damaged ones that are named.
PAGE, SAMPLE, NAMED = 256, 16, 1000
#: How far the cosine of a vector and its repetition may be below 1: batches of another size round otherwise.
COSINE_TOLERANCE = {"float32": 1e-5}
COSINE_TOLERANCE_OTHERWISE = 1e-2

Outcome = Literal["same", "changed", "missing", "unreadable", "damaged"]


def check_photos(
    store: Store, maker: Maker, report: CheckReport, progress: Callable[[int, int], object] | None = None
) -> None:
    """Read the live photos again, embed a sample of them, and add to the report.

    Args:
        store: the index's.
        maker: its model, loaded for the sample.
        report: counted up.
        progress: called with (done, total) photos.
    """
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
    """How far a deep check came: saved after each page, so that it may be stopped at any moment."""

    def __init__(self, file: Path):
        self._file = file
        self.root_id, self.path = 0, b""
        self.counts: dict[str, int] = dict.fromkeys(("same", "changed", "missing", "unreadable", "damaged"), 0)
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
        saved = {
            "root_id": photo.root_id, "path": photo.path.hex(), "counts": self.counts, "damaged": self.damaged
        }  # fmt: skip
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
    return "damaged" if Stamp.of(stat) == photo.stamp and photo.settled else "changed"


def _check_sample(store: Store, maker: Maker, report: CheckReport) -> None:
    """Embed photos again: those with the smallest hashes, which is as good as by chance."""
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
    from ...embedder import Failure

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
