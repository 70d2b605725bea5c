"""The two pages of benchmarks/queries.py: whose matches they show, and that they stay small."""

import io

import numpy as np
import queries
import torch
from features import Photos
from PIL import Image


def test_the_nearest_are_others_best_first():
    vectors = torch.tensor([[1.0, 0], [0.9, 0.1], [0, 1], [1, 0], [0.5, 0.5], [-1, 0], [0.8, 0.3], [0.1, 1]])
    matches, scores = queries.nearest(vectors, [0, 2])
    assert matches.shape == (2, queries.MATCHES) and matches[0].tolist()[:3] == [3, 1, 6]
    assert 0 not in matches[0] and 2 not in matches[1]
    assert (scores[:, :-1] >= scores[:, 1:]).all()


def test_a_page_is_framed_by_class_and_small(tmp_path, monkeypatch):
    random = np.random.default_rng(0)
    files = []
    for _ in range(8):
        file = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (90, 120, 3), dtype=np.uint8)).save(file, "png")
        files.append(file.getvalue())
    photos = Photos(files, torch.tensor([0, 0, 1, 1, 0, 0, 1, 1]), ["clothing_hat", "grocery_Red-Beet"])
    matches = torch.tensor([[1, 2, 4, 5, 6, 7]])
    page = queries.sheet(photos, [0], matches, torch.linspace(1, 0, 6)[None])
    cell = queries.SIDE + 2 * queries.FRAME + queries.GAP
    frames = [page.getpixel((k * cell + 2 * queries.GAP * (k > 0) + 1, 1)) for k in range(7)]
    green, red = (0, 0x9E, 0x73), (0xD5, 0x30, 0x0E)
    assert frames == [(0, 0, 0), green, red, green, green, red, red]
    monkeypatch.setattr(queries, "LIMIT", 30_000)
    queries.save(page, tmp_path / "page.jpg")
    assert (tmp_path / "page.jpg").stat().st_size < 30_000
    with Image.open(tmp_path / "page.jpg") as written:
        assert written.size == page.size
