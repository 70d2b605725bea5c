"""Folders of parts without photos: vectors that are given, as `simclr-hub parts run` would have written them."""

import hashlib
import io
import json
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from simclr_hub.index.parquet import Header, photo_row, write_rows
from simclr_hub.index.store import About, Details, Photo, Root
from simclr_hub.parts.part import _schema
from simclr_hub.parts.run import MARK
from simclr_hub.parts.storage import Folder
from simclr_hub.scan import FileStat

FINGERPRINT = {"model": "drawn", "weights": "w1"}


def details(at: int) -> dict[str, Any]:
    """What is told of an image: one of 2 sizes, of 50 cameras, of 1,000 albums (its key), of 25 years."""
    taken = f"20{at % 25:02}-06-07T12:00:00"
    return {"camera": f"camera {at % 50}", "format": "JPEG", "height": 3000 - at % 2, "taken": taken, "width": 4000}


def draw_parts(
    folder: Path,
    pieces: Iterable[np.ndarray],
    *,
    fingerprint: dict[str, Any] = FINGERPRINT,
    whitening: Any = None,
    first: int = 0,
    names: dict[int, bytes] | None = None,
    info: Any = details,
    half: bool = False,
) -> Folder:
    """Write a part of each piece (n, D) of vectors of length 1; `names` are of images that have odd ones."""
    pieces = list(pieces) if not hasattr(pieces, "__next__") else pieces
    out, at = Folder(folder), first
    root = Root(0, b"/photos", "ok")
    count = len(pieces) if isinstance(pieces, list) else 0
    out.put(MARK, json.dumps({"plan": "drawn"}).encode())
    for number, piece in enumerate(pieces):
        rows = []
        for vector in piece:
            name = (names or {}).get(at, b"album %03d/IMG_%07d.jpg" % (at % 1000, at))
            content = hashlib.sha256(b"%d" % at).digest()
            photo = Photo(0, name, FileStat(3_000_000 + at, 1_700_000_000 * 10**9 + at, 1, at), True, content, "live")
            row = photo_row(photo, root, 0, vector.astype(np.float32), Details(info(at), b""))
            rows.append(row | {"key": f"{at % 1000:03}", "error": None, "item": 0, "position": at})
            at += 1
        told = {**fingerprint, **({"whitening": whitening.sha256} if whitening else {})}
        header = Header(About(told, piece.shape[1]), [("/photos", "ok")], "/", [], len(rows), whitening, half)
        part = hashlib.sha256(b"%d %d" % (first, number)).hexdigest()[:32]
        buffer = io.BytesIO()
        plan: Any = SimpleNamespace(id="drawn", parts=range(count))
        write_rows(buffer, _schema(header, plan, part), header, iter(rows))
        out.put(f"{part}.parquet", buffer.getvalue())
    return out


def units(number: int, dim: int, seed: int = 0, clusters: int = 20) -> np.ndarray:
    """Vectors (N, D) of length 1 in clusters."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(clusters, dim))
    vectors = centres[random.integers(clusters, size=number)] + 0.5 * random.normal(size=(number, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
