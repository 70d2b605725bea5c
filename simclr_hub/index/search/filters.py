"""Conditions on the photos that a search may find: a pattern for the path, values or ranges for the metadata."""

import bisect
import math
import os
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...scan import translate_pattern
from .arrays import StringArray
from .photo_table import Column, PhotoTable


@dataclass(frozen=True)
class Range:
    """The bounds of a value of `key`: from `low` to `high`, both included; None: no bound on that side.

    Numbers are compared with numbers and text with text; text that is a number with both. A text as upper end includes
    what begins with it, so that ("2019", "2020-06") ends with June, unless the range is one `exact` value. A photo
    without the key never passes.
    """

    key: str
    low: str | float | None
    high: str | float | None
    exact: bool = False

    def passes(self, column: Column) -> np.ndarray:
        """Return which photos pass, bool (P,), or (0,) if none."""
        parts = [part for part in (self._numbers(column.numbers.all()), self._words(column)) if len(part)]
        passing: np.ndarray = np.logical_or.reduce(parts) if parts else np.empty(0, bool)
        return passing

    def _numbers(self, numbers: np.ndarray) -> np.ndarray:
        low, high = _number(self.low), _number(self.high)
        if math.isnan(low) or math.isnan(high):  # text
            return np.zeros(len(numbers), bool)
        with np.errstate(invalid="ignore"):
            passing: np.ndarray = (numbers >= (-math.inf if self.low is None else low)) & (
                numbers <= (math.inf if self.high is None else high)
            )
        return passing

    def _words(self, column: Column) -> np.ndarray:
        codes = column.codes.all()
        first, last = 0, len(column.words)
        if isinstance(self.low, str):
            first = _place(column.words, self.low)
        if isinstance(self.high, str):
            last = _place(column.words, self.high, behind=True, prefix=not self.exact)
        if isinstance(self.low, float) or isinstance(self.high, float):
            last = 0
        passing: np.ndarray = (codes >= first) & (codes < last)
        return passing


@dataclass(frozen=True)
class Condition:
    """A pattern for the path, None for any, and ranges, all of which a photo must meet."""

    path: str | None
    ranges: tuple[Range, ...]

    def passes(self, table: PhotoTable, columns: Mapping[str, Column], roots: Mapping[int, bytes]) -> np.ndarray:
        """Return which photos of a table meet it: bool (P,).

        Args:
            table: the photos.
            columns: their metadata by key.
            roots: the folders by id, each with a separator at its end.
        """
        passing = np.ones(table.photo_count, bool)
        for one in self.ranges:
            column = columns.get(one.key)
            part = one.passes(column) if column else np.empty(0, bool)
            passing &= part if len(part) else False
        if self.path is not None:
            numbers = np.flatnonzero(passing)
            passing[numbers] = _match_paths(self.path, table, numbers, roots)
        return passing


def make_condition(
    path: str | os.PathLike[str] | None = None, where: Mapping[str, Any] | None = None
) -> Condition | None:
    """Make the condition of a search's arguments; None if there is none.

    Raises:
        ValueError: a value that cannot be compared.
    """
    if path is None and not where:
        return None
    pattern = None if path is None else os.fspath(path)
    if pattern is not None:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"path={path!r}: give a pattern as text, for example 'holiday/**/*.jpg'")
        try:
            re.compile(translate_pattern(pattern))
        except re.error as e:
            raise ValueError(f"path={pattern!r}: no pattern: {e}") from None
    return Condition(pattern, tuple(_range(key, value) for key, value in (where or {}).items()))


def _range(key: str, value: Any) -> Range:
    if not isinstance(key, str):
        raise ValueError(f"where: {key!r} is no name of metadata")
    is_range = isinstance(value, (tuple, list))
    bounds = list(value) if is_range else [value, value]
    if len(bounds) != 2 or bounds == [None, None]:
        raise ValueError(f"where: {key}={value!r}: a range is a pair (low, high), one of them may be None")
    for bound in bounds:
        number = isinstance(bound, (int, float, np.integer, np.floating)) and not math.isnan(bound)
        if not (number or isinstance(bound, str) or (bound is None and is_range)):
            raise ValueError(f"where: {key}={value!r}: give a number, text, or a pair (low, high) of them")
    if len({isinstance(bound, str) for bound in bounds if bound is not None}) == 2:
        raise ValueError(f"where: {key}={value!r}: both ends of a range must be numbers, or both text")
    low, high = (bound if bound is None or isinstance(bound, str) else float(bound) for bound in bounds)
    if low is not None and high is not None and _reversed(low, high):
        raise ValueError(f"where: {key}={value!r}: nothing lies between them; give the lower end first")
    return Range(key, low, high, exact=not is_range)


def _reversed(low: str | float, high: str | float) -> bool:
    numbers = _number(low), _number(high)
    if not any(map(math.isnan, numbers)):
        return numbers[0] > numbers[1]
    return str(low) > str(high) and not str(low).startswith(str(high))


def _number(bound: str | float | None) -> float:
    """Return a bound as a number, 0 for none, NaN for text that is no number."""
    try:
        return 0.0 if bound is None else float(bound)
    except ValueError:
        return math.nan


def _place(words: StringArray, text: str, *, behind: bool = False, prefix: bool = False) -> int:
    """Count the sorted words before `text`; with `behind` those up to it, with `prefix` up to those it begins."""
    word = text.encode(errors="surrogatepass")

    def reached(number: int) -> bool:
        (other,) = words.take(np.array([number]))
        return not (other < word or (behind and (other == word or (prefix and other.startswith(word)))))

    return bisect.bisect_left(range(len(words)), True, key=reached)


def _match_paths(pattern: str, table: PhotoTable, numbers: np.ndarray, roots: Mapping[int, bytes]) -> list[bool]:
    match = re.compile(translate_pattern(_normal(pattern.replace(os.sep, "/"))), re.DOTALL).match
    # Both the path below the folder that was synchronised and the whole path are matched. The former does not begin
    # with a separator, the latter does, on Windows with a drive.
    relative = not os.path.isabs(pattern)
    absolute = not relative or pattern[0] in "*?["
    starts = {root: _normal(os.fsdecode(path).replace(os.sep, "/")) for root, path in roots.items()}
    passing: list[bool] = []
    ids = table.roots.all()
    for at in range(0, len(numbers), 1 << 14):
        some = numbers[at : at + (1 << 14)]
        for root, raw in zip(ids[some].tolist(), table.paths.take(some), strict=True):
            path = _normal(os.fsdecode(raw).replace(os.sep, "/"))
            passing.append(
                bool((relative and match(path)) or (absolute and root in starts and match(starts[root] + path)))
            )
    return passing


def _normal(text: str) -> str:
    """Return text in one of the two ways in which Unicode writes letters with accents; file systems differ."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)
