"""Measure how much of the truth a server finds: some of its images are searched for, and compared with all here."""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..parts.storage import Folder
from .rows import part_names, read_ids, read_vectors
from .server import Comparison, Hit, Progress, Setting, VectorServer

#: What a search must find of the true nearest, on average, as in an index; and more than that where it is measured.
RECALL, MARGIN = 0.95, 0.02
K, QUERIES = 10, 100
#: Shares of the images to which conditions are measured: what they let pass is drawn by ids, which are hashes.
SHARES = (0.5, 0.02, 0.001)
_TUNED_SHARES = (0.5, 0.2, 0.1, 0.05, 0.02)
_TUNED_EF = (16, 24, 40, 64, 100, 160, 250, 400, 700, 1000)
#: Nearest of which the exact score is known: beyond them a score that the server tells is believed.
_KEPT = 5 * K
_NOISE = 1e-5  # of scores


@dataclass(frozen=True)
class Truth:
    """The exact nearest of some images among those of the parts, for each share that passes.

    Attributes:
        ids: of the queries.
        queries: float32 (Q, D).
        nearest: by share, for each query, scores of the nearest by id, the query itself left out.
    """

    ids: list[bytes]
    queries: np.ndarray
    nearest: dict[float, list[dict[bytes, float]]]

    def recall(self, server: VectorServer, share: float, setting: Setting | None = None) -> tuple[float, float]:
        """Return which part of the nearest K the server finds, and which part of its answers were exact."""
        hits = wanted = exact = 0
        for own, query, known in zip(self.ids, self.queries, self.nearest[share], strict=True):
            found = server.search(query, K + 1, passing(share), setting)
            best = heapq.nlargest(K, known.values())
            others = [hit for hit in found.hits if hit.id != own][: len(best)]
            hits += sum(_score(hit, known) >= best[-1] - _NOISE for hit in others)
            wanted += len(best)
            exact += found.exact
        return hits / max(wanted, 1), exact / max(len(self.ids), 1)


def _score(hit: Hit, known: dict[bytes, float]) -> float:
    """Return the exact score of what was found: copies have equal ones, and any of them will do."""
    return known.get(hit.id, hit.score)


def passing(share: float) -> tuple[Comparison, ...]:
    """Return the condition that so large a share of all images meets, whatever they show."""
    return () if share >= 1 else (Comparison("id", "<", _bound(share).hex()),)


def _bound(share: float) -> bytes:
    return int(share * (1 << 128)).to_bytes(16)


def find_truth(
    folder: Folder,
    dead: set[bytes],
    shares: Sequence[float],
    progress: Progress | None = None,
    images: list[bytes] | None = None,
) -> Truth:
    """Compare some images with all in the parts of a folder, of which only these and one part are in memory.

    Args:
        folder: of parts.
        dead: images and contents that tombstones name, left out.
        shares: of conditions.
        progress: see `server.Progress`.
        images: ids to search for; None: drawn.
    """
    names = part_names(folder)
    if images is None:
        images = []
        for name in names:  # the highest of hashes: as good as drawn, the same each time, and met by no condition
            alive = (one for one, content in zip(*read_ids(folder, name), strict=True) if not {one, content} & dead)
            images = heapq.nlargest(QUERIES, [*images, *alive])
    queries = _vectors_of(folder, names, set(images))
    images = [one for one in images if one in queries]
    stacked = np.array([queries[one] for one in images], np.float32)
    best: dict[float, list[dict[bytes, float]]] = {share: [{} for _ in images] for share in shares}
    for name in names:
        contents = dict(zip(*read_ids(folder, name), strict=True)) if dead else {}
        for ids, vectors in read_vectors(folder, name):
            live = np.array([not {one, contents.get(one)} & dead for one in ids], bool)
            scores = stacked @ vectors.T if len(images) else np.empty((0, len(ids)), np.float32)  # (Q, n)
            for share in shares:
                bound = _bound(share) if share < 1 else None
                allowed = np.flatnonzero(live & np.array([bound is None or one < bound for one in ids], bool))
                _keep(best[share], images, [ids[i] for i in allowed], scores[:, allowed])
        if progress:
            progress(1, len(names), "comparing exactly")
    return Truth(images, stacked, best)


def _vectors_of(folder: Folder, names: Sequence[str], wanted: set[bytes]) -> dict[bytes, np.ndarray]:
    found: dict[bytes, np.ndarray] = {}
    for name in names:
        if len(found) == len(wanted):
            break
        for ids, vectors in read_vectors(folder, name):
            found |= {one: vectors[i].copy() for i, one in enumerate(ids) if one in wanted}
    return found


def _keep(best: list[dict[bytes, float]], own: Sequence[bytes], ids: Sequence[bytes], scores: np.ndarray) -> None:
    """Keep for each query the nearest so far; scores are (Q, n)."""
    if not len(ids):
        return
    most = min(_KEPT + 1, len(ids))
    some = np.argpartition(-scores, most - 1, axis=1)[:, :most]
    for line, known in enumerate(best):
        known |= {ids[i]: float(scores[line, i]) for i in some[line].tolist() if ids[i] != own[line]}
        if len(known) > _KEPT:
            best[line] = dict(heapq.nlargest(_KEPT, known.items(), key=lambda pair: pair[1]))


def tune(folder: Folder, server: VectorServer, progress: Progress | None = None) -> Setting:
    """Find the cheapest setting by which searches find enough, without and with conditions; exact where none does."""
    rows = server.count()
    truth = find_truth(folder, server.marks(), (1.0, *_TUNED_SHARES), progress)
    for ef in _TUNED_EF:
        setting = Setting(ef, 0.0, rows=rows, exact_rows=0)
        recall = truth.recall(server, 1.0, setting)[0]
        if recall >= RECALL + MARGIN:
            break
    else:
        return Setting(rows=rows)
    least = 1.1  # of no condition
    for share in _TUNED_SHARES:
        if truth.recall(server, share, setting)[0] < RECALL + MARGIN:
            break
        least = share
    return Setting(ef, least, recall, rows)
