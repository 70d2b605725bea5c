"""What the commands share: the one way to a terminal, which nothing printed can harm; tables; JSON for programs."""

import json
import logging
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

import click

from .._text import printable, shown, shown_url
from ..web import is_url

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
force_option = click.option("--force", is_flag=True, help="Replace a file that simclr-hub did not write.")


def echo(line: object = "", *, err: bool = False, secrets: bool = False) -> None:
    """Print one line, whatever it holds: names, paths, errors, words of a stranger's file.

    All that the commands print goes through here, or is JSON. Control characters, line ends and what turns the
    direction of a text come out as escapes, URLs without passwords, tokens and queries unless `secrets` are meant.
    """
    click.echo((printable if secrets else shown)(str(line)), err=err)


def print_json(value: Any) -> None:
    """Print one JSON value on a line; undecodable file names as their surrogate escapes, which decode again."""
    click.echo(json.dumps(value, ensure_ascii=True))


def tell_misuse(error: click.ClickException) -> int:
    """Print what click finds wrong with a command line, as `error.show()` does but through `echo`; the exit code."""
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return error.exit_code
    if isinstance(error, click.UsageError) and error.ctx:
        for line in error.ctx.get_usage().splitlines():
            echo(line, err=True)
        echo(f"Try '{error.ctx.command_path} --help' for help.", err=True)
        echo(err=True)
    echo(f"Error: {error.format_message()}", err=True)
    return error.exit_code


class _Record(logging.LogRecord):
    def getMessage(self) -> str:  # noqa: N802
        return shown(super().getMessage())


@contextmanager
def warnings_and_logs() -> Iterator[None]:
    """Let them be printed as `echo` prints; those of Pillow not at all, since a damaged photo is told as a failure."""

    def tell(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        echo(f"warning: {message}", err=True)

    factory = logging.getLogRecordFactory()
    logging.setLogRecordFactory(_Record)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")
            warnings.showwarning = tell
            yield
    finally:
        logging.setLogRecordFactory(factory)


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print columns aligned by their widest cell; numbers to the right."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
    right = [
        bool(cells) and all(c[i].replace(".", "").replace(",", "").isdigit() for c in cells)
        for i in range(len(headers))
    ]
    for row in [list(headers), *cells]:
        line = "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        echo(line.rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    return f"{value:,}" if isinstance(value, int) else shown(str(value))  # as it is printed, for the width


def given(source: str) -> str:
    """Return an image as the user gave it, for JSON: exact, but a URL without its secrets."""
    return shown_url(source) if is_url(source) else source


def short_path(path: str) -> str:
    """Return a path relative to here if that is shorter to read."""
    if is_url(path):
        return shown_url(path)
    relative = os.path.relpath(path)
    return path if relative.startswith("..") else relative
