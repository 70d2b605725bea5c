"""A plan: every image of some sources in parts, listed once, never changed, each part named by the hash of its items.

A folder of two Parquet files. `items.parquet` has a row for each image, archive or range of rows, sorted by parts;
`parts.parquet` has a row for each part, and in its schema the plan's own hash; it is written last.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from .. import _files
from ..errors import PartsError
from ..scan import Rules
from .listing import Item, Lister
from .storage import Folder, as_place, is_remote, locate, pyarrow

PARTS, ITEMS = "parts.parquet", "items.parquet"
#: Images of a part: what a kill costs a worker at most, and what is in memory.
IMAGES, MOST_IMAGES = 10_000, 1_000_000
LAYOUT = 1
_KEY = b"simclr_hub.plan"
_NAME = re.compile(r"[0-9a-f]{32}")
#: Items of a row group: what is read to have one part's.
_GROUP = 1 << 18
_LIMIT = 1 << 30  # bytes of a row group; a plan may come from elsewhere


@dataclass(frozen=True)
class Part:
    """Tell where a part's items stand."""

    name: str  # 32 hexadecimal digits of their SHA-256
    group: int  # row group of `items.parquet`
    row: int  # in it
    items: int
    images: int | None  # None: it holds an archive


@dataclass(frozen=True)
class Plan:
    """A plan that was read and checked.

    Attributes:
        folder: where it lies.
        id: of its parts and all else that is here, SHA-256 in hexadecimal digits.
        parts: by name, in the sources' order.
        roots: folders, archives, Parquet files and buckets that hold all images.
        rules: what was left out, as (exclude, include_hidden).
        folders: local photo folders, where nothing is written.
        skipped: how many files were left out, by reason.
    """

    folder: Folder
    id: str
    parts: dict[str, Part]
    roots: list[str]
    rules: tuple[list[str], bool]
    folders: list[str] = field(default_factory=list)
    skipped: dict[str, int] = field(default_factory=dict)

    @property
    def images(self) -> int | None:
        """Return how many images there are; None where there are archives, which nobody counted."""
        counts = [part.images for part in self.parts.values()]
        return None if None in counts else sum(n for n in counts if n is not None)

    @classmethod
    def read(cls, given: str | os.PathLike[str]) -> "Plan":
        """Read a plan.

        Raises:
            PartsError: none there, or it is not as it was written.
        """
        pa, folder = pyarrow(), Folder(given)
        try:
            with folder.open(PARTS) as raw:
                file = pa.parquet.ParquetFile(raw, page_checksum_verification=True)
                _refuse_large(file, folder)
                header = json.loads((file.schema_arrow.metadata or {}).get(_KEY, b"null"))
                if not isinstance(header, dict) or file.schema_arrow.names != _parts_schema().names:
                    raise PartsError(f"{folder}: not a plan that `simclr-hub parts plan` wrote")
                if header["layout"] > LAYOUT:
                    raise PartsError(f"{folder}: layout {header['layout']}, made by a newer simclr_hub: upgrade")
                rows = file.read().to_pylist()
        except (FileNotFoundError, NotADirectoryError) as e:
            raise PartsError(f"{folder}: no plan there; make one: simclr-hub parts plan SOURCE -o {folder}") from e
        except PartsError:
            raise
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError) as e:
            raise _unread(folder, PARTS, e) from e
        try:
            parts = {row["name"]: Part(**row) for row in rows}
            roots = [str(root) for root in header["roots"]]
            exclude, hidden = [str(pattern) for pattern in header["exclude"]], bool(header["include_hidden"])
            Rules(tuple(exclude), hidden)
            folders = [str(folder) for folder in header["folders"]]
            same = header["plan"] == _plan_id(parts, roots, folders, exclude, hidden)
            good = all(_NAME.fullmatch(name) for name in parts)
        except (KeyError, TypeError, ValueError) as e:
            raise PartsError(f"{folder}: {PARTS} is damaged: {e}; plan again") from e
        if not (same and good and len(parts) == len(rows)):
            raise PartsError(f"{folder}: damaged or changed: its parts do not match its hash; plan again")
        return cls(folder, header["plan"], parts, roots, (exclude, hidden), folders, dict(header["skipped"]))

    def items(self, name: str) -> list[Item]:
        """Read the items of a part.

        Raises:
            PartsError: they are not those that it is named by.
        """
        pa, part = pyarrow(), self.parts[name]
        try:
            with self.folder.open(ITEMS) as raw:
                file = pa.parquet.ParquetFile(raw, page_checksum_verification=True)
                _refuse_large(file, self.folder, part.group)
                table = file.read_row_group(part.group, columns=list(Item._fields))
            items = [Item(**row) for row in table.slice(part.row, part.items).to_pylist()]
            if _part_name(items) == name:
                return items
        except (pa.ArrowException, OSError, ValueError, TypeError, IndexError) as e:
            raise _unread(self.folder, ITEMS, e) from e
        raise PartsError(f"{self.folder}: damaged or changed: the items of part {name} are others; plan again")


def _unread(folder: Folder, name: str, error: Exception) -> PartsError:
    """Return what to say of a file of a plan; a bucket's network and keys fail with OSError, as damage may, too."""
    if is_remote(folder.place) and isinstance(error, OSError):
        return PartsError(f"{folder}: {name} cannot be read now: {error}; if that stays so, plan again")
    return PartsError(f"{folder}: {name} is damaged: {error}; plan again")


def make_plan(
    given: Sequence[str],
    out: str | os.PathLike[str],
    *,
    images: int = IMAGES,
    rules: Rules | None = None,
    column: str | None = None,
    progress: Callable[[int], object] | None = None,
) -> Plan:
    """List all images once and write a plan, whole or not at all.

    Args:
        given: sources, see `listing.Lister`.
        out: a new folder, or one in a bucket that holds no plan.
        images: of a part, at most; an archive is a part of its own.
        rules: what of local folders is left out.
        column: see `listing.Lister`.
        progress: called with how many more items were listed.

    Raises:
        PartsError: a source that cannot be used.
        FileExistsError, OutputError: `out` is not a place for it.
    """
    if not 1 <= images <= MOST_IMAGES:
        raise PartsError(f"images={images:,}: a part holds 1 to {MOST_IMAGES:,} images")
    rules = rules or Rules()
    lister = Lister(tuple(given), rules, images, column)
    folder = Folder(out)
    if not is_remote(folder.place):
        local = [place for place in map(as_place, given) if not is_remote(place)]
        _files.check_output(Path(folder.place), _files.FOLDER, photos=local)
        with _files.new_directory(Path(folder.place)) as partial:
            _write(partial, lister, rules, images, progress)
    else:
        _write_remote(folder, lambda partial: _write(partial, lister, rules, images, progress))
    return Plan.read(out)


def _write_remote(folder: Folder, write: Callable[[Path], object]) -> None:
    """Write a plan on this machine, then into a bucket.

    Raises:
        FileExistsError, PartsError: a plan is there, or the bucket refuses.
    """
    try:
        if PARTS not in folder.sizes():
            with TemporaryDirectory() as name:
                write(Path(name))
                for file in (ITEMS, PARTS):  # what makes it a plan comes last
                    _upload(Path(name, file), folder, file)
            return
    except OSError as e:
        raise PartsError(f"{folder}: {e}") from e
    raise FileExistsError(f"{folder} exists already; choose another name")


def _upload(file: Path, folder: Folder, name: str) -> None:
    system, path = locate(folder.join(name))
    with open(file, "rb") as source, system.open_output_stream(path) as target:
        shutil.copyfileobj(source, target, 1 << 24)


def _write(into: Path, lister: Lister, rules: Rules, images: int, progress: Callable[[int], object] | None) -> None:
    pa = pyarrow()
    parts: dict[str, Part] = {}
    group: list[Item] = []
    number = 0
    with (
        open(into / ITEMS, "wb") as file,
        pa.parquet.ParquetWriter(file, _items_schema(), compression="zstd", write_page_checksum=True) as writer,
    ):

        def flush() -> None:
            nonlocal number
            if group:
                rows = [item._asdict() for item in group]
                writer.write_table(pa.Table.from_pylist(rows, _items_schema()), row_group_size=len(rows))
                number += 1
                group.clear()

        for items in _in_parts(lister.items(), images):
            name = _part_name(items)
            if name in parts:
                raise PartsError(f"{items[0].text}: listed twice; name each image once")
            if group and len(group) + len(items) > _GROUP:
                flush()
            counts = [item.images for item in items]
            known = None if None in counts else sum(n for n in counts if n is not None)
            parts[name] = Part(name, number, len(group), len(items), known)
            group += items
            if progress:
                progress(len(items))
        flush()
    roots = sorted(os.fsdecode(root) for root in lister.roots)
    header = {
        "layout": LAYOUT,
        "plan": _plan_id(parts, roots, lister.folders, list(rules.exclude), rules.include_hidden),
        "roots": roots,
        "folders": lister.folders,
        "exclude": list(rules.exclude),
        "include_hidden": rules.include_hidden,
        "skipped": dict(lister.skipped),
    }
    table = pa.Table.from_pylist([vars(part) for part in parts.values()], _parts_schema())
    table = table.replace_schema_metadata({_KEY: json.dumps(header).encode()})
    with open(into / PARTS, "wb") as file:
        pa.parquet.write_table(table, file, compression="zstd", write_page_checksum=True)


def _in_parts(items: Iterator[Item], images: int) -> Iterator[list[Item]]:
    """Yield the items of one part after another; images in the sources' order, anything else alone."""
    for is_image, run in itertools.groupby(items, lambda item: item.kind == "image"):
        while some := list(itertools.islice(run, images if is_image else 1)):
            yield some


def _part_name(items: Sequence[Item]) -> str:
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.place.hex(), *item[1:]]).encode() + b"\n")
    return digest.hexdigest()[:32]


def _plan_id(parts: dict[str, Part], *facts: object) -> str:
    told = [[list(vars(part).values()) for part in parts.values()], *facts]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _items_schema() -> Any:
    pa = pyarrow()
    whole, text = pa.int64(), pa.string()
    kinds = (pa.binary(), text, whole, whole, whole, whole, text)
    return pa.schema(list(zip(Item._fields, kinds, strict=True)))


def _parts_schema() -> Any:
    pa = pyarrow()
    kinds = (pa.string(), pa.int32(), pa.int64(), pa.int64(), pa.int64())
    return pa.schema(list(zip(Part.__dataclass_fields__, kinds, strict=True)))


def _refuse_large(file: Any, folder: Folder, group: int | None = None) -> None:
    """Refuse a file of a plan that would fill the memory."""
    for i in range(file.num_row_groups) if group is None else [group]:
        size = file.metadata.row_group(i).total_byte_size
        if size > _LIMIT:
            raise PartsError(f"{folder}: a row group of {size:,} bytes, more than {_LIMIT:,}; not a plan of ours")
