"""An index's page, served, and a browser that looks at it."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browse_client import Client
from index.index_fakes import FakeEmbedder, make_photo

from simclr_hub import SimilarityIndex
from simclr_hub.browse.server import Address, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page


@pytest.fixture(autouse=True)
def own_thumbnails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep them apart from those of other tests, whose photos may hold the same."""
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(tmp_path / "assets"))


@pytest.fixture
def index(tmp_path: Path, photos: Path) -> Iterator[SimilarityIndex]:
    with SimilarityIndex.create(tmp_path / "photos.index", FakeEmbedder()) as made:
        made.sync(photos)
        yield made


@pytest.fixture
def client(index: SimilarityIndex) -> Iterator[Client]:
    with serving(index) as address:
        yield Client(address)


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A server that is only asked, so that one does for all tests of a module."""
    folder = tmp_path_factory.mktemp("asked")
    for seed in range(6):
        make_photo(folder / "photos" / f"{seed}.png", seed)
    with SimilarityIndex.create(folder / "photos.index", FakeEmbedder()) as made:
        made.sync(folder / "photos")
        with serving(made) as address:
            yield Client(address)


@pytest.fixture(scope="session")
def browser() -> "Iterator[Browser]":
    """Chromium, driven by Playwright."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright: the page is tested in a browser")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on PATH: the page is tested in one (apt install chromium)")
    with api.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def window(browser: "Browser") -> "Iterator[Callable[..., Page]]":
    """Open the page in a window of its own; what it reports as a fault fails the test."""
    contexts: list[BrowserContext] = []
    faults: list[str] = []

    def watch(page: "Page") -> None:
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("console", lambda message: "Content Security Policy" in message.text and faults.append(message.text))
        page.on(
            "request",
            lambda asked: asked.url.startswith(("http://127.", "blob:", "data:")) or faults.append(asked.url),
        )

    def opened(address: Address, view: str = "", **options: Any) -> "Page":
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(20_000)
        contexts.append(context)
        context.on("page", watch)
        page = context.new_page()
        page.goto(address.url)
        page.locator("#tabs a").first.wait_for()
        if view:
            page.evaluate("view => (location.hash = view)", view)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert faults == []
