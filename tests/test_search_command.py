import functools
import json
from pathlib import Path

import click
import pytest
from image_server import serving
from PIL import Image

from simclr_hub import web
from simclr_hub.cli.search import parse_where


@pytest.fixture
def index(run, photos, tiny_dir):
    """Of six photos, one of them larger and from a camera, two in a folder below."""
    with Image.open(photos / "2.jpg") as image:
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "Canon", "EOS 5D"
        exif.get_ifd(0x8769)[0x9003] = "2019:05:06 07:08:09"
        image.resize((300, 200)).save(photos / "2.jpg", exif=exif)
    assert run("index", photos, "--model", tiny_dir)[0] == 0
    return "photos.index"


def found(out: str) -> list[list[str]]:
    return [[Path(m["path"]).name for m in one["matches"]] for one in json.loads(out)]


def test_several_queries_and_a_pattern(run, index, photos):
    code, out, _ = run("search", index, photos / "2.jpg", photos / "3.jpg", "--path", "below/*", "--json")
    below = sorted(p.name for p in (photos / "below").iterdir())
    assert code == 0 and [sorted(names) for names in found(out)] == [below, below]
    code, out, _ = run("search", index, photos / "2.jpg", "--path", f"{photos}/*.jpg", "--json")
    assert code == 0 and len(found(out)[0]) == 3


def test_metadata_of_a_photo(run, index, photos):
    out = run("search", index, photos / "1.jpg", "--where", "width=300", "--json")[1]
    (match,) = json.loads(out)[0]["matches"]
    assert match["path"] == str(photos / "2.jpg")
    assert (match["metadata"]["camera"], match["metadata"]["height"]) == ("Canon EOS 5D", 200)
    for where, number in (
        (["taken=2019..2019-05"], 1),
        (["taken=2020.."], 0),
        (["camera=Canon EOS 5D", "width=..300"], 1),
        (["width=..299"], 5),
    ):
        options = ["--with-self"] + [part for one in where for part in ("--where", one)]
        assert len(found(run("search", index, photos / "1.jpg", *options, "--json")[1])[0]) == number, where
    table = run("search", index, photos / "2.jpg", "--with-self")[1].splitlines()
    assert table[0].split() == [
        "score",
        "photo",
        "taken",
        "camera",
        "size",
    ]  # six photos are too few for "closer than"
    assert table[1].split(maxsplit=3)[3].split("  ") == ["Canon EOS 5D", "300 x 200"]


def test_a_photo_on_the_web_is_a_query(run, index, photos, tmp_path, monkeypatch):
    with serving((photos / "3.jpg").read_bytes()) as (base, _):
        url = f"{base}/photo.png?token=secret"
        code, out, err = run("search", index, url)
        assert code == 1 and "private" in err and "secret" not in out + err
        monkeypatch.setattr("simclr_hub.images.fetch", functools.partial(web.fetch, allow_private=True))
        code, out, _ = run("search", index, url, photos / "2.jpg", "-k", 1, "--html", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and "secret" not in out + page and f"{base}/photo.png?..." in page
    assert out.splitlines()[0] == f"{base}/photo.png?...:" and "1.000  photos/3.jpg" in out


def test_the_querys_own_file_is_left_out(run, index, photos):
    for spelled in (photos / "2.jpg", "photos/2.jpg", "photos/below/../2.jpg"):
        assert "2.jpg" not in found(run("search", index, spelled, "--json")[1])[0], spelled
    (names,) = found(run("search", index, photos / "2.jpg", "--json", "--with-self")[1])
    assert names[0] == "2.jpg" and len(names) == 6


def test_copies_are_told(run, photos, tiny_dir, tmp_path):
    (photos / "copy.jpg").write_bytes((photos / "3.jpg").read_bytes())
    assert run("index", photos, "--model", tiny_dir)[0] == 0
    out = run("search", "photos.index", photos / "2.jpg", "--html", "g.html")[1]
    lines = out.splitlines()
    assert lines[0].split() == ["score", "photo", "copies", "size"] and len(lines) == 1 + 5 + 1
    assert [line.split()[2] for line in lines if "3.jpg" in line] == ["+1"]
    assert "+1 copy" in (tmp_path / "g.html").read_text()
    matches = json.loads(run("search", "photos.index", photos / "2.jpg", "--json")[1])[0]["matches"]
    assert [m["copies"] for m in matches if m["path"].endswith("3.jpg")] == [[str(photos / "copy.jpg")]]
    assert len(run("search", "photos.index", photos / "2.jpg", "--all-copies")[1].splitlines()) == 1 + 6


def test_several_photos_as_one_query(run, index, photos, tmp_path):
    a, b, c = (photos / f"{i}.jpg" for i in range(3))
    (both,) = json.loads(run("search", index, a, b, "--together", "--json")[1])
    assert both["query"] == [str(a), str(b)] and "not" not in both and len(both["matches"]) == 4
    (less,) = json.loads(run("search", index, a, b, "--not", c, "--json", "--html", "g.html")[1])
    names = {Path(m["path"]).name for m in less["matches"]}
    assert less["not"] == [str(c)] and names == {"3.jpg", "4.png", "5.png"}
    assert "<b>not</b> 2.jpg" in (tmp_path / "g.html").read_text()
    scores = [m["score"] for m in less["matches"]]
    assert scores != [m["score"] for m in both["matches"] if Path(m["path"]).name in names]
    again = json.loads(run("search", index, a, b, "--not", c, "--not-weight", 0, "--json")[1])[0]["matches"]
    assert {m["path"]: m["score"] for m in again}.items() <= {m["path"]: m["score"] for m in both["matches"]}.items()
    assert run("search", index, a, "--not", a, "--not-weight", 1)[0] == 1
    assert "cancel one another" in run("search", index, a, "--not", a, "--not-weight", 1)[2]
    assert run("search", index, a, "--not-weight", -1)[0] == 2


def test_why_nothing_was_found(run, index, photos):
    for options, words in (
        (["--where", "colour=red"], "no photo has 'colour'; there are: bytes, camera, format, height"),
        (["--where", "format=jpeg"], "there is 'JPEG': upper and lower case count"),
        (["--where", "taken=2019-13"], "'2019-13' is no date"),
        (["--path", "*.gif"], "no path matches '*.gif'"),
    ):
        code, out, err = run("search", index, photos / "1.jpg", *options, "--json")
        assert code == 0 and words in err and json.loads(out)[0]["matches"] == [], (options, err)
        code, out, err = run("search", index, photos / "1.jpg", photos / "2.jpg", *options)
        assert code == 0 and err.count(words) == 1 and out.splitlines()[1::2] == ["none", "none"]
    code, _, err = run("search", index, photos / "1.jpg", "--where", "width=30..20")
    assert code == 2 and "width=('30', '20')" in err and "lower end first" in err
    assert run("search", index, photos / "1.jpg")[2] == ""


def test_what_cannot_be_compared_is_a_usage_error(run, index, photos):
    for options, words in (
        (["--where", "width"], "KEY=VALUE"),
        (["--where", "width=.."], "KEY=VALUE"),
        (["--where", "width=1", "--where", "width=2"], "given already"),
        (["--path", "[z-a]"], "no pattern"),
    ):
        code, _, err = run("search", index, photos / "1.jpg", *options)
        assert code == 2 and words in err


def test_where() -> None:
    assert parse_where(["a=1", "b=1..2", "c=..x", "d=x..", "e=f=g"]) == {
        "a": "1",
        "b": ("1", "2"),
        "c": (None, "x"),
        "d": ("x", None),
        "e": "f=g",
    }
    for wrong in ("=1", "a=", "a", "a=.."):
        with pytest.raises(click.BadParameter):
            parse_where([wrong])
