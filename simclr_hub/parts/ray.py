"""Engine `ray`: an actor a GPU, or a node that has none; only names travel, and attempts are counted here.

It joins the cluster that RAY_ADDRESS names, as in what `ray job submit` starts, and else starts one of this machine
alone: Ray by itself would join whatever cluster a temporary folder still tells of.
"""

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from ..errors import MissingExtraError, PartsError, SimCLRHubError
from .attempts import TRIES, Attempts
from .part import Job, Result, Worker

#: Seconds until the cluster's nodes are looked at again; and without a node that can work, as while they start.
LOOK, PATIENCE = 5.0, 600.0


def run(job: Job, names: Sequence[str], workers: int | None, tell: Callable[[Result], object]) -> None:
    """Embed parts as `local.run` does, with so many workers a node; nodes may come and go meanwhile."""
    parts, unloaded = Attempts(names, tell), Counter[str]()
    busy: dict[Any, tuple[Any, tuple[str, int], str | None]] = {}  # by what will be known: an actor, where, its part
    look, patience = 0.0, time.monotonic() + PATIENCE
    why = "no node of the Ray cluster has a CPU or a GPU"
    with _cluster() as ray:
        actor = ray.remote(max_restarts=0, max_task_retries=0)(_Actor)
        while parts:
            if parts.waiting and time.monotonic() >= look:
                look, slots = time.monotonic() + LOOK, dict(_slots(ray.nodes(), workers))
                for slot in slots.keys() - {slot for _, slot, _ in busy.values()}:
                    if unloaded[slot[0]] < TRIES:
                        there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(slot[0], soft=False)
                        one = actor.options(scheduling_strategy=there, **slots[slot]).remote()
                        busy[one.load.remote(job)] = one, slot, None
                if busy:
                    patience = time.monotonic() + PATIENCE
                elif slots or time.monotonic() > patience:  # on all that there are it failed
                    raise PartsError(why)
            if not busy:
                time.sleep(LOOK / 10)
            for ref in ray.wait(list(busy), timeout=LOOK)[0] if busy else ():
                one, slot, name = busy.pop(ref)
                try:
                    said = ray.get(ref)
                except ray.exceptions.RayError as e:  # its process or its node is gone
                    why = _told(e)
                    if name:
                        parts.lost(name, f"was lost: {why}")
                    else:
                        unloaded[slot[0]] += 1
                    ray.kill(one)
                    continue
                if isinstance(said, str):
                    raise PartsError(said)
                if said:
                    parts.end(said)
                if name := parts.take():
                    busy[one.embed.remote(name)] = one, slot, name
                else:
                    ray.kill(one)


class _Actor:
    def load(self, job: Job) -> str | None:
        try:
            self._worker = Worker.load(job)
        except (SimCLRHubError, ValueError, OSError, RuntimeError) as e:
            return str(e)
        return None

    def embed(self, name: str) -> Result:
        return self._worker.embed(name)


def _slots(nodes: list[dict[str, Any]], workers: int | None) -> Iterator[tuple[tuple[str, int], dict[str, float]]]:
    """Yield the place of each worker, a node and a number, and its share of what the node has."""
    for node in nodes:
        gpus, cpus = (int(node["Resources"].get(what, 0)) if node["Alive"] else 0 for what in ("GPU", "CPU"))
        for number in range((workers or gpus or 1) if gpus or cpus else 0):
            count = workers or gpus or 1
            share = {"num_cpus": cpus // count or cpus / count, "num_gpus": min(1, gpus / count)}
            yield (node["NodeID"], number), share


@contextmanager
def _cluster() -> Iterator[Any]:
    """Join a cluster, or start one on the loopback, and leave it.

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
        raise PartsError(f"no Ray cluster at RAY_ADDRESS={address}: {_told(e)}") from e
    try:
        yield ray
    finally:
        with suppress(ray.exceptions.RayError):
            ray.shutdown()


def _told(error: BaseException) -> str:
    """Return what a Ray error says, in one line, or what to do about it."""
    text = f"{error} {error.__cause__ or ''}"
    if lacks := re.search(r"No module named '?([\w.]+)", text):
        return f"a node has no module {lacks[1]}: install it there; nodes do not get the PYTHONPATH of whoever submits"
    if "uthentication" in text:
        return (
            "it wants its token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as `ray get-auth-token` prints it there"
        )
    return " ".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())[:300]
