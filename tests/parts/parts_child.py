"""Embedders for worker processes, and a process that makes parts until it is killed; for the tests beside it."""

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from index.index_fakes import FakeEmbedder

from simclr_hub.embedder import Embedding, Failure
from simclr_hub.images import FileBytes
from simclr_hub.parts import part
from simclr_hub.parts.part import Worker
from simclr_hub.parts.plan import Plan
from simclr_hub.parts.storage import Folder


class SlowEmbedder(FakeEmbedder):
    """Takes 2 ms an image."""

    def stream(self, sources: Iterable[Any], *, signatures: bool = False) -> Iterator[Embedding | Failure]:
        for item in super().stream(sources, signatures=signatures):
            time.sleep(0.002)
            yield item


class CrashingEmbedder(FakeEmbedder):
    """Ends its process at an image that holds CRASH, as a decoder may; a child that decodes it alone tells of it."""

    def __init__(self) -> None:
        super().__init__()
        part.decode_sandboxed = lambda paths: {
            path: f"{os.fsdecode(path)}: decoding it ends the process: SIGSEGV"
            for path in paths
            if b"CRASH" in Path(os.fsdecode(path)).read_bytes()
        }

    def stream(self, sources: Iterable[Any], *, signatures: bool = False) -> Iterator[Embedding | Failure]:
        def looked_at() -> Iterator[Any]:
            for source in sources:
                if isinstance(source, FileBytes) and b"CRASH" in source.data:
                    os._exit(9)
                yield source

        yield from super().stream(looked_at(), signatures=signatures)


class UnloadableEmbedder:
    def __init__(self) -> None:
        raise ValueError("no such layer")


def make_all(plan: Path, out: Path) -> None:
    """Make all parts in this process."""
    worker = Worker(Plan.read(plan), Folder(out), SlowEmbedder())
    for name in worker.plan.parts:
        result = worker.embed(name)
        assert result.state != "failed", result
