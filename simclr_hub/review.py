"""Groups of duplicates as one static HTML page, to look through; what is deleted is for people to say."""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from ._files import check_output, write_output
from .duplicates.find import DuplicateGroup, Member, day
from .gallery import PAGE, picture
from .images import describe

#: What the tiers are called, and what they say.
TIERS = {
    "same-bytes": ("same bytes", "Exact copies: any one of them is enough."),
    "same-picture": ("same picture", "One picture, re-encoded, resized or edited. Look before you delete."),
    "similar": ("similar", "Different pictures of much the same thing. Not duplicates: nothing here is one too many."),
}
#: Files of a group that a page shows beside the first.
MOST_FILES = 100


def write_review(
    path: Path,
    groups: Sequence[DuplicateGroup],
    *,
    title: str,
    note: str = "",
    most: int = 200,
    force: bool = False,
) -> None:
    """Write the page; of each tier only the first `most` groups are shown, of each the surest files; the page says so.

    Args:
        path: the HTML file, .html or .htm; a page that this package wrote before is replaced.
        groups: as `SimilarityIndex.duplicates` gives them.
        title: heading of the page.
        note: one sentence below it.
        most: groups of a tier.
        force: also replace another file.

    Raises:
        OutputError: another suffix, or a folder that is missing or read-only.
        FileExistsError: something else is at `path`.
        OSError: it cannot be written.
    """
    check_output(path, PAGE, force=force)
    # Autoescape, and no value stands inside a script or a style: file names are not to be trusted.
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__), autoescape=True, undefined=jinja2.StrictUndefined
    )
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
    template = environment.get_template("duplicates.html")
    html = template.render(title=describe(title), note=describe(note), sections=sections)
    write_output(path, lambda file: file.write(html.encode(errors="backslashreplace")), PAGE, force=force)


def first_word(group: DuplicateGroup) -> str:
    """Say what a group's first file is."""
    return "like" if group.tier == "similar" else "keep"


def relation(member: Member) -> str:
    """Say how a file stands to its group's first."""
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
    """What is known of a file, in words."""
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
    """Bytes for people."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return f"{number} bytes"


def _member(member: Member, label: str) -> dict[str, str]:
    folder = describe(str(Path(member.path).parent))
    score = "" if member.tier == "same-bytes" or member.same_file else f"{member.score:.3f}"
    pair = f"one shot with {describe(Path(member.pair).name)}, keep both" if member.pair else ""
    return picture(member.path) | {
        "label": label,
        "score": score,
        "facts": " · ".join(facts(member)),
        "folder": folder,
        "pair": pair,
    }
