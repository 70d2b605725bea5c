"""The page in a real browser: Chromium, driven by Playwright. `make browser` runs these."""

import base64
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browse_client import HOSTILE
from index.index_fakes import FakeEmbedder, make_photo
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub import SimilarityIndex
from simclr_hub.browse.pictures import Thumbnails
from simclr_hub.browse.server import Address, serving

pytest.importorskip("playwright.sync_api", reason="pip install playwright: the page is tested in a browser")
from playwright.sync_api import Locator, Page, expect  # noqa: E402

pytestmark = pytest.mark.browser
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
expect.set_options(timeout=20_000)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Address]:
    """The sample photos, which are only looked at."""
    with SimilarityIndex.create(tmp_path_factory.mktemp("served") / "i", FakeEmbedder()) as made:
        made.sync(SAMPLE_PHOTOS)
        with serving(made) as address:
            yield address


def tile(page: Page, name: str) -> Locator:
    return page.locator(".tile").filter(has=page.locator(f'button.open[aria-label^="{name}"]'))


def names(page: Page) -> list[str]:
    """The photos in sight, in their order."""
    tiles = page.locator(".tile")
    tiles.locator("img").first.wait_for()
    both = tiles.evaluate_all(
        "all => all.map(one => [Number(one.ariaPosInSet), one.querySelector('.open').ariaLabel.split(',')[0]])"
    )
    return [name for _, name in sorted(both)]


def fits(page: Page) -> bool:
    fitting: bool = page.evaluate(
        "document.documentElement.scrollWidth <= innerWidth && document.body.scrollWidth <= innerWidth"
    )
    return fitting


def test_search_by_clicking(window: Callable[..., Page], served: Address) -> None:
    page = window(served, "photos?sort=folder")
    one = tile(page, "banana_1.jpg")
    one.hover()
    one.get_by_role("button", name="Find photos like banana_1.jpg").click()
    expect(page.locator(".chip.like")).to_have_count(1)
    expect(page.locator(".caption").first).to_contain_text("closer than")
    results = names(page)
    assert "banana_1.jpg" not in results and len(results) > 10
    for name, kind in ((results[0], "More like"), (results[1], "Not like this")):
        tile(page, name).hover()
        tile(page, name).get_by_role("button", name=kind).first.click() if kind == "More like" else tile(
            page, name
        ).get_by_title(kind).click()
        expect(tile(page, name)).to_have_count(0)
    expect(page.locator(".chip.like")).to_have_count(2)
    expect(page.locator(".chip.unlike")).to_have_count(1)
    page.go_back()
    expect(page.locator(".chip.unlike")).to_have_count(0)
    page.get_by_role("button", name="Remove this photo from what is searched for").first.click()
    expect(page.locator(".chip.like")).to_have_count(1)


GIVE = """([kind, name, type, data]) => {
  const bytes = Uint8Array.from(atob(data), (one) => one.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type }));
  const made = kind === "paste" ? new ClipboardEvent(kind, { clipboardData: transfer, bubbles: true })
    : new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true });
  document.getElementById("main").dispatchEvent(made);
}"""


def test_search_by_dropping_pasting_and_choosing(window: Callable[..., Page], served: Address) -> None:
    page = window(served)
    for kind, name in (("drop", "cat_1.jpg"), ("paste", "lemon_2.jpg")):
        data = base64.b64encode((SAMPLE_PHOTOS / name).read_bytes()).decode()
        page.evaluate("location.hash = 'photos'")
        page.locator(".tile img").first.wait_for()
        page.evaluate(GIVE, [kind, "<b>mine</b>.jpg", "image/jpeg", data])
        expect(page.locator(".chip.like")).to_have_count(1)
        assert names(page)[0] == name
    page.locator("input[type=file]").set_input_files([SAMPLE_PHOTOS / "banana_1.jpg", SAMPLE_PHOTOS / "banana_2.jpg"])
    expect(page.locator(".chip.like")).to_have_count(3)
    page.evaluate(GIVE, ["drop", "x.txt", "text/plain", ""])
    expect(page.locator("#notices")).to_contain_text("This is no photo.")
    page.evaluate(GIVE, ["drop", "x.jpg", "image/jpeg", base64.b64encode(b"broken").decode()])
    expect(page.locator("#notices")).to_contain_text("dropped photo")


def test_no_answer_waits_for_pictures_of_a_slow_disk(
    window: Callable[..., Page], served: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A browser asks a server six things at a time."""
    slow = threading.Event()
    kept = Thumbnails.kept
    monkeypatch.setattr(Thumbnails, "kept", lambda self, content: slow.wait(60) and kept(self, content))
    try:
        page = window(served, "photos?sort=folder")
        page.locator(".tile .similar").first.click(force=True)
        expect(page.locator(".tile .caption").first).to_contain_text("closer than")
        page.evaluate("location.hash = 'photos?sort=folder'")
        page.locator(".tile .open[aria-label^='banana']").first.click()
        expect(page.get_by_role("dialog").locator("dl")).to_contain_text("JPEG")
    finally:
        slow.set()
    page.keyboard.press("Escape")
    page.wait_for_function("() => [...document.querySelectorAll('.tile img')].every((one) => one.naturalWidth)")


def test_filters_live_in_the_address(window: Callable[..., Page], served: Address) -> None:
    page = window(served)
    page.keyboard.press("/")
    page.keyboard.type("cat_*")
    number = len(list(SAMPLE_PHOTOS.glob("cat_*")))
    expect(page.locator(".total")).to_have_text(f"{number} photos")
    assert set(names(page)) == {path.name for path in SAMPLE_PHOTOS.glob("cat_*")}
    page.reload()
    expect(page.locator(".total")).to_have_text(f"{number} photos")
    page.get_by_label("Pixels, at least").fill("100000")
    expect(page.locator(".total")).to_have_text("No photo")
    expect(page.locator(".empty")).to_contain_text("width")
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".total")).to_have_text("58 photos")


def test_by_keyboard_alone(window: Callable[..., Page], served: Address) -> None:
    page = window(served, "photos?sort=folder")
    order = names(page)

    def focused() -> str:
        label: str = page.evaluate("document.activeElement.ariaLabel?.split(',')[0] ?? document.activeElement.tagName")
        return label

    for key, at in (("ArrowDown", 0), ("ArrowRight", 1), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)):
        page.keyboard.press(key)
        page.wait_for_function("name => document.activeElement.ariaLabel?.startsWith(name)", arg=order[at])
        assert focused() == order[at]
    page.keyboard.press("End")
    page.wait_for_function("document.activeElement.closest('.tile')?.ariaPosInSet === '58'")
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    viewer = page.get_by_role("dialog")
    expect(viewer.locator("h2")).to_have_text(order[0])
    page.keyboard.press("ArrowRight")
    expect(viewer.locator("h2")).to_have_text(order[1])
    expect(viewer.locator(".canvas img:not(.small)")).to_have_js_property("complete", True)
    page.keyboard.press("+")
    expect(viewer.locator(".canvas")).to_have_class(re.compile("zoomed"))
    page.keyboard.press("Escape")
    expect(viewer).to_have_count(0)
    page.wait_for_function("name => document.activeElement.ariaLabel?.startsWith(name)", arg=order[1])
    page.keyboard.press("Enter")
    viewer.locator("dl").wait_for()
    page.keyboard.press("s")
    expect(page.locator(".chip.like")).to_have_count(1)
    page.keyboard.press("1")
    expect(page).to_have_title(re.compile("Photos"))


def test_on_a_phone_by_touch(window: Callable[..., Page], served: Address) -> None:
    page = window(served, "photos?sort=folder", **PHONE)
    first, second = names(page)[:2]
    expect(tile(page, first).locator(".over")).to_have_css("opacity", "1")  # nothing hovers there
    assert fits(page)
    tile(page, first).locator(".open").tap()
    viewer = page.get_by_role("dialog")
    viewer.locator("dl").wait_for()
    assert fits(page)
    touch = page.context.new_cdp_session(page)
    for kind, x in (("touchStart", 300), ("touchMove", 200), ("touchMove", 100), ("touchEnd", None)):
        points = [] if x is None else [{"x": x, "y": 300}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    expect(viewer.locator("h2")).to_have_text(second)
    viewer.get_by_role("button", name="Find similar").click()  # a tap on a busy machine is taken for a long press
    expect(page.locator(".chip.like")).to_have_count(1)
    for view in ("search", "duplicates", "status", "photos?path=*"):
        page.evaluate("view => (location.hash = view)", view)
        page.locator("#main > *").first.wait_for()
        page.wait_for_timeout(300)
        assert fits(page), view


@pytest.fixture
def copies(tmp_path: Path) -> Iterator[tuple[Path, Address]]:
    """Twelve photos, each with a copy in backup/, and one more with itself re-encoded."""
    folder = tmp_path / "my photos"
    for name in ("trip", "backup"):
        (folder / name).mkdir(parents=True)
        for path in sorted(SAMPLE_PHOTOS.glob("*.jpg"))[:12]:
            shutil.copy(path, folder / name)
    other = sorted(SAMPLE_PHOTOS.glob("*.jpg"))[20]
    shutil.copy(other, folder / "trip")
    Image.open(other).save(folder / "trip" / "again.webp", quality=80)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as made:
        made.sync(folder)
        with serving(made) as address:
            yield folder, address


def test_review_with_a_plan_and_its_undo(
    window: Callable[..., Page], copies: tuple[Path, Address], tmp_path: Path
) -> None:
    folder, address = copies
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    page = window(address, "duplicates")
    expect(page.locator(".group")).to_have_count(12)
    expect(page.locator(".contained")).to_contain_text("backup")
    expect(page.locator(".plan b")).to_contain_text("12 files ticked")
    page.get_by_label("goes").first.uncheck()
    expect(page.locator(".plan b")).to_contain_text("11 files ticked")
    page.get_by_role("button", name="Show the plan").click()
    expect(page.locator("#notices")).to_contain_text("whole path")
    page.get_by_label("Move to").fill(str(tmp_path / "moved"))
    page.get_by_role("button", name="Show the plan").click()
    expect(page.get_by_role("dialog")).to_contain_text("Nothing has been moved")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save plan.sh").click()
    plan = tmp_path / "plan.sh"
    download.value.save_as(plan)
    page.keyboard.press("Escape")
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before
    assert b"11 moved, 0 left alone" in subprocess.run(["sh", plan], capture_output=True).stdout
    assert len(list(folder.rglob("*.*"))) == len(before) - 11
    assert subprocess.run(["sh", plan, "undo"], capture_output=True).returncode == 0
    assert {path: path.read_bytes() for path in folder.rglob("*.*")} == before


def test_comparing_and_what_is_no_duplicate_is_remembered(
    window: Callable[..., Page], copies: tuple[Path, Address]
) -> None:
    _, address = copies
    page = window(address, "duplicates?tier=same-picture")
    group = page.locator(".group").filter(has_text="again.webp")
    group.get_by_role("button", name="Compare", exact=True).click()
    dialog = page.get_by_role("dialog")
    for mode in ("Blink", "Difference", "Side by side"):
        dialog.get_by_role("button", name=mode).click()
        expect(dialog.get_by_role("button", name=mode)).to_have_attribute("aria-pressed", "true")
    page.keyboard.press("Escape")
    group.get_by_role("button", name="Not duplicates").click()
    expect(group).to_have_count(0)
    later = window(address, "duplicates?tier=same-picture")
    expect(later.locator(".tiers")).to_contain_text("Exact copies 12")
    later.evaluate("fetch('api/jobs/duplicates', { method: 'POST' })")
    later.wait_for_timeout(1500)
    later.reload()
    expect(later.locator(".tiers")).to_contain_text("Exact copies 12")
    expect(later.locator(".group").filter(has_text="again.webp")).to_have_count(0)


@pytest.mark.parametrize("options", [PHONE, {}], ids=["390", "1280"])
def test_hostile_names_and_exif_are_shown_and_do_nothing(
    window: Callable[..., Page], tmp_path: Path, options: dict[str, Any]
) -> None:
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    names = (*HOSTILE, "x" * 200 + ".png")
    for seed, name in enumerate(names):
        picture = Image.open(make_photo(folder / name, seed))
        exif = Image.Exif()
        exif[0x010F] = exif[0x0110] = f"<img src=x onerror=alert(1)>{'A' * 90}"
        picture.save(folder / name, "PNG", exif=exif)
        shutil.copy(folder / name, folder / f"2 {name}")
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as made:
        made.sync(folder)
        with serving(made) as address:
            page = window(address, "photos?sort=folder", **options)
            expect(page.locator(".total")).to_have_text(f"{2 * len(names)} photos")
            for at in range(len(names)):
                page.locator(f'.tile[aria-posinset="{at + 1}"] .open').click()
                page.get_by_role("dialog").locator("dl").wait_for()
                assert fits(page)
                page.keyboard.press("Escape")
            page.locator(".tile .open").first.click()
            page.get_by_role("button", name="Its folder’s photos").click()
            expect(page.get_by_role("button", name="in <img src=x")).to_be_visible()
            expect(page.locator(".total")).to_have_text(f"{2 * len(names)} photos")
            page.get_by_role("button", name="in <img src=x").click()
            expect(page.get_by_role("button", name="in <img src=x")).to_have_count(0)
            wanted = page.evaluate("async () => (await (await fetch('api/photos')).json()).photos[0].id")
            for view in (f"search?like={wanted}", "duplicates", "status", "photos?sort=camera"):
                page.evaluate("view => (location.hash = view)", view)
                page.wait_for_timeout(800)
                assert fits(page), view
                assert page.locator('img[src="x"], script:not([src])').count() == 0
            expect(page.get_by_label("Go to")).to_contain_text("<img src=x")


def test_two_windows_and_a_sync_beside(window: Callable[..., Page], tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    for seed in range(5):
        make_photo(folder / f"{seed}.png", seed)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as made:
        made.sync(folder)
        with serving(made) as address:
            first, second = window(address), window(address, "status")
            expect(first.locator(".total")).to_have_text("5 photos")
            make_photo(folder / "new.png", 9)
            with SimilarityIndex.open(tmp_path / "i", FakeEmbedder()) as beside:
                beside.sync(folder)
            expect(first.locator(".total")).to_have_text("6 photos")
            expect(second.locator(".facts")).to_contain_text("6")
            (folder / "broken.png").write_bytes(b"no photo")
            second.get_by_text("Photos that could not be used").click()  # and open it stays
            second.get_by_role("button", name="Sync").click()
            expect(second.locator(".facts")).to_contain_text("Could not be used1")
            expect(second.locator(".paths").first).to_contain_text("broken.png")
            assert set(names(first)) == {*(f"{n}.png" for n in range(5)), "new.png"}


def test_a_server_that_is_killed_and_started_again(window: Callable[..., Page], tmp_path: Path) -> None:
    make_photo(tmp_path / "photos" / "a.png", 1)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as made:
        made.sync(tmp_path / "photos")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ["browse", str(tmp_path / "i"), "--port", str(port), "--token", "0123456789abcdef"]

    def start() -> subprocess.Popen[str]:
        child = [sys.executable, "-c", "import sys; from simclr_hub.cli import main; main(sys.argv[1:])", *command]
        process = subprocess.Popen(child, stdout=subprocess.PIPE, text=True)
        assert process.stdout and "1 photos" in process.stdout.readline()
        assert process.stdout.readline().startswith("http")
        return process

    process = start()
    try:
        page = window(Address(f"http://127.0.0.1:{port}/?token=0123456789abcdef", "127.0.0.1", port, ""))
        expect(page.locator(".total")).to_have_text("1 photo")
        process.kill()
        process.communicate()
        expect(page.locator("#notices")).to_contain_text("does not answer")
        process = start()
        expect(page.locator("#activity")).to_have_text("")  # it said "no answer"
        page.reload()
        assert names(page) == ["a.png"]
    finally:
        process.kill()
        process.communicate()


AXE = os.environ.get("AXE", "")
VIEWS = ("photos?sort=folder&path=*", "search", "duplicates", "duplicates?tier=similar", "map", "label", "status")


@pytest.mark.slow
@pytest.mark.skipif(not AXE, reason="no axe-core: npm pack axe-core, and AXE=path/to/axe.min.js")
@pytest.mark.parametrize("width", [390, 1280, 2560])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_serious_is_wrong_with_accessibility(
    window: Callable[..., Page], copies: tuple[Path, Address], scheme: str, width: int
) -> None:
    options = {"viewport": {"width": width, "height": 844}, "color_scheme": scheme, "bypass_csp": True}
    page = window(copies[1], "photos", **options)
    page.add_script_tag(path=AXE)
    found: set[str] = set()

    def check(where: str) -> None:
        page.wait_for_timeout(1000)
        for one in page.evaluate("axe.run()")["violations"]:
            if one["impact"] in ("serious", "critical"):
                places = {node["html"][:150] for node in one["nodes"]}
                found.update(f"{where}: {one['id']}: {place}" for place in places)

    wanted = page.evaluate("async () => (await (await fetch('api/photos')).json()).photos.map((one) => one.id)")
    offered = page.locator("#tabs a").evaluate_all("all => all.map((one) => one.dataset.view)")
    for view in (*VIEWS, f"search?like={wanted[0]}&unlike={wanted[1]}"):
        if view.split("?")[0] in offered:
            page.evaluate("view => (location.hash = view)", view)
            check(view)
            assert fits(page), view
    if "label" in offered:
        page.evaluate("location.hash = 'label'")
        for at, name in enumerate(("one", "two")):
            page.get_by_label("Name of a new class").fill(name)
            page.keyboard.press("Enter")
            page.locator(".tile .open").nth(at).click()
        page.get_by_role("button", name="Label the rest").click()
        page.get_by_text("Export CSV").wait_for()
        check("labelled")
    page.evaluate("location.hash = 'photos'")
    page.locator(".tile .open").first.click()
    check("viewer")
    page.keyboard.press("Escape")
    page.evaluate("location.hash = 'duplicates'")
    page.get_by_role("button", name="Compare", exact=True).first.click()
    check("compare")
    page.keyboard.press("Escape")
    page.get_by_label("Move to").fill("/elsewhere")
    page.get_by_role("button", name="Show the plan").click()
    check("plan")
    assert found == set()
