"""Results that show themselves in a notebook: HTML made when it is shown, with thumbnails inside, bounded.

Styles are inline: a notebook's page is not ours, and many viewers leave out everything else.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, SupportsIndex, TypeVar, overload

from .images import describe
from .rendering import draw_photo, render

#: Photos that one result shows, and of each of several parts; lines of a list in a report; a thumbnail's longest side.
MOST, MOST_OF_PART, MOST_LINES, SIDE = 50, 8, 20, 160
#: What is shown of a photo: anything `load_image` takes, a label, and a line below it.
Photo = tuple[Any, str, str]
_T = TypeVar("_T")


@dataclass(frozen=True)
class Part:
    """Hold what belongs together of a result.

    Attributes:
        heading: above the photos.
        photos: the first of them.
        count: how many there are.
    """

    heading: str
    photos: Sequence[Photo]
    count: int


class ShownList(list[_T]):
    """A list, equal to any other of the same items, that a notebook shows with its photos; so are its slices."""

    @overload
    def __getitem__(self, place: SupportsIndex) -> _T: ...

    @overload
    def __getitem__(self, place: slice) -> Self: ...

    def __getitem__(self, place: Any) -> Any:
        found = super().__getitem__(place)
        return type(self)(found) if isinstance(place, slice) else found

    def title(self) -> str:
        """Say what it is."""
        raise NotImplementedError

    def shown_parts(self) -> Iterable[Part]:
        """Give what is shown, one by one, each made when it is asked for."""
        raise NotImplementedError

    def _repr_html_(self) -> str | None:
        try:
            return show_photos(self.title(), self.shown_parts(), self._number())
        except Exception:  # whatever was put into it: a notebook shows the text instead
            return None

    def _number(self) -> int:
        return len(self)


def show_photos(title: str, parts: Iterable[Part], number: int) -> str:
    """Return HTML of the first photos: `MOST` of a single part, `MOST_OF_PART` of each of several, `MOST` in all."""
    each, left, shown = MOST if number == 1 else MOST_OF_PART, MOST, []
    for part in parts:
        some = part.photos[: min(each, left)]
        drawn = [draw_photo(source, SIDE) | {"label": label, "line": describe(line)} for source, label, line in some]
        shown.append({"heading": describe(part.heading), "photos": drawn, "more": part.count - len(some)})
        left -= len(some)
        if left <= 0 or len(shown) == MOST:
            break
    return render("notebook.html", title=describe(title), parts=shown, rows=[], more=number - len(shown))


def show_report(title: str, report: object) -> str:
    """Return an HTML table of what a report holds; what is 0 or empty is left out."""
    rows = [(name.replace("_", " "), _lines(value)) for name, value in vars(report).items() if value]
    return render("notebook.html", title=describe(title), parts=[], rows=rows, more=0)


def _lines(value: Any) -> list[str]:
    if hasattr(value, "__dataclass_fields__"):
        value = {name: one for name, one in vars(value).items() if one}
    if isinstance(value, dict):
        value = [f"{name}: {one:,}" if isinstance(one, int) else f"{name}: {one}" for name, one in value.items()]
    if isinstance(value, (list, tuple)):
        more = [f"and {len(value) - MOST_LINES:,} more"] if len(value) > MOST_LINES else []
        return [describe(str(one)) for one in value[:MOST_LINES]] + more
    if isinstance(value, (int, float)):
        return [f"{value:,.1f}" if isinstance(value, float) else f"{value:,}"]
    return [describe(str(value))]
