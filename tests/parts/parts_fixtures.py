"""Images as people keep many of them, and what is made of them in one process."""

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index.index_fakes import FakeEmbedder, make_photo
from PIL import Image

from simclr_hub.parts.part import Result, Worker
from simclr_hub.parts.plan import Plan, make_plan
from simclr_hub.parts.run import prepare
from simclr_hub.parts.storage import Folder
from simclr_hub.scan import FileStat


def png(seed: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """A folder of 30 photos with odd names, two broken ones among them."""
    folder = tmp_path / "many photos"
    for i in range(28):
        make_photo(folder / f"{i % 3}" / f"ä {i:02d}\n.png", i)
    for i in range(2):
        (folder / f"broken {i}.jpg").write_bytes(b"no image")
    return folder


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards of six images as img2dataset 1 writes them: an archive, a table of all that was tried, statistics."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for shard in range(2):
        with tarfile.open(folder / f"{shard:05d}.tar", "w") as archive:
            for i in range(6):
                for suffix, data in (("png", png(10 * shard + i)), ("json", b"{}"), ("txt", b"a cat")):
                    info = tarfile.TarInfo(f"{shard:05d}{i:04d}.{suffix}")
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
        tried = [(i, "success") for i in range(6)] + [(6, "failed_to_download"), (7, "failed_to_resize")]
        told = {
            "url": [f"https://example.org/{shard}/{i}.jpg" for i, _ in tried],
            "caption": ["a cat" for _ in tried],
            "key": [f"{shard:05d}{i:04d}" for i, _ in tried],
            "status": [status for _, status in tried],
            "error_message": [None if status == "success" else "HTTP Error 404" for _, status in tried],
        }
        pq.write_table(pa.table(told), folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text('{"count": 8, "successes": 6}')
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A Parquet file of 10 images and a row without one, in groups of 4."""
    path = tmp_path / "rows.parquet"
    images: list[Any] = [png(50 + i) for i in range(10)]
    pq.write_table(pa.table({"key": [f"k{i}" for i in range(11)], "jpg": [*images, None]}), path, row_group_size=4)
    return path


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trust stamps at once, as if every file had been written long ago."""
    monkeypatch.setattr(FileStat, "settled", lambda self, scan_time_ns: True)


Made = Callable[..., tuple[Plan, Folder, list[Result]]]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """Plan sources and make all parts in this process."""

    def made(*sources: Path, images: int = 5, embedder: Any = None) -> tuple[Plan, Folder, list[Result]]:
        plan = make_plan([str(source) for source in sources], tmp_path / "plan", images=images)
        out = Folder(tmp_path / "out")
        prepare(out, plan)
        worker = Worker(plan, out, embedder or FakeEmbedder())
        return plan, out, [worker.embed(name) for name in plan.parts]

    return made
