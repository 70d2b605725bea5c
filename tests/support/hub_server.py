"""A local Hub on 127.0.0.1: repositories, commits, LFS and downloads for the real huggingface_hub client.

Kept in memory, served by a thread. A commit is applied whole under a lock or refused, as on the Hub. Clients are told
of it through HF_ENDPOINT, which is read at import, so they are processes of their own: see hub_client.py.

Faults to order, each for the n-th request from now or for paths that match:
    404, 429, 500, ...   that status, the request is not carried out
    "drop"               the connection is closed before the request is carried out
    "lost"               it is carried out, the answer never arrives
    "cut"                it is carried out, half of the answer arrives
    "flip"               a bit changes in what is uploaded or downloaded
    "kill", "kill-after" the client is killed before or after the request is carried out
"""

import base64
import hashlib
import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

#: The one token that may write, and read what is private.
TOKEN = "hf_" + "LocalHubTestToken" * 2


class Refused(Exception):
    """An answer other than 200: status, the Hub's error code, message."""

    def __init__(self, status: int, code: str = "", message: str = "", **body: Any):
        super().__init__(message or code)
        self.status, self.code, self.body = status, code, body


@dataclass(frozen=True)
class Blob:
    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.data)}\n"
        data = pointer.encode() if self.lfs else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    id: str
    title: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    id: str
    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, Commit] = field(default_factory=dict)  # in order

    def add(self, branch: str, title: str, files: Mapping[str, Blob]) -> str:
        content = [(path, blob.etag) for path, blob in sorted(files.items())]
        id = hashlib.sha1(f"{self.branches.get(branch)} {len(self.commits)} {title} {content}".encode()).hexdigest()
        self.commits[id] = Commit(id, title, dict(files))
        self.branches[branch] = id
        return id

    def at(self, revision: str) -> Commit:
        id = self.branches.get(revision, revision)
        if id not in self.commits:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return self.commits[id]


@dataclass
class Fault:
    kind: str | int
    at: int = 0  # counts requests that match `path`
    path: str = ""
    times: int = 1


class Hub:
    """The state, the faults that are ordered, and the requests that came: `requests` holds "METHOD /path"."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}  # LFS, by SHA-256
        self.lfs = True  # False: every file is regular
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.client_pid: Callable[[], int] = lambda: 0
        self.watch: Callable[[str], object] = lambda request: None  # is told each request before it is carried out
        self.lock = threading.RLock()
        self.url = ""

    def head(self, repo: str, revision: str = "main") -> Commit:
        return self.repos[repo].at(revision)

    def next_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            self.requests.append(f"{method} {path}")
            self.watch(self.requests[-1])
            for fault in self.faults:
                if re.search(fault.path, path):
                    fault.at -= 1
                    if fault.at < 0 and fault.times > 0:
                        fault.times -= 1
                        return fault
        return None

    def answer(self, method: str, url: str, headers: Mapping[str, str], body: bytes) -> tuple[int, dict, bytes]:
        """(status, headers, body) of one request."""
        path, query = urlsplit(url).path.replace("/api/models/", "/api/", 1), parse_qs(urlsplit(url).query)
        allowed = headers.get("Authorization") == f"Bearer {TOKEN}"
        for methods, pattern, handle in ROUTES:
            match = re.fullmatch(pattern, path)
            if not match or method not in methods:
                continue
            given: dict[str, Any] = {k: unquote(value) for k, value in match.groupdict().items() if value is not None}
            repo_id = given.pop("id", None)
            with self.lock:
                try:
                    if method == "POST" and not allowed:
                        raise Refused(401, message="Invalid username or password.")
                    if repo_id:
                        repo = self.repos.get(repo_id)
                        if repo is None or (repo.private and not allowed):
                            raise Refused(404 if allowed else 401, "RepoNotFound", "Repository not found")
                        given["repo"] = repo
                    result = handle(self, body=body, query=query, headers=headers, **given)
                except Refused as e:
                    extra = {"X-Error-Code": e.code, "X-Error-Message": str(e)} if e.code else {}
                    return e.status, extra, json.dumps({"error": str(e), **e.body}).encode()
            return result if isinstance(result, tuple) else (200, {}, json.dumps(result).encode())
        return 404, {}, b'{"error": "no such endpoint"}'


def create(hub: Hub, body: bytes, **_: Any) -> Any:
    asked = json.loads(body)
    prefix = "datasets/" if asked.get("type") == "dataset" else ""
    id = f"{prefix}{asked['organization']}/{asked['name']}"
    url = f"{hub.url}/{id}"
    if id in hub.repos:
        raise Refused(409, message="You already created this model repo", url=url)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))  # the newer and the older client
    hub.repos[id] = Repo(id, private)
    hub.repos[id].add("main", "initial commit", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)})
    return {"url": url, "id": id, "name": id}


def validate_yaml(hub: Hub, body: bytes, **_: Any) -> Any:
    content = json.loads(body)["content"]
    match = re.match(r"---\n(.*?)\n---\n", content, re.S)
    try:
        good = isinstance(yaml.safe_load(match[1]) if match else None, dict)
    except yaml.YAMLError:
        good = False
    if not good:
        raise Refused(400, message="invalid", errors=[{"message": "no valid YAML at the top"}])
    return {"errors": [], "warnings": []}


def preupload(hub: Hub, body: bytes, repo: Repo, rev: str, **_: Any) -> Any:
    files, present = [], repo.at(rev).files
    for file in json.loads(body)["files"]:
        mode = "lfs" if hub.lfs and file["path"].endswith(".safetensors") else "regular"
        blob = present.get(file["path"])
        oid = {"oid": blob.etag} if blob and blob.lfs == (mode == "lfs") else {}
        files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, **oid})
    return {"files": files}


def lfs_batch(hub: Hub, body: bytes, **_: Any) -> Any:
    objects = []
    for wanted in json.loads(body)["objects"]:
        actions = {"upload": {"href": f"{hub.url}/lfs/{wanted['oid']}"}, "verify": {"href": f"{hub.url}/lfs-verify"}}
        objects.append({**wanted, **({} if wanted["oid"] in hub.objects else {"actions": actions})})
    return {"transfer": "basic", "objects": objects}


def lfs_put(hub: Hub, body: bytes, oid: str, **_: Any) -> Any:
    if hashlib.sha256(body).hexdigest() != oid:
        raise Refused(400, message="BadDigest: the content does not match its SHA-256")
    hub.objects[oid] = body
    return {}


def lfs_verify(hub: Hub, body: bytes, **_: Any) -> Any:
    asked = json.loads(body)
    if len(hub.objects.get(asked["oid"], b"")) != asked["size"]:
        raise Refused(404, message="object not found")
    return {}


def commit(hub: Hub, body: bytes, repo: Repo, rev: str, **_: Any) -> Any:
    header, *operations = [json.loads(line) for line in body.splitlines()]
    if rev not in repo.branches:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {rev}")
    if header["value"].get("parentCommit", repo.branches[rev]) != repo.branches[rev]:
        raise Refused(412, message="A commit has happened since. Please refresh and try again.")
    files = dict(repo.at(rev).files)
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        if kind == "file":
            files[value["path"]] = Blob(base64.b64decode(value["content"]), False)
        elif kind == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refused(400, message=f"LFS object {value['oid']} was never uploaded")
            files[value["path"]] = Blob(hub.objects[value["oid"]], True)
        elif kind == "deletedFile" and value["path"] in files:
            del files[value["path"]]
        else:
            raise Refused(400, message=f"cannot {kind} {value.get('path')}")
    id = repo.add(rev, header["value"]["summary"], files)
    return {"success": True, "commitOid": id, "commitUrl": f"{hub.url}/{repo.id}/commit/{id}", "hookOutput": ""}


def branch(hub: Hub, body: bytes, repo: Repo, rev: str, **_: Any) -> Any:
    if rev in repo.branches:
        raise Refused(409, message=f"Reference already exists: {rev}")
    repo.branches[rev] = repo.at(json.loads(body or b"{}").get("startingPoint", "main")).id
    return {}


def info(hub: Hub, repo: Repo, query: dict, rev: str = "main", **_: Any) -> Any:
    found = repo.at(rev)
    siblings = [
        {"rfilename": path} | ({"size": len(b.data), "blobId": b.git_oid} if "blobs" in query else {})
        for path, b in found.files.items()
    ]
    return {"id": repo.id, "sha": found.id, "private": repo.private, "tags": [], "siblings": siblings}


def tree(hub: Hub, repo: Repo, rev: str, **_: Any) -> Any:
    entries = []
    for path, blob in sorted(repo.at(rev).files.items()):
        lfs = {"lfs": {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}} if blob.lfs else {}
        entries.append({"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid, **lfs})
    return entries


def resolve(hub: Hub, repo: Repo, rev: str, path: str, headers: Mapping[str, str], **_: Any) -> Any:
    found = repo.at(rev)
    if path not in found.files:
        raise Refused(404, "EntryNotFound", "Entry not found")
    blob = found.files[path]
    given = {"ETag": f'"{blob.etag}"', "X-Repo-Commit": found.id, "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("Range", ""))
    if not wanted:
        return 200, given, blob.data
    part = blob.data[int(wanted[1]) : int(wanted[2]) + 1 if wanted[2] else None]
    given["Content-Range"] = f"bytes {wanted[1]}-{int(wanted[1]) + len(part) - 1}/{len(blob.data)}"
    return 206, given, part


_ID = r"(?P<id>(?:datasets/)?[^/]+/[^/]+)"
_REV = r"(?P<rev>[^/]+)"
ROUTES: list[tuple[str, str, Callable[..., Any]]] = [  # after "/api/models/" became "/api/"
    ("POST", "/api/repos/create", create),
    ("POST", "/api/validate-yaml", validate_yaml),
    ("POST", f"/api/{_ID}/preupload/{_REV}", preupload),
    ("POST", rf"/{_ID}\.git/info/lfs/objects/batch", lfs_batch),
    ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", lfs_put),
    ("POST", "/lfs-verify", lfs_verify),
    ("POST", f"/api/{_ID}/commit/{_REV}", commit),
    ("POST", f"/api/{_ID}/branch/{_REV}", branch),
    ("GET", f"/api/{_ID}(?:/revision/{_REV})?", info),
    ("GET", f"/api/{_ID}/tree/{_REV}", tree),
    ("GET HEAD", f"/{_ID}/resolve/{_REV}/(?P<path>.+)", resolve),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def _serve(self) -> None:
        hub, body = self.hub, self._body()
        fault = hub.next_fault(self.command, urlsplit(self.path).path)
        kind = fault.kind if fault else None
        if isinstance(kind, int):
            return self._send(kind, {}, b'{"error": "ordered"}')
        if kind == "kill":
            os.kill(hub.client_pid(), signal.SIGKILL)
        if kind in ("kill", "drop"):
            return self._hang_up()
        if kind == "flip" and self.command == "PUT":
            body = _flipped(body)
        status, headers, answer = hub.answer(self.command, self.path, self.headers, body)
        if kind == "kill-after":
            os.kill(hub.client_pid(), signal.SIGKILL)
        if kind in ("kill-after", "lost"):
            return self._hang_up()
        if kind == "flip" and self.command == "GET":
            answer = _flipped(answer)
        self._send(status, headers, answer, keep=len(answer) // 2 if kind == "cut" else None)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _send(self, status: int, headers: Mapping[str, str], body: bytes, keep: int | None = None) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:keep])
        if keep is not None:
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def _flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@contextmanager
def serve() -> Iterator[Hub]:
    """A running hub, empty."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
