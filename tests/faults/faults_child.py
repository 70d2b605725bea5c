"""What other processes of these tests do; started by a fork server, since a fork of pytest has no threads of torch."""

import multiprocessing
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from pathlib import Path

from index_fakes import FakeEmbedder

from simclr_hub.index import SimilarityIndex
from simclr_hub.index import sync as sync_module

CONTEXT = multiprocessing.get_context("forkserver")


@contextmanager
def fork_server() -> Iterator[None]:
    """It starts here, with this module imported, so that a child costs milliseconds."""
    CONTEXT.set_forkserver_preload([__name__])
    paths = os.pathsep.join(str(Path(__file__).parent.parent / name) for name in ("index", "faults"))
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([paths, *([before] if before else [])])
    try:
        forkserver.ensure_running()
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def sync(directory: Path, photos: Path, batch: int) -> None:
    """Sync, with a commit for each `batch` photos."""
    sync_module.BATCH_PHOTOS = batch
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        index.sync(photos)
    sys.stdout.flush()
