"""Templates filled in, and the photos in them: what static pages and notebooks show."""

import base64
import io
import os
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from .errors import ImageError
from .images import LoadedImage, describe, load_image


def shrink(image: LoadedImage, side: int) -> Image.Image:
    """Return a picture of at most `side` pixels a side."""
    pixels = image.pixels if image.pixels.dtype == "uint8" else (image.pixels * 255 + 0.5).astype("uint8")
    picture = Image.fromarray(pixels.transpose(1, 2, 0))
    picture.thumbnail((side, side))
    return picture


def draw_photo(source: Any, side: int) -> dict[str, str]:
    """Return what a template shows of a photo, also of one that cannot be read.

    Args:
        source: anything `load_image` takes.
        side: longest side of the thumbnail in pixels.

    Returns:
        "name"; "full", its path or what is wrong; "folder", "" where it has none; "data", a JPEG in base64, or "";
        "link", a file URL if it is a file of this machine, or "".
    """
    full, link = describe(source), ""
    if isinstance(source, (str, os.PathLike)) and os.path.isfile(source):  # no URL, nothing inside an archive
        path = Path(os.path.abspath(os.fsdecode(source)))
        full, link = describe(path), path.as_uri()
    folder, name = os.path.split(full)
    told = {"name": name or full, "full": full, "folder": folder, "link": link, "data": ""}
    buffer = io.BytesIO()
    try:
        shrink(load_image(source, reduce_to=side), side).save(buffer, "JPEG", quality=85)
    except (ImageError, TypeError) as e:  # TypeError: no image at all
        return told | {"full": describe(str(e))}
    return told | {"data": base64.b64encode(buffer.getvalue()).decode()}


def render(template: str, **values: Any) -> str:
    """Fill in a template; the result has nothing in it that no encoding has."""
    html: str = _environment().get_template(template).render(**values)
    return html.encode(errors="backslashreplace").decode()


@cache
def _environment() -> Any:
    import jinja2  # most commands show nothing
    from markupsafe import Markup

    # Autoescape, and no value stands inside a script or a style: file names are not to be trusted.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["breakable"] = lambda text: Markup("<wbr>").join(re.split(r"(?<=[/\\_])", text))
    style = files("simclr_hub") / "browse" / "static" / "base.css"
    environment.globals["style"] = Markup(style.read_text("utf-8"))
    return environment
