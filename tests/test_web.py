import socket
import ssl
import subprocess
import time
import traceback
import tracemalloc

import pytest
from image_server import serving
from photo_formats import encoded, smooth

from simclr_hub import embed, errors, web
from simclr_hub.images import load_image
from simclr_hub.web import fetch, is_public, is_url

PHOTO = encoded(smooth(), "PNG")


@pytest.fixture(scope="module")
def server():
    with serving(PHOTO) as (base, handler):
        yield base, handler


@pytest.fixture
def as_public(monkeypatch):
    """Let 127.0.0.1 pass for a public address, so that what comes after can be tested."""
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")


def test_what_is_a_url():
    assert is_url("http://a/b") and is_url("HTTPS://a/b")
    for other in ("file:///etc/passwd", "ftp://a/b", "a.jpg", "http:/a", b"http://a", None, "httpx://a"):
        assert not is_url(other)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "224.0.0.1", "239.1.1.1", "255.255.255.255", "240.0.0.1", "198.18.0.1", "192.0.2.1",
        "::1", "::", "fe80::1", "fe80::1%lo", "fc00::1", "fd12::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1",
        "64:ff9b::127.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::8.8.8.8",
        "2002:7f00:1::", "2002:808:808::1", "2001:0:53aa:64c::1", "2600::5efe:10.0.0.1", "2600::200:5efe:10.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450:4001::1", "64:ff9b::8.8.8.8"])
def test_addresses_that_are(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "LOCALHOST.", "127.1", "2130706433", "0x7f.1", "0x7f000001", "0177.0.0.1", "0",
        "[::1]", "[::ffff:127.0.0.1]", "[0:0:0:0:0:ffff:7f00:1]", "[64:ff9b::7f00:1]", "[2002:7f00:1::]",
        "\uff11\uff12\uff17.0.0.1", "127\u30020\u30020\u30021",
    ],
)  # fmt: skip
def test_spellings_of_this_machine_are_refused(host, server):
    base, handler = server
    handler.seen.clear()
    with pytest.raises(errors.UnreadableImageError):
        fetch(f"http://{host}:{base.rpartition(':')[2]}/photo.png")
    assert not handler.seen


def test_a_name_that_leads_to_both_is_refused(server, monkeypatch):
    base, handler = server
    handler.seen.clear()
    port = int(base.rpartition(":")[2])
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(errors.UnreadableImageError, match="127.0.0.1 is not a public address.*allow_private"):
        fetch(f"http://example.org:{port}/photo.png")
    assert not handler.seen


def test_the_name_is_looked_up_once_and_the_connection_goes_there(server, monkeypatch):
    """A second look-up would lead elsewhere: DNS rebinding."""
    base, handler = server
    port, lookups = int(base.rpartition(":")[2]), []

    def once(host, port, **_):
        lookups.append(host)
        assert len(lookups) == 1
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", once)
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1")
    handler.seen.clear()
    assert fetch(f"http://photos.example:{port}/photo.png?size=%20big one") == PHOTO
    assert handler.seen == [("/photo.png?size=%20big%20one", f"photos.example:{port}")]


def test_the_host_header_leaves_out_the_scheme_s_own_port(server, monkeypatch):
    base, handler = server
    port = int(base.rpartition(":")[2])
    address = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: address)
    monkeypatch.setattr(web, "is_public", lambda _: True)
    handler.seen.clear()
    fetch("http://b\u00fccher.example/photo.png")
    assert handler.seen == [("/photo.png", "xn--bcher-kva.example")]


def test_private_addresses_when_they_are_asked_for(server):
    base, _ = server
    assert fetch(f"{base}/photo.png", allow_private=True) == PHOTO
    assert fetch(f"{base}/to-photo", allow_private=True) == PHOTO
    assert fetch(f"{base}/gzip.png", allow_private=True) == PHOTO
    assert fetch(f"{base}/deflate.png", allow_private=True) == PHOTO
    assert fetch(base.replace("http", "HTTP") + "/photo.png", allow_private=True) == PHOTO


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/none.png", "404 Not Found"),
        ("/odd.png", "the server answered 599"),
        ("/brotli.png", "encoding"),
        ("/cut.png", "before the end"),
        ("/cut-gzip.png", "before the end"),
        ("/broken-gzip.png", "header"),
        ("/empty.png", "empty"),
        ("/to-itself", "more than 5 redirects"),
        ("/to-file", "only http and https"),
        ("/to-junk", "IPv6"),
        ("/junk", ""),
        ("/header-bomb", ""),
    ],
)
def test_what_servers_do_wrong_is_named(path, reason, server):
    base, _ = server
    with pytest.raises(errors.UnreadableImageError, match=f"{base}{path}: .*{reason}"):
        fetch(base + path, allow_private=True, seconds=10)


def test_as_many_redirects_as_are_allowed_and_one_more(server, monkeypatch):
    base, handler = server
    for n in range(1, 8):
        monkeypatch.setitem(handler.pages, f"/{n}", lambda h, n=n: h.redirect(f"/{n - 1}" if n > 1 else "/photo.png"))
    assert fetch(f"{base}/{web.MAX_REDIRECTS}", allow_private=True) == PHOTO
    with pytest.raises(errors.UnreadableImageError, match=f"more than {web.MAX_REDIRECTS} redirects"):
        fetch(f"{base}/{web.MAX_REDIRECTS + 1}", allow_private=True)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_every_kind_of_redirect_is_followed(status, server, monkeypatch):
    base, handler = server
    monkeypatch.setitem(handler.pages, "/moved", lambda h: h.answer(b"", status=status, Location="photo.png"))
    assert fetch(f"{base}/moved", allow_private=True) == PHOTO


def test_each_redirect_is_checked_again(server, monkeypatch):
    base, handler = server
    port = int(base.rpartition(":")[2])
    monkeypatch.setattr(web, "is_public", lambda address: address == "127.0.0.1" and not handler.seen)
    handler.seen.clear()
    with pytest.raises(errors.UnreadableImageError, match="127.0.0.1 is not a public address"):
        fetch(f"http://127.0.0.1:{port}/to-loopback")
    assert [path for path, _ in handler.seen] == ["/to-loopback"]


def test_limits_of_size(server, as_public):
    base, _ = server
    assert fetch(f"{base}/photo.png", max_bytes=len(PHOTO)) == PHOTO
    for path in ("/large.png", "/bomb.png"):
        with pytest.raises(errors.ImageTooLargeError, match="more than 4,999 bytes"):
            fetch(base + path, max_bytes=4999)
    tracemalloc.start()
    try:
        with pytest.raises(errors.ImageTooLargeError):
            fetch(f"{base}/bomb.png", max_bytes=1 << 18)  # 8 KB as sent, 8 MB unpacked
        assert tracemalloc.get_traced_memory()[1] < 4 << 20  # it was not unpacked to the end
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("path", ["/slow-body", "/slow-headers", "/silent"])
def test_slow_servers_end_at_the_total_time(path, server, as_public):
    base, _ = server
    started = time.monotonic()
    with pytest.raises(errors.UnreadableImageError, match="not read within 0.4 s"):
        fetch(base + path, seconds=0.4)
    assert time.monotonic() - started < 2


def test_a_connection_that_is_not_answered_ends_too(as_public):
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))  # not listening: refused
        with pytest.raises(errors.UnreadableImageError, match="refused"):
            fetch(f"http://127.0.0.1:{listening.getsockname()[1]}/a.png", seconds=1)
        listening.listen()
        for scheme in ("http", "https"):
            with pytest.raises(errors.UnreadableImageError, match="not read within|timed out"):
                fetch(f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/a.png", seconds=0.3)


@pytest.mark.parametrize(
    "url",
    [
        "http://", "http:///a.png", "http://user:secret@8.8.8.8/a.png", "http://a:99999/", "http://a:x/", "http://[::1",
        "https://a b/", "http://a\r\nb/", "http://\x00/", "http://" + "a" * 300, "http://.../", "http://a/" + "\ud800",
    ],
)  # fmt: skip
def test_urls_that_make_no_sense(url, monkeypatch):
    def no_network(host, *_, **__):
        host.encode("ascii")
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    with pytest.raises(errors.UnreadableImageError) as caught:
        fetch(url)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600


def test_messages_hide_what_may_be_a_secret(server):
    base, _ = server
    with pytest.raises(errors.UnreadableImageError) as caught:
        fetch(f"{base}/none.png?token=secret", allow_private=True)
    assert "secret" not in str(caught.value) and "none.png?..." in str(caught.value)


def test_https_checks_the_certificate_and_names_the_host(tmp_path, monkeypatch):
    names = []
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-days", "9", "-subj", "/CN=photos.example",
         "-addext", "subjectAltName=DNS:photos.example", "-out", certificate,
         "-keyout", key],
        check=True, capture_output=True,
    )  # fmt: skip
    with serving(PHOTO) as (base, handler):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        context.sni_callback = lambda _, name, __: names.append(name)
        original = handler.setup

        def setup(self):
            self.request = context.wrap_socket(self.request, server_side=True)
            original(self)

        handler.setup = setup
        handler.finish = lambda self: self.request.close()
        port = int(base.rpartition(":")[2])
        address = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: address)
        monkeypatch.setattr(web, "is_public", lambda _: True)
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(web, "_tls", lambda: trusting)
        assert fetch("https://photos.example/photo.png") == PHOTO
        assert names == ["photos.example"]
        assert handler.seen == [("/photo.png", "photos.example")]  # without the port, which is https's own
        with pytest.raises(errors.UnreadableImageError, match="(?i)certificate"):
            fetch("https://other.example/photo.png")
        monkeypatch.setattr(web, "_tls", ssl.create_default_context)
        with pytest.raises(errors.UnreadableImageError, match="(?i)certificate"):
            fetch("https://photos.example/photo.png")


def test_a_url_is_an_image_where_images_are_taken(server, as_public, tiny_model):
    base, _ = server
    assert load_image(f"{base}/photo.png").content_hash == load_image(PHOTO).content_hash
    assert embed(f"{base}/photo.png", model=tiny_model).shape == (1, 256)
    assert embed([f"{base}/to-photo", PHOTO], model=tiny_model).shape == (2, 256)
    with pytest.raises(errors.UnsupportedImageError, match="text.png: not an image"):
        load_image(f"{base}/text.png")


def test_a_data_set_s_rows_are_not_followed_to_the_network(server, as_public):
    base, handler = server
    handler.seen.clear()
    with pytest.raises(errors.UnreadableImageError, match="URL"):
        load_image({"bytes": None, "path": f"{base}/photo.png"})
    assert not handler.seen


def test_what_is_sent_is_limited_too_where_it_unpacks_to_nothing(server, monkeypatch):
    base, handler = server
    empty = b"\x1f\x8b\x08" + bytes(7) + b"\0\0\0\xff\xff" * 4000 + b"\1\0\0\xff\xff" + bytes(8)

    def page(h):
        h.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nConnection: close\r\n\r\n" + empty)
        h.close_connection = True

    monkeypatch.setitem(handler.pages, "/nothing.png", page)
    with pytest.raises(errors.ImageTooLargeError, match="more than 10,000 bytes"):
        fetch(f"{base}/nothing.png", allow_private=True, max_bytes=10_000)
    with pytest.raises(errors.UnreadableImageError, match="empty"):
        fetch(f"{base}/nothing.png", allow_private=True)


@pytest.mark.parametrize("who", ["user", ":secret", "user:secret"])
def test_no_url_with_a_name_or_a_password_is_read(who, as_public, server):
    base, _ = server
    with pytest.raises(errors.UnreadableImageError, match="user name or password"):
        fetch(base.replace("//", f"//{who}@") + "/photo.png")


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("http://user:s3cr3t@127.0.0.1/a.png", "user name or password"),
        ("http://user:s3cr3t/a@127.0.0.1/a.png", "no URL that can be read"),
        ("http://[::1?s3cr3t", "no URL that can be read"),
        ("http://127.0.0.1:s3cr3t/", "no URL that can be read"),
        ("//user:s3cr3t@127.0.0.1/a.png", "user name or password"),
        ("ftp://user:s3cr3t@127.0.0.1/a.png", "only http and https are read, not ftp"),
        ("/none.png?s3cr3t#s3cr3t", "404 Not Found"),
    ],
)
def test_no_secret_of_a_redirect_is_told(location, reason, server, monkeypatch):
    base, handler = server
    monkeypatch.setitem(handler.pages, "/moved", lambda h: h.redirect(location))
    with pytest.raises(errors.UnreadableImageError, match=f"{base}/moved: .*{reason}") as caught:
        fetch(f"{base}/moved", allow_private=True)
    assert "s3cr3t" not in "".join(traceback.format_exception(caught.value))


def test_a_part_of_an_image_is_not_the_image(server, monkeypatch):
    base, handler = server
    monkeypatch.setitem(handler.pages, "/part.png", lambda h: h.answer(PHOTO, status=206))
    with pytest.raises(errors.UnreadableImageError, match="answered 206 Partial Content"):
        fetch(f"{base}/part.png", allow_private=True)
