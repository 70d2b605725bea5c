"""A local HTTP server of images, and of what hostile servers do; for tests, on the loopback address alone."""

import gzip
import http.server
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers by path; `pages` maps one to a function of this handler."""

    protocol_version = "HTTP/1.1"
    pages: dict[str, Callable[["Handler"], None]] = {}
    seen: list[tuple[str, str | None]] = []

    def do_GET(self) -> None:
        self.seen.append((self.path, self.headers["Host"]))
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            self.send_error(404)
        else:
            page(self)

    def answer(self, body: bytes, *, status: int = 200, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self, location: str) -> None:
        self.answer(b"", status=302, Location=location)

    def drip(self, *, in_headers: bool) -> None:
        """A byte now and then, for a minute."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"X: " if in_headers else b"Content-Length: 100000\r\n\r\n"))
        for _ in range(600):
            self.wfile.write(b"x")
            self.wfile.flush()
            time.sleep(0.1)

    def log_message(self, *args: object) -> None:
        """Silence."""

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:
            pass  # the client went away


@contextmanager
def serving(image: bytes) -> Iterator[tuple[str, type[Handler]]]:
    """The server's address, and the class of its handler, with what it saw."""

    class Here(Handler):
        seen: list[tuple[str, str | None]] = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Here)
    base = f"http://127.0.0.1:{server.server_port}"
    bomb = gzip.compress(bytes(8 << 20))
    Here.pages = {
        "/photo.png": lambda h: h.answer(image),
        "/gzip.png": lambda h: h.answer(gzip.compress(image), Content_Encoding="gzip"),
        "/deflate.png": lambda h: h.answer(zlib.compress(image), Content_Encoding="deflate"),
        "/bomb.png": lambda h: h.answer(bomb, Content_Encoding="gzip"),
        "/brotli.png": lambda h: h.answer(b"?", Content_Encoding="br"),
        "/cut.png": lambda h: h.answer(image[:50], length=len(image), Connection="close"),
        "/cut-gzip.png": lambda h: h.answer(gzip.compress(image)[:-20], Content_Encoding="gzip"),
        "/broken-gzip.png": lambda h: h.answer(b"no gzip", Content_Encoding="gzip"),
        "/large.png": lambda h: h.answer(bytes(5000)),
        "/empty.png": lambda h: h.answer(b""),
        "/text.png": lambda h: h.answer(b"just text"),
        "/odd.png": lambda h: h.answer(b"", status=599),
        "/to-photo": lambda h: h.redirect("/photo.png"),
        "/to-itself": lambda h: h.redirect("/to-itself"),
        "/to-file": lambda h: h.redirect("file:///etc/passwd"),
        "/to-loopback": lambda h: h.redirect(f"{base}/photo.png"),
        "/to-junk": lambda h: h.redirect("http://[::1"),
        "/slow-body": lambda h: h.drip(in_headers=False),
        "/slow-headers": lambda h: h.drip(in_headers=True),
        "/silent": lambda h: time.sleep(30),
        "/junk": lambda h: h.wfile.write(b"\0\1\2 junk\r\n\r\n") and None,
        "/header-bomb": lambda h: (
            h.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: " + b"x" * 100_000 + b"\r\n\r\n") and None
        ),
    }
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield base, Here
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
