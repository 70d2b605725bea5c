"""The API of duplicates: groups, folders that are contained in others, and the plan that moves what was ticked."""

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, HTTPException, Response
from pydantic import BaseModel, Field

from ..duplicates.find import TIERS, DuplicateGroup, Member, Tier
from ..duplicates.plan import Move, Rules, check_target, format_plan, moves_of
from ..duplicates.words import facts
from ..images import describe
from ..index import SimilarityIndex
from .jobs import Jobs, Progress
from .library import Library, named, photo_id

#: Files of a group that one answer has at most.
MOST_FILES = 200
Path = Annotated[str, Field(max_length=4096)]
Id = Annotated[str, Field(max_length=80)]


class KeepRules(BaseModel):
    """Decide which file of a group stays."""

    never_from: list[Path] = Field(default=[], max_length=100, description="folders from which nothing is moved")
    prefer: list[Path] = Field(default=[], max_length=100, description="folders whose files stay, the first the most")

    def rules(self) -> Rules:
        """Return them as a plan takes them."""
        return Rules(tuple(self.never_from), tuple(self.prefer))


class GroupsRequest(KeepRules):
    """Ask for groups of a tier, in an order."""

    tier: Tier = "same-bytes"
    sort: Literal["bytes", "path"] = "bytes"
    offset: int = Field(default=0, ge=0)
    limit: int = Field(default=50, ge=1, le=200)


class PlanRequest(KeepRules):
    """Choose what goes: all copies of some tiers, but for what was ticked otherwise."""

    tiers: list[Literal["same-bytes", "same-picture"]] = Field(default=["same-bytes"], max_length=2)
    ticks: dict[Id, bool] = Field(default={}, max_length=200_000, description="files ticked one by one, by id")
    target: str = Field(default="", max_length=4096, description="the folder to move to, of your own")
    kind: Literal[".sh", ".ps1", ".csv"] = ".sh"


class DistinctRequest(BaseModel):
    """Name photos of which no two are duplicates."""

    ids: list[Id] = Field(min_length=2, max_length=100)


class Found:
    """Hold the groups that were found last, with the bytes of their files by path."""

    def __init__(self) -> None:
        self.version: tuple[int, int] | None = None
        self.folders: list[dict[str, Any]] = []
        self.set([])

    def set(self, groups: list[DuplicateGroup]) -> None:
        """Hold these groups."""
        self.groups = groups
        self.sizes = {
            file.path: int(file.metadata.get("bytes", 0)) for group in groups for file in [group.keep, *group.others]
        }
        self._moves: tuple[Rules, list[tuple[DuplicateGroup, list[Move]]]] | None = None

    def moves(self, rules: Rules) -> list[tuple[DuplicateGroup, list[Move]]]:
        """Return all groups with what may go of each; kept for the next page or tick by the same rules."""
        known, groups = self._moves, self.groups
        if known is None or known[0] != rules:
            known = rules, [(group, moves_of(group, rules)) for group in groups]
            if groups is self.groups:
                self._moves = known
        return known[1]


def make_duplicates_api(index: SimilarityIndex, library: Library, jobs: Jobs) -> APIRouter:
    """Return the routes below /api that are about duplicates."""
    router = APIRouter(prefix="/api")
    found = Found()

    @router.post("/jobs/duplicates")
    def find() -> dict[str, Any]:
        """Look for duplicates; minutes in an index of a hundred thousand photos."""

        def work(progress: Progress) -> str:
            version = index.store.version()
            groups = index.duplicates(progress=progress)
            found.folders = contained_folders(index)
            found.version = version
            found.set(groups)
            return f"{len(groups):,} groups"

        if not jobs.start("duplicates", work):
            raise HTTPException(409, "duplicates are being looked for already")
        return jobs.as_values()["duplicates"]

    @router.post("/duplicates")
    def groups(request: GroupsRequest) -> dict[str, Any]:
        """Return groups of a tier, and what each would win."""
        rules = request.rules()
        of_tier = [pair for pair in found.moves(rules) if pair[0].tier == request.tier]
        sizes = found.sizes
        if request.sort == "bytes":
            of_tier.sort(key=lambda pair: -sum(sizes[move.path] for move in pair[1]))
        some = of_tier[request.offset : request.offset + request.limit]
        return {
            "found": found.version is not None,
            "stale": found.version is not None and found.version[0] != index.store.version()[0],
            "counts": {tier: sum(group.tier == tier for group in found.groups) for tier in TIERS},
            "bytes": sum(sizes[move.path] for _, moves in of_tier for move in moves),
            "total": len(of_tier),
            "folders": found.folders if request.offset == 0 else [],
            "groups": [_group(group, moves) for group, moves in some],
        }

    @router.post("/duplicates/distinct")
    def distinct(request: DistinctRequest) -> dict[str, Any]:
        """Record that photos are different pictures, whatever they look like."""
        paths = [library.find(one).path for one in request.ids]
        index.not_duplicates(*paths)
        wanted = set(request.ids)
        found.set([group for group in found.groups if not wanted <= {_id(file) for file in _files(group)}])
        return {"recorded": len(paths)}

    def moves(request: PlanRequest) -> tuple[list[Move], int]:
        rules = request.rules()
        chosen: list[Move] = []
        for _, going in found.moves(rules):
            for move in going:
                tier = "same-bytes" if move.relation == "same bytes" else "same-picture"
                content = bytes.fromhex(move.sha256)
                if request.ticks.get(photo_id(content, move.path), tier in request.tiers):
                    chosen.append(move)
        return chosen, sum(found.sizes[move.path] for move in chosen)

    @router.post("/duplicates/summary")
    def summary(request: PlanRequest) -> dict[str, int]:
        """Return how many files are ticked, and their bytes."""
        chosen, total = moves(request)
        return {"files": len(chosen), "bytes": total}

    @router.post("/duplicates/plan", response_class=Response)
    def plan(request: PlanRequest) -> Response:
        """Return the plan as a script or a list; it is the person's to read and run."""
        target = check_target(request.target, index.status()["roots"])
        chosen, _ = moves(request)
        if not chosen:
            raise HTTPException(422, "nothing is ticked")
        text = format_plan(chosen, target, request.kind)
        return Response(text, media_type="text/plain; charset=utf-8")

    return router


def _files(group: DuplicateGroup) -> list[Member]:
    return [group.keep, *group.others]


def _id(file: Member) -> str:
    return photo_id(bytes.fromhex(file.sha256), file.path)


def _group(group: DuplicateGroup, moves: Sequence[Move]) -> dict[str, Any]:
    kept = moves[0].keep if moves else group.keep.path
    gone = {move.path: move for move in moves}
    files = sorted(_files(group), key=lambda file: file.path != kept)
    return {
        "tier": group.tier,
        "why": describe(group.why) if kept == group.keep.path else "by your rules",
        "files": [
            named(bytes.fromhex(file.sha256), file.path)
            | {
                "role": "keep" if file.path == kept else file.tier,
                "score": file.score,
                "facts": facts(file),
                "bytes": int(file.metadata.get("bytes", 0)),
                "width": file.metadata.get("width"),
                "height": file.metadata.get("height"),
                "movable": file.path in gone,
                "relation": gone[file.path].relation if file.path in gone else "",
                "pair": describe(os.path.basename(file.pair)) if file.pair else "",
                "same_file": bool(file.same_file),
            }
            for file in files[:MOST_FILES]
        ],
        "more": len(files[MOST_FILES:]),
    }


def contained_folders(index: SimilarityIndex, least: int = 2) -> list[dict[str, Any]]:
    """Return folders all of whose photos lie in another one, too, with the folders below; the largest first.

    Only the uppermost are told of, and of equal folders those with the longer paths.

    Args:
        index: open.
        least: photos that a folder must have.
    """
    with index.store.beside() as store, store.reading():
        roots, photos = store.roots(), store.photos(state="live")
    contents: dict[str, set[bytes]] = defaultdict(set)
    sizes: dict[str, int] = defaultdict(int)
    for photo in photos:
        root = os.fsdecode(roots[photo.root_id].path)
        folder = os.path.dirname(os.fsdecode(store.locate(photo, roots)))
        while True:  # up to the root folder
            contents[folder].add(photo.content_hash or b"")
            sizes[folder] += 1
            if folder == root or len(folder) < len(root):
                break
            folder = os.path.dirname(folder)
    having: dict[bytes, list[str]] = defaultdict(list)
    for folder, some in contents.items():
        for content in some:
            having[content].append(folder)
    found: dict[str, str] = {}
    for folder in sorted(contents, key=lambda name: (-sizes[name], len(name), name)):
        some = contents[folder]
        if sizes[folder] < least or any(_inside(folder, other) for other in found):
            continue
        rarest = min(some, key=lambda content: len(having[content]))
        others = [
            other
            for other in having[rarest]
            if some <= contents[other]
            and not any(_inside(other, one) or _inside(one, other) for one in (folder, *found) if one != other)
            and other not in (folder, *found)
            and (len(some) < len(contents[other]) or (len(other), other) < (len(folder), folder))
        ]
        if others:
            found[folder] = min(others, key=lambda name: (len(contents[name]), len(name), name))
    return [
        {"folder": describe(folder), "inside": describe(other), "photos": sizes[folder]}
        for folder, other in found.items()
    ]


def _inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)
