from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from simclr_hub import SimCLRImageProcessor
from simclr_hub.image_processing_simclr import transform

OFFICIAL = Path(__file__).parent / "data" / "official" / "preprocess.npz"


@pytest.mark.parametrize("i", range(5))
@pytest.mark.parametrize("kind", ["numpy", "pil", "torch"])
def test_exact_equals_the_official_transform(i, kind):
    data = np.load(OFFICIAL)
    image, expected = data[f"image_{i}"], data[f"out_{i}"]
    given = {"numpy": image, "pil": Image.fromarray(image), "torch": torch.from_numpy(image).permute(2, 0, 1)}[kind]
    processor = SimCLRImageProcessor(size=len(expected), exact=True)
    out = processor(images=given, return_tensors="pt").pixel_values[0].permute(1, 2, 0).numpy()
    assert np.abs(out - expected).max() < 2e-6


def test_a_batch_of_mixed_shapes_keeps_its_order():
    images = [torch.randint(0, 256, (3, 40 + i % 2, 50), dtype=torch.uint8) for i in range(5)]
    together = SimCLRImageProcessor(size=33)(images=images, return_tensors="pt").pixel_values
    alone = [SimCLRImageProcessor(size=33)(images=x, return_tensors="pt").pixel_values[0] for x in images]
    assert torch.equal(together, torch.stack(alone))


def test_within_a_factor_of_two_the_default_is_exact():
    x = torch.rand(2, 3, 145, 200)  # crop 127 to 64: below 2
    assert torch.equal(transform(x, 64), transform(x, 64, exact=True))


def test_fine_patterns_alias_only_when_exact():
    stripes = torch.zeros(1, 3, 1024, 1024)
    stripes[..., ::8, :] = 1.0  # mean 1/8, far finer than the output's pixels
    assert (transform(stripes, 64) - 1 / 8).abs().max() < 0.08
    assert (transform(stripes, 64, exact=True) - 1 / 8).abs().max() > 0.3


@pytest.mark.parametrize("kind", [torch.float32, torch.uint8])
def test_large_photos_are_first_resized_to_twice_the_size(kind):
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 40, 40), (640, 640), mode="bicubic").clamp(0, 1)
    x = photo if kind == torch.float32 else (photo * 255).round().to(torch.uint8)
    crop = Image.fromarray((photo[0, :, 40:600, 40:600] * 255).round().byte().permute(1, 2, 0).numpy())
    twice = torch.from_numpy(np.array(crop.resize((128, 128), Image.Resampling.BICUBIC))).permute(2, 0, 1)[None]
    expected = transform(twice, 64, exact=True, crop_proportion=1.0)
    assert (transform(x, 64) - expected).abs().max() < 0.01
    assert (transform(x, 64, exact=True) - expected).abs().max() > 0.03


def test_the_default_hardly_depends_on_the_size_of_the_photo():
    photo = torch.nn.functional.interpolate(torch.rand(1, 3, 25, 25), (1200, 1200), mode="bicubic").clamp(0, 1)
    half = torch.nn.functional.avg_pool2d(photo, 2)
    assert (transform(photo, 64) - transform(half, 64)).abs().max() < 0.08


def test_small_sizes_take_the_image_as_it_is():
    x = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(transform(x, 32, exact=True), x.float() / 255)
    with pytest.raises(ValueError, match="40 x 32"):
        transform(torch.rand(1, 3, 40, 32), 32, exact=True)
    assert transform(torch.rand(1, 3, 40, 50), 32).shape == (1, 3, 32, 32)


def test_pil_images_are_upright_and_over_white():
    image = Image.new("RGBA", (64, 32), (255, 0, 0, 0))
    out = SimCLRImageProcessor(size=16)(images=image, return_tensors="pt").pixel_values
    assert torch.equal(out, torch.ones(1, 3, 16, 16))
    tall = Image.new("RGB", (64, 96))
    tall.paste((255, 255, 255), (0, 0, 64, 48))  # white above black
    tall.getexif()[0x0112] = 3  # stored upside down
    out = SimCLRImageProcessor(size=16)(images=tall, return_tensors="pt").pixel_values
    assert out[0, 0, 0].max() == 0 and out[0, 0, -1].min() == 1


def test_saved_options_come_back(tmp_path):
    SimCLRImageProcessor(size=96, exact=True, crop_proportion=1.0).save_pretrained(tmp_path)
    again = SimCLRImageProcessor.from_pretrained(tmp_path)
    assert (again.size["height"], again.exact, again.crop_proportion) == (96, True, 1.0)


def test_a_size_that_is_not_square_is_refused():
    with pytest.raises(ValueError, match="square"):
        SimCLRImageProcessor(size={"height": 32, "width": 64})(images=np.zeros((50, 50, 3), np.uint8))


def test_one_pixel_wide_images_have_features_too():
    for shape in ((1, 1), (1, 500), (300, 2)):
        assert transform(torch.rand(1, 3, *shape), 64).isfinite().all()


def test_the_kernel_comes_from_a_table_of_1024_offsets():
    """The fixtures' offsets all lie on the table; these do not. Written as TensorFlow's loop does it."""
    x = torch.rand(1, 3, 50, 50, generator=torch.Generator().manual_seed(0))
    a, n_in, n_out = -0.75, 50, 37

    def kernel(t):
        t = abs(t)
        return ((a + 2) * t - (a + 3)) * t * t + 1 if t <= 1 else ((a * t - 5 * a) * t + 8 * a) * t - 4 * a

    matrix = torch.zeros(n_out, n_in)
    for i in range(n_out):
        position = i * n_in / n_out
        base = int(position)
        offset = round((position - base) * 1024) / 1024
        for tap in range(-1, 3):
            matrix[i, min(max(base + tap, 0), n_in - 1)] += kernel(offset - tap)
    expected = (matrix @ x @ matrix.T).clamp(0, 1)
    got = transform(x, n_out, exact=True, crop_proportion=1.0)
    assert (got - expected).abs().max() < 2e-6


def test_what_would_become_white_is_refused_or_scaled():
    processor = SimCLRImageProcessor(size=16)
    for wrong in (
        np.full((20, 20, 3), 200.0, np.float32),
        torch.full((3, 20, 20), -1.0),
        torch.full((3, 20, 20), np.nan),
    ):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            processor(images=wrong, return_tensors="pt")
    with pytest.raises(ValueError, match="'F'"):
        processor(images=Image.fromarray(np.ones((20, 20), np.float32)), return_tensors="pt")
    deep = Image.fromarray(np.full((20, 20), 32768, np.uint16))
    assert processor(images=deep, return_tensors="pt").pixel_values.mean().item() == pytest.approx(128 / 255, abs=1e-3)
