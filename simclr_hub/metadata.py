"""What an image file says about itself: format, size, when, where and with what it was taken.

Nothing here raises. A damaged or lying EXIF block gives fewer keys; what remains is JSON-able, printable and
short, so that it can go into a store, a table or a page as it is.
"""

import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any

from PIL import ExifTags, Image

#: Longer texts are cut; no camera's name is near it.
MAX_TEXT = 100
#: An image's EXIF: tag -> value, and the blocks below it by `ExifTags.IFD`.
Tags = Mapping[int, Any]

_TIME = re.compile(r"([0-9]{4})[:/-]([0-9]{2})[:/-]([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})")
_OFFSET = re.compile(r"[+-](?:0[0-9]|1[0-4]):[0-5][0-9]")


def read_info(image: Image.Image) -> dict[str, Any]:
    """Read format and upright size in pixels, and what the EXIF holds of the time, the camera and the place.

    Call it before the pixels are loaded, except for a PNG: a reduced JPEG no longer knows its full size, a TIFF loses
    its orientation, and a PNG's EXIF may stand behind its pixels.

    Args:
        image: as `PIL.Image.open` gives it; or any other, with fewer keys.

    Returns:
        Of these the keys that are known: "format" (Pillow's name; "JPEG" also for MPO), "width", "height", "taken"
        (ISO 8601, local time of the camera, with its offset if recorded), "camera" (maker and model), "orientation"
        (1 to 8, as stored; the size is already upright), "gps" ([latitude, longitude] in degrees).
    """
    info: dict[str, Any] = {}
    with suppress(Exception):
        if image.format:
            info["format"] = "JPEG" if image.format == "MPO" else _text(image.format)
    exif = Image.Exif()
    with suppress(Exception):
        exif = image.getexif()
    orientation = None
    with suppress(Exception):  # pillow-heif turns the image itself and keeps what it undid
        orientation = image.info.get("original_orientation") or exif.get(ExifTags.Base.Orientation)
    turned = isinstance(orientation, int) and 5 <= orientation <= 8 and not _is_upright(image)
    with suppress(Exception):
        width, height = image.size[::-1] if turned else image.size
        info.update(width=int(width), height=int(height))
    if isinstance(orientation, int) and 1 <= orientation <= 8:
        info["orientation"] = int(orientation)
    return info | exif_info(exif)


def exif_info(exif: Image.Exif, *, changed_is_taken: bool = False) -> dict[str, Any]:
    """Read of "taken", "camera" and "gps" what the EXIF holds and what makes sense.

    Args:
        exif: the directory that has the others below it.
        changed_is_taken: no program has changed this file since the camera wrote it.
    """
    details, place = _block(exif, ExifTags.IFD.Exif), _block(exif, ExifTags.IFD.GPSInfo)
    readers: dict[str, Callable[[], Any]] = {
        "taken": lambda: _taken(details) or (_time(exif, ExifTags.Base.DateTime) if changed_is_taken else None),
        "camera": lambda: _camera(exif),
        "gps": lambda: _gps(place),
    }
    info = {}
    for key, read in readers.items():
        with suppress(Exception):
            value = read()
            if value is not None:
                info[key] = value
    return info


def _is_upright(image: Image.Image) -> bool:
    """Tell whether `size` is that of the turned image: these readers apply the orientation themselves."""
    return image.format in ("TIFF", "HEIF")


def _block(exif: Image.Exif, tag: int) -> Tags:
    with suppress(Exception):
        return exif.get_ifd(tag)
    return {}


def _taken(details: Tags) -> str | None:
    """Return when the shutter opened, or a film was scanned; not when a program changed the file."""
    return _time(details, ExifTags.Base.DateTimeOriginal, ExifTags.Base.OffsetTimeOriginal) or _time(
        details, ExifTags.Base.DateTimeDigitized, ExifTags.Base.OffsetTimeDigitized
    )


def _time(tags: Tags, tag: int, offset_tag: int | None = None) -> str | None:
    found = _TIME.fullmatch(_text(tags.get(tag)))
    if found:
        with suppress(ValueError):  # a 31st of February, or 0000:00:00 for an unset clock
            year, month, day, hour, minute, second = (int(group) for group in found.groups())
            time = datetime(year, month, day, hour, minute, second).isoformat()
            offset = _text(tags.get(offset_tag)) if offset_tag else ""
            return time + offset if _OFFSET.fullmatch(offset) else time
    return None


def _camera(exif: Tags) -> str | None:
    make, model = _text(exif.get(ExifTags.Base.Make)), _text(exif.get(ExifTags.Base.Model))
    if make and model and model.lower().startswith(make.lower().split()[0]):
        return model  # "NIKON CORPORATION", "NIKON D90"
    return f"{make} {model}".strip()[:MAX_TEXT] or None


def _gps(place: Tags) -> list[float] | None:
    latitude = _degrees(place, ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLatitudeRef, "NS", 90)
    longitude = _degrees(place, ExifTags.GPS.GPSLongitude, ExifTags.GPS.GPSLongitudeRef, "EW", 180)
    if latitude is None or longitude is None or latitude == longitude == 0:  # 0, 0: a receiver without a fix
        return None
    return [latitude, longitude]


def _degrees(place: Tags, tag: int, reference_tag: int, references: str, most: int) -> float | None:
    """Convert degrees, minutes and seconds to degrees, to a centimetre; south and west are negative."""
    values, reference = place.get(tag), _text(place.get(reference_tag)).upper()
    if not isinstance(values, tuple) or not 1 <= len(values) <= 3 or reference not in tuple(references):
        return None
    parts = [float(value) for value in values]
    degrees = sum((part / 60.0**i for i, part in enumerate(parts)), 0.0)
    if not (all(part >= 0 for part in parts) and degrees <= most):  # 0/0, which stands for unknown, is NaN
        return None
    return round(-degrees if reference == references[1] else degrees, 7) + 0.0


def _text(value: Any) -> str:
    """Return one short, printable line of what a text tag holds; "" for anything else."""
    if isinstance(value, bytes):
        value = value[: 4 * MAX_TEXT].decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    value = value[: 4 * MAX_TEXT].split("\0")[0]  # what follows is padding
    printable = "".join(c if c.isprintable() else " " for c in value)
    return " ".join(printable.split())[:MAX_TEXT]
