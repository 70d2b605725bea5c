"""Labels in the page: by ids, least sure first, exported as the command does."""

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
from browse_client import Client
from tiny import SAMPLE_PHOTOS

from simclr_hub import SimilarityIndex


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for name in ("cat", "banana"):
        for number in (1, 2, 3):
            (folder / name).mkdir(parents=True, exist_ok=True)
            shutil.copy(SAMPLE_PHOTOS / f"{name}_{number}.jpg", folder / name)
    shutil.copy(SAMPLE_PHOTOS / "cat_1.jpg", folder / "=cat.jpg")
    return folder


def by_name(client: Client) -> dict[str, str]:
    return {one["name"]: one["id"] for one in client.get("/api/photos?sort=folder").json()["photos"]}


def labelled(client: Client, **examples: list[str]) -> dict[str, Any]:
    ids = by_name(client)
    answer = client.post(
        "/api/label", {"examples": {name: [ids[one] for one in some] for name, some in examples.items()}}
    )
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json()
    return found


def test_examples_by_id_label_the_rest(client: Client, index: SimilarityIndex, photos: Path) -> None:
    found = labelled(client, cat=["cat_1.jpg", "cat_2.jpg"], banana=["banana_1.jpg", "banana_2.jpg"])
    assert [one["name"] for one in found["classes"]] == ["cat", "banana"]
    assert sum(one["photos"] for one in found["classes"]) == 7
    assert sum(one["examples"] for one in found["classes"]) == 5  # one is there twice
    page = client.get(f"/api/label/{found['result']}/photos").json()
    assert page["total"] == 7
    assert [one["example"] for one in page["photos"]] == [False] * 2 + [True] * 5
    confidences = [one["confidence"] for one in page["photos"][:2]]
    assert confidences == sorted(confidences)
    expected = {
        one.path: one.label
        for one in index.label(
            {
                "cat": [photos / "cat" / "cat_1.jpg", photos / "cat" / "cat_2.jpg"],
                "banana": [photos / "banana" / "banana_1.jpg", photos / "banana" / "banana_2.jpg"],
            }
        ).labels
    }
    assert {f"{one['folder']}/{one['name']}": one["label"] for one in page["photos"]} == expected
    cats = client.get(f"/api/label/{found['result']}/photos?of=cat&sort=sure&limit=1").json()
    assert cats["total"] == found["classes"][0]["photos"] and len(cats["photos"]) == 1
    rows = list(csv.DictReader(client.get(f"/api/label/{found['result']}/export").body.decode().splitlines()))
    assert {row["path"]: row["label"] for row in rows} == expected
    parquet = client.get(f"/api/label/{found['result']}/export?kind=parquet")
    assert parquet.body.startswith(b"PAR1") and "attachment" in parquet.headers["content-disposition"]


def test_what_cannot_be_labelled_is_told(client: Client) -> None:
    ids = by_name(client)
    cat, banana = ids["cat_1.jpg"], ids["banana_1.jpg"]
    for examples, status in (
        ({"cat": [cat]}, 422),
        ({"cat": [cat], "banana": []}, 422),
        ({"cat": [cat], "banana": [cat]}, 422),
        ({"cat": [cat], "banana": ["0" * 80]}, 404),
        ({"cat": [cat], "": [banana]}, 422),
        ({"cat": [cat], "x" * 300: [banana]}, 422),
    ):
        assert client.post("/api/label", {"examples": examples}).status == status, examples
    assert client.get("/api/label/nothing/photos").status == 404
    found = labelled(client, cat=["cat_1.jpg"], banana=["banana_1.jpg"])
    assert client.get(f"/api/label/{found['result']}/photos?of=dog").status == 404
