"""Explain in sentences why a search finds nothing: the conditions that no photo meets, and what there is instead."""

import difflib
import os
import re
from collections import Counter
from datetime import date
from pathlib import PurePath

import numpy as np

from ...images import describe
from .filters import Condition, Range
from .photo_table import Column
from .snapshot import Snapshot

#: Values that a sentence lists.
_LISTED = 8
_DATE = re.compile(r"(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T[\d:.]*)?)?)?")
_MOMENT = re.compile(rb"\d{4}-\d\d-\d\dT")


def explain_empty(snapshot: Snapshot, condition: Condition | None, missing: int = 0) -> list[str]:
    """Return the reasons, at least one.

    Args:
        snapshot: the snapshot that was searched.
        condition: of the search.
        missing: how many photos are not there now.
    """
    live = [
        np.ones(segment.photos.photo_count, bool) if allowed is None else allowed[segment.photos.row_of_photo()]
        for segment, allowed in zip(snapshot.segments, snapshot.allowed, strict=True)
    ]
    if not any(some.any() for some in live):
        gone = f"; {missing:,} photos were not there at the last sync, is their disk connected?" if missing else ""
        return [f"the index holds no photos{gone}"]
    parts = []
    if condition:
        parts = [Condition(None, (one,)) for one in condition.ranges]
        parts += [Condition(condition.path, ())] if condition.path is not None else []
    counts = [_count(snapshot, part, live) for part in parts]
    reasons = [_explain(snapshot, part, live) for part, count in zip(parts, counts, strict=True) if not count]
    if reasons:
        return reasons
    if condition and not _count(snapshot, condition, live):
        each = ", ".join(f"{count:,} have {_as_option(part)}" for part, count in zip(parts, counts, strict=True))
        return [f"no photo meets all of the conditions: {each}"]
    return ["only the query's own file is left; --with-self, or with_self=True, finds that too"]


def _count(snapshot: Snapshot, condition: Condition, live: list[np.ndarray]) -> int:
    return sum(
        int(np.count_nonzero(condition.passes(segment.photos, segment.columns, snapshot.roots) & some))
        for segment, some in zip(snapshot.segments, live, strict=True)
    )


def _explain(snapshot: Snapshot, condition: Condition, live: list[np.ndarray]) -> str:
    if condition.path is not None:
        return _explain_path(snapshot, condition.path, live)
    (one,) = condition.ranges
    columns = [(segment.columns.get(one.key), some) for segment, some in zip(snapshot.segments, live, strict=True)]
    words: Counter[str] = Counter()
    numbers = np.empty(0)
    for column, some in columns:
        if column is not None:
            words += _words(column, some)
            numbers = np.concatenate([numbers, _numbers(column, some)])
    if not words and not len(numbers):
        return _explain_key(snapshot, one.key, live)
    told = f"no photo has {_as_option(condition)}"
    if words and all(_MOMENT.match(word.encode(errors="surrogatepass")) for word in words):
        return f"{told}: {_explain_date(one, words)}"
    for bound in (one.low, one.high):
        other = [word for word in words if isinstance(bound, str) and word.casefold() == bound.casefold()]
        if other and bound not in words:
            return f"{told}; there is {_quote(other[0])}: upper and lower case count"
    there = []
    if words:
        common = [f"{_quote(word)} ({count:,})" for word, count in words.most_common(_LISTED)]
        more = f" and {len(words) - _LISTED:,} others" if len(words) > _LISTED else ""
        there.append(f"its values are {', '.join(common)}{more}")
    if len(numbers):
        there.append(f"its numbers go from {numbers.min():.12g} to {numbers.max():.12g}")
    return f"{told}; {'; '.join(there)}"


def _explain_key(snapshot: Snapshot, key: str, live: list[np.ndarray]) -> str:
    keys = sorted(
        {
            name
            for segment, some in zip(snapshot.segments, live, strict=True)
            for name, column in segment.columns.items()
            if _words(column, some) or len(_numbers(column, some))
        }
    )
    like = difflib.get_close_matches(key.casefold(), keys, 1)
    asked = f"; did you mean {_quote(like[0])}?" if like else ""
    return f"no photo has {_quote(key)}; there are: {', '.join(map(describe, keys)) or 'none'}{asked}"


def _explain_date(one: Range, moments: Counter[str]) -> str:
    for bound in (one.low, one.high):
        if bound is not None and not _is_date(str(bound)):
            return f"{_quote(str(bound))} is no date; write 2020, 2020-06, 2020-06-30 or 2020-06-30T12:00:00"
    if one.exact and any(moment.startswith(str(one.low)) for moment in moments):
        return f"it is a moment, to the second; all of it is {describe(f'{one.key}={one.low}..{one.low}')}"
    return f"there is {_quote(min(moments))} to {_quote(max(moments))}"


def _is_date(text: str) -> bool:
    match = _DATE.fullmatch(text)
    try:
        return match is not None and bool(date(*(int(part or 1) for part in match.groups())))
    except ValueError:
        return False


def _explain_path(snapshot: Snapshot, pattern: str, live: list[np.ndarray]) -> str:
    number = next(number for number, some in enumerate(live) if some.any())
    photo = np.flatnonzero(live[number])[:1]
    (whole,) = snapshot.paths(photo + snapshot.photo_starts[number])
    (below,) = snapshot.segments[number].photos.paths.take(photo)
    hint = ""
    anywhere = f"**/{pattern.lstrip('/')}"
    if count := _count(snapshot, Condition(anywhere, ()), live):
        hint = f"; {_quote(anywhere)}, in any folder, matches {count:,}"
    example = f"{_quote(whole)}, or {_quote(PurePath(os.fsdecode(below)).as_posix())} below its folder"
    return f"no path matches {_quote(pattern)}{hint}; paths look like {example}"


def _words(column: Column, live: np.ndarray) -> Counter[str]:
    """Count each word."""
    codes = column.codes.all()
    if not len(codes):
        return Counter()
    counts = np.bincount(codes[live & (codes >= 0)], minlength=len(column.words))
    there = np.flatnonzero(counts)
    words = (word.decode(errors="surrogatepass") for word in column.words.take(there))
    return Counter(dict(zip(words, counts[there].tolist(), strict=True)))


def _numbers(column: Column, live: np.ndarray) -> np.ndarray:
    numbers = column.numbers.all()
    found: np.ndarray = numbers[live & ~np.isnan(numbers)] if len(numbers) else numbers
    return found


def _as_option(condition: Condition) -> str:
    """Return a condition of one part as the command line takes it."""
    if condition.path is not None:
        return f"path {_quote(condition.path)}"
    (one,) = condition.ranges
    low, high = (
        "" if bound is None else f"{bound:.12g}" if isinstance(bound, float) else bound
        for bound in (one.low, one.high)
    )
    return describe(f"{one.key}={low}" if one.exact else f"{one.key}={low}..{high}")


def _quote(text: str) -> str:
    return f"'{describe(text)}'"
