"""What the index's tests share: an embedder of five numbers a photo, tiny photos, and what an index must be."""

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from simclr_hub.embedder import Embedding, Failure
from simclr_hub.errors import ImageError
from simclr_hub.images import load_image
from simclr_hub.index import SimilarityIndex
from simclr_hub.index.store import STORE_NAME, Photo
from simclr_hub.scan import FileStat
from simclr_hub.signature import picture_signature

DIM = 5


class FakeEmbedder:
    """Mean and spread of the colours; counts what it embeds."""

    dim = DIM

    def __init__(self, **fingerprint: str):
        self.fingerprint: dict[str, str] = {"model": "fake", "weights": "w1", **fingerprint}
        self.embedded = 0

    def stream(self, sources: Iterable[Any], *, signatures: bool = False) -> Iterator[Embedding | Failure]:
        for position, source in enumerate(sources):
            try:
                image = load_image(source)
            except ImageError as e:
                yield Failure(position, source, e)
                continue
            self.embedded += 1
            pixels = image.pixels / 255
            vector = np.array([*pixels.mean((1, 2)), pixels.std(), pixels[0, 0, 0]], np.float32)
            signature = picture_signature(image.pixels) if signatures else b""
            yield Embedding(position, source, vector, image.content_hash, image.info, signature)


def make_photo(path: Path, seed: int) -> Path:
    """A tiny PNG; equal seeds give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, "PNG")
    return path


def put_vectors(index: SimilarityIndex, number: int, *, seed: int = 0) -> np.ndarray:
    """Put so many photos into an index, each of its own content, below /elsewhere; their vectors (N, D)."""
    store, random = index._store, np.random.default_rng(seed)
    centres = random.normal(size=(20, store.about.dim))
    vectors = centres[random.integers(20, size=number)] + 0.5 * random.normal(size=(number, store.about.dim))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    with store.writing(), store.transaction():
        root = store.put_root(b"/elsewhere", "ok")
        for i, vector in enumerate(vectors):
            content = hashlib.sha256(b"%d %d" % (seed, i)).digest()
            store.put_vector(content, vector)
            store.put_details(content, {"width": i, "camera": f"camera {i % 7}"}, b"")
            path = b"%d/%d/%d.jpg" % (seed, i % 10, i)
            store.put(Photo(root.id, path, FileStat(1, 1, 1, i), True, content, "live", metadata=f'{{"bytes": {i}}}'))
    return vectors


def expected_vector(path: str | bytes | Path) -> np.ndarray:
    """What the index must hold for a photo."""
    (item,) = FakeEmbedder().stream([Path(os.fsdecode(path))])
    assert isinstance(item, Embedding)
    vector: np.ndarray = item.vector / np.linalg.norm(item.vector)
    return vector


def check_index(index: SimilarityIndex) -> list[str]:
    """SQLite is content, every live photo has one row with its own vector; returns their paths."""
    store = index._store
    with closing(sqlite3.connect(store.file)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    roots = store.roots()
    live = {os.fsdecode(store.locate(p, roots)): p for p in store.photos(state="live")}
    paths, vectors = index.vectors()
    assert paths == sorted(live)
    for path, vector in zip(paths, vectors, strict=True):
        if os.path.exists(path):
            data = Path(path).read_bytes()
            if hashlib.sha256(data).digest() == live[path].content_hash:
                np.testing.assert_allclose(vector, expected_vector(path), atol=1e-6)
    return paths


def store_file(index: SimilarityIndex) -> Path:
    return index._store.file


def tree_state(folder: Path) -> dict[str, tuple[int, int]]:
    """Names, sizes and times of everything below a folder: proves that nothing there was written."""
    return {
        str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in [folder, *sorted(folder.rglob("*"))]
    }


__all__ = [
    "DIM",
    "STORE_NAME",
    "FakeEmbedder",
    "check_index",
    "expected_vector",
    "make_photo",
    "put_vectors",
    "store_file",
    "tree_state",
]
