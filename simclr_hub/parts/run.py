"""Run a plan on an engine: which parts are still to be made, by what, and what came of it.

An engine is a module of this package with one function, `run(job, names, workers, tell)`. It calls
`job.load().embed(name)` for each name somewhere, the model loaded once a process, and `tell` here with the last
attempt at each. It raises PartsError where no worker can load the job.
"""

import importlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _files
from ..errors import OutputError, PartsError, SimCLRHubError
from ..index.maker import EmbedderLike
from .part import SUFFIX, Job, Result, read_part
from .plan import Plan
from .storage import Folder, is_remote

ENGINES = ("local", "ray", "spark")
#: Names the plan whose parts a folder holds; written before any of them.
MARK = "_plan.json"
#: Holds what is to be deleted from servers, see `vectors.load`.
TOMBSTONES = "_deleted"


@dataclass
class RunReport:
    """The end of a run.

    Attributes:
        planned: parts of this worker's share.
        there: that were made before.
        made: that were made now, with so many rows, of which so many could not be used.
        failed: those that could not be made, and why.
    """

    planned: int
    there: int = 0
    made: int = 0
    rows: int = 0
    unusable: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def run_parts(
    plan: Plan,
    out: str | os.PathLike[str],
    make: Callable[[], EmbedderLike],
    *,
    engine: str = "local",
    worker: tuple[int, int] = (1, 1),
    workers: int | None = None,
    whiten: bool = True,
    half: bool = False,
    progress: Callable[[Result | None, int], object] | None = None,
) -> RunReport:
    """Make the parts of a plan that are not there, or one worker's share of them; may be stopped and run again.

    Args:
        plan: the plan.
        out: a folder for its parts; new, empty, or one that holds some.
        make: makes the embedder in each process; can be pickled.
        engine: one of `ENGINES`.
        worker: (I, N) takes every N-th part from the I-th on.
        workers: processes of the engine on this machine; None lets it choose.
        whiten: with what comes with the checkpoint, if anything does.
        half: write numbers of 16 bits, half the bytes.
        progress: called with each result and how many parts there are to make; first with None.

    Raises:
        PartsError: the folder is another plan's, or the model cannot be loaded.
        OutputError: it lies below photos or cannot be written to.
    """
    if engine not in ENGINES:
        raise PartsError(f"engine={engine!r}: give one of {', '.join(ENGINES)}")
    folder = Folder(out)
    names = list(plan.parts)[worker[0] - 1 :: worker[1]]
    there = set(prepare(folder, plan)) & {name + SUFFIX for name in plan.parts}
    todo = [name for name in names if name + SUFFIX not in there]
    made_by = None
    if there:
        made_by = read_part(folder, min(there).removesuffix(SUFFIX), plan).header.maker
    report = RunReport(len(names), len(names) - len(todo))

    def tell(result: Result) -> None:
        report.there += result.state == "there"
        report.made += result.state == "made"
        report.rows += result.rows
        report.unusable += result.unusable
        if result.state == "failed":
            report.failed[result.name] = str(result.error)
        if progress:
            progress(result, len(todo))

    if progress:
        progress(None, len(todo))
    if todo:
        module: Any = importlib.import_module(f".{engine}", __package__)
        module.run(Job(plan.folder.place, folder.place, make, whiten, made_by, half), todo, workers, tell)
    return report


def prepare(folder: Folder, plan: Plan) -> dict[str, int]:
    """Make a folder ready for the parts of a plan; return what is in it, see `Folder.sizes`.

    Raises:
        PartsError: it holds another plan's parts, or something else.
        OutputError: it lies below photos, is no folder, or cannot be written to.
    """
    if f"{folder.place}/".startswith(f"{plan.folder.place}/"):
        raise OutputError(f"{folder}: in the folder of the plan; choose another folder for the parts")
    if not is_remote(folder.place):
        _files.check_place(Path(folder.place), [*plan.folders, plan.folder.place])  # by any link, too
    try:
        found = folder.sizes()
        if MARK not in found and not any(not name.startswith(".") for name in found):
            folder.put(MARK, json.dumps({"plan": plan.id}).encode())
        check_mark(folder, plan)
    except OSError as e:
        if isinstance(e, SimCLRHubError):
            raise
        raise OutputError(f"{folder}: {e.strerror or e}; choose another folder for the parts") from e
    return found


def check_mark(folder: Folder, plan: Plan) -> None:
    """Refuse a folder that is not marked as this plan's.

    Raises:
        PartsError: it is not.
        OSError: it cannot be read.
    """
    try:
        with folder.open(MARK) as file:
            marked = json.loads(file.read(1 << 16))["plan"]
    except FileNotFoundError:
        raise PartsError(
            f"{folder}: not a folder of parts; give one that `parts run` filled, or for a run a new one"
        ) from None
    except (ValueError, TypeError, KeyError, RecursionError):
        marked = None
    if marked != plan.id:
        raise PartsError(f"{folder}: holds the parts of another plan; choose another folder")
