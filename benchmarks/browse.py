"""Measure how long `simclr-hub browse` lets one wait, from the command to a page or a click to results, and memory.

    OMP_NUM_THREADS=1 python benchmarks/browse.py --folder FOLDER [--only 100000 1000000] [--index YOUR.index]

Each size is an index of drawn vectors (benchmarks/search.py, 256 wide), made in FOLDER where it is not there yet; its
photos have no files, so that what is measured is the server and the page. `--index` measures one of real photos, too,
with thumbnails. The server is the command in a process of its own; the page runs in headless Chromium, in a window of
1280 x 800. Wall clock, medians and the worst of `REPEAT`, with the machine's load beside; server CPU is the process's.
"""

import argparse
import http.client
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import search as drawn
from playwright.sync_api import Page, sync_playwright

from simclr_hub import SimilarityIndex

REPEAT = 5
#: Resolves to milliseconds once an element is there that matches, after `begin` was run.
UNTIL = """([begin, selector]) => new Promise((done) => {
  const start = performance.now();
  const observer = new MutationObserver(() => {
    if (!document.querySelector(selector)) return;
    observer.disconnect();
    requestAnimationFrame(() => done(performance.now() - start));
  });
  observer.observe(document.body, { childList: true, subtree: true });
  new Function(begin)();
})"""
PHOTO = ".tile .open:not([aria-label='loading'])"


@contextmanager
def started(index: Path, cache: str) -> Iterator[tuple[subprocess.Popen[str], str, float]]:
    """Run the command; give the process, its address and when it began."""
    command = [sys.executable, "-c", "from simclr_hub.cli import main; main()", "browse", str(index)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"HF_ASSETS_CACHE": cache})
    try:
        assert process.stdout
        process.stdout.readline()
        yield process, process.stdout.readline().strip(), began
    finally:
        process.terminate()
        process.communicate()


def cpu(pid: int) -> float:
    """Return the CPU seconds of a process until now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> dict[str, int]:
    """Return MB of a process: its own, and with the mapped files it looked at."""
    found = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    return {"own": int(found["RssAnon"].split()[0]) >> 10, "all": int(found["VmRSS"].split()[0]) >> 10}


def spread(times: list[float]) -> str:
    """Return the median and the worst."""
    return f"{statistics.median(times):.0f} (worst {max(times):.0f})"


def over_http(address: str, pid: int) -> dict[str, Any]:
    """Measure requests alone, each of another photo or place."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    headers = {"Authorization": f"Bearer {parse_qs(parts.query)['token'][0]}", "Content-Type": "application/json"}

    def ask(method: str, path: str, body: Any = None) -> tuple[float, Any]:
        began = time.perf_counter()
        connection.request(method, f"/api/{path}", json.dumps(body) if body else None, headers)
        answer = json.loads(connection.getresponse().read())
        return (time.perf_counter() - began) * 1000, answer

    _, first = ask("GET", "photos?limit=1")
    total = first["total"]
    pages, searches, details = [], [], []
    before = cpu(pid)
    for step in range(REPEAT):
        took, page = ask("GET", f"photos?offset={step * total // (REPEAT + 1)}&limit=200")
        pages.append(took)
        wanted = page["photos"][0]["id"]
        details.append(ask("GET", f"photos/{wanted}")[0])
    between = cpu(pid)
    ids = [
        ask("GET", f"photos?offset={step * total // (REPEAT + 1) + 7}&limit=1")[1]["photos"][0]["id"]
        for step in range(REPEAT)
    ]
    between = cpu(pid)
    for wanted in ids:
        searches.append(ask("POST", "search", {"like": [wanted], "k": 90})[0])
    after = cpu(pid)
    orders = {sort: ask("GET", f"photos?sort={sort}&limit=200")[0] for sort in ("folder", "camera", "size")}
    return {
        "a page of 200, ms": spread(pages),
        "details, ms": spread(details),
        "a search, ms": spread(searches),
        "a search, server CPU ms": round(1000 * (after - between) / REPEAT, 1),
        "pages and details, server CPU ms": round(1000 * (between - before) / REPEAT, 1),
        "first page in another order, ms": ", ".join(f"{sort} {took:.0f}" for sort, took in orders.items()),
    }


def in_browser(page: Page) -> dict[str, Any]:
    """Measure in a page that shows the grid: the grid anew, and a click to results."""

    def until(begin: str, selector: str) -> float:
        took: float = page.evaluate(UNTIL, [begin, selector])
        return took

    grids, clicks = [], []
    for step in range(REPEAT):
        page.evaluate("location.hash = 'search'")
        page.locator("p.empty").wait_for()
        grids.append(until("location.hash = 'photos'", PHOTO))
        button = f"document.querySelectorAll('.tile .similar')[{step}].click()"
        clicks.append(until(button, ".tile .caption"))
        page.evaluate("location.hash = 'search'")
        page.locator("p.empty").wait_for()
    return {"first screen of the grid, ms": spread(grids), "click to results, ms": spread(clicks)}


def measure(index: Path, *, pictures: bool) -> dict[str, Any]:
    """Measure an index whose server is started twice: what was read once is in the page cache then."""
    found: dict[str, Any] = {"load": os.getloadavg()[0]}
    with tempfile.TemporaryDirectory() as cache, sync_playwright() as driver:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])

        def fresh() -> Page:
            return browser.new_context(viewport={"width": 1280, "height": 800}).new_page()

        for name in ("first", "second"):
            with started(index, cache) as (process, address, began):
                ready = time.perf_counter() - began
                page = fresh()
                opening = time.perf_counter()
                page.goto(address, wait_until="commit")
                page.locator(PHOTO).first.wait_for(state="attached")
                usable = time.perf_counter() - opening
                found[f"{name} start: command to address, then to photos in the grid, s"] = (
                    f"{ready:.2f} + {usable:.2f}"
                )
                found[f"{name} start, server CPU s"] = round(cpu(process.pid), 2)
                if pictures:
                    page.wait_for_function(
                        "() => [...document.querySelectorAll('.tile img')].every((one) => one.src && one.complete)"
                    )
                    found[f"{name} start: to all pictures of the first screen, s"] = round(
                        time.perf_counter() - opening, 2
                    )
                if name == "second":
                    found |= in_browser(page)
                    page.close()
                    found |= over_http(address, process.pid)
                    found["memory, MB"] = memory(process.pid)
        browser.close()
    return found | {"load at the end": os.getloadavg()[0]}


def main() -> None:
    """Measure what the arguments say; print a JSON object."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--only", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--index", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    for number in arguments.only:
        directory: Path = arguments.folder / f"drawn-{number}.index"
        if not directory.exists():
            SimilarityIndex.create(directory, "default", whiten=False).close()
            drawn.fill(directory, number, 256, 1)
            drawn.update(directory)
        found[f"{number:,} drawn"] = measure(directory, pictures=False)
        print(json.dumps(found[f"{number:,} drawn"], indent=1), flush=True)
    if arguments.index:
        found[arguments.index.name] = measure(arguments.index, pictures=True)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
