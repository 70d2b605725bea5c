import hashlib
import io
import os
import random
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub import errors
from simclr_hub.images import FileBytes, decode, describe, load_image, read_file


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(mode="RGB", size=(24, 16)):
    return Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3)).convert(mode)


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    image = gradient()
    data = encoded(image)
    path = tmp_path / "a.png"
    path.write_bytes(data)
    expected = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    array = np.array(image)
    with path.open("rb") as file:
        for source in (
            str(path),
            path,
            data,
            bytearray(data),
            memoryview(data),
            FileBytes("a.png", data),
            file,
            image,
            array,
            torch.from_numpy(array).permute(2, 0, 1),
        ):
            loaded = load_image(source)
            assert np.array_equal(loaded.pixels, expected), type(source)
    assert load_image(path).content_hash == hashlib.sha256(data).digest() == load_image(data).content_hash


def test_float_arrays_stay_float():
    x = torch.rand(3, 8, 9)
    assert np.array_equal(load_image(x).pixels, x)
    assert np.array_equal(load_image(x.permute(1, 2, 0).numpy()).pixels, x)
    with pytest.raises(errors.UnsupportedImageError, match=r"\[0, 1\]"):
        load_image(x * 255)
    with pytest.raises(errors.UnsupportedImageError, match=r"\[0, 1\]"):
        load_image(x / 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = gradient(size=(24, 16)).resize((48, 32))
    # Pillow's own transposition, applied backwards, makes the file as a camera would store it.
    inverse = {1: None, 2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}[orientation]
    stored = upright if inverse is None else upright.transpose(Image.Transpose(inverse))
    exif = Image.Exif()
    exif[0x0112] = orientation
    out = decode(encoded(stored, "PNG", exif=exif), "photo")
    assert np.array_equal(np.asarray(out), np.asarray(upright))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LAB", "HSV"])
def test_every_mode_becomes_rgb(mode):
    image = gradient()
    if mode == "LAB":
        from PIL import ImageCms

        image = ImageCms.profileToProfile(
            image, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        out = load_image(image).pixels
        assert np.abs(out.astype(int) - np.asarray(gradient(), int).transpose(2, 0, 1)).mean() < 3
        return
    out = load_image(image.convert(mode)).pixels
    assert out.shape == (3, 16, 24) and out.dtype == np.uint8


def test_sixteen_bits_are_scaled_not_clipped():
    ramp = (
        np.linspace(0, 65535, 300).astype(np.uint16)[None].repeat(2, 0)
    )  # no multiples of 257, which would wrap well
    expected = torch.from_numpy(ramp[0] / 257)
    for source in (ramp, encoded(Image.fromarray(ramp)), Image.fromarray(ramp.astype(np.int32))):
        assert np.abs(load_image(source).pixels[0, 0].astype(int) - np.asarray(expected)).max() <= 1
    dark = np.full((2, 2), 200, ">u2")  # big-endian, and below 256: still of 65535
    tiff = encoded(Image.frombytes("I;16B", (2, 2), dark.tobytes()), "TIFF")
    assert load_image(tiff).pixels.max() == 1
    floats = Image.fromarray(np.linspace(0, 1, 256, dtype=np.float32)[None])
    assert np.abs(load_image(encoded(floats, "TIFF")).pixels[0, 0].astype(int) - np.arange(256)).max() <= 1
    with pytest.raises(errors.CorruptImageError, match="finite"):
        load_image(encoded(Image.fromarray(np.full((2, 2), np.nan, np.float32)), "TIFF"))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_lies_over_white(mode):
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    if mode == "P":
        palette = Image.new("P", (4, 4), 0)
        palette.putpalette([200, 0, 0] * 256)
        data = encoded(palette, transparency=0)
    else:
        data = encoded(image.convert(mode))
    assert (load_image(data).pixels == 255).all()


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).pixels[:, 0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", errors.UnsupportedImageError),
        (b"just text", errors.UnsupportedImageError),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", errors.UnsupportedImageError),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", errors.UnsupportedImageError),
        (b"%PDF-1.4\n", errors.UnsupportedImageError),
        (b"PK\x03\x04zip", errors.UnsupportedImageError),
        (encoded(gradient(size=(240, 160)), "JPEG")[:900], errors.CorruptImageError),
        (encoded(gradient(size=(240, 160)))[:600], errors.CorruptImageError),
    ],
)
def test_what_is_no_image_is_named(data, error):
    with pytest.raises(error, match="holiday.jpg"):
        decode(data, "holiday.jpg")


def test_a_bomb_is_refused_before_it_is_decoded():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(errors.ImageTooLargeError, match="bomb.png"):
        decode(png, "bomb.png")


def test_too_many_bytes_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr("simclr_hub.images.MAX_BYTES", 10)
    (tmp_path / "big.png").write_bytes(b"x" * 11)
    with pytest.raises(errors.ImageTooLargeError, match="big.png"):
        read_file(tmp_path / "big.png")
    with pytest.raises(errors.ImageTooLargeError):
        decode(b"x" * 11, "big")


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "empty.jpg").touch()
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "link.jpg").symlink_to(tmp_path / "empty.jpg")
    for name, reason in (("none.jpg", "no such file"), ("empty.jpg", "empty"), ("pipe.jpg", "not a regular file")):
        with pytest.raises(errors.UnreadableImageError, match=f"{name}: {reason}"):
            read_file(tmp_path / name)
    with pytest.raises(errors.UnreadableImageError, match="link.jpg"):
        read_file(tmp_path / "link.jpg", follow_symlinks=False)
    with pytest.raises(errors.UnreadableImageError, match="directory|regular"):
        read_file(tmp_path)
    with pytest.raises(errors.UnreadableImageError, match="download"):
        read_file("https://example.org/cat.jpg")
    with pytest.raises(errors.UnreadableImageError):
        read_file("nul\0.jpg")


def test_a_file_that_keeps_changing_is_not_used(tmp_path, monkeypatch):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"x" * 100)
    real = os.fstat
    ticks = iter(range(1000))

    def changing(fd):
        os.utime(path, (next(ticks), next(ticks)))
        return real(fd)

    monkeypatch.setattr(os, "fstat", changing)
    with pytest.raises(errors.UnreadableImageError, match="changed while it was read"):
        read_file(path)


def test_what_pillow_may_raise_is_mapped(monkeypatch):
    """Every exception class that Pillow's plugins raise by name, and what its C code raises, ends in an ImageError."""
    raised = [
        OSError, SyntaxError, ValueError, RuntimeError, NotImplementedError, TypeError, KeyError, IndexError,
        EOFError, OverflowError, struct.error, zlib.error, MemoryError, AttributeError, ZeroDivisionError,
        UnicodeDecodeError("ascii", b"", 0, 1, ""), Image.DecompressionBombError, Image.DecompressionBombWarning,
        Image.UnidentifiedImageError,
    ]  # fmt: skip
    for error in raised:

        def fail(*args, error=error, **kwargs):
            raise error

        monkeypatch.setattr(Image, "open", fail)
        with pytest.raises(errors.ImageError):
            decode(b"data", "x.jpg")


def test_damaged_files_never_raise_anything_else():
    """1,500 mutants of real photos and other formats: an image or an ImageError."""
    rng = random.Random(0)
    small = gradient(size=(40, 30))
    seeds = [path.read_bytes() for path in sorted(SAMPLE_PHOTOS.glob("*.jpg"))[:4]]
    seeds += [encoded(small, f) for f in ("PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM")]
    seeds += [
        encoded(small.convert("P")),
        encoded(small.convert("LA"), "PNG"),
        encoded(small, "TIFF", compression="tiff_lzw"),
    ]
    outcomes = {"image": 0, "error": 0}
    for i in range(1500):
        data = bytearray(seeds[i % len(seeds)])
        if rng.random() < 0.3:
            del data[rng.randrange(1, len(data)) :]
        for _ in range(rng.randrange(1, 20)):
            data[rng.randrange(min(len(data), 2000))] = rng.randrange(256)
        try:
            assert decode(bytes(data), "mutant").mode == "RGB"
            outcomes["image"] += 1
        except errors.ImageError:
            outcomes["error"] += 1
    assert min(outcomes.values()) > 100, outcomes


def test_names_are_printable():
    assert describe("a\x1b[31m\nb\u202e.jpg") == "a\\x1b[31m\\nb\\u202e.jpg"
    assert describe(os.fsdecode(b"caf\xe9.jpg")) == "caf\\udce9.jpg"


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="int is not an image"):
        load_image(3)
    with pytest.raises(errors.UnsupportedImageError, match=r"\(H, W, C\)"):
        load_image(np.zeros((2, 3, 4, 5), np.uint8))
    with pytest.raises(TypeError, match="binary"):
        load_image(io.StringIO("x"))


def photo_bytes(width, height, format="JPEG", **options):
    low = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(low).resize((width, height), Image.Resampling.BICUBIC).save(file, format, quality=95, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    ("reduce_to", "expected"),
    [(None, (600, 800)), (601, (600, 800)), (301, (600, 800)), (300, (300, 400)), (151, (300, 400)), (150, (150, 200)),
     (75, (75, 100)), (1, (75, 100))],
)  # fmt: skip
def test_a_jpeg_is_reduced_as_far_as_asked_and_knows_its_full_size(reduce_to, expected):
    data = photo_bytes(800, 600)
    image = load_image(data, reduce_to=reduce_to)
    assert tuple(image.pixels.shape[1:]) == expected
    assert (image.info["width"], image.info["height"]) == (800, 600)
    assert image.content_hash == load_image(data).content_hash
    whole = torch.from_numpy(load_image(data).pixels)[None].float()
    full = torch.nn.functional.interpolate(whole, expected, mode="area")[0]
    assert (torch.from_numpy(image.pixels) - full).abs().mean() < 1.5


def test_a_reduced_jpeg_is_upright_too():
    exif = Image.Exif()
    exif[0x0112] = 6
    image = load_image(photo_bytes(800, 600, exif=exif.tobytes()), reduce_to=300)
    assert tuple(image.pixels.shape[1:]) == (400, 300)
    assert (image.info["width"], image.info["height"]) == (600, 800)
    plain = load_image(photo_bytes(800, 600), reduce_to=300)
    assert np.array_equal(image.pixels, np.rot90(plain.pixels, -1, (1, 2)))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_are_not_reduced(format):
    data = photo_bytes(400, 300, format)
    assert np.array_equal(load_image(data, reduce_to=20).pixels, load_image(data).pixels)


def test_a_truncated_jpeg_is_damaged_at_any_size():
    data = photo_bytes(800, 600)
    with pytest.raises(errors.CorruptImageError):
        load_image(data[: len(data) // 2], reduce_to=100)


def test_the_hash_is_of_all_bytes():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)  # 12 kB
    data = encoded(Image.fromarray(noise))
    assert load_image(data).content_hash == hashlib.sha256(data).digest() != load_image(data + b"\0").content_hash


def test_no_more_is_read_of_a_file_object_than_is_allowed(monkeypatch):
    asked = []

    class Endless:
        name = "endless"

        def read(self, size=-1):
            asked.append(size)
            return bytes(2000 if size < 0 else size)

    monkeypatch.setattr("simclr_hub.images.MAX_BYTES", 1000)
    with pytest.raises(errors.ImageTooLargeError, match="endless"):
        load_image(Endless())
    assert asked == [1001]


@pytest.mark.parametrize("what", ["time", "size"])
def test_a_file_that_changed_once_is_read_again_from_its_start(what, tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    path.write_bytes(encoded(gradient()))
    real, calls = os.fstat, []

    def once(fd):
        found = real(fd)
        calls.append(fd)
        if len(calls) != 2:
            return found
        return SimpleNamespace(
            st_mode=found.st_mode,
            st_size=found.st_size + (what == "size"),
            st_mtime_ns=found.st_mtime_ns + (what == "time"),
        )

    monkeypatch.setattr(os, "fstat", once)
    assert read_file(path)[0] == encoded(gradient()) and len(calls) == 4
