"""What a notebook shows of results."""

import pickle
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from index.index_fakes import FakeEmbedder
from PIL import Image

from simclr_hub import Match, SimilarityIndex, notebook
from simclr_hub.duplicates.find import DuplicateGroup, Member
from simclr_hub.index import CheckReport, SyncReport
from simclr_hub.index.results import Groups, Matches, Searches
from simclr_hub.labels import Label, Labels, LeftOut

HOSTILE = '"><img src=x onerror=alert(1)>\udcff\x1b.jpg'


class Tags(HTMLParser):
    def __init__(self, html: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def show(result: object) -> Tags:
    html = result._repr_html_()  # type: ignore[attr-defined]
    assert isinstance(html, str) and "\x1b" not in html
    html.encode()  # as a notebook's file has it
    seen = Tags(html)
    assert seen.attributes <= {"style", "title", "src", "alt", "scope"} and "script" not in seen.tags
    assert "style" not in seen.tags  # which would reach the notebook itself
    return seen


@pytest.fixture
def index(tmp_path: Path, photos: Path) -> Iterator[SimilarityIndex]:
    shutil.copy(photos / "0.jpg", photos / "copy.jpg")
    with SimilarityIndex.create(tmp_path / "photos.index", FakeEmbedder()) as made:
        made.sync(photos)
        yield made


def test_a_search_shows_its_photos_and_is_a_list(index: SimilarityIndex, photos: Path) -> None:
    found = index.search(photos / "1.jpg", k=2)
    seen = show(found)
    assert seen.tags.count("img") == len(found) == 2 and f"{found[0].score:.3f}" in seen.text
    assert "+1 copy" in show(index.search(photos / "1.jpg", k=9)).text
    assert isinstance(found, list) and found == list(found)
    again = pickle.loads(pickle.dumps(found))
    assert again == found and type(again) is Matches
    assert show(found[:1]).tags.count("img") == 1 and isinstance(found[0], Match)


def test_several_searches_show_a_part_each(index: SimilarityIndex, photos: Path) -> None:
    found = index.search([photos / "1.jpg", photos / "2.jpg"], k=1)
    assert isinstance(found, Searches) and [type(one) for one in found] == [Matches, Matches]
    seen = show(found)
    assert "2 searches" in seen.text and seen.tags.count("img") == 2
    together = index.search([photos / "1.jpg", photos / "2.jpg"], negative=[], k=1)
    assert isinstance(together, Matches) and show(together).tags.count("img") == 1
    assert index.search([]) == []


def test_duplicates_show_their_groups(index: SimilarityIndex) -> None:
    found = index.duplicates(["same-bytes"])
    seen = show(found)
    assert seen.tags.count("img") == 2 and "keep" in seen.text and "same bytes" in seen.text
    assert pickle.loads(pickle.dumps(found)) == found == list(found)


def test_what_is_shown_is_bounded_and_made_when_it_is_shown(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    original = notebook.draw_photo
    monkeypatch.setattr(notebook, "draw_photo", lambda source, side: drawn.append(source) or original(source, side))
    copies = []
    match = Match(str(photos / "0.jpg"), 0.5, {}, None, lambda: copies.append(1) or [])
    found = Matches([Match(str(photos / "0.jpg"), 0.5, {})] * notebook.MOST + [match] * 1950)
    searches = Searches([found] * 1000)
    assert drawn == [] and copies == []
    assert "And 1,950 more." in show(found).text and len(drawn) == notebook.MOST
    assert copies == []  # nor is anything read of those that are not shown
    drawn.clear()
    seen = show(searches)
    assert len(drawn) == notebook.MOST and "And 993 more like these." in seen.text and "And 1,992 more." in seen.text
    member = Member(str(photos / "0.jpg"), "same-bytes", 1.0, {}, "")
    drawn.clear()
    seen = show(Groups([DuplicateGroup("same-bytes", member, "", [member] * 100)] * 20))
    assert len(drawn) == notebook.MOST and "And 93 more." in seen.text and "And 13 more like these." in seen.text
    empty = show(Searches([Matches()] * 1000))
    assert empty.tags.count("p") < 3 * notebook.MOST


def test_what_cannot_be_read_keeps_its_place_and_nothing_breaks_out(photos: Path) -> None:
    (photos / "broken.jpg").write_bytes(b"no photo")
    found = Matches(Match(str(path), 0.5, {}) for path in (photos / "broken.jpg", "gone.jpg", HOSTILE, "a\0.jpg"))
    seen = show(found)
    assert seen.tags.count("figure") == 4 and seen.text.count("unreadable") == 4 and "img" not in seen.tags
    assert "\\udcff" in seen.text
    member = Member(HOSTILE, "same-bytes", 1.0, {}, "")
    assert "img" not in show(Groups([DuplicateGroup("same-bytes", member, HOSTILE, [member])])).tags
    show(SyncReport(found=1, listing_errors=[HOSTILE] * 30, skipped={HOSTILE: 2}))
    show(CheckReport(HOSTILE, problems=[HOSTILE], damaged_photos=[HOSTILE]))
    labels = Labels([HOSTILE], [Label(HOSTILE, HOSTILE, 0.5, True, HOSTILE, 0.2)], 1.0, LeftOut(0, 0, 0, 0), 2)
    assert "img" not in show(labels).tags


def test_empty_results_and_lists_of_something_else_do_not_fail() -> None:
    for empty in (Matches(), Searches(), Groups(), Searches([Matches()])):
        assert "figure" not in show(empty).tags
    assert Matches([3])._repr_html_() is None  # type: ignore[list-item]
    assert Searches([None])._repr_html_() is None  # type: ignore[list-item]


def test_reports_show_a_table_of_what_is_not_nothing(index: SimilarityIndex, photos: Path) -> None:
    report = SyncReport(found=1234, embedded=1234, skipped={"no photo": 3}, listing_errors=["x"] * 25, seconds=1.25)
    seen = show(report)
    for words in ("1,234 photos found", "embedded", "no photo: 3", "and 5 more", "1.2"):
        assert words in seen.text, words
    assert "missing" not in seen.text and "listing errors" in seen.text
    assert "found" in show(index.sync(photos)).text
    assert "sound" in show(index.check()).text
    assert "problems were found" in show(CheckReport("i", problems=["a row is damaged"])).text


def test_labels_show_those_to_check(photos: Path) -> None:
    labels = [Label(str(photos / "0.jpg"), "cat", 0.9, False, "dog", 0.1) for _ in range(20)]
    labels += [Label(str(photos / "1.jpg"), "dog", 0.4, True, "cat", 0.3)]
    labels += [Label(str(photos / "2.jpg"), "dog", 1, False, "", 0, example=True)]
    seen = show(Labels(["cat", "dog"], labels, 0.8, LeftOut(6, 5, 0, 0), 6))
    assert "22 photos labelled by 6 examples, 5 of 6 right when left out" in seen.text
    assert "cat: 20 sure" in seen.text and "dog: 1 unsure" in seen.text and "And 12 more." in seen.text
    assert seen.tags.count("img") == 9


def test_thumbnails_are_small(tmp_path: Path) -> None:
    Image.effect_noise((4000, 3000), 90).convert("RGB").save(tmp_path / "large.jpg")
    html = Matches([Match(str(tmp_path / "large.jpg"), 0.5, {})])._repr_html_()
    assert html is not None and 1000 < len(html) < 40_000
