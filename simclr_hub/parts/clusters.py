"""The cluster that an engine joins, or one of this machine alone, on the loopback."""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import MissingExtraError, PartsError
from ..runtimes import cores
from .attempts import TRIES


@contextmanager
def ray_cluster() -> Iterator[Any]:
    """Join the cluster that RAY_ADDRESS names, as in what `ray job submit` starts, and leave it; else start one.

    Ray by itself would join whatever cluster a temporary folder still tells of.

    Raises:
        MissingExtraError, PartsError: Ray is not installed, or nobody answers.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would tell its makers
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address.startswith(("local", "127.0.0.1")):  # Ray would take that for the machine's address, which others reach
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    own: dict[str, Any] = {"_node_ip_address": "127.0.0.1", "include_dashboard": False} if address == "local" else {}
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as e:
        raise MissingExtraError("ray", "ray") from e
    if ray.is_initialized():
        yield ray
        return
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as e:
        raise PartsError(f"no Ray cluster at RAY_ADDRESS={address}: {ray_error(e)}") from e
    try:
        yield ray
    finally:
        with suppress(ray.exceptions.RayError):
            ray.shutdown()


def ray_error(error: BaseException) -> str:
    """Return what a Ray error says, in one line, or what to do about it."""
    text = f"{error} {error.__cause__ or ''}"
    if lacks := re.search(r"No module named '?([\w.]+)", text):
        return f"a node has no module {lacks[1]}: install it there; nodes do not get the PYTHONPATH of whoever submits"
    if "uthentication" in text:
        return (
            "it wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as `ray get-auth-token` prints it there"
        )
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())[:300]


@contextmanager
def spark_context(workers: int) -> Iterator[Any]:
    """Take the context that there is, or that of what `spark-submit` was given; else start one of so many workers.

    Raises:
        MissingExtraError: Spark is not installed.
    """
    try:
        from pyspark import SparkConf, SparkContext
        from pyspark.sql import SparkSession
    except ImportError as e:
        raise MissingExtraError("pyspark", "spark") from e
    if there := SparkSession.getActiveSession():
        yield there.sparkContext
        return
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    SparkContext._ensure_initialized()  # before it, a conf does not know what `spark-submit` was given
    conf = SparkConf()
    if conf.get("spark.master", "local[*]") == "local[*]":  # nobody chose one; that would end at the first crash
        conf.setMaster(f"local[{workers},{TRIES + 1}]").set("spark.driver.bindAddress", "127.0.0.1")
        conf.set("spark.driver.host", "127.0.0.1").set("spark.ui.enabled", "false")
        conf.set("spark.ui.showConsoleProgress", "false")
        conf.setExecutorEnv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // workers))))
    with SparkSession.builder.appName("simclr-hub parts").config(conf=conf).getOrCreate() as session:
        session.sparkContext.setLogLevel("OFF")  # of a worker that ends it would print pages
        yield session.sparkContext
