from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from augmentation_helpers import random_images
from click.testing import CliRunner
from PIL import Image

from simclr_hub.cli import cli
from simclr_hub.errors import OutputError, RecipeError
from simclr_hub.training.augmentations import Views
from simclr_hub.training.figures import GAP, IMAGES, PAIRS, TEXT, TILE, draw_views, show_views
from simclr_hub.training.pretrain import pretrain

WIDTH = GAP + (1 + 2 * PAIRS) * (TILE + GAP)


def tile(picture: Image.Image, row: int, column: int) -> np.ndarray:
    left, top = GAP + column * (TILE + GAP), GAP + 2 * TEXT + row * (TILE + GAP)
    return np.asarray(picture.crop((left, top, left + TILE, top + TILE)))


@pytest.fixture
def own_datasets_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    datasets.disable_progress_bars()


def test_every_tile_is_an_image_or_a_view_of_it() -> None:
    images = [random_images(1, 32, 32)[0], random_images(1, 20, 40)[0]]
    views = Views(32, shared=["resize"], operations=[{"rotate": {"angles": [180]}}], one_branch=True)
    picture = draw_views(images, views, "title")
    assert picture.size == (WIDTH, GAP * 2 + TEXT * 2 + 2 * (TILE + GAP))
    large = images[0].permute(1, 2, 0).numpy().repeat(4, 0).repeat(4, 1)  # 32 px, each as 4 x 4
    assert np.array_equal(tile(picture, 0, 0), large)
    for pair in range(PAIRS):
        assert np.array_equal(tile(picture, 0, 1 + 2 * pair), large[::-1, ::-1])
        assert np.array_equal(tile(picture, 0, 2 + 2 * pair), large)
    wide = tile(picture, 1, 0)
    assert (wide[:30] == wide[0, 0]).all() and wide[40:80].std() > 30  # 20 x 40 in the middle of a square


def test_the_command_writes_the_sample_photos_and_repeats(tmp_path: Path) -> None:
    def run(*settings: str) -> bytes:
        path = tmp_path / "views.png"
        result = CliRunner().invoke(cli, ["pretrain", "simclr_cifar10", *settings, "--show-views", str(path)])
        assert result.exit_code == 0 and result.output == f"views in {path}\n"
        return path.read_bytes()

    state = torch.get_rng_state()
    first = run()
    assert torch.equal(torch.get_rng_state(), state)
    assert run() == first and run("seed=5") != first
    with Image.open(tmp_path / "views.png") as picture:
        assert picture.size == (WIDTH, GAP * 2 + TEXT * 2 + IMAGES * (TILE + GAP))
    assert [path.name for path in tmp_path.iterdir()] == ["views.png"]


@pytest.mark.usefixtures("own_datasets_cache")
def test_images_come_from_the_data_as_training_reads_them(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(3):
        Image.fromarray(np.full((40, 60, 3), 60 * i + 60, dtype=np.uint8)).save(photos / f"{i}.png")
    (photos / "1.png").write_bytes((photos / "1.png").read_bytes()[:60])  # training leaves it out, and so does this
    output = tmp_path / "views.png"
    show_views("simclr_cifar10", (f"data={photos}", "side=32", "views.operations=[resize]"), output)
    with Image.open(output) as picture:
        assert picture.size[1] == GAP * 2 + TEXT * 2 + 2 * (TILE + GAP)
        assert [int(tile(picture, row, 0).mean()) for row in (0, 1)] == [60, 180]
        assert [int(tile(picture, row, 8).mean()) for row in (0, 1)] == [60, 180]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("views.sizs=32", "simclr_cifar10: .*sizs"),
        ("views.blur_p=3", "simclr_cifar10: blur_p=3 is not a probability"),
        ("views.operations=[crop, {blurr: {p: 1}}]", "unknown operation 'blurr'"),
        ("side=big", "side=big must be"),
        ("data=nowhere/at-all", "data=nowhere/at-all"),
    ],
)
@pytest.mark.usefixtures("own_datasets_cache")
def test_wrong_settings_are_named(setting: str, named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(RecipeError, match=named):
        show_views("simclr_cifar10", (setting,), tmp_path / "views.png")
    assert not list(tmp_path.glob("*.png"))


def test_a_picture_replaces_only_its_own_kind(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    photo = Image.fromarray(random_images(1, 40, 40)[0].permute(1, 2, 0).numpy())
    for path in (photos / "a.png", tmp_path / "photo.png"):
        photo.save(path)
    before = (tmp_path / "photo.png").read_bytes()
    recipe, data = "tiny_imagenet_default", f"data={photos}"
    with pytest.raises(FileExistsError, match="photo.png exists already and is not a picture that simclr-hub wrote"):
        show_views(recipe, (data,), tmp_path / "photo.png")
    for name, told in (("views.jpg", "must end in .png"), ("photos/views.png", "in the photo folder")):
        with pytest.raises(OutputError, match=told):
            show_views(recipe, (f"data=[{photos}, org/name]",), tmp_path / name)
    with pytest.raises(OutputError, match="in the photo folder"):
        pretrain(recipe, (data, f"output_dir={photos / 'run'}"))
    assert (tmp_path / "photo.png").read_bytes() == before and [p.name for p in photos.iterdir()] == ["a.png"]
    for _ in range(2):
        show_views(recipe, (data,), tmp_path / "views.png")
