"""A client of `browse` that asks as a program or as a browser does."""

import http.client
import json
import socket
import time
from dataclasses import dataclass
from typing import Any

from simclr_hub.browse.server import Address

#: Names that a file may have.
HOSTILE = (
    "<img src=x onerror=alert(1)>.png",
    "'\"><svg onload=alert(1)>.png",
    "new\nline\r\nX-Injected: yes.png",
    "\u202egnp.exe.png",
    "tab\t\x1b[31mred.png",
    "%2e%2e%2f..;?a=b#c.png",
    "\udcff\udcfe.png",
    "名前 ünïcode 🦊.png",
)


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Asks a server; every request is one connection."""

    def __init__(self, address: Address):
        self.address = address

    def raw(self, method: str, path: str, headers: dict[str, str], body: bytes | None = None) -> Answer:
        """Ask with these headers and no others but Content-Length."""
        connection = http.client.HTTPConnection(self.address.host, self.address.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    @property
    def host(self) -> str:
        return f"{self.address.host}:{self.address.port}"

    def connect(self) -> socket.socket:
        """Return a connection on which nothing was said yet."""
        return socket.create_connection((self.address.host, self.address.port), timeout=20)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        """Ask as a program that knows the token."""
        known = {"Host": self.host, "Authorization": f"Bearer {self.address.token}"}
        return self.raw(method, path, known | {k.replace("_", "-"): v for k, v in headers.items()}, body)

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, **headers)

    def post(self, path: str, values: Any = None) -> Answer:
        return self.ask("POST", path, json.dumps(values or {}).encode(), Content_Type="application/json")


def wait_for_job(client: Client, name: str) -> dict[str, Any]:
    """Wait until a job has ended; return what it came to."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        job: dict[str, Any] = client.get("/api/state").json()["jobs"].get(name, {"state": "running"})
        if job["state"] != "running":
            return job
        time.sleep(0.02)
    raise TimeoutError(name)
