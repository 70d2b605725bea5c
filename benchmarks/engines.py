"""Measure the engines of parts: what they cost beside one process, and what kills cost them.

Small JPEGs of one colour each, and an embedder whose vector is that colour, so that each row of each part is compared
with the number of its image. The work of an image is what parts do (reading, decoding, hashing, a signature, Parquet)
without a network, so that an engine's own cost is not hidden by it. Ray has two nodes of one CPU, Spark two executors
of `local-cluster`, `local` two processes, all on the loopback of one machine.

- cost: parts of two sizes through each engine and through one process. CPU seconds of all processes, daemons
  included, read from /proc five times a second; two sizes tell what an engine costs a run from what it costs an image.
- kills: a worker is killed with SIGKILL after a quarter of the parts, a node (its daemon and all below it) after half,
  the driver after three quarters; the driver is run again. Every row must be there once with its own vector.

Run: python benchmarks/engines.py cost kills --engines local ray spark      # needs simclr-hub[ray,spark] and a Java
"""

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))

import engine_clusters as clusters  # noqa: E402

from simclr_hub.parts.check import check_parts  # noqa: E402
from simclr_hub.parts.part import Worker  # noqa: E402
from simclr_hub.parts.plan import Plan, make_plan  # noqa: E402
from simclr_hub.parts.run import prepare  # noqa: E402
from simclr_hub.parts.storage import Folder  # noqa: E402

CHANCE = random.Random(0)
KINDS = {"local": clusters.Local, "ray": clusters.Ray, "spark": clusters.Spark}


class Cpu:
    """The CPU seconds of processes that come and go, by what they are."""

    def __init__(self, cluster: Any) -> None:
        self._cluster, self._seen = cluster, dict[int, float]()
        self._before = clusters.cpu_seconds(cluster.pids())
        self._workers: set[int] = set()

    def look(self) -> None:
        """Read what there is now."""
        self._workers |= set(self._cluster.workers())
        self._seen |= clusters.cpu_seconds(self._cluster.pids())

    def told(self) -> tuple[float, float]:
        """Return the CPU seconds of workers and of all others."""
        took = {pid: seconds - self._before.get(pid, 0) for pid, seconds in self._seen.items()}
        workers = sum(seconds for pid, seconds in took.items() if pid in self._workers)
        return workers, sum(took.values()) - workers


@contextmanager
def watched(cluster: Any) -> Iterator[Cpu]:
    """Watch what a cluster takes."""
    cpu, ended = Cpu(cluster), threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            cpu.look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield cpu
    finally:
        ended.set()
        thread.join()


@contextmanager
def cluster_of(engine: str) -> Iterator[Any]:
    """Start a cluster, and end it."""
    folder = Path(tempfile.mkdtemp(prefix="simclr-", dir="/tmp"))  # short: Ray's sockets are in it
    cluster = KINDS[engine](folder)
    try:
        yield cluster
    finally:
        cluster.close()
        shutil.rmtree(folder, ignore_errors=True)


def planned(folder: Path, parts: int, images: int) -> Path:
    """Write parts of numbered images and plan them; return the plan's folder."""
    clusters.write_shards(folder / "shards", parts, images)
    make_plan([str(folder / "shards")], folder / "plan")
    return folder / "plan"


def proved(plan: Path, out: Path, images: int) -> None:
    """Make sure that each image is there once with its own vector."""
    report, wrong = check_parts(Plan.read(plan), Folder(out)), clusters.wrong_rows(out, images)
    if not report.complete or wrong:
        raise SystemExit(f"LOST: {report} {wrong[:5]}")


def in_one_process(plan: Path, out: Path, images: int) -> None:
    wall, cpu = time.monotonic(), time.process_time()
    worker = Worker(read := Plan.read(plan), Folder(out), clusters.ColourEmbedder())
    prepare(worker.out, read)
    states = {worker.embed(name).state for name in read.parts}
    took = time.process_time() - cpu, time.monotonic() - wall
    if states != {"made"}:
        raise SystemExit(f"{states}")
    proved(plan, out, images)
    print(f"| one process | {images:,} | {took[0]:.1f} | | {took[0]:.1f} | {took[1]:.0f} |", flush=True)


def cost(engine: str, plans: dict[int, Path], folder: Path) -> None:
    with cluster_of(engine) as cluster:
        for images, plan in plans.items():
            out, wall = folder / f"{engine} {images}", time.monotonic()
            with watched(cluster) as cpu:
                driver = cluster.start(plan, out, workers=2 if engine == "local" else None)
                while line := driver.stdout.readline():
                    last = line
                    if '"report"' in line:
                        cpu.look()  # before the driver and what it started are gone
                driver.wait()
            wall = time.monotonic() - wall
            report, (workers, others) = json.loads(last)["report"], cpu.told()
            if report["rows"] != images or report["failed"]:
                raise SystemExit(f"{report}")
            proved(plan, out, images)
            figures = f"{workers:.1f} | {others:.1f} | {workers + others:.1f} | {wall:.0f}"
            print(f"| {engine} | {images:,} | {figures} |", flush=True)
            shutil.rmtree(out)


def kills(engine: str, plan: Path, images: int, folder: Path) -> None:
    parts, out, count = len(Plan.read(plan).parts), folder / f"{engine} killed", folder / f"{engine} count"
    told, done, wall = [], 0, time.monotonic()
    with cluster_of(engine) as cluster:
        settings = {"count": str(count), "workers": 2 if engine == "local" else None}
        driver = cluster.start(plan, out, **settings)
        moments = {parts // 4: "worker", parts // 2: "node", parts * 3 // 4: "driver"}
        while line := driver.stdout.readline():
            done += '"made"' in line and '"report"' not in line
            what = moments.pop(done, None)
            if what:  # in the middle of parts, not at the end of one
                time.sleep(CHANCE.uniform(0, 2))
            if what == "worker":
                clusters.kill(cluster.workers()[-1:])
            elif what == "node" and cluster.node():
                clusters.wait_for(lambda: len(cluster.workers()) > 1)
                clusters.kill(cluster.node())
                cluster.mend()
            elif what == "driver":
                driver.kill()
            if what and (what != "node" or engine != "local"):
                told.append(f"{what} at {done}")
        driver.communicate()
        there = len(list(out.glob("*.parquet")))
        driver = cluster.start(plan, out, **settings)
        last = driver.communicate()[0].splitlines()[-1]
    report = json.loads(last)["report"]
    proved(plan, out, images)
    again = count.stat().st_size - images
    print(
        f"| {engine} | {', '.join(told)} | {there} | {report['made']} | {images:,} of {images:,}, each once | "
        f"{again:,} ({again / (images // parts):.2f} parts) | {time.monotonic() - wall:.0f} |",
        flush=True,
    )
    shutil.rmtree(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="+", choices=["cost", "kills"])
    parser.add_argument("--engines", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--parts", type=int, default=100)
    parser.add_argument("--images", type=int, nargs=2, default=[200, 1000], help="of a part, at both sizes")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plans = {args.parts * n: planned(folder / str(n), args.parts, n) for n in sorted(args.images)}
        if "cost" in args.what:
            print("| engine | images | workers, CPU s | all else, CPU s | together | wall s |")
            print("|---|---|---|---|---|---|")
            for images, plan in plans.items():
                in_one_process(plan, folder / f"one {images}", images)
            for engine in args.engines:
                cost(engine, plans, folder)
        if "kills" in args.what:
            most = max(plans)
            print("| engine | killed, at part | whole parts after | made then | rows | embedded twice | wall s |")
            print("|---|---|---|---|---|---|---|")
            for engine in args.engines:
                kills(engine, plans[most], most, folder)


if __name__ == "__main__":
    main()
