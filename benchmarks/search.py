"""Search in large indexes: time to build, open and search beside bare FAISS calls, recall, memory, changes.

    python benchmarks/search.py --folder FOLDER [--only 1000000x512 100000x2048]
    python benchmarks/search.py --features FILE.npz  # recall on features that `simclr-hub embed` wrote

FOLDER gets a store and a cache of up to 5 GB, which are deleted at the end. Vectors are drawn from a mixture of
clusters of different sizes, with a spread of falling spectrum within each and a mean that all share, as features of
photos have; queries are drawn from the same mixture and are not in the index. Ours and the bare FAISS calls (the same
index, the same settings: candidates, then inner products with the full vectors) run in turn; medians of CPU time, for
one thread (set OMP_NUM_THREADS=1).
"""

import argparse
import hashlib
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from simclr_hub.index import SimilarityIndex
from simclr_hub.index.search import ann, segments
from simclr_hub.index.search.ann import IVFIndex, build_ivf, faiss, search_exact
from simclr_hub.index.search.arrays import CheckedArray
from simclr_hub.index.store import STORE_NAME, About, Photo, Store, checksum
from simclr_hub.scan import FileStat
from simclr_hub.signature import SIGNATURE_BYTES, SIGNATURE_VERSION

SIZES = ("1000000x512", "100000x2048", "50000x512")
QUERIES, K = 1000, 10
PIECE = 1 << 14


def draw(number: int, dim: int, seed: int, clusters: int = 2000, latent: int = 64) -> Iterator[np.ndarray]:
    """Vectors of length 1 in pieces (n, dim); another seed gives others of the same mixture."""
    mixture, random = np.random.default_rng(0), np.random.default_rng(seed)
    latent = min(latent, dim)
    spectrum = (1 + np.arange(latent)) ** -0.5
    basis = np.linalg.qr(mixture.normal(size=(dim, latent)))[0].T.astype(np.float32)
    centres = (mixture.normal(size=(clusters, latent)) * spectrum).astype(np.float32)
    weights = mixture.dirichlet(np.full(clusters, 0.5))
    size = float(np.linalg.norm(spectrum))
    mean = np.abs(mixture.normal(size=dim)).astype(np.float32)
    mean *= 2 * size / np.linalg.norm(mean)
    for start in range(0, number, PIECE):
        n = min(PIECE, number - start)
        inside = 0.7 * (random.normal(size=(n, latent)) * spectrum).astype(np.float32)
        noise = random.normal(size=(n, dim)).astype(np.float32) * np.float32(0.3 * size / dim**0.5)
        vectors = (centres[random.choice(clusters, n, p=weights)] + inside) @ basis + mean + noise
        yield vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Memory:
    """The most memory that this process had for itself, files that are mapped not counted, in MB above the start."""

    def __enter__(self) -> "Memory":
        self._start = self.most = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.megabytes = round((self.most - self._start) / 1024)

    def _watch(self) -> None:
        while not self._done.wait(0.02):
            self.most = max(self.most, self._now())

    @staticmethod
    def _now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def fill(directory: Path, number: int, dim: int, seed: int, first: int = 0) -> None:
    """Put photos with drawn vectors into a store: as its methods do, but many rows a statement."""
    with closing(Store(directory / STORE_NAME)) as store, store.writing():
        at, random = first, np.random.default_rng(seed)
        for piece in draw(number, dim, seed):
            rows: dict[str, list[tuple[Any, ...]]] = {"vectors": [], "details": [], "photos": []}
            with store.transaction():
                root = store.put_root(b"/photos", "ok")
                for vector in piece:
                    content = _content(at)
                    info = (
                        f'{{"camera": "camera {at % 50}", "format": "JPEG", "height": {3000 - at % 2},'
                        f' "taken": "20{at % 25:02}-06-{at // 86400 % 28 + 1:02}T{_clock(at)}", "width": 4000}}'
                    )
                    metadata = f'{{"bytes": {3000000 + at}, "modified": {1.7e9 + at}}}'
                    path, stat = b"album %03d/IMG_%07d.jpg" % (at % 1000, at), FileStat(3000000 + at, 1, 1, at)
                    photo = Photo(root.id, path, stat, True, content, "live", metadata=metadata)
                    rows["vectors"].append((content, vector.astype("<f4").tobytes()))
                    rows["details"].append(
                        (content, info, bytes([SIGNATURE_VERSION]) + random.bytes(SIGNATURE_BYTES - 1))
                    )
                    rows["photos"].append(photo.columns())
                    store._replace(None, photo)
                    at += 1
                for table, values in rows.items():
                    marks = ", ".join("?" * (len(values[0]) + 1))
                    store._connection().executemany(
                        f"INSERT INTO {table} VALUES ({marks})", ((*row, checksum(*row)) for row in values)
                    )


def _clock(second: int) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(second % 86400))


def drop(directory: Path, every: int, number: int) -> None:
    """Forget some of the photos."""
    with closing(Store(directory / STORE_NAME)) as store, store.writing(), store.transaction():
        for photo in [p for at in range(0, number, every) for p in store.photos_with(_content(at))]:
            store.forget(photo)


def update(directory: Path) -> None:
    """Bring the cache up to date, as a sync does at its end."""
    with closing(Store(directory / STORE_NAME)) as store, store.writing():
        segments.update_cache(store)


def measured(work: Callable[..., Any], *arguments: Any) -> dict[str, float]:
    """Measure seconds and the most memory of one call in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (work, arguments))


def _measure(work: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, float]:
    faiss()  # is imported once
    start = time.perf_counter()
    with Memory() as memory:
        work(*arguments)
    return {"seconds": round(time.perf_counter() - start, 1), "MB": memory.megabytes}


def search(directory: Path, dim: int, repeat: int) -> dict[str, Any]:
    """Open, search, compare with bare FAISS and with exact search."""
    queries = np.concatenate(list(draw(QUERIES, dim, seed=99))).astype(np.float32)
    start = time.perf_counter()
    index = SimilarityIndex.open(directory, model=Like(dim))
    index.search(queries[0], k=K)
    opened = time.perf_counter() - start
    snapshot = index._current()
    start = time.perf_counter()
    found = index.search(list(queries), k=K)
    first_batch = time.perf_counter() - start
    segment = snapshot.segments[0]
    vectors = segment.vectors.all()
    truth = [index.search(list(queries[i : i + 100]), k=K, path="**") for i in range(0, 200, 100)]
    best = [{m.path for m in matches} for part in truth for matches in part]
    hits = sum(len(those & {m.path for m in matches}) for those, matches in zip(best, found[: len(best)], strict=True))
    bare = _bare(segment.ivf, vectors, dim)
    batch, batch_bare = _in_turn(lambda: index.search(list(queries), k=K), lambda: bare(queries), repeat)
    single: tuple[list[float], list[float]] = ([], [])
    for query in queries[: 10 * repeat]:
        ours = partial(index.search, query, k=K)
        for times, one in zip(single, _in_turn(ours, partial(bare, query[None]), 1), strict=True):
            times.append(one)
    filters = {}
    for name, arguments in (
        ("path, 0.1 % pass", {"path": "album 007/*.jpg"}),
        ("where, 2 % pass", {"where": {"camera": "camera 7"}}),
        ("where, 48 % pass", {"where": {"taken": ("2000", "2011"), "bytes": (3000000, None)}}),
    ):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            index.search(queries[0], k=K, **arguments)
            times.append(time.perf_counter() - start)
        filters[name] = {"first ms": _ms(times[0]), "then ms": _ms(statistics.median(times[1:]))}
    return {
        "segments": [len(segment.vectors) for segment in snapshot.segments],
        "settings": [vars(setting) for setting in segment.ivf.settings] if segment.ivf else "exact",
        "open and first search s": round(opened, 3),
        "first batch s": round(first_batch, 3),
        "recall@10": round(hits / K / len(best), 4),
        f"batch of {QUERIES}, ours ms": _ms(batch),
        f"batch of {QUERIES}, FAISS ms": _ms(batch_bare),
        "batch, ours over FAISS": round(batch / batch_bare, 3),
        "one query, ours ms": _ms(statistics.median(single[0])),
        "one query, FAISS ms": _ms(statistics.median(single[1])),
        "one query, median difference ms": _ms(statistics.median(np.subtract(*single).tolist())),
        "filters": filters,
    }


def recall_of_features(file: Path) -> dict[str, Any]:
    """Measure FAISS's index over features of photos, however few, by searching for some that are not in it."""
    vectors = np.load(file)["vectors"]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors[np.random.default_rng(0).permutation(len(vectors))]
    queries, rest = vectors[:QUERIES], CheckedArray(vectors[QUERIES:])
    ann.MAX_EXACT = 0
    built = build_ivf(rest)
    if built is None:
        return {"photos": len(rest), "dim": vectors.shape[1], "settings": "exact"}
    recall = {}
    for k in ann.MEASURED_K:
        probes = built.probe(queries, k)
        rows = built.search(rest, queries, k, probes)[1] if probes else search_exact(rest, queries, k)[1]
        truth = search_exact(rest, queries, k)[1]
        recall[k] = round(float(np.mean([np.isin(t, r).mean() for t, r in zip(truth, rows, strict=True)])), 4)
    settings = [vars(setting) for setting in built.settings]
    return {
        "photos": len(rest),
        "dim": vectors.shape[1],
        "lists": built.index.nlist,
        "settings": settings,
        "recall": recall,
    }


def _bare(built: IVFIndex | None, vectors: np.ndarray, dim: int) -> Callable[[np.ndarray], object]:
    library = faiss()
    pointer = library.swig_ptr
    if built is None:
        return lambda queries: library.knn(queries, vectors, K, metric=library.METRIC_INNER_PRODUCT)
    setting = built.settings[0]
    parameters = library.SearchParametersIVF(nprobe=setting.nprobe)

    def bare(queries: np.ndarray) -> None:
        rows = built.index.search(queries, setting.rerank, params=parameters)[1]
        scores = np.empty(rows.shape, np.float32)
        library.fvec_inner_products_by_idx(
            pointer(scores), pointer(queries), pointer(vectors), pointer(rows), dim, *rows.shape
        )
        np.take_along_axis(rows, np.argpartition(-scores, K - 1, axis=1)[:, :K], 1)

    return bare


def _in_turn(ours: Callable[[], object], bare: Callable[[], object], repeat: int) -> tuple[float, float]:
    """Return median seconds of each, in turn, of this process's CPU time: other work on the machine does not count."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeat):
        for run, seconds in ((ours, times[0]), (bare, times[1])):
            start = time.process_time()
            run()
            seconds.append(time.process_time() - start)
    return statistics.median(times[0]), statistics.median(times[1])


class Like:
    """Stand for the model that made the index; nothing is embedded."""

    fingerprint: ClassVar[dict[str, str]] = {"model": "drawn"}

    def __init__(self, dim: int):
        self.dim = dim

    def stream(self, sources: Any, *, signatures: bool = False) -> Iterator[Any]:
        """Never called."""
        raise NotImplementedError


def run(directory: Path, number: int, dim: int, repeat: int) -> dict[str, Any]:
    """Measure all of one size."""
    Store.create(directory / STORE_NAME, About(dict(Like.fingerprint), dim))
    result: dict[str, Any] = {"photos": number, "dim": dim}
    start = time.perf_counter()
    fill(directory, number, dim, seed=1)
    result["fill the store s"] = round(time.perf_counter() - start, 1)
    result["build"] = measured(update, directory)
    sizes = {path.suffix: path.stat().st_size for path in directory.iterdir()}
    result["store bytes a photo"] = round(sizes[".sqlite3"] / number)
    result["cache bytes a photo beyond the vector"] = round(sizes[".cache"] / number - 4 * dim)
    result["search"] = _apart(search, directory, dim, repeat)
    fill(directory, number // 100, dim, seed=2, first=number)
    drop(directory, 100, number)
    result["1 % added, 1 % deleted"] = measured(update, directory)
    result["search after that"] = _apart(search, directory, dim, repeat)
    return result


def _apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_search_measured, (work, arguments))


def _search_measured(work: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
    faiss()
    with Memory() as memory:
        result = work(*arguments)
    return result | {"most memory MB": memory.megabytes}


def _content(at: int) -> bytes:
    return hashlib.sha256(at.to_bytes(8, "little")).digest()


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 2)


def main() -> None:
    """Measure each size and print the results as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--features", type=Path)
    parser.add_argument("--only", nargs="+", default=SIZES, metavar="NUMBERxWIDTH")
    parser.add_argument("--repeat", type=int, default=7)
    arguments = parser.parse_args()
    if arguments.features:
        print(json.dumps(recall_of_features(arguments.features), indent=1))
    for size in arguments.only if arguments.folder else ():
        number, dim = map(int, size.split("x"))
        with tempfile.TemporaryDirectory(dir=arguments.folder) as directory:
            print(json.dumps(run(Path(directory), number, dim, arguments.repeat), indent=1), flush=True)


if __name__ == "__main__":
    main()
