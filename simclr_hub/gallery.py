"""Search results as one static HTML page: thumbnails inside, no scripts, nothing loaded from elsewhere."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from ._files import write_file
from .errors import ImageError
from .images import describe, load_image
from .index.search.match import Match, tell_share
from .web import is_url, shown_url

#: Longest side of a thumbnail in pixels.
THUMBNAIL = 256


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


def write_gallery(path: Path, rows: Sequence[Row], *, title: str, note: str = "") -> None:
    """Write the page; a photo that cannot be read any more keeps its place and its name.

    Args:
        path: the HTML file, replaced if it exists.
        rows: the searches, in the order they are shown.
        title: heading of the page.
        note: one sentence below it.

    Raises:
        OSError: it cannot be written.
    """
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
    html = environment.get_template("gallery.html").render(title=title, note=note, sections=sections)
    write_file(path, lambda file: file.write(html.encode(errors="backslashreplace")))


def picture(source: Any) -> dict[str, str]:
    """A photo for a page: its "name", "full" path or what is wrong, and "data", a thumbnail as base64, or ""."""
    full = shown_url(source) if is_url(source) else describe(source)
    name = Path(full).name or full
    try:
        image = Image.fromarray(load_image(source).pixels.permute(1, 2, 0).contiguous().numpy())
    except ImageError as e:
        return {"name": name, "full": str(e), "data": ""}
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return {"name": name, "full": full, "data": base64.b64encode(buffer.getvalue()).decode()}
