"""Search results as one static HTML page: thumbnails inside, no scripts, nothing loaded from elsewhere."""

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ._files import Kind, check_output, write_output
from .errors import ImageError
from .images import FileBytes, decode, describe, load_image, read_source
from .index.search.match import Match, tell_share

#: How the templates begin, by which a page of this package is known again.
_HEAD = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="simclr-hub">
"""
#: Longest side of a thumbnail in pixels.
THUMBNAIL = 256


def _is_page(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_HEAD)) == _HEAD
    except OSError:
        return False


#: The kind of file that a page is, see `_files.check_output`.
PAGE = Kind("a page", (".html", ".htm"), _is_page)


@dataclass(frozen=True)
class Row:
    """One search.

    Attributes:
        like: the photos that it was for, anything `load_image` takes.
        matches: what was found, best first.
        unlike: the photos that results should not be like.
    """

    like: Sequence[Any]
    matches: Sequence[Match]
    unlike: Sequence[Any] = ()


def write_gallery(path: Path, rows: Sequence[Row], *, title: str, note: str = "", force: bool = False) -> None:
    """Write the page; a photo that cannot be read any more keeps its place and its name.

    Args:
        path: the HTML file, .html or .htm; a page that this package wrote before is replaced.
        rows: the searches, in the order they are shown.
        title: heading of the page.
        note: what stands below it.
        force: also replace another file.

    Raises:
        OutputError: another suffix, or a folder that is missing or read-only.
        FileExistsError: something else is at `path`.
        OSError: it cannot be written.
    """
    check_output(path, PAGE, force=force)
    # Autoescape, and no value stands inside a script or a style: file names are not to be trusted.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined
    )
    sections = [
        {
            "queries": [
                picture(one) | {"label": label, "closer_than": "", "copies": []}
                for label, some in (("query", row.like), ("not", row.unlike))
                for one in some
            ],
            "matches": [
                picture(match.path)
                | {
                    "label": f"{match.score:.3f}",
                    "closer_than": tell_share(match.closer_than),
                    "copies": [describe(path) for path in match.copies],
                }
                for match in row.matches
            ],
        }
        for row in rows
    ]
    template = environment.get_template("gallery.html")
    html = template.render(title=describe(title), note=describe(note), sections=sections)
    write_output(path, lambda file: file.write(html.encode(errors="backslashreplace")), PAGE, force=force)


def picture(source: Any) -> dict[str, str]:
    """A photo for a page: its "name", "full" path or what is wrong, and "data", a thumbnail as base64, or ""."""
    full = describe(source)
    name = Path(full).name or full
    try:
        image = _opened(source)
    except ImageError as e:
        return {"name": name, "full": str(e), "data": ""}
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return {"name": name, "full": full, "data": base64.b64encode(buffer.getvalue()).decode()}


def _opened(source: Any) -> Image.Image:
    """Decode anything `load_image` takes to an RGB image; a file without torch."""
    if isinstance(source, (str, os.PathLike)):
        source = read_source(source)
    if isinstance(source, FileBytes):
        return decode(source.data, source.name)
    return Image.fromarray(load_image(source).pixels.transpose(1, 2, 0))
