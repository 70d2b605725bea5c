"""The process whose calls fail; see test_io_errors.py."""

import ctypes
import errno
import os
import shutil
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from index_fakes import FakeEmbedder, check_index, make_photo

from simclr_hub.errors import IndexError_
from simclr_hub.index import SimilarityIndex
from simclr_hub.index import check_index as check
from simclr_hub.index import sync as sync_module
from simclr_hub.index.store import STORE_NAME, Photo, Store

#: Errors, and whether once or from then on.
FEW = [(errno.ENOSPC, 1), (errno.EIO, 0)]
ALL = [(error, once) for error in (errno.ENOSPC, errno.EIO, errno.EDQUOT) for once in (0, 1)]


def main(library: str, folder: str, step: int) -> None:
    """Try every step-th call of each task with a few errors, every call with all of them; print the counts."""
    shim = ctypes.CDLL(library)
    sync_module.BATCH_PHOTOS = 4
    sync_module.decode_sandboxed = lambda paths: {}
    counts: Counter[str] = Counter()
    for task in (sync, prune, repair):
        for error, once in ALL if step == 1 else FEW:
            n = 1
            while True:
                child = os.fork()
                if child == 0:
                    os._exit(attempt(shim, Path(folder) / "try", task, n, error, once))
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                if code == 3:
                    break  # n is beyond the last call
                counts[{0: "succeeded", 1: "told an error"}.get(code, "LOST")] += 1
                counts[task.__name__] += 1
                n += step
    total = counts["succeeded"] + counts["told an error"] + counts["LOST"]
    print(f"{total} failed calls: {dict(counts)}; {counts['LOST']} lost")
    sys.exit(counts["LOST"] > 0)


def sync(directory: Path, photos: Path) -> None:
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        index.sync(photos)


def prune(directory: Path, photos: Path) -> None:
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        index.prune(force=True)


def repair(directory: Path, photos: Path) -> None:
    check(directory, repair=True)


def attempt(shim: ctypes.CDLL, folder: Path, task: Callable[[Path, Path], None], n: int, error: int, once: int) -> int:
    """One task with its n-th call failing: 0 it succeeded, 1 it told, 2 something is wrong, 3 nothing failed."""
    try:
        return _attempt(shim, folder, task, n, error, once)
    except BaseException:
        print(task.__name__, n, errno.errorcode[error], once)
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        return 2


def _attempt(
    shim: ctypes.CDLL, folder: Path, task: Callable[[Path, Path], None], n: int, error: int, once: int
) -> int:
    shutil.rmtree(folder, ignore_errors=True)
    photos, directory = folder / "photos", folder / "i"
    for i in range(6):
        make_photo(photos / f"{i}.png", i)
    with SimilarityIndex.create(directory, model=FakeEmbedder()) as index:
        index.sync(photos)
    if task is repair:
        with open(directory / STORE_NAME, "r+b") as file:
            data = file.read()
            file.seek(data.rindex(b"5.png"))
            file.write(b"X")
    for i in range(4, 10):
        make_photo(photos / f"{i}.png", 50 + i)
    (photos / "0.png").unlink()
    if task is prune:
        sync(directory, photos)
    acknowledged: dict[bytes, Photo] = {}
    put: list[Photo] = []
    _watch(acknowledged, put)
    shim.arm(os.fsencode(directory), n, error, once)
    code = 0
    try:
        task(directory, photos)
    except IndexError_:
        code = 1
    failures = shim.failed()
    shim.arm(b"/nowhere", 0, 0, 0)
    if not failures:
        return 3
    if task is repair and code:
        assert check(directory, repair=True).sound  # as it was, or repaired though that may not be durable
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        held = {photo.path: photo for photo in index._store.photos()}
        assert task is not sync or all(held[path] == photo for path, photo in acknowledged.items()), "lost"
        if task is not repair:
            check_index(index)
        report = index.sync(photos)
        assert report.found == 9 and len(check_index(index)) == 9
        assert check(directory).sound
    left = {name for name in os.listdir(directory) if not name.endswith(".cache") and ".damaged-" not in name}
    assert left == {STORE_NAME, "writer.lock"}, left
    return code


def _watch(acknowledged: dict[bytes, Photo], put: list[Photo]) -> None:
    """Note what was put by transactions that ended well."""
    real_put, real_transaction = Store.put, Store.transaction

    class Transaction:
        def __init__(self, store: Store):
            self._real = real_transaction(store)

        def __enter__(self) -> None:
            put.clear()
            self._real.__enter__()

        def __exit__(self, *exception: object) -> bool | None:
            result = self._real.__exit__(*exception)  # type: ignore[arg-type]
            if exception[0] is None:
                acknowledged.update({photo.path: photo for photo in put})
            return result

    def remember(store: Store, photo: Photo) -> None:
        real_put(store, photo)
        put.append(photo)

    Store.put = remember  # type: ignore[method-assign]
    Store.transaction = lambda store: Transaction(store)  # type: ignore[method-assign, assignment, misc]
