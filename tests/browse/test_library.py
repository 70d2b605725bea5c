"""Ids, orders, groups and filters of what the page shows."""

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index.index_fakes import DIM, FakeEmbedder

from simclr_hub import SimilarityIndex
from simclr_hub.browse.api import Filters
from simclr_hub.browse.library import ID, Library, UnknownPhotoError, filter_arguments
from simclr_hub.browse.orders import SORTS, Sort
from simclr_hub.index.search.filters import make_condition
from simclr_hub.index.store import Photo
from simclr_hub.scan import FileStat


@pytest.fixture
def index(tmp_path: Path) -> Iterator[SimilarityIndex]:
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as made:
        yield made


@pytest.fixture
def library(index: SimilarityIndex) -> Library:
    return Library(index)


def put(index: SimilarityIndex, *photos: dict[str, Any]) -> None:
    """Put photos below /elsewhere: "path", "content" (the path), "state", "bytes", "modified"; else of the content."""
    store = index.store
    with store.writing(), store.transaction():
        root = store.put_root(b"/elsewhere", "ok")
        for photo in photos:
            details = dict(photo)
            path, state = details.pop("path"), details.pop("state", "live")
            content = sha256(os.fsencode(details.pop("content", path))).digest()
            own = {key: details.pop(key) for key in ("bytes", "modified") if key in details}
            vector = np.frombuffer(content[:DIM], np.uint8).astype(np.float32) + 1
            store.put_vector(content, vector / np.linalg.norm(vector))
            store.put_details(content, details, b"")
            stat = FileStat(1, 1, 1, 1)
            store.put(Photo(root.id, os.fsencode(path), stat, True, content, state, metadata=json.dumps(own)))


def names(library: Library, sort: Sort = "folder", condition: Any = None, **options: Any) -> list[str]:
    photos = library.page(sort, condition, limit=1000, **options)["photos"]
    return [os.path.relpath(os.path.join(photo["folder"], photo["name"]), "/elsewhere") for photo in photos]


def id_of(library: Library, name: str) -> str:
    found = library.page("folder", None, limit=1000)["photos"]
    return next(photo["id"] for photo in found if photo["name"] == name)


DAY = 86400
ODD = [
    {"path": "b/dated.jpg", "taken": "2019-06-30T10:00:00+02:00", "camera": "Nikon", "bytes": 5000, "modified": DAY},
    {"path": "b/undated.jpg", "modified": 18000 * DAY, "bytes": 3},  # 2019-04-14
    {"path": "a/month 0.jpg", "taken": "2019-00-10T00:00:00", "modified": 17000 * DAY, "camera": "Canon", "bytes": 90},
    {"path": "a/no time.jpg"},
    {"path": "a/no clock.jpg", "taken": "0000-00-00T00:00:00", "camera": "Nikon", "bytes": 2 << 20},
    {"path": "c/old.jpg", "taken": "1901-01-01T00:00:00", "bytes": 0, "camera": "Agfa"},
    {"path": "c/far.jpg", "modified": 1e30, "bytes": 2 << 30, "camera": "Zeiss"},
    {"path": "top.jpg", "taken": "2019-06-01T00:00:00", "bytes": 6000, "width": 30, "height": 20},
]


def fill_in_parts(index: SimilarityIndex) -> None:
    """As several syncs do: segments of which the later ones override contents of the earlier ones."""
    put(index, *ODD[:4], {"path": "c/old.jpg", "taken": "2030-01-01T00:00:00"})
    with index.store.writing():
        index._write_cache()
    index.search(np.ones(DIM, np.float32), 1)
    put(index, *ODD[4:])
    index.search(np.ones(DIM, np.float32), 1)
    put(index, ODD[0])
    assert index.use_snapshot(lambda snapshot: len(snapshot.segments)) > 1


@pytest.fixture(params=["one segment", "several segments"])
def odd(request: pytest.FixtureRequest, index: SimilarityIndex, library: Library) -> Library:
    if request.param == "one segment":
        put(index, *ODD)
    else:
        fill_in_parts(index)
    return library


def seconds(photo: dict[str, Any]) -> float:
    """By the camera's own clock, else when it was written; nan for neither."""
    try:
        return datetime.fromisoformat(str(photo.get("taken", ""))[:19]).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return float(photo.get("modified", np.nan))


def test_by_folder_many_names_lie_in_the_order_of_their_letters(index: SimilarityIndex, library: Library) -> None:
    random = np.random.default_rng(3)
    letters = np.array(["a", "b", "B", " ", "-", ".", "0", "1", "ä", "\U0001f600", "\udcff", "\n"])
    folders = ["", "a/", "a-/", "a/a/", "a/a b/", "a b c d e f g h/", "a b c d e f g i/", "ä" * 40 + "/"]
    paths = set()
    for length in (1, 2, 7, 8, 9, 15, 16, 17, 40):
        for _ in range(30):
            name = "".join(random.choice(letters, length))
            paths.add(
                str(random.choice(folders)) + ("same beginning " if random.random() < 0.5 else "") + name + ".jpg"
            )
    first, rest = sorted(paths)[::2], sorted(paths)[1::2]
    put(index, *({"path": path} for path in first))
    with index.store.writing():
        index._write_cache()
    index.search(np.ones(DIM, np.float32), 1)
    put(index, *({"path": path} for path in rest))
    index.search(np.ones(DIM, np.float32), 1)
    found = index.use_snapshot(lambda snapshot: snapshot.paths(library.order("folder").photos))
    assert found == sorted(
        ("/elsewhere/" + path for path in paths), key=lambda path: tuple(map(os.fsencode, os.path.split(path)))
    )
    order = library.order("folder", reverse=True)
    assert len(order.labels) == len({os.path.dirname(path) for path in paths})
    assert order.labels == library.order("folder").labels[::-1]


@pytest.mark.parametrize("reverse", [False, True])
def test_by_date_the_newest_are_first_and_what_has_no_time_is_last(odd: Library, reverse: bool) -> None:
    timed = sorted((photo for photo in ODD if seconds(photo) < 1e12), key=seconds, reverse=not reverse)
    found = names(odd, "date", reverse=reverse)
    assert found[: len(timed)] == [photo["path"] for photo in timed]
    assert set(found[len(timed) :]) == {"a/no time.jpg", "a/no clock.jpg", "c/far.jpg"}
    order = odd.order("date", reverse=reverse)
    assert order.group(len(ODD) - 1) == "no date" and "2019-06" in order.labels and "1901-01" in order.labels
    dates = {photo["name"]: photo["date"] for photo in odd.page("date", None)["photos"]}
    assert dates["dated.jpg"] == "2019-06-30" and dates["month 0.jpg"] == "2016-07-18" and dates["no time.jpg"] == ""


@pytest.mark.parametrize("reverse", [False, True])
def test_by_folder_names_rise_within_it(odd: Library, reverse: bool) -> None:
    folders = {"": ["top.jpg"]}
    for photo in sorted(ODD, key=lambda photo: photo["path"]):
        if "/" in photo["path"]:
            folders.setdefault(photo["path"][0], []).append(photo["path"])
    assert names(odd, reverse=reverse) == [name for key in sorted(folders, reverse=reverse) for name in folders[key]]
    order = odd.order("folder", reverse=reverse)
    labels = ["/elsewhere", "/elsewhere/a", "/elsewhere/b", "/elsewhere/c"]
    assert list(order.labels) == (labels[::-1] if reverse else labels)
    assert [order.group(place) for place in order.starts.tolist()] == list(order.labels)


def test_by_camera_what_names_none_is_told(odd: Library) -> None:
    order = odd.order("camera")
    assert list(order.labels) == ["Agfa", "Canon", "Nikon", "Zeiss", "no camera"]
    assert order.starts.tolist() == [0, 1, 2, 4, 5]
    assert names(odd, "camera")[2:4] == ["b/dated.jpg", "a/no clock.jpg"]  # of one camera the newest first


def test_by_size_the_largest_are_first(odd: Library) -> None:
    sized = sorted((photo for photo in ODD if "bytes" in photo), key=lambda photo: -photo["bytes"])
    assert names(odd, "size")[: len(sized)] == [photo["path"] for photo in sized]
    labels = ["from 2 GB", "from 2 MB", "from 4 kB", "from 64 bytes", "from 2 bytes", "from 1 bytes"]
    assert list(odd.order("size").labels) == labels


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_pages_are_the_order_in_parts(odd: Library, sort: Sort, reverse: bool) -> None:
    whole = odd.page(sort, None, reverse=reverse)
    assert whole["total"] == len(ODD) == len({photo["id"] for photo in whole["photos"]})
    parts = [odd.page(sort, None, reverse=reverse, offset=at, limit=3)["photos"] for at in (0, 3, 6, 9, 10**12)]
    assert [len(part) for part in parts] == [3, 3, 2, 0, 0]
    assert sum(parts, []) == whole["photos"]


@pytest.mark.parametrize("sort", SORTS)
def test_an_empty_index_has_orders(library: Library, sort: Sort) -> None:
    page = library.page(sort, None)
    assert page["total"] == 0 and page["photos"] == [] and library.order(sort).labels == []


def test_an_id_names_one_file_and_outlives_syncs_and_restarts(index: SimilarityIndex, tmp_path: Path) -> None:
    put(index, {"path": "x.jpg", "content": "same"}, {"path": "y.jpg", "content": "same"}, {"path": "z.jpg"})
    first = {photo["name"]: photo["id"] for photo in Library(index).page("folder", None)["photos"]}
    assert len(set(first.values())) == 3 and all(ID.fullmatch(one) for one in first.values())
    assert first["x.jpg"][:64] == first["y.jpg"][:64] == sha256(b"same").hexdigest()
    put(index, {"path": "new.jpg"})
    with SimilarityIndex.open(tmp_path / "i", FakeEmbedder()) as again:
        later = Library(again)
        assert all(id_of(later, name) == one for name, one in first.items())
        assert [later.find(one).path for one in first.values()] == [f"/elsewhere/{name}" for name in first]


def test_what_is_no_id_is_unknown(odd: Library) -> None:
    known = id_of(odd, "top.jpg")
    for wrong in ("", "x" * 80, "0" * 80, known[:64], known[:64] + "0" * 16, known.upper(), known + "\n", "../x"):
        for ask in (odd.find, odd.details, odd.paths_of):
            with pytest.raises(UnknownPhotoError):
                ask(wrong)


def test_what_went_is_not_there_and_comes_back_under_its_id(index: SimilarityIndex, library: Library) -> None:
    put(index, {"path": "a.jpg", "content": "one"}, {"path": "b.jpg", "content": "one"}, {"path": "c.jpg"})
    a, c = id_of(library, "a.jpg"), id_of(library, "c.jpg")
    put(index, {"path": "a.jpg", "content": "one", "state": "missing"}, {"path": "c.jpg", "state": "missing"})
    assert names(library) == ["b.jpg"] and library.details(id_of(library, "b.jpg"))["copies"] == []
    for gone in (a, c):
        with pytest.raises(UnknownPhotoError, match="not in the index any more"):
            library.find(gone)
    contents = [sha256(word).digest() for word in (b"one", b"c.jpg", b"never")]
    found = library.of_contents(contents)
    assert found[0] is not None and found[0]["name"] == "b.jpg" and found[1:] == [None, None]
    put(index, {"path": "c.jpg"})
    assert library.find(c).path == "/elsewhere/c.jpg"


def test_many_copies_of_one_content(index: SimilarityIndex, library: Library) -> None:
    put(index, *({"path": f"{n % 7}/{n}.jpg", "content": "one"} for n in range(300)), {"path": "other.jpg"})
    assert len(names(library)) == 301
    wanted = id_of(library, "123.jpg")
    details = library.details(wanted)
    assert details["path"] == "/elsewhere/4/123.jpg" and len(details["copies"]) == 299
    assert library.paths_of(wanted)[0] == "/elsewhere/4/123.jpg" and len(set(library.paths_of(wanted))) == 300
    assert library.find(details["copies"][0]["id"]).indexed.content_hash.hex() == wanted[:64]


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"folder": "/elsewhere/a"}, {"a/month 0.jpg", "a/no time.jpg", "a/no clock.jpg"}),
        ({"folder": "/elsewhere"}, {photo["path"] for photo in ODD}),
        ({"folder": "/elsewhere/[ab]"}, set()),  # a name, not a pattern
        ({"path": "[ab]/**"}, {photo["path"] for photo in ODD if photo["path"][:2] in ("a/", "b/")}),
        ({"camera": "Nikon"}, {"b/dated.jpg", "a/no clock.jpg"}),
        ({"taken": ("2019-06", "2019-06")}, {"b/dated.jpg", "top.jpg"}),
        ({"taken": ("2019-06-02", None)}, {"b/dated.jpg"}),
        ({"taken": ("", "1999")}, {"c/old.jpg", "a/no clock.jpg"}),
        ({"min_side": 20}, {"top.jpg"}),
        ({"min_side": 21}, set()),
        ({"min_bytes": 6000, "camera": "Zeiss"}, {"c/far.jpg"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",  # a set's order is each process's own
)
def test_filters(odd: Library, filters: dict[str, Any], expected: set[str]) -> None:
    condition = make_condition(**filter_arguments(**filters))
    assert set(names(odd, condition=condition)) == expected
    assert odd.page("date", condition)["total"] == len(expected)


def test_a_folder_with_a_pattern_is_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        filter_arguments(folder="/x", path="*.jpg")


def test_an_order_is_kept_for_one_state_of_the_index(index: SimilarityIndex, library: Library) -> None:
    put(index, {"path": "a.jpg"})
    before = library.order("folder")
    assert library.order("folder") is before
    put(index, {"path": "b.jpg"})
    assert library.order("folder") is not before and names(library) == ["a.jpg", "b.jpg"]


def test_counting_takes_a_small_share_of_the_time(
    index: SimilarityIndex, library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(index, {"path": "a.jpg"})
    counted, clock = index.status, [100.0]
    calls: list[float] = []

    def slow() -> dict[str, Any]:
        clock[0] += 0.5
        calls.append(clock[0])
        return counted()

    monkeypatch.setattr(index, "status", slow)
    monkeypatch.setattr("simclr_hub.browse.library.time.monotonic", lambda: clock[0])
    for _ in range(60):  # a minute of a page that asks each second
        assert library.status()["photos"] == 1
        clock[0] += 1
    assert 2 <= len(calls) <= 8
    put(index, {"path": "b.jpg"})
    assert library.status()["photos"] == 2  # at once


@pytest.mark.parametrize("name", ["\udcff\udcfe", "two\nlines", "[a-z]*?", "\u202egnp", "a/\udcff b", "ü"])
def test_a_folder_of_any_name_is_named_by_one_of_its_photos(
    index: SimilarityIndex, library: Library, name: str
) -> None:
    put(index, *({"path": path} for path in (f"{name}/1.jpg", f"{name}/below/2.jpg", f"{name} not/3.jpg", "4.jpg")))
    ids = {photo["name"]: photo["id"] for photo in library.page("folder", None)["photos"]}

    def found(**filters: Any) -> list[str]:
        return sorted(os.path.basename(one) for one in names(library, condition=Filters(**filters).condition(library)))

    assert found(folder_of=ids["1.jpg"]) == ["1.jpg", "2.jpg"] and found(folder_of=ids["2.jpg"]) == ["2.jpg"]
    assert found(root=1) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"] and found(folder_of=ids["1.jpg"], min_bytes=1) == []
    with pytest.raises(ValueError, match="one folder"):
        found(root=1, folder_of=ids["1.jpg"])
    with pytest.raises(ValueError, match="no such folder"):
        found(root=2)
    with pytest.raises(UnknownPhotoError):
        found(folder_of="0" * 80)
