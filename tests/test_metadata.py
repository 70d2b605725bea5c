import io
import json
import math
import random
import struct
import warnings

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from PIL.ExifTags import GPS, IFD, Base

from simclr_hub.images import load_image
from simclr_hub.metadata import MAX_TEXT, read_info


def photo(size=(24, 16)):
    return Image.fromarray(np.arange(size[0] * size[1] * 3, dtype=np.uint8).reshape(size[1], size[0], 3))


def exif_of(main=None, details=None, place=None):
    exif = Image.Exif()
    exif.update(main or {})
    if details:
        exif.get_ifd(IFD.Exif).update(details)
    if place:
        exif.get_ifd(IFD.GPSInfo).update(place)
    return exif


def encoded(exif, format="JPEG", image=None):
    buffer = io.BytesIO()
    (image or photo()).save(buffer, format, exif=exif.tobytes())  # as an object, a TIFF would lose the blocks below
    return buffer.getvalue()


MAIN = {Base.Make: "Canon", Base.Model: "Canon EOS 5D", Base.DateTime: "2024:01:01 00:00:00"}
DETAILS = {Base.DateTimeOriginal: "2019:07:21 18:03:59", Base.OffsetTimeOriginal: "+02:00"}
PLACE = {
    GPS.GPSLatitudeRef: "S",
    GPS.GPSLatitude: (33.0, 51.0, 30.96),
    GPS.GPSLongitudeRef: "E",
    GPS.GPSLongitude: (151.0, 12.0, 51.5),
}


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", [None, 1, 3, 6, 8, 9, 0])
def test_what_a_file_says(format, orientation):
    main = MAIN | ({} if orientation is None else {Base.Orientation: orientation})
    info = load_image(encoded(exif_of(main, DETAILS, PLACE), format)).info
    sideways = orientation in (6, 8)
    if format == "AVIF" and orientation == 1:
        orientation = None  # its encoder leaves it out
    assert info == {
        "format": format,
        "width": 16 if sideways else 24,
        "height": 24 if sideways else 16,
        "taken": "2019-07-21T18:03:59+02:00",
        "camera": "Canon EOS 5D",
        "gps": [-33.8586, 151.2143056],
    } | ({"orientation": orientation} if orientation in (1, 3, 6, 8) else {})


def test_the_size_is_that_of_the_pixels():
    for orientation in range(1, 9):
        for format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
            image = load_image(encoded(exif_of({Base.Orientation: orientation}), format))
            assert (image.info["height"], image.info["width"]) == tuple(image.pixels.shape[1:]), (format, orientation)


def test_images_without_a_file():
    assert load_image(np.zeros((4, 5, 3), np.uint8)).info == {}
    assert load_image(photo()).info == {"width": 24, "height": 16}
    opened = Image.open(io.BytesIO(encoded(exif_of(MAIN | {Base.Orientation: 6}))))
    assert load_image(opened).info == {
        "format": "JPEG", "width": 16, "height": 24, "camera": "Canon EOS 5D", "orientation": 6
    }  # fmt: skip


def test_an_mpo_is_a_jpeg():
    buffer = io.BytesIO()
    photo().save(buffer, "MPO", save_all=True, append_images=[photo()])
    assert load_image(buffer.getvalue()).info["format"] == "JPEG"


@pytest.mark.parametrize(
    ("main", "camera"),
    [
        ({Base.Make: "NIKON CORPORATION", Base.Model: "NIKON D90"}, "NIKON D90"),
        ({Base.Make: "Apple", Base.Model: "iPhone 15"}, "Apple iPhone 15"),
        ({Base.Make: "  Sony\0junk  "}, "Sony"),
        ({Base.Model: "X\x1b[31m\n\u202e1"}, "X [31m 1"),
        ({Base.Model: "x" * 60_000}, "x" * MAX_TEXT),
        ({Base.Make: "Canon", Base.Model: "Canon" + "x" * 300}, "Canon" + "x" * (MAX_TEXT - 5)),
        ({Base.Make: "A" * 90, Base.Model: "B" * 90}, "A" * 90 + " " + "B" * 9),
        ({Base.Make: "", Base.Model: " \0"}, None),
        ({Base.Make: b"\xff\xfe", Base.Model: 7}, "\ufffd\ufffd"),
    ],
)
def test_cameras(main, camera):
    image = photo()
    image.getexif().update(main)  # some of these cannot be written to a file
    assert read_info(image).get("camera") == camera


@pytest.mark.parametrize(
    ("details", "taken"),
    [
        ({Base.DateTimeOriginal: "2019:07:21 18:03:59"}, "2019-07-21T18:03:59"),
        ({Base.DateTimeDigitized: "2001-02-03T04:05:06"}, "2001-02-03T04:05:06"),
        ({Base.DateTimeOriginal: "0000:00:00 00:00:00", Base.DateTimeDigitized: "2001:02:03 04:05:06"},
         "2001-02-03T04:05:06"),
        ({Base.DateTimeOriginal: "2019:07:21 18:03:59", Base.OffsetTimeOriginal: "+99:00"}, "2019-07-21T18:03:59"),
        ({Base.DateTimeOriginal: "2019:02:31 00:00:00"}, None),
        ({Base.DateTimeOriginal: "2019:07:21 24:00:00"}, None),
        ({Base.DateTimeOriginal: "    :  :     :  :  "}, None),
        ({Base.DateTimeOriginal: "\u0662\u0660\u0661\u0669:07:21 18:03:59"}, None),
        ({Base.DateTimeOriginal: 7}, None),
        ({Base.OffsetTimeOriginal: "+02:00"}, None),
    ],
)  # fmt: skip
def test_times(details, taken):
    image = photo()
    image.getexif().get_ifd(IFD.Exif).update(details)
    assert read_info(image).get("taken") == taken


def rational(over, under):
    return TiffImagePlugin.IFDRational(over, under)


@pytest.mark.parametrize(
    ("change", "gps"),
    [
        ({}, [-33.8586, 151.2143056]),
        ({GPS.GPSLatitudeRef: "n", GPS.GPSLongitudeRef: b"W\0"}, [33.8586, -151.2143056]),
        ({GPS.GPSLatitude: (rational(0, 0), rational(0, 0), rational(0, 0))}, None),
        ({GPS.GPSLatitude: (rational(1, 0), 0.0, 0.0)}, None),
        ({GPS.GPSLatitude: (math.nan, 0.0, 0.0)}, None),
        ({GPS.GPSLatitude: (91.0, 0.0, 0.0)}, None),
        ({GPS.GPSLongitude: (180.0, 0.0, 1.0)}, None),
        ({GPS.GPSLongitude: (-3.0, 0.0, 0.0)}, None),
        ({GPS.GPSLongitude: 3.0}, None),
        ({GPS.GPSLongitude: ("3", "x", "y")}, None),
        ({GPS.GPSLongitude: (1.0,) * 4}, None),
        ({GPS.GPSLongitude: ()}, None),
        ({GPS.GPSLatitudeRef: "Q"}, None),
        ({GPS.GPSLatitudeRef: ""}, None),
        ({GPS.GPSLatitudeRef: None}, None),
        ({GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)}, None),
        ({GPS.GPSLatitude: (0.0, 0.0, 0.0)}, [0.0, 151.2143056]),
    ],
)
def test_places(change, gps):
    image = photo()
    image.getexif().get_ifd(IFD.GPSInfo).update(PLACE | change)
    found = read_info(image).get("gps")
    assert found == gps
    assert found is None or math.copysign(1, found[0]) == (1 if found[0] >= 0 else -1)  # no -0.0


def test_damaged_exif_gives_fewer_keys_never_an_error():
    """1,500 mutants of an EXIF block inside a good JPEG: the pixels stay, and what is told is short, plain JSON."""
    rng = random.Random(0)
    block = exif_of(MAIN | {Base.Orientation: 6}, DETAILS, PLACE).tobytes()
    kept = 0
    for _ in range(1500):
        data = bytearray(block)
        for _ in range(rng.randrange(1, 12)):
            data[rng.randrange(6, len(data))] = rng.choice((0, 255, rng.randrange(256)))
        if rng.random() < 0.2:
            del data[rng.randrange(7, len(data)) :]
        image = photo()
        image.info["exif"] = bytes(data)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on damaged EXIF
            info = read_info(image)
        text = json.dumps(info, allow_nan=False)
        assert len(text) < 1000 and set(info) <= {"width", "height", "taken", "camera", "orientation", "gps"}
        assert all(value.isprintable() for value in info.values() if isinstance(value, str))
        assert {info["width"], info["height"]} == {16, 24}
        kept += len(info) > 2
    assert kept > 400


def test_a_loop_of_blocks_ends():
    head = b"Exif\0\0II*\0" + struct.pack("<I", 8)
    entries = struct.pack("<HHHII", 2, IFD.Exif, 4, 1, 8) + struct.pack("<HHII", IFD.GPSInfo, 4, 1, 8)
    image = photo()
    image.info["exif"] = head + entries + struct.pack("<I", 8)
    assert read_info(image) == {"width": 24, "height": 16}


def test_an_error_of_any_kind_is_kept_in():
    class Bad(Image.Image):
        @property
        def size(self):
            raise RuntimeError("size")

        def getexif(self):
            raise MemoryError

    assert read_info(Bad()) == {}
