"""What a person said: these look alike, but are different pictures."""

import itertools
import os
from collections.abc import Sequence

from ...images import describe
from ..paths import as_recorded, is_below, on_disk
from ..store import Store


def record_distinct(store: Store, paths: Sequence[str | os.PathLike[str]]) -> None:
    """Note that each two of these photos are different pictures; inside `Store.writing`.

    Raises:
        ValueError: fewer than two photos, one that the index does not hold, or two of the same bytes.
    """
    roots = store.roots()
    hashes: dict[bytes, str] = {}
    for path in paths:
        absolute = as_recorded(on_disk(path), roots.values())
        found = (
            store.photo(root.id, os.path.relpath(absolute, root.path))
            for root in roots.values()
            if is_below(absolute, root.path)
        )
        content_hash = next((photo.content_hash for photo in found if photo and photo.content_hash), None)
        if content_hash is None:
            raise ValueError(f"{describe(path)}: not in the index; `simclr-hub index` its folder first")
        if content_hash in hashes:
            raise ValueError(f"{describe(path)} and {describe(hashes[content_hash])} have the same bytes")
        hashes[content_hash] = os.fspath(path)
    if len(hashes) < 2:
        raise ValueError(f"{len(hashes)} photos given; a pair needs two")
    with store.transaction():
        for a, b in itertools.combinations(hashes, 2):
            store.put_distinct(a, b)
