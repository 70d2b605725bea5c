import itertools
import pickle
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from augmentation_helpers import ks_limit, ks_statistic, random_images
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from simclr_hub.images import load_image
from simclr_hub.training import augmentations, operations
from simclr_hub.training.augmentations import Views
from simclr_hub.training.operations import resize
from simclr_hub.training.transforms import Blur, Crop, Cutout, Flip, Greyscale, Jitter, Noise, Rotate, Sometimes

EVERYTHING = ["crop", "flip", "jitter", "greyscale", "blur", "rotate", "cutout", "sobel"]
SAMPLE = files("simclr_hub") / "assets" / "sample-photos" / "coffee_1.jpg"


def photo() -> Tensor:
    """A sample photo (3, 127, 192), uint8."""
    return torch.from_numpy(load_image(str(SAMPLE)).pixels)


def test_views_repeat_under_a_seed_and_stay_in_range() -> None:
    views, images = Views(12, blur_p=1), random_images(64)
    torch.manual_seed(3)
    first, other = views(images), views(images)
    torch.manual_seed(3)
    assert torch.equal(views(images), first)
    torch.manual_seed(3)
    a, b = views.pair(images)  # the same draws as two calls
    assert torch.equal(a, first) and torch.equal(b, other)
    assert not torch.equal(other, first)
    assert first.shape == (64, 3, 12, 12) and first.dtype == torch.float32
    assert first.min() >= 0 and first.max() <= 1


def test_the_official_pipeline_step_by_step() -> None:
    """The whole pipeline against its draws applied one by one to one sample, as OFFICIAL code orders them."""
    images, views = random_images(40, 60, 70), Views(40, strength=0.9)
    torch.manual_seed(0)
    boxes = views._operations[0].draw(40, 60, 70)
    flip, jitter, grey, blur = (operation.draw(40, 40, 40) for operation in views._operations[1:])
    torch.manual_seed(0)
    out = views(images)
    colour = (
        operations.adjust_brightness,
        operations.adjust_contrast,
        operations.adjust_saturation,
        operations.adjust_hue,
    )
    for i in range(40):
        x = resize(images[i : i + 1], boxes[i : i + 1], 40)
        x = x.flip(-1) if flip[i, 0] else x
        if jitter[i, 0]:
            order, values = jitter[i, 1:5], jitter[i, 5:]
            for k in order.argsort().tolist():
                x = colour[k](x, values[k : k + 1])
        x = operations.to_greyscale(x) if grey[i, 0] else x
        x = x.clamp(0, 1)
        x = operations.gaussian_blur(x, blur[i, 1:], 4).clamp(0, 1) if blur[i, 0] else x
        torch.testing.assert_close(out[i : i + 1], x, rtol=0, atol=2e-6)
    assert 0 < blur[:, 0].sum() < 40 and 0 < grey[:, 0].sum() < 40 and 0 < flip[:, 0].sum() < 40
    assert len(blur[:, 1].unique()) == 1  # one sigma a batch and view
    assert not torch.equal(blur, views._operations[4].draw(40, 40, 40))


def test_the_defaults_and_keys_are_the_official_pipeline() -> None:
    strengths = (0.8, 0.8, 0.8, 0.2)
    assert Views(224)._operations == [
        Crop(size=224, area=(0.08, 1.0), aspect=(3 / 4, 4 / 3), resample="bicubic"),
        Flip(p=0.5),
        Jitter(strengths=strengths, strength=1.0, brightness="multiply", p=0.8),
        Greyscale(p=0.2),
        Blur(sigma=(0.1, 2.0), sigma_per="batch", p=0.5),
    ]
    cifar = Views(32, strength=0.5, blur_p=0)._operations
    assert cifar[2:] == [Jitter(strengths=strengths, strength=0.5, p=0.8), Greyscale(p=0.2)]
    own = Views(32, resample="bilinear", area=(0.2, 1), jitter_p=0.3, brightness="add", greyscale_p=0.1, blur_p=0.4)
    assert own._operations == [
        Crop(size=32, area=(0.2, 1), resample="bilinear"),
        Flip(),
        Jitter(brightness="add", p=0.3),
        Greyscale(p=0.1),
        Blur(p=0.4),
    ]


@pytest.mark.parametrize(
    ("operation", "p"),
    [(Flip(), 0.5), (Jitter(), 0.8), (Greyscale(), 0.2), (Blur(), 0.5), (Rotate(), 1), (Noise(), 1)],
)
def test_each_sample_undergoes_an_operation_with_its_probability(operation: Sometimes, p: float) -> None:
    torch.manual_seed(0)
    active = operation.draw(4000, 32, 32)[:, 0]
    assert set(active.tolist()) <= {0.0, 1.0}
    assert active.mean().item() == pytest.approx(p, abs=0.025)


def test_jitter_draws_as_the_official_code() -> None:
    torch.manual_seed(0)
    n = 12_000
    order, values = Jitter(strength=0.75).draw(n, 32, 32)[:, 1:].split(4, 1)
    limits = [(0.4, 1.6), (0.4, 1.6), (0.4, 1.6), (-0.15, 0.15)]
    for drawn, (low, high) in zip(values.T.numpy(), limits, strict=True):
        assert low <= drawn.min() and drawn.max() <= high
        uniform = np.linspace(low, high, 10_000)
        assert ks_statistic(drawn, uniform) < ks_limit(n, len(uniform))
    # Each sample's own order, each of the 24 as likely: chi-square with 23 degrees of freedom, p = 0.001 at 49.7.
    counts = [(order == torch.tensor(o)).all(1).sum().item() for o in itertools.permutations((0.0, 1.0, 2.0, 3.0))]
    assert sum(counts) == n and sum((count - n / 24) ** 2 / (n / 24) for count in counts) < 49.7
    strong = Jitter(strengths=(1.2, 1, 1), brightness="add").draw(n, 32, 32)[:, 4:]
    assert strong.shape[1] == 3  # no hue
    assert -1.2 <= strong[:, 0].min() < -1.19 and 1.19 < strong[:, 0].max() <= 1.2
    factor = Jitter(strengths=(1.2, 1, 1)).draw(n, 32, 32)[:, 4]
    assert 0 <= factor.min() < 0.01 and 2.19 < factor.max() <= 2.2


def test_brightness_is_added_in_the_papers_version() -> None:
    black = torch.zeros(64, 3, 8, 8, dtype=torch.uint8)
    keys: dict[str, Any] = {"jitter": (0.8, 0, 0), "jitter_p": 1, "greyscale_p": 0}
    torch.manual_seed(0)
    assert Views(8, **keys)(black).max() == 0
    assert Views(8, **keys, brightness="add")(black).max() > 0.7


@pytest.mark.parametrize("p", [0.5, 1.0])
def test_each_sample_draws_its_own_parameters(p: float, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[Tensor]] = {}

    def record(name: str) -> Callable[[Tensor, Tensor], Tensor]:
        operation = getattr(operations, name)

        def recorded(x: Tensor, factor: Tensor) -> Tensor:
            assert len(x) == len(factor)
            seen.setdefault(name, []).append(factor)
            result: Tensor = operation(x, factor)
            return result

        return recorded

    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    for name in names:
        monkeypatch.setattr(operations, name, record(name))
    torch.manual_seed(0)
    n = 2000
    images = random_images(1).expand(n, -1, -1, -1)
    out = Views(16, area=(1.0, 1.0), jitter=(0.4, 0.8, 1.2, 0.1), jitter_p=p, greyscale_p=0.25)(images)
    for name, low, high in zip(names, (0.6, 0.2, 0.0, -0.1), (1.4, 1.8, 2.2, 0.1), strict=True):
        factors = torch.cat(seen[name])
        assert len(factors) / n == pytest.approx(p, abs=0.04)
        assert len(factors.unique()) > 0.99 * len(factors)
        assert low <= factors.min() < low + 0.02 and high - 0.02 < factors.max() <= high
    grey = (out - out[:, :1]).abs().amax((1, 2, 3)) < 1e-6
    assert grey.float().mean().item() == pytest.approx(0.25, abs=0.04)


def test_blur_draws_a_sigma_per_batch_or_per_sample() -> None:
    torch.manual_seed(0)
    batches = torch.stack([Blur().draw(3, 32, 32)[:, 1] for _ in range(2000)])
    assert (batches == batches[:, :1]).all()
    samples = Blur(sigma_per="sample").draw(2000, 32, 32)[:, 1]
    uniform = np.linspace(0.1, 2.0, 10_000)
    for sigma in (batches[:, 0], samples):
        assert ks_statistic(sigma.numpy(), uniform) < ks_limit(2000, 10_000)


def test_rotation_and_cutout_draw_evenly() -> None:
    torch.manual_seed(0)
    quarters = Rotate().draw(4000, 32, 32)[:, 1]
    assert torch.bincount(quarters.long()).tolist() == pytest.approx([1000] * 4, abs=100)
    assert set(Rotate(angles=(90, 270)).draw(100, 32, 32)[:, 1].tolist()) == {1, 3}
    black = Views(40, operations=["resize", {"cutout": {"side": 0.3, "value": 0}}])(
        torch.full((50, 3, 40, 40), 255, dtype=torch.uint8)
    )
    assert (black == 0).sum((1, 2, 3)).max() == 3 * 12**2  # 0.3 of 40 pixels
    centres = Cutout().draw(4000, 10, 20)[:, 1:].long()
    assert centres.amin(0).tolist() == [0, 0] and centres.amax(0).tolist() == [9, 19]
    assert torch.bincount(centres[:, 1]).tolist() == pytest.approx([200] * 20, abs=60)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
def test_pieces_of_any_size_give_the_same_views(resample: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images, views = random_images(33, 40, 40), Views(40, resample=resample, operations=EVERYTHING)
    results = []
    for pixels in (1, 40 * 40 * 7, 10**9):
        monkeypatch.setattr(augmentations, "CPU_PIXELS", pixels)
        torch.manual_seed(0)
        results.append(views(images))
    torch.testing.assert_close(results[1], results[0], rtol=0, atol=2e-6)
    torch.testing.assert_close(results[2], results[0], rtol=0, atol=2e-6)


def test_autocast_does_not_change_views() -> None:
    images, views = random_images(16, 40, 40), Views(40, operations=EVERYTHING)
    torch.manual_seed(0)
    expected = views(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        out = views(images)
    assert out.dtype == torch.float32 and torch.equal(out, expected)


def test_resample_chooses_the_kernel() -> None:
    images = random_images(4, 30, 20)
    boxes = torch.tensor([[0, 0, 30, 20]] * 4)
    bicubic = Views(8, operations=["resize"])(images)
    torch.testing.assert_close(bicubic, resize(images, boxes, 8).clamp(0, 1), rtol=0, atol=0)
    bilinear = Views(8, resample="bilinear", operations=["resize"])(images)
    torch.testing.assert_close(bilinear, resize(images, boxes, 8, "bilinear"), rtol=0, atol=0)


def test_several_views_are_drawn_as_two_are() -> None:
    images = random_images(3, 40, 30)
    torch.manual_seed(0)
    several = Views(16, count=4).batch(images)
    assert several.shape == (4, 3, 3, 16, 16)
    assert len({view.numpy().tobytes() for view in several.flatten(0, 1)}) == 12
    torch.manual_seed(0)
    pair = Views(16).pair(images)
    torch.manual_seed(0)
    assert torch.equal(Views(16).batch(images), torch.stack(pair))


def test_a_schedule_changes_size_and_area_over_the_run() -> None:
    views = Views(16, sizes=[{"from": 0.5, "size": 24}, {"from": 0.8, "area": [0.5, 1.0]}])
    found = [(views.at(p).size, tuple(views.at(p).area)) for p in (0, 0.49, 0.5, 0.79, 0.8, 1.0)]
    assert found == [(16, (0.08, 1.0))] * 2 + [(24, (0.08, 1.0))] * 2 + [(24, (0.5, 1.0))] * 2
    torch.manual_seed(0)
    later = views.at(0.9).batch(random_images(2, 40, 30))
    torch.manual_seed(0)
    assert torch.equal(later, Views(24, area=(0.5, 1.0)).batch(random_images(2, 40, 30)))
    assert views.describe().startswith("16 px bicubic, from 50% of the run 24 px, from 80% of the run 24 px")


def test_one_branch_leaves_the_other_as_it_was_cropped() -> None:
    """A cell of the v1 paper's figure 5: both views share a crop, one of them goes on."""
    images = random_images(32, 20, 20)
    views = Views(
        12, shared=["crop"], operations=[{"rotate": {"angles": [180]}}, {"cutout": {"p": 0}}], one_branch=True
    )
    torch.manual_seed(0)
    a, b = views.pair(images)
    torch.manual_seed(0)
    crop = views._shared[0].draw(32, 20, 20)
    assert torch.equal(b, resize(images, crop, 12).clamp(0, 1))
    assert torch.equal(a, b.flip(2, 3))
    both = Views(12, shared=["crop"], operations=["jitter"], one_branch=False)
    a, b = both.pair(images)
    assert not torch.equal(a, b)
    again = Views(12, shared=["crop"], operations=["crop"], one_branch=True)
    a, b = again.pair(images)
    assert a.shape == b.shape and not torch.equal(a, b)


def test_every_cell_of_the_papers_figure_5_runs() -> None:
    torch.manual_seed(0)
    images = random_images(3, 32, 32)
    kinds = ("crop", "cutout", "jitter", "sobel", "noise", "blur", "rotate")
    for first, second in itertools.product(kinds, repeat=2):
        chosen = [first] if first == second else [first, second]  # the diagonal: one operation alone
        a, b = Views(24, shared=["crop"], operations=chosen, one_branch=True, jitter_p=1, blur_p=1).pair(images)
        assert not torch.equal(a, b) and a.min() >= 0 and a.max() <= 1, chosen


def test_an_operation_takes_the_sections_keys_and_overrides_them() -> None:
    views = Views(
        16,
        jitter=(0.4, 0.4, 0.4),
        jitter_p=0.3,
        area=(0.2, 0.9),
        operations=["crop", {"jitter": {"p": 1}}, {"crop": {"area": [0.5, 1]}}, {"flip": None}, Greyscale(p=0.7)],
    )
    crop, jitter, second, flip, grey = views._operations
    assert (crop.area, second.area, second.size) == ((0.2, 0.9), [0.5, 1], 16)  # type: ignore[union-attr]
    assert jitter == Jitter(strengths=(0.4, 0.4, 0.4), p=1)
    assert flip == Flip(p=0.5) and grey == Greyscale(p=0.7)
    assert views.describe() == ("16 px bicubic; each view crop, jitter, crop, flip (p 0.5), greyscale (p 0.7)")


def test_views_without_anything_but_crop_keep_the_colours() -> None:
    images = torch.full((8, 3, 16, 16), 51, dtype=torch.uint8)
    out = Views(8, jitter=(0, 0, 0), jitter_p=0, greyscale_p=0)(images)
    torch.testing.assert_close(out, torch.full((8, 3, 8, 8), 0.2))
    out = Views(8, jitter=(0, 0, 0), jitter_p=1, greyscale_p=0)(images)
    torch.testing.assert_close(out, torch.full((8, 3, 8, 8), 0.2))


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 0},
        {"resample": "cubic"},
        {"area": (0.5,)},
        {"area": (0.0, 1.0)},
        {"area": (0.8, 0.2)},
        {"strength": -1},
        {"jitter": (0.4, 0.4)},
        {"jitter": (0.4, 0.4, -1)},
        {"jitter_p": 1.5},
        {"brightness": "subtract"},
        {"greyscale_p": -0.1},
        {"blur_p": 2},
        {"operations": "crop"},
        {"size": "large"},
        {"size": 8.5},
        {"area": "large"},
        {"area": ["a", "b"]},
        {"jitter": 0.4},
        {"jitter_p": "often"},
        {"strength": None},
        {"count": 1},
        {"count": 2.5},
        {"sizes": "large"},
        {"sizes": 3},
    ],
)
def test_views_refuse_values_out_of_range(wrong: dict[str, Any]) -> None:
    [(name, value)] = wrong.items()
    with pytest.raises(ValueError) as e:
        Views(**{"size": 8, **wrong})
    assert f"{name}={value!r}" in str(e.value)


@pytest.mark.parametrize(
    ("sizes", "named"),
    [
        ([{"size": 24}], r"\{'size': 24\} needs from"),
        ([{"from": 0.5, "side": 24}], "'side': 24"),
        ([{"from": 0, "size": 24}], "from=0 must lie between"),
        ([{"from": "0.5", "size": 24}], "from='0.5' must lie between"),
        ([{"from": 0.5, "size": 24}, {"from": 0.5, "size": 32}], "each above the one before"),
        ([{"from": 0.5, "size": 0}], "size=0"),
    ],
)
def test_a_schedule_that_is_none_is_named(sizes: list[Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Views(8, sizes=sizes)


@pytest.mark.parametrize(
    ("entry", "named"),
    [
        ("blurr", "unknown operation 'blurr'; there are crop"),
        ({"blur": {"sigmas": 1, "q": 2}}, "blur: unknown key q, sigmas; it has p, sigma, sigma_per"),
        ({"blur": {"sigma": [0, 1]}}, r"blur: sigma=\[0, 1\] must be"),
        ({"blur": {"sigma_per": "image"}}, "blur: sigma_per='image' must be one of batch, sample"),
        ({"blur": {"p": -1}}, "blur: p=-1 is not a probability"),
        ({"blur": 3}, "blur must have keys, not 3"),
        ({"blur": {}, "flip": {}}, "must be a name, or one name with its keys"),
        (3, "operation 3 must be a name"),
        ({"crop": {"size": 4}}, "crop: unknown key size; it has resample, area, aspect"),
        ({"crop": {"aspect": [2, 1]}}, r"crop: aspect=\[2, 1\] must be"),
        ({"rotate": {"angles": [45]}}, "rotate: angles=45 must be one of 0, 90, 180, 270"),
        ({"rotate": {"angles": []}}, r"rotate: angles=\[\] must name"),
        ({"cutout": {"side": 0}}, "cutout: side="),
        ({"cutout": {"value": 2}}, "cutout: value=2"),
        ({"noise": {"std": [0.2, 0.1]}}, r"noise: std=\[0.2, 0.1\]"),
        ({"jitter": {"strength": -1}}, "jitter: strength=-1"),
    ],
)
def test_unknown_and_wrong_operations_are_named(entry: Any, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        Views(8, operations=["crop", entry])


def test_a_pipeline_starts_with_crop_or_resize_and_one_branch_needs_something_shared() -> None:
    for operations_ in ([], ["flip"], ["jitter", "crop"]):
        with pytest.raises(ValueError, match="the first must be crop or resize"):
            Views(8, operations=operations_)
    with pytest.raises(ValueError, match=r"one_branch=True needs shared=\[crop\]"):
        Views(8, one_branch=True)


@pytest.mark.parametrize("recipe", sorted((files("simclr_hub.training") / "recipes").iterdir()), ids=lambda p: p.stem)
def test_the_views_of_every_recipe_can_be_drawn(recipe: Path) -> None:
    views = Views(**{"size": 24, **yaml.safe_load(recipe.read_text())["views"]})  # 24: where it is the model's own
    torch.manual_seed(0)
    out = views.of_image(random_images(1, 80, 70)[0])
    assert out.shape == (views.count, 3, views.size, views.size)


def test_the_default_recipe_leaves_hue_and_blur_out() -> None:
    path = files("simclr_hub.training") / "recipes" / "tiny_imagenet_default.yaml"
    views = Views(**yaml.safe_load(path.read_text())["views"])
    assert views.describe() == (
        "32 px bilinear, from 70% of the run 48 px; 4 views; each view crop, flip (p 0.5), jitter (p 0.8)"
    )
    assert views._operations[2] == Jitter(strengths=[0.4, 0.4, 0.4], p=0.8)


def drawn_parameters(monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> dict[str, np.ndarray]:
    """Every parameter of every operation that was drawn during `run`, the boxes too."""
    seen: dict[str, list[Tensor]] = {}
    draw = Views._draw

    def recorded(self: Views, *args: Any, **kwargs: Any) -> Any:
        steps = draw(self, *args, **kwargs)
        for operation, drawn in steps:
            seen.setdefault(type(operation).__name__, []).append(drawn)
        return steps

    with monkeypatch.context() as patch:
        patch.setattr(Views, "_draw", recorded)
        run()
    return {
        f"{name} {k}": column
        for name, drawn in seen.items()
        for k, column in enumerate(torch.cat(drawn).double().numpy().T)
    }


def test_workers_and_device_draw_from_the_same_distributions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kolmogorov-Smirnov on every parameter and on what the views look like; all channels of all samples count."""
    n = 600
    red, green = torch.meshgrid(torch.linspace(40, 240, 90), torch.linspace(20, 200, 120), indexing="ij")
    image = torch.stack([red, green, 255 - red]).byte()  # slopes, so that a view shows where it was cut out
    views = Views(20, operations=[*EVERYTHING[:4], {"blur": {"sigma_per": "sample"}}, "rotate", "cutout"])
    outputs: dict[str, Tensor] = {}

    def workers() -> None:
        outputs["workers"] = torch.cat([views.of_image(image) for _ in range(n // 2)])

    def device() -> None:
        outputs["device"] = views(image.expand(n, -1, -1, -1))

    torch.manual_seed(0)
    drawn = [drawn_parameters(monkeypatch, run) for run in (workers, device)]
    assert drawn[0].keys() == drawn[1].keys() and len(drawn[0]) == 4 + 1 + 9 + 1 + 2 + 2 + 3
    for name, values in drawn[0].items():
        assert ks_statistic(values, drawn[1][name]) < ks_limit(n, n), name

    def looks(x: Tensor) -> dict[str, np.ndarray]:
        middle = x[:, :, 6:14, 6:14].mean((2, 3))
        statistics = torch.cat([x.mean((2, 3)), x.std((2, 3)), middle], 1)
        return {str(i): column for i, column in enumerate(statistics.numpy().T)}

    worker_looks, device_looks = looks(outputs["workers"]), looks(outputs["device"])
    for name, values in worker_looks.items():
        assert ks_statistic(values, device_looks[name]) < ks_limit(n, n), name
    # The test has power: weaker jitter, or larger crops, are told apart.
    for other in ({"strength": 0.5}, {"area": (0.5, 1)}):
        different = looks(Views(20, **other, operations=views.operations)(image.expand(n, -1, -1, -1)))
        assert max(ks_statistic(values, worker_looks[name]) for name, values in different.items()) > ks_limit(n, n)


class Photos(Dataset[Tensor]):
    """The views of one photo in images of three sizes."""

    def __init__(self, views: Views):
        self.images = [photo(), photo()[:, :90], photo()[:, :, 20:101]]
        self.views = views

    def __len__(self) -> int:
        return 12

    def __getitem__(self, i: int) -> Tensor:
        return self.views.of_image(self.images[i % 3])


def test_data_loader_workers_draw_their_own_views_and_repeat_under_a_seed() -> None:
    def epoch() -> Tensor:
        return torch.cat(list(DataLoader(Photos(Views(16)), batch_size=3, num_workers=2)))  # (12, 2, 3, 16, 16)

    torch.manual_seed(0)
    first, second = epoch(), epoch()
    torch.manual_seed(0)
    assert torch.equal(epoch(), first)
    assert not torch.equal(second, first)
    assert len(first.flatten(0, 1).flatten(1).unique(dim=0)) == 24  # no two views are alike, in no two workers


def test_views_can_be_sent_to_a_process() -> None:
    views = Views(16, operations=["crop", {"blur": {"p": 1}}])
    copy = pickle.loads(pickle.dumps(views))
    image = random_images(1)[0]
    torch.manual_seed(0)
    expected = views.of_image(image)
    torch.manual_seed(0)
    assert torch.equal(copy.of_image(image), expected)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_views() -> None:
    images, views = random_images(64, 64, 64), Views(48, operations=[*EVERYTHING, "noise"])
    torch.manual_seed(0)
    expected = views(images)
    torch.manual_seed(0)
    out = views(images.cuda()).cpu()
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4)
