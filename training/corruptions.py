"""The fifteen corruptions of ImageNet-C at five severities, written anew with numpy, PIL and torch.

Source: Hendrycks and Dietterich, arXiv 1903.12261, and hendrycks/robustness, `ImageNet-C/create_c`, which has three
sets of strengths: CIFAR-10-C's for pictures of about 32 pixels, Tiny ImageNet-C's for 64, ImageNet-C's for what is
larger. Their package, imagecorruptions, has had no release since 2020 and fails in two of them (glass blur and fog)
with numpy 2 and scikit-image 0.26.

Glass blur copies pixels, as the published code does, where its comment says that it swaps them; motion blur
is along whole pixels, as ImageMagick has it; the published sets of 64 and 224 pixels were then stored as JPEG, which
is left out. Frost lies on photos of frost that are under no licence: they are the user's to give.
"""

import io
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

Pixels = np.ndarray  # (H, W, 3) float64 in [0, 1]
#: Sides in pixels of the three sets' pictures.
SIDES = (32, 64, 224)
#: corruption -> for each of `SIDES` the strengths at severities 1 to 5, as the published code has them.
STRENGTHS: dict[str, tuple[Sequence[Any], Sequence[Any], Sequence[Any]]] = {
    "gaussian_noise": (  # standard deviation
        (0.04, 0.06, 0.08, 0.09, 0.10),
        (0.04, 0.08, 0.12, 0.15, 0.18),
        (0.08, 0.12, 0.18, 0.26, 0.38),
    ),
    "shot_noise": ((500, 250, 100, 75, 50), (250, 100, 50, 30, 15), (60, 25, 12, 5, 3)),  # photons at white
    "impulse_noise": (  # share of the values
        (0.01, 0.02, 0.03, 0.05, 0.07),
        (0.01, 0.02, 0.05, 0.08, 0.14),
        (0.03, 0.06, 0.09, 0.17, 0.27),
    ),
    "defocus_blur": (  # radius of the disk, sigma of its edge
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    ),
    "glass_blur": (  # sigma, largest step, times
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    ),
    "motion_blur": (  # radius, sigma
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    ),
    "zoom_blur": (  # end and step of the zoom factors
        *(((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),) * 2,
        ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    ),
    "snow": (  # mean, deviation, zoom, threshold, radius and sigma of the fall, share of the picture
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    ),
    "frost": (  # shares of the picture and of the frost
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    ),
    "fog": (  # share, decay of the roughness
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    ),
    "brightness": ((0.05, 0.1, 0.15, 0.2, 0.3), *((0.1, 0.2, 0.3, 0.4, 0.5),) * 2),
    "contrast": ((0.75, 0.5, 0.4, 0.3, 0.15), *((0.4, 0.3, 0.2, 0.1, 0.05),) * 2),
    "elastic_transform": (  # size and sigma of the waves, and of the corners' moves, in pixels
        ((0, 0, 2.56), (1.6, 6.4, 2.24), (2.56, 1.92, 1.92), (3.2, 1.28, 1.6), (3.2, 0.96, 0.96)),
        ((0, 0, 5.12), (3.2, 19.2, 3.84), (6.4, 5.12, 3.84), (6.4, 1.92, 1.92), (10.24, 1.92, 1.28)),
        ((488, 170.8, 24.4), (488, 19.52, 48.8), (12.2, 2.44, 4.88), (17.08, 2.44, 4.88), (29.28, 2.44, 4.88)),
    ),
    "pixelate": ((0.95, 0.9, 0.85, 0.75, 0.65), (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": ((80, 65, 58, 50, 40), (65, 58, 50, 40, 25), (25, 18, 15, 10, 7)),  # quality
}
CORRUPTIONS = tuple(STRENGTHS)
_FROST_SCALE = (0.2, 0.3, 1.0)


def set_of(height: int, width: int) -> int:
    """Return the place in `SIDES` of the set whose pictures are nearest in size (by ratio)."""
    side = min(height, width)
    return 0 if side <= 45 else 1 if side <= 119 else 2


def framed(pixels: np.ndarray) -> np.ndarray:
    """Return a picture (H, W, 3) uint8 as the set of its size has it: a large one as ImageNet-C, 224 from 256."""
    if set_of(*pixels.shape[:2]) < 2:
        return pixels
    image = Image.fromarray(pixels)
    scale = 256 / min(image.size)
    image = image.resize([round(scale * side) for side in image.size], Image.Resampling.BILINEAR)
    left, top = ((side - 224) // 2 for side in image.size)
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


def corrupt(pixels: np.ndarray, name: str, severity: int, random: Any, frost: Sequence[np.ndarray] = ()) -> np.ndarray:
    """Corrupt a picture.

    Args:
        pixels: (H, W, 3) uint8.
        name: one of `CORRUPTIONS`.
        severity: 1 to 5.
        random: a numpy Generator.
        frost: photos of frost (H, W, 3) uint8, at their own size, one of which is laid over it.

    Returns:
        (H, W, 3) uint8.

    Raises:
        ValueError: frost without photos, or with one that is smaller than the picture.
    """
    of = set_of(*pixels.shape[:2])
    strength = STRENGTHS[name][of][severity - 1]
    if name == "frost":
        return _frost(pixels, strength, random, frost, _FROST_SCALE[of])
    corrupted = _FUNCTIONS[name](pixels / 255.0, strength, random)
    # Rounded down, as the published code does, but for the error of what was whole.
    return (np.clip(corrupted, 0, 1) * 255 + 1e-6).astype(np.uint8)


def _gaussian_noise(x: Pixels, deviation: float, random: Any) -> Pixels:
    return x + random.normal(size=x.shape, scale=deviation)


def _shot_noise(x: Pixels, photons: float, random: Any) -> Pixels:
    return np.asarray(random.poisson(x * photons) / photons)


def _impulse_noise(x: Pixels, share: float, random: Any) -> Pixels:
    hit, white = random.random(x.shape) <= share, random.random(x.shape) <= 0.5
    return np.where(hit, white, x)


def _defocus_blur(x: Pixels, strength: tuple[float, float], random: Any) -> Pixels:
    radius, sigma = strength
    reach, edge = (8, 1) if radius <= 8 else (int(radius), 2)
    places = np.arange(-reach, reach + 1)
    disk = (places[:, None] ** 2 + places**2 <= radius**2).astype(np.float64)
    weights = np.exp(-(np.arange(-edge, edge + 1) ** 2) / (2 * sigma**2))
    disk = _filtered(disk / disk.sum(), np.outer(weights, weights) / weights.sum() ** 2)
    return np.stack([_filtered(x[..., c], disk) for c in range(3)], 2)


def _filtered(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Correlate (H, W) with a kernel of odd sides; the border is mirrored at its pixels' centres."""
    down, across = (side // 2 for side in kernel.shape)
    padded = np.pad(x, ((down, down), (across, across)), "reflect")
    spectrum = np.fft.rfft2(padded) * np.fft.rfft2(kernel, padded.shape).conj()
    return np.asarray(np.fft.irfft2(spectrum, padded.shape)[: x.shape[0], : x.shape[1]])


def _gaussian(x: np.ndarray, sigma: float, truncate: float = 4.0, mode: str = "edge") -> np.ndarray:
    """Blur (H, W, ...); the border is repeated ("edge") or mirrored between pixels ("symmetric")."""
    down, across = (_gaussian_matrix(side, sigma, truncate, mode) for side in x.shape[:2])
    return np.einsum("hH,HW...->hW...", down, np.einsum("wW,HW...->Hw...", across, x, optimize=True), optimize=True)


@lru_cache(64)
def _gaussian_matrix(side: int, sigma: float, truncate: float, mode: str) -> np.ndarray:
    """Return the matrix (side, side) that blurs a row of `side` pixels."""
    radius = int(truncate * sigma + 0.5)
    if not radius:
        return np.eye(side)
    weights = np.exp(-(np.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    places = np.pad(np.arange(side), radius, mode)  # type: ignore[call-overload]
    matrix = np.zeros((side, side))
    for offset, weight in enumerate(weights / weights.sum()):
        np.add.at(matrix, (np.arange(side), places[offset : offset + side]), weight)
    return matrix


def _glass_blur(x: Pixels, strength: tuple[float, int, int], random: Any) -> Pixels:
    sigma, step, times = strength
    height, width = x.shape[:2]
    blurred = (_gaussian(x, sigma) * 255).astype(np.uint8).reshape(-1, 3)
    source = list(range(height * width))
    rows, columns = np.arange(height - step, step, -1), np.arange(width - step, step, -1)
    places = (rows[:, None] * width + columns).ravel()
    for _ in range(times):
        moves = random.integers(-step, step, size=(len(places), 2))  # across, down
        for place, move in zip(places.tolist(), (moves[:, 1] * width + moves[:, 0]).tolist(), strict=True):
            source[place] = source[place + move]
    return _gaussian(blurred[source].reshape(x.shape) / 255, sigma)


def _motion_blur(x: Pixels, strength: tuple[int, float], random: Any) -> Pixels:
    return _moved(x, *strength, random.uniform(-45, 45))


def _moved(x: np.ndarray, radius: int, sigma: float, degrees: float) -> np.ndarray:
    """Blur (H, W, C) along a line, on one side of each pixel; the border is repeated."""
    reach = 2 * radius + 1
    weights = np.exp(-(np.arange(reach) ** 2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    padded = np.pad(x, ((reach, reach), (reach, reach), (0, 0)), "edge")
    blurred = np.zeros(x.shape)
    for step, weight in enumerate(weights / weights.sum()):
        top, left = (reach + int(np.ceil(step * part - 0.5)) for part in (np.sin(angle), np.cos(angle)))
        blurred += weight * padded[top : top + x.shape[0], left : left + x.shape[1]]
    return blurred


def _zoom_blur(x: Pixels, strength: tuple[float, float], random: Any) -> Pixels:
    factors = np.arange(1, *strength)
    return np.asarray((x + sum(_zoomed(x, factor) for factor in factors)) / (len(factors) + 1))


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Enlarge the middle of (H, W, C), bilinearly from corner to corner, to the same size."""
    starts, sides = [], []
    for side in x.shape[:2]:
        crop = int(np.ceil(side / factor))
        starts.append((side - crop) // 2)
        sides.append(crop)
    middle = x[starts[0] : starts[0] + sides[0], starts[1] : starts[1] + sides[1]]
    size = [round(side * factor) for side in sides]
    channels = torch.from_numpy(np.ascontiguousarray(middle)).permute(2, 0, 1)[None]
    large = F.interpolate(channels, size, mode="bilinear", align_corners=True)[0].permute(1, 2, 0).numpy()
    top, left = ((n - side) // 2 for n, side in zip(size, x.shape[:2], strict=True))
    return np.asarray(large[top : top + x.shape[0], left : left + x.shape[1]])


def _snow(x: Pixels, strength: tuple[float, ...], random: Any) -> Pixels:
    mean, deviation, zoom, threshold, radius, sigma, share = strength
    layer = _zoomed(random.normal(size=x.shape[:2], loc=mean, scale=deviation)[..., None], zoom)
    layer = np.where(layer < threshold, 0, np.clip(layer, 0, 1))
    layer = np.floor(layer * 255) / 255
    layer = np.round(_moved(layer, int(radius), sigma, random.uniform(-135, -45)) * 255) / 255
    whiter = np.maximum(x, (x @ [0.299, 0.587, 0.114])[..., None] * 1.5 + 0.5)
    return np.asarray(share * x + (1 - share) * whiter + layer + np.rot90(layer, 2))


def _frost(
    pixels: np.ndarray, strength: tuple[float, float], random: Any, photos: Sequence[np.ndarray], scale: float
) -> np.ndarray:
    if not photos:
        raise ValueError("frost needs photos of frost")
    photo = torch.from_numpy(photos[random.integers(len(photos))]).permute(2, 0, 1)[None].double()
    if scale < 1:
        photo = F.interpolate(photo, scale_factor=scale, mode="bilinear")
    layer = photo[0].permute(1, 2, 0).numpy().round()
    (height, width), room = pixels.shape[:2], [a - b for a, b in zip(layer.shape[:2], pixels.shape[:2], strict=True)]
    if min(room) <= 0:
        raise ValueError(f"a photo of frost of {layer.shape[1]} x {layer.shape[0]} pixels is too small")
    top, left = random.integers(0, room[0]), random.integers(0, room[1])
    laid = strength[0] * pixels + strength[1] * layer[top : top + height, left : left + width]
    return np.clip(laid, 0, 255).astype(np.uint8)


def _fog(x: Pixels, strength: tuple[float, float], random: Any) -> Pixels:
    share, decay = strength
    side = 1 << (max(*x.shape[:2], 2) - 1).bit_length()
    heights = _plasma(side, decay, random)[: x.shape[0], : x.shape[1], None]
    return (x + share * heights) * x.max() / max(x.max() + share, 1e-12)


def _plasma(side: int, decay: float, random: Any) -> np.ndarray:
    """Return a cloud (side, side) in [0, 1] by the diamond-square algorithm, on a torus; side is a power of two."""
    heights, step, rough = np.zeros((side, side)), side, 100.0

    def wobbled(total: np.ndarray) -> np.ndarray:
        return np.asarray(total / 4 + rough * random.uniform(-rough, rough, total.shape))

    while step >= 2:
        half = step // 2
        corners, middles = heights[::step, ::step], heights[half::step, half::step]
        pairs = corners + np.roll(corners, -1, 0)
        middles[:] = wobbled(pairs + np.roll(pairs, -1, 1))
        heights[::step, half::step] = wobbled(middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1))
        heights[half::step, ::step] = wobbled(middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0))
        step, rough = half, rough / decay
    heights -= heights.min()
    return np.asarray(heights / heights.max())


def _brightness(x: Pixels, more: float, random: Any) -> Pixels:
    value = x.max(2, keepdims=True)  # of HSV; hue and saturation stay
    brighter = np.minimum(value + more, 1)
    return np.where(value > 0, x * (brighter / np.maximum(value, 1e-12)), brighter)


def _contrast(x: Pixels, share: float, random: Any) -> Pixels:
    mean = x.mean((0, 1), keepdims=True)
    return np.asarray((x - mean) * share + mean)


def _elastic_transform(x: Pixels, strength: tuple[float, float, float], random: Any) -> Pixels:
    size, sigma, moves = strength
    height, width = x.shape[:2]
    middle, reach = np.array([width // 2, height // 2]), min(height, width) // 3
    corners = np.array([middle + reach, [middle[0] + reach, middle[1] - reach], middle - reach], np.float64)
    moved = corners + random.uniform(-moves, moves, size=corners.shape)
    back = np.linalg.solve(np.column_stack([moved, np.ones(3)]), corners)  # (3, 2): from where a pixel comes
    rows, columns = np.mgrid[:height, :width]
    places = columns[..., None] * back[0] + rows[..., None] * back[1] + back[2]
    x = _sampled(x, places[..., 1], places[..., 0], "reflect")
    across, down = (
        _gaussian(random.uniform(-1, 1, size=(height, width)), sigma, 3.0, "symmetric") * size for _ in range(2)
    )
    return _sampled(x, rows + down, columns + across, "symmetric")


def _sampled(x: Pixels, rows: np.ndarray, columns: np.ndarray, mode: str) -> Pixels:
    """Look (H, W, C) up at places between its pixels, bilinearly; beyond the border it is mirrored."""
    reach = 2 * max(x.shape[:2])  # no place is farther away
    low = [np.floor(places).astype(int) for places in (rows, columns)]
    share = [(places - floor)[..., None] for places, floor in zip((rows, columns), low, strict=True)]
    index = [np.pad(np.arange(n), reach, mode) for n in x.shape[:2]]  # type: ignore[call-overload]

    def at(down: int, across: int) -> np.ndarray:
        picked = [np.clip(p + d + reach, 0, len(i) - 1) for p, d, i in zip(low, (down, across), index, strict=True)]
        return np.asarray(x[index[0][picked[0]], index[1][picked[1]]])

    upper = at(0, 0) * (1 - share[1]) + at(0, 1) * share[1]
    lower = at(1, 0) * (1 - share[1]) + at(1, 1) * share[1]
    return np.asarray(upper * (1 - share[0]) + lower * share[0])


def _pixelate(x: Pixels, share: float, random: Any) -> Pixels:
    image = Image.fromarray((x * 255).round().astype(np.uint8))
    small = [max(int(side * share), 1) for side in image.size]
    return np.asarray(image.resize(small, Image.Resampling.BOX).resize(image.size, Image.Resampling.BOX)) / 255


def _jpeg_compression(x: Pixels, quality: int, random: Any) -> Pixels:
    file = io.BytesIO()
    Image.fromarray((x * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file)) / 255


_FUNCTIONS: dict[str, Callable[[Pixels, Any, Any], Pixels]] = {
    "gaussian_noise": _gaussian_noise,
    "shot_noise": _shot_noise,
    "impulse_noise": _impulse_noise,
    "defocus_blur": _defocus_blur,
    "glass_blur": _glass_blur,
    "motion_blur": _motion_blur,
    "zoom_blur": _zoom_blur,
    "snow": _snow,
    "fog": _fog,
    "brightness": _brightness,
    "contrast": _contrast,
    "elastic_transform": _elastic_transform,
    "pixelate": _pixelate,
    "jpeg_compression": _jpeg_compression,
}
