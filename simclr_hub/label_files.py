"""Labels of photos as a CSV or Parquet file, which a run of this package replaces again."""

import csv
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from ._files import Kind, write_output
from ._text import printable
from .errors import MissingExtraError
from .labels import Label

COLUMNS = ("path", "label", "confidence", "unsure", "second", "second_confidence", "example")
_MARK = b"simclr-hub labels"
#: What a spreadsheet takes for the beginning of a formula, and runs.
_FORMULA = ("=", "+", "-", "@")


def _is_labels(path: Path) -> bool:
    """Return whether `write_labels` wrote a file."""
    try:
        if path.suffix.lower() == ".csv":
            head = ",".join(COLUMNS).encode() + b"\r\n"
            with open(path, "rb") as file:
                return file.read(len(head)) == head
        import pyarrow.parquet

        return _MARK in (pyarrow.parquet.read_schema(pyarrow.OSFile(os.fsencode(path))).metadata or {})
    except (OSError, ValueError, ImportError):  # pyarrow's errors are ValueErrors and OSErrors
        return False


#: The kind of file that it is, see `_files.check_output`.
LABELS = Kind("a table of labels", (".csv", ".parquet"), _is_labels)


def check_writer(path: Path) -> None:
    """Refuse a Parquet file where pyarrow is not installed, before any work is done.

    Raises:
        MissingExtraError: it is not.
    """
    if path.suffix.lower() == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as e:
            raise MissingExtraError("pyarrow", "parquet") from e


def write_labels(path: Path, labels: Sequence[Label], *, force: bool = False) -> None:
    """Write labels to a file, a row for each photo.

    Names that hold what is not printable are written with escapes. In a CSV file, which a spreadsheet may open, texts
    that begin like a formula have an apostrophe before.

    Args:
        path: ends in .csv or .parquet.
        labels: the rows.
        force: also replace another file.

    Raises:
        FileExistsError: something else is there.
        MissingExtraError: pyarrow is not installed.
        OutputError: another suffix, or a folder that is missing or read-only.
    """
    check_writer(path)
    rows = [[getattr(label, name) for name in COLUMNS] for label in labels]
    rows = [[printable(value) if isinstance(value, str) else value for value in row] for row in rows]
    write = _write_csv if path.suffix.lower() == ".csv" else _write_parquet
    write_output(path, lambda file: write(file, rows), LABELS, force=force)


def _write_csv(file: IO[bytes], rows: list[list[Any]]) -> None:
    text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    writer.writerows([_cell(value) for value in row] for row in rows)
    text.detach()


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def _write_parquet(file: IO[bytes], rows: list[list[Any]]) -> None:
    import pyarrow
    import pyarrow.parquet

    text, number, yes = pyarrow.string(), pyarrow.float32(), pyarrow.bool_()
    kinds = (text, text, number, yes, text, number, yes)
    columns = {
        name: pyarrow.array([row[i] for row in rows], kind)
        for i, (name, kind) in enumerate(zip(COLUMNS, kinds, strict=True))
    }
    pyarrow.parquet.write_table(pyarrow.table(columns).replace_schema_metadata({_MARK: b""}), file)
