"""A local copy of the bucket's layout on 127.0.0.1, with faults to order.

Faults, each for the n-th request from now that matches `path`, and as often as `times` says:
    404, 429, 500, ...   that status
    "cut"                half of what was asked for arrives, then the connection is closed
    "drop"               the connection is closed without an answer
    "stall"              half arrives, then nothing more for longer than the client waits
    "flip"               one bit differs
    "longer", "shorter"  the size told is not that of the file
    "no-range"           the whole file, whatever part was asked for
    "later-range"        a part that begins later than the one that was asked for
    "half-range"         half of the part that was asked for
    "kill", "kill-half"  the client is killed before the answer, or when half of it has been sent
"""

import base64
import hashlib
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import google_crc32c
import numpy as np
import tf_writer
import torch
from official_graph import OfficialGraph


@dataclass
class Fault:
    kind: str | int
    path: str = ""
    at: int = 0
    times: int = 1
    retry_after: str = ""


class Bucket:
    """`files` by their path below the host; `requests` that came, as ("GET /path", Range or "")."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.hashes = True  # whether x-goog-hash is told
        self.etags = True
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.client_pid: Callable[[], int] = lambda: 0
        self.lock = threading.Lock()
        self.closed = threading.Event()
        self.url = ""

    def put(self, location: str, folder: Path) -> None:
        """Serve the checkpoint in `folder`, beside what must never be asked for."""
        others = ("graph.pbtxt", "model.ckpt-1.meta", "hub/saved_model.pb")
        self.files |= {f"/{location}/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}
        self.files |= {f"/{location}/{name}": b"never" for name in others}

    def order(self, kind: str | int, path: str = "", *, at: int = 0, times: int = 1, retry_after: str = "") -> None:
        self.faults.append(Fault(kind, path, at, times, retry_after))

    def asked(self) -> list[str]:
        """The last part of each path that was asked for."""
        return [request.rpartition("/")[2] for request, _ in self.requests]

    def fault(self, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if re.search(fault.path, path):
                    fault.at -= 1
                    if fault.at < 0 and fault.times:
                        fault.times -= 1
                        return fault
        return None


def checkpoint(folder: Path, config, step: int, ema: bool = False) -> OfficialGraph:
    """Write the checkpoint of a random network, with what else TensorFlow stores beside its weights."""
    graph = OfficialGraph(config, num_classes=config.num_labels)
    graph(torch.rand(1, 3, 40, 40))
    other = {"global_step": np.array(step)} | {f"{k}/Momentum": v for k, v in graph.drawn.items() if "/kernel" in k}
    if ema:
        other |= {f"ema_model/{k}": v * 2 for k, v in graph.drawn.items() if "head_supervised" not in k}
    tf_writer.write_bundle(folder / f"model.ckpt-{step}", graph.drawn | other)
    return graph


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    bucket: Bucket

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        bucket = self.bucket
        asked = self.headers.get("Range", "")
        with bucket.lock:
            bucket.requests.append((f"GET {self.path}", asked))
        fault = bucket.fault(self.path)
        kind = fault.kind if fault else ""
        if kind == "kill":
            os.kill(bucket.client_pid(), signal.SIGKILL)
        if kind in ("kill", "drop"):
            self.close_connection = True
            return
        content = bucket.files.get(self.path)
        if isinstance(kind, int) or content is None:
            self.send_response(kind if isinstance(kind, int) else 404)
            if fault and fault.retry_after:
                self.send_header("Retry-After", fault.retry_after)
            self.send_header("Content-Length", "5")
            self.end_headers()
            self.wfile.write(b"error")
            return
        start, size = 0, len(content)
        if asked and kind != "no-range":
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
            if start >= size:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{size}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        if kind == "later-range":
            start = (start + size) // 2
        body = content[start : (start + size) // 2 if kind == "half-range" else size]
        lie = {"longer": 9, "shorter": -9}.get(str(kind), 0)
        told = len(body) + lie
        self.send_response(206 if asked and kind != "no-range" else 200)
        if asked and kind != "no-range":
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{size + lie}")
        self.send_header("Content-Length", str(told))
        if bucket.etags:
            self.send_header("ETag", f'"{hashlib.md5(content).hexdigest()}"')
        if bucket.hashes:
            crc = google_crc32c.value(content).to_bytes(4, "big")
            for name, digest in (("crc32c", crc), ("md5", hashlib.md5(content).digest())):
                self.send_header("x-goog-hash", f"{name}={base64.b64encode(digest).decode()}")
        self.end_headers()
        if kind == "flip":
            body = bytearray(body)
            body[len(body) // 2] ^= 1
        half = len(body) // 2
        if kind in ("cut", "stall", "kill-half"):
            self.wfile.write(body[:half])
            self.wfile.flush()
            if kind == "kill-half":
                threading.Event().wait(0.05)  # until it has been written
                os.kill(bucket.client_pid(), signal.SIGKILL)
            elif kind == "stall":
                bucket.closed.wait(30)
        else:
            self.wfile.write(body[:told])
        if kind:
            self.close_connection = True


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that was killed or gave up


@contextmanager
def bucket_server() -> Iterator[Bucket]:
    """Serve an empty bucket until the block ends."""
    bucket = Bucket()
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"bucket": bucket}))
    bucket.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield bucket
    finally:
        bucket.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()
