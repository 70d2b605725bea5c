"""A real S3 server (SeaweedFS) on 127.0.0.1, and a proxy before it that answers 500 and 503 and cuts connections."""

import http.client
import json
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

KEY, SECRET = "testkey", "testsecret"


def weed() -> str | None:
    """The server's program, if it is installed."""
    return shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")


def _ports(count: int) -> list[int]:
    """Free ports whose gRPC ports, 10,000 above, are free, too."""
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(20_000, 50_000)
        with suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            found.append(port)
    return found


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Run a server in a folder; its address, such as 127.0.0.1:8333."""
    actions = ["Admin", "Read", "Write", "List", "Tagging"]
    identity = {"name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": actions}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = _ports(4)
    words = [weed() or "weed", "server", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={folder}", "-filer", "-s3"]
    words += [f"-master.port={master}", f"-volume.port={volume}", f"-filer.port={filer}", f"-s3.port={s3}"]
    words += [f"-s3.config={folder / 's3.json'}", "-volume.max=100", "-master.volumeSizeLimitMB=64"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
    try:
        end = time.monotonic() + 90
        while not _answers(s3):
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError((folder / "log").read_text(errors="replace")[-2000:])
            time.sleep(0.2)
        yield f"127.0.0.1:{s3}"
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException), closing(connection):
        connection.request("GET", "/")
        return connection.getresponse().status in (200, 403)
    return False


class Faults:
    """What goes wrong: shares of the requests, drawn with a seed; `told` counts what did."""

    def __init__(self) -> None:
        self.share, self.random, self.told = 0.0, random.Random(0), Counter[str]()
        self.lock = threading.Lock()

    def draw(self) -> str:
        with self.lock:
            kind = self.random.choice(["500", "503", "cut", "drop"]) if self.random.random() < self.share else ""
            self.told[kind or "passed"] += 1
            return kind


@contextmanager
def proxy(behind: str, faults: Faults) -> Iterator[str]:
    """Stand before a server; the address of the proxy."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"  # which says 100 Continue
        timeout = 2  # of a connection that nobody uses

        def log_message(self, *_: object) -> None:
            pass

        def _pass(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            while self.headers.get("Transfer-Encoding") == "chunked":  # passed on as it came
                size = self.rfile.readline()
                rest = self.rfile.read(int(size.partition(b";")[0], 16) + 2)
                body += size + rest
                if rest == b"\r\n":
                    break
            kind = faults.draw()
            if kind == "drop":  # as if the request had never come
                self.close_connection = True
                return
            if kind in ("500", "503"):
                self.send_response(int(kind))
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            connection = http.client.HTTPConnection(behind, timeout=30)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():  # the host, too, which is signed
                if name.lower() not in ("expect", "connection"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            data = answer.read()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            if self.command != "HEAD" and not answer.getheader("Content-Length"):
                self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if kind == "cut":  # of a PUT after it was done
                self.wfile.write(data[: len(data) // 2])
                self.wfile.flush()
                self.close_connection = True
            else:
                self.wfile.write(data)
            connection.close()

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _pass  # noqa: N815

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # On closing it waits for its threads, each of which ends with its connection.
    listening.daemon_threads = False
    listening.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that has gone
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        thread.join()
        listening.server_close()
