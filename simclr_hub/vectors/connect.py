"""Find the vector server that a URL names."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from .._files import check_place
from .._text import shown, shown_url
from ..errors import VectorServerError
from .server import VectorServer

#: The name of a table or collection where a URL has none.
NAME = "simclr_hub"
_NAME = re.compile(r"[a-z_][a-z0-9_]{0,39}")


def connect(url: str, *, make: bool = True, photos: Iterable[str] = ()) -> VectorServer:
    """Connect to the server that a URL names.

    postgresql://[USER@]HOST[:PORT]/DATABASE[#TABLE], with all that libpq takes; milvus://HOST:PORT[/COLLECTION] or
    http(s)://HOST:PORT[/COLLECTION]; or a file NAME.db[#COLLECTION], which milvus-lite keeps.

    Args:
        url: of the server.
        make: a file of milvus-lite that is not there; else it is an error.
        photos: folders below which no such file is made.

    Raises:
        VectorServerError: it names none, or that cannot be reached.
        OutputError: a file below photos.
        MissingExtraError: its client is not installed.
    """
    address, _, name = url.partition("#")
    scheme = address.partition("://")[0].lower() if "://" in address else ""
    if scheme in ("postgresql", "postgres"):
        from .pgvector import PgVector

        return PgVector(_clear(address), checked_name(name or NAME))
    if scheme in ("milvus", "http", "https") or (not scheme and address.endswith(".db")):
        from .milvus import Milvus

        if scheme:
            parts = urlsplit(_clear(address))
            address = f"{'http' if scheme == 'milvus' else scheme}://{parts.netloc}"
            name = name or parts.path.strip("/")
        else:
            _check_file(Path(address), make, photos)
        return Milvus(address, checked_name(name or NAME))
    raise VectorServerError(
        f"{shown_url(url)}: give postgresql://HOST/DATABASE, milvus://HOST:PORT/COLLECTION, or for milvus-lite a file "
        "NAME.db"
    )


def _check_file(path: Path, make: bool, photos: Iterable[str]) -> None:
    """Refuse what milvus-lite, which keeps a folder, would make or fill where it should not."""
    name = shown(str(path))
    check_place(path, photos)
    if not os.path.lexists(path):
        if not make:
            raise VectorServerError(f"{name}: no such file; run: simclr-hub vectors load PARTS {name}")
        if not os.access(path.parent, os.W_OK):
            raise VectorServerError(f"{name}: cannot be made there; is there such a folder, and may you write to it?")
    elif not path.is_dir() or (any(path.iterdir()) and not (path / "collections").is_dir()):
        raise VectorServerError(f"{name} exists already, and not as milvus-lite keeps it; choose another name")


def checked_name(name: str) -> str:
    """Return the name of a table or collection.

    Raises:
        VectorServerError: it is none that every server takes; it is not told, since it may be a part of a password.
    """
    if not _NAME.fullmatch(name):
        raise VectorServerError(
            "the table's or collection's name: at most 40 small letters, digits and _, with no digit first; a # in a "
            "password is written %23"
        )
    return name


def _clear(url: str) -> str:
    """Return a URL of which it is clear where its password ends.

    Raises:
        VectorServerError: it is not, and a driver's message might tell a part of it.
    """
    if shown_url(url).partition("://")[2] == "...":
        raise VectorServerError(
            "the server's URL: it is not clear where its password ends; write / as %2F, @ as %40, # as %23, or leave "
            "the password to the environment (PGPASSWORD, SIMCLR_MILVUS_TOKEN)"
        )
    return url
