"""Engine `spark`: a task a part, which holds its name alone; results come back in an accumulator while others run."""

import os
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
from typing import Any

from ..errors import MissingExtraError, PartsError, SimCLRHubError
from ..runtimes import cores
from .attempts import TRIES
from .part import Job, Result, Worker


def run(job: Job, names: Sequence[str], workers: int | None, tell: Callable[[Result], object]) -> None:
    """Embed parts as `local.run` does, in the session that there is, of `spark-submit`, or on this machine."""
    try:
        from pyspark import AccumulatorParam, SparkConf, SparkContext
        from pyspark.sql import SparkSession
    except ImportError as e:
        raise MissingExtraError("pyspark", "spark") from e

    class Results(AccumulatorParam[list[Result]]):
        def zero(self, value: list[Result]) -> list[Result]:
            return []

        def addInPlace(self, value1: list[Result], value2: list[Result]) -> list[Result]:  # noqa: N802
            value1 += value2
            return value1

    there = SparkSession.getActiveSession()
    if there is None:
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
        SparkContext._ensure_initialized()  # before it, a conf does not know what `spark-submit` was given
        conf = SparkConf()
        if conf.get("spark.master", "local[*]") == "local[*]":  # nobody chose one; that would end at the first crash
            count = workers or 1
            conf.setMaster(f"local[{count},{TRIES + 1}]").set("spark.driver.bindAddress", "127.0.0.1")
            conf.set("spark.driver.host", "127.0.0.1").set("spark.ui.enabled", "false")
            conf.set("spark.ui.showConsoleProgress", "false")
            conf.setExecutorEnv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count))))
    session = there or SparkSession.builder.appName("simclr-hub parts").config(conf=conf).getOrCreate()
    context, told = session.sparkContext, 0
    if there is None:
        context.setLogLevel("OFF")  # of a worker that ends it would print pages
    results = context.accumulator([], Results())
    work = partial(_work, pickle.dumps(job), results)
    pool = ThreadPoolExecutor(1)
    try:
        future = pool.submit(context.parallelize(names, len(names)).foreachPartition, work)
        while told < len(results.value) or not future.done():
            wait([future], 0.2)
            for result in results.value[told:]:
                told += 1
                if not result.name:
                    raise PartsError(str(result.error))
                tell(result)
        future.result()
    except Exception as e:
        if isinstance(e, PartsError):
            raise
        raise PartsError(f"Spark ended the job: {_told(str(e))}") from e
    finally:
        context.cancelAllJobs()
        pool.shutdown()
        if there is None:
            session.stop()


@lru_cache(maxsize=1)
def _load(job: bytes) -> Worker:
    """Load a job once a Python worker, which Spark keeps for many tasks."""
    return Worker.load(pickle.loads(job))


def _work(job: bytes, results: Any, names: Iterator[str]) -> None:
    """Embed the part of a task; Spark runs a task again whose process ended."""
    from pyspark import TaskContext

    task: Any = TaskContext.get()
    if "gpu" in task.resources():
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(task.resources()["gpu"].addresses)
    for name in names:
        number = task.attemptNumber()
        if number >= TRIES:  # one more and Spark would end the job
            results.add([Result(name, "failed", error=f"its worker ended {number} times", attempt=number)])
            continue
        try:
            worker = _load(job)
        except (SimCLRHubError, ValueError, OSError, RuntimeError) as e:
            results.add([Result("", "failed", error=str(e))])
            return
        for _ in range(TRIES):
            result = worker.embed(name)
            if result.state != "failed" or not result.attempt:
                break
        results.add([result])


def _told(text: str) -> str:
    if "No module named 'simclr_hub" in text:
        return "an executor has no simclr_hub: install it there, or take an image that holds it"
    return " ".join(text.split())[:500]
