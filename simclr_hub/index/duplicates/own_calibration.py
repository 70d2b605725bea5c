"""The thresholds that belong to an index: those in it, the default checkpoint's, or measured on its own photos."""

import itertools
from collections.abc import Callable

import numpy as np

from ..maker import EmbedderLike
from ..store import Store
from .calibrate import calibrate
from .calibration import CALIBRATION_NAME, Calibration, load_calibration, provisional
from .contents import read_contents
from .grouping import Contents, Grouping

#: Photos of an index that thresholds are measured on.
_PHOTOS = 4000


def current_calibration(store: Store) -> Calibration:
    """The one that belongs to what made the index; if none was measured, one of the signatures alone."""
    whitening = store.whitening()
    known = load_calibration(store.file.parent, store.about.fingerprint)
    if known is not None:
        return known
    with store.reading():
        pages = [vectors for _, vectors in itertools.islice(store.vector_pages(), 20)]
    vectors = np.concatenate([*pages, np.empty((0, store.about.dim), np.float32)])
    if whitening:
        vectors = whitening.apply(vectors, normalize=True)
    return provisional(vectors, store.about.fingerprint)


def calibrate_index(
    store: Store, embedder: EmbedderLike, *, copies: int = 100, progress: Callable[[int, int], object] | None = None
) -> Calibration:
    """Measure on the index's own photos, of which no two are the same picture, and store it in the index's directory.

    Raises:
        ValueError: fewer than ten photos can be read.
        OSError: it could not be written.
    """
    with store.reading():
        contents = read_contents(store)
    rows = np.arange(len(contents.hashes))
    if len(rows) > _PHOTOS:
        rows = np.sort(np.random.default_rng(0).choice(rows, _PHOTOS, replace=False))
    vectors, signatures = contents.vectors[rows], contents.signatures[rows]
    paths = [contents.files[row][0].path for row in rows.tolist()]
    # Copies that are among the photos would pass for different pictures that look the same.
    known = Grouping(
        Contents(vectors, signatures, np.arange(len(rows))), provisional(vectors[:1], store.about.fingerprint)
    ).same()
    single = np.setdiff1d(np.arange(len(rows)), [row for star in known for row, _ in star.others]).astype(np.int64)
    calibration = calibrate(
        embedder,
        [paths[row] for row in single],
        vectors[single],
        signatures[single],
        whitening=contents.whitening,
        copies=copies,
        progress=progress,
    )
    calibration.save(store.file.with_name(CALIBRATION_NAME))
    return calibration
