"""Why a search with conditions finds nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import DIM, make_photo, put_vectors

from simclr_hub.index import SimilarityIndex


@pytest.fixture
def filled(index: SimilarityIndex) -> SimilarityIndex:
    put_vectors(index, 40)
    store = index._store
    with store.writing(), store.transaction():
        for i, (content_hash, _) in enumerate(sorted(store.details())):
            info = {"width": 100 + i, "format": "HEIF" if i < 3 else "JPEG", "taken": f"2019-0{1 + i % 9}-06T07:08:09"}
            store.put_details(content_hash, info | ({"note\x1b[2J": "x"} if i == 0 else {}), b"")
    return index


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no such key": (
        {"where": {"colour": "red"}},
        [r"no photo has 'colour'; there are: bytes, format, note\x1b[2J, taken, width"],
    ),
    "nearly a key": ({"where": {"Width": 1}}, ["did you mean 'width'?"]),
    "another value": (
        {"where": {"format": "PNG"}},
        ["no photo has format=PNG; its values are 'JPEG' (37), 'HEIF' (3)"],
    ),
    "letters": ({"where": {"format": "heif"}}, ["no photo has format=heif; there is 'HEIF': upper and lower case"]),
    "a range of words": ({"where": {"format": ("K", "Z")}}, ["no photo has format=K..Z; its values are"]),
    "a number": ({"where": {"width": 1}}, ["no photo has width=1; its numbers go from 100 to 139"]),
    "a range": ({"where": {"width": (2000, None)}}, ["no photo has width=2000..; its numbers go from 100 to 139"]),
    "text for a number": ({"where": {"width": "wide"}}, ["no photo has width=wide; its numbers go from"]),
    "no date": ({"where": {"taken": "2019-13"}}, ["'2019-13' is no date; write 2020, 2020-06"]),
    "no day": ({"where": {"taken": ("2021-02-30", None)}}, ["'2021-02-30' is no date"]),
    "another form": ({"where": {"taken": "1/2/2019"}}, ["'1/2/2019' is no date"]),
    "a part of a date": ({"where": {"taken": "2019-05"}}, ["all of it is taken=2019-05..2019-05"]),
    "another time": ({"where": {"taken": ("2021", "2022")}}, ["there is '2019-01-06T07:08:09' to '2019-09-06T07"]),
    "path": (
        {"path": "holiday/*.jpg"},
        ["'holiday/*.jpg'; paths look like '/elsewhere/0/0/0.jpg', or '0/0/0.jpg'"],
    ),
    "path in any folder": ({"path": "1*.jpg"}, ["'**/1*.jpg', in any folder, matches 11"]),
    "two": ({"path": "x", "where": {"colour": "red"}}, ["no photo has 'colour'", "no path matches 'x'"]),
    "together": (
        {"path": "**/1?.jpg", "where": {"width": (None, 300), "format": "HEIF", "bytes": (30, None)}},
        ["no photo meets all of the conditions: 40 have width=..300, 3 have format=HEIF, 10 have bytes=30.., 10 have"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_said(filled: SimilarityIndex, name: str) -> None:
    arguments, expected = CASES[name]
    assert filled.search(np.ones(DIM), **arguments) == []
    reasons = filled.explain_empty(**arguments)
    assert len(reasons) == len(expected)
    for reason, words in zip(reasons, expected, strict=True):
        assert words in reason and reason.isprintable(), reasons


def test_many_values_are_not_all_told(index: SimilarityIndex) -> None:
    put_vectors(index, 30)
    store = index._store
    with store.writing(), store.transaction():
        for i, (content_hash, _) in enumerate(sorted(store.details())):
            store.put_details(content_hash, {"camera": f"camera {i}"}, b"")
    (reason,) = index.explain_empty(where={"camera": "none"})
    assert reason.endswith(" and 22 others") and reason.count("camera ") == 8


def test_only_what_is_there_counts(index: SimilarityIndex, tmp_path: Path) -> None:
    """A key or value that only photos have which are gone is not told."""
    make_photo(tmp_path / "photos/a.png", 1)
    put_vectors(index, 100)
    index.sync(tmp_path / "photos")
    store = index._store
    with store.writing():
        with store.transaction():
            for photo in [p for p in store.photos(state="live") if p.path != b"a.png"]:
                store.forget(photo)
    (reason,) = index.explain_empty(where={"camera": "camera 1"})
    assert "there are: bytes, format, height, modified, width" in reason


def test_nothing_but_the_query_or_nothing_at_all(index: SimilarityIndex, tmp_path: Path) -> None:
    assert index.explain_empty() == ["the index holds no photos"]
    photo = make_photo(tmp_path / "photos/a.png", 1)
    index.sync(tmp_path / "photos")
    assert index.search(photo) == [] and "own file" in index.explain_empty()[0]
    photo.unlink()
    index.sync(tmp_path / "photos")
    assert "1 photos were not there" in index.explain_empty()[0]
    with pytest.raises(ValueError, match="no pattern"):
        index.explain_empty(path="[z-a]")
