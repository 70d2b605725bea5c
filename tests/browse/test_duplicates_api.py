"""Groups, rules and ticks of duplicates, folders inside others, and the plan."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from browse_client import Client, wait_for_job
from index.index_fakes import FakeEmbedder, make_photo
from PIL import Image

from simclr_hub import SimilarityIndex
from simclr_hub.browse.duplicates import contained_folders


@pytest.fixture
def photos(photos: Path) -> Path:
    """Six photos, copies of four in backup/, and one of them re-encoded."""
    (photos / "backup").mkdir()
    for name in ("0.jpg", "1.jpg", "below/4.png"):
        shutil.copy(photos / name, photos / "backup")
    shutil.copy(photos / "0.jpg", photos / "0 again.jpg")
    Image.open(photos / "2.jpg").save(photos / "2 again.png")
    return photos


@pytest.fixture
def client(client: Client) -> Client:
    assert client.post("/api/duplicates").json()["found"] is False
    assert client.post("/api/jobs/duplicates").status == 200
    assert wait_for_job(client, "duplicates")["state"] == "done"
    return client


def groups(client: Client, **request: Any) -> list[dict[str, bool]]:
    """Return of each group which files would be moved, the one to keep first."""
    found = client.post("/api/duplicates", request).json()["groups"]
    return [{f"{Path(f['folder']).name}/{f['name']}": f["movable"] for f in group["files"]} for group in found]


def test_groups_by_tier_the_most_bytes_first(client: Client, photos: Path) -> None:
    size = {path.name: path.stat().st_size for path in photos.rglob("*.*")}
    expected = [
        (2 * size["0.jpg"], {"photos/0.jpg": False, "photos/0 again.jpg": True, "backup/0.jpg": True}),
        (size["1.jpg"], {"photos/1.jpg": False, "backup/1.jpg": True}),
        (size["4.png"], {"below/4.png": False, "backup/4.png": True}),
    ]
    assert groups(client, sort="bytes") == [files for _, files in sorted(expected, key=lambda pair: -pair[0])]
    answer = client.post("/api/duplicates", {"limit": 1, "offset": 1}).json()
    assert answer["total"] == 3 and len(answer["groups"]) == 1 and answer["folders"] == [] and not answer["stale"]
    assert answer["bytes"] == sum(saved for saved, _ in expected)
    (picture,) = groups(client, tier="same-picture")
    assert picture.keys() == {"photos/2 again.png", "photos/2.jpg"} and list(picture.values()) == [False, True]
    assert all(not movable for group in groups(client, tier="similar") for movable in group.values())
    assert client.post("/api/duplicates", {"tier": "other"}).status == 422


def test_rules_choose_what_stays(client: Client, photos: Path) -> None:
    kept = [next(iter(group)) for group in groups(client, prefer=[str(photos / "backup")])]
    assert sorted(kept) == ["backup/0.jpg", "backup/1.jpg", "backup/4.png"]
    moved = {name for group in groups(client, never_from=[str(photos / "backup")]) for name in group if group[name]}
    assert moved == {"photos/0.jpg", "photos/0 again.jpg", "photos/1.jpg", "below/4.png"}
    assert not any(any(group.values()) for group in groups(client, never_from=[str(photos)]))
    assert client.post("/api/duplicates", {"never_from": ["x" * 5000]}).status == 422


def test_ticks_outweigh_tiers(client: Client) -> None:
    files = [f for group in client.post("/api/duplicates").json()["groups"] for f in group["files"]]
    first = next(f["id"] for f in files if f["movable"])

    def number(**request: Any) -> int:
        count: int = client.post("/api/duplicates/summary", request).json()["files"]
        return count

    assert number() == 4 and number(tiers=["same-bytes", "same-picture"]) == 5 and number(tiers=[]) == 0
    assert number(ticks={first: False}) == 3 and number(tiers=[], ticks={first: True}) == 1
    kept = next(f["id"] for f in files if f["role"] == "keep")
    assert number(tiers=[], ticks={kept: True, "0" * 80: True}) == 0  # what stays cannot be ticked


def test_a_plan_moves_and_brings_back_byte_for_byte(client: Client, photos: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    target = tmp_path / "moved"
    answer = client.post("/api/duplicates/plan", {"target": str(target)})
    assert answer.headers["content-type"] == "text/plain; charset=utf-8" and not target.exists()
    (tmp_path / "plan.sh").write_bytes(answer.body)
    run = subprocess.run(["sh", "plan.sh"], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and "4 moved, 0 left alone" in run.stdout, run.stderr
    assert len([path for path in photos.rglob("*") if path.is_file()]) == len(before) - 4
    assert subprocess.run(["sh", "plan.sh", "undo"], cwd=tmp_path, capture_output=True).returncode == 0
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before
    assert client.post("/api/duplicates/plan", {"target": str(target), "kind": ".csv"}).body.startswith(b"move,to,")
    assert b"\nEach '" in client.post("/api/duplicates/plan", {"target": str(target), "kind": ".ps1"}).body


def test_what_no_plan_can_be_made_of_is_told(client: Client, photos: Path) -> None:
    for target, why in (
        ("", "whole path"),
        ("relative", "whole path"),
        (str(photos / "x"), "photo"),
        ("/x\0y", "path"),
    ):
        answer = client.post("/api/duplicates/plan", {"target": target})
        assert answer.status == 422 and why in answer.json()["detail"], target
    answer = client.post("/api/duplicates/plan", {"target": "/elsewhere", "tiers": []})
    assert answer.status == 422 and answer.json()["detail"] == "nothing is ticked"
    assert client.post("/api/duplicates/plan", {"target": "/elsewhere", "kind": ".exe"}).status == 422


def test_what_is_no_duplicate_stays_none(client: Client, index: SimilarityIndex) -> None:
    (group,) = client.post("/api/duplicates", {"tier": "same-picture"}).json()["groups"]
    ids = [file["id"] for file in group["files"]]
    assert client.post("/api/duplicates/distinct", {"ids": ids}).json() == {"recorded": 2}
    assert groups(client, tier="same-picture") == []
    assert client.post("/api/jobs/duplicates").status == 200
    wait_for_job(client, "duplicates")
    names = {Path(name).name for group in groups(client, tier="same-picture") for name in group}
    assert not {"2.jpg", "2 again.png"} <= names
    assert client.post("/api/duplicates/distinct", {"ids": [ids[0], "0" * 80]}).status == 404


def test_groups_of_before_a_sync_are_told(client: Client, index: SimilarityIndex, photos: Path) -> None:
    make_photo(photos / "new.png", 9)
    index.sync(photos)
    assert client.post("/api/duplicates").json()["stale"] is True


FOLDERS: dict[str, tuple[dict[str, list[int]], list[tuple[str, str, int]]]] = {
    "one in another": ({"a": [1, 2, 3], "b": [1, 2]}, [("b", "a", 2)]),
    "partly": ({"a": [1, 2, 3], "b": [1, 2, 4]}, []),
    "a single photo is no folder to tell of": ({"a": [1, 2, 3], "b": [1]}, []),
    "equal: the longer path goes": ({"a": [1, 2], "a copy": [1, 2]}, [("a copy", "a", 2)]),
    "three equal": ({"a": [1, 2], "b": [1, 2], "c": [1, 2]}, [("b", "a", 2), ("c", "a", 2)]),
    "nested: the uppermost": (
        {"a": [9], "a/x": [1, 2], "a/y": [3, 4], "old/x": [1, 2], "old/y": [3, 4]},
        [("old", "a", 4)],
    ),
    "inside a folder's own part is nothing": ({"a": [1, 2], "a/x": [1, 2]}, []),
    "a name that begins alike": ({"ab": [1, 2, 3], "a": [1, 2]}, [("a", "ab", 2)]),
    "in turn": ({"a": [1, 2, 3, 4], "b": [1, 2, 3], "c": [1, 2]}, [("b", "a", 3), ("c", "a", 2)]),
    "copies within": ({"a": [1, 2], "b": [1, 1, 2, 2]}, [("b", "a", 4)]),
    "spread over two": ({"a": [1, 2], "b": [3, 4], "c": [1, 3]}, []),
}


@pytest.mark.parametrize("case", FOLDERS)
def test_contained_folders(case: str, tmp_path: Path) -> None:
    tree, expected = FOLDERS[case]
    for folder, seeds in tree.items():
        for number, seed in enumerate(seeds):
            make_photo(tmp_path / "photos" / folder / f"{number}.png", seed)
    with SimilarityIndex.create(tmp_path / "i", FakeEmbedder()) as index:
        index.sync(tmp_path / "photos")
        found = contained_folders(index)
    root = tmp_path / "photos"
    told = [{"folder": str(root / a), "inside": str(root / b), "photos": number} for a, b, number in expected]
    assert sorted(found, key=str) == sorted(told, key=str)
