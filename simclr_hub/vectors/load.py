"""Load a folder of parts into a vector server, part by part, and apply what its tombstones tell to delete.

A tombstone is a file of JSON lines in the folder `_deleted` beside the parts: {"path": ...}, as `Match.path` has it,
or {"hash": ...} with a content's SHA-256. It is named by its own hash and never changed, so that any number of people
may add some. What it names is deleted by the next load on each server, and never loaded there again.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from .._text import printable
from ..errors import ExportError, PartsError, VectorServerError
from ..parts.part import same_maker
from ..parts.run import MARK, TOMBSTONES
from ..parts.storage import Folder
from .recall import tune
from .rows import header_of, image_id, part_names, read_rows
from .server import Description, Progress, Setting, VectorServer

#: What the files of tombstones are named like.
SUFFIX = ".jsonl"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass
class LoadReport:
    """Hold what a load did.

    Attributes:
        parts: there are; of which so many were loaded before and now.
        images: that were put now.
        deleted: images that tombstones deleted from the server now.
        left_out: images of the parts of now that tombstones keep out.
        count: images on the server at the end.
        setting: how the server is searched.
    """

    parts: int
    there: int = 0
    loaded: int = 0
    images: int = 0
    deleted: int = 0
    left_out: int = 0
    count: int = 0
    setting: Setting | None = None


def load_parts(
    parts: str | os.PathLike[str],
    server: VectorServer,
    *,
    half: bool = False,
    again: bool = False,
    progress: Progress | None = None,
) -> LoadReport:
    """Load what a server does not have yet; may be stopped or killed at any moment and run again.

    Args:
        parts: a folder that `parts.run.run_parts` filled, local or in a bucket.
        server: where.
        half: of a new table: numbers of 16 bits.
        again: also parts that were loaded before.
        progress: see `server.Progress`.

    Raises:
        VectorServerError: the server cannot be used, or holds vectors of another model.
        ExportError, PartsError: a part is damaged, or was made by another model.
    """
    folder = Folder(parts)
    names = part_names(folder)
    description = _description(server, folder, names[0], half)
    marks = read_tombstones(folder)
    report = LoadReport(len(names))
    report.deleted = server.forget(marks)
    # Once recorded, always kept out, also if the folder does not name it any more.
    dead, there = server.marks(), server.parts()
    for name in names:
        if name in there and not again:
            report.there += 1
        else:
            check_maker(server, description, folder, name)
            rows = read_rows(folder, name)
            kept = [i for i in range(len(rows)) if not {rows.ids[i], rows.hashes[i]} & dead]
            report.left_out += len(rows) - len(kept)
            server.put(name, rows if len(kept) == len(rows) else rows.only(kept))
            report.loaded += 1
            report.images += len(kept)
        if progress:
            progress(1, len(names), "loading parts")
    report.count = server.count()
    setting = description.setting
    if report.loaded or setting is None or not description.built:
        fast = server.build()
        if setting is None or not setting.rows / 2 <= report.count <= setting.rows * 1.5:
            setting = tune(folder, server, progress, fast=fast, half=description.half)
            server.create(replace(description, setting=setting))
    report.setting = setting
    return report


def _description(server: VectorServer, folder: Folder, part: str, half: bool) -> Description:
    """Return what the server tells of its vectors, or what the parts do, which is then created."""
    header = header_of(folder, part).header
    found = server.describe()
    if found is None:
        found = Description(header.about, header.whitening, half)
        server.create(found)
    elif half and not found.half:
        raise VectorServerError(f"{server}: made with numbers of 32 bits; load into another table, or without --half")
    return found


def check_maker(server: VectorServer, description: Description, folder: Folder, part: str) -> None:
    """Refuse a part whose vectors mean nothing beside those of the server.

    Raises:
        PartsError: it was made by another model; both are named.
    """
    header = header_of(folder, part).header
    there, here = description.about.fingerprint, header.about.fingerprint
    if not same_maker(there, here) or header.about.dim != description.about.dim:
        keys = sorted(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
        raise PartsError(
            f"{server} holds vectors made by {_told(there, keys)}, but part {part} of {folder} was made by "
            f"{_told(here, keys)}; load it into another table or collection"
        )


def _told(fingerprint: dict[str, object], keys: list[str]) -> str:
    differing = ", ".join(f"{key} {str(fingerprint.get(key))[:40]}" for key in keys if key != "model")
    return printable(f"{fingerprint.get('model')} ({differing})")


def read_tombstones(folder: Folder) -> set[bytes]:
    """Return what is to be deleted, as `VectorServer.forget` takes it.

    Raises:
        PartsError: a tombstone that cannot be read: nothing is loaded then.
    """
    found: set[bytes] = set()
    try:
        names = sorted(folder.sizes(TOMBSTONES)) if TOMBSTONES in folder.sizes() else []
        for name in names:
            if name.startswith(".") or not name.endswith(SUFFIX):
                continue
            with folder.open(f"{TOMBSTONES}/{name}") as file:
                data = file.read()
            if hashlib.sha256(data).hexdigest()[:32] + SUFFIX != name:
                raise ValueError(f"{name} was changed or cut")
            found |= {_mark(json.loads(line)) for line in data.decode().splitlines()}
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as e:
        raise PartsError(f"{folder.join(TOMBSTONES)}: a tombstone cannot be read: {e}") from e
    return found


def _mark(told: dict[str, str]) -> bytes:
    if "hash" in told:
        if not _HASH.fullmatch(told["hash"]):
            raise ValueError(f"not a SHA-256: {told['hash'][:80]!r}")
        return bytes.fromhex(told["hash"])
    return image_id(os.fsencode(told["path"]))


def _named(image: str) -> dict[str, str]:
    if _HASH.fullmatch(image):
        return {"hash": image}
    if not os.path.isabs(image) and "://" not in image:
        if not os.path.lexists(image):
            raise PartsError(f"{printable(image)}: no such file, and neither a whole path, a URI nor a SHA-256")
        image = os.path.abspath(image)
    return {"path": image}


def write_tombstone(parts: str | os.PathLike[str], images: Iterable[str]) -> tuple[str, int]:
    """Write a tombstone of paths and SHA-256s beside parts; return its name and how many it names.

    Raises:
        ExportError: not a folder of parts.
        PartsError: a name that no image has.
        OSError: it could not be written.
    """
    folder = Folder(parts)
    if MARK not in folder.sizes():
        raise ExportError(f"{folder}: not a folder that `simclr-hub parts run` filled")
    lines = sorted({json.dumps(_named(one)) for one in images})
    data = "".join(f"{line}\n" for line in lines).encode()
    name = hashlib.sha256(data).hexdigest()[:32] + SUFFIX
    folder.put(f"{TOMBSTONES}/{name}", data)
    return name, len(lines)
