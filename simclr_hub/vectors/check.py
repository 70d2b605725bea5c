"""Check that a server has every image of a folder of parts, and finds what is nearest, also under conditions."""

import os
from dataclasses import dataclass, field

from ..errors import VectorServerError
from ..parts.storage import Folder
from .load import check_maker, read_tombstones
from .recall import RECALL, SHARES, find_truth
from .rows import part_names, read_ids
from .server import Progress, VectorServer


@dataclass
class CheckReport:
    """Hold the state of a server beside a folder of parts.

    Attributes:
        images: of the parts, without those that tombstones name.
        count: images on the server, of which so many are of no part here.
        missing: images that are not there, by part.
        not_deleted: images that tombstones name and that are there.
        recall: of the nearest 10, by the share of all images that a condition lets pass; 1: no condition.
        exact: which part of those searches was exact, by share.
    """

    images: int = 0
    count: int = 0
    others: int = 0
    missing: dict[str, int] = field(default_factory=dict)
    not_deleted: int = 0
    recall: dict[float, float] = field(default_factory=dict)
    exact: dict[float, float] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Return whether all is there, nothing that was deleted, and searches find enough."""
        return not self.missing and not self.not_deleted and all(one >= RECALL for one in self.recall.values())


def check_vectors(
    parts: str | os.PathLike[str], server: VectorServer, *, progress: Progress | None = None
) -> CheckReport:
    """Compare a server with a folder of parts, every image and some searches.

    Raises:
        VectorServerError: nothing was loaded there.
        ExportError, PartsError: a part is damaged, or was made by another model.
    """
    folder = Folder(parts)
    description, names, report = server.describe(), part_names(folder), CheckReport()
    if description is None:
        raise VectorServerError(f"{server}: nothing was loaded there; run: simclr-hub vectors load PARTS URL")
    dead = read_tombstones(folder) | server.marks()
    found = 0
    for name in names:
        check_maker(server, description, folder, name)
        ids, contents = read_ids(folder, name)
        there = server.there(ids)
        deleted = {one for one, content in zip(ids, contents, strict=True) if {one, content} & dead}
        report.images += len(set(ids) - deleted)
        report.not_deleted += len(there & deleted)
        found += len(there)
        if missing := len(set(ids) - deleted - there):
            report.missing[name] = missing
        if progress:
            progress(1, len(names), "comparing ids")
    report.count = server.count()
    report.others = report.count - found
    truth = find_truth(folder, dead, (1.0, *SHARES), progress)
    for share in truth.nearest:
        report.recall[share], report.exact[share] = truth.recall(server, share)
    return report
