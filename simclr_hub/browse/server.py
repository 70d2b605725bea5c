"""The server of `simclr-hub browse`: the page's files, the API, who may ask, and its start and end."""

import logging
import re
import secrets
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ..errors import ImageError, IndexLockedError, LabelError, MissingExtraError, OutputError, SimCLRHubError
from ..images import describe
from ..index import SimilarityIndex

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import FileResponse, JSONResponse
    from fastapi.staticfiles import StaticFiles
    from starlette.types import ASGIApp
except ImportError as e:
    raise MissingExtraError(e.name or "fastapi", "web") from e

from .api import make_api
from .duplicates import make_duplicates_api
from .guard import Guard
from .jobs import Jobs
from .label_api import make_label_api
from .library import Library, UnknownPhotoError
from .map_api import make_map_api

# FastAPI mutes this one of pydantic's while it builds a route, which other threads' `catch_warnings` undo.
warnings.filterwarnings("ignore", message="The 'alias' attribute with value")
STATIC = Path(__file__).parent / "static"
#: What an address and a cookie can hold as it is.
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,}")
#: Seconds that requests which are being answered may take when the server ends.
GRACE = 1


def make_app(index: SimilarityIndex, *, local: bool = True) -> FastAPI:
    """Return the page and its API, unguarded; see `Guard`.

    Args:
        index: open; stays the caller's.
        local: whether the browser is on this machine.
    """
    app = FastAPI(
        title="simclr-hub browse",
        version=version("simclr-hub"),
        openapi_url="/api/openapi.json",
        docs_url=None,  # it would load scripts from elsewhere
        redoc_url=None,
    )
    library, jobs = Library(index), Jobs()
    app.include_router(make_api(index, library, jobs, local=local))
    app.include_router(make_duplicates_api(index, library, jobs))
    app.include_router(make_map_api(index, library, jobs))
    app.include_router(make_label_api(index, library))

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/static", StaticFiles(directory=STATIC))
    for kind, status in (
        (UnknownPhotoError, 404),
        (ImageError, 422),
        (IndexLockedError, 409),
        (LabelError, 422),
        (OutputError, 422),
        (SimCLRHubError, 500),
        (ValueError, 422),
    ):
        app.add_exception_handler(kind, _told(status))
    jobs.start("warm", lambda _: _warm(index, library))
    return app


def _warm(index: SimilarityIndex, library: Library) -> str:
    """Load what the first look and the first search need, so that nobody waits for it."""
    found = library.page("date", None, limit=1)["photos"]
    if found:
        index.search(library.find(found[0]["id"]).indexed, 1)
    return "ready"


def _told(status: int) -> Any:
    def answer(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"detail": describe(str(error))}, status)

    return answer


@dataclass(frozen=True)
class Address:
    """Tell where a server can be opened.

    Attributes:
        url: with the token: whoever has it sees the photos.
        host: that it listens on.
        port: that it listens on.
        token: for `Authorization: Bearer` of programs.
    """

    url: str
    host: str
    port: int
    token: str


@contextmanager
def serving(
    index: SimilarityIndex, *, host: str = "127.0.0.1", port: int = 0, token: str | None = None
) -> Iterator[Address]:
    """Serve an index's page on threads of its own until the block ends.

    Args:
        index: open; stays the caller's.
        host: an address of this machine; any but loopback needs a token, since others can reach it.
        port: 0 for a free one.
        token: at least 16 characters; None for a new one.

    Raises:
        OutputError: the address cannot be listened on, or is open to others without a token.
        ValueError: a token that is too short.
    """
    local = is_loopback(host)
    if token is None and not local:
        raise OutputError(f"--host {describe(host)} lets other machines in: choose a --token of 16 or more characters")
    if token is not None and not _TOKEN.fullmatch(token):
        raise ValueError("--token: give 16 or more letters, digits and any of - . _ ~ that nobody guesses")
    token = token or secrets.token_urlsafe(24)
    listener = listen(host, port)
    port = listener.getsockname()[1]
    everywhere = host in ("0.0.0.0", "::")
    hosts = {host, "localhost", "127.0.0.1", "::1"} if local or everywhere else {host}
    if everywhere:
        hosts.add(socket.gethostname())
    app: ASGIApp = Guard(make_app(index, local=local), token=token, hosts=hosts, port=port, any_address=everywhere)
    config = uvicorn.Config(
        app,
        log_config=None,  # warnings go where this package's others do; addresses with a token are in no log
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        timeout_graceful_shutdown=GRACE,
    )
    server = uvicorn.Server(config)
    log = logging.getLogger("uvicorn.error")
    unless_ending = partial(_unless_ending, server)
    log.addFilter(unless_ending)
    thread = threading.Thread(target=server.run, args=([listener],), name="simclr-browse", daemon=True)
    thread.start()
    shown = socket.gethostname() if everywhere else f"[{host}]" if ":" in host else host
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        yield Address(f"http://{shown}:{port}/?token={token}", host, port, token)
    finally:
        server.should_exit = True
        thread.join(GRACE + 0.3)
        server.force_exit = True
        log.removeFilter(unless_ending)


def _unless_ending(server: uvicorn.Server, _: logging.LogRecord) -> bool:
    return not server.should_exit  # that requests were cut off then is no fault, and no traceback


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens, on a free port for 0.

    Raises:
        OutputError: the address cannot be had.
    """
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as e:
        place, why = f"{describe(host)} port {port}", getattr(e, "strerror", None) or e
        raise OutputError(f"cannot listen on {place}: {why}; choose another --port or --host") from e
    # Accepted sockets inherit it; asyncio sets it only where a socket names its protocol. Without it a body waits
    # 40 ms until its headers are acknowledged.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
