"""A picture's signature: a thumbnail of 455 bytes by which the same picture is known again after an edit.

Two hashes could only be compared as they are; two small pictures can be aligned, so that a cropped, mirrored, turned
or framed copy is found, and a brighter one correlates as before. Grey levels are kept on 20 x 20 cells, colour on
5 x 5. The shape is stretched to a square, so that the size does not matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .pixels import resize_bytes

#: First byte of every signature; signatures of two versions cannot be compared.
SIGNATURE_VERSION = 1
#: Cells a side: of the grey levels, of each colour difference.
GREY_CELLS, COLOUR_CELLS = 20, 5
_HEAD = 5  # version, shape (two bytes), lowest and highest grey level
SIGNATURE_BYTES = _HEAD + GREY_CELLS**2 + 2 * COLOUR_CELLS**2
_SHAPE_STEP = 2048  # per doubling of height / width
#: Low frequencies a side, and of how many signatures they are computed at once.
_FREQUENCIES, _BLOCK = 8, 4096


@dataclass(frozen=True)
class Thumbnails:
    """Signatures as arrays.

    Attributes:
        grey: (N, 20, 20) float32, levels of 0 to 255.
        colour: (N, 2, 5, 5) float32, blue and red minus grey, in levels.
        shape: (N,) float32, log2 of height / width of the whole picture.
    """

    grey: np.ndarray
    colour: np.ndarray
    shape: np.ndarray

    def __len__(self) -> int:
        return len(self.grey)

    def __getitem__(self, rows: np.ndarray | slice) -> "Thumbnails":
        return Thumbnails(self.grey[rows], self.colour[rows], self.shape[rows])


def picture_signature(pixels: np.ndarray) -> bytes:
    """Make the signature of a picture; it hardly depends on the size at which the picture was decoded.

    Args:
        pixels: (3, H, W), uint8 or float in [0, 1].

    Raises:
        ValueError: another shape, or no pixels.
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or not pixels.size:
        raise ValueError(f"pixels of shape {pixels.shape}: a picture is (3, H, W) with at least one pixel")
    height, width = pixels.shape[1:]
    if pixels.dtype != np.uint8:
        pixels = np.rint(pixels * 255).clip(0, 255).astype(np.uint8)
    # Twice the cells first: this step rounds to whole levels, the mean of four makes up for it.
    fine = resize_bytes(pixels[None], 2 * GREY_CELLS, kernel="bilinear")
    red, green, blue = fine.reshape(3, GREY_CELLS, 2, GREY_CELLS, 2).mean((2, 4))
    grey = 0.299 * red + 0.587 * green + 0.114 * blue  # (20, 20)
    lowest = int(min(np.floor(grey.min()), 254))
    highest = int(max(np.ceil(grey.max()), lowest + 1))
    shape = round(32768 + _SHAPE_STEP * float(np.log2(height / width)))
    head = bytes([SIGNATURE_VERSION, *min(max(shape, 0), 65535).to_bytes(2, "big"), lowest, highest])
    return b"".join(
        [
            head,
            _bytes((grey - lowest) * (255 / (highest - lowest))),
            *(_bytes(128 + _pooled(difference) / 2) for difference in (blue - grey, red - grey)),
        ]
    )


def is_signature(data: bytes) -> bool:
    """Tell whether these bytes are a signature of this version."""
    return len(data) == SIGNATURE_BYTES and data[0] == SIGNATURE_VERSION


def as_rows(signatures: Sequence[bytes]) -> np.ndarray:
    """Stack signatures to uint8 (N, 455), in their order; zeros for what is none, or is of another version."""
    none = bytes(SIGNATURE_BYTES)
    rows = b"".join(signature if is_signature(signature) else none for signature in signatures)
    return np.frombuffer(rows, np.uint8).reshape(-1, SIGNATURE_BYTES)


def unpack(rows: np.ndarray) -> Thumbnails:
    """Read signatures (N, 455), as `as_rows` gives them, as pictures; black where there is none."""
    split = _HEAD + GREY_CELLS**2
    lowest, highest = rows[:, 3:4].astype(np.float32), rows[:, 4:5].astype(np.float32)
    grey = lowest + rows[:, _HEAD:split] * ((highest - lowest) / 255)
    colour = (rows[:, split:].astype(np.float32) - 128) * 2
    shape = (rows[:, 1] * np.float32(256) + rows[:, 2] - 32768) / _SHAPE_STEP
    return Thumbnails(
        grey.reshape(-1, GREY_CELLS, GREY_CELLS),
        colour.reshape(-1, 2, COLOUR_CELLS, COLOUR_CELLS),
        shape.astype(np.float32),
    )


def low_frequencies(signatures: np.ndarray) -> np.ndarray:
    """Return what large shapes signatures show, (N, 63) float32 of length 1; zero for one that shows nothing.

    Args:
        signatures: uint8 (N, 455), see `as_rows`.
    """
    cells = np.arange(GREY_CELLS) + 0.5
    waves = np.cos(np.pi / GREY_CELLS * np.arange(_FREQUENCIES)[:, None] * cells).astype(np.float32)
    result = np.empty((len(signatures), _FREQUENCIES**2 - 1), np.float32)
    for start in range(0, len(signatures), _BLOCK):
        grey = unpack(signatures[start : start + _BLOCK]).grey
        some = (waves @ grey @ waves.T).reshape(len(grey), -1)[:, 1:]  # without the mean
        length = np.linalg.norm(some, axis=1, keepdims=True)
        result[start : start + _BLOCK] = some * (length > GREY_CELLS) / np.maximum(length, 1e-6)
    return result


def in_colour(rows: np.ndarray) -> np.ndarray:
    """Tell which signatures (N, 455) are of pictures in colour: bool (N,)."""
    colour = rows[:, _HEAD + GREY_CELLS**2 :].astype(np.int16)
    return np.asarray((np.abs(colour - 128) > 1).any(1))


def _pooled(levels: np.ndarray) -> np.ndarray:
    """Average (20, 20) to (5, 5)."""
    side = GREY_CELLS // COLOUR_CELLS
    means: np.ndarray = levels.reshape(COLOUR_CELLS, side, COLOUR_CELLS, side).mean((1, 3))
    return means


def _bytes(values: np.ndarray) -> bytes:
    return bytes(np.rint(values).clip(0, 255).astype(np.uint8).tobytes())
