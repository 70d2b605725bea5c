"""kill -9 at any moment: what was acknowledged is there, the next sync completes, each photo once with its vector.

The children come from a fork server that has imported everything, so that a kill costs milliseconds, not seconds.
"""

import multiprocessing
import os
import random
import re
import shutil
import signal
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import index_kill_child
import pytest
from index_fakes import FakeEmbedder, check_index, make_photo

from simclr_hub.index import SimilarityIndex

pytestmark = pytest.mark.slow  # child processes that are killed

STEPS = ["start", "statement", "BEGIN", "SELECT", "INSERT", "DELETE", "COMMIT", "after commit"]
STEPS += ["before cache", "before rename", "after rename", "after cache"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["index_kill_child", "pytest"])


@pytest.fixture(scope="module", autouse=True)
def fork_server() -> Iterator[None]:
    """It starts with the first child; its preloading does not know pytest's sys.path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.path.dirname(__file__))
        forkserver.ensure_running()
    yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill") / "photos"
    for i in range(60):
        make_photo(folder / f"{i}.png", i % 55)  # five copies
    for i in range(3):
        (folder / f"broken {i}.jpg").write_bytes(b"no image")
    return folder


def run_and_kill(directory: Path, photos: Path, step: str, n: int, seconds: float | None) -> tuple[dict, bool]:
    """One child; what it acknowledged, and whether it was done."""
    ours, theirs = CONTEXT.Pipe()
    child = CONTEXT.Process(target=index_kill_child.sync, args=(directory, photos, theirs, step, n))
    child.start()
    theirs.close()
    if seconds is not None:
        time.sleep(seconds)
        child.kill()
    acknowledged: dict[bytes, str] = {}
    done = False
    try:
        while not done:
            message = ours.recv()
            done = message == "done"
            if not done:
                acknowledged.update(message)
    except EOFError:
        pass
    child.join()
    assert child.exitcode == -signal.SIGKILL or (done and child.exitcode == 0)  # it may be killed after "done"
    child.close()
    ours.close()
    return acknowledged, done


def kill_loop(tmp_path: Path, photos: Path, kills: int, seed: int) -> None:
    chance = random.Random(seed)
    killed = 0
    for run in range(10 * kills):
        directory = tmp_path / f"{run}.index"
        SimilarityIndex.create(directory, model=FakeEmbedder()).close()
        acknowledged: dict[bytes, str] = {}
        done = False
        while not done and killed < kills:  # each sync goes on where the last was killed, or dies in its recovery
            if chance.random() < 0.5:
                step, n, seconds = chance.choice(STEPS), chance.choice([1, 2, 3, 5, 9, 20]), None
            else:
                step, n, seconds = "never", 0, chance.uniform(0, 0.4)
            more, done = run_and_kill(directory, photos, step, n, seconds)
            acknowledged |= more
            killed += not done
            with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
                held = {p.path: p.state for p in index._store.photos()}
                assert acknowledged.items() <= held.items(), (step, n, seconds)
                check_index(index)
        with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("simclr_hub.index.sync.decode_sandboxed", lambda paths: {})
                report = index.sync(photos)
            assert (report.found, report.failed, len(index), report.missing) == (63, 3, 60, 0)
            assert len(check_index(index)) == 60 and index._store.in_flight() == set()
            assert names(directory) == ["search.cache", "store.sqlite3", "writer.lock"]
        shutil.rmtree(directory)
        if killed >= kills:
            return
    pytest.fail("too few kills hit")


def names(directory: Path) -> list[str]:
    """What is in an index's directory; the cache's name tells its generation."""
    return sorted(re.sub(r"^search-\d+", "search", name) for name in os.listdir(directory))


@pytest.mark.slow
def test_ten_kills(tmp_path: Path, photos: Path) -> None:
    kill_loop(tmp_path, photos, kills=10, seed=0)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path: Path, photos: Path) -> None:
    kill_loop(tmp_path, photos, kills=100, seed=1)


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_each_step(tmp_path: Path, photos: Path, step: str) -> None:
    directory = tmp_path / "i"
    SimilarityIndex.create(directory, model=FakeEmbedder()).close()
    acknowledged, done = run_and_kill(directory, photos, step, 1, None)
    assert not done  # the step exists
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        assert acknowledged.keys() == {p.path for p in index._store.photos()}
        check_index(index)
    assert run_and_kill(directory, photos, "never", 0, None)[1]
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        assert len(check_index(index)) == 60
    assert names(directory) == ["search.cache", "store.sqlite3", "writer.lock"]
