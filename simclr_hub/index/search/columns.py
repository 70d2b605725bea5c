"""What is known of photos, by key: numbers and words of all photos side by side, to be compared at once."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..store import parse_info
from .arrays import ArrayFile, ArrayWriter, CheckedArray
from .catalog import Catalog, Texts


@dataclass(frozen=True)
class Column:
    """The values of one key.

    Attributes:
        numbers: float64 (P,), NaN where a photo has no number.
        codes: int32 (P,), which word a photo has, -1 for none.
        words: the words, sorted.
    """

    numbers: CheckedArray
    codes: CheckedArray
    words: Texts


def make_columns(catalog: Catalog) -> dict[str, Column]:
    """The numbers and words in the metadata of the photos and of their contents; other values are left out."""
    size = catalog.photos
    numbers: dict[str, np.ndarray] = {}
    codes: dict[str, np.ndarray] = {}
    words: dict[str, dict[str, int]] = {}
    for photo, values in enumerate(read_metadata(catalog)):
        for key, value in values.items():
            if isinstance(value, str):
                if key not in codes:
                    codes[key], words[key] = np.full(size, -1, np.int32), {}
                codes[key][photo] = words[key].setdefault(value, len(words[key]))
            elif isinstance(value, (int, float)):
                if key not in numbers:
                    numbers[key] = np.full(size, np.nan)
                numbers[key][photo] = value
    columns = {}
    for key in sorted(numbers.keys() | codes.keys()):
        known = words.get(key, {})
        order = sorted(known)
        place = np.empty(len(order) + 1, np.int32)
        place[[known[word] for word in order]] = np.arange(len(order))
        place[-1] = -1
        columns[key] = Column(
            CheckedArray(numbers.get(key, np.empty(0))),
            CheckedArray(place[codes[key]] if key in codes else np.empty(0, np.int32)),
            Texts.of(word.encode(errors="surrogatepass") for word in order),
        )
    return columns


def read_metadata(catalog: Catalog) -> Iterator[dict[str, object]]:
    """What is known of each photo, its content's and its file's, in order."""
    rows, at = catalog.row_of_photo(), 0
    for texts in catalog.metadata.pieces():
        some = rows[at : at + len(texts)]
        at += len(texts)
        own, which = np.unique(some, return_inverse=True)
        infos = [parse_info(text) for text in catalog.info.some(own)]
        for text, info in zip(texts, which.tolist(), strict=True):
            yield infos[info] | parse_info(text)


def write_columns(writer: ArrayWriter, columns: dict[str, Column]) -> list[str]:
    """Add them to a file; their keys, to read them by."""
    for number, column in enumerate(columns.values()):
        for name, array in (
            ("numbers", column.numbers),
            ("codes", column.codes),
            ("words.starts", column.words.starts),
            ("words.data", column.words.data),
        ):
            values = array.all()
            writer.add(f"column.{number}.{name}", [values], values.dtype.str)
    return list(columns)


def read_columns(file: ArrayFile, keys: list[str]) -> dict[str, Column]:
    """Those that were written."""
    return {
        key: Column(
            file.array(f"column.{number}.numbers"),
            file.array(f"column.{number}.codes"),
            Texts(file.array(f"column.{number}.words.starts"), file.array(f"column.{number}.words.data")),
        )
        for number, key in enumerate(keys)
    }
