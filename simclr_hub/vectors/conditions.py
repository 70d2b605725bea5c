"""Turn conditions, as `simclr-hub search --where` takes them, into comparisons of a server's columns."""

import difflib
import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any

from ..images import describe
from ..index.search.filters import Range, make_condition
from .server import COLUMNS, Comparison, Hit

#: Follows every text that begins as another: no text of an image holds it, since it cannot be printed.
_LAST = "\U0010ffff"
_COMPARED = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


def compile_where(where: Mapping[str, Any] | None) -> tuple[Comparison, ...]:
    """Return comparisons that mean what `SimilarityIndex.search(where=...)` means by its conditions.

    Raises:
        ValueError: a value that cannot be compared, or a column that servers do not have.
    """
    condition = make_condition(None, where)
    return tuple(one for bounds in (condition.ranges if condition else ()) for one in _compile(bounds))


def meets(where: Sequence[Comparison], hit: Hit) -> bool:
    """Tell whether an image that was found meets comparisons, as a server would; what it lacks meets none."""
    told = hit.values | {"id": hit.id.hex()}
    return all(told[column] is not None and _COMPARED[sign](told[column], value) for column, sign, value in where)


def _compile(bounds: Range) -> list[Comparison]:
    kind = COLUMNS.get(bounds.key)
    if kind is None:
        like = difflib.get_close_matches(bounds.key.casefold(), COLUMNS, 1)
        asked = f"; did you mean {like[0]}?" if like else ""
        raise ValueError(f"where: {describe(bounds.key)}: a server knows {', '.join(COLUMNS)}{asked}")
    if kind is str:
        return _texts(bounds)
    found = []
    for sign, bound in ((">=", bounds.low), ("<=", bounds.high)):
        if bound is not None:
            try:
                number = float(bound)
            except ValueError:
                number = math.nan
            if math.isnan(number):
                raise ValueError(f"where: {bounds.key}={describe(str(bound))}: a number is needed")
            found.append(Comparison(bounds.key, sign, _whole(number, sign) if kind is int else number))
    return found


def _whole(number: float, sign: str) -> int:
    """Return the last whole number that a bound lets pass, as 64 bits hold it."""
    number = max(-float(1 << 62), min(number, float(1 << 62)))
    return math.ceil(number) if sign == ">=" else math.floor(number)


def _texts(bounds: Range) -> list[Comparison]:
    found = []
    for sign, bound in ((">=", bounds.low), ("<=", bounds.high)):
        if bound is None:
            continue
        if not isinstance(bound, str):
            raise ValueError(f"where: {bounds.key}={bound:g}: text is needed")
        if not bound.isprintable():
            raise ValueError(f"where: {bounds.key}={describe(bound)}: no image's text holds such characters")
        found.append(Comparison(bounds.key, sign, bound if sign == ">=" or bounds.exact else bound + _LAST))
    return found
