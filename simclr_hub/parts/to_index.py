"""A folder of parts -> an index, for what fits one machine; every row is checked, one file after another."""

import os
from collections.abc import Callable
from pathlib import Path

from ..errors import ExportError, IndexExistsError
from ..images import describe
from ..index.parquet import import_files
from .part import SUFFIX, part_header
from .storage import is_remote, pyarrow


def import_parts(
    folder: str | os.PathLike[str],
    directory: str | os.PathLike[str],
    *,
    progress: Callable[[int, int], object] | None = None,
) -> int:
    """Make an index of a local folder of parts; return how many images, those that could not be used included.

    Args:
        folder: what `run.run_parts` filled.
        directory: the new index; must not exist or be empty.
        progress: called with (done, total) images.

    Raises:
        ExportError: parts are missing, damaged or of several plans; nothing was made.
        IndexExistsError, OutputError: `directory` is not a place for it.
    """
    if is_remote(os.fspath(folder)):
        raise ExportError(f"{folder}: in a bucket; copy the parts to a disk first")
    pa, name = pyarrow(), describe(folder)
    if os.path.isdir(directory) and os.listdir(directory):
        raise IndexExistsError(f"{describe(directory)} exists already, a folder; choose another name")
    files = sorted(path for path in Path(folder).glob(f"*{SUFFIX}") if not path.name.startswith((".", "_")))
    plans, total = set(), 0
    for path in files:
        try:
            told = part_header(pa.parquet.read_schema(pa.OSFile(os.fsencode(path))), describe(path))
        except (pa.ArrowException, OSError) as e:
            raise ExportError(f"{describe(path)}: damaged, or not a Parquet file: {e}") from e
        if told.part + SUFFIX != path.name:
            raise ExportError(f"{describe(path)}: it is part {told.part} under another name; delete the copy")
        plans.add(told.plan)
        total = told.parts
    if not files:
        raise ExportError(f"{name}: no parts in it; give a folder that `simclr-hub parts run` filled")
    if len(plans) > 1:
        raise ExportError(f"{name}: parts of {len(plans)} plans; give a folder with those of one")
    if len(files) != total:
        raise ExportError(f"{name}: {len(files):,} of {total:,} parts; `simclr-hub parts run` makes the rest")
    return import_files(files, directory, progress=progress)
