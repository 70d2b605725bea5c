"""The guard of the server: the token, the Host and Origin headers, sizes, and what a page may load."""

import ipaddress
import secrets
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlencode, urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Bytes of a request's body: an uploaded photo, and anything else.
UPLOAD, BODY = 64 << 20, 4 << 20
#: Seconds without a byte of a body after which a request ends.
PATIENCE = 20.0
#: Sent with everything: scripts, styles and pictures are this server's own; nothing embeds or submits the page.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
}


class Guard:
    """Let through what comes from the page that was opened with the token, or from a program that sends it.

    Args:
        app: the application.
        token: what the address that is opened holds, or `Authorization: Bearer`; it becomes a cookie of this port.
        hosts: names that this server is asked by, besides addresses if `any_address`; a rebound DNS name is none.
        port: of the server.
        any_address: whether any IP address as a Host is one of ours: when it listens on all.
    """

    def __init__(self, app: ASGIApp, *, token: str, hosts: Collection[str], port: int, any_address: bool = False):
        self._app, self._token, self._port, self._any_address = app, token, port, any_address
        self._hosts = {host.lower() for host in hosts}
        self.cookie = f"simclr_hub_{port}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer an HTTP request, or pass it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # no web sockets
            return
        if refusal := self._refusal(scope):
            await refusal(scope, receive, with_headers(send))
            return
        most = UPLOAD if scope["path"] == "/api/uploads" else BODY
        await self._app(scope, limited(receive, most), with_headers(send))

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        hosts = headers.getlist("host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return _refused(421, "this server is not known by that name")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != hosts[0].lower():
            return _refused(403, "other pages may not ask this server")
        opened = scope["path"] == "/" and scope["method"] in ("GET", "HEAD")
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none") and not opened:
            return _refused(403, "other pages may not ask this server")
        query = parse_qs(scope["query_string"].decode("latin-1"))
        if opened and "token" in query:
            if not self._is_token(query.pop("token")[-1]):
                return _refused(403, "this is not the token of this server; open the address that it printed")
            response = RedirectResponse("/" + (f"?{urlencode(query, doseq=True)}" if query else ""), 303)
            response.set_cookie(self.cookie, self._token, httponly=True, samesite="strict", path="/")
            return response
        kind, _, given = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return None
        if not self._is_token(_cookie(headers, self.cookie)):
            return _refused(403, "open the address that `simclr-hub browse` printed: it holds the token")
        return None

    def _is_token(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self._token.encode())

    def _is_ours(self, host: str) -> bool:
        try:
            parts = urlsplit(f"//{host.lower()}")
            name, port = parts.hostname or "", parts.port or 80
        except ValueError:
            return False
        if port != self._port or parts.path or parts.username is not None:
            return False
        if name in self._hosts:
            return True
        try:
            return self._any_address and bool(ipaddress.ip_address(name))
        except ValueError:
            return False


def _cookie(headers: Headers, name: str) -> str:
    try:
        found = SimpleCookie("; ".join(headers.getlist("cookie"))).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _refused(status: int, why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status, {"connection": "close"})


def with_headers(send: Send) -> Send:
    """Return `send` which adds `HEADERS`, and that nothing is kept by others."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("cache-control", "no-store")
        await send(message)

    return sending


def limited(receive: Receive, most: int) -> Receive:
    """Return `receive` which gives up on bodies that are too large, or do not come."""
    taken = 0
    done = False

    async def receiving() -> Message:
        nonlocal taken, done
        if done:  # what follows is that the client leaves, for which one waits
            return await receive()
        try:
            with anyio.fail_after(PATIENCE):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, "nothing came for too long", {"connection": "close"}) from None
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            done = not message.get("more_body", False)
            if taken > most:
                raise HTTPException(413, f"this is larger than {most:,} bytes", {"connection": "close"})
        return message

    return receiving
