"""What the commands share: tables for people, JSON for programs, and names that no terminal can be harmed by."""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any

import click

from ..images import describe
from ..web import is_url, shown_url

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")


def print_json(value: Any) -> None:
    """One JSON value on a line; undecodable file names as their surrogate escapes, which decode again."""
    click.echo(json.dumps(value, ensure_ascii=True))


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns aligned by their widest cell; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    right = [
        bool(cells) and all(c[i].replace(".", "").replace(",", "").isdigit() for c in cells)
        for i in range(len(headers))
    ]
    for row in [list(headers), *cells]:
        line = "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        click.echo(line.rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else describe(str(value))


def short_path(path: str) -> str:
    """Relative to here if that is shorter to read, and printable."""
    if is_url(path):
        return shown_url(path)
    relative = os.path.relpath(path)
    return describe(path if relative.startswith("..") else relative)
