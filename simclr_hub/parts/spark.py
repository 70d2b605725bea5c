"""Engine `spark`: a task a part, which holds its name alone; results come back in an accumulator while others run."""

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
from typing import Any

from ..errors import PartsError
from .attempts import TRIES
from .clusters import spark_context
from .part import Job, Result, Worker


def run(job: Job, names: Sequence[str], workers: int | None, tell: Callable[[Result], object]) -> None:
    """Embed parts as `local.run` does, in the session that there is, of `spark-submit`, or on this machine."""
    with spark_context(workers or 1) as context, ThreadPoolExecutor(1) as pool:
        results, told = context.accumulator([], _Lists()), 0
        work = partial(_work, pickle.dumps(job), results)
        future = pool.submit(context.parallelize(names, len(names)).foreachPartition, work)
        try:
            while told < len(results.value) or not future.done():
                wait([future], 0.2)
                for said in results.value[told:]:
                    told += 1
                    if isinstance(said, str):
                        raise PartsError(said)
                    tell(said)
        finally:
            context.cancelAllJobs()
        if error := future.exception():
            raise PartsError(f"Spark ended the job: {_told(str(error))}") from error


class _Lists:
    """Adds up lists, as an AccumulatorParam."""

    def zero(self, value: list[Any]) -> list[Any]:
        return []

    def addInPlace(self, value1: list[Any], value2: list[Any]) -> list[Any]:  # noqa: N802
        value1 += value2
        return value1


@lru_cache(maxsize=1)
def _load(job: bytes) -> Worker | str:
    """Load a job once a Python worker, which Spark keeps for many tasks."""
    return pickle.loads(job).load()  # type: ignore[no-any-return]


def _work(job: bytes, results: Any, names: Iterator[str]) -> None:
    """Embed the part of a task; Spark runs a task again whose process ended."""
    from pyspark import TaskContext

    task: Any = TaskContext.get()
    if "gpu" in task.resources():
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(task.resources()["gpu"].addresses)
    for name in names:
        if (number := task.attemptNumber()) >= TRIES:  # one more and Spark would end the job
            results.add([Result(name, "failed", error=f"its worker ended {number} times", attempt=number)])
            continue
        worker: Any = _load(job)
        said = worker
        for _ in range(0 if isinstance(worker, str) else TRIES):
            said = worker.embed(name)
            if said.state != "failed" or not said.attempt:
                break
        results.add([said])


def _told(text: str) -> str:
    if "No module named 'simclr_hub" in text:
        return "an executor has no simclr_hub: install it there, or take an image that holds it"
    return " ".join(text.split())[:500]
