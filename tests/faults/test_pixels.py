"""Pixels say what the file says: the kinds of TIFF, BMP, PNG and PNM that are read, and one error for the rest."""

import io
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from photo_formats import encoded, mutant, smooth
from picture_writers import bmp, chunk, packed, png, pnm, tiff
from PIL import Image

from simclr_hub import errors
from simclr_hub.images import FileBytes, load_image

CASES = Path(__file__).parents[1] / "data" / "cases"
LAYOUTS = [
    {}, {"order": ">"}, {"deflate": True}, {"order": ">", "deflate": True}, {"tile": True},
    {"tile": True, "deflate": True, "order": ">"}, {"big": True}, {"big": True, "tile": True, "deflate": True},
]  # fmt: skip


def pixels(data: bytes) -> np.ndarray:
    """(H, W, 3)"""
    return load_image(data).pixels.transpose(1, 2, 0)


def values(bits: int, channels: int = 1, seed: int = 0, size: tuple[int, int] = (19, 21)) -> np.ndarray:
    """Samples (H, W, N) of all values from black to white."""
    found = np.random.default_rng(seed).integers(0, 1 << bits, (*size, channels))
    found[0, 0], found[0, 1] = 0, (1 << bits) - 1
    return found.astype(np.uint32)


def grey(levels: np.ndarray) -> np.ndarray:
    """Levels (H, W, 1) in [0, 1] as (H, W, 3)."""
    return np.rint(255 * levels).astype(np.uint8).repeat(3, -1)


def over_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    alpha = alpha / 255
    return np.clip(colours * alpha + 255 * (1 - alpha), 0, 255)


def refused(data: bytes, *words: str) -> None:
    with pytest.raises(errors.UnsupportedImageError) as caught:
        load_image(FileBytes("photo.x", data))
    text = str(caught.value)
    assert text.startswith("photo.x: ") and "\n" not in text and len(text) < 160, text
    assert all(word in text for word in ("not read", *words)), text


@pytest.mark.parametrize(
    ("name", "like"),
    [
        ("pil_text.png", "ref.png"), ("png_ztxt_2mb.png", "ref.png"), ("png_ancillary_badcrc.png", "ref.png"),
        ("t_g16_white0.tif", "t_g8_white0.tif"), ("t_rgb16_planar.tif", "t_rgb16.tif"), ("t_rgb16.tif", "ref.png"),
        ("t_g32u.tif", "png16_gray.png"), ("t_g8_white0.tif", "png16_gray.png"), ("g16_trns.png", "g8_trns.png"),
        ("bmp32_bitfields_v4_alpha0.bmp", "ref.png"), ("bmp32_bitfields_v5_alpha0.bmp", "ref.png"),
        ("bmp32_rgb_v3_alpha0.bmp", "ref.png"),
    ],
)  # fmt: skip
def test_the_picture_that_the_file_holds(name, like):
    assert np.array_equal(pixels((CASES / name).read_bytes()), pixels((CASES / like).read_bytes()))


def test_the_cases_without_a_twin():
    assert pixels((CASES / "pgm16_dark.pgm").read_bytes()).max() <= 1
    reference = pixels((CASES / "ref.png").read_bytes()).astype(int)
    assert np.abs(pixels((CASES / "jpg_no_eoi.jpg").read_bytes()) - reference).mean() < 4
    refused((CASES / "t_g16s.tif").read_bytes(), "TIFF with signed 16-bit grey samples")
    refused((CASES / "t_ga16.tif").read_bytes(), "TIFF with 16-bit grey samples and alpha")
    refused((CASES / "t_cmyka8.tif").read_bytes(), "TIFF with 8-bit CMYK samples and alpha")


# TIFF


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("white_is_zero", [False, True])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 12, 16, 32])
def test_grey_tiffs(bits, white_is_zero, layout):
    samples = values(bits)
    data = tiff(samples, 0 if white_is_zero else 1, bits, **layout)
    if bits == 12 and layout.get("order") == ">":
        return refused(data, "TIFF")
    level = samples / (2**bits - 1)
    assert np.array_equal(pixels(data), grey(1 - level if white_is_zero else level))
    # One sample in planes is one plane.
    again = tiff(samples, 0 if white_is_zero else 1, bits, **layout, tags={284: (2,)})
    assert np.array_equal(pixels(again), pixels(data))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_float_tiffs(white_is_zero, layout):
    level = np.random.default_rng(0).random((19, 21, 1)).astype(np.float32)
    data = tiff(level, 0 if white_is_zero else 1, 32, **layout)
    assert np.array_equal(pixels(data), grey(1 - level.astype(float) if white_is_zero else level.astype(float)))
    dark = pixels(tiff(level * 0.01, 1, 32, **layout))
    assert dark.max() <= 3  # by what is white, not by what is there
    for other in (level * 255, level - 0.5, level * 1e30):
        refused(tiff(other, 1, 32, **layout), "pixels from")
    with pytest.raises(errors.CorruptImageError, match="finite"):
        load_image(tiff(level * np.float32(np.nan), 1, 32, **layout))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", ["RGB", "RGB+0", "RGB+1", "RGB+2", "RGB+none", "CMYK", "grey+2", "grey+1", "grey+0"])
def test_colours_side_by_side_and_in_planes(kind, bits, planar, layout):
    colours, _, extra = kind.partition("+")
    own = {"RGB": 3, "CMYK": 4, "grey": 1}[colours]
    samples = values(bits, own + bool(extra))
    if extra == "1":  # premultiplied: no colour exceeds alpha
        samples[..., :own] = samples[..., :own] * samples[..., own:].astype(np.uint64) // (2**bits - 1)
    tags = {338: (int(extra),)} if extra.isdigit() else {}
    data = tiff(samples, {"RGB": 2, "CMYK": 5, "grey": 1}[colours], bits, planar=planar, **layout, tags=tags)
    if colours == "grey" and bits == 16:
        return refused(data, "TIFF with 16-bit grey samples and")
    eight = (samples >> (bits - 8)).astype(float)
    expected = eight[..., :own]
    if colours == "CMYK":
        expected = (255 - expected[..., :3]) * (255 - expected[..., 3:]) / 255
    expected = expected.repeat(3, -1) if own == 1 else expected
    if extra in ("2", "none"):
        expected = over_white(expected, eight[..., own:])
    elif extra == "1":
        expected = np.clip(expected + 255 - eight[..., own:], 0, 255)
    off = np.abs(pixels(data) - expected)
    assert off.max() <= (2 if extra == "1" or colours == "CMYK" else 1), off.max()
    if not extra and colours == "RGB":
        assert off.max() == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("depth", [16, 8])
def test_palettes_of_16_and_of_8_bits(bits, depth):
    colours = np.random.default_rng(1).integers(0, 256, (3, 1 << bits))
    colours[0, 0] = 255
    samples = values(bits)
    table = tuple((colours * (257 if depth == 16 else 1)).ravel().tolist())
    for layout in LAYOUTS:
        data = tiff(samples, 3, bits, **layout, tags={320: table})
        assert np.array_equal(pixels(data), colours.T[samples[..., 0]])


def ycbcr(rgb: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(rgb).convert("YCbCr"))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("blocks", [(1, 1), (2, 1), (2, 2), None])
def test_ycbcr_tiffs(blocks, layout):
    """Uncompressed ones, too, whose chroma is of fewer pixels; without the tag of 2 x 2."""
    rgb = np.asarray(smooth((32, 16)))
    y, cb, cr = ycbcr(rgb).transpose(2, 0, 1)
    across, down = blocks or (2, 2)
    shape = (16 // down, down, 32 // across, across)
    mean = lambda x: x.reshape(shape).mean((1, 3)).round().astype(np.uint8)[..., None]  # noqa: E731
    units = np.concatenate(
        [y.reshape(shape).transpose(0, 2, 1, 3).reshape(16 // down, 32 // across, -1), mean(cb), mean(cr)], -1
    )
    if layout.get("tile"):
        units = np.concatenate([units[:, : 16 // across].reshape(1, -1), units[:, 16 // across :].reshape(1, -1)])
    else:
        units = units.reshape(1, -1)
    tags = {530: blocks or (), 278: () if layout.get("tile") else (16,)}
    data = tiff(rgb, 6, 8, **layout, tags=tags, strips=[row.tobytes() for row in units])
    spread = [np.repeat(np.repeat(mean(x)[..., 0], down, 0), across, 1) for x in (cb, cr)]
    expected = np.asarray(Image.merge("YCbCr", [Image.fromarray(x) for x in (y, *spread)]).convert("RGB"))
    assert np.abs(pixels(data).astype(int) - expected).max() <= 3


def test_lab_and_jpeg_in_a_tiff():
    lab = np.asarray(smooth((21, 19)).convert("RGB"))
    lab = lab.copy()
    lab[..., 1:] = lab[..., 1:] // 16 - 8  # near grey: a and b are signed
    shown = pixels(tiff(lab.astype(np.uint32), 8, 8)).astype(int)
    assert np.ptp(shown, axis=-1).max() < 45
    refused(tiff(lab.astype(np.uint32), 8, 8, planar=True), "CIELAB", "planes")
    for mode in ("RGB", "L"):
        picture = smooth((64, 48)).convert(mode)
        file = io.BytesIO()
        picture.save(file, "TIFF", compression="jpeg", quality=95)
        assert np.abs(pixels(file.getvalue()) - np.asarray(picture.convert("RGB")).astype(int)).mean() < 4


@pytest.mark.parametrize(
    ("photometric", "bits", "count", "tags", "words"),
    [
        (1, 8, 1, {339: (2,)}, "signed 8-bit grey"), (1, 32, 1, {339: (2,)}, "signed 32-bit grey"),
        (1, 16, 1, {339: (3,)}, "float 16-bit grey"), (1, 64, 1, {}, "64-bit grey"), (1, 24, 1, {}, "24-bit grey"),
        (2, 32, 3, {}, "32-bit RGB"), (2, 32, 3, {339: (3,) * 3}, "float 32-bit RGB"), (2, 4, 3, {}, "4-bit RGB"),
        (2, 8, 3, {258: (5, 6, 5)}, "different sizes"), (2, 8, 2, {}, "2 of 3 RGB"), (2, 8, 5, {}, "2 more"),
        (2, 8, 5, {338: (2, 2)}, "alpha"), (1, 8, 2, {}, "1 more"), (1, 8, 3, {338: (0, 0)}, "2 more"),
        (3, 16, 1, {320: (0,) * 768}, "16-bit palette"), (4, 1, 1, {}, "mask"), (5, 8, 5, {338: (2,)}, "alpha"),
        (5, 8, 4, {332: (2,)}, "inks"), (6, 16, 3, {}, "16-bit YCbCr"), (8, 16, 3, {}, "16-bit CIELAB"),
        (9, 8, 3, {}, "ICCLAB"), (32844, 16, 1, {}, "LogL"), (32845, 16, 3, {}, "LogLuv"), (77, 8, 1, {}, "77"),
        (1, 8, 1, {259: (34712,)}, "JPEG 2000"), (1, 8, 1, {259: (50001,)}, "WebP"), (1, 8, 1, {259: (999,)}, "999"),
    ],
)  # fmt: skip
def test_other_tiffs_are_one_error_that_says_what_of_it(photometric, bits, count, tags, words):
    samples = np.zeros((4, 8, count), np.uint64)
    for layout in ({}, {"order": ">"}, {"big": True}):
        refused(tiff(samples, photometric, bits, **layout, tags=tags), "TIFF with", words)
    refused(tiff(samples, photometric, bits, big=True, order=">", tags=tags), "big-endian BigTIFF")


def test_undefined_samples_are_unsigned():
    samples = values(8)
    assert np.array_equal(pixels(tiff(samples, 1, 8, tags={339: (4,)})), grey(samples / 255))


def test_the_first_page_counts():
    pages = [Image.new("L", (8, 8), level) for level in (200, 10)]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    assert (pixels(file.getvalue()) == 200).all()


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("planar", [False, True])
def test_a_tiff_of_16_bits_is_upright_in_planes_too(planar, orientation):
    samples = values(16, 3)
    upright = {1: samples, 3: samples[::-1, ::-1], 6: np.rot90(samples, -1)}[orientation]
    loaded = load_image(tiff(samples, 2, 16, planar=planar, tags={274: (orientation,)}))
    assert np.array_equal(loaded.pixels.transpose(1, 2, 0), upright >> 8)
    assert loaded.info["format"] == "TIFF"
    assert (loaded.info["height"], loaded.info["width"]) == upright.shape[:2]


@pytest.mark.parametrize("tag", [269, 270, 271, 306, 700, 33723, 34377, 34665, 34675, 34853, 37724, 65000])
@pytest.mark.parametrize("big", [False, True])
def test_odd_tags_do_not_cost_a_tiff_s_picture(tag, big):
    samples = values(16, 3)
    plain = pixels(tiff(samples, 2, 16, tags={274: (6,)}))
    for odd in ((0xFFFF,), (7, 7, 7, 7, 7), (1, 0)):
        data = tiff(samples, 2, 16, big=big, tags={274: (6,), tag: odd})
        at = data.index(struct.pack("<HH", tag, 3))
        for kind in (0, 2, 3, 5, 7, 13, 200):
            for count in (1, 5, 1 << 30):
                changed = bytearray(data)
                struct.pack_into("<HHQ" if big else "<HHI", changed, at, tag, kind, count)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    assert np.array_equal(pixels(bytes(changed)), plain), (kind, count, odd)


# BMP


@pytest.mark.parametrize(
    "masks",
    [
        (0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F), (0x7C00, 0x3E0, 0x1F, 0x8000), (0xF00, 0xF0, 0xF, 0xF000),
        (0xF00, 0xF0, 0xF), (0x1F, 0x7E0, 0xF800), (0xC0, 0x38, 0x7), (0xF000, 0xF00, 0xF0, 0xF),
    ],
)  # fmt: skip
@pytest.mark.parametrize("header", [40, 56, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
def test_bmps_of_16_bits_by_their_masks(masks, header, top_down):
    check_masks(masks, 16, header, top_down)


@pytest.mark.parametrize(
    "masks",
    [
        (0xFF0000, 0xFF00, 0xFF), (0xFF0000, 0xFF00, 0xFF, 0xFF000000), (0xFF, 0xFF00, 0xFF0000, 0xFF000000),
        (0xFF000000, 0xFF0000, 0xFF00, 0xFF), (0x3FF00000, 0xFFC00, 0x3FF), (0x3FF00000, 0xFFC00, 0x3FF, 0xC0000000),
        (0xFC00000, 0x3FFFE0, 0x1F, 0xF0000000), (0xFF, 0xFF00, 0xFF0000),
    ],
)  # fmt: skip
@pytest.mark.parametrize("header", [40, 56, 108, 124])
@pytest.mark.parametrize("top_down", [False, True])
def test_bmps_of_32_bits_by_their_masks(masks, header, top_down):
    check_masks(masks, 32, header, top_down)


def check_masks(masks, bits, header, top_down):
    rows = values(bits)[..., 0]
    alpha_in_40 = header == 40 and len(masks) == 4
    data = bmp(rows, bits, masks=masks, header=header, top_down=top_down, compression=6 if alpha_in_40 else 3)
    channels = [(rows & mask) / mask * 255 for mask in masks]
    expected = np.stack(channels[:3], -1)
    if len(masks) == 4:
        expected = over_white(expected, channels[3][..., None])
    assert np.abs(pixels(data) - expected).max() <= 1.5


@pytest.mark.parametrize("header", [56, 108, 124])
@pytest.mark.parametrize("bits", [16, 32])
def test_an_alpha_of_0_everywhere_is_none_in_a_bmp(bits, header):
    masks = (0xF00, 0xF0, 0xF, 0xF000) if bits == 16 else (0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    rows = values(bits)[..., 0] & ~np.uint32(masks[3])
    plain = pixels(bmp(rows, bits, masks=(*masks[:3], 0), header=header))
    assert plain.min() == 0
    assert np.array_equal(pixels(bmp(rows, bits, masks=masks, header=header)), plain)
    rows[3, 4] |= masks[3]  # one pixel that is there: the others are not
    shown = pixels(bmp(rows, bits, masks=masks, header=header))
    assert (shown == 255).all(-1).sum() >= rows.size - 1 and np.array_equal(shown[3, 4], plain[3, 4])


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("colours", [2, 3])
@pytest.mark.parametrize("top_down", [False, True])
def test_few_colours_in_a_bmp_of_more_bits(bits, colours, top_down):
    palette = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0]])[:colours]
    rows = np.random.default_rng(0).integers(0, min(colours, 1 << bits), (19, 21))
    if bits == 1 and colours == 3:
        return
    data = bmp(rows, bits, palette=palette, used=colours, top_down=top_down)
    assert np.array_equal(pixels(data), palette[rows])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 2}, "2 bits"), ({"bits": 64}, "64 bits"), ({"bits": 32, "compression": 4}, "JPEG"),
        ({"bits": 32, "compression": 5}, "PNG"), ({"bits": 24, "compression": 9}, "compression 9"),
        ({"bits": 32, "masks": (0, 0, 0)}, "bit masks 0, 0, 0"),
        ({"bits": 32, "masks": (5, 0xF0, 0xF00)}, "bit masks 5"),
        ({"bits": 8, "header": 48}, "header of 48"), ({"bits": 24, "header": 64, "compression": 4}, "compression 4"),
    ],
)  # fmt: skip
def test_other_bmps_are_one_error_that_says_what_of_it(options, words):
    refused(bmp(np.zeros((4, 8), np.uint32), **options), "BMP with", words)


def test_a_bmp_by_masks_is_bounded_and_whole(monkeypatch):
    data = bmp(values(16)[..., 0], 16, masks=(0xF00, 0xF0, 0xF))
    for cut in (1, 100, len(data) - 70):
        with pytest.raises(errors.CorruptImageError):
            load_image(data[:-cut])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(errors.ImageTooLargeError):
        load_image(data)


# PNG

PNGS = [(bits, 0) for bits in (1, 2, 4, 8, 16)] + [(bits, 3) for bits in (1, 2, 4, 8)]
PNGS += [(bits, colour) for bits in (8, 16) for colour in (2, 4, 6)]


@pytest.mark.parametrize(("bits", "colour"), PNGS)
@pytest.mark.parametrize("keyed", [False, True])
def test_every_kind_of_png(bits, colour, keyed):
    samples = values(bits, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour])
    palette = np.random.default_rng(2).integers(0, 256, (1 << bits if colour == 3 else 1, 3))
    before, clear = b"", np.zeros(samples.shape[:2], bool)
    if colour == 3:
        before += chunk(b"PLTE", palette.astype(np.uint8).tobytes())
    if keyed and colour in (0, 2):
        samples[4:9, 3:7] = samples[1, 1]
        # Close to the transparent colour, and with its upper 8 bits: not that colour.
        samples[10:12, 3:7] = samples[1, 1] ^ 1
        before += chunk(b"tRNS", struct.pack(f">{samples.shape[2]}H", *samples[1, 1]))
        clear = (samples == samples[1, 1]).all(-1)
        assert not clear[10, 3]
    elif keyed and colour == 3:
        alphas = np.random.default_rng(3).choice([0, 255], 1 << bits)
        before += chunk(b"tRNS", alphas.astype(np.uint8).tobytes())
        clear = alphas[samples[..., 0]] == 0
    elif keyed:
        before += chunk(b"tRNS", b"\0" * 6)  # not allowed here
    level = samples / (2**bits - 1) * 255
    expected = palette[samples[..., 0]] if colour == 3 else level[..., :1] if colour in (0, 4) else level[..., :3]
    expected = np.broadcast_to(expected, (*expected.shape[:2], 3))
    if colour in (4, 6):
        expected = over_white(expected, level[..., -1:])
    expected = np.where(clear[..., None], 255, expected)
    shown = pixels(png(samples, colour, bits, before=before))
    assert np.abs(shown - expected).max() <= (1 if bits < 16 else 2)
    assert (shown[clear] == 255).all()


ODD_CHUNKS = [
    chunk(b"iCCP", b"name\0\0broken"), chunk(b"iCCP", b"name\0\7" + zlib.compress(b"x")), chunk(b"iCCP", b""),
    chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(3 << 20))), chunk(b"gAMA", b"1"), chunk(b"pHYs", b""),
    chunk(b"cHRM", b"\0" * 3), chunk(b"sRGB", b""), chunk(b"tEXt", b"\xff" * 70_000),
    chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(3 << 20))), chunk(b"zTXt", b"a\0\5no"), chunk(b"zTXt", b"a\0\0no"),
    chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(3 << 20))),
    chunk(b"tEXt", b"Raw profile type exif\0\n\n\n\nzz"), chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0broken"),
    chunk(b"iTXt", b"a\0\1\0\0\0" + zlib.compress(bytes(3 << 20))), chunk(b"iTXt", b"a"), chunk(b"eXIf", b"no"),
    chunk(b"eXIf", b""), chunk(b"acTL", b"\0"), chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", b"\0"),
    chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(b"fcTL", struct.pack(">5I6x", 0, 4, 4, 1, 1)),
    chunk(b"acTL", struct.pack(">II", 1, 0)) + chunk(b"fcTL", struct.pack(">5I6x", 7, 21, 19, 0, 0)),
    chunk(b"fdAT", b"\0\0"), chunk(b"prVt", b"private"), chunk(b"tRNS", b""),
    *(chunk(kind, b"\0" * 8, sound=False) for kind in (b"tEXt", b"gAMA", b"iCCP", b"tRNS", b"eXIf", b"acTL", b"prVt")),
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD_CHUNKS, ids=lambda odd: f"{odd[4:8].decode()}{len(odd)}")
@pytest.mark.parametrize(("bits", "colour"), [(8, 2), (16, 0)])
def test_odd_chunks_do_not_cost_a_png_s_picture(odd, bits, colour):
    samples = values(bits, 3 if colour else 1)
    plain = pixels(png(samples, colour, bits))
    assert np.array_equal(pixels(png(samples, colour, bits, before=odd)), plain)
    assert np.array_equal(pixels(png(samples, colour, bits, after=odd)), plain)


def test_what_is_sound_beside_an_odd_chunk_stays():
    exif = Image.Exif()
    exif[0x0112] = 6
    turn = chunk(b"eXIf", exif.tobytes()[6:])
    samples = values(8, 3)
    upright = np.rot90(samples, -1)
    for odd in (b"", *ODD_CHUNKS):
        if odd[4:8] != b"eXIf":
            assert np.array_equal(pixels(png(samples, 2, 8, before=turn + odd)), upright), odd[:20]


@pytest.mark.parametrize(("bits", "colour"), [(3, 0), (1, 2), (16, 3), (4, 4), (8, 1), (8, 7), (32, 2)])
def test_other_pngs_are_one_error_that_says_what_of_it(bits, colour):
    data = bytearray(png(values(8), 0, 8))
    data[24:26] = bits, colour
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    refused(bytes(data), f"PNG with colour type {colour} of {bits} bits")


# PNM


@pytest.mark.parametrize("maxval", [1, 2, 100, 255, 256, 1000, 4095, 65534, 65535])
@pytest.mark.parametrize("kind", [2, 3, 5, 6])
@pytest.mark.parametrize("dark", [False, True])
def test_pnms_by_their_maxval(kind, maxval, dark):
    samples = np.random.default_rng(0).integers(
        0, (maxval // 40 if dark else maxval) + 1, (7, 9, 3 - 2 * (kind in (2, 5)))
    )
    expected = np.broadcast_to(samples / maxval * 255, (7, 9, 3))
    assert np.abs(pixels(pnm(samples, kind, maxval)) - expected).max() <= 0.51


@pytest.mark.parametrize("kind", [1, 4])
def test_bitmaps(kind):
    samples = values(1)
    assert np.array_equal(pixels(pnm(samples, kind, 1)), grey(1.0 - samples))


@pytest.mark.parametrize("scale", [-1.0, 1.0])
def test_float_maps(scale):
    level = np.random.default_rng(0).random((5, 7)).astype(np.float32)
    body = level[::-1].astype("<f4" if scale < 0 else ">f4").tobytes()
    assert np.array_equal(pixels(b"Pf\n7 5\n%g\n" % scale + body), grey(level.astype(float)[..., None]))
    refused(b"Pf\n7 5\n%g\n" % (scale * 3) + body, "scale of 3")
    refused(b"PF\n7 5\n%g\n" % scale + body * 3, "PF", "colour")


@pytest.mark.parametrize(
    "data",
    [
        b"P7\nWIDTH 1\nHEIGHT 1\nDEPTH 1\nMAXVAL 255\nTUPLTYPE GRAYSCALE\nENDHDR\n\0", b"P7 332\n1 1 255\n\0",
        b"P0CMYK\n1 1\n255\n" + bytes(4), b"PyP\n1 1\n255\n\0", b"PyRGBA\n1 1\n255\n" + bytes(4),
    ],
)  # fmt: skip
def test_other_pnms_are_one_error_that_says_what_of_it(data):
    refused(data, "PNM of kind", data[:2].decode())


# JPEG and the others


def photo(**options) -> bytes:
    return encoded(smooth((200, 152)), "JPEG", **{"subsampling": 2, **options})


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str)
def test_a_jpeg_that_lacks_only_its_end_is_read(options):
    whole = photo(**options)
    plain = pixels(whole)
    assert whole.endswith(b"\xff\xd9")
    assert np.array_equal(pixels(whole[:-2]), plain) and np.array_equal(pixels(whole[:-1]), plain)
    assert load_image(whole[:-2], reduce_to=70).pixels.shape == (3, 76, 100)
    for cut in [*range(4, 60), *range(60, 2000, 97)]:  # and one that lacks more is not
        with pytest.raises(errors.CorruptImageError):
            load_image(whole[:-cut])


SEGMENTS = {
    "EXIF": (0xE1, b"Exif\0\0"), "XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0"), "ICC": (0xE2, b"ICC_PROFILE\0\1\1"),
    "MPF": (0xE2, b"MPF\0"), "Photoshop": (0xED, b"Photoshop 3.0\0"), "FlashPix": (0xE2, b"FPXR\0"),
    "comment": (0xFE, b""),
}  # fmt: skip


@pytest.mark.parametrize("kind", SEGMENTS)
def test_odd_segments_do_not_cost_a_jpeg_s_picture(kind):
    marker, start = SEGMENTS[kind]
    whole, rng = photo(), random.Random(0)
    plain = pixels(whole)
    bodies = [
        b"",
        b"\xff",
        b"MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\xff\xff\xff\xff",
        b"MM\0*\0\0\0\x08\0\1\xb0\1\0\4\0\0\0\0",
    ]
    bodies += [b"MM\0*\0\0\0\x08\0\3\xb0\0\0\7\0\0\0\4" + bytes(30), b"8BIM\4\x04\0\0\0\0\0\xff", b"8BIM"]
    bodies += [b"MM\0*\0\0\0\x08" + rng.randbytes(rng.randrange(300)) for _ in range(40)]
    bodies += [rng.randbytes(rng.randrange(300)) for _ in range(20)]
    for body in bodies:
        segment = bytes((0xFF, marker)) + struct.pack(">H", 2 + len(start + body)) + start + body
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shown = pixels(whole[:2] + segment + whole[2:])
        if kind != "EXIF":  # of which a random one might say how the picture lies
            assert np.array_equal(shown, plain), body


@pytest.mark.parametrize(
    ("marker", "body"),
    [(0xE0, b"JFIF"), (0xE0, b"JFIF\0\1"), (0xEE, b"Adobe"), (0xE2, b"ICC_PROFILE\0"), (0xE2, b"ICC_PROFILE\0\1")],
)  # fmt: skip
def test_a_segment_that_is_cut_short_costs_nothing_beside_it(marker, body):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = photo(exif=exif.tobytes())
    segment = bytes((0xFF, marker)) + struct.pack(">H", 2 + len(body)) + body
    upright = pixels(whole)
    assert upright.shape == (200, 152, 3)
    for at in (2, whole.index(b"\xff\xdb")):
        assert np.array_equal(pixels(whole[:at] + segment + whole[at:]), upright)


@pytest.mark.parametrize("format", ["AVIF", "WEBP", "HEIF", "JXL", "PNG", "JPEG"])
def test_damaged_exif_does_not_cost_the_picture(format):
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    data = encoded(smooth(), format, exif=exif.tobytes())
    at = max(data.find(b"MM\0*"), data.find(b"II*\0"))
    plain = pixels(data)
    for damage in (b"XXXXXXXX", data[at : at + 4] + b"\xff\xff\xff\xff", data[at : at + 8] + b"\xff" * 14):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            changed = data[:at] + damage + data[at + len(damage) :]
            if format == "PNG":  # with its checksum
                start = data.index(b"eXIf")
                size = int.from_bytes(data[start - 4 : start], "big")
                end = start + 4 + size
                changed = changed[:end] + struct.pack(">I", zlib.crc32(changed[start:end])) + changed[end + 4 :]
            assert np.array_equal(pixels(changed), plain)


def test_mutants_of_every_kind_are_an_image_or_an_image_error():
    """1,500 damaged files; most of the damage is in the headers."""
    seeds = [
        tiff(values(bits, n), photometric, bits, planar=n > 1, deflate=i % 2 == 0, big=i % 3 == 0, order="<>"[i % 2])
        for i, (photometric, bits, n) in enumerate(
            ((1, 16, 1), (0, 32, 1), (2, 16, 3), (5, 8, 4), (1, 1, 1), (2, 8, 4))
        )
    ]
    seeds += [tiff(values(8, 3), 6, 8, tags={530: (1, 1)}), tiff(values(8), 3, 8, tags={320: tuple(range(256)) * 3})]
    seeds += [
        bmp(values(16)[..., 0], 16, masks=(0xF00, 0xF0, 0xF, 0xF000), header=124),
        bmp(values(8)[..., 0] & 1, 8, used=2, palette=np.array([[0, 0, 0], [255, 255, 255]])),
        bmp(values(32)[..., 0], 32),
    ]
    seeds += [
        png(values(16, 3), 2, 16, before=chunk(b"tRNS", bytes(6))),
        png(values(2), 0, 2, before=chunk(b"tRNS", b"\0\1")),
    ]
    seeds += [pnm(values(8), 5, 255), pnm(values(8, 3), 6, 1000), photo()[:-2]]
    rng, outcomes = random.Random(0), {"image": 0, "error": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(1500):
            try:
                assert load_image(mutant(seeds[i % len(seeds)], rng)).pixels.shape[0] == 3
                outcomes["image"] += 1
            except errors.ImageError:
                outcomes["error"] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_the_writers_write_what_pillow_reads():
    samples = values(8, 3)
    for data in (tiff(samples, 2, 8), png(samples, 2, 8), pnm(samples, 6, 255)):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), samples)
    assert packed(np.array([[1, 0, 1]]), 1) == b"\xa0" and packed(np.array([[0xABC, 0xDEF]]), 12) == b"\xab\xcd\xef"
