import fnmatch
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_fakes import DIM, FakeEmbedder, make_photo, put_vectors

from simclr_hub.index import Match, SimilarityIndex
from simclr_hub.index.search import ann
from simclr_hub.index.search.filters import make_condition
from simclr_hub.scan import translate_pattern

NUMBER = 400


@pytest.fixture(scope="module", params=["exact", "approximate"])
def filled(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """400 contents of metadata that is known, in an index of either kind."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "approximate":
            patch.setattr(ann, "MAX_EXACT", 0)
        with SimilarityIndex.create(tmp_path_factory.mktemp("i") / "i", model=FakeEmbedder()) as index:
            put_vectors(index, NUMBER)
            with index._store.writing():
                index._write_cache()
            yield index


def expected(index: SimilarityIndex, query: np.ndarray, passes: Any) -> list[str]:
    """By comparing with everything."""
    everything = index.search(query, k=10**6, path="**")
    assert len(everything) == NUMBER
    return [m.path for m in everything if passes(m)]


CASES: dict[str, tuple[dict[str, Any], Any]] = {
    "a word": ({"where": {"camera": "camera 3"}}, lambda m: m.metadata["camera"] == "camera 3"),
    "not a part of a word": ({"where": {"camera": "camera"}}, lambda m: False),
    "a number": ({"where": {"width": 17}}, lambda m: m.metadata["width"] == 17),
    "a number as text": ({"where": {"width": "17"}}, lambda m: m.metadata["width"] == 17),
    "from": ({"where": {"width": (390, None)}}, lambda m: m.metadata["width"] >= 390),
    "to": ({"where": {"width": (None, 9.5)}}, lambda m: m.metadata["width"] <= 9),
    "both ends": ({"where": {"bytes": (20, 30)}}, lambda m: 20 <= m.metadata["bytes"] <= 30),
    "numbers as text": ({"where": {"bytes": ["20", "30"]}}, lambda m: 20 <= m.metadata["bytes"] <= 30),
    "words": ({"where": {"camera": ("camera 2", "camera 4")}}, lambda m: m.metadata["camera"][-1] in "234"),
    "words to": ({"where": {"camera": (None, "camera 1")}}, lambda m: m.metadata["camera"][-1] in "01"),
    "two keys": (
        {"where": {"camera": "camera 3", "width": (100, 200)}},
        lambda m: m.metadata["camera"] == "camera 3" and 100 <= m.metadata["width"] <= 200,
    ),
    "what nothing has": ({"where": {"lens": (None, "z")}}, lambda m: False),
    "a word of numbers": ({"where": {"width": "x"}}, lambda m: False),
    "a number of words": ({"where": {"camera": 3}}, lambda m: False),
    "path below the root": ({"path": "0/7/*.jpg"}, lambda m: m.path.split("/")[3] == "7"),
    "whole path": ({"path": "/elsewhere/**/1*.jpg"}, lambda m: m.path.split("/")[-1].startswith("1")),
    "whole path by folders": ({"path": "**/elsewhere/0/7/*"}, lambda m: m.path.split("/")[3] == "7"),
    "a star stays in its folder": ({"path": "*.jpg"}, lambda m: False),
    "path as a Path": ({"path": Path("0/3/*")}, lambda m: m.path.split("/")[3] == "3"),
    "path and value": (
        {"path": "0/[13]/*", "where": {"width": (None, 100)}},
        lambda m: m.path.split("/")[3] in "13" and m.metadata["width"] <= 100,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("k", [3, pytest.param(1000, marks=pytest.mark.slow)])
def test_exactly_the_best_of_those_that_pass(filled: SimilarityIndex, name: str, k: int) -> None:
    arguments, passes = CASES[name]
    queries = list(np.random.default_rng(1).normal(size=(30, DIM)))  # both ways of comparing
    for some in (queries, queries[:2]):
        for query, found in zip(some, filled.search(some, k=k, **arguments), strict=True):
            assert [m.path for m in found] == expected(filled, query, passes)[:k]


BAD: dict[str, dict[str, Any]] = {
    "a list": {"where": {"a": [1, 2, 3]}},
    "no bound": {"where": {"a": (None, None)}},
    "None": {"where": {"a": None}},
    "NaN": {"where": {"a": float("nan")}},
    "bytes": {"where": {"a": b"x"}},
    "a dictionary": {"where": {"a": {"b": 1}}},
    "mixed": {"where": {"a": (1, "b")}},
    "reversed": {"where": {"width": (30, 20)}},
    "reversed, text": {"where": {"taken": ("2021", "2020-06")}},
    "reversed, numbers as text": {"where": {"width": ("100", "20")}},
    "a key": {"where": {1: 2}},
    "no pattern": {"path": ""},
    "bytes as pattern": {"path": b"a*"},
    "a wrong class": {"path": "[z-a]"},
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compared_is_refused(filled: SimilarityIndex, name: str) -> None:
    with pytest.raises(ValueError, match="where: |path="):
        filled.search(np.ones(DIM), **BAD[name])


def test_an_upper_end_includes_what_begins_with_it(index: SimilarityIndex, tmp_path: Path) -> None:
    store = index._store
    times = ["2018-12-31T23:59:59", "2019-01-01T00:00:00", "2020-06-30T12:00:00", "2020-07-01T00:00:00"]
    put_vectors(index, len(times))
    with store.writing(), store.transaction():
        for photo, time in zip(store.photos(), times, strict=True):
            assert photo.content_hash
            store.put_details(photo.content_hash, {"taken": time}, b"")
    for bounds, number in ((("2019", "2020-06"), 2), (("2019", None), 3), ((None, "2018"), 1), (("2020", "2020"), 2)):
        found = index.search(np.ones(DIM), where={"taken": bounds})
        assert len(found) == number, bounds
    assert index.search(np.ones(DIM), where={"taken": "2019"}) == []  # one value is that value
    assert len(index.search(np.ones(DIM), where={"taken": times[1]})) == 1


def test_of_copies_only_those_that_pass(index: SimilarityIndex, tmp_path: Path) -> None:
    for name in ("a/1.png", "b/1.png", "b/2.png"):
        make_photo(tmp_path / "photos" / name, 7)
    index.sync(tmp_path / "photos")
    found = index.search(np.ones(DIM), path="b/*", all_copies=True)
    assert [Path(m.path).parent.name for m in found] == ["b", "b"]
    assert len(index.search(np.ones(DIM), k=1, path="b/*", all_copies=True)) == 1
    (one,) = index.search(np.ones(DIM), path="b/*")
    assert [one.path, *one.copies] == [m.path for m in found]


def test_names_in_either_form_of_unicode_and_of_no_text(index: SimilarityIndex, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    make_photo(folder / "Cafe\u0301.png", 1)  # as macOS writes it
    make_photo(Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n.png")), 2)
    index.sync(folder)
    assert len(index.search(np.ones(DIM), path="Caf\u00e9.png")) == 1
    assert len(index.search(np.ones(DIM), path="Caf?.png")) == 1
    assert len(index.search(np.ones(DIM), path="*.png")) == 2
    assert len(index.search(np.ones(DIM), path=os.fsdecode(b"\xff\n.png"))) == 1


def test_a_condition_follows_changes(index: SimilarityIndex, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for seed in range(30):  # more than ten times what is changed
        make_photo(folder / f"a/{seed}.png", seed)
    index.sync(folder)
    assert len(index.search(np.ones(DIM), k=50, path="a/*")) == 30
    (folder / "a/3.png").rename(folder / "3.png")
    index.sync(folder)
    index._current()
    assert len(index.search(np.ones(DIM), k=50, path="a/*")) == 29
    assert [m.path for m in index.search(np.ones(DIM), path="*.png")] == [str(folder / "3.png")]


def test_a_condition_follows_a_moved_folder(index: SimilarityIndex) -> None:
    put_vectors(index, 30)
    assert len(index.search(np.ones(DIM), k=50, path="/elsewhere/**")) == 30
    store = index._store
    with store.writing(), store.transaction():
        (root,) = store.roots().values()
        store.relocate_root(root, b"/now")
    assert index.search(np.ones(DIM), k=50, path="/elsewhere/**") == []
    found = index.search(np.ones(DIM), k=50, path="/now/**")
    assert len(found) == 30 and all(m.path.startswith("/now/0/") for m in found)


def test_metadata_follow_changes(index: SimilarityIndex) -> None:
    put_vectors(index, 30)
    assert index.search(np.ones(DIM), where={"lens": "50 mm"}) == []
    store = index._store
    with store.writing(), store.transaction():
        content = store.photos()[0].content_hash
        assert content
        store.put_details(content, {"lens": "50 mm"}, b"")
    (match,) = index.search(np.ones(DIM), where={"lens": "50 mm"})
    assert match.metadata["lens"] == "50 mm" and len(index.search(np.ones(DIM), k=50)) == 30


@pytest.mark.parametrize(
    ("pattern", "matching", "other"),
    [
        ("a/*.jpg", ["a/b.jpg", "a/.jpg"], ["a/b/c.jpg", "a/b.jpeg", "xa/b.jpg", "a/b.jpg\n"]),
        ("**/*.jpg", ["a.jpg", "a/b.jpg", "a/b/c.jpg"], ["a.png"]),
        ("a/**", ["a/b", "a/b/c"], ["b/a/c", "a"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["ab", "a/xb"]),
        ("a**b", ["ab", "axb"], ["a/b"]),
        ("a?c", ["abc"], ["a/c", "ac"]),
        ("[a-c]x", ["ax", "cx"], ["dx", "/x"]),
        ("[!a]x", ["bx"], ["ax", "/x"]),
        ("[]]", ["]"], ["["]),
        ("[a", ["[a"], ["a"]),
        ("a[^b]", ["a^", "ab"], ["ac"]),
        ("(a|b)+.$", ["(a|b)+.$"], ["a"]),
    ],
)
def test_patterns(pattern: str, matching: list[str], other: list[str]) -> None:
    expression = re.compile(translate_pattern(pattern), re.DOTALL)
    assert [path for path in matching + other if expression.match(path)] == matching


@settings(max_examples=300, deadline=None)
@given(st.text("ab*?[]!-^\\x", max_size=8), st.text("ab]-^\\x!", max_size=6))
def test_within_a_folder_patterns_are_those_of_fnmatch(pattern: str, name: str) -> None:
    try:
        condition = make_condition(pattern or "x")
    except ValueError:
        return  # fnmatch makes something of [z-a]
    assert condition is not None
    if "--" not in pattern and pattern:
        assert bool(re.match(translate_pattern(pattern), name, re.DOTALL)) == fnmatch.fnmatchcase(name, pattern)


def test_metadata_of_a_match(filled: SimilarityIndex) -> None:
    (match,) = filled.search(np.ones(DIM), where={"width": 12})
    assert match.metadata == {"width": 12, "camera": "camera 5", "bytes": 12}
    assert match == Match(match.path, match.score, dict(match.metadata), match.closer_than)
    assert "camera 5" in repr(match)


def test_what_is_not_known_of_a_photo_never_matches(index: SimilarityIndex, tmp_path: Path) -> None:
    put_vectors(index, 3)
    make_photo(tmp_path / "photos/a.png", 1)  # of no camera
    index.sync(tmp_path / "photos")
    for camera in ("camera 0", (None, "camera 0"), ("camera 0", None)):
        found = index.search(np.ones(DIM), k=9, where={"camera": camera})
        assert len(found) == (3 if camera == ("camera 0", None) else 1)
        assert all("camera" in match.metadata for match in found)


def test_a_key_of_numbers_and_of_words(index: SimilarityIndex) -> None:
    put_vectors(index, 3)
    store = index._store
    with store.writing(), store.transaction():
        for value, (content_hash, _) in zip((5, "5", "6"), sorted(store.details()), strict=True):
            store.put_details(content_hash, {"rating": value}, b"")
    with SimilarityIndex.open(store.file.parent, model=FakeEmbedder()) as again:
        for condition, ratings in (("5", [5, "5"]), (5, [5]), (("5", "6"), [5, "5", "6"])):
            found = again.search(np.ones(DIM), k=9, where={"rating": condition})
            assert sorted((match.metadata["rating"] for match in found), key=repr) == sorted(ratings, key=repr)


def test_words_are_in_order_whatever_came_first(index: SimilarityIndex) -> None:
    put_vectors(index, 3)
    store = index._store
    with store.writing(), store.transaction():
        for word, (content_hash, _) in zip(("b", "c", "a"), sorted(store.details()), strict=True):
            store.put_details(content_hash, {"lens": word}, b"")
    with SimilarityIndex.open(store.file.parent, model=FakeEmbedder()) as again:
        found = again.search(np.ones(DIM), k=9, where={"lens": ("a", "b")})
        assert sorted(match.metadata["lens"] for match in found) == ["a", "b"]


def test_folders_named_on_two_lines_match_too(index: SimilarityIndex, tmp_path: Path) -> None:
    make_photo(tmp_path / "photos/two\nlines/c.png", 1)
    index.sync(tmp_path / "photos")
    assert len(index.search(np.ones(DIM), path="**/c.png")) == 1
