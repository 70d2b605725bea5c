"""Static HTML pages of search results, duplicates and labelled photos.

Thumbnails are inside; there are no scripts, and nothing else is loaded. Many groups of duplicates make several pages:
200 groups of photos of 128 pixels have 3.8 MB, and thumbnails of larger photos have up to four times the pixels.
"""

import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from ._files import Kind, check_output, write_output
from .duplicates.find import DuplicateGroup, Member
from .duplicates.words import TIERS, facts, first_word, relation
from .images import describe
from .index.search.find import Match, tell_share
from .labels import Label, to_check
from .progress import progress_bar
from .rendering import draw_photo, render

#: The templates' first lines, by which a page of this package is recognised.
_HEAD = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="simclr-hub">
"""
#: Longest side of a thumbnail in pixels.
THUMBNAIL = 256
#: Files of a group that a page shows beside the first.
MOST_FILES = 100
#: Groups of duplicates on a page.
PER_PAGE = 200


def _begins_with(head: bytes) -> Callable[[Path], bool]:
    def test(path: Path) -> bool:
        try:
            with open(path, "rb") as file:
                return file.read(len(head)) == head
        except OSError:
            return False

    return test


_SUFFIXES = (".html", ".htm")
#: The kind of file that a page is, see `_files.check_output`.
PAGE = Kind("a page", _SUFFIXES, _begins_with(_HEAD))
#: A page beside the one that a user named. Only such are replaced or removed: "d-2.html" may be a user's name, too.
_FURTHER = Kind("a further page", _SUFFIXES, _begins_with(_HEAD + b'<meta name="part" content="'))


@dataclass(frozen=True)
class Row:
    """One search.

    Attributes:
        like: the photos that were searched for, anything `load_image` takes.
        matches: the photos found, best first.
        unlike: the photos that results should not be like.
    """

    like: Sequence[Any]
    matches: Sequence[Match]
    unlike: Sequence[Any] = ()


def write_gallery(path: Path, rows: Sequence[Row], *, title: str, note: str = "", force: bool = False) -> None:
    """Write search results; a photo that cannot be read any more keeps its place and its name.

    Args:
        path: the HTML file, .html or .htm; a page that this package wrote before is replaced.
        rows: the searches, in the order they are shown.
        title: heading of the page.
        note: text below the heading.
        force: also replace another file.

    Raises:
        OutputError: another suffix, or a folder that is missing or read-only.
        FileExistsError: something else is at `path`.
        OSError: it cannot be written.
    """
    check_output(path, PAGE, force=force)
    sections = []
    with _drawing(sum(len(row.like) + len(row.unlike) + len(row.matches) for row in rows)) as draw:
        for row in rows:
            queries = [draw(one, label) for label, some in (("query", row.like), ("not", row.unlike)) for one in some]
            sections.append({"heading": "", "queries": queries, "matches": [_match(draw, m) for m in row.matches]})
    _write(path, "gallery.html", title, note, sections, force)


def _match(draw: "_Draw", match: Match) -> dict[str, Any]:
    share = tell_share(match.closer_than)
    told = draw(match.path, f"{match.score:.3f}", f"closer than {share}" if share else "")
    return told | {"copies": [describe(path) for path in match.copies]}


def write_review(
    path: Path,
    groups: Sequence[DuplicateGroup],
    *,
    title: str,
    note: str = "",
    per_page: int = PER_PAGE,
    force: bool = False,
) -> list[Path]:
    """Write groups of duplicates to look through; people decide what is deleted.

    With more groups than one page holds there are further pages, d-2.html beside d.html and so on, with links between
    them. Those that a longer list left there are removed. Of each group the surest files are shown; the page says so.

    Args and errors as of `write_gallery`, and:
        groups: as `SimilarityIndex.duplicates` returns them.
        per_page: groups of a page.

    Returns:
        The pages, `path` first; it is written last.
    """
    groups = sorted(groups, key=lambda group: list(TIERS).index(group.tier))
    pages = [groups[start : start + per_page] for start in range(0, len(groups), per_page)] or [[]]
    names = [path, *(path.with_name(f"{path.stem}-{part}{path.suffix}") for part in range(2, len(pages) + 1))]
    for name in names:
        check_output(name, PAGE if name is path else _FURTHER, force=force)
    links = [quote_from_bytes(os.fsencode(name.name)) for name in names] if len(names) > 1 else []
    with _drawing(sum(1 + min(len(group.others), MOST_FILES) for group in groups)) as draw:
        for part in range(len(pages), 0, -1):
            sections = []
            for tier, (words, meaning) in TIERS.items():
                shown = [_group(draw, group) for group in pages[part - 1] if group.tier == tier]
                if shown:
                    number = sum(group.tier == tier for group in groups)
                    sections.append({"name": words, "meaning": meaning, "groups": shown, "number": number})
            kind = PAGE if part == 1 else _FURTHER
            _write(names[part - 1], "duplicates.html", title, note, sections, force, kind, part, links)
    return names


def _group(draw: "_Draw", group: DuplicateGroup) -> dict[str, Any]:
    return {
        "word": first_word(group),
        "why": group.why,
        "files": [
            _member(draw, group.keep, first_word(group)),
            *(_member(draw, other, relation(other)) for other in group.others[:MOST_FILES]),
        ],
        "more": len(group.others[MOST_FILES:]),
    }


def write_photos(path: Path, photos: Sequence[tuple[Any, str, str]], *, title: str, note: str = "") -> None:
    """Write photos in the order they are given.

    Args and errors as of `write_gallery`, and:
        photos: anything `load_image` takes, a label, and a line below it.
    """
    check_output(path, PAGE)
    with _drawing(len(photos)) as draw:
        section = {"heading": "", "queries": [], "matches": [draw(photo, *texts) for photo, *texts in photos]}
    _write(path, "gallery.html", title, note, [section], False)


def write_labelled(
    path: Path, labels: Sequence[Label], classes: Sequence[str], *, title: str, note: str = "", force: bool = False
) -> None:
    """Write labels to check: of each class the most confident, and the least confident of those that are unsure.

    Args and errors as of `write_gallery`, and:
        labels: of the photos; examples are not shown.
        classes: their names, in the order they are shown.
    """
    check_output(path, PAGE, force=force)
    parts = to_check(labels, classes)
    sections = []
    with _drawing(sum(len(part.photos) for part in parts)) as draw:
        for part in parts:
            more = f", {len(part.photos)} shown" if len(part.photos) < part.count else ""
            matches = [draw(*photo) for photo in part.photos]
            sections.append({"heading": describe(part.heading + more), "queries": [], "matches": matches})
    _write(path, "gallery.html", title, note, sections, force)


def _write(
    path: Path,
    template: str,
    title: str,
    note: str,
    sections: list[dict[str, Any]],
    force: bool,
    kind: Kind = PAGE,
    part: int = 1,
    links: Sequence[str] = (),
) -> None:
    """Write a page; the last of several is the first one, after which those that a longer list left are removed."""
    html = render(
        template, title=describe(title), note=describe(note), sections=sections, part=part, links=links
    ).encode()
    write_output(path, lambda file: file.write(html), kind, force=force)
    if part == 1:
        further = re.compile(rf"{re.escape(path.stem)}-([0-9]{{1,9}}){re.escape(path.suffix)}")
        for other in path.parent.iterdir():
            found = further.fullmatch(other.name)
            if found and int(found[1]) > max(1, len(links)) and stat.S_ISREG(os.lstat(other).st_mode):
                if _FURTHER.is_own and _FURTHER.is_own(other):
                    other.unlink()


#: Draws a photo with a label and lines below it for `gallery.html` and `duplicates.html`.
_Draw = Callable[..., dict[str, Any]]


@contextmanager
def _drawing(number: int) -> Iterator[_Draw]:
    """Give what draws a photo, under a progress bar of so many."""
    with progress_bar("drawing", number) as advance:

        def draw(source: Any, label: str, *lines: str) -> dict[str, Any]:
            advance(1)
            told = {"label": label, "lines": [describe(line) for line in lines if line], "copies": []}
            return draw_photo(source, THUMBNAIL) | told

        yield draw


def _member(draw: _Draw, member: Member, label: str) -> dict[str, Any]:
    score = "" if member.tier == "same-bytes" or member.same_file else f" {member.score:.3f}"
    pair = f"one shot with {os.path.basename(member.pair)}, keep both" if member.pair else ""
    return draw(member.path, label + score, " · ".join(facts(member)), pair)
