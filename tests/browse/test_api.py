"""The API: searches, uploads, files, jobs, and what hostile photos make of it."""

import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from browse_client import HOSTILE, Client, wait_for_job
from index.index_fakes import FakeEmbedder, expected_vector, make_photo
from PIL import Image

from simclr_hub import SimilarityIndex
from simclr_hub.browse import api, pictures
from simclr_hub.browse.server import serving
from simclr_hub.index.store import Store


def by_name(client: Client, **values: str) -> dict[str, dict[str, Any]]:
    """Return all photos by their names."""
    query = "".join(f"&{key}={value}" for key, value in values.items())
    return {photo["name"]: photo for photo in client.get(f"/api/photos?limit=1000{query}").json()["photos"]}


def found(client: Client, **request: Any) -> list[tuple[str, float]]:
    answer = client.post("/api/search", request)
    assert answer.status == 200, answer.body
    return [(match["name"], match["score"]) for match in answer.json()["matches"]]


def test_a_photo_finds_the_others_and_not_itself(client: Client, photos: Path) -> None:
    ids = by_name(client)
    query = expected_vector(photos / "0.jpg")
    others = [path for path in photos.rglob("*.*") if path.name != "0.jpg"]
    expected = sorted(((path.name, float(query @ expected_vector(path))) for path in others), key=lambda one: -one[1])
    got = found(client, like=[ids["0.jpg"]["id"]])
    assert [name for name, _ in got] == [name for name, _ in expected]
    np.testing.assert_allclose([score for _, score in got], [score for _, score in expected], atol=1e-5)


def test_likes_and_unlikes_are_those_of_the_index(client: Client, index: SimilarityIndex, photos: Path) -> None:
    ids = by_name(client)
    like, unlike = ["0.jpg", "1.jpg"], ["2.jpg", "3.jpg"]
    request = {"like": [ids[name]["id"] for name in like], "unlike": [ids[name]["id"] for name in unlike]}
    matches = index.search([photos / n for n in like], negative=[photos / n for n in unlike], negative_weight=2.0)
    assert found(client, **request, weight=2.0) == [
        (Path(match.path).name, pytest.approx(match.score, abs=1e-5)) for match in matches
    ]
    assert not {name for name, _ in found(client, **request)} & {*like, *unlike}
    below = found(client, like=request["like"], filters={"folder": str(photos / "below")})
    assert {name for name, _ in below} == {"4.png", "5.png"}
    none = client.post("/api/search", {"like": request["like"], "filters": {"camera": "never made"}}).json()
    assert none["matches"] == [] and none["reasons"]


def test_what_no_search_can_be_made_of_is_told(client: Client) -> None:
    known = by_name(client)["0.jpg"]["id"]
    assert client.post("/api/search", {"like": []}).status == 422
    assert client.post("/api/search", {"like": ["0" * 80]}).status == 404
    assert client.post("/api/search", {"like": [known], "unlike": ["upload-" + "0" * 32]}).status == 404
    assert client.post("/api/search", {"like": [known], "k": 10**6}).status == 422
    assert client.post("/api/search", {"like": [known] * 1000}).status == 422
    for filters in ({"folder": "/x", "path": "y"}, {"taken_from": "June"}, {"path": "["}, {"min_side": -1}):
        assert client.post("/api/search", {"like": [known], "filters": filters}).status in (200, 422), filters
    assert client.get("/api/photos?path=a/b&folder=/x").status == 422
    assert client.get("/api/photos?sort=nothing").status == 422
    assert client.ask("POST", "/api/search", b'{"like": [', Content_Type="application/json").status == 422
    assert client.ask("POST", "/api/search", b"[" * 100_000, Content_Type="application/json").status in (400, 422)


def test_an_upload_is_searched_for_and_kept_in_memory_only(client: Client, photos: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    upload = client.ask("POST", "/api/uploads", (photos / "2.jpg").read_bytes()).json()["id"]
    name, score = found(client, like=[upload])[0]
    assert name == "2.jpg" and score == pytest.approx(1, abs=1e-5)
    assert {name for name, _ in found(client, like=[upload], unlike=[by_name(client)["3.jpg"]["id"]])} >= {"2.jpg"}
    small = client.get(f"/api/uploads/{upload}/thumbnail")
    assert small.headers["content-type"] == "image/jpeg" and Image.open(io.BytesIO(small.body)).size == (52, 40)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "data", [b"", b"no photo", b"\xff\xd8\xff", b"<svg onload='alert(1)'/>", b"\x89PNG\r\n\x1a\n"]
)
def test_an_upload_that_is_no_photo_is_refused(client: Client, data: bytes) -> None:
    answer = client.ask("POST", "/api/uploads", data)
    assert answer.status == 422 and "dropped photo" in answer.json()["detail"]


def test_old_uploads_are_forgotten(client: Client, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "UPLOADS", 2)
    ids = [client.ask("POST", "/api/uploads", (photos / f"{n}.jpg").read_bytes()).json()["id"] for n in range(3)]
    assert client.post("/api/search", {"like": ids[:1]}).status == 404
    assert client.post("/api/search", {"like": ids[1:]}).status == 200
    assert client.get(f"/api/uploads/{ids[0]}/thumbnail").status == 404


def test_originals_come_whole_or_in_ranges(client: Client, photos: Path) -> None:
    data = (photos / "0.jpg").read_bytes()
    path = f"/api/photos/{by_name(client)['0.jpg']['id']}/original"
    assert client.get(path).body == data and client.get(path).headers["content-type"] == "image/jpeg"
    for asked, body in (("bytes=0-9", data[:10]), ("bytes=5-", data[5:]), ("bytes=-7", data[-7:])):
        part = client.get(path, Range=asked)
        assert part.status == 206 and part.body == body, asked
    several = client.get(path, Range="bytes=0-1,5-6")
    assert several.status == 206 and several.headers["content-type"].startswith("multipart/byteranges")
    assert client.get(path, Range="bytes=999999-").status == 416
    assert client.get(path, Range="bytes=9-1").status in (200, 400, 416)


def test_what_changed_or_went_is_never_shown_as_what_was_indexed(client: Client, photos: Path) -> None:
    ids = by_name(client)
    make_photo(photos / "0.jpg", 7)
    (photos / "1.jpg").unlink()
    for name, why in (("0.jpg", "changed"), ("1.jpg", "1.jpg")):
        for what in ("thumbnail", "view", "quality"):
            answer = client.get(f"/api/photos/{ids[name]['id']}/{what}")
            assert answer.status == 422 and why in answer.json()["detail"], (name, what)
        assert client.get(f"/api/photos/{ids[name]['id']}").status == 200  # what is known of it
    assert client.get(f"/api/photos/{ids['1.jpg']['id']}/original").status == 422


def test_a_copy_stands_in_for_a_photo_that_went(client: Client, index: SimilarityIndex, photos: Path) -> None:
    (photos / "copy.jpg").write_bytes((photos / "0.jpg").read_bytes())
    index.sync(photos)
    wanted = by_name(client)["0.jpg"]["id"]
    assert [copy["name"] for copy in client.get(f"/api/photos/{wanted}").json()["copies"]] == ["copy.jpg"]
    (photos / "0.jpg").unlink()
    assert client.get(f"/api/photos/{wanted}/view").status == 200


def test_thumbnails_are_of_the_content_kept_elsewhere_and_tidied(
    client: Client, index: SimilarityIndex, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    kept = pictures.Thumbnails([photos])
    kept._folder = cache
    ids, before = by_name(client), sorted(photos.rglob("*"))
    content = bytes.fromhex(ids["0.jpg"]["id"][:64])
    other = bytes.fromhex(ids["1.jpg"]["id"][:64])
    first = kept.make(content, [str(photos / "0.jpg")])
    (file,) = cache.rglob("*.jpg")
    assert Image.open(io.BytesIO(first)).format == "JPEG" and file.read_bytes() == first
    assert kept.kept(content) == first  # from the cache
    with pytest.raises(pictures.ImageError, match="changed since"):
        kept.make(other, [str(photos / "0.jpg")])  # never another picture under its name
    file.write_bytes(first[: len(first) // 2])  # a crash
    assert kept.kept(content) is None and kept.make(content, [str(photos / "0.jpg")]) == first
    kept.make(other, [str(photos / "1.jpg")])
    (file.parent / "x.12ab").write_bytes(b"left by a crash")
    os.utime(file.parent / "x.12ab", (1, 1))
    os.utime(file, (1, 1))
    monkeypatch.setattr(pictures, "MOST_KEPT", len(first) + 500)
    kept.tidy()
    assert [one.stem for one in cache.rglob("*") if one.is_file()] == [other.hex()]  # that not used longest went
    assert sorted(photos.rglob("*")) == before

    monkeypatch.setenv("HF_ASSETS_CACHE", str(photos / "below"))
    monkeypatch.setattr("huggingface_hub.constants.HF_ASSETS_CACHE", str(photos / "below"))
    assert pictures.Thumbnails([photos]).make(content, [str(photos / "0.jpg")]) == first
    assert pictures.Thumbnails([photos]).tidy() == "no thumbnails are kept"
    assert sorted(photos.rglob("*")) == before


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Client]:
    folder = tmp_path / "<b>photos</b>"
    for seed, name in enumerate(HOSTILE):
        picture = Image.open(make_photo(folder / name, seed))
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = "<script>alert(1)</script>", "\x1b]0;x\x07 \u202e&lt;" + "A" * 5000
        picture.save(folder / name, "PNG", exif=exif)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as made:
        made.sync(folder)
        with serving(made) as address:
            yield Client(address)


def test_hostile_names_and_exif_are_text_that_any_page_can_show(hostile: Client) -> None:
    photos = list(by_name(hostile).values())
    assert len(photos) == len(HOSTILE)
    paths = ("photos", "groups?sort=camera", "groups?sort=folder", "state", *(f"photos/{p['id']}" for p in photos))
    for path in paths:
        answer = hostile.get(f"/api/{path}")
        assert answer.status == 200 and answer.headers["content-type"] == "application/json"

        def texts(value: Any) -> Iterator[str]:
            for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
                yield from texts(one)
            if isinstance(value, str):
                yield value

        for text in texts(answer.json()):
            assert all(c.isprintable() for c in text) and "\u202e" not in text and len(text) < 1000, text
    for photo in photos:
        for what in ("thumbnail", "view", "original"):
            answer = hostile.get(f"/api/photos/{photo['id']}/{what}")
            assert answer.status == 200 and "x-injected" not in answer.headers
        assert "\n" not in answer.headers["content-disposition"]


def test_every_documented_route_answers(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(click, "launch", lambda path, locate: opened.append(path) or 0)
    ids = [photo["id"] for photo in by_name(client).values()]
    upload = client.ask("POST", "/api/uploads", (client.get(f"/api/photos/{ids[0]}/original")).body).json()["id"]
    root = client.get("/api/state").json()["roots"][0]["id"]
    examples = {"examples": {"one": ids[:1], "two": ids[1:2]}}
    labels = client.post("/api/label", examples).json()["result"]
    bodies = {
        "/api/label": examples,
        "/api/search": {"like": ids[:2], "unlike": ids[2:3]},
        "/api/reveal": {"id": ids[0]},
        "/api/jobs/sync": {"root": root},
        "/api/duplicates/distinct": {"ids": ids[:2]},
    }
    routes = client.get("/api/openapi.json").json()["paths"]
    assert len(routes) > 18
    for path, methods in routes.items():
        for method, told in methods.items():
            assert told["description"].endswith("."), path
            named = path.replace("{photo}", ids[0]).replace("{upload_id}", upload).replace("{name}", labels)
            if method == "get":
                answer = client.get(named)
            elif path == "/api/uploads":
                continue  # above
            else:
                for nonsense in (b"", b"[]", b'"x"', b"\xff", b'{"like": 3, "id": [], "root": "x", "ids": {}}'):
                    wrong = client.ask("POST", named, nonsense, Content_Type="application/json")
                    assert wrong.status < 500, (path, nonsense, wrong.body)
                answer = client.post(named, bodies.get(path, {}))
            known = {"/api/duplicates/plan": 422}  # nothing is ticked
            assert answer.status == known.get(path, answer.status) and answer.status < 500, (path, answer.body)
            assert answer.status in (200, 409, 422), (path, answer.body)  # 409: runs already
    assert len(opened) == 1 and opened[0].endswith(("jpg", "png"))


def test_only_a_browser_of_this_machine_opens_folders(index: SimilarityIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(click, "launch", lambda *_, **__: pytest.fail("opened"))
    with serving(index, host="0.0.0.0", token="x" * 16) as address:
        asking = Client(address)
        asking.address = type(address)(address.url, "127.0.0.1", address.port, address.token)
        wanted = asking.get("/api/photos").json()["photos"][0]["id"]
        assert asking.post("/api/reveal", {"id": wanted}).status == 403
        assert asking.get("/api/state").json()["local"] is False


def test_a_sync_from_the_page_reads_recorded_folders_only(client: Client, photos: Path) -> None:
    make_photo(photos / "new.png", 8)
    (photos / "broken.jpg").write_bytes(b"no photo")
    (photos / "3.jpg").unlink()
    (root,) = client.get("/api/state").json()["roots"]
    assert root["path"] == str(photos) and client.post("/api/jobs/sync", {"root": root["id"] + 1}).status == 404
    assert client.post("/api/jobs/sync", {"root": root["id"]}).status == 200
    job = wait_for_job(client, "sync")
    assert job["state"] == "done" and "1 embedded" in job["message"] and "1 missing" in job["message"]
    assert {"new.png"} == set(by_name(client)) - {f"{n}.jpg" for n in range(4)} - {"4.png", "5.png"}
    found = client.get("/api/failures").json()
    (failure,) = found["photos"]
    assert found["total"] == 1 and failure["path"].endswith("broken.jpg") and failure["why"]
    assert client.get("/api/missing").json() == {"total": 1, "photos": [{"path": str(photos / "3.jpg")}]}


def test_lists_come_in_parts(client: Client, index: SimilarityIndex, photos: Path) -> None:
    names = sorted(path.name for path in photos.iterdir() if path.suffix in (".jpg", ".png"))
    for name in names:
        (photos / name).unlink()
    index.sync(photos)
    first = client.get("/api/missing?limit=4").json()
    rest = client.get("/api/missing?offset=4&limit=1000").json()
    assert first["total"] == rest["total"] == len(first["photos"]) + len(rest["photos"])
    assert [one["path"] for one in first["photos"] + rest["photos"]] == index.missing()
    assert client.get("/api/missing?offset=4&limit=0").status == 422


@pytest.mark.parametrize(
    "slow, ask",
    [
        ("failed", lambda client: client.get("/api/failures")),
        ("all_missing", lambda client: client.get("/api/missing")),
        ("counts", lambda client: client.get("/api/state")),
        ("photos", lambda client: client.post("/api/jobs/duplicates")),
        ("sample", lambda client: client.post("/api/jobs/map")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_reads_for_long_holds_nobody_up(
    client: Client, monkeypatch: pytest.MonkeyPatch, slow: str, ask: Callable[[Client], Any]
) -> None:
    began, go_on = threading.Event(), threading.Event()
    read = getattr(Store, slow)

    def slowly(*arguments: Any, **named: Any) -> Any:
        began.set()
        go_on.wait(60)  # longer than the client waits
        return read(*arguments, **named)

    wanted = client.get("/api/photos?limit=1").json()["photos"][0]["id"]
    monkeypatch.setattr(Store, slow, slowly)
    other = threading.Thread(target=ask, args=(client,))
    other.start()
    try:
        assert began.wait(20)
        for path in ("photos", "photos?sort=folder", f"photos/{wanted}"):
            assert client.get(f"/api/{path}").status == 200
        assert client.post("/api/search", {"like": [wanted]}).json()["matches"]
    finally:
        go_on.set()
        other.join()


def test_a_check_from_the_page(client: Client) -> None:
    assert client.post("/api/jobs/check").status == 200
    assert wait_for_job(client, "check")["message"] == "nothing is wrong with the index"


def test_a_sync_beside_is_seen(client: Client, index: SimilarityIndex, photos: Path, tmp_path: Path) -> None:
    before = client.get("/api/state").json()["version"]
    make_photo(photos / "new.png", 8)
    with SimilarityIndex.open(tmp_path / "photos.index", FakeEmbedder()) as beside:
        beside.sync(photos)
        beside.store.close()
    assert client.get("/api/state").json()["version"] != before
    new = by_name(client)["new.png"]["id"]
    assert client.get(f"/api/photos/{new}/thumbnail").status == 200 and found(client, like=[new])


def test_an_index_that_cannot_be_written(tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as made:
        made.sync(photos)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with SimilarityIndex.open(tmp_path / "i", FakeEmbedder()) as index, serving(index) as address:
        client = Client(address)
        assert client.get("/api/state").json()["read_only"] is True
        ids = [photo["id"] for photo in by_name(client).values()]
        assert found(client, like=ids[:1])
        client.post("/api/jobs/sync", {"root": client.get("/api/state").json()["roots"][0]["id"]})
        assert wait_for_job(client, "sync")["state"] == "failed"
        answer = client.post("/api/duplicates/distinct", {"ids": ids[:2]})
        assert 400 <= answer.status < 600 and "read" in answer.json()["detail"], answer.body


def test_two_clients_at_once_get_what_one_gets(client: Client) -> None:
    ids = [photo["id"] for photo in by_name(client).values()]
    asks = [f"/api/photos?sort={sort}&reverse={back}" for sort in ("date", "folder", "size") for back in (0, 1)]
    asks += [f"/api/photos/{one}/{what}" for one in ids for what in ("thumbnail", "view", "quality")]
    alone = [client.get(path).body for path in asks]
    with ThreadPoolExecutor(8) as pool:
        assert [answer.body for answer in pool.map(client.get, asks * 2)] == alone * 2


def test_a_browser_that_scrolled_on_costs_no_decoding(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def slow(*_: object) -> bytes:
        time.sleep(0.05)
        drawn.append(1)
        return b""

    monkeypatch.setattr(api, "view", slow)
    wanted = by_name(client)["0.jpg"]["id"]
    asked = f"GET /api/photos/{wanted}/view HTTP/1.1\r\nHost: {client.host}\r\n"
    for _ in range(60):
        with client.connect() as connection:
            connection.sendall(f"{asked}Authorization: Bearer {client.address.token}\r\n\r\n".encode())
    client.get(f"/api/photos/{wanted}/view")
    assert len(drawn) < 30


def test_answers_are_json_that_any_program_reads(client: Client) -> None:
    json.loads(client.get("/api/photos").body, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
