"""The quick ranking of guesses against the plain way, and what it begins with."""

import numpy as np
import pytest
import torch
from torch import Tensor

from simclr_hub.duplicates import alignment
from simclr_hub.duplicates.alignment import align, all_orientations, rank_guesses, roles
from simclr_hub.duplicates.compare import correlations, orientations


def pictures(count: int, cells: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    low = torch.rand((count, 1, 6, 6), generator=generator) * 255
    return torch.nn.functional.interpolate(low, (cells, cells), mode="bicubic")[:, 0]


def plainly(a: Tensor, b: Tensor) -> Tensor:
    """Correlations (P, 8 x guesses): every guess zooms every orientation of the second, or the first."""
    cells, ranks = a.shape[-1], []
    for larger, scale, x, y in alignment._GUESSES:
        (across, inside_x), (down, inside_y) = alignment._zoom(cells, scale, x), alignment._zoom(cells, scale, y)
        zoomed = down @ (a[:, None] if larger else b) @ across.T
        ranks.append(alignment._correlation(b if larger else a[:, None], zoomed, inside_y[:, None] * inside_x))
    return torch.cat(ranks, 1)


def test_guesses_are_ranked_as_if_each_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "_FOLLOWED", 8 * len(alignment._GUESSES))
    a, b = pictures(6, 10), all_orientations(pictures(6, 10).roll(1, 0))
    values, numbers = rank_guesses(a, b)
    expected = plainly(a, b)
    torch.testing.assert_close(values, expected.gather(1, numbers), atol=1e-4, rtol=0)
    assert numbers.sort(1).values.equal(torch.arange(numbers.shape[1]).expand_as(numbers))


def test_plain_correlations_find_the_orientation() -> None:
    a = pictures(4, 20)
    for orientation in range(8):
        turned = all_orientations(a)[:, orientation].numpy()
        found = correlations(a.numpy(), turned)
        assert found.max(1).min() > 0.998
        undone = orientations(turned)[np.arange(4), found.argmax(1)]
        np.testing.assert_array_equal(undone, a)


@pytest.mark.parametrize("orientation", range(8))
@pytest.mark.parametrize("swapped", [False, True])
def test_a_turned_corner_is_put_in_its_place(orientation: int, swapped: bool) -> None:
    whole = pictures(3, 160)
    corner = whole[:, :136, 24:]  # 85 % of a side, the right and upper part
    cells = torch.nn.functional.adaptive_avg_pool2d
    a, b = cells(whole, 20), all_orientations(cells(corner, 20))[:, orientation]
    if swapped:
        a, b = b, a
    forms = all_orientations(b)
    small_a, small_forms = cells(a, 10), cells(forms, 10)
    correlation, overlap, placement, _, second_is_larger = align(
        a, forms, small_a, small_forms, rank_guesses(small_a, small_forms)[1]
    )
    assert correlation.min() > 0.98 and bool((second_is_larger == swapped).all())
    torch.testing.assert_close(placement[:, 0::2], torch.full((3, 2), 1 / 0.85), atol=0.03, rtol=0)
    torch.testing.assert_close(placement[:, 1::2].abs(), torch.full((3, 2), 0.15 / 0.85), atol=0.03, rtol=0)
    # Only whole cells count: at the inner edges one of 20 is cut.
    assert overlap.max() <= 0.85**2 and overlap.min() >= 0.75**2


def test_something_drawn_over_it_hardly_moves_it() -> None:
    whole = pictures(8, 160)
    corner = whole[:, 16:, :144].clone()
    corner[:, 90:112, 10:40] = 255
    cells = torch.nn.functional.adaptive_avg_pool2d
    a, forms = cells(whole, 20), all_orientations(cells(corner, 20))
    small_a, small_forms = cells(a, 10), cells(forms, 10)
    placement = align(a, forms, small_a, small_forms, rank_guesses(small_a, small_forms)[1])[2]
    error = (placement - torch.tensor([1 / 0.9, 0.1 / 0.9, 1 / 0.9, -0.1 / 0.9])).abs()
    assert error.mean() < 0.012


def test_roles_are_chosen_pair_by_pair() -> None:
    a, b = torch.zeros(2, 3, 3), torch.ones(2, 3, 3)
    view, part = roles(a, b, torch.tensor([False, True]))
    assert view.amax((1, 2)).tolist() == [0, 1] and part.amax((1, 2)).tolist() == [1, 0]
