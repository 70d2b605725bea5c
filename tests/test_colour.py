import io
import random
import struct

import numpy as np
import pytest
from photo_formats import encoded, jxl_of_jpeg, smooth
from PIL import Image, ImageCms

from simclr_hub import pixels
from simclr_hub.images import load_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(65536 * value) for value in values))


def profile(primaries, gamma=None, space=b"RGB ", kind=b"mntr") -> bytes:
    """A matrix profile by its D50-adapted primaries, with sRGB's curve or a power."""
    curve = b"para\0\0\0\0" + (
        struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
        if gamma is None
        else struct.pack(">HH", 0, 0) + fixed(gamma)
    )
    white = (0.9642, 1, 0.8249)
    name = b"desc\0\0\0\0" + struct.pack(">I", 2) + b"x\0" + bytes(79)
    tags = {b"wtpt": b"XYZ \0\0\0\0" + fixed(*white), b"desc": name}
    if space == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for key, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), primaries, strict=True):
            tags[key] = b"XYZ \0\0\0\0" + fixed(*xyz)
        tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve)
    start, table, body = 132 + 12 * len(tags), b"", b""
    for key, value in tags.items():
        value += bytes(-len(value) % 4)
        table += key + struct.pack(">II", start + len(body), len(value))
        body += value
    header = struct.pack(">I4sI4s4s4s", start + len(body), b"lcms", 0x04000000, kind, space, b"XYZ ") + bytes(12)
    header = (header + b"acsp" + bytes(28) + fixed(*white)).ljust(128, b"\0")
    return header + struct.pack(">I", len(tags)) + table + body


P3 = profile(((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)))
SRGB_BY_HAND = profile(((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)))
SRGB_ROUNDED = profile(((0.4365, 0.2220, 0.0139), (0.3850, 0.7170, 0.0971), (0.1431, 0.0606, 0.7139)))
GREY_GAMMA_1 = profile((), gamma=1.0, space=b"GRAY")


def in_p3(image: Image.Image) -> Image.Image:
    """The same colours by P3's numbers."""
    return ImageCms.profileToProfile(image, ImageCms.createProfile("sRGB"), io.BytesIO(P3))


@pytest.fixture
def picture():
    return Image.fromarray(np.asarray(smooth()) // 2 + 64)  # inside both gamuts


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF", "HEIF", "JXL", "JXL of a JPEG"])
def test_the_same_colours_from_wide_gamut_files_of_every_format(format, picture):
    data = encoded(in_p3(picture), "JPEG" if "JXL" in format else format, icc_profile=P3)
    if "JXL" in format:  # whose writer in Pillow leaves the profile out
        data = jxl_of_jpeg(data, picture.size, reconstructible=format != "JXL")
    expected = np.asarray(picture, np.float32).transpose(2, 0, 1)
    taken_as_srgb = np.asarray(in_p3(picture), np.float32).transpose(2, 0, 1)
    loaded = load_image(data).pixels.astype(np.float32)
    assert np.abs(loaded - expected).mean() < 2 < np.abs(taken_as_srgb - expected).mean()


def test_srgb_profiles_change_no_bit(picture):
    every_colour = pixels._probe("RGB")
    changed = ImageCms.profileToProfile(every_colour, io.BytesIO(SRGB_ROUNDED), ImageCms.createProfile("sRGB"))
    assert np.abs(np.asarray(changed, int) - np.asarray(every_colour, int)).max() == 2  # if it were applied
    for image in (picture, every_colour):
        plain = load_image(encoded(image, "PNG")).pixels
        for srgb in (SRGB, SRGB_BY_HAND, SRGB_ROUNDED):
            assert np.array_equal(load_image(encoded(image, "PNG", icc_profile=srgb)).pixels, plain)
    jpeg = load_image(encoded(picture, "JPEG", icc_profile=SRGB)).pixels
    assert np.array_equal(jpeg, load_image(encoded(picture, "JPEG")).pixels)


def test_grey_profiles():
    ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
    linear = load_image(encoded(ramp, "PNG", icc_profile=GREY_GAMMA_1)).pixels[0, 0]
    assert linear[0] == 0 and linear[255] == 255 and abs(int(linear[55]) - 128) <= 2  # 0.2158 linear is half of sRGB
    assert load_image(encoded(ramp.convert("RGB"), "PNG", icc_profile=GREY_GAMMA_1)).pixels[0, 0, 100] == 100


def test_transparency_and_palettes_with_a_profile(picture):
    wide = in_p3(picture)
    opaque = load_image(encoded(wide, "PNG", icc_profile=P3)).pixels
    assert np.array_equal(load_image(encoded(wide.convert("RGBA"), "PNG", icc_profile=P3)).pixels, opaque)
    few = wide.quantize(16)
    expected = load_image(encoded(few.convert("RGB"), "PNG", icc_profile=P3)).pixels
    assert np.array_equal(load_image(encoded(few, "PNG", icc_profile=P3)).pixels, expected)
    clear = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    assert (load_image(encoded(clear, "PNG", icc_profile=P3)).pixels == 255).all()


def test_profiles_of_no_use_are_as_none(picture):
    plain = load_image(encoded(picture, "PNG")).pixels
    for useless in (
        b"", b"junk", P3[:200], P3[:128], bytes(500), P3.replace(b"RGB ", b"CMYK"), P3.replace(b"mntr", b"link"),
        GREY_GAMMA_1, b"x" * (pixels.MAX_PROFILE + 1),
    ):  # fmt: skip
        image = picture.copy()
        image.info["icc_profile"] = useless
        assert np.array_equal(load_image(image).pixels, plain), useless[:20]
    image.info["icc_profile"] = "text"
    assert np.array_equal(load_image(image).pixels, plain)


def test_damaged_profiles_never_cost_the_photo(picture):
    """200 mutants: converted or not, the photo is there."""
    rng, converted = random.Random(0), 0
    plain = load_image(picture).pixels
    for _ in range(200):
        data = bytearray(P3)
        for _ in range(rng.choice((1, 2, 10))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.1:
            del data[rng.randrange(1, len(data)) :]
        picture.info["icc_profile"] = bytes(data)
        pixels = load_image(picture).pixels
        assert pixels.shape == plain.shape and pixels.dtype == np.uint8
        converted += not np.array_equal(pixels, plain)
    assert 20 < converted < 198


def test_profiles_are_opened_once(picture, monkeypatch):
    pixels._to_srgb_by.cache_clear()
    data = encoded(picture, "PNG", icc_profile=P3)
    load_image(data)
    monkeypatch.setattr(ImageCms, "buildTransform", lambda *_, **__: pytest.fail("built again"))
    load_image(data)


def test_a_profile_that_only_darkens_is_applied():
    grey = Image.new("L", (4, 4), 128)
    data = encoded(grey, "PNG", icc_profile=profile((), gamma=3.0, space=b"GRAY"))
    assert load_image(data).pixels.max() < 110
