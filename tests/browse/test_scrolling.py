"""A large collection in a real browser: how long the page's script holds up a frame while one scrolls."""

import io
import json
from collections.abc import Callable, Iterator
from hashlib import sha256
from typing import Any

import numpy as np
import pytest
from index.index_fakes import DIM, FakeEmbedder
from PIL import Image

from simclr_hub import SimilarityIndex
from simclr_hub.browse.pictures import Thumbnails
from simclr_hub.browse.server import Address, serving
from simclr_hub.index.store import Photo, checksum
from simclr_hub.scan import FileStat

pytest.importorskip("playwright.sync_api", reason="pip install playwright: the page is tested in a browser")
from playwright.sync_api import Page, expect  # noqa: E402

pytestmark = pytest.mark.browser
NUMBER = 100_000
#: Milliseconds of the processor for one task of the page: script, styles and layout of a frame.
LONGEST = 100


def fill(index: SimilarityIndex) -> None:
    """Put photos as a sync does, but many rows a statement; they have no files."""
    vectors = np.random.default_rng(0).normal(size=(NUMBER, DIM)).astype("<f4")
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: dict[str, list[tuple[Any, ...]]] = {"vectors": [], "details": [], "photos": []}
    store = index.store
    with store.writing():
        with store.transaction():
            root = store.put_root(b"/photos", "ok")
            for at, vector in enumerate(vectors):
                content = sha256(b"%d" % at).digest()
                taken = f"20{at % 25:02}-{at % 12 + 1:02}-07T12:00:00"
                info = json.dumps({"camera": f"camera {at % 50}", "height": 3000, "taken": taken, "width": 4000})
                path, stat = b"album %03d/IMG_%06d.jpg" % (at // 500, at), FileStat(at, 1, 1, at)
                photo = Photo(root.id, path, stat, True, content, "live", metadata=f'{{"bytes": {at}}}')
                rows["vectors"].append((content, vector.tobytes()))
                rows["details"].append((content, info, b""))
                rows["photos"].append(photo.columns())
                store._replace(None, photo)
            for table, values in rows.items():
                marks = ", ".join("?" * (len(values[0]) + 1))
                statement = f"INSERT INTO {table} VALUES ({marks})"
                store._connection().executemany(statement, ((*row, checksum(*row)) for row in values))
        index._write_cache()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """A hundred thousand photos, which look like one of twenty."""
    pictures = []
    for seed in range(20):
        file = io.BytesIO()
        pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
        Image.fromarray(pixels).resize((320, 240)).save(file, "JPEG")
        pictures.append(file.getvalue())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Thumbnails, "kept", lambda _, content: pictures[content[0] % 20])
        with SimilarityIndex.create(tmp_path_factory.mktemp("large") / "i", FakeEmbedder()) as made:
            fill(made)
            with serving(made) as address:
                yield address


def longest_task(page: Page, work: Callable[[], object]) -> float:
    """Return the most milliseconds that the page's thread worked without a pause, in the processor's time.

    Wall time would tell what else the machine does.
    """
    browser = page.context.browser
    assert browser
    browser.start_tracing(page=page, categories=["toplevel", "devtools.timeline", "__metadata"])
    work()
    events = json.loads(browser.stop_tracing())["traceEvents"]
    threads = {
        (event["pid"], event["tid"])
        for event in events
        if event["name"] == "thread_name" and event["args"]["name"] == "CrRendererMain"
    }
    tasks = [
        event["tdur"] / 1000
        for event in events
        if event["name"].endswith("RunTask") and "tdur" in event and (event["pid"], event["tid"]) in threads
    ]
    assert len(tasks) > 100  # else nothing was traced
    return max(tasks)


@pytest.mark.parametrize("width", [390, 1280, 2560])
def test_a_hundred_thousand_photos_scroll_without_a_stop(
    window: Callable[..., Page], large: Address, width: int
) -> None:
    page = window(large, "photos?sort=folder", viewport={"width": width, "height": 1300})
    expect(page.locator(".total")).to_have_text("100,000 photos")
    page.locator(".tile img").first.wait_for()

    def scroll() -> None:
        page.mouse.move(width / 2, 700)
        for _ in range(40):
            page.mouse.wheel(0, 700)
            page.wait_for_timeout(16)
        # A scroll bar that is dragged: far at each step.
        page.evaluate("""async () => {
          const box = document.querySelector(".grid");
          const far = box.scrollHeight - box.clientHeight;
          for (let step = 0; step <= 60; step++) {
            box.scrollTop = (far * ((step * 37) % 61)) / 60;
            await new Promise(requestAnimationFrame);
            await new Promise((done) => setTimeout(done, 10));
          }
          box.scrollTop = far;
        }""")
        page.locator(f'.tile[aria-posinset="{NUMBER}"] img').wait_for()

    took = longest_task(page, scroll)
    assert took < LONGEST, f"{took:.0f} ms"
    assert page.locator(".tile").count() < 500  # what is in sight, and a little
    last = page.locator(f'.tile[aria-posinset="{NUMBER}"] .open')
    expect(last).to_have_attribute("title", "IMG_099999.jpg\n/photos/album 199")
    page.locator(".tile .open").first.focus()
    page.keyboard.press("Home")
    expect(page.locator('.tile[aria-posinset="1"] .open')).to_have_attribute(
        "title", "IMG_000000.jpg\n/photos/album 000"
    )
