"""The API of labels: the rest of the photos by a few examples of each class, to check, correct and export."""

import dataclasses
import secrets
import tempfile
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, HTTPException, Query, Response
from pydantic import BaseModel, Field

from ..index import SimilarityIndex
from ..label_files import write_labels
from ..labels import Labels
from .library import Library, named

#: Results that are kept, one for each window that labels.
KEPT = 4
Id = Annotated[str, Field(max_length=80)]
Name = Annotated[str, Field(min_length=1, max_length=200)]


class LabelRequest(BaseModel):
    """Give a few photos of each class, by id."""

    examples: dict[Name, Annotated[list[Id], Field(min_length=1, max_length=1000)]] = Field(max_length=500)


@dataclasses.dataclass(frozen=True)
class Result:
    """Hold labels with what a grid needs, (N,) each: the class, the confidence, and whether it is an example."""

    labels: Labels
    classes: np.ndarray
    confidence: np.ndarray
    example: np.ndarray


def make_label_api(index: SimilarityIndex, library: Library) -> APIRouter:
    """Return the routes below /api that are about labels."""
    router = APIRouter(prefix="/api/label")
    kept: OrderedDict[str, Result] = OrderedDict()
    lock = threading.Lock()

    def result(name: str) -> Result:
        with lock:
            if name not in kept:
                raise HTTPException(404, "these labels are not there any more; label again")
            kept.move_to_end(name)
            return kept[name]

    @router.post("")
    def label(request: LabelRequest) -> dict[str, Any]:
        """Label all photos; returns the result's name and what came of each class."""
        examples = {
            name: [library.find(one).indexed.content_hash for one in ids] for name, ids in request.examples.items()
        }
        labels = index.label(examples)
        place = {name: at for at, name in enumerate(labels.classes)}
        found = Result(
            labels,
            np.array([place[one.label] for one in labels.labels], np.int32),
            np.array([one.confidence for one in labels.labels]),
            np.array([one.example for one in labels.labels], bool),
        )
        name = secrets.token_hex(8)
        with lock:
            kept[name] = found
            while len(kept) > KEPT:
                kept.popitem(last=False)
        sure = (found.confidence > labels.sure_above) & ~found.example
        return {
            "result": name,
            "sure_above": labels.sure_above,
            "left_out": dataclasses.asdict(labels.left_out),
            "classes": [
                {
                    "name": one,
                    "photos": int((found.classes == at).sum()),
                    "sure": int((sure & (found.classes == at)).sum()),
                    "examples": int((found.example & (found.classes == at)).sum()),
                }
                for at, one in enumerate(labels.classes)
            ],
        }

    @router.get("/{name}/photos")
    def photos(
        name: str,
        of: Annotated[str, Query(max_length=200, description="a class; empty for all")] = "",
        sort: Literal["unsure", "sure"] = "unsure",
        offset: Annotated[int, Query(ge=0)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    ) -> dict[str, Any]:
        """Return labelled photos, the least or the most sure first; examples last."""
        found = result(name)
        wanted = np.ones(len(found.classes), bool)
        if of:
            if of not in found.labels.classes:
                raise HTTPException(404, "there is no such class")
            wanted = found.classes == list(found.labels.classes).index(of)
        chosen = np.flatnonzero(wanted)
        confidence = found.confidence[chosen] * (1 if sort == "unsure" else -1)
        order = chosen[np.lexsort((confidence, found.example[chosen]))]
        some = []
        for at in order[offset : offset + limit].tolist():
            one = found.labels.labels[at]
            some.append(
                named(found.labels.contents[at], one.path)
                | {"label": one.label, "confidence": one.confidence, "unsure": one.unsure, "example": one.example}
                | {"second": one.second}
            )
        return {"total": len(order), "photos": some}

    @router.get("/{name}/export", response_class=Response)
    def export(name: str, kind: Literal["csv", "parquet"] = "csv") -> Response:
        """Return the labels as a table, as `simclr-hub label -o` writes it."""
        found = result(name)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"labels.{kind}"
            write_labels(file, found.labels.labels)
            data = file.read_bytes()
        return Response(
            data,
            media_type="application/octet-stream",
            headers={"content-disposition": f'attachment; filename="labels.{kind}"'},
        )

    return router
