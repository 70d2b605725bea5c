"""Engine `ray`: an actor a GPU, or a node that has none; only names travel."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .attempts import Lost, hand_out
from .clusters import ray_cluster, ray_error
from .part import Job, Result

#: Seconds until the cluster's nodes are looked at again.
LOOK = 5.0


def run(job: Job, names: Sequence[str], workers: int | None, tell: Callable[[Result], object]) -> None:
    """Embed parts as `local.run` does, with so many workers a node; nodes may come and go meanwhile."""
    with ray_cluster() as ray:
        hand_out(names, tell, _Actors(ray, job, workers))


class _Actors:
    """Workers by what Ray calls their answers, which are their tickets; a place is a node and a number."""

    def __init__(self, ray: Any, job: Job, workers: int | None):
        self._ray, self._job, self._workers = ray, ray.put(job), workers
        self._actors: dict[Any, Any] = {}
        self._slots: dict[tuple[str, int], dict[str, float]] = {}
        self._look = 0.0

    def places(self) -> Any:
        if time.monotonic() >= self._look:
            self._look = time.monotonic() + LOOK
            self._slots = dict(_slots(self._ray.nodes(), self._workers))
        return self._slots.keys()

    def start(self, place: tuple[str, int]) -> Any:
        there = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(place[0], soft=False)
        actor = self._ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        one = actor.options(scheduling_strategy=there, **self._slots[place]).remote()
        return self._does(one, one.load.remote(self._job))

    def wait(self, tickets: list[Any]) -> list[Any]:
        return self._ray.wait(tickets, timeout=LOOK)[0]  # type: ignore[no-any-return]

    def answer(self, ticket: Any) -> Result | str | None:
        try:
            return self._ray.get(ticket)  # type: ignore[no-any-return]
        except self._ray.exceptions.RayError as e:  # its process or its node is gone
            self._ray.kill(self._actors.pop(ticket))
            raise Lost(f"was lost: {ray_error(e)}") from None

    def give(self, ticket: Any, name: str | None) -> Any:
        one = self._actors.pop(ticket)
        return self._does(one, one.embed.remote(name)) if name else self._ray.kill(one)

    def _does(self, actor: Any, ticket: Any) -> Any:
        self._actors[ticket] = actor
        return ticket


class _Actor:
    def load(self, job: Job) -> str | None:
        self._worker: Any = job.load()
        return self._worker if isinstance(self._worker, str) else None

    def embed(self, name: str) -> Result:
        return self._worker.embed(name)  # type: ignore[no-any-return]


def _slots(nodes: list[dict[str, Any]], workers: int | None) -> Iterator[tuple[tuple[str, int], dict[str, float]]]:
    """Yield the place of each worker, a node and a number, and its share of what the node has."""
    for node in nodes:
        gpus, cpus = (int(node["Resources"].get(what, 0)) if node["Alive"] else 0 for what in ("GPU", "CPU"))
        count = workers or gpus or 1
        for number in range(count if gpus or cpus else 0):
            share = {"num_cpus": cpus // count or cpus / count, "num_gpus": min(1, gpus / count)}
            yield (node["NodeID"], number), share
