from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from simclr_hub.training import corruptions
from simclr_hub.training.corruptions import CORRUPTIONS, STRENGTHS, corrupt, framed, set_of

PUBLISHED = Path(__file__).parents[1] / "data" / "corruptions.npz"  # scripts/corruption_values.py


class Legacy:
    """Random numbers as numpy's RandomState gives them, under a Generator's names."""

    def __init__(self) -> None:
        self.state = np.random.RandomState(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.state, {"integers": "randint", "random": "random_sample"}.get(name, name))


@pytest.fixture
def picture() -> np.ndarray:
    random = np.random.default_rng(3)
    small = Image.fromarray(random.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return np.asarray(small.resize((48, 40), Image.Resampling.BICUBIC))


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in ("impulse_noise", "frost")])
def test_values_are_those_of_the_published_code(name: str) -> None:
    with np.load(PUBLISHED) as file:
        picture, expected = file["picture"], file[name]
    strength = STRENGTHS[name][2][2]
    found = corruptions._FUNCTIONS[name](picture / 255.0, strength, Legacy())
    difference = (np.clip(found, 0, 1) * 255 + 1e-6).astype(np.uint8).astype(int) - expected
    assert np.abs(difference).max() <= 1 and np.abs(difference).mean() < 0.01
    assert np.abs(picture.astype(int) - expected).mean() > 1  # it does something


def test_impulse_noise_is_black_and_white_by_its_share() -> None:
    grey = np.full((224, 224, 3), 100, np.uint8)
    found = corrupt(grey, "impulse_noise", 5, np.random.default_rng(0))
    counts = [float((found == value).mean()) for value in (0, 255)]
    assert counts == pytest.approx([0.135, 0.135], abs=0.005) and set(np.unique(found)) == {0, 100, 255}


def test_frost_is_a_photo_laid_over_by_its_shares() -> None:
    photo = np.full((300, 400, 3), 200, np.uint8)
    for side, (of_picture, of_frost) in ((32, (0.9, 0.4)), (64, (0.8, 0.45)), (224, (0.7, 0.7))):
        found = corrupt(np.full((side, side, 3), 100, np.uint8), "frost", 3, np.random.default_rng(0), [photo])
        assert (found == int(min(100 * of_picture + 200 * of_frost, 255))).all()
    with pytest.raises(ValueError, match="needs photos of frost"):
        corrupt(photo, "frost", 1, np.random.default_rng(0))
    with pytest.raises(ValueError, match="of 120 x 90 pixels is too small"):
        corrupt(np.zeros((100, 100, 3), np.uint8), "frost", 1, np.random.default_rng(0), [photo])


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "frost"])
def test_any_size_and_severity_and_the_same_draws_the_same(name: str, picture: np.ndarray) -> None:
    shapes = ((1, 1), (2, 70), (33, 20), (64, 64), (130, 200))
    for shape in shapes:
        image = np.asarray(Image.fromarray(picture).resize(shape[::-1]))
        for severity in (1, 5):
            found = corrupt(image, name, severity, np.random.default_rng(1))
            assert found.shape == image.shape and found.dtype == np.uint8
            assert np.array_equal(found, corrupt(image, name, severity, np.random.default_rng(1)))
    # Stronger is farther from the picture, by the second set's strengths at 64 pixels.
    image = np.asarray(Image.fromarray(picture).resize((64, 64))).astype(int)
    far = [
        np.abs(corrupt(image.astype(np.uint8), name, severity, np.random.default_rng(1)) - image).mean()
        for severity in (1, 5)
    ]
    assert far[1] > far[0] or name in ("elastic_transform", "snow")  # whose severities change several things


def test_all_fifteen_have_three_sets_of_five() -> None:
    assert len(CORRUPTIONS) == 15
    assert all(len(sets) == 3 and [len(one) for one in sets] == [5, 5, 5] for sets in STRENGTHS.values())
    assert [set_of(*size) for size in ((32, 32), (45, 90), (64, 64), (119, 500), (120, 120), (500, 400))] == [
        *(0, 0, 1, 1, 2, 2)
    ]


def test_large_pictures_are_framed_as_imagenets() -> None:
    assert framed(np.zeros((64, 70, 3), np.uint8)).shape == (64, 70, 3)
    wide = np.zeros((256, 512, 3), np.uint8)
    wide[:, 256 - 112 : 256 + 112] = 200
    assert (framed(wide) == 200).all() and framed(wide).shape == (224, 224, 3)
    assert framed(np.zeros((128, 171, 3), np.uint8)).shape == (224, 224, 3)
