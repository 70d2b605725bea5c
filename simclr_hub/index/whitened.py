"""What an index's vectors are whitened with, changed in place: the vectors in the store never change.

Unusual: the store keeps what the model gave, and whitening is applied where vectors are read, so that a change is one
short transaction however many photos there are. What takes time after it, making the search cache anew, may be stopped
at any moment: searches do without it, and the next call or sync goes on.
"""

import numpy as np

from ..errors import IndexMismatchError
from ..whitening import IMAGES, Whitening
from .maker import Maker, choose_whitening
from .store import Store


def whiten_store(store: Store, maker: Maker, whiten: Whitening | bool | None) -> Whitening | None:
    """What `SimilarityIndex.whiten` does to the store, and its errors; inside `Store.writing`."""
    new = None if whiten is False else _chosen(store, maker, whiten)
    if new != store.whitening():
        with store.transaction():
            store.put_whitening(new)
    return store.whitening()


def _chosen(store: Store, maker: Maker, whiten: Whitening | bool | None) -> Whitening:
    try:
        found = choose_whitening(None, maker.embedder(), whiten)
    except IndexMismatchError:  # the model cannot be had
        if whiten is not None:
            raise
        found = None
    return found or _own(store)


def _own(store: Store) -> Whitening:
    """Learnt on the index's photos, at most `IMAGES` of them, by content: as good as by chance, and again the same."""
    hashes = sorted({photo.content_hash for photo in store.sample(IMAGES) if photo.content_hash})
    vectors = [vector for content_hash in hashes if (vector := store.vector(content_hash)) is not None]
    about = store.about
    return Whitening.learn(
        np.array(vectors, np.float32).reshape(-1, about.dim),
        learnt_from="the photos of the index itself",
        layer=about.fingerprint.get("layer", "h"),
        weights=str(about.fingerprint.get("weights", "")),
    )
