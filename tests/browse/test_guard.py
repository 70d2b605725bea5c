"""Who may ask the server of `browse`, and how much."""

import os
import socket
import threading
import time
from pathlib import Path

import pytest
from browse_client import Client

from simclr_hub import SimilarityIndex
from simclr_hub.browse import guard, server
from simclr_hub.browse.server import is_loopback, serving
from simclr_hub.errors import OutputError


def test_nothing_is_told_without_the_token(asked: Client) -> None:
    for path in ("/", "/api/state", "/api/photos", "/static/app.js", "/api/openapi.json", "/nothing"):
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Cookie": f"simclr_hub_{asked.address.port}=wrong"}):
            answer = asked.raw("GET", path, {"Host": asked.host, **headers})
            assert answer.status == 403 and b"token" in answer.body, path
    assert asked.raw("GET", "/?token=wrong", {"Host": asked.host}).status == 403
    assert asked.raw("POST", "/api/search", {"Host": asked.host}, b"{}").status == 403


def test_the_address_gives_a_cookie_that_no_script_and_no_other_site_gets(asked: Client) -> None:
    answer = asked.raw("GET", f"/?token={asked.address.token}", {"Host": asked.host})
    assert answer.status == 303 and answer.headers["location"] == "/"  # the token is out of the address bar
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie
    given = {"Host": asked.host, "Cookie": cookie.split(";")[0]}
    assert asked.raw("GET", "/", given).status == 200
    assert asked.raw("GET", "/api/state", given).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1", "127.0.0.1:1", "localhost:{port}.evil", ""]
)
def test_a_foreign_name_is_refused_even_with_the_token(asked: Client, host: str) -> None:
    named = host.format(port=asked.address.port)
    answer = asked.raw("GET", "/api/state", {"Host": named, "Authorization": f"Bearer {asked.address.token}"})
    assert answer.status in (400, 421)


def test_two_hosts_or_none_are_refused(asked: Client) -> None:
    assert asked.raw("GET", "/api/state", {"Authorization": f"Bearer {asked.address.token}"}).status in (400, 421)
    hosts = f"Host: {asked.host}\r\nHost: evil\r\n"
    request = f"GET / HTTP/1.1\r\n{hosts}Authorization: Bearer {asked.address.token}\r\n\r\n"
    with socket.create_connection((asked.address.host, asked.address.port), timeout=10) as connection:
        connection.sendall(request.encode())
        assert connection.recv(64).split()[1] in (b"400", b"421")


@pytest.mark.parametrize("name", ["Origin", "origin"])
@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://127.0.0.1"])
def test_other_pages_may_not_ask(asked: Client, name: str, origin: str) -> None:
    for method, path in (("GET", "/api/state"), ("POST", "/api/search"), ("OPTIONS", "/api/search")):
        answer = asked.ask(method, path, b"{}" if method == "POST" else None, **{name: origin})
        assert answer.status == 403
        assert not any(header.startswith("access-control") for header in answer.headers)


def test_a_page_of_its_own_may(asked: Client) -> None:
    assert asked.get("/api/state", Origin=f"http://{asked.host}", Sec_Fetch_Site="same-origin").status == 200
    assert asked.get("/api/state", Sec_Fetch_Site="cross-site").status == 403
    assert asked.get("/api/state", Sec_Fetch_Site="same-site").status == 403  # another port of this machine


def test_everything_says_what_a_page_may_load(asked: Client) -> None:
    for answer in (
        asked.get("/"),
        asked.get("/api/state"),
        asked.get("/static/app.js"),
        asked.raw("GET", "/", {"Host": asked.host}),
    ):
        for name, value in guard.HEADERS.items():
            assert answer.headers[name] == value
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert "server" not in answer.headers


STATIC = sorted(server.STATIC.iterdir())


@pytest.mark.parametrize("file", STATIC, ids=lambda file: file.name)
def test_the_page_loads_nothing_from_elsewhere_and_reads_no_text_as_html(file: Path) -> None:
    text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in text and "https:" not in text and "//cdn" not in text
    for risk in (
        "innerHTML",
        "outerHTML",
        "insertAdjacentHTML",
        "document.write",
        "eval(",
        "new Function",
        'style="',
        "onclick=",
    ):
        assert risk not in text


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/..%2fserver.py",
        "/static/%2e%2e/server.py",
        "/static/....//server.py",
        "/static//etc/passwd",
        "/api/photos/..%2f..%2fetc%2fpasswd/original",
        "/api/photos/%2fetc%2fpasswd/original",
        "/api/photos/" + "0" * 80 + "/original",
        "/api/photos/" + "g" * 80 + "/original",
        "/api/photos/x%00y/thumbnail",
        "/api/uploads/..%2f/thumbnail",
        "//etc/passwd",
    ],
)
def test_no_path_of_a_client_leads_anywhere(asked: Client, path: str) -> None:
    answer = asked.get(path)
    assert answer.status in (404, 405) and b"root:" not in answer.body and b"import" not in answer.body


def test_a_file_that_became_a_link_or_something_else_is_not_served(client: Client, photos: Path) -> None:
    found = client.get("/api/photos?sort=folder&limit=1").json()["photos"][0]
    path = Path(found["folder"]) / found["name"]
    assert client.get(f"/api/photos/{found['id']}/original").body == path.read_bytes()
    path.unlink()
    path.symlink_to("/etc/hostname")
    for what in ("original", "thumbnail", "view"):
        assert client.get(f"/api/photos/{found['id']}/{what}").status == 422
    path.unlink()
    os.mkfifo(path)
    for what in ("original", "thumbnail", "view"):
        assert client.get(f"/api/photos/{found['id']}/{what}").status == 422
    path.unlink()
    path.write_bytes(b"<script>alert(1)</script>")
    answer = client.get(f"/api/photos/{found['id']}/original")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment")


def test_a_body_that_is_too_large_is_refused(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY", 1000)
    monkeypatch.setattr(guard, "UPLOAD", 3000)
    assert client.post("/api/search", {"like": ["x" * 2000]}).status == 413
    assert client.ask("POST", "/api/uploads", b"x" * 4000).status == 413
    assert client.ask("POST", "/api/uploads", b"x" * 2000).status == 422  # no photo, but taken
    assert client.get("/api/state").status == 200


def test_a_body_without_an_announced_length_is_counted(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "UPLOAD", 3000)
    # No more than the limit takes: who goes on sending to a server that has refused may lose its answer.
    with client.connect() as connection:
        connection.sendall(
            f"POST /api/uploads HTTP/1.1\r\nHost: {client.host}\r\nAuthorization: Bearer {client.address.token}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )
        for _ in range(4):
            connection.sendall(b"3E8\r\n" + b"x" * 1000 + b"\r\n")
        assert connection.recv(64).split()[1] == b"413"


def test_a_slow_client_costs_nobody_else_anything_and_is_left(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PATIENCE", 0.5)
    slow = client.connect()
    slow.sendall(
        f"POST /api/uploads HTTP/1.1\r\nHost: {client.host}\r\nAuthorization: Bearer {client.address.token}\r\n"
        "Content-Length: 1000\r\n\r\nx".encode()
    )
    began = time.monotonic()
    assert client.get("/api/state").status == 200
    assert slow.recv(64).split()[1] == b"408" and time.monotonic() - began < 10
    slow.close()


def test_a_thousand_requests_at_once_are_answered(asked: Client) -> None:
    request = (
        f"GET /api/photos?limit=1 HTTP/1.1\r\nHost: {asked.host}\r\nAuthorization: Bearer {asked.address.token}\r\n"
    )
    connections = [asked.connect() for _ in range(200)]
    for connection in connections:  # five on each, so that a process may have 1,024 open files
        connection.sendall((4 * f"{request}\r\n" + f"{request}Connection: close\r\n\r\n").encode())
    for connection in connections:
        with connection, connection.makefile("rb") as answers:
            assert answers.read().count(b"HTTP/1.1 200 OK") == 5


def test_other_machines_need_a_token_that_was_chosen(index: SimilarityIndex) -> None:
    with pytest.raises(OutputError, match="--token"), serving(index, host="0.0.0.0"):
        pass
    for token in ("short", "ä" * 20, "x" * 15 + "\n", "x" * 16 + "&", "x" * 16 + ";"):
        with pytest.raises(ValueError, match="16 or more"), serving(index, token=token):
            pass
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.2") and not is_loopback("example.org")


def test_a_port_in_use_is_told(index: SimilarityIndex) -> None:
    with serving(index) as address:
        with pytest.raises(OutputError, match="another --port"), serving(index, port=address.port):
            pass


def test_the_server_ends_while_clients_hold_on(index: SimilarityIndex) -> None:
    before = set(threading.enumerate())
    with serving(index) as address:
        held = socket.create_connection((address.host, address.port))
        began = time.monotonic()
    assert time.monotonic() - began < 2.5
    held.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "simclr-browse"]


def test_no_answer_waits_for_the_acknowledgement_of_its_headers() -> None:
    with server.listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
