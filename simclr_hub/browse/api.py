"""The JSON API below /api: the state of an index, its photos, and searches among them.

Every photo is named by its id; no path comes from the client but as a filter.
"""

import os
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, TypeVar

import anyio
import click
import numpy as np
from fastapi import APIRouter, Depends, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse
from pydantic import BaseModel, Field

from ..images import FileBytes, describe
from ..index import Match, SimilarityIndex
from ..index.search.filters import Condition, make_condition
from .jobs import Jobs, Progress
from .library import Library, filter_arguments
from .orders import SORTS, Sort
from .pictures import LARGEST, THUMBNAIL, Thumbnails, draw, media_type, quality, view

#: Uploaded photos that are remembered, with a thumbnail and a vector each.
UPLOADS = 64
#: The most photos of one page of the grid, and the most groups that a page lists.
PAGE, GROUPS = 1000, 20_000
_DAY = r"^\d{4}(-\d\d(-\d\d)?)?$"
_UPLOAD = re.compile(r"upload-[0-9a-f]{32}")
_FOREVER = {"cache-control": "private, max-age=31536000, immutable"}  # an id names its content
_T = TypeVar("_T")


class Filters(BaseModel):
    """Choose the photos that meet all that is given."""

    folder: str | None = Field(default=None, max_length=4096, description="absolute; with the folders below it")
    folder_of: str | None = Field(
        default=None, max_length=80, description="a photo's id: its folder, whatever its name"
    )
    root: int | None = Field(default=None, description="id of one of the folders that were indexed")
    path: str | None = Field(default=None, max_length=1024, description="a pattern, as of `simclr-hub search --path`")
    camera: str | None = Field(default=None, max_length=1024)
    taken_from: str | None = Field(default=None, pattern=_DAY, description="2019, 2019-06 or 2019-06-30")
    taken_to: str | None = Field(default=None, pattern=_DAY, description="included")
    min_side: int | None = Field(default=None, ge=1, le=1 << 20, description="pixels of the shorter side")
    min_bytes: int | None = Field(default=None, ge=1, le=1 << 40)

    def arguments(self, library: Library) -> dict[str, Any]:
        """Return them as a search takes them.

        Raises:
            UnknownPhotoError: `folder_of` is no photo.
            ValueError: they cannot be met.
        """
        values = self.model_dump(exclude={"taken_from", "taken_to", "folder_of", "root"})
        folders = [self.folder] if self.folder else []
        if self.folder_of:
            folders.append(os.path.dirname(library.find(self.folder_of).path))
        if self.root is not None:
            folders.append(library.root(self.root))
        if len(folders) > 1:
            raise ValueError("give one folder")
        values["folder"] = folders[0] if folders else None
        return filter_arguments(**values, taken=(self.taken_from, self.taken_to))

    def condition(self, library: Library) -> Condition | None:
        """Return them as a condition.

        Raises:
            UnknownPhotoError: `folder_of` is no photo.
            ValueError: they cannot be met.
        """
        return make_condition(**self.arguments(library))


PhotoIds = Annotated[list[Annotated[str, Field(max_length=80)]], Field(max_length=100)]


class SearchRequest(BaseModel):
    """Ask for what is like some photos or uploads, and not like others, by their ids."""

    like: PhotoIds = Field(min_length=1)
    unlike: PhotoIds = []
    weight: float = Field(default=0.5, ge=0, le=10, description="how much `unlike` counts")
    k: int = Field(default=60, ge=1, le=1000)
    all_copies: bool = Field(default=False, description="a result for every file, not one for all copies")
    filters: Filters = Filters()


class PhotoIdRequest(BaseModel):
    """Name one photo."""

    id: str = Field(max_length=80)


class SyncRequest(BaseModel):
    """Name one of the recorded root folders."""

    root: int


Offset = Annotated[int, Query(ge=0, le=1 << 40)]
Limit = Annotated[int, Query(ge=1, le=PAGE)]


class Uploads:
    """Keep photos that were dropped onto the page, as vectors; those not used longest are forgotten."""

    def __init__(self, index: SimilarityIndex):
        self._index = index
        self._kept: OrderedDict[str, tuple[bytes, np.ndarray]] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, data: bytes, name: str) -> str:
        """Take a file's bytes; return the upload's id.

        Raises:
            ImageError: it cannot be used.
            SimCLRHubError: the model that made the index cannot be had.
        """
        thumbnail = draw((data, name), THUMBNAIL)
        vector = self._index.query_vector(FileBytes(name, data))
        upload = f"upload-{secrets.token_hex(16)}"
        with self._lock:
            self._kept[upload] = thumbnail, vector
            while len(self._kept) > UPLOADS:
                self._kept.popitem(last=False)
        return upload

    def get(self, upload: str) -> tuple[bytes, np.ndarray]:
        """Return its thumbnail and its vector.

        Raises:
            HTTPException: it is not there any more.
        """
        with self._lock:
            if upload not in self._kept:
                raise HTTPException(404, "this upload is not there any more; drop the photo again")
            self._kept.move_to_end(upload)
            return self._kept[upload]


def make_api(index: SimilarityIndex, library: Library, jobs: Jobs, *, local: bool) -> APIRouter:
    """Return the routes.

    Args:
        index: open, with its model where uploads are to be searched for.
        library: of the index.
        jobs: of the server.
        local: whether the browser is on this machine, so that a folder may be opened in its file manager.
    """
    router = APIRouter(prefix="/api")
    uploads = Uploads(index)
    thumbnails = Thumbnails(index.status()["roots"])
    jobs.start("tidy", lambda _: thumbnails.tidy())
    decoders = anyio.CapacityLimiter(os.cpu_count() or 2)  # a pixel array of tens of megabytes each
    embedding = anyio.CapacityLimiter(1)  # the first loads the model, which takes seconds: no picture waits for it

    async def decoded(request: Request, work: Callable[[], _T], turns: anyio.CapacityLimiter = decoders) -> _T:
        """Decode on a thread, unless the browser has scrolled on before its turn came."""
        async with turns:
            if await request.is_disconnected():
                raise HTTPException(499, "the browser does not wait for it any more")
            return await anyio.to_thread.run_sync(work)

    @router.get("/state")
    def state() -> dict[str, Any]:
        """Return what the index holds, its folders, and what is going on."""
        status = library.status()
        roots = index.store.roots().values()
        return {
            "name": describe(os.path.basename(status["path"])),
            "version": list(index.store.version()),
            "photos": status["photos"],
            "missing": status["missing"],
            "failed": status["failed"],
            "roots": [
                {"id": root.id, "path": describe(os.fsdecode(root.path)), "listing": root.listing} for root in roots
            ],
            "model": str(status["made_by"].get("model", "")),
            "whitened": status["whitening"] is not None,
            "sorts": SORTS,
            "jobs": jobs.as_values(),
            "local": local,
            "read_only": index.store.read_only,
        }

    @router.get("/photos")
    def photos(
        filters: Annotated[Filters, Depends()],
        sort: Sort = "date",
        reverse: bool = False,
        offset: Offset = 0,
        limit: Limit = 200,
    ) -> dict[str, Any]:
        """Return photos of the grid, from a place on."""
        found = library.page(sort, filters.condition(library), reverse=reverse, offset=offset, limit=limit)
        return found if found["total"] else found | {"reasons": index.explain_empty(**filters.arguments(library))}

    @router.get("/groups")
    def groups(filters: Annotated[Filters, Depends()], sort: Sort = "date", reverse: bool = False) -> dict[str, Any]:
        """Return where the months, folders or cameras of the grid begin."""
        order = library.order(sort, filters.condition(library), reverse=reverse)
        some = zip(order.labels[:GROUPS], order.starts[:GROUPS].tolist(), strict=True)
        return {"total": len(order.photos), "groups": [{"label": label, "first": first} for label, first in some]}

    @router.get("/photos/{photo}")
    def details(photo: str) -> dict[str, Any]:
        """Return all that is known of a photo."""
        return library.details(photo)

    @router.get("/photos/{photo}/thumbnail", response_class=Response)
    async def thumbnail(request: Request, photo: str) -> Response:
        """Return a small JPEG."""

        def known() -> tuple[list[str], bytes | None]:
            return library.paths_of(photo), thumbnails.kept(bytes.fromhex(photo[:64]))

        paths, data = await anyio.to_thread.run_sync(known)
        if data is None:
            data = await decoded(request, lambda: thumbnails.make(bytes.fromhex(photo[:64]), paths))
        return Response(data, media_type="image/jpeg", headers=_FOREVER)

    @router.get("/photos/{photo}/view", response_class=Response)
    async def large(request: Request, photo: str, side: Annotated[int, Query(ge=64, le=LARGEST)] = 2048) -> Response:
        """Return a JPEG of any photo, also of formats that no browser shows."""
        work = partial(_view, library, photo, side)
        return Response(await decoded(request, work), media_type="image/jpeg", headers=_FOREVER)

    @router.get("/photos/{photo}/quality")
    async def measured(request: Request, photo: str) -> dict[str, float]:
        """Return how sharp and how well exposed a photo is, to compare shots of one scene."""
        return await decoded(request, lambda: quality(bytes.fromhex(photo[:64]), library.paths_of(photo)))

    @router.get("/photos/{photo}/original", response_class=FileResponse)
    def original(photo: str) -> Response:
        """Return the file itself, whole or in ranges."""
        path = library.find(photo).path
        kind = media_type(path)
        shown = kind != "application/octet-stream"
        name = os.path.basename(path).encode("utf-8", "replace").decode()
        return FileResponse(
            path,
            media_type=kind,
            filename=name,
            content_disposition_type="inline" if shown else "attachment",
            headers={"cache-control": "private, no-cache"},
        )

    @router.post("/uploads")
    async def upload(request: Request) -> dict[str, Any]:
        """Take a photo's bytes to search for; nothing is written to disk."""
        data = await request.body()
        added = await decoded(request, partial(uploads.add, data, "the dropped photo"), embedding)
        return {"id": added, "name": "dropped photo"}

    @router.get("/uploads/{upload_id}/thumbnail", response_class=Response)
    def upload_thumbnail(upload_id: str) -> Response:
        """Return a small JPEG."""
        return Response(uploads.get(upload_id)[0], media_type="image/jpeg", headers=_FOREVER)

    def as_query(wanted: str) -> Any:
        return uploads.get(wanted)[1] if _UPLOAD.fullmatch(wanted) else library.find(wanted).indexed

    @router.post("/search")
    def search(request: SearchRequest) -> dict[str, Any]:
        """Return the photos most like some and not like others, best first, without these themselves."""
        like, unlike = [as_query(one) for one in request.like], [as_query(one) for one in request.unlike]
        together = len(like) > 1 or bool(unlike)
        conditions = request.filters.arguments(library)
        matches: list[Match] = index.search(
            like if together else like[0],
            request.k,
            negative=unlike if together else None,
            negative_weight=request.weight,
            all_copies=request.all_copies,
            **conditions,
        )
        reasons = [] if matches else index.explain_empty(**conditions)
        return {"matches": [library.named_match(match) for match in matches], "reasons": reasons}

    @router.post("/reveal")
    def reveal(request: PhotoIdRequest) -> dict[str, str]:
        """Open a photo's folder in the file manager of this machine."""
        if not local:
            raise HTTPException(403, "the browser is on another machine")
        path = library.find(request.id).path
        if click.launch(path, locate=True) != 0:
            raise HTTPException(501, "no file manager could be opened")
        return {"path": describe(path)}

    @router.post("/jobs/sync")
    def sync(request: SyncRequest) -> dict[str, Any]:
        """Bring the index up to date with a folder that it was made of."""
        root = index.store.roots().get(request.root)
        if root is None:
            raise HTTPException(404, "the index was made of no such folder")

        def work(progress: Progress) -> str:
            report = index.sync(os.fsdecode(root.path), progress=progress)
            told = ("found", "embedded", "renamed", "copied", "failed", "missing")
            return ", ".join(f"{number:,} {name}" for name in told if (number := getattr(report, name)))

        return _started(jobs, "sync", work)

    @router.post("/jobs/check")
    def check() -> dict[str, Any]:
        """Check whether the index is sound."""

        def work(progress: Progress) -> str:
            report = index.check(progress=progress)
            return "; ".join(report.problems) or "nothing is wrong with the index"

        return _started(jobs, "check", work)

    @router.get("/failures")
    def failures(offset: Offset = 0, limit: Limit = 200) -> dict[str, Any]:
        """Return the photos that could not be used, and why, from a place on."""
        with index.store.beside() as store, store.reading():
            roots, (total, _), photos = store.roots(), store.trouble(), store.failed(limit, offset)
        rows = [
            {"path": describe(os.fsdecode(store.locate(p, roots))), "why": describe(p.error or "")} for p in photos
        ]
        return {"total": total, "photos": rows}

    @router.get("/missing")
    def missing(offset: Offset = 0, limit: Limit = 200) -> dict[str, Any]:
        """Return the photos that were not there at the last sync, from a place on."""
        with index.store.beside() as store, store.reading():
            roots, (_, total), photos = store.roots(), store.trouble(), store.all_missing(limit, offset)
        return {"total": total, "photos": [{"path": describe(os.fsdecode(store.locate(p, roots)))} for p in photos]}

    return router


def _view(library: Library, photo: str, side: int) -> bytes:
    paths = library.paths_of(photo)
    return view(bytes.fromhex(photo[:64]), paths, side)


def _started(jobs: Jobs, name: str, work: Callable[[Progress], str]) -> dict[str, Any]:
    if not jobs.start(name, work):
        raise HTTPException(409, f"{name} is running already")
    return jobs.as_values()[name]
