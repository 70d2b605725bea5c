from typing import Any

import pytest

from simclr_hub.duplicates.find import File, preference, why_kept


def file(path: str = "/p/a.jpg", content: str = "", in_colour: bool = True, **info: Any) -> File:
    defaults = {"width": 400, "height": 300, "format": "JPEG", "bytes": 1000, "modified": 1e9}
    return File(path, (content or path).encode(), defaults | info, in_colour)


BETTER = [  # kept, other, in words
    (file(width=800), file("/p/b.jpg", format="PNG", bytes=9999, modified=1), "most pixels: 800 x 300"),
    (file(), file("/p/b.png", in_colour=False, format="PNG"), "in colour"),
    (file("/p/long name.dng", format="RAW"), file("/p/b.png", format="PNG"), "RAW rather than PNG"),
    (file(format="TIFF"), file("/p/b.jpg", camera="X"), "TIFF rather than JPEG"),
    (file(), file("/p/b.heic", format="HEIF", camera="X"), "JPEG rather than HEIF"),
    (file(format="AVIF"), file("/p/b.webp", format="WEBP"), "AVIF rather than WEBP"),
    (file(camera="X", taken="2024"), file("/p/b.jpg", bytes=9999), "its EXIF tells more: time and camera"),
    (file(bytes=2000, modified=2e9), file("/p/b.jpg"), "larger file: 2,000 bytes"),
    (file("/p/longer.jpg", modified=1), file("/p/b.jpg"), "the oldest: 1970-01-01 00:00:01"),
    (file("/p/longer.jpg", modified=1.1), file("/p/b.jpg", modified=1.2), "the oldest by less than a second"),
    (file("/p/z.jpg"), file("/p/copy of z.jpg"), "shortest path"),
    (file("/p/a.jpg"), file("/p/b.jpg"), "first by its path"),
]


@pytest.mark.parametrize(("kept", "other", "words"), BETTER)
def test_the_first_difference_decides_and_is_told(kept: File, other: File, words: str) -> None:
    assert sorted([other, kept], key=preference) == [kept, other]
    assert words in why_kept([kept, other])


def test_exact_copies_are_told_after_other_contents() -> None:
    kept, copy, small = file(content="x"), file("/p/b.jpg", content="x", modified=2e9), file("/p/s.jpg", width=40)
    why = why_kept([kept, copy, small])
    assert why.startswith("most pixels: 400 x 300, the next has 40 x 300; of its exact copies the oldest")
    assert why_kept([kept, copy]).startswith("the oldest")


def test_the_kept_one_is_compared_with_the_best_of_the_others() -> None:
    files = [file(), file("/p/b.jpg", width=200), file("/p/c.jpg", width=100)]
    assert why_kept(files) == "most pixels: 400 x 300, the next has 200 x 300"


def test_nothing_known_and_strange_times_are_words_too() -> None:
    unknown = [File("/p/a", b"1", {}), File("/p/b", b"2", {"modified": 1e300})]
    assert "an unknown time" in why_kept(unknown)
    assert "unknown number" in why_kept([file(), unknown[0]])
