"""Results of a search and of `duplicates`: lists, which in a notebook show themselves."""

from collections.abc import Iterator

from ..duplicates.find import DuplicateGroup
from ..duplicates.words import TIERS, first_word, relation, summary
from ..notebook import MOST, Part, Photo, ShownList
from .search.find import Match, tell_share


class Matches(ShownList[Match]):
    """List what one search found, best first."""

    def title(self) -> str:  # noqa: D102
        return _count(len(self), "photo")

    def shown_parts(self) -> Iterator[Part]:  # noqa: D102
        yield Part("", [_photo(match) for match in list(self)[:MOST]], len(self))

    def _number(self) -> int:
        return 1


class Searches(ShownList[list[Match]]):
    """List what several searches found, in the order of the queries."""

    def title(self) -> str:  # noqa: D102
        return _count(len(self), "search", "searches")

    def shown_parts(self) -> Iterator[Part]:  # noqa: D102
        for number, found in enumerate(self, 1):
            yield Part(f"{number}:", [_photo(match) for match in found[:MOST]], len(found))


class Groups(ShownList[DuplicateGroup]):
    """List groups of duplicates."""

    def title(self) -> str:  # noqa: D102
        return summary(self)

    def shown_parts(self) -> Iterator[Part]:  # noqa: D102
        for group in self:
            first = (group.keep.path, first_word(group), "")
            others = [(o.path, relation(o), f"{o.score:.3f}") for o in group.others[:MOST]]
            heading = f"{TIERS[group.tier][0]}: {group.why}" if group.why else TIERS[group.tier][0]
            yield Part(heading, [first, *others], 1 + len(group.others))


def _photo(match: Match) -> Photo:
    share = f"closer than {share}" if (share := tell_share(match.closer_than)) else ""
    copies = f"+{_count(len(match.copies), 'copy', 'copies')}" if match.copies else ""
    return match.path, f"{match.score:.3f}", ", ".join(filter(None, (share, copies)))


def _count(number: int, one: str, several: str = "") -> str:
    return f"{number:,} {one if number == 1 else several or one + 's'}"
