"""The engines, on clusters of two nodes on the loopback: what is killed costs the parts in flight alone."""

import importlib.util
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_clusters import Local, Ray, Spark, jpeg, kill, wait_for, write_shards, wrong_rows

from simclr_hub.parts.check import check_parts
from simclr_hub.parts.plan import make_plan
from simclr_hub.parts.storage import Folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
SHARDS, IMAGES = 16, 20
CLUSTERS = {"local": Local, "ray": Ray, "spark": Spark}


@pytest.fixture(scope="module", params=CLUSTERS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Local]:
    lacks = {"ray": not importlib.util.find_spec("ray"), "spark": not importlib.util.find_spec("pyspark")}
    if lacks.get(request.param):
        pytest.skip(f"{request.param} is not installed: make engines")
    if request.param == "spark" and not shutil.which("java"):
        pytest.skip("Spark needs a Java, 17 or newer, on PATH")
    if request.param == "ray" and not shutil.which("nsenter"):
        pytest.skip("Ray listens on all interfaces; there is no nsenter for a network of its own")
    folder = Path(tempfile.mkdtemp(prefix="simclr-", dir="/tmp"))
    made = CLUSTERS[request.param](folder)
    yield made
    made.close()
    shutil.rmtree(folder, ignore_errors=True)


class Run:
    """A plan of numbered images, and a run of it."""

    def __init__(self, cluster: Local, folder: Path) -> None:
        self.cluster, self.folder = cluster, folder
        write_shards(folder / "shards", SHARDS, IMAGES)
        self.plan = make_plan([str(folder / "shards")], folder / "plan")
        self.out, self.count = folder / "out", folder / "count"

    def start(self, **settings: Any) -> Any:
        return self.cluster.start(
            self.folder / "plan", self.out, **({"count": str(self.count), "delay": 0.02, "workers": None} | settings)
        )

    def end(self, driver: Any) -> dict[str, Any]:
        """Wait for a driver; what it reported."""
        out, err = driver.communicate(timeout=300)
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        assert lines and "report" in lines[-1], err[-3000:]
        return dict(lines[-1]["report"])

    def check(self, in_flight: int) -> None:
        """Every image is there once with its own vector, and at most so many parts were made twice."""
        report = check_parts(self.plan, Folder(self.out))
        assert report.complete and report.rows == SHARDS * IMAGES, report
        assert wrong_rows(self.out, SHARDS * IMAGES) == []
        assert self.count.stat().st_size - SHARDS * IMAGES <= in_flight * IMAGES


@pytest.fixture
def started(cluster: Local, tmp_path: Path) -> Run:
    cluster.mend()
    return Run(cluster, tmp_path)


def test_a_worker_is_killed(started: Run) -> None:
    driver = started.start(workers=2 if started.cluster.engine == "local" else None)
    driver.stdout.readline()
    kill(wait_for(started.cluster.workers)[-1:])
    assert started.end(driver)["failed"] == {}
    started.check(1)


def test_a_node_is_killed(started: Run) -> None:
    if started.cluster.engine == "local":
        pytest.skip("this machine is the node")
    driver = started.start(delay=0.05)
    driver.stdout.readline()
    wait_for(lambda: len(started.cluster.workers()) > 1)
    kill(started.cluster.node())
    assert started.end(driver)["failed"] == {}
    started.check(1)


def test_the_driver_is_killed_and_runs_again(started: Run) -> None:
    driver = started.start(workers=2 if started.cluster.engine == "local" else None)
    for _ in range(3):
        driver.stdout.readline()
    driver.kill()
    driver.communicate()
    kept = {path: path.stat().st_mtime_ns for path in started.out.glob("*.parquet")}
    assert len(kept) >= 3
    report = started.end(started.start(delay=0))
    assert report["failed"] == {} and report["there"] >= 3
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    started.check(2)


def add_image(run: Run, data: bytes) -> None:
    """Plan an image beside the archives."""
    (run.folder / "shards" / "000000320.jpg").write_bytes(data)
    shutil.rmtree(run.folder / "plan")
    run.plan = make_plan([str(run.folder / "shards")], run.folder / "plan")


def test_an_image_that_ends_its_process_becomes_a_row(started: Run) -> None:
    add_image(started, b"CRASH")
    report = started.end(started.start(delay=0, crash="CRASH"))
    assert (report["failed"], report["made"], report["unusable"]) == ({}, SHARDS + 1, 1)
    assert check_parts(started.plan, Folder(started.out)).complete


def test_a_part_that_always_ends_its_process_is_given_up(started: Run) -> None:
    add_image(started, jpeg(320) + b"POISON")
    driver = started.start(delay=0, crash="POISON")
    report = started.end(driver)
    assert driver.returncode == 1 and report["made"] == SHARDS
    (why,) = report["failed"].values()
    assert "its worker" in why
    assert len(list((started.out / "_attempts").iterdir())) == 3


def test_what_a_cluster_of_ray_wants_is_told(started: Run) -> None:
    if started.cluster.engine != "ray":
        pytest.skip("of Ray alone")
    env = dict(started.cluster.env)
    try:
        started.cluster.env = {name: value for name, value in env.items() if not name.startswith("RAY_AUTH")}
        assert "set RAY_AUTH_MODE=token" in started.start().communicate()[1]
        (started.folder / "only_here.py").write_text(
            "import engine_clusters\n\nclass Embedder(engine_clusters.ColourEmbedder):\n    pass\n"
        )
        path = os.pathsep.join([env["PYTHONPATH"], str(started.folder)])
        started.cluster.env = env | {"PYTHONPATH": path}
        told = started.start(make="only_here:Embedder").communicate()[1]
        assert "a node has no module only_here: install it there" in told
    finally:
        started.cluster.env = env
