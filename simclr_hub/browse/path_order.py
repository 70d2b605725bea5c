"""Photos by folder and name, a million of them without an object for each path.

Paths are compared as whole words of eight bytes, of all photos at once: first the folders, of which there are few, by
a hash; then the names, word by word as long as any two are the same so far.
"""

import os
from typing import NamedTuple

import numpy as np

from ..index.search.snapshot import Snapshot

_SEPARATORS = [ord(one) for one in {os.sep, os.altsep or os.sep}]
#: Odd, and new in each process, so that nobody makes folders whose hashes are the same.
_FACTORS = np.random.default_rng().integers(1 << 62, 1 << 63, 2, dtype=np.uint64) | np.uint64(1)


class _Texts(NamedTuple):
    """Parts of one long text: number i is `data[first[i]:last[i]]`."""

    text: np.ndarray  # uint8
    words: np.ndarray  # uint64: eight bytes from each byte on, big-endian
    first: np.ndarray
    last: np.ndarray

    def word(self, numbers: np.ndarray, offset: int) -> np.ndarray:
        """Return eight bytes of these (M,) from an offset on, zeros behind their end: uint64, ordered as bytes are."""
        start, last = self.first[numbers] + offset, self.last[numbers]
        left = np.clip(last - start, 0, 8).astype(np.uint64)
        words = self.words[np.minimum(start, len(self.words) - 1)].astype(np.uint64)
        keep = ~np.uint64(0) << (np.uint64(8) * (np.uint64(8) - np.maximum(left, 1)))
        return np.where(left > 0, words & keep, np.uint64(0))


def by_folder_and_name(
    snapshot: Snapshot, photos: np.ndarray, reverse: bool = False
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Order photos (P,) by folder, and in a folder by name.

    Args:
        snapshot: whose.
        photos: their numbers.
        reverse: the last folder first; names rise either way.

    Returns:
        Their places in the order (P,); where each folder begins in it, rising (G,); and the folders (G), absolute.
    """
    if not len(photos):
        return np.empty(0, np.int64), np.empty(0, np.int64), []
    whole, roots = _paths(snapshot, photos)
    cut = _behind_folder(whole)
    some, of_photo = _distinct(whole._replace(last=cut), roots)
    # Of a photo for each folder the path as it is.
    folders = [os.path.dirname(path) for path in snapshot.paths(photos[some])]
    known = sorted(set(folders), reverse=reverse)  # one may be reached from two roots
    place = {folder: at for at, folder in enumerate(known)}
    of_photo = np.array([place[folder] for folder in folders], np.int64)[of_photo]
    sizes = np.bincount(of_photo, minlength=len(known))
    starts = np.cumsum(sizes) - sizes
    return _by_name(whole._replace(first=cut), starts[of_photo]), starts, known


def _paths(snapshot: Snapshot, photos: np.ndarray) -> tuple[_Texts, np.ndarray]:
    """Return the paths of photos below their roots, and the roots' ids (P,)."""
    first, last = np.empty((2, len(photos)), np.int64)
    roots = np.empty(len(photos), np.int64)
    parts, size = [], 0
    for number, segment in enumerate(snapshot.segments):
        start, stop = snapshot.photo_starts[number : number + 2]
        mine = np.flatnonzero((photos >= start) & (photos < stop))
        if not len(mine):
            continue
        here = photos[mine] - start
        bounds = segment.photos.paths.verify(here)  # in memory they need not lie in their order
        first[mine], last[mine] = (bound + size for bound in bounds)
        roots[mine] = segment.photos.roots.all()[here]
        parts.append(segment.photos.paths.data.all())
        size += len(parts[-1])
    data = np.concatenate([*parts, np.zeros(8, np.uint8)])
    words = np.ndarray((size + 1,), ">u8", data.data, strides=(1,))
    return _Texts(data, words, first, last), roots


def _behind_folder(paths: _Texts) -> np.ndarray:
    """Return where each path's name begins."""
    found = np.flatnonzero(np.isin(paths.text, _SEPARATORS))
    behind = np.concatenate([[0], found + 1])
    cut: np.ndarray = np.maximum(paths.first, behind[np.searchsorted(behind, paths.last, "right") - 1])
    return cut


def _distinct(texts: _Texts, roots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a number of each of the distinct texts of each root, and which of these each text is."""
    length = texts.last - texts.first
    hashes = (roots.astype(np.uint64) * _FACTORS[0] + length.astype(np.uint64)) * _FACTORS[1]
    numbers = np.arange(len(length))
    for offset in range(0, int(length.max()), 8):
        numbers = numbers[length[numbers] > offset]
        mixed = (hashes[numbers] ^ texts.word(numbers, offset)) * _FACTORS[0]
        hashes[numbers] = (mixed ^ (mixed >> np.uint64(32))) * _FACTORS[1]
    _, some, which = np.unique(hashes, return_index=True, return_inverse=True)
    return some, which


def _by_name(names: _Texts, place: np.ndarray) -> np.ndarray:
    """Return the order (P,) by `place`, where the folder of each begins, then by name."""
    place = place.copy()
    numbers, offset = np.arange(len(place)), 0
    while len(numbers):
        words = names.word(numbers, offset)
        order = np.argsort(words)
        rank = np.empty(len(words), np.int64)
        rank[order] = np.cumsum(np.concatenate([[False], np.diff(words[order]) != 0]))
        keys = place[numbers] * (rank.max() + 1) + rank  # both below the number of photos: within 64 bits
        order = np.argsort(keys)
        numbers, keys = numbers[order], keys[order]
        at = np.arange(len(keys))
        old = place[numbers]
        begins = np.concatenate([[True], old[1:] != old[:-1]])
        new = np.concatenate([[True], keys[1:] != keys[:-1]])
        begin, mine = np.maximum.accumulate(np.where(begins, at, 0)), np.maximum.accumulate(np.where(new, at, 0))
        place[numbers] = old + mine - begin
        offset += 8
        alone = new & np.concatenate([new[1:], [True]])
        # What ends here and is still the same as another is one name, of two roots: in any order.
        numbers = np.sort(numbers[~alone & (names.last[numbers] - names.first[numbers] > offset)])
    return np.argsort(place, kind="stable")
