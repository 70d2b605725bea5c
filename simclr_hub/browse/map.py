"""A map of a collection: where each photo lies among what is like it, clusters, odd, dark, blank and blurred ones.

It is drawn once, on a thread of the server, and kept in the index.
"""

import base64
import io
import os
import zipfile
import zlib
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from .._threads import Pool
from ..errors import ImageError, MissingExtraError
from ..index import SimilarityIndex
from ..index.search.ann import faiss
from ..signature import as_rows, unpack
from .jobs import Progress
from .library import Library, UnknownPhotoError
from .pictures import quality

#: Photos that a map shows; of a larger collection as many, drawn by chance.
MOST = 20_000
#: Bytes that a map takes at most.
MOST_BYTES = 1 << 24
#: Photos that t-SNE lays out; the others lie among the nearest of these.
LAID_OUT = 4000
#: Neighbours whose mean cosine tells how odd a photo is, and that a photo beyond `LAID_OUT` lies among.
NEIGHBOURS, AMONG = 10, 3
#: Grey levels, of 255: a photo whose brightest cell is below is dark; one whose cells differ by less is blank.
DARK, BLANK = 48, 6


@dataclass(frozen=True)
class Map:
    """Hold a map of N photos, one for each content.

    Attributes:
        hashes: SHA-256 of the contents, uint8 (N, 32).
        places: float32 (N, 2), within -1 and 1.
        clusters: which cluster each is of, int32 (N,), the largest first.
        typical: how near each is to its cluster's centre, a cosine, float32 (N,).
        odd: mean cosine to its nearest neighbours, float32 (N,).
        dark: bool (N,).
        blank: bool (N,).
        sharpness: see `pictures.quality`, float32 (N,), NaN where it was not measured, which takes reading the photo.
        total: contents of the collection, of which these were drawn.
    """

    hashes: np.ndarray
    places: np.ndarray
    clusters: np.ndarray
    typical: np.ndarray
    odd: np.ndarray
    dark: np.ndarray
    blank: np.ndarray
    sharpness: np.ndarray
    total: int

    def to_record(self) -> dict[str, Any]:
        """Return it as the store keeps it."""
        file = io.BytesIO()
        parts: dict[str, Any] = {one.name: getattr(self, one.name) for one in fields(self)}
        np.savez_compressed(file, **parts)
        return {"npz": base64.b64encode(file.getvalue()).decode()}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Map":
        """Read what `to_record` gave.

        Raises:
            ValueError: it is something else.
        """
        try:
            file = io.BytesIO(base64.b64decode(record["npz"]))
            with zipfile.ZipFile(file) as parts:  # of an index from elsewhere: it may unpack to any size
                if sum(part.file_size for part in parts.infolist()) > MOST_BYTES:
                    raise ValueError("no map: it is too large")
            with np.load(file, allow_pickle=False) as arrays:
                found = cls(**{one.name: arrays[one.name] for one in fields(cls)})
        except (KeyError, OSError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as e:
            raise ValueError(f"no map: {e}") from e
        number = len(found.hashes)
        if any(len(getattr(found, one.name)) != number for one in fields(cls) if one.name != "total"):
            raise ValueError("no map: its parts are of different lengths")
        return found


def draw_map(index: SimilarityIndex, progress: Progress) -> Map:
    """Draw a map of an index's photos.

    Raises:
        ValueError: the index has no photo.
        MissingExtraError: scikit-learn is not installed.
    """
    with index.store.beside() as store, store.reading():
        whitening = store.whitening()
        hashes = sorted({photo.content_hash for photo in store.sample(2 * MOST) if photo.content_hash})[:MOST]
        total = store.counts()["vectors"]
        vectors = np.stack([_vector(store.vector(one), store.about.dim) for one in hashes]) if hashes else None
        details = [store.details_of(one) for one in hashes]
    if vectors is None:
        raise ValueError("the index has no photo yet; sync a folder first")
    if whitening:
        vectors = whitening.apply(vectors, normalize=True)
    progress(1, 4)
    near = _neighbours(vectors)
    progress(2, 4)
    clusters, typical = _clusters(vectors)
    progress(3, 4)
    thumbnails = unpack(as_rows([one.signature if one else b"" for one in details])).grey.reshape(len(hashes), -1)
    seen = np.array([bool(one and one.signature) for one in details])
    return Map(
        hashes=np.frombuffer(b"".join(hashes), np.uint8).reshape(-1, 32),
        places=_layout(vectors),
        clusters=clusters,
        typical=typical,
        odd=near.mean(1) if near.shape[1] else np.ones(len(hashes), np.float32),
        dark=seen & (thumbnails.max(1) < DARK),
        blank=seen & (np.ptp(thumbnails, axis=1) < BLANK),
        sharpness=np.full(len(hashes), np.nan, np.float32),
        total=max(total, len(hashes)),
    )


def measure_sharpness(found: Map, library: Library, progress: Progress) -> Map:
    """Return a map with the sharpness of every photo that can be read; those measured before are not read again."""
    photos = library.of_contents([bytes(one) for one in found.hashes])
    sharpness = found.sharpness.copy()
    missing = [at for at in np.flatnonzero(np.isnan(sharpness)).tolist() if photos[at]]

    def measure(at: int) -> float:
        photo = photos[at]
        try:
            return quality(bytes(found.hashes[at]), library.paths_of(photo["id"]) if photo else [])["sharpness"]
        except (ImageError, UnknownPhotoError):
            return np.nan

    with Pool(os.cpu_count() or 1, "simclr-sharpness") as pool:
        for done, (at, value) in enumerate(pool.map(measure, missing, ahead=16), 1):
            sharpness[at] = value
            progress(done, len(missing))
    return replace(found, sharpness=sharpness)


def _vector(vector: np.ndarray | None, dim: int) -> np.ndarray:
    return np.zeros(dim, np.float32) if vector is None else vector


def _neighbours(vectors: np.ndarray) -> np.ndarray:
    """Return the cosines of each one to its nearest others (N, K)."""
    number = min(NEIGHBOURS, len(vectors) - 1)
    cosines = [np.empty((0, number), np.float32)]
    for start in range(0, len(vectors), 1024):
        some = vectors[start : start + 1024] @ vectors.T
        some[np.arange(len(some)), start + np.arange(len(some))] = -np.inf  # itself
        cosines.append(np.partition(some, -number, axis=1)[:, -number:] if number else some[:, :0])
    return np.concatenate(cosines)


def _clusters(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each one's cluster, the largest first, and its cosine to the centre: (N,) each."""
    number = int(np.clip(round((len(vectors) / 2) ** 0.5), 1, 60))
    kmeans = faiss().Kmeans(vectors.shape[1], number, niter=20, seed=0, spherical=True, min_points_per_centroid=1)
    kmeans.train(np.ascontiguousarray(vectors, np.float32))
    cosines = vectors @ kmeans.centroids.T
    nearest = cosines.argmax(1)
    order = np.argsort(-np.bincount(nearest, minlength=number), kind="stable")
    place = np.empty(number, np.int32)
    place[order] = np.arange(number)
    return place[nearest], cosines.max(1).astype(np.float32)


def _layout(vectors: np.ndarray) -> np.ndarray:
    """Return places (N, 2) within -1 and 1: t-SNE of some, the others among the nearest of these."""
    try:
        from sklearn.manifold import TSNE  # loaded for this alone
        from threadpoolctl import threadpool_limits  # comes with it
    except ImportError as e:
        raise MissingExtraError("scikit-learn", "web") from e
    number = len(vectors)
    if number < 5:
        return _within(np.stack([np.arange(number), np.zeros(number)], 1))
    some = np.sort(np.random.default_rng(0).permutation(number)[:LAID_OUT])
    perplexity = min(30.0, (len(some) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", learning_rate="auto", random_state=0)
    # Its threads wait for one another by spinning, a thousand times: 84 s beside other work, one takes 7. OpenMP's
    # limit is this thread's own, so that a sync on another one keeps its threads.
    with threadpool_limits(1, user_api="openmp"):
        laid = tsne.fit_transform(vectors[some].astype(np.float32))
    places = np.empty((number, 2), np.float32)
    places[some] = laid
    others = np.setdiff1d(np.arange(number), some)
    jitter = np.random.default_rng(1).normal(scale=np.ptp(laid) / 200, size=(len(others), 2))
    for start in range(0, len(others), 1024):
        block = others[start : start + 1024]
        cosines = vectors[block] @ vectors[some].T
        best = np.argpartition(-cosines, AMONG - 1, axis=1)[:, :AMONG]
        weight = np.take_along_axis(cosines, best, 1).clip(1e-3) ** 4
        mean = (laid[best] * weight[..., None]).sum(1) / weight.sum(1, keepdims=True)
        places[block] = mean + jitter[start : start + len(block)]
    return _within(places)


def _within(places: np.ndarray) -> np.ndarray:
    """Move and scale places (N, 2) so that they lie around 0 and within -1 and 1."""
    centred = places - places.mean(0)
    within: np.ndarray = centred / np.abs(centred).max().clip(1e-9)
    return within.astype(np.float32)
