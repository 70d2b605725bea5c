import io

import numpy as np
import pytest
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub.signature import (
    SIGNATURE_BYTES,
    SIGNATURE_VERSION,
    as_rows,
    in_colour,
    is_signature,
    picture_signature,
    unpack,
)


def pixels(image):
    return np.array(image.convert("RGB")).transpose(2, 0, 1)


def thumbnail(picture):
    return unpack(as_rows([picture_signature(picture)]))


@pytest.fixture
def photo():
    return Image.open(SAMPLE_PHOTOS / "cat_1.jpg").convert("RGB")


def test_it_is_small_versioned_and_the_same_each_time(photo):
    signature = picture_signature(pixels(photo))
    assert len(signature) == SIGNATURE_BYTES <= 512 and signature[0] == SIGNATURE_VERSION
    assert is_signature(signature) and picture_signature(pixels(photo)) == signature


def test_memory_layout_and_number_type_do_not_matter(photo):
    signature = picture_signature(pixels(photo))
    assert picture_signature(np.ascontiguousarray(pixels(photo))) == signature
    assert picture_signature(pixels(photo) / np.float32(255)) == signature


def test_it_holds_the_picture():
    picture = np.zeros((3, 40, 60), np.uint8)
    picture[:, :, 30:] = 200  # the right half
    seen = thumbnail(picture)
    assert np.abs(seen.grey[0, :, :9]).max() < 1 and np.abs(seen.grey[0, :, 11:] - 200).max() < 1
    assert seen.shape[0] == pytest.approx(np.log2(40 / 60), abs=1e-3)
    assert np.abs(seen.colour).max() < 3
    red = np.zeros((3, 8, 8), np.uint8)
    red[0] = 100
    blue_less_grey, red_less_grey = thumbnail(red).colour[0].mean((1, 2))
    assert blue_less_grey == pytest.approx(-29.9, abs=2) and red_less_grey == pytest.approx(70.1, abs=2)


@pytest.mark.parametrize("factor", [0.25, 0.5, 3])
def test_the_size_hardly_matters(photo, factor):
    resized = photo.resize((round(photo.width * factor), round(photo.height * factor)), Image.Resampling.LANCZOS)
    one, other = thumbnail(pixels(photo)), thumbnail(pixels(resized))
    assert np.abs(one.grey - other.grey).mean() < 1.5 and np.abs(one.colour - other.colour).max() < 6


def test_a_jpeg_decoded_at_an_eighth_gives_much_the_same(photo):
    buffer = io.BytesIO()
    photo.resize((1536, 1024), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=92)
    reduced = Image.open(buffer)
    reduced.draft("RGB", (192, 128))
    one, other = thumbnail(pixels(Image.open(buffer))), thumbnail(pixels(reduced))
    assert reduced.size == (192, 128)
    assert np.abs(one.grey - other.grey).max() < 2.5 and np.abs(one.colour - other.colour).max() <= 4


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
def test_any_shape_has_one(shape):
    seen = thumbnail(np.full((3, *shape), 77, np.uint8))
    assert np.abs(seen.grey - 77).max() < 1


@pytest.mark.parametrize("level", [0, 255])
def test_black_and_white_have_one(level):
    assert np.abs(thumbnail(np.full((3, 9, 9), level, np.uint8)).grey - level).max() <= 1


@pytest.mark.parametrize("shape", [(3, 0, 5), (1, 4, 4), (4, 4), (2, 3, 4, 4)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(ValueError, match="picture"):
        picture_signature(np.zeros(shape, np.float32))


def test_what_is_no_signature_becomes_zeros(photo):
    good = picture_signature(pixels(photo))
    rows = as_rows([b"", good, bytes([SIGNATURE_VERSION + 1]) + good[1:], good[:-1]])
    assert rows.shape == (4, SIGNATURE_BYTES)
    assert rows.any(1).tolist() == [False, True, False, False] and rows[1].tobytes() == good


def test_colour_is_told_from_grey(photo):
    rows = as_rows([picture_signature(pixels(photo)), picture_signature(pixels(photo.convert("L"))), b""])
    assert in_colour(rows).tolist()[:2] == [True, False]
