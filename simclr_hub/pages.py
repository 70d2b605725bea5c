"""Static HTML pages of search results, duplicates and labelled photos.

Thumbnails are inside; there are no scripts, and nothing else is loaded.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ._files import Kind, check_output, write_output
from .duplicates.find import DuplicateGroup, Member, day
from .errors import ImageError
from .images import describe, load_image
from .index.search.find import Match, tell_share
from .labels import Label
from .progress import progress_bar

#: The templates' first lines, by which a page of this package is recognised.
_HEAD = b"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="generator" content="simclr-hub">
"""
#: Longest side of a thumbnail in pixels.
THUMBNAIL = 256
#: Names and meanings of the tiers of duplicates.
TIERS = {
    "same-bytes": ("same bytes", "Exact copies: any one of them is enough."),
    "same-picture": ("same picture", "One picture, re-encoded, resized or edited. Look before you delete."),
    "similar": ("similar", "Different pictures of much the same thing. Not duplicates: nothing here is one too many."),
}
#: Files of a group that a page shows beside the first.
MOST_FILES = 100
#: Labelled photos that a page shows of a class, sure or unsure, and about how many of all.
MOST_LABELS, MOST_LABELLED = 12, 1000


def _is_page(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(len(_HEAD)) == _HEAD
    except OSError:
        return False


#: The kind of file that a page is, see `_files.check_output`.
PAGE = Kind("a page", (".html", ".htm"), _is_page)


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
    sections = [
        {
            "queries": [
                _picture(one) | {"label": label, "closer_than": "", "copies": []}
                for label, some in (("query", row.like), ("not", row.unlike))
                for one in some
            ],
            "matches": [
                _picture(match.path)
                | {
                    "label": f"{match.score:.3f}",
                    "closer_than": tell_share(match.closer_than),
                    "copies": [describe(path) for path in match.copies],
                }
                for match in row.matches
            ],
        }
        for row in rows
    ]
    _write(path, "gallery.html", title, note, sections, force)


def write_review(
    path: Path,
    groups: Sequence[DuplicateGroup],
    *,
    title: str,
    note: str = "",
    most: int = 200,
    force: bool = False,
) -> None:
    """Write groups of duplicates to look through; people decide what is deleted.

    Of each tier only the first `most` groups are shown, of each group the surest files; the page says so.

    Args and errors as of `write_gallery`, and:
        groups: as `SimilarityIndex.duplicates` returns them.
        most: groups of a tier.
    """
    check_output(path, PAGE, force=force)
    sections = []
    for tier, (name, meaning) in TIERS.items():
        of_tier = [group for group in groups if group.tier == tier]
        shown = [
            {
                "word": first_word(group),
                "why": group.why,
                "first": _member(group.keep, first_word(group)),
                "others": [_member(other, relation(other)) for other in group.others[:MOST_FILES]],
                "more": len(group.others[MOST_FILES:]),
            }
            for group in of_tier[:most]
        ]
        if shown:
            sections.append({"name": name, "meaning": meaning, "groups": shown, "number": len(of_tier)})
    _write(path, "duplicates.html", title, note, sections, force)


def write_photos(path: Path, photos: Sequence[tuple[Any, str, str]], *, title: str, note: str = "") -> None:
    """Write photos in the order they are given.

    Args and errors as of `write_gallery`, and:
        photos: anything `load_image` takes, a label, and a line below it.
    """
    check_output(path, PAGE)
    matches = [
        _picture(photo) | {"label": label, "line": line, "closer_than": "", "copies": []}
        for photo, label, line in photos
    ]
    _write(path, "gallery.html", title, note, [{"queries": [], "matches": matches}], False)


def write_labelled(
    path: Path, labels: Sequence[Label], classes: Sequence[str], *, title: str, note: str = "", force: bool = False
) -> None:
    """Write labels to check: of each class the most confident, and the least confident of those that are unsure.

    Args and errors as of `write_gallery`, and:
        labels: of the photos; examples are not shown.
        classes: their names, in the order they are shown.
    """
    check_output(path, PAGE, force=force)
    most = max(2, min(MOST_LABELS, MOST_LABELLED // (2 * len(classes))))
    of_class: dict[str, list[Label]] = {name: [] for name in classes}
    for label in labels:
        if not label.example:
            of_class[label.label].append(label)
    shown: list[tuple[str, list[Label]]] = []
    for name in classes:
        falling = sorted(of_class[name], key=lambda label: -label.confidence)
        unsure = [label for label in reversed(falling) if label.unsure]
        sure = [label for label in falling if not label.unsure]
        for word, some in (("" if sure and sure[0].unsure is None else "sure", sure), ("unsure", unsure)):
            if some:
                more = f", {most} shown" if len(some) > most else ""
                shown.append((f"{describe(name)}: {len(some):,} {word}".rstrip() + more, some[:most]))
    sections = []
    with progress_bar("drawing", sum(len(some) for _, some in shown)) as advance:
        for heading, some in shown:
            matches = []
            for label in some:
                line = describe(f"or {label.second}: {label.second_confidence:.2f}")
                texts = {"label": f"{label.confidence:.2f}", "line": line, "closer_than": "", "copies": []}
                matches.append(_picture(label.path) | texts)
                advance(1)
            sections.append({"heading": heading, "queries": [], "matches": matches})
    _write(path, "gallery.html", title, note, sections, force)


def _write(path: Path, template: str, title: str, note: str, sections: list[dict[str, Any]], force: bool) -> None:
    import jinja2  # most searches write no page

    # Autoescape, and no value stands inside a script or a style: file names are not to be trusted.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template(template).render(title=describe(title), note=describe(note), sections=sections)
    write_output(path, lambda file: file.write(html.encode(errors="backslashreplace")), PAGE, force=force)


def _picture(source: Any) -> dict[str, str]:
    """Return a photo's "name", "full" path or what is wrong, and "data", a thumbnail as base64, or ""."""
    full = describe(source)
    name = Path(full).name or full
    try:
        image = Image.fromarray(load_image(source).pixels.transpose(1, 2, 0))
    except ImageError as e:
        return {"name": name, "full": str(e), "data": ""}
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return {"name": name, "full": full, "data": base64.b64encode(buffer.getvalue()).decode()}


def _member(member: Member, label: str) -> dict[str, str]:
    score = "" if member.tier == "same-bytes" or member.same_file else f"{member.score:.3f}"
    pair = f"one shot with {describe(Path(member.pair).name)}, keep both" if member.pair else ""
    return _picture(member.path) | {
        "label": label,
        "score": score,
        "facts": " · ".join(facts(member)),
        "folder": describe(str(Path(member.path).parent)),
        "pair": pair,
    }


def first_word(group: DuplicateGroup) -> str:
    """Name the role of a group's first file."""
    return "like" if group.tier == "similar" else "keep"


def relation(member: Member) -> str:
    """Name the relation of a file to its group's first."""
    return "same file" if member.same_file else TIERS[member.tier][0]


def summary(groups: Sequence[DuplicateGroup]) -> str:
    """Sum up what was found, by groups and by files, in a sentence or two."""
    others = [other for group in groups if group.tier != "similar" for other in group.others]
    copies = [other for other in others if other.same_file is None]
    # Also a copy of a copy has the same bytes as another file.
    contents = {member.sha256 for group in groups if group.tier != "similar" for member in (group.keep, *group.others)}
    firsts = sum(group.tier != "similar" for group in groups)
    exact = len(copies) + firsts - len(contents)
    numbers = [f"{sum(group.tier == tier for group in groups):,} {name}" for tier, (name, _) in TIERS.items()]
    total = sum(int(other.metadata.get("bytes", 0)) for other in copies)
    names = f" {len(others) - len(copies):,} more names of the same files." if len(others) > len(copies) else ""
    return (
        f"{len(groups):,} groups ({', '.join(numbers)}); {len(copies):,} copies of what would be kept, {size(total)}: "
        f"{exact:,} have the same bytes as another file, {len(copies) - exact:,} only show the same picture.{names} "
        "Nothing was deleted."
    )


def facts(member: Member) -> list[str]:
    """List what is known of a file, in words."""
    info = member.metadata
    known = [
        f"{info['width']} x {info['height']}" if "width" in info and "height" in info else "",
        str(info.get("format", "")),
        size(int(info["bytes"])) if "bytes" in info else "",
        str(info.get("taken", "")).replace("T", " ") or (day(info["modified"]) if "modified" in info else ""),
        str(info.get("camera", "")),
    ]
    return [describe(fact) for fact in known if fact]


def size(number: int) -> str:
    """Format a number of bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"
