"""The API of the map."""

from contextlib import suppress
from typing import Any

import numpy as np
from fastapi import APIRouter, HTTPException

from ..index import SimilarityIndex
from .jobs import Jobs, Progress
from .library import Library
from .map import Map, draw_map, measure_sharpness

#: Photos that are listed of each cluster, and of the odd, dark and blank ones.
TYPICAL, LISTED = 12, 200


def make_map_api(index: SimilarityIndex, library: Library, jobs: Jobs) -> APIRouter:
    """Return the routes below /api that are about the map."""
    router = APIRouter(prefix="/api")
    in_memory: list[tuple[Map, int]] = []  # all there is of an index that cannot be written

    def last() -> tuple[Map, int] | None:
        """Return the map and the generation that it was drawn of."""
        if not in_memory and (record := index.store.map()):
            with suppress(ValueError):  # of another version: it is drawn anew
                in_memory[:] = [(Map.from_record(record), int(record["generation"]))]
        return in_memory[0] if in_memory else None

    def keep(found: Map, generation: int) -> None:
        in_memory[:] = [(found, generation)]
        if not index.store.read_only:
            with index.store.writing(), index.store.transaction():
                index.store.put_map(found.to_record() | {"generation": generation})

    @router.post("/jobs/map")
    def draw() -> dict[str, Any]:
        """Draw the map; a minute for twenty thousand photos."""

        def work(progress: Progress) -> str:
            generation = index.store.generation()
            found = draw_map(index, progress)
            keep(found, generation)
            return f"{len(found.hashes):,} photos"

        if not jobs.start("map", work):
            raise HTTPException(409, "the map is being drawn already")
        return jobs.as_values()["map"]

    @router.post("/jobs/blurred")
    def blurred() -> dict[str, Any]:
        """Measure how sharp the photos of the map are, which reads each of them."""
        drawn = last()
        if drawn is None:
            raise HTTPException(409, "draw the map first")
        found, generation = drawn

        def work(progress: Progress) -> str:
            measured = measure_sharpness(found, library, progress)
            keep(measured, generation)
            return f"{np.count_nonzero(~np.isnan(measured.sharpness)):,} photos measured"

        if not jobs.start("blurred", work):
            raise HTTPException(409, "blurred photos are being looked for already")
        return jobs.as_values()["blurred"]

    @router.get("/map")
    def get() -> dict[str, Any]:
        """Return the map as it was drawn last, without the photos that are gone."""
        drawn = last()
        if drawn is None:
            return {"found": False}
        found, generation = drawn
        photos = library.of_contents([bytes(one) for one in found.hashes])
        there = np.array([photo is not None for photo in photos], bool)

        def listed(places: np.ndarray, most: int = LISTED) -> list[dict[str, Any]]:
            return [photo for place in places.tolist() if (photo := photos[place])][:most]

        def where(flags: np.ndarray) -> list[dict[str, Any]]:
            return listed(np.flatnonzero(flags))

        clusters = []
        for cluster in range(int(found.clusters.max(initial=-1)) + 1):
            mine = np.flatnonzero((found.clusters == cluster) & there)
            if len(mine):
                best = mine[np.argsort(-found.typical[mine], kind="stable")]
                clusters.append({"cluster": cluster, "size": len(mine), "typical": listed(best, TYPICAL)})
        kept = np.flatnonzero(there)
        return {
            "found": True,
            "stale": generation != index.store.generation(),
            "total": int(found.total),
            "ids": [photo["id"] for photo in photos if photo],
            "x": found.places[kept, 0].round(4).tolist(),
            "y": found.places[kept, 1].round(4).tolist(),
            "cluster": found.clusters[kept].tolist(),
            "clusters": clusters,
            "odd": listed(np.argsort(found.odd, kind="stable")),
            "dark": where(found.dark),
            "blank": where(found.blank),
            "blurred": listed(np.argsort(found.sharpness, kind="stable")[: np.count_nonzero(found.sharpness >= 0)]),
        }

    return router
