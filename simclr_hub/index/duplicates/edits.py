"""What people and programs do to a picture without making it another one; for calibration and for tests of it."""

import io
from collections.abc import Callable
from random import Random

from PIL import Image, ImageDraw, ImageEnhance, ImageOps

Edit = Callable[[Image.Image, Random], Image.Image]


def reencode(image: Image.Image, format: str, quality: int) -> Image.Image:
    """Through a lossy format and back."""
    buffer = io.BytesIO()
    image.save(buffer, format, quality=quality)
    with Image.open(io.BytesIO(buffer.getvalue())) as coded:
        return coded.convert("RGB")


def resize(image: Image.Image, factor: float) -> Image.Image:
    """Both sides times `factor`, at least 8 pixels."""
    size = (max(8, round(image.width * factor)), max(8, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC)


def crop(image: Image.Image, share: float, x: float, y: float) -> Image.Image:
    """Without `share` of either side; x and y, 0 to 1, say how much of that is cut off at the left and the top."""
    width, height = max(1, round(image.width * (1 - share))), max(1, round(image.height * (1 - share)))
    left, top = round((image.width - width) * x), round((image.height - height) * y)
    return image.crop((left, top, left + width, top + height))


def brighten(image: Image.Image, factor: float) -> Image.Image:
    """Every pixel times `factor`, white at most."""
    return ImageEnhance.Brightness(image).enhance(factor)


def contrast(image: Image.Image, factor: float) -> Image.Image:
    """Distances from the mean grey times `factor`."""
    return ImageEnhance.Contrast(image).enhance(factor)


def saturate(image: Image.Image, factor: float) -> Image.Image:
    """Distances from grey times `factor`; 0 is a grey picture."""
    return ImageEnhance.Color(image).enhance(factor)


def watermark(image: Image.Image, text: str, height: float, x: float, y: float) -> Image.Image:
    """A text, half transparent, `height` of the picture high; x and y, 0 to 1, say where it begins."""
    side = max(6, round(image.height * height))
    layer = Image.new("L", image.size, 0)
    draw = ImageDraw.Draw(layer)
    draw.text((x * image.width * 0.5, y * (image.height - side)), text, fill=150, font_size=side)
    return Image.composite(Image.new("RGB", image.size, "white"), image, layer)


def border(image: Image.Image, share: float, colour: str) -> Image.Image:
    """A frame around it, as wide as `share` of its shorter side."""
    return ImageOps.expand(image, max(1, round(share * min(image.size))), colour)


#: Each kind of edit, drawn anew for every photo.
EDITS: dict[str, Edit] = {
    "re-encoded": lambda image, draw: reencode(image, draw.choice(["JPEG", "WEBP"]), draw.randint(30, 95)),
    "resized": lambda image, draw: resize(image, draw.choice([0.25, 0.5, 0.75, 1.5, 2])),
    "cropped by up to 10 %": lambda image, draw: crop(image, draw.uniform(0.02, 0.1), draw.random(), draw.random()),
    "cropped by 10 to 20 %": lambda image, draw: crop(image, draw.uniform(0.1, 0.2), draw.random(), draw.random()),
    "brightness": lambda image, draw: brighten(image, draw.choice([0.6, 0.8, 1.2, 1.4])),
    "contrast": lambda image, draw: contrast(image, draw.choice([0.6, 0.8, 1.25, 1.5])),
    "watermark": lambda image, draw: watermark(
        image, "(c) photo", draw.uniform(0.08, 0.2), draw.random(), draw.random()
    ),
    "mirrored": lambda image, draw: ImageOps.mirror(image),
    "grey": lambda image, draw: saturate(image, 0),
    "turned by 90 degrees": lambda image, draw: image.rotate(draw.choice([90, 270]), expand=True),
    "bordered": lambda image, draw: border(image, draw.uniform(0.03, 0.1), draw.choice(["white", "black"])),
}
