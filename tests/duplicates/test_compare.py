from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub.duplicates import compare as module
from simclr_hub.duplicates.calibrate import EDITS, crop, reencode
from simclr_hub.duplicates.compare import (
    MAX_OUTSIDE,
    MAX_STRETCH,
    MIN_COLOUR,
    MIN_OVERLAP,
    align,
    compare,
    correlations,
    orientations,
    rank_guesses,
)
from simclr_hub.duplicates.thresholds import CORRELATION
from simclr_hub.signature import as_rows, picture_signature, unpack

NAMES = ("cat_1", "banana_1", "dress_1", "chess_1", "hat_2", "boat_1", "tree_1", "shoes_2")


def open_photo(name: str) -> Image.Image:
    return Image.open(SAMPLE_PHOTOS / f"{name}.jpg").convert("RGB")


def signatures(images: list[Image.Image]) -> np.ndarray:
    arrays = [np.array(image.convert("RGB")).transpose(2, 0, 1) for image in images]
    return as_rows([picture_signature(array) for array in arrays])


@pytest.fixture(scope="module")
def originals() -> np.ndarray:
    return signatures([open_photo(name) for name in NAMES])


@pytest.mark.parametrize("kind", EDITS)
def test_copies_are_known_whichever_comes_first(kind: str, originals: np.ndarray) -> None:
    draw = Random(kind)
    copies = unpack(signatures([EDITS[kind](open_photo(name), draw) for name in NAMES]))
    one, other = compare(unpack(originals), copies).score, compare(copies, unpack(originals)).score
    allowed = 1 if kind in ("bordered", "watermark", "cropped by 10 to 20 %") else 0
    assert (one < CORRELATION).sum() <= allowed and (other < CORRELATION).sum() <= allowed


@pytest.mark.parametrize("kind", EDITS)
def test_in_full_view_only_what_shows_all_of_it_is_the_same(kind: str, originals: np.ndarray) -> None:
    draw = Random(kind)
    copies = unpack(signatures([EDITS[kind](open_photo(name), draw) for name in NAMES]))
    score = compare(unpack(originals), copies, aligned=False).score
    if kind.startswith(("cropped by 10", "bordered")):
        assert (score < CORRELATION).all()
    elif not kind.startswith("cropped"):
        assert (score >= CORRELATION).sum() >= len(NAMES) - (kind == "watermark")


def test_no_two_of_the_sample_photos_are_the_same() -> None:
    paths = sorted(Path(SAMPLE_PHOTOS).glob("*.jpg"))
    rows = signatures([Image.open(path) for path in paths])
    first, second = np.triu_indices(len(rows), 1)
    scores = compare(unpack(rows[first]), unpack(rows[second])).score
    assert len(scores) > 1600 and scores.max() < CORRELATION


def test_a_pair_does_not_depend_on_the_others(originals: np.ndarray) -> None:
    many = np.repeat(originals, 70, 0)  # more than one block
    together = compare(unpack(many), unpack(np.roll(many, 1, 0)))
    for row in (0, 69, 70, 300, 559):
        alone = compare(unpack(many[row : row + 1]), unpack(np.roll(many, 1, 0)[row : row + 1]))
        assert alone.score[0] == pytest.approx(together.score[row], abs=1e-4)


def page(colour: tuple[int, int, int], size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.new("RGB", size, colour)


@pytest.mark.parametrize("aligned", [True, False])
def test_pages_of_one_colour_are_the_same_if_colour_and_proportions_are(aligned: bool) -> None:
    white = page((255, 255, 255))
    same = [white, page((254, 254, 254)), page((255, 255, 255), (120, 90)), page((255, 255, 255), (30, 40))]
    numbered = white.copy()
    numbered.putpixel((20, 28), (235, 235, 235))
    different = [page((250, 250, 250)), page((255, 255, 240)), page((255, 255, 255), (40, 40)), numbered]
    rows = signatures(same + different)
    scores = compare(unpack(np.repeat(rows[:1], len(rows), 0)), unpack(rows), aligned=aligned).score
    assert (scores[:4] > 0.98).all() and scores[0] == 1 and scores[1] < 1 and not scores[4:].any()
    none = unpack(np.zeros_like(rows))
    assert not compare(none, none).score.any()


def test_a_fog_is_like_nothing_but_itself() -> None:
    fog = [Image.fromarray(np.random.default_rng(seed).integers(90, 110, (30, 40, 3), np.uint8)) for seed in (0, 0, 1)]
    rows = signatures(fog)
    assert np.array_equal(rows[0], rows[1])
    scores = compare(unpack(np.repeat(rows[:1], 3, 0)), unpack(rows)).score
    assert scores[1] == 1 and scores[2] < 0.5


def test_another_colour_is_another_picture() -> None:
    image = open_photo("red-bell-pepper_1")
    swapped = Image.merge("RGB", image.split()[::-1])
    luma = image.convert("L")  # the same grey levels, in other colours
    channels = [Image.composite(c, luma, Image.new("L", image.size, 255)) for c in swapped.split()]
    other = Image.merge("RGB", channels)
    agreement = compare(unpack(signatures([image])), unpack(signatures([other])))
    assert agreement.colour[0] < MIN_COLOUR and agreement.score[0] == 0


def test_a_squeezed_picture_and_a_small_part_are_told_apart() -> None:
    image = open_photo("chess_1")
    squeezed = image.resize((image.width * 2 // 3, image.height))
    agreement = compare(unpack(signatures([image])), unpack(signatures([squeezed])))
    assert agreement.stretch[0] > MAX_STRETCH and agreement.correlation[0] > 0.95 and agreement.score[0] == 0
    part = crop(image, 0.45, 0.5, 0.5)
    agreement = compare(unpack(signatures([image])), unpack(signatures([part])))
    assert agreement.score[0] < CORRELATION
    assert MIN_OVERLAP > 0.55**2


def test_overlap_is_what_both_show() -> None:
    image = open_photo("boat_1")
    agreement = compare(unpack(signatures([image])), unpack(signatures([crop(image, 0.15, 1, 0)])))
    assert agreement.score[0] > CORRELATION and agreement.overlap[0] == pytest.approx(0.85**2, abs=0.08)
    agreement = compare(unpack(signatures([image])), unpack(signatures([reencode(image, "JPEG", 50)])))
    assert agreement.overlap[0] == 1


def test_another_view_of_the_scene_is_another_picture() -> None:
    image = open_photo("boat_1")
    left, right = crop(image, 0.15, 0, 0.5), crop(image, 0.15, 1, 0.5)
    agreement = compare(unpack(signatures([left])), unpack(signatures([right])))
    assert agreement.correlation[0] > CORRELATION and agreement.outside[0] > MAX_OUTSIDE and agreement.score[0] == 0
    assert agreement.outside[0] == pytest.approx(0.15 / 0.85, abs=0.03)
    inside = compare(unpack(signatures([image])), unpack(signatures([left])))
    assert inside.outside[0] <= MAX_OUTSIDE and inside.score[0] > CORRELATION


def test_none_and_unequal_numbers(originals: np.ndarray) -> None:
    assert len(compare(unpack(originals[:0]), unpack(originals[:0])).score) == 0
    with pytest.raises(ValueError, match="8 pictures"):
        compare(unpack(originals), unpack(originals[:3]))


def pictures(count: int, cells: int) -> np.ndarray:
    low = torch.rand((count, 1, 6, 6), generator=torch.Generator().manual_seed(0)) * 255
    return torch.nn.functional.interpolate(low, (cells, cells), mode="bicubic")[:, 0].numpy()


def shrink(whole: np.ndarray, cells: int) -> np.ndarray:
    return torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(whole.copy()), cells).numpy()


def plainly(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Correlate two pictures as each guess says: (guesses, 8)."""
    cells = len(a)
    centres = (np.arange(cells) + 0.5) * 2 / cells - 1
    ranks = []
    for swapped, scale, *shifts in module._GUESSES:
        larger, part = (b, a) if swapped else (a, b)
        across, down = (((centres * scale + shift + 1) * cells - 1) / 2 for shift in shifts)
        column, row = (np.abs(centres * scale + shift) + scale / cells <= 1 + 1.02 / cells for shift in shifts)
        inside = row[:, None] & column
        zoomed = np.stack([np.interp(across, np.arange(cells), line) for line in part])
        zoomed = np.stack([np.interp(down, np.arange(cells), line) for line in zoomed.T], 1)
        for view in orientations(larger[None])[0]:
            u, v = view[inside] - view[inside].mean(), zoomed[inside] - zoomed[inside].mean()
            floor = module.NOISE**2 * inside.sum()
            ranks.append(u @ v / np.sqrt((u @ u + floor) * (v @ v + floor)))
    return np.array(ranks)


def test_guesses_are_ranked_as_if_each_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FOLLOWED", 8 * len(module._GUESSES))
    a, b = pictures(6, 10), np.roll(pictures(6, 10), 1, 0)
    values, numbers = rank_guesses(a, b)
    for row in range(6):
        np.testing.assert_allclose(values[row], plainly(a[row], b[row])[numbers[row]], atol=1e-4)
        assert sorted(numbers[row]) == list(range(numbers.shape[1]))


def test_plain_correlations_find_the_orientation() -> None:
    a = pictures(4, 20)
    for turned in orientations(a).swapaxes(0, 1):
        found = correlations(a, turned)
        assert found.max(1).min() > 0.998
        undone = orientations(turned)[np.arange(4), found.argmax(1)]
        np.testing.assert_array_equal(undone, a)


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("swapped", [False, True])
def test_a_turned_corner_is_put_in_its_place(orientation: int, swapped: bool) -> None:
    whole = pictures(3, 160)
    corner = whole[:, :136, 24:]  # 85 % of a side, the right and upper part
    a, b = shrink(whole, 20), orientations(shrink(corner, 20))[:, orientation]
    if swapped:
        a, b = b, a
    guesses = rank_guesses(shrink(a, 10), shrink(b, 10))[1]
    correlation, overlap, placement, _, second_is_larger = align(a, b, guesses)
    assert correlation.min() > 0.98 and (second_is_larger == swapped).all()
    np.testing.assert_allclose(placement[..., 0], 1 / 0.85, atol=0.03)
    np.testing.assert_allclose(np.abs(placement[..., 1]), 0.15 / 0.85, atol=0.03)
    # Only whole cells count: at the inner edges one of 20 is cut.
    assert overlap.max() <= 0.85**2 and overlap.min() >= 0.75**2


def test_something_drawn_over_it_hardly_moves_it() -> None:
    whole = pictures(8, 160)
    corner = whole[:, 16:, :144].copy()
    corner[:, 90:112, 10:40] = 255
    a, b = shrink(whole, 20), shrink(corner, 20)
    placement = align(a, b, rank_guesses(shrink(a, 10), shrink(b, 10))[1])[2]
    error = np.abs(placement - [[1 / 0.9, 0.1 / 0.9], [1 / 0.9, -0.1 / 0.9]])
    assert error.mean() < 0.012


def test_roles_are_chosen_pair_by_pair() -> None:
    a, b = np.zeros((2, 3, 3)), np.ones((2, 3, 3))
    view, part = module._roles(a, b, np.zeros(2, int), np.array([False, True]))
    assert view.max((1, 2)).tolist() == [0, 1] and part.max((1, 2)).tolist() == [1, 0]
