import json
import os
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub.duplicates.find import DuplicateGroup, Member
from simclr_hub.duplicates.words import size
from simclr_hub.pages import write_review

Run = Callable[..., tuple[int, str, str]]
HOSTILE = "<script>alert(1)<script>.jpg"


@pytest.fixture
def photos(tmp_path: Path, run: Run, tiny_dir: Path) -> Path:
    """Eleven photos, an exact copy and a small one, indexed as p.index."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted(SAMPLE_PHOTOS.glob("*.jpg"))[:11]:
        shutil.copy(path, folder)
    shutil.copy(folder / "banana_1.jpg", folder / HOSTILE)
    with Image.open(folder / "cat_1.jpg" if (folder / "cat_1.jpg").exists() else folder / "bird_1.jpg") as image:
        image.resize((96, 64)).save(folder / "small.webp")
    assert run("index", folder, "-o", "p.index", "--model", tiny_dir)[0] == 0
    return folder


def test_the_table_says_what_to_keep_and_why(run: Run, photos: Path) -> None:
    code, out, _ = run("duplicates", "p.index", "--tier", "same-bytes", "--tier", "same-picture")
    assert code == 0
    assert "same bytes: keep photos/" in out and "most pixels: 192 x 128, the next has 96 x 64" in out
    assert "same picture 0.9" in out and "small.webp  (96 x 64, WEBP," in out
    assert "2 groups (1 same bytes, 1 same picture, 0 similar); 2 copies of what would be kept" in out
    assert "simclr-hub calibrate p.index" in out and "Nothing was deleted." in out
    assert sorted(path.name for path in photos.iterdir()).count("small.webp") == 1


def test_json_has_the_groups(run: Run, photos: Path) -> None:
    groups = json.loads(run("duplicates", "p.index", "--tier", "same-picture", "--json")[1])
    assert [group["tier"] for group in groups] == ["same-picture"]
    assert groups[0]["others"][0]["path"] == str(photos / "small.webp")
    assert groups[0]["keep"]["metadata"]["width"] == 192 and groups[0]["why"]
    assert json.loads(run("duplicates", "p.index", "--tier", "same-bytes", "--json")[1])[0]["tier"] == "same-bytes"


def test_not_a_duplicate_stays(run: Run, photos: Path) -> None:
    code, out, _ = run(
        "duplicates", "p.index", "--not-duplicate", photos / "bird_1.jpg", photos / "small.webp", "--json"
    )
    assert code == 0
    for groups in (json.loads(out), json.loads(run("duplicates", "p.index", "--json")[1])):
        firsts = [group.get("keep") or group["like"] for group in groups]
        members = [
            str([first["path"], *(other["path"] for other in group["others"])])
            for first, group in zip(firsts, groups, strict=True)
        ]
        assert members and not any("bird_1.jpg" in some and "small.webp" in some for some in members)
    code, _, err = run("duplicates", "p.index", "--not-duplicate", photos / "bird_1.jpg", "nowhere.jpg")
    assert code == 2 and "nowhere.jpg: not in the index" in err


def test_of_similar_pictures_none_is_to_be_kept(run: Run, photos: Path) -> None:
    code, out, _ = run("duplicates", "p.index", "--tier", "similar", "--html", "d.html")
    assert code == 0 and "1. similar: like photos/" in out and "keep" not in out.split("groups (")[0]
    assert "0 copies of what would be kept, 0 bytes" in out
    page = Path("d.html").read_text()
    assert "like " in page and 'class="like"' in page
    assert "keep " not in page.split("<h2>")[1] and 'class="keep"' not in page
    for group in json.loads(run("duplicates", "p.index", "--tier", "similar", "--json")[1]):
        assert set(group) == {"tier", "like", "others"}


def test_copies_are_counted_by_kind_wherever_they_are(run: Run, photos: Path, tiny_dir: Path) -> None:
    for name, source in (("a.jpg", "bird_1.jpg"), ("b.webp", "small.webp"), ("c.webp", "small.webp")):
        shutil.copy(photos / source, photos / name)
    os.link(photos / "bird_1.jpg", photos / "one more name.jpg")
    os.link(photos / "boat_1.jpg", photos / "link.jpg")
    run("index", photos, "-o", "p.index", "--model", tiny_dir)
    chosen = ("--tier", "same-bytes", "--tier", "same-picture")
    out = run("duplicates", "p.index", *chosen, "--html", "d.html")[1]
    small, bird, banana = ((photos / name).stat().st_size for name in ("small.webp", "bird_1.jpg", "banana_1.jpg"))
    assert "2 groups (1 same bytes, 1 same picture, 0 similar); 5 copies of what would be kept, " in out
    assert f"{size(3 * small + bird + banana)}: 4 have the same bytes as another file, 1 only show" in out
    assert "1 more names of the same files." in out and "link.jpg" not in out
    assert "same file  photos/one more name.jpg  (one more name of photos/" in out
    assert "<b>same file</b>" in Path("d.html").read_text()
    members = [m for g in json.loads(run("duplicates", "p.index", *chosen, "--json")[1]) for m in g["others"]]
    assert [bool(m["same_file"]) for m in members].count(True) == 1 and all(len(m["sha256"]) == 64 for m in members)


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}


def test_the_page_shows_every_file_and_no_name_breaks_out(run: Run, photos: Path) -> None:
    code, out, _ = run("duplicates", "p.index", "--tier", "same-bytes", "--tier", "same-picture", "--html", "d.html")
    assert code == 0 and "wrote d.html" in out
    seen = Tags()
    seen.feed(Path("d.html").read_text())
    assert seen.tags.count("img") == 4 and seen.tags.count("section") == 2 and "script" not in seen.tags
    assert seen.attributes <= {"lang", "charset", "name", "content", "title", "src", "alt", "class", "href"}
    assert "&lt;script&gt;" in Path("d.html").read_text() and "http" not in Path("d.html").read_text()


@pytest.mark.skipif(sys.platform != "linux", reason="names that are bytes")
def test_no_name_reaches_the_terminal_as_it_is(run: Run, photos: Path, tiny_dir: Path) -> None:
    strange = photos / os.fsdecode(b"a\xff\n\x1b[2J.jpg")
    shutil.copy(photos / "banana_1.jpg", strange)
    index = os.fsdecode(b"\xff.index")
    run("index", photos, "-o", index, "--model", tiny_dir)
    for args in (("duplicates", index), ("search", index, strange, photos / "bird_1.jpg"), ("status", index)):
        code, out, _ = run(*args)
        assert code == 0 and "\\udcff" in out and "\x1b" not in out
        assert args[0] == "status" or "photos/a\\udcff\\n\\x1b[2J.jpg" in out


def test_a_group_of_very_many_files_says_that_it_is_cut(tmp_path: Path) -> None:
    gone = Member("/gone/1.jpg", "same-bytes", 1.0, {"modified": 0.0, "bytes": 5}, "", "/gone/a.dng")
    write_review(tmp_path / "d.html", [DuplicateGroup("same-bytes", gone, "", [gone] * 105)], title="t")
    long = (tmp_path / "d.html").read_text()
    assert long.count("unreadable") == 101 and "And 5 more." in long
    assert "one shot with a.dng, keep both" in long and "1970-01-01" in long


def test_calibrate_measures_and_is_remembered(run: Run, photos: Path) -> None:
    code, out, _ = run("calibrate", "p.index", "--copies", 11)
    assert code == 0 and "re-encoded" in out and "were called the same" in out
    assert "simclr-hub calibrate" not in run("duplicates", "p.index")[1]
    assert json.loads(Path("p.index/duplicates.json").read_text())["measured"]["photos"] == 11


def test_calibrate_without_photos_is_one_line(run: Run, photos: Path) -> None:
    photos.rename(photos.with_name("unplugged"))
    code, _, err = run("calibrate", "p.index", "--copies", 10)
    assert code == 1 and "0 of 10 photos can be read" in err


@pytest.mark.parametrize(("number", "words"), [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2e9, "2.0 GB")])
def test_sizes_in_words(number: float, words: str) -> None:
    assert size(int(number)) == words
