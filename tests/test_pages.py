import base64
import io
import os
import re
import shutil
import sys
from html.parser import HTMLParser
from importlib.resources import files
from urllib.parse import unquote_to_bytes, urlsplit

import pytest
from PIL import Image

from simclr_hub.duplicates.find import DuplicateGroup, Member
from simclr_hub.images import FileBytes
from simclr_hub.index import Match
from simclr_hub.pages import THUMBNAIL, Row, write_gallery, write_photos, write_review

HOSTILE = [
    "<script>alert(1)</script>.png",
    '" onerror="alert(1).png',
    "'><img src=x>.png",
    "a\u202egnp.exe.png",
    "\x1b[2J.png",
]


class Tags(HTMLParser):
    """What a browser takes for tags and attributes."""

    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.links = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name == "href"]
        self.attributes |= {name for name, _ in attrs}


def read(path):
    seen = Tags()
    seen.feed(path.read_text("utf-8"))
    return seen


def file_of(link):
    """What a browser opens, as bytes."""
    url = urlsplit(link)
    assert (url.scheme, url.netloc, url.query, url.fragment) == ("file", "", "", "")
    return unquote_to_bytes(url.path)


def test_names_cannot_break_out(tmp_path):
    paths = []
    for name in HOSTILE:
        path = tmp_path / name.replace("/", "\u2215")
        Image.new("RGB", (10, 10), "red").save(path, "PNG")
        paths.append(str(path))
    page = tmp_path / "page.html"
    write_gallery(
        page,
        [Row([paths[0]], [Match(p, 0.5, {}, 0.5, paths) for p in paths], [paths[1]])],
        title="<b>title</b>",
        note='"<i>note',
    )
    html = page.read_text()
    seen = Tags()
    seen.feed(html)
    assert seen.attributes <= {"lang", "charset", "name", "content", "title", "src", "alt", "class", "href"}
    assert "script" not in seen.tags and "i" not in seen.tags and seen.tags.count("img") == 7
    assert [file_of(link) for link in seen.links] == [os.fsencode(path) for path in (paths[0], paths[1], *paths)]
    assert "&lt;script&gt;" in html and "\x1b" not in html and "\u202e" not in html


def test_thumbnails_are_inside_and_small(photos, tmp_path):
    Image.new("RGB", (1000, 600), "blue").save(photos / "large.jpg")
    write_gallery(
        tmp_path / "g.html", [Row([photos / "large.jpg"], [Match(str(photos / "0.jpg"), 0.987654, {})])], title="t"
    )
    html = (tmp_path / "g.html").read_text()
    images = [Image.open(io.BytesIO(base64.b64decode(d))) for d in re.findall(r"base64,([^\"]+)", html)]
    assert [i.size for i in images] == [(THUMBNAIL, 154), (50, 40)]
    assert "0.988" in html and "http" not in html


def test_what_a_result_says(photos, tmp_path):
    found = [
        Match(str(photos / "0.jpg"), 0.9, {}, 0.99789, ["b.jpg", "c<i>.jpg"]),
        Match("d", 0.8, {}, 1 - 1e-9, ["e"]),
    ]
    write_gallery(tmp_path / "g.html", [Row([photos / "1.jpg"], found, [photos / "2.jpg"])], title="t")
    html = (tmp_path / "g.html").read_text()
    for words in (
        "closer than 99.7 %<",
        "closer than &gt; 99.99 %<",
        "+2 copies",
        "+1 copy<",
        "<b>not</b> 2.jpg",
    ):
        assert words in html, words
    assert "c&lt;i&gt;.jpg" in html
    write_gallery(tmp_path / "g.html", [Row([photos / "1.jpg"], [])], title="t")
    html = (tmp_path / "g.html").read_text()
    assert "Nothing was found" in html and "closer than" not in html


def test_a_photo_that_is_gone_keeps_its_place(photos, tmp_path):
    write_gallery(tmp_path / "g.html", [Row([photos / "0.jpg"], [Match("gone.jpg", 0.9, {})])], title="t")
    assert "gone.jpg" in (tmp_path / "g.html").read_text()


def test_a_text_that_no_encoding_has_is_no_reason_to_lose_the_page(tmp_path):
    write_gallery(tmp_path / "g.html", [], title="t", note="Found in photos\udcff.index")
    member = Member("a.jpg", "same-bytes", 1.0, {}, "")
    groups = [DuplicateGroup("same-bytes", member, "why\udcff", [member])]
    write_review(tmp_path / "d.html", groups, title="t", note="Found in photos\udcff.index")
    for page in ("g.html", "d.html"):
        assert "Found in photos\\udcff.index" in (tmp_path / page).read_text("utf-8")


def test_no_long_name_makes_a_page_wider_than_its_window_or_is_cut(photos, tmp_path):
    write_gallery(tmp_path / "g.html", [], title="t")
    write_review(tmp_path / "d.html", [], title="t")
    for page in ("g.html", "d.html"):
        style = (tmp_path / page).read_text().partition("</style>")[0]
        assert re.search(r"body {[^}]*overflow-wrap: anywhere;", style) and "ellipsis" not in style
    folder = photos / "a_long name" / "2019"
    folder.mkdir(parents=True)
    shutil.copy(photos / "0.jpg", folder / "my_photo.jpg")
    write_photos(tmp_path / "g.html", [(folder / "my_photo.jpg", "1", "")], title="t")
    html = (tmp_path / "g.html").read_text()
    assert "a_<wbr>long name/<wbr>2019</span>" in html and "my_<wbr>photo.jpg</span>" in html


def test_pages_have_the_colours_and_figures_of_the_browse_page(tmp_path):
    static = files("simclr_hub") / "browse" / "static"
    style = (static / "base.css").read_text("utf-8")
    assert 'href="static/base.css"' in (static / "index.html").read_text("utf-8")
    assert "--back:" in style and ".files {" in style and "figcaption {" in style
    write_gallery(tmp_path / "g.html", [], title="t")
    write_review(tmp_path / "d.html", [], title="t")
    for page in ("g.html", "d.html"):
        assert style in (tmp_path / page).read_text("utf-8")


@pytest.mark.skipif(sys.platform != "linux", reason="names that are bytes")
def test_links_lead_to_files_whatever_their_names(photos, tmp_path, monkeypatch):
    names = [
        b"a b#1?x=100%.jpg",
        "\u00fc \u96ea.jpg".encode(),
        b"\xff\n.jpg",
        b"a%20b&amp;.jpg",
        b"c:d\\e.jpg",
        b"-2.jpg",
    ]
    folder = os.fsencode(tmp_path) + b"/f #?%41"
    os.mkdir(folder)
    paths = [os.path.join(folder, name) for name in names]
    for path in paths:
        shutil.copy(photos / "0.jpg", path)
    monkeypatch.chdir(folder)
    given = [*map(os.fsdecode, paths), "-2.jpg"]
    write_photos(tmp_path / "g.html", [(path, "", "") for path in given], title="t")
    seen = read(tmp_path / "g.html")
    assert [file_of(link) for link in seen.links] == [*paths, paths[-1]] and seen.tags.count("img") == 7


def test_what_is_no_file_here_has_no_link(photos, tmp_path):
    shutil.make_archive(str(tmp_path / "album"), "zip", photos)
    things = [
        "https://example.invalid/a.jpg",
        f"{tmp_path}/album.zip/0.jpg",
        "gone.jpg",
        FileBytes("0.jpg", (photos / "0.jpg").read_bytes()),
        Image.new("RGB", (9, 9)),
        photos,
        "a\0.jpg",
    ]
    write_photos(tmp_path / "g.html", [(thing, "", "") for thing in things], title="t")
    seen = read(tmp_path / "g.html")
    assert seen.links == [] and seen.tags.count("figure") == 7 and seen.tags.count("img") == 2


def group(name, tier="same-bytes"):
    member = Member(f"/gone/{name}.jpg", "same-bytes", 1.0, {}, "")
    return DuplicateGroup(tier, member, "", [member])


def test_all_groups_are_there_in_pages_with_links(tmp_path):
    groups = [group(f"g{n}", tier) for n, tier in enumerate(["same-bytes"] * 3 + ["similar"] * 2)]
    path = tmp_path / "my #1.html"
    pages = write_review(path, groups, title="t", per_page=2)
    assert [page.name for page in pages] == ["my #1.html", "my #1-2.html", "my #1-3.html"]
    assert sorted(os.listdir(tmp_path)) == sorted(page.name for page in pages)
    texts = [page.read_text() for page in pages]
    assert [re.findall(r"keep g\d|like g\d", text) for text in texts] == [
        ["keep g0", "keep g1"],
        ["keep g2", "like g3"],
        ["like g4"],
    ]
    assert "same bytes: 3 groups, 2 on this page" in texts[0] and "similar: 2 groups, 1 on this page" in texts[2]
    for page in pages:
        links = read(page).links
        others = [f"my%20%231{part}.html" for part in ("", "-2", "-3") if f"my #1{part}.html" != page.name]
        assert links == others * 2
    assert "<nav" not in write_review(path, groups, title="t")[0].read_text()


def test_what_a_longer_list_left_is_removed_and_nothing_else(tmp_path):
    path = tmp_path / "d.html"
    groups = [group(str(n)) for n in range(6)]
    write_review(path, groups, title="t", per_page=1)
    (tmp_path / "d-3.html").unlink()  # a gap hides nothing behind it
    shutil.copy(tmp_path / "d-2.html", tmp_path / "e-2.html")
    shutil.copy(tmp_path / "d-2.html", tmp_path / "d-2.htm")
    (tmp_path / "d-9.html").symlink_to(tmp_path / "e-2.html")
    (tmp_path / "d-5.html").write_text("notes of mine")
    write_gallery(tmp_path / "d-7.html", [], title="a page that was named so")
    assert len(write_review(path, groups, title="t", per_page=3)) == 2
    kept = {"d-2.htm", "d-5.html", "d-7.html", "d-9.html", "e-2.html"}
    assert set(os.listdir(tmp_path)) == {"d.html", "d-2.html"} | kept
    write_gallery(path, [], title="t")
    assert set(os.listdir(tmp_path)) == {"d.html"} | kept


def test_a_further_page_replaces_only_a_further_page(tmp_path):
    path, other = tmp_path / "d.html", tmp_path / "d-2.html"
    groups = [group(str(n)) for n in range(2)]
    for foreign in (lambda: other.write_text("notes"), lambda: write_gallery(other, [], title="named", force=True)):
        foreign()
        before = other.read_bytes()
        with pytest.raises(FileExistsError, match=r"d-2\.html exists already and is not a further page"):
            write_review(path, groups, title="t", per_page=1)
        assert other.read_bytes() == before and not path.exists()
    write_review(path, groups, title="t", per_page=1, force=True)
    before = other.read_bytes()
    write_review(path, groups, title="t", per_page=1)
    assert other.read_bytes() == before and b"page 2" in before


def test_the_page_that_was_named_is_written_last(tmp_path, monkeypatch):
    from simclr_hub import pages

    def fail(path, *args, **options):
        if path.name == "d.html":
            raise KeyboardInterrupt
        written.append(path.name)

    written = []
    monkeypatch.setattr(pages, "write_output", fail)
    with pytest.raises(KeyboardInterrupt):
        write_review(tmp_path / "d.html", [group("1"), group("2")], title="t", per_page=1)
    assert written == ["d-2.html"]


def test_a_page_that_cannot_be_written_is_an_error(photos, tmp_path):
    with pytest.raises(OSError):
        write_gallery(tmp_path / "no" / "g.html", [], title="t")
