"""The check that every planned image is there exactly once, made by one fingerprint, and what is wrong if not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from ..errors import ExportError, PartsError
from ..index.parquet import GROUP_LIMIT, vectors_of
from .part import ATTEMPTS, SUFFIX, part_header, same_maker
from .plan import Plan
from .run import MARK, TOMBSTONES, check_mark
from .storage import Folder, pyarrow

#: Files of a folder of parts that are no parts.
_OURS = (MARK, ATTEMPTS, TOMBSTONES)


@dataclass
class PartsReport:
    """The state of a folder of parts.

    Attributes:
        planned: parts.
        whole: those that are there, with so many rows, of which so many images could not be used.
        missing: names of parts.
        damaged: why, by file.
        doubled: what holds images a second time, by file.
        foreign: files that do not belong there.
        other_maker: parts that were made by another model or settings than most.
        begun: parts whose last attempt did not end.
        made_by: what made the vectors.
    """

    planned: int
    whole: int = 0
    rows: int = 0
    unusable: int = 0
    missing: list[str] = field(default_factory=list)
    damaged: dict[str, str] = field(default_factory=dict)
    doubled: dict[str, str] = field(default_factory=dict)
    foreign: list[str] = field(default_factory=list)
    other_maker: dict[str, str] = field(default_factory=dict)
    begun: list[str] = field(default_factory=list)
    made_by: dict[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Return whether every planned image is there exactly once, by one fingerprint, and nothing else."""
        wrong = (self.missing, self.damaged, self.doubled, self.foreign, self.other_maker)
        return self.whole == self.planned and not any(wrong)


def check_parts(
    plan: Plan, folder: Folder, *, quick: bool = False, progress: Callable[[int, int], object] | None = None
) -> PartsReport:
    """Compare a folder with a plan.

    Args:
        plan: the plan.
        folder: of its parts.
        quick: read which images there are, and no vector: a flipped bit there is not found.
        progress: called with (done, total) files.

    Raises:
        PartsError: the folder cannot be listed or is not the plan's, or the plan is damaged.
    """
    try:
        found = folder.sizes()
        if found:  # else nothing was run yet
            check_mark(folder, plan)
        begun = {name.rpartition(".")[0] for name in (folder.sizes(ATTEMPTS) if ATTEMPTS in found else ())}
    except OSError as e:
        raise PartsError(f"{folder}: {e.strerror or e}") from e
    names = {name + SUFFIX: name for name in plan.parts}
    report = PartsReport(len(names), missing=[name for file, name in names.items() if file not in found])
    report.begun = sorted(begun & set(report.missing))
    makers: list[tuple[dict[str, Any], list[str]]] = []
    files = sorted(name for name in found if not name.startswith(".") and name not in _OURS)
    for done, file in enumerate(files, 1):
        try:
            maker = _check_file(plan, folder, file, names.get(file), report, quick)
        except (pyarrow().ArrowException, ExportError, OSError, ValueError) as e:
            if isinstance(e, PartsError):
                raise
            report.damaged[file] = str(e)
            maker = None
        if maker is not None:
            same = next((group for known, group in makers if same_maker(known, maker)), None)
            if same is None:
                makers.append((maker, [file]))
            else:
                same.append(file)
        if progress:
            progress(done, len(files))
    makers.sort(key=lambda pair: -len(pair[1]))
    if makers:
        report.made_by = makers[0][0]
    for other, group in makers[1:]:
        for file in group:
            report.other_maker[file] = ", ".join(f"{key} {value}" for key, value in other.items() if key != "model")
    return report


def _check_file(
    plan: Plan, folder: Folder, file: str, name: str | None, report: PartsReport, quick: bool
) -> dict[str, Any] | None:
    """Look at one file; return what made it, or None if it is no part that was planned.

    Raises:
        ExportError, ValueError, OSError: it is damaged.
    """
    pa = pyarrow()
    with folder.open(file) as raw:
        try:
            table = pa.parquet.ParquetFile(raw, page_checksum_verification=True)
            told = part_header(table.schema_arrow, file)
        except (pa.ArrowException, ExportError, OSError):
            if name is None:
                report.foreign.append(file)
                return None
            raise
        if name is None and told.plan == plan.id and told.part in plan.parts:
            report.doubled[file] = f"a copy of part {told.part}"
            return None
        if (told.plan, told.part) != (plan.id, name) or name is None:
            report.foreign.append(file)
            return None
        for group in range(table.num_row_groups):
            size = table.metadata.row_group(group).total_byte_size
            if size > GROUP_LIMIT:
                raise ExportError(f"a row group of {size:,} bytes, more than {GROUP_LIMIT:,}")
        there, unusable = _rows(table, bool(told.header.whitening), quick)
    expected = list(_expected(plan, name, len(there)))
    if there != expected:
        if len(set(there)) < len(there):
            report.doubled[file] = f"{len(there) - len(set(there)):,} of its rows are there twice"
        else:
            raise ExportError(f"{len(there):,} rows that are not the {len(expected):,} planned ones")
        return None
    report.whole += 1
    report.rows += len(there)
    report.unusable += unusable
    return told.header.maker


def _expected(plan: Plan, name: str, rows: int) -> Iterator[tuple[int, int]]:
    """Yield (item, position) of each planned image; what an archive holds was counted when it was read."""
    for number, item in enumerate(plan.items(name)):
        count = rows if item.images is None else item.images
        yield from ((number, position) for position in range(item.first, item.first + count))


def _rows(table: Any, whitened: bool, quick: bool) -> tuple[list[tuple[int, int]], int]:
    """Return (item, position) of each row, and how many images could not be used; read all the rest unless `quick`.

    Raises:
        ExportError, ValueError: a row with neither a vector nor an error, or with one of another length than 1.
    """
    columns = ["item", "position", "state", "error"]
    there: list[list[tuple[int, int]]] = []
    unusable = 0
    for batch in table.iter_batches(4096, columns=columns if quick else None):
        item, position = (batch.column(name).to_pylist() for name in ("item", "position"))
        there.append(list(zip(item, position, strict=True)))
        good = np.array([state == "live" for state in batch.column("state").to_pylist()], bool)
        if (good != np.array([error is None for error in batch.column("error").to_pylist()], bool)).any():
            raise ExportError("a row is neither an image nor one that could not be used")
        unusable += int((~good).sum())
        if quick:
            continue
        vectors, wrong = vectors_of(batch.column("features" if whitened else "vector").filter(pyarrow().array(good)))
        if len(wrong):
            raise ExportError("a vector that has not length 1")
    return list(chain.from_iterable(there)), unusable
