"""Take the pictures of docs/browse.md: the page with a folder's photos, in headless Chromium.

    OMP_NUM_THREADS=1 python scripts/browse_screens.py [--photos FOLDER] [--out docs]

The shipped sample photos are shown, some of them copied and edited into a second folder, so that there are duplicates
to review, and beside them a folder of yours. The pictures in docs/ have 500 photos of open-photos (CC0, MIT).
Needs Chromium and `pip install playwright`.
"""

import argparse
import io
import re
import shutil
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Error, Page, Route, ViewportSize, sync_playwright

from simclr_hub import SimilarityIndex
from simclr_hub.browse.server import Address, serving

SAMPLES = Path(__file__).parents[1] / "simclr_hub" / "assets" / "sample-photos"
LIMIT = 300_000  # bytes of a picture
WIDE: ViewportSize = {"width": 1280, "height": 800}
#: The folder that the photos seem to lie in.
SHOWN = "/home/you/Pictures"
PHONE: ViewportSize = {"width": 390, "height": 844}


def collect(more: Path | None, folder: Path) -> None:
    """Fill the folder to show: the sample photos, copies of some, and `more`."""
    trip, backup = folder / "trip", folder / "backup"
    for where in (trip, backup):
        where.mkdir(parents=True)
    for number, path in enumerate(sorted(SAMPLES.glob("*.jpg"))):
        shutil.copy(path, trip)
        picture = Image.open(path)
        if number % 6 == 0:
            shutil.copy(path, backup)
        if number % 8 == 1:
            picture.resize((140, 140)).save(backup / f"{path.stem} small.jpg", quality=70)
        if number % 9 == 2:
            picture.save(backup / f"{path.stem} again.jpg", quality=40)
    if more:
        shutil.copytree(more, folder / more.name)


def show_as(page: Page, folder: Path) -> None:
    """Let the page show another path than where the photos lie for the moment."""

    def answer(route: Route) -> None:
        try:
            response = route.fetch()
        except Error:  # the server had just closed this idle connection; the page asks again
            return route.abort()
        route.fulfill(response=response, body=response.text().replace(str(folder), SHOWN))

    page.route(re.compile(r"/api/(?!.*/(thumbnail|view|original)\b)"), answer)


def shoot(page: Page, file: Path) -> None:
    """Save what is seen as a JPEG of at most `LIMIT` bytes, once its pictures are there."""
    page.wait_for_timeout(800)
    page.wait_for_function("() => [...document.images].every((one) => one.src && one.complete)")
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for quality in (82, 74, 66, 58, 50):
        picture.save(file, "JPEG", quality=quality, optimize=True, progressive=True)
        if file.stat().st_size < LIMIT:
            break
    print(f"{file}: {file.stat().st_size:,} bytes")


def take(address: Address, folder: Path, out: Path, start: str) -> None:
    """Take all pictures."""
    with sync_playwright() as driver:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def window(view: str, *, phone: bool = False, dark: bool = False) -> Page:
            context = browser.new_context(
                viewport=PHONE if phone else WIDE,
                has_touch=phone,
                is_mobile=phone,
                color_scheme="dark" if dark else "light",
            )
            page = context.new_page()
            show_as(page, folder)
            page.goto(address.url)
            page.locator("#tabs a").first.wait_for()
            page.evaluate("view => (location.hash = view)", view)
            page.wait_for_timeout(500)
            return page

        page = window("photos?sort=folder")
        found = "async (name) => (await (await fetch(`api/photos?path=**/${name}`)).json()).photos[0].id"
        wanted = page.evaluate(found, start)
        page.evaluate("id => (location.hash = `search?like=${id}`)", wanted)
        page.locator(".caption").first.wait_for()
        shoot(page, out / "browse.jpg")
        page.locator(".tile .open").first.click()
        page.locator("dialog .strip img").first.wait_for()
        shoot(page, out / "browse-photo.jpg")
        page = window("duplicates?tier=same-picture", dark=True)
        page.locator(".group").first.wait_for(timeout=120_000)
        shoot(page, out / "browse-duplicates.jpg")
        page = window("map")
        page.locator(".maplists .strip img").first.wait_for(timeout=120_000)
        page.wait_for_timeout(2000)
        shoot(page, out / "browse-map.jpg")
        page = window("photos?sort=folder", phone=True)
        page.locator(".tile img").first.wait_for()
        shoot(page, out / "browse-phone.jpg")
        browser.close()


def main() -> None:
    """Index, serve, and take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder to show beside the sample photos")
    parser.add_argument("--start", default="banana_1.jpg", help="name of the photo that is searched for")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder).resolve() / "photos"
        collect(arguments.photos, photos)
        with SimilarityIndex.create(Path(folder) / "photos.index") as index:
            index.sync(photos)
            with serving(index) as address:
                take(address, photos, arguments.out, arguments.start)


if __name__ == "__main__":
    main()
