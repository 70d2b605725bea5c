"""Pictures: a recipe's images and what training would make of them; accuracies as bars, confusions as a matrix."""

import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from simclr_hub._files import Kind, check_output, write_output
from simclr_hub.errors import ImageError, RecipeError
from simclr_hub.images import describe, load_image
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
PICTURE = Kind("a picture", (".png",), _is_picture)


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


def draw_accuracies(bars: Mapping[str, Mapping[str, tuple[float, float, float]]], path: Path, title: str) -> None:
    """Write a bar chart: measure -> what was measured -> percent, and the ends of its interval."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    names = list(dict.fromkeys(name for of_measure in bars.values() for name in of_measure))
    figure = Figure(figsize=(8, 1 + 0.25 * len(bars) * (len(names) + 1)), layout="constrained", dpi=100)
    axes = figure.subplots()
    width = 0.8 / len(names)
    for i, name in enumerate(names):
        there = [(row, of_measure[name]) for row, of_measure in enumerate(bars.values()) if name in of_measure]
        values = [value for _, (value, _, _) in there]
        errors = [[value - low for _, (value, low, _) in there], [high - value for _, (value, _, high) in there]]
        places = [row - 0.4 + (i + 0.5) * width for row, _ in there]
        axes.barh(places, values, width, xerr=errors, label=_plain(name), error_kw={"elinewidth": 1})
    axes.set_yticks(range(len(bars)), list(bars))
    axes.set_ylim(len(bars) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent")
    axes.set_title(_plain(title))
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2)  # over no bar
    _write_figure(figure, path)


def draw_calibration(curves: Mapping[str, Mapping[str, Any]], path: Path, title: str = "Calibration") -> None:
    """Write a reliability diagram: what predicts -> its `calibration`; accuracy over confidence, a point a bin."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5.5 + 0.2 * len(curves)), layout="constrained", dpi=100)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    for name, curve in curves.items():
        bins = curve["bins"]
        points = [one["confidence"] for one in bins], [one["accuracy"] for one in bins]
        axes.plot(*points, marker="o", markersize=4, label=f"{_plain(name)} (error {curve['ece']:.1f} %)")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=_plain(title))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center")
    _write_figure(figure, path)


def draw_confusion(counts: Tensor, classes: Sequence[str], path: Path, title: str) -> None:
    """Write a confusion matrix as a PNG: counts (C, C), a row for each true class, drawn as shares of the row."""
    from matplotlib.figure import Figure

    side = min(max(5.0, 0.22 * len(classes) + 2), 12)
    figure = Figure(figsize=(side + 1, side), layout="constrained", dpi=100)
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdim=True).clamp_min(1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    if len(classes) <= NAMED_CLASSES:
        names, points = [_plain(name) for name in classes], 8 if len(classes) <= 40 else 6
        axes.set_xticks(range(len(classes)), names, rotation=90, fontsize=points)
        axes.set_yticks(range(len(classes)), names, fontsize=points)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(_plain(title))
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    _write_figure(figure, path)


#: Classes that a confusion matrix names at its sides.
NAMED_CLASSES = 100


def _plain(name: str) -> str:
    """Return a name as matplotlib shows it: without its formulas, without what does not print."""
    return describe(name).replace("$", r"\$")


def _write_figure(figure: Any, path: Path) -> None:
    told = {"Software": _MADE_BY}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # classes may have names in any script
        write_output(path, lambda file: figure.savefig(file, format="png", metadata=told), PICTURE)
