import base64
import contextlib
import importlib.util
import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from photo_formats import encoded, jxl_of_jpeg, seeds, smooth
from picture_writers import bmp, chunk, png, pnm, tiff
from PIL import Image, ImageOps
from raw_writer import dng
from tiny import SAMPLE_PHOTOS

from simclr_hub import SimCLRImageProcessor, image_processing_simclr
from simclr_hub.errors import ImageError
from simclr_hub.images import load_image
from simclr_hub.pixels import normalize_pixels, resize_bytes, transform

DATA = Path(__file__).parent / "data"
OFFICIAL = DATA / "official" / "preprocess.npz"


@pytest.mark.parametrize("i", range(5))
@pytest.mark.parametrize("kind", ["numpy", "pil", "torch"])
def test_exact_equals_the_official_transform(i, kind):
    data = np.load(OFFICIAL)
    image, expected = data[f"image_{i}"], data[f"out_{i}"]
    given = {"numpy": image, "pil": Image.fromarray(image), "torch": torch.from_numpy(image).permute(2, 0, 1)}[kind]
    processor = SimCLRImageProcessor(size=len(expected), exact=True)
    out = processor(images=given, return_tensors="pt").pixel_values[0].permute(1, 2, 0).numpy()
    assert np.abs(out - expected).max() < 2e-6


@pytest.mark.parametrize("kernel", ["bicubic", "bilinear"])
def test_bytes_are_resized_without_torch_to_the_same_bits(kernel, monkeypatch):
    random = np.random.default_rng(0)
    for height, width in ((131, 400), (64, 64), (20, 31), (1, 513), (450, 500), (3, 2)):
        pictures = random.integers(0, 256, (2, 3, height, width), dtype=np.uint8)
        pictures[0] = (pictures[0] > 128) * 255  # overshoots
        for size in (40, 128, 13):
            mode = {"size": (size, size), "mode": kernel, "antialias": True}
            expected = torch.nn.functional.interpolate(torch.from_numpy(pictures), **mode).numpy()
            with monkeypatch.context() as patch:
                patch.delitem(sys.modules, "torch")
                patch.setitem(sys.modules, "torch.nn.functional", None)  # importing it fails
                assert np.array_equal(resize_bytes(pictures, size, kernel=kernel), expected), (height, width, size)
                channels_last = pictures.transpose(0, 2, 3, 1).copy().transpose(0, 3, 1, 2)
                assert np.array_equal(resize_bytes(channels_last, size, kernel=kernel), expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize(("shape", "size"), [((100, 90), 64), ((400, 300), 64), ((33, 40), 48), ((32, 32), 32)])
def test_arrays_and_tensors_give_the_same_bits(dtype, shape, size):
    x = np.random.default_rng(0).integers(0, 256, (2, 3, *shape)).astype(dtype)
    x = x / np.float32(255) if dtype == np.float32 else x
    for exact in (False, size > 32):
        array, tensor = (transform(y, size, exact=exact) for y in (x, torch.from_numpy(x)))
        assert array.dtype == np.float32 and np.array_equal(array, tensor.numpy())
    mean, std = (0.5, 0.4, 0.3), 0.2
    assert np.array_equal(normalize_pixels(array, mean, std), normalize_pixels(tensor, mean, std).numpy())


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
    with pytest.raises(ValueError, match="pixels from 200"):
        processor(images=Image.fromarray(np.full((20, 20), 200, np.float32)), return_tensors="pt")
    deep = Image.fromarray(np.full((20, 20), 32768, np.uint16))
    assert processor(images=deep, return_tensors="pt").pixel_values.mean().item() == pytest.approx(128 / 255, abs=1e-3)


# One photo, one answer: paths, PIL images, arrays


def values(bits: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 1 << bits, (37, 41, channels)).astype(np.uint32)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Files of all formats at hand, by name."""
    folder = tmp_path_factory.mktemp("formats")
    for path in (*(DATA / "cases").iterdir(), SAMPLE_PHOTOS / "cat_1.jpg"):
        shutil.copy(path, folder)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = exif.tobytes()
    key = chunk(b"tRNS", values(16, 3)[3, 3].astype(">u2").tobytes())
    made = {
        f"turned.{f.lower()}": encoded(smooth(), f, exif=turned)
        for f in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF")
    }
    for format, found in seeds().items():
        if format != "RAW":
            made |= {f"{i}.{format.lower()}": data for i, data in enumerate(found)}
    made |= {f"{mode}.png": encoded(smooth().convert(mode), "PNG") for mode in ("1", "L", "LA", "P", "RGB", "RGBA")}
    made |= {
        f"{mode}.tif": encoded(smooth().convert(mode), "TIFF") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK")
    }
    made |= {
        "turned.jxl": jxl_of_jpeg(made["turned.jpeg"], (96, 64)),
        "cmyk.jpg": encoded(smooth().convert("CMYK"), "JPEG"),
    }
    made |= {
        "a.gif": encoded(smooth(), "GIF"),
        "a.jp2": encoded(smooth(), "JPEG2000"),
        "a.bmp": encoded(smooth(), "BMP"),
    }
    made |= {
        "planes.tif": tiff(values(16, 3), 2, 16, planar=True), "white0.tif": tiff(values(16), 0, 16, order=">"),
        "12.tif": tiff(values(12), 1, 12), "32.tif": tiff(values(32), 1, 32, order=">", deflate=True),
        "float.tif": tiff(np.random.default_rng(0).random((9, 9, 1)).astype("f4"), 0, 32, order=">", deflate=True),
        "palette.tif": tiff(values(4), 3, 4, tags={320: tuple(range(48))}),
        "plane.tif": tiff(values(4), 1, 4, tags={284: (2,)}),
        "turned16.tif": tiff(values(16), 1, 16, tags={274: (6,)}),
        "ycc.tif": tiff(values(8, 3), 6, 8, tags={530: (1, 1), 532: (1,)}),
        "4444.bmp": bmp(values(16)[..., 0], 16, masks=(0xF00, 0xF0, 0xF, 0xF000), header=108),
        "1555.bmp": bmp(values(16)[..., 0], 16, masks=(0x7C00, 0x3E0, 0x1F, 0x8000), header=108),
        "two.bmp": bmp(values(1)[..., 0], 8, palette=np.array([[0, 0, 0], [255, 255, 255]]), used=2),
        "key2.png": png(values(2), 0, 2, before=chunk(b"tRNS", b"\0\2")),
        "key16.png": png(values(16, 3), 2, 16, before=key),
        "grey_alpha16.png": png(values(16, 2), 4, 16), "bits.pbm": pnm(values(1), 4, 1),
        "pixel.ppm": pnm(values(8, 3) % 100, 6, 99), "pixel.pgm": pnm(values(12), 5, 4095),
        "float.pfm": b"Pf\n2 2\n-1\n" + np.float32([0, 0.25, 0.5, 1]).tobytes(),
    }  # fmt: skip
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return {path.name: path for path in sorted(folder.iterdir())}


#: Of the cases, those that no door reads.
REFUSED = {"t_g16s.tif", "t_ga16.tif", "t_cmyka8.tif"}
#: Those that Pillow alone does not open.
NOT_PILLOWS = {"4444.bmp", "white0.tif", "32.tif", "png_ancillary_badcrc.png", "pil_text.png", "png_ztxt_2mb.png"}


def test_a_file_and_its_pil_image_are_equal_to_the_last_bit(files):
    processor = SimCLRImageProcessor(size=24)
    assert len(files) > 70
    for name, path in files.items():
        if name in REFUSED:
            with pytest.raises(ImageError, match=f"{name}: TIFF with .* is not read"):
                processor(images=str(path))
            continue
        expected = torch.from_numpy(transform(load_image(path).pixels[None], 24))
        for i, door in enumerate((str(path), path, path.read_bytes(), load_image(path).pixels)):
            assert torch.equal(processor(images=door, return_tensors="pt").pixel_values, expected), (name, i)
        if name in NOT_PILLOWS:
            continue
        with Image.open(path) as image:  # not loaded yet
            for _ in range(2):
                assert torch.equal(processor(images=image, return_tensors="pt").pixel_values, expected), name
        with Image.open(path) as image:
            assert np.array_equal(load_image(image).pixels, load_image(path).pixels), name


def test_a_pil_image_that_was_loaded_before(files):
    """It equals its file too, or is refused where Pillow has misread it."""
    refused = []
    for name, path in files.items():
        if name in REFUSED or name in (
            "1555.bmp",
            "two.bmp",
            "key2.png",
            "key16.png",
        ):  # Pillow's image shows no trace
            continue
        if name in NOT_PILLOWS:
            continue
        with Image.open(path) as image:
            try:
                image.load()
            except Exception:
                continue
            try:
                assert np.array_equal(load_image(image).pixels, load_image(path).pixels), name
            except ImageError as e:
                assert "give its path" in str(e)
                refused.append(name)
    assert refused == ["float.tif", "palette.tif", "plane.tif", "planes.tif", "t_rgb16_planar.tif", "ycc.tif"]


def test_other_frames_and_sizes_of_a_pil_image_are_taken_as_they_are():
    pages = [Image.new("L", (64, 64), level) for level in (200, 10)]
    for format in ("TIFF", "GIF", "PNG"):
        file = io.BytesIO()
        pages[0].save(file, format, save_all=True, append_images=pages[1:])
        image = Image.open(file)
        image.seek(1)
        assert (load_image(image).pixels == 10).all()
    with Image.open(SAMPLE_PHOTOS / "cat_1.jpg") as image:
        whole = image.size
        image.draft(None, (image.width // 2, image.height // 2))
        assert load_image(image).pixels.shape[1:] == image.size[::-1] != whole[::-1]


def test_lists_of_everything_keep_their_order(files):
    processor = SimCLRImageProcessor(size=24)
    names = ["ref.png", "turned.heif", "cat_1.jpg"]
    mixed = [str(files["ref.png"]), files["turned.heif"], Image.open(files["cat_1.jpg"])]
    alone = torch.cat([processor(images=files[name], return_tensors="pt").pixel_values for name in names])
    for given in (mixed, tuple(mixed), [mixed], [[mixed[0]], mixed[1:]]):
        assert torch.equal(processor(images=given, return_tensors="pt").pixel_values, alone)
    batch = torch.randint(0, 256, (2, 3, 30, 30), dtype=torch.uint8)
    assert torch.equal(processor(images=batch, return_tensors="pt").pixel_values, transform(batch, 24))
    assert torch.equal(
        processor(images=batch.permute(0, 2, 3, 1).numpy(), return_tensors="pt").pixel_values, transform(batch, 24)
    )
    with pytest.raises(ValueError, match="no images"):
        processor(images=[])


def test_a_data_url_is_its_file(files):
    text = base64.b64encode(files["ref.png"].read_bytes()).decode()
    processor = SimCLRImageProcessor(size=24)
    expected = processor(images=files["ref.png"], return_tensors="pt").pixel_values
    for given in ("data:image/png;base64," + text, text):
        assert torch.equal(processor(images=given, return_tensors="pt").pixel_values, expected)
    for wrong in ("AAAA", "A", "*"):
        with pytest.raises(ValueError, match="data:image/png;base64,: "):
            processor(images="data:image/png;base64," + wrong)
    with pytest.raises(ValueError, match="^<base64 text>: .{,200}$"):
        processor(images="A*" * 5000)


def test_what_is_no_image_is_one_error_that_names_it(tmp_path):
    processor = SimCLRImageProcessor(size=24)
    (tmp_path / "page.jpg").write_text("<html>")
    for path, text in (
        (tmp_path / "none.jpg", "none.jpg: no such file"),
        (tmp_path / "page.jpg", "page.jpg: not an image"),
    ):
        for given in (path, str(path), [path]):
            with pytest.raises(ImageError, match=text):
                processor(images=given)
    with pytest.raises(TypeError, match="int"):
        processor(images=3)
    cut = Image.open(io.BytesIO(encoded(smooth((240, 160)), "PNG")[:600]))
    with pytest.raises(ValueError, match="PIL image.*truncated"):
        processor(images=cut)


@pytest.fixture
def travelled(tmp_path, monkeypatch):
    """The processor as the Hub's code, where this package is not installed."""
    from simclr_hub.training.stage import CODE

    for name in CODE:
        shutil.copy(Path(image_processing_simclr.__file__).with_name(name), tmp_path)
    (tmp_path / "__init__.py").touch()
    spec = importlib.util.spec_from_file_location(
        "travelled", tmp_path / "__init__.py", submodule_search_locations=[str(tmp_path)]
    )
    package = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "travelled", package)
    monkeypatch.setitem(sys.modules, "simclr_hub.images", None)  # an ImportError
    yield importlib.import_module("travelled.image_processing_simclr")
    for name in [name for name in sys.modules if name.startswith("travelled")]:
        sys.modules.pop(name)


def test_as_remote_code_without_this_package_the_bits_are_the_same(files, travelled, tmp_path):
    theirs, equal = travelled.SimCLRImageProcessor(size=24), 0
    for name, path in files.items():
        given: list[Any] = [str(path), path]
        if name in REFUSED or path.suffix in (".heif", ".heic", ".jxl"):
            words = "is not read" if name in REFUSED else "needs the package simclr-hub"
            for x in given:
                with pytest.raises(ValueError, match=f"{name}: .*{words}"):
                    theirs(images=x)
            continue
        expected = torch.from_numpy(transform(load_image(path).pixels[None], 24))
        with contextlib.ExitStack() as stack:
            given += [] if name in NOT_PILLOWS else [stack.enter_context(Image.open(path))]
            for x in given:
                assert torch.equal(theirs(images=x, return_tensors="pt").pixel_values, expected), name
                equal += 1
    assert equal > 180
    for name, data in (("a.dng", dng(smooth())), ("a.nef", encoded(smooth(), "TIFF")), ("a.tif", dng(smooth()))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name}: camera RAW needs the package simclr-hub"):
            theirs(images=tmp_path / name)
    with pytest.raises(ValueError, match="https://example.org/a.jpg: reading a URL needs"):
        theirs(images="https://example.org/a.jpg")
    with pytest.raises(ValueError, match="none.jpg"):
        theirs(images=str(tmp_path / "none.jpg"))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "float32", "float64", "float16"])
def test_arrays_are_what_load_image_makes_of_them(kind, channels):
    random = np.random.default_rng(0)
    if kind.startswith("f"):
        array = random.random((40, 50, channels)).astype(kind)
    else:
        array = random.integers(0, np.iinfo(kind).max, (40, 50, channels), endpoint=True).astype(kind)
    expected = torch.from_numpy(transform(load_image(array).pixels[None], 24))
    processor = SimCLRImageProcessor(size=24)
    given = [array, np.asfortranarray(array), torch.from_numpy(array).permute(2, 0, 1), array.transpose(2, 0, 1)]
    if kind != "uint8":
        given.append(array.astype(array.dtype.newbyteorder(">")))
    if channels == 1:
        given += [array[..., 0], torch.from_numpy(array[..., 0])]
    array.flags.writeable = False
    for x in given:
        assert torch.equal(processor(images=x, return_tensors="pt").pixel_values, expected)
    if kind == "uint16":
        eight = processor(images=np.rint(array / 257).astype(np.uint8), return_tensors="pt").pixel_values
        assert torch.equal(eight, expected)
    last = processor(images=array[:4, :3], return_tensors="pt", input_data_format="channels_last").pixel_values
    assert np.array_equal(last, transform(load_image(array[:4, :3]).pixels[None], 24))


def test_alpha_of_bytes_is_composed_as_pillow_does():
    colours, alpha = np.meshgrid(np.arange(256), np.arange(256))
    rgba = np.stack([colours, 255 - colours, colours // 2, alpha], -1).astype(np.uint8)
    image = Image.alpha_composite(Image.new("RGBA", (256, 256), "white"), Image.fromarray(rgba)).convert("RGB")
    assert np.array_equal(load_image(rgba).pixels.transpose(1, 2, 0), np.asarray(image))


@pytest.mark.parametrize(
    "kind", ["int8", "int16", "int32", "int64", "uint32", "uint64", "bool", "complex64", "longdouble"]
)
def test_other_types_are_one_error(kind):
    array = np.zeros((20, 20, 3), kind)
    for given in (array, *([torch.from_numpy(array).permute(2, 0, 1)] if kind != "longdouble" else [])):
        for call in (SimCLRImageProcessor(size=16), load_image):
            with pytest.raises(ValueError, match=f"uint8, uint16, or float in .0, 1., not {array.dtype}"):
                call(given)


def test_other_shapes_are_one_error():
    for shape in ((5,), (20, 20, 2), (2, 20, 20, 5), (0, 20, 3)):
        with pytest.raises(ValueError, match="shape"):
            SimCLRImageProcessor(size=16)(images=np.zeros(shape, np.uint8))


def test_wide_pil_images_by_what_is_white():
    ramp = np.linspace(0, 65535, 300).astype(np.int32)[None].repeat(2, 0)
    expected = np.rint(ramp[0] / 257)
    for image in (Image.fromarray(ramp), Image.fromarray(ramp.astype(np.uint16))):
        assert np.array_equal(load_image(image).pixels[0, 0], expected)
        assert load_image(Image.fromarray((ramp // 300).astype(ramp.dtype))).pixels.max() == 1  # dark stays dark
    for wrong in (ramp * 2, ramp - 5):
        with pytest.raises(ImageError, match="65535 would be white"):
            load_image(Image.fromarray(wrong.astype(np.int32)))


# Options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("do_resize", False), ("do_center_crop", False), ("do_convert_rgb", False), ("do_rescale", False),
        ("crop_size", 32), ("pad_size", 32), ("do_pad", True), ("resample", 2), ("resample", 0),
        ("rescale_factor", 1.0), ("rescale_factor", 1 / 127.5), ("data_format", "channels_last"), ("image_mean", 0.5),
        ("image_std", [0.5, 0.5, 0.5]), ("do_normalize", True),
    ],
)  # fmt: skip
def test_what_would_change_nothing_is_refused_by_name(option, value, tmp_path):
    photo = np.zeros((50, 60, 3), np.uint8)
    with pytest.raises(ValueError, match=option):
        SimCLRImageProcessor(size=32)(images=photo, **{option: value})
    with pytest.raises(ValueError, match=option):
        SimCLRImageProcessor(size=32, **{option: value})
    SimCLRImageProcessor(size=32).save_pretrained(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {option: value}))
    with pytest.raises(ValueError, match=option):
        SimCLRImageProcessor.from_pretrained(tmp_path)


def test_options_that_ask_for_the_official_transform_are_taken():
    photo = Image.open(SAMPLE_PHOTOS / "cat_1.jpg")
    expected = SimCLRImageProcessor(size=32)(images=photo, return_tensors="pt").pixel_values
    same = {
        "do_resize": True, "do_center_crop": True, "do_convert_rgb": True, "do_rescale": True, "resample": 3,
        "rescale_factor": 1 / 255, "do_pad": False, "data_format": "channels_first", "do_normalize": False,
    }  # fmt: skip
    for options in (same, {name: None for name in same}):
        assert torch.equal(
            SimCLRImageProcessor(size=32)(images=photo, return_tensors="pt", **options).pixel_values, expected
        )
        again = SimCLRImageProcessor(size=32, **options)
        assert torch.equal(again(images=photo, return_tensors="pt").pixel_values, expected)
    with_mean = SimCLRImageProcessor(size=32, do_normalize=True, image_mean=0.5, image_std=0.5)
    halved = with_mean(images=photo, return_tensors="pt", image_mean=0.25).pixel_values
    assert torch.equal(halved, (expected - 0.25) / 0.5)
    floats = torch.rand(3, 40, 40)
    scaled = SimCLRImageProcessor(size=32)(images=floats, do_rescale=False, return_tensors="pt").pixel_values
    assert torch.equal(scaled, transform(floats[None], 32))


def test_orientation_alpha_and_16_bits_of_a_pil_image_are_those_of_the_file(files):
    processor = SimCLRImageProcessor(size=24)
    for name in ("o6.webp", "half_alpha.png", "png16_gray.png", "src.avif", "src.bmp", "src.tif", "turned.png"):
        image = ImageOps.exif_transpose(Image.open(files[name]))
        first = processor(images=files[name], return_tensors="pt").pixel_values
        assert torch.equal(first, processor(images=image, return_tensors="pt").pixel_values), name
        assert first.min() < 0.5, name
