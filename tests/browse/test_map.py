"""The map: drawn once, kept in the index, and without the photos that are gone."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browse_client import Client
from index.index_fakes import FakeEmbedder
from PIL import Image, ImageFilter
from tiny import SAMPLE_PHOTOS

from simclr_hub import SimilarityIndex
from simclr_hub.browse import map as module
from simclr_hub.browse.map import Map, draw_map
from simclr_hub.browse.server import serving


def until(found: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for something that is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := found():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not come")


def run(client: Client, job: str) -> str:
    assert client.post(f"/api/jobs/{job}").status == 200

    def ended() -> Any:
        found = client.get("/api/state").json()["jobs"][job]
        return found if found["state"] != "running" else None

    done = until(ended)
    assert done["state"] == "done", done
    return str(done["message"])


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Sample photos, a dark one, a blank one, and a blurred copy."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for file in sorted(SAMPLE_PHOTOS.glob("*.jpg"))[:9]:
        (folder / file.name).write_bytes(file.read_bytes())
    grey = np.random.default_rng(0).integers(0, 40, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(grey).save(folder / "dark.png")
    Image.new("RGB", (64, 64), (200, 180, 90)).save(folder / "blank.png")
    with Image.open(SAMPLE_PHOTOS / "cat_1.jpg") as cat:
        cat.filter(ImageFilter.GaussianBlur(6)).save(folder / "blurred.jpg", quality=95)
    return folder


def names(photos: list[dict[str, Any]]) -> list[str]:
    return [photo["name"] for photo in photos]


def test_a_map_has_every_photo_once_and_says_what_is_odd(client: Client, index: SimilarityIndex, photos: Path) -> None:
    assert client.get("/api/map").json() == {"found": False}
    assert client.post("/api/jobs/blurred").status == 409
    assert run(client, "map") == "12 photos"
    found = client.get("/api/map").json()
    assert len(set(found["ids"])) == found["total"] == 12 and not found["stale"]
    assert all(-1 <= value <= 1 for value in found["x"] + found["y"])
    assert sum(cluster["size"] for cluster in found["clusters"]) == 12
    sizes = [cluster["size"] for cluster in found["clusters"]]
    assert sizes == sorted(sizes, reverse=True)
    assert names(found["dark"]) == ["dark.png"] and names(found["blank"]) == ["blank.png"]
    assert len(found["odd"]) == 12 and found["blurred"] == []
    assert run(client, "blurred") == "12 photos measured"
    order = names(client.get("/api/map").json()["blurred"])
    assert order[0] == "blank.png" and order.index("blurred.jpg") < order.index("banana_1.jpg")


def test_a_map_outlives_the_server_and_is_told_to_be_old(
    tmp_path: Path, index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(index) as address:
        run(Client(address), "map")
    monkeypatch.setattr(module, "draw_map", None)
    (photos / "dark.png").unlink()
    index.sync(photos)
    with serving(index) as address:
        found = Client(address).get("/api/map").json()
    assert found["found"] and found["stale"] and len(found["ids"]) == 11 and found["dark"] == []
    assert index.check().sound


def test_a_map_of_few_photos_and_of_none(tmp_path: Path, index: SimilarityIndex) -> None:
    with SimilarityIndex.create(tmp_path / "empty.index", FakeEmbedder()) as empty:
        with pytest.raises(ValueError, match="no photo yet"):
            draw_map(empty, lambda *_: None)
        folder = tmp_path / "one"
        folder.mkdir()
        Image.new("RGB", (32, 32), (9, 99, 9)).save(folder / "one.png")
        empty.sync(folder)
        assert draw_map(empty, lambda *_: None).places.tolist() == [[0.0, 0.0]]


def test_photos_beyond_those_laid_out_lie_among_the_nearest(
    index: SimilarityIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LAID_OUT", 8)
    found = draw_map(index, lambda *_: None)
    assert len(found.places) == 12 and np.isfinite(found.places).all()


def test_a_record_of_anything_else_is_no_map(index: SimilarityIndex) -> None:
    found = draw_map(index, lambda *_: None)
    again = Map.from_record(found.to_record())
    assert (again.hashes == found.hashes).all() and again.total == found.total
    for record in ({}, {"npz": "x"}, {"npz": 3}, {"npz": found.to_record()["npz"][:100]}):
        with pytest.raises(ValueError):
            Map.from_record(record)


def test_the_layout_takes_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that spin while they wait take ten times as long on a busy machine."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_info, threadpool_limits

    def threads() -> set[int]:
        return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "openmp"}

    seen: list[set[int]] = []
    fit = TSNE.fit_transform
    monkeypatch.setattr(TSNE, "fit_transform", lambda self, x: (seen.append(threads()), fit(self, x))[1])
    with threadpool_limits(2, user_api="openmp"):
        before = threads()
        module._layout(np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32))
        assert threads() == before
    assert seen == [{1}]
