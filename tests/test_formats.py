"""The formats beyond Pillow's old ones: the same picture looks the same, limits hold, and nothing else is raised."""

import io
import random
import struct
import sys
import types
import warnings

import numpy as np
import pytest
import rawpy
import torch
from photo_formats import WRITERS, encoded, jxl_of_jpeg, mutant, seeds, smooth
from PIL import Image
from raw_writer import dng, jpeg

from simclr_hub import errors, formats
from simclr_hub.formats import PREVIEW_SIDE, SUFFIXES, is_raw, jxl_size, max_pixels, open_raw, reader_has_come
from simclr_hub.images import FileBytes, is_image_name, load_image

#: Pillow's transpositions that make of the upright picture what a camera stores under an EXIF orientation.
STORED = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
LARGE = (640, 520)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    inverse = STORED[orientation]
    return image if inverse is None else image.transpose(Image.Transpose(inverse))


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def difference(loaded, image: Image.Image) -> float:
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    assert loaded.pixels.shape == expected.shape
    return float(np.abs(loaded.pixels.astype(np.float32) - np.asarray(expected, np.float32)).mean())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_same_picture_upright_from_every_format(orientation):
    picture = smooth()
    stored, exif = turned(picture, orientation), with_orientation(orientation)
    files = {format: encoded(stored, format, exif=exif) for format in WRITERS if format != "JXL"}
    files["JXL of a JPEG"] = jxl_of_jpeg(files["JPEG"], stored.size)
    files["JXL with its own orientation"] = jxl_of_jpeg(files["JPEG"], stored.size, reconstructible=False)
    for format, data in files.items():
        loaded = load_image(data)
        assert difference(loaded, picture) < 3, format
        assert (loaded.info["width"], loaded.info["height"]) == picture.size, format
        assert loaded.info["format"] == format.split()[0]


def test_the_orientation_of_a_jpeg_xl_is_that_of_its_codestream():
    picture = smooth()
    loaded = load_image(encoded(picture, "JXL", exif=with_orientation(6)))  # which viewers ignore
    assert difference(loaded, picture) == 0 and "orientation" not in loaded.info


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["preview", "sensor"])
def test_raw_files_are_upright(orientation, kind):
    picture = smooth(LARGE)
    stored = turned(picture, orientation)
    loaded = load_image(dng(stored, preview=stored if kind == "preview" else None, orientation=orientation))
    assert (loaded.info["width"], loaded.info["height"], loaded.info["orientation"]) == (*LARGE, orientation)
    if kind == "preview":
        assert difference(loaded, picture) < 3
    else:
        assert loaded.pixels.shape == (3, LARGE[1] // 2, LARGE[0] // 2)
        half = np.asarray(picture.reduce(2), float).transpose(2, 0, 1)
        assert np.corrcoef(loaded.pixels.ravel(), half.ravel())[0, 1] > 0.95  # of other brightness


@pytest.mark.parametrize("format", ["HEIF", "AVIF", "JXL"])
def test_transparency_lies_over_white(format):
    loaded = load_image(encoded(Image.new("RGBA", (32, 24), (200, 0, 0, 0)), format))
    assert (loaded.pixels >= 254).all()


@pytest.mark.parametrize("format", ["HEIF", "JXL"])
def test_grey_and_sixteen_bits_are_scaled(format):
    ramp = np.linspace(0, 65535, 256 * 4).astype(np.uint16).reshape(4, 256).repeat(8, 0)
    for values in (ramp, (ramp // 257).astype(np.uint8)):
        loaded = load_image(encoded(Image.fromarray(values), format, **({"quality": -1} if format == "HEIF" else {})))
        expected = ramp / 65535
        if format == "JXL" and values.dtype == np.uint16:  # whose writer says that these are linear
            expected = np.where(expected < 0.0031308, 12.92 * expected, 1.055 * expected ** (1 / 2.4) - 0.055)
        assert np.abs(loaded.pixels[0] - 255 * expected)[ramp > 9000].max() <= 3


def test_a_lossy_float_picture_that_exceeds_one_is_not_dark():
    values = np.linspace(0, 1.0001, 256, dtype=np.float32)[None]
    assert np.abs(load_image(Image.fromarray(values)).pixels[0, 0].astype(int) - np.arange(256)).max() <= 1


@pytest.mark.parametrize(
    "size", [(1, 1), (8, 8), (256, 256), (257, 1), (300, 250), (640, 480), (1920, 1080), (3, 8200)]
)
def test_a_jpeg_xls_size_is_read_before_it_is_decoded(size):
    data = encoded(Image.new("L", size), "JXL")
    assert jxl_size(data) == size
    for n in range(2, 40):
        try:
            jxl_size(data[:n])
        except (IndexError, struct.error):
            pass


def test_the_size_in_boxes_and_by_ratio():
    boxed = jxl_of_jpeg(encoded(smooth(), "JPEG"), (96, 64))
    assert boxed[4:7] == b"JXL" and jxl_size(boxed) == (96, 64)
    for ratio, width in enumerate((1000, 1200, 1333, 1500, 1777, 1250, 2000), 1):
        bits = 0 | (1 << 1) | (999 << 3) | (ratio << 16)  # not in eighths, a height of 13 bits, a ratio for the width
        assert jxl_size(b"\xff\x0a" + bits.to_bytes(8, "little")) == (width, 1000)


@pytest.mark.parametrize("format", ["HEIF", "AVIF", "JXL", "RAW"])
def test_too_many_pixels_are_refused_before_they_are_decoded(format, monkeypatch):
    data = dng(smooth()) if format == "RAW" else encoded(smooth(), format)
    assert load_image(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64 // 2 - 1)
    assert max_pixels() == 96 * 64 - 2
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    if format == "JXL":
        monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(errors.ImageTooLargeError, match="bomb"):
        load_image(FileBytes("bomb", data))


def test_a_bomb_in_a_raw_file_s_preview_is_not_decoded(monkeypatch):
    data = dng(smooth((96, 64)), preview=smooth(LARGE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 96 * 64)
    assert load_image(data).pixels.shape == (3, 32, 48)  # the sensor's values instead


@pytest.mark.parametrize(("module", "format"), [("pillow_heif", "HEIF"), ("pillow_jxl", "JXL"), ("rawpy", "RAW")])
def test_a_missing_reader_is_named_with_its_pip_command(module, format, monkeypatch):
    data = seeds()[format][0]
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(errors.UnsupportedImageError, match=r"x.y: .*pip install 'simclr-hub\[formats\]'") as caught:
        load_image(FileBytes("x.y", data))
    error = str(caught.value)
    assert not reader_has_come(error)
    monkeypatch.undo()
    assert reader_has_come(error)  # so that the photo is tried again
    assert not reader_has_come(error.replace(" needs ", " needs no-"))
    assert not reader_has_come("x.y: damaged image")


def test_names_are_photos_whether_or_not_they_can_be_read():
    for name in ("IMG_1.HEIC", "a.jxl", "a.nef", "a.CR3", "a.dng", b"a.raf"):
        assert is_image_name(name)
    assert not is_image_name("a.raw") and len(SUFFIXES) > 40


def test_a_raw_file_is_never_its_thumbnail():
    photo = smooth((96, 64))
    makers_own = dng(photo, is_dng=False)  # as .nef and .arw: told by the sensor's values below
    for data in (dng(photo), makers_own):
        assert is_raw(data) and load_image(data).pixels.shape == (3, 32, 48)
    unknown = dng(photo, is_dng=False, cfa=False)
    assert not is_raw(unknown)
    for name in ("a.nef", "A.NEF"):  # by its name it is a RAW file, even where no one knows which
        try:
            loaded = load_image(FileBytes(name, unknown))
        except errors.UnsupportedImageError:
            continue
        assert loaded.info["format"] == "RAW" and loaded.pixels.shape != (3, 12, 16)
    assert load_image(FileBytes("a.tif", unknown)).pixels.shape == (3, 12, 16)
    assert load_image(FileBytes("a.nef", encoded(photo, "JPEG"))).info["format"] == "JPEG"  # renamed
    with pytest.raises(errors.UnsupportedImageError):
        load_image(FileBytes("a.nef", encoded(photo, "TIFF")))
    assert not is_raw(encoded(photo, "TIFF"))


def test_what_is_raw_by_its_first_bytes():
    for start in (
        b"FUJIFILMCCD-RAW 0201",
        b"IIRO\x08\0",
        b"IIU\0\x08\0",
        b"\0\0\0\x18ftypcrx \0",
        b"II*\0\x10\0\0\0CR\2\0",
    ):
        assert is_raw(start + b"\0" * 100)
        with pytest.raises(errors.ImageError, match="photo"):
            load_image(FileBytes("photo", start + b"\0" * 100))
    for start in (b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"II*\0\x08\0\0\0\1\0"):
        assert not is_raw(start)
    loop = b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 330, 4, 1, 8, 8)
    assert not is_raw(loop)


@pytest.mark.parametrize(("order", "magic"), [("<", b"II*\0"), (">", b"MM\0*")])
def test_sensor_values_in_a_later_directory_of_either_byte_order(order, magic):
    def tiff(*kinds):
        data = magic + struct.pack(order + "I", 8)
        for number, kind in enumerate(kinds, 1):
            following = 8 + 18 * number if number < len(kinds) else 0
            data += struct.pack(order + "HHHIHHI", 1, 262, 3, 1, kind, 0, following)
        return data

    assert is_raw(tiff(32803)) and is_raw(tiff(2, 34892)) and is_raw(tiff(2, 2, 32803))
    assert not is_raw(tiff(2)) and not is_raw(tiff(2, 6))


def test_a_raw_file_s_preview_is_used_from_a_size_on():
    sensor, shown = smooth(LARGE), smooth(LARGE, seed=1)
    assert difference(load_image(dng(sensor, preview=shown)), shown) < 3
    small = shown.resize((PREVIEW_SIDE * 2, PREVIEW_SIDE - 1))
    assert load_image(dng(sensor, preview=small)).pixels.shape == (3, LARGE[1] // 2, LARGE[0] // 2)
    cut = jpeg(shown)[:3000]  # its header is whole
    with pytest.raises(errors.CorruptImageError):
        load_image(dng(sensor, preview=cut))


def test_a_preview_that_does_not_say_how_it_lies():
    picture, exif = smooth(LARGE), Image.Exif()
    exif[0x010F] = "Maker"
    stored = turned(picture, 6)
    preview = jpeg(stored, exif=exif.tobytes())
    assert preview[2:4] == b"\xff\xe0"
    preview = preview[:2] + preview[20:]  # as cameras begin it: with the EXIF; LibRaw would add its own to others
    loaded = load_image(dng(stored, preview=preview, orientation=6))
    assert difference(loaded, picture) < 3


def test_what_a_raw_file_says_of_itself():
    info = load_image(dng(smooth(LARGE), preview=smooth(LARGE))).info
    assert info == {
        "format": "RAW", "width": LARGE[0], "height": LARGE[1], "orientation": 1,
        "taken": "2020-05-06T07:08:09", "camera": "Maker Model 1",
    }  # fmt: skip


def test_what_libraw_may_raise_is_mapped():
    kinds = [
        value for value in vars(rawpy).values() if isinstance(value, type) and issubclass(value, rawpy.LibRawError)
    ]
    assert len(kinds) > 10
    for kind in (*kinds, rawpy.NotSupportedError, RuntimeError, MemoryError, TypeError):

        class Raw:
            def __enter__(self):
                raise kind(b"-1: reason\xff") if issubclass(kind, rawpy.LibRawError) else kind("reason")  # noqa: B023

            def __exit__(self, *_):
                return None

        fake = types.SimpleNamespace(**(vars(rawpy) | {"RawPy": Raw}))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(formats, "_reader", lambda *_, fake=fake: fake)
            with pytest.raises(errors.ImageError, match="photo"):
                load_image(FileBytes("photo", dng(smooth())))
    assert callable(open_raw)


@pytest.mark.parametrize("format", ["HEIF", "JXL"])
def test_what_a_reader_may_raise_is_mapped(format, monkeypatch):
    class PanicException(BaseException):
        """How code written in Rust ends."""

    PanicException.__module__ = "pyo3_runtime"
    data = seeds()[format][0]
    kinds = [OSError, EOFError, ValueError, SyntaxError, RuntimeError, TypeError, MemoryError, PanicException]
    for error in (*kinds, Image.UnidentifiedImageError, Image.DecompressionBombError):

        def fail(*_, error=error, **__):
            raise error("reason")

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(errors.ImageError, match="photo"):
            load_image(FileBytes("photo", data))
    monkeypatch.setattr(Image, "open", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        load_image(data)


@pytest.mark.parametrize("format", ["HEIF", "AVIF", "JXL", "RAW"])
def test_damaged_files_never_raise_anything_else(format):
    """200 mutants here; `fuzz_formats.py` makes thousands, in child processes."""
    rng, found = random.Random(0), seeds()[format]
    outcomes = {"image": 0, "error": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(200):
            try:
                assert load_image(mutant(found[i % len(found)], rng)).pixels.shape[0] == 3
                outcomes["image"] += 1
            except errors.ImageError:
                outcomes["error"] += 1
    assert min(outcomes.values()) > 3, outcomes


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_more_damaged_files_in_child_processes():
    import fuzz_formats

    assert fuzz_formats.main(400, ["HEIF", "AVIF", "JXL", "RAW"]) == 0


def test_a_heif_container_that_holds_avif_is_pillow_s():
    avif = encoded(smooth(), "AVIF")
    assert load_image(avif).info["format"] == "AVIF"
    assert avif[4:12] == b"ftypavif"
    renamed = avif[:8] + b"mif1" + avif[12:]  # its other brands still say avif
    assert load_image(renamed).info["format"] == "AVIF"


def test_a_file_object_of_a_new_format(tmp_path):
    path = tmp_path / "photo.heic"
    path.write_bytes(encoded(smooth(), "HEIF"))
    with path.open("rb") as file:
        from_file = load_image(file)
    assert np.array_equal(from_file.pixels, load_image(path).pixels)
    assert np.array_equal(from_file.pixels, load_image(io.BytesIO(path.read_bytes())).pixels)
