"""Embedded colour profiles to sRGB, so that one photo looks the same however it was saved.

Unusual: a profile that changes no colour by more than two of 255 levels, as all those of sRGB, leaves the pixels
untouched, to the last bit. A profile that is damaged or for other pixels is ignored, as if there were none.
"""

import io
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

#: Larger profiles are ignored; printers' are about half a megabyte.
MAX_PROFILE = 4 << 20

_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}
_ALIKE = 2


def to_srgb(image: Image.Image, rgb: Image.Image) -> Image.Image:
    """`rgb` in sRGB, by the colour profile of the image that it was made of.

    Args:
        image: as opened, in its own mode, with its profile in `info`.
        rgb: the same pixels after a plain conversion to RGB.
    """
    profile = image.info.get("icc_profile")
    if not isinstance(profile, bytes) or not 0 < len(profile) <= MAX_PROFILE:
        return rgb
    found = _transform(profile)
    if found is None:
        return rgb
    mode, transform = found
    pixels = rgb
    if mode == "CMYK":
        pixels = image
    elif mode == "L":
        pixels = rgb.getchannel(0)
    grey = image.mode in ("1", "L", "LA", "La", "I", "F") or image.mode.startswith("I;")
    if pixels.mode != mode or (mode == "L") != grey or image.mode == "LAB":
        return rgb  # a profile for other pixels
    result: Image.Image = transform.apply(pixels)
    return result


@lru_cache(maxsize=8)  # a collection has few, and building one takes longer than applying it to a small photo
def _transform(profile: bytes) -> tuple[str, Any] | None:
    """The mode that the profile is for, and the transform to sRGB; None if there is nothing to do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES.get(source.profile.xcolor_space.strip())
        if mode is None:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        probe = _probe(mode)
        changed = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe.convert("RGB"), np.int16)
    except Exception:  # LittleCMS refuses it
        return None
    return None if np.abs(changed).max() <= _ALIKE else (mode, transform)


def _probe(mode: str) -> Image.Image:
    """Colours from everywhere in the mode's cube."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    steps = 256 if bands == 1 else 9 if bands == 3 else 5
    levels = np.linspace(0, 255, steps).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(*[levels] * bands, indexing="ij"), -1).reshape(-1, bands)
    return Image.frombytes(mode, (len(grid), 1), grid.tobytes())
