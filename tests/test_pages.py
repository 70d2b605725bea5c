import base64
import io
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from PIL import Image

from simclr_hub.index import Match
from simclr_hub.pages import THUMBNAIL, Row, write_gallery, write_review

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
        self.tags, self.attributes = [], set()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


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
    assert seen.attributes <= {"lang", "charset", "name", "content", "title", "src", "alt", "class"}
    assert "script" not in seen.tags and "i" not in seen.tags and seen.tags.count("img") == 7
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
    write_review(tmp_path / "d.html", [], title="t", note="Found in photos\udcff.index")
    for page in ("g.html", "d.html"):
        assert "Found in photos\\udcff.index" in (tmp_path / page).read_text("utf-8")


@pytest.mark.parametrize("template", ["gallery.html", "duplicates.html"])
def test_no_long_name_makes_a_page_wider_than_its_window(template):
    style = (files("simclr_hub") / "templates" / template).read_text("utf-8").partition("</style>")[0]
    assert re.search(r"body {[^}]*overflow-wrap: anywhere;", style)


def test_a_page_that_cannot_be_written_is_an_error(photos, tmp_path):
    with pytest.raises(OSError):
        write_gallery(tmp_path / "no" / "g.html", [], title="t")
