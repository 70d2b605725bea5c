"""A picture of a recipe's views: some of its images, and beside each what training would make of it."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from simclr_hub._files import Kind, check_output, write_output
from simclr_hub.errors import ImageError, RecipeError
from simclr_hub.images import load_image
from simclr_hub.sources import folder_images

from .augmentations import Views
from .data import Rows, _resized
from .pretrain import _listed, load_recipe

IMAGES, PAIRS = 6, 4  # rows, and pairs of views in each
TILE, GAP, TEXT = 128, 6, 18  # pixels
_MADE_BY = "simclr-hub"


def _is_picture(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return picture.info.get("Software") == _MADE_BY
    except (OSError, ValueError, SyntaxError):
        return False


#: The kind of file that this writes, see `simclr_hub._files.check_output`.
PICTURE = Kind("a picture of views", (".png",), _is_picture)


def show_views(name: str, settings: tuple[str, ...], path: Path) -> None:
    """Write a PNG of images of a recipe's data, or of the sample photos if it has none, each beside its views.

    Raises:
        RecipeError: the recipe or a setting is wrong, or the data cannot be opened.
        FileExistsError: something else than such a picture is at `path`.
        OutputError: another suffix, among the recipe's images, or in a folder that is missing or read-only.
        OSError: the file cannot be written.
    """
    recipe = load_recipe(name, settings)
    check_output(path, PICTURE, photos=_listed(recipe.get("data")))
    try:
        views, seed = Views(**recipe["views"]), int(recipe["training"].get("seed", 0))
    except (TypeError, ValueError) as e:
        raise RecipeError(f"{name}: {e}") from e
    samples = folder_images(str(files("simclr_hub") / "assets" / "sample-photos"))
    rows = Rows(str(recipe["data"]), str(recipe.get("split") or "train")) if recipe.get("data") else samples
    side, images = recipe.get("side"), []
    for i in torch.linspace(0, len(rows) - 1, min(IMAGES, len(rows))).long().tolist():  # evenly over the data
        try:
            pixels = load_image(rows[i]).pixels
        except ImageError:  # training leaves it out too
            continue
        images.append(torch.from_numpy(pixels if side is None else _resized(pixels, side).copy()))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        picture = draw_views(images, views, Path(name).stem)
    told = PngInfo()
    told.add_text("Software", _MADE_BY)
    write_output(path, lambda file: picture.save(file, "PNG", pnginfo=told), PICTURE)


def draw_views(images: Sequence[Tensor], views: Views, title: str) -> Image.Image:
    """Draw a grid: each row an image (3, H, W), whole, and pairs of its views; columns 1a and 1b are one pair."""
    font = ImageFont.load_default(12)
    pitch = TILE + GAP
    canvas = Image.new("RGB", (GAP + (1 + 2 * PAIRS) * pitch, 2 * TEXT + 2 * GAP + len(images) * pitch), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((GAP, GAP // 2), f"{title}: {views.describe()}", "black", font)
    headings = ["image", *(f"{pair}{branch}" for pair in range(1, PAIRS + 1) for branch in "ab")]
    for column, heading in enumerate(headings):
        draw.text((GAP + column * pitch, GAP + TEXT), heading, "black", font)
    for row, image in enumerate(images):
        shown = [image, *torch.cat([views.of_image(image) for _ in range(PAIRS)])]
        for column, pixels in enumerate(shown):
            canvas.paste(_tile(pixels), (GAP + column * pitch, GAP + 2 * TEXT + row * pitch))
    return canvas


def _tile(pixels: Tensor) -> Image.Image:
    if pixels.is_floating_point():
        pixels = (pixels * 255).round().byte()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    enlarge = max(image.size) <= TILE  # small views as the pixels they are
    fitted = ImageOps.contain(image, (TILE, TILE), Image.Resampling.NEAREST if enlarge else Image.Resampling.LANCZOS)
    return ImageOps.pad(fitted, (TILE, TILE), color="lightgrey") if fitted.size != (TILE, TILE) else fitted
