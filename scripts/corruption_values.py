# mypy: ignore-errors
"""Write tests/data/corruptions.npz: what imagecorruptions makes of one picture, by which ours are tested.

    python -m venv ENVIRONMENT && ENVIRONMENT/bin/pip install imagecorruptions==1.1.2 "setuptools<81"
    ENVIRONMENT/bin/python scripts/corruption_values.py

What fails with numpy 2 and scikit-image 0.26 is mended here, and where the package left the code that made
ImageNet-C (elastic transform, the middle of a zoom, pixelate, when snow is rounded) that code's form is put in. Every
random number is numpy's RandomState(0)'s.
"""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from imagecorruptions import corruptions as package
from PIL import Image
from scipy.ndimage import map_coordinates, zoom
from skimage.filters import gaussian

SEVERITY = 3


def centred_zoom(picture: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle and cut to the middle, as make_imagenet_c.py does."""
    crop = [int(np.ceil(n / factor)) for n in picture.shape[:2]]
    top, left = ((n - c) // 2 for n, c in zip(picture.shape[:2], crop, strict=True))
    large = zoom(picture[top : top + crop[0], left : left + crop[1]], (factor, factor, 1), order=1)
    top, left = ((n - m) // 2 for n, m in zip(large.shape[:2], picture.shape[:2], strict=True))
    return large[top : top + picture.shape[0], left : left + picture.shape[1]]


def elastic(image: Image.Image, c: tuple[float, float, float]) -> np.ndarray:
    """Transform as make_imagenet_c.py does."""
    x = np.array(image, dtype=np.float32) / 255
    height, width = x.shape[:2]
    middle, reach = np.float32((width, height)) // 2, min(height, width) // 3
    corners = np.float32([middle + reach, [middle[0] + reach, middle[1] - reach], middle - reach])
    moved = corners + np.random.uniform(-c[2], c[2], size=corners.shape).astype(np.float32)
    affine = cv2.getAffineTransform(corners, moved)
    x = cv2.warpAffine(x, affine, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    dx, dy = (
        gaussian(np.random.uniform(-1, 1, size=(height, width)), c[1], mode="reflect", truncate=3) * c[0]
        for _ in range(2)
    )
    rows, columns = np.mgrid[:height, :width]
    channels = [map_coordinates(x[..., i], (rows + dy, columns + dx), order=1, mode="reflect") for i in range(3)]
    return np.clip(np.stack(channels, 2), 0, 1) * 255


def main() -> None:
    """Write the file."""
    np.float_ = np.float64

    def blur(x: np.ndarray, sigma: Any, multichannel: bool = False, **more: Any) -> np.ndarray:
        return gaussian(x, sigma, channel_axis=-1 if multichannel else None, **more)

    package.gaussian, package.clipped_zoom = blur, centred_zoom
    motion = package._motion_blur

    def snowy(layer: np.ndarray, **more: Any) -> np.ndarray:  # rounded down before it falls, as there
        return motion(np.floor(layer * 255) / 255 if layer.ndim == 2 else layer, **more)

    package._motion_blur = snowy
    random = np.random.default_rng(0)
    small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    picture = small.resize((48, 40), Image.Resampling.BICUBIC)
    found = {"picture": np.asarray(picture)}
    for name in (
        *("gaussian_noise", "shot_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
        *("snow", "fog", "brightness", "contrast", "jpeg_compression"),
    ):
        np.random.seed(0)
        found[name] = np.uint8(getattr(package, name)(picture, SEVERITY))
    np.random.seed(0)
    found["elastic_transform"] = np.uint8(elastic(picture, (12.2, 2.44, 4.88)))
    half = picture.resize((int(48 * 0.4), int(40 * 0.4)), Image.Resampling.BOX)
    found["pixelate"] = np.asarray(half.resize(picture.size, Image.Resampling.BOX))
    np.savez_compressed(Path(__file__).parents[1] / "tests" / "data" / "corruptions.npz", **found)


if __name__ == "__main__":
    main()
