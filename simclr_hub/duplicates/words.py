"""Words for groups of duplicates."""

from collections.abc import Sequence

from ..images import describe
from .find import DuplicateGroup, Member, day

#: Names and meanings of the tiers of duplicates.
TIERS = {
    "same-bytes": ("same bytes", "Exact copies: any one of them is enough."),
    "same-picture": ("same picture", "One picture, re-encoded, resized or edited. Look before you delete."),
    "similar": ("similar", "Different pictures of much the same thing. Not duplicates: nothing here is one too many."),
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
