"""An image's URL to its bytes, from public addresses only, within limits of size and time; no proxies, no cookies."""

import http.client
import io
import ipaddress
import socket
import ssl
import time
import zlib
from functools import lru_cache
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from ._text import printable, shown_url
from .errors import ImageError, ImageTooLargeError, UnreadableImageError

#: Of one image, after decompression.
MAX_BYTES = 1 << 27
#: For one image, redirects included; looking up a host's name may take longer.
SECONDS = 30.0
MAX_REDIRECTS = 5

_CHUNK = 1 << 16
_UNICAST = ipaddress.ip_network("2000::/3")  # outside are loopback, private, link-local and IPv4 in other clothes
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_ISATAP = 0x5EFE


def is_url(source: Any) -> bool:
    """Tell whether this is the text of an http or https URL."""
    return isinstance(source, str) and source[:8].lower().startswith(("http://", "https://"))


def fetch(url: str, *, allow_private: bool = False, max_bytes: int = MAX_BYTES, seconds: float = SECONDS) -> bytes:
    """Fetch the bytes behind a URL.

    Args:
        url: http or https.
        allow_private: also connect to addresses of this machine and of local networks.
        max_bytes: of the body, as sent and after decompression.
        seconds: for everything; a slow server does not get more by sending a byte now and then.

    Raises:
        UnreadableImageError: an address that is not public, no connection, another status than 200, cut short, or
            too slow.
        ImageTooLargeError: more than `max_bytes`.
    """
    name = shown_url(url)
    cause: Exception | None = None
    try:
        return _fetch(url, name, allow_private, max_bytes, time.monotonic() + seconds)
    except ImageError:
        raise
    except TimeoutError as e:
        reason, cause = f"not read within {seconds:g} s", e
    except _NotPublic as e:
        reason, cause = f"{e}; if it may be read, pass simclr_hub.web.fetch(url, allow_private=True)", e
    except _Refused as e:
        reason, cause = str(e), e
    except (OSError, zlib.error) as e:
        reason, cause = printable(str(getattr(e, "strerror", None) or e or type(e).__name__))[:200], e
    except http.client.HTTPException as e:
        reason = f"the server does not speak HTTP as it should ({type(e).__name__})"
    except ValueError:
        reason = "no URL that can be read: its host, port or IPv6 address is not valid"
    # Raised here, and the last two without their cause, whose text may hold a part of the URL: a password, a token.
    raise UnreadableImageError(f"{name}: {reason}") from cause


def _fetch(url: str, name: str, allow_private: bool, max_bytes: int, deadline: float) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        parts = _split(url)
        connection, sock = _connect(parts, allow_private, deadline)
        with sock:
            connection.request("GET", _target(parts), headers={"Accept": "*/*", "User-Agent": "simclr-hub"})
            response = connection.getresponse()
            location = response.headers.get("Location")
            if response.status in (301, 302, 303, 307, 308) and location:
                url = urljoin(url, location)
                continue
            if response.status != 200:
                raise UnreadableImageError(f"{name}: the server answered {_status(response.status)}")
            return _body(response, max_bytes, name)
    raise UnreadableImageError(f"{name}: more than {MAX_REDIRECTS} redirects")


def is_public(address: str) -> bool:
    """Tell whether an IP address is one of the public internet, also where it holds an IPv4 address inside."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in _NAT64:  # how a network without IPv4 reaches the rest
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        tunnel = ip.sixtofour or ip.teredo or int(ip) >> 32 & 0xFDFFFFFF == _ISATAP
        return ip in _UNICAST and ip.is_global and not tunnel
    return ip.is_global and not ip.is_multicast


class _Refused(ValueError):
    """Say that a URL is not read, in words that hold nothing of it but its scheme."""


class _NotPublic(_Refused):
    """An address that only `allow_private` lets through."""


def _split(url: str) -> SplitResult:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise _Refused(f"only http and https are read, not {printable(parts.scheme) or 'this'}")
    if parts.username is not None or parts.password is not None:
        raise _Refused("a URL with a user name or password is not read")
    if not parts.hostname:
        raise _Refused("a URL without a host")
    return parts


def _target(parts: SplitResult) -> str:
    """Return what is asked of the host; what a URL may not hold is escaped, what is escaped already is kept."""
    safe = "/%:@!$&'()*+,;=~-._"
    path, query = quote(parts.path, safe=safe) or "/", quote(parts.query, safe=safe + "?[]|")
    return f"{path}?{query}" if query else path


def _connect(
    parts: SplitResult, allow_private: bool, deadline: float
) -> tuple[http.client.HTTPConnection, socket.socket]:
    """Connect to an address that was checked; also return the socket, to be closed at the end."""
    # The name is looked up once, every address found is checked, and the connection goes to one of these, so that no
    # second look-up can lead elsewhere; each redirect begins anew.
    host = cast(str, parts.hostname)
    if not host.isascii():
        host = host.encode("idna").decode()
    default = 443 if parts.scheme == "https" else 80
    found = socket.getaddrinfo(host, parts.port or default, type=socket.SOCK_STREAM)
    for *_, address in found:
        if not allow_private and not is_public(str(address[0])):
            raise _NotPublic(f"{address[0]} is not a public address")
    connection = http.client.HTTPConnection(host, parts.port or default)
    connection.default_port = default  # which the Host header leaves out
    sock = _open(found, parts.scheme, host, deadline)
    connection.sock = cast(socket.socket, _Timed(sock, deadline))
    return connection, sock


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


def _open(found: list[Any], scheme: str, host: str, deadline: float) -> socket.socket:
    failure: OSError = OSError("the host has no address")
    for family, kind, protocol, _, address in found:
        plain = socket.socket(family, kind, protocol)
        try:
            plain.settimeout(_left(deadline))
            plain.connect(address)
            if scheme == "http":
                return plain
            plain.settimeout(_left(deadline))
            return _tls().wrap_socket(plain, server_hostname=host)
        except OSError as e:
            plain.close()
            if _is_over(deadline):
                raise TimeoutError from e
            failure = e
    raise failure


def _body(response: http.client.HTTPResponse, max_bytes: int, name: str) -> bytes:
    """Read the whole body, decompressed, never holding more than `max_bytes` and a chunk."""
    too_large = ImageTooLargeError(f"{name}: more than {max_bytes:,} bytes")
    announced = response.length
    if announced is not None and announced > max_bytes:
        raise too_large
    encoding = (response.headers.get("Content-Encoding") or "identity").strip().lower()
    if encoding not in ("identity", "gzip", "x-gzip", "deflate"):
        raise UnreadableImageError(f"{name}: sent in an encoding that was not asked for")
    inflate = None if encoding == "identity" else zlib.decompressobj(47 if "gzip" in encoding else zlib.MAX_WBITS)
    body, received = bytearray(), 0
    while chunk := response.read(_CHUNK):
        received += len(chunk)
        if inflate:
            chunk = inflate.decompress(chunk, max_bytes + 1 - len(body))
        body += chunk
        if received > max_bytes or len(body) > max_bytes:
            raise too_large
    if (announced is not None and received < announced) or (inflate and not inflate.eof):
        raise UnreadableImageError(f"{name}: the connection was closed before the end")
    if not body:
        raise UnreadableImageError(f"{name}: empty")
    return bytes(body)


class _Timed:
    """A socket that ends at a time, however little it was silent: what `http.client` uses of one."""

    def __init__(self, sock: socket.socket, deadline: float):
        self._sock, self._deadline = sock, deadline

    def sendall(self, data: bytes) -> None:
        self._sock.settimeout(_left(self._deadline))
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_TimedReader(self._sock, self._deadline))

    def close(self) -> None:
        """Do nothing: `http.client` calls this when it has the headers of a connection that ends with the body."""


class _TimedReader(io.RawIOBase):
    def __init__(self, sock: socket.socket, deadline: float):
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


def _left(deadline: float) -> float:
    if _is_over(deadline):
        raise TimeoutError
    return deadline - time.monotonic()


def _is_over(deadline: float) -> bool:
    return time.monotonic() >= deadline


def _status(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
