"""One part in, one Parquet file out: by name, all or nothing, and never an exception.

The file has a row for each image in the order of the plan, also for those that cannot be used, with why. Its columns
are those of an exported index (`index.parquet`) and four more: `key`, the image's name in its data set; `error`;
`item` and `position`, which image of the plan it is. Its schema tells, beside what an export's tells, which part of
which plan it is.
"""

import io
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from .._text import printable
from ..errors import CorruptImageError, ExportError, PartsError, SimCLRHubError
from ..images import FileBytes, UnusableImage
from ..index.maker import EmbedderLike, as_embedder, choose_whitening, unit_vector
from ..index.parquet import Header, export_schema, photo_row, read_header, write_rows
from ..index.paths import is_below
from ..index.sandboxed_decode import decode_sandboxed
from ..index.store import About, Details, Photo, Root
from ..whitening import Whitening
from .plan import Plan
from .read import Found, read_images
from .storage import Folder, is_remote, pyarrow

#: Of the file of a part.
SUFFIX = ".parquet"
#: Folder with a file for each attempt at a part that did not end.
ATTEMPTS = "_attempts"
_KEY = b"simclr_hub.part"
#: Images of a later attempt that are decoded in one child, and their bytes.
_ALONE, _ALONE_BYTES = 256, 1 << 28


@dataclass(frozen=True)
class Result:
    """The end of an attempt at a part.

    Attributes:
        name: of the part.
        state: "made", "there" (it was already) or "failed".
        rows: images, of which so many could not be used.
        error: why it was not written.
        attempt: 1 for the first.
    """

    name: str
    state: str
    rows: int = 0
    unusable: int = 0
    error: str | None = None
    attempt: int = 1
    seconds: float = 0.0


@dataclass(frozen=True)
class Worker:
    """Embeds parts in this process, with a model that is loaded once.

    Args:
        plan: which images there are.
        out: the folder of the files.
        embedder: without its whitening.
        whitening: that makes the column `vector` of `features`; None: there is `vector` alone, the model's own.
        made_by: the `Header.maker` of what is there already; None: nothing is.
        half: write numbers of 16 bits.
    """

    plan: Plan
    out: Folder
    embedder: EmbedderLike
    whitening: Whitening | None = None
    made_by: dict[str, Any] | None = None
    half: bool = False

    @classmethod
    def load(cls, job: "Job") -> "Worker":
        """Load what a job names.

        Raises:
            SimCLRHubError, ValueError: the plan or the model cannot be loaded.
        """
        model = job.make()
        embedder = as_embedder(model)
        whitening = choose_whitening(model, embedder, None if job.whiten else False)
        return cls(Plan.read(job.plan), Folder(job.out), embedder, whitening, job.made_by, job.half)

    @property
    def about(self) -> About:
        """Return what made the vectors, as an index records it."""
        fingerprint = {key: value for key, value in self.embedder.fingerprint.items() if key != "whitening"}
        if self.whitening:
            fingerprint["whitening"] = self.whitening.sha256
        exclude, hidden = self.plan.rules
        return About(fingerprint, self.embedder.dim, exclude=exclude, include_hidden=hidden)

    def _header(self, roots: list[tuple[str, str]], rows: int) -> Header:
        return Header(self.about, roots, os.sep, [], rows, self.whitening, self.half)

    def embed(self, name: str) -> Result:
        """Embed the part of this name, unless its file is there; whatever happens, say so in the result."""
        started, attempt = time.monotonic(), 0
        try:
            if self.out.size(name + SUFFIX) is not None:
                read_part(self.out, name, self.plan)
                return Result(name, "there")
            maker = self._header([], 0).maker
            if self.made_by is not None and not same_maker(self.made_by, maker):
                raise PartsError(
                    f"{self.out} holds parts made by {_told(self.made_by)}, not {_told(maker)}; "
                    "give what made them, or another folder"
                )
            attempt = self._count_attempt(name)
            photos, rows = self._rows(name, alone=attempt > 1)
            self.out.put(name + SUFFIX, photos)
            for number in range(1, attempt + 1):
                self.out.remove(f"{ATTEMPTS}/{name}.{number}")
            unusable = sum(row["error"] is not None for row in rows)
            return Result(name, "made", len(rows), unusable, None, attempt, time.monotonic() - started)
        except Exception as e:  # an engine would end the job, or try for ever
            known = isinstance(e, (SimCLRHubError, OSError, MemoryError))
            why = (str(e) or type(e).__name__) if known else f"{type(e).__name__}: {e}"
            return Result(name, "failed", error=printable(why), attempt=attempt, seconds=time.monotonic() - started)

    def _count_attempt(self, name: str) -> int:
        """Count this attempt outside of the process, which it may end."""
        attempt = next(n for n in count(1) if self.out.size(f"{ATTEMPTS}/{name}.{n}") is None)
        self.out.put(f"{ATTEMPTS}/{name}.{attempt}", b"")
        if attempt > 1:
            self.out.sweep(name + SUFFIX)
        return attempt

    def _rows(self, name: str, *, alone: bool) -> tuple[bytes, list[dict[str, Any]]]:
        """Return the file of a part, and its rows."""
        from ..embedder import Failure

        items, scan_time = self.plan.items(name), time.time_ns()
        found = read_images(items)
        given: list[Found] = []  # what the stream took and did not give back; the bytes go with the result

        def images() -> Iterator[FileBytes | UnusableImage]:
            for one in _decoded_alone(found) if alone else found:
                given.append(one)
                yield one.image

        roots = [Root(number, os.fsencode(root), "ok") for number, root in enumerate(self.plan.roots)]
        rows: list[dict[str, Any]] = []
        gone = 0
        for result in self.embedder.stream(images(), signatures=True):
            one = given[result.position]
            given[result.position] = None  # type: ignore[call-overload]
            gone += one.gone
            error = str(result.error) if isinstance(result, Failure) else None
            vector = None if isinstance(result, Failure) else unit_vector(result.vector)
            if error is None and vector is None:
                error = f"{one.image.name}: its features are zero or not finite"
            good = not isinstance(result, Failure) and vector is not None
            root = next(root for root in roots if is_below(one.place, root.path))
            photo = Photo(
                root.id,
                one.place[len(root.path) :].lstrip(b"/"),
                one.stat,
                one.stat.settled(scan_time),
                result.content_hash if good else None,  # type: ignore[union-attr]
                "live" if good else "failed",
            )
            details = Details(dict(result.info), result.signature) if good else None  # type: ignore[union-attr]
            row = photo_row(photo, root, root.id, vector, details)
            told = error and error.encode(errors="backslashreplace").decode()
            rows.append(row | {"key": one.key, "error": told, "item": one.item, "position": one.position})
        if rows and gone == len(rows) and (there := _empty(self.plan.roots[rows[0]["root"]], items[0].text)):
            raise PartsError(f"{there} is not there or empty; is the disk mounted here, and under the same path?")
        counts = [item.images for item in items]
        if None not in counts and len(rows) != sum(n for n in counts if n is not None):
            raise PartsError(f"{len(rows):,} images, where {sum(n for n in counts if n is not None):,} were planned")
        header = self._header([(root, "ok") for root in self.plan.roots], len(rows))
        buffer = io.BytesIO()
        write_rows(buffer, _schema(header, self.plan, name), header, iter(rows))
        return buffer.getvalue(), rows


@dataclass(frozen=True)
class Job:
    """Hold what travels to the workers of an engine beside the names of parts; can be pickled.

    Attributes:
        plan, out: places.
        make: makes the embedder, once in each process.
        whiten: with what comes with the checkpoint, if anything does.
        made_by, half: see `Worker`.
    """

    plan: str
    out: str
    make: Callable[[], EmbedderLike]
    whiten: bool = True
    made_by: dict[str, Any] | None = None
    half: bool = False

    def load(self) -> "Worker | str":
        """Load a worker; return why it cannot be, where that is known, for engines that lose exceptions."""
        try:
            return Worker.load(self)
        except (SimCLRHubError, ValueError, OSError, RuntimeError) as e:
            return str(e)


def _schema(header: Header, plan: Plan, name: str) -> Any:
    pa = pyarrow()
    schema = export_schema(header)
    for column, kind in (("key", pa.string()), ("error", pa.string()), ("item", pa.int32()), ("position", pa.int64())):
        schema = schema.append(pa.field(column, kind))
    told = {"plan": plan.id, "part": name, "parts": len(plan.parts)}
    return schema.with_metadata({**schema.metadata, _KEY: json.dumps(told).encode()})


@dataclass(frozen=True)
class PartHeader:
    """Tell what a part's file says of itself: whose it is, and of how many; and what made its vectors."""

    plan: str
    part: str
    parts: int
    header: Header


def part_header(schema: Any, name: str) -> PartHeader:
    """Return what an Arrow schema tells of a part.

    Raises:
        ExportError: it is no part, or damaged.
    """
    try:
        told = json.loads((schema.metadata or {}).get(_KEY, b"null"))
        plan, part, parts = str(told["plan"]), str(told["part"]), int(told["parts"])
    except (ValueError, TypeError, KeyError, RecursionError) as e:
        raise ExportError(f"{name}: not a part that `simclr-hub parts run` wrote") from e
    return PartHeader(plan, part, parts, read_header(schema, name))


def read_part(out: Folder, name: str, plan: Plan) -> PartHeader:
    """Return what the file of a part tells of itself.

    Raises:
        PartsError: it is damaged, or another's.
    """
    pa = pyarrow()
    try:
        with out.open(name + SUFFIX) as file:
            found = part_header(pa.parquet.read_schema(file), name + SUFFIX)
    except (pa.ArrowException, OSError, ExportError) as e:
        raise PartsError(f"{out}: {name}{SUFFIX} is damaged: {e}; delete it and run again") from e
    if (found.plan, found.part) != (plan.id, name):
        raise PartsError(
            f"{out}: {name}{SUFFIX} is part {found.part} of another plan; delete it, or take a new folder"
        )
    return found


def _empty(root: str, place: str) -> str | None:
    """Return the folder above missing files if there is nothing at all in it, as where a disk is not mounted."""
    folder = root if root != "/" else os.path.dirname(place)
    return None if is_remote(root) or os.path.isdir(folder) and os.listdir(folder) else folder


def same_maker(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two fingerprints are of the same vectors; a model may lie under another name elsewhere."""
    return {**one, "model": ""} == {**other, "model": ""}


def _told(fingerprint: dict[str, Any]) -> str:
    bits = ", 16 bits" if "bits" in fingerprint else ""
    return f"{fingerprint.get('model') or 'a model'} ({str(fingerprint.get('weights'))[:12]}{bits})"


def _decoded_alone(found: Iterator[Found]) -> Iterator[Found]:
    """Yield images, those that end a decoder's process as unusable; found out in a child, one after another."""
    while batch := list(_some(found)):
        with tempfile.TemporaryDirectory() as folder:
            paths: dict[bytes, int] = {}
            for number, one in enumerate(batch):
                if isinstance(one.image, FileBytes):
                    path = Path(folder, str(number))
                    path.write_bytes(one.image.data)
                    paths[os.fsencode(path)] = number
            for path_there, why in decode_sandboxed(list(paths)).items():
                one = batch[paths[path_there]]
                error = CorruptImageError(why.replace(os.fsdecode(path_there), one.image.name))
                image = UnusableImage(one.image.name, error)
                batch[paths[path_there]] = Found(one.item, one.position, one.place, one.key, one.stat, image)
        yield from batch


def _some(found: Iterator[Found]) -> Iterator[Found]:
    """Yield the next images, so many that they fit the memory twice."""
    size = 0
    for one in islice(found, _ALONE):
        yield one
        size += len(one.image.data) if isinstance(one.image, FileBytes) else 0
        if size > _ALONE_BYTES:
            return
