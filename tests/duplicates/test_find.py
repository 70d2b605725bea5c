import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from index_fakes import FakeEmbedder, tree_state
from PIL import Image
from tiny import SAMPLE_PHOTOS

from simclr_hub.duplicates.find import TIERS, DuplicateGroup, File, Tier, preference, why_kept
from simclr_hub.duplicates.thresholds import (
    CORRELATION_ALONE,
    THRESHOLDS_NAME,
    Thresholds,
    load_thresholds,
    unmeasured,
)
from simclr_hub.index import SimilarityIndex

NAMES = ("cat_1", "banana_1", "dress_1", "chess_1", "hat_2", "boat_1")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Six different photos."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in NAMES:
        shutil.copy(SAMPLE_PHOTOS / f"{name}.jpg", folder)
    return folder


def smaller(source: Path, target: Path, factor: float = 0.7, **options: object) -> Path:
    """A resized copy, as another file."""
    with Image.open(source) as image:
        size = (round(image.width * factor), round(image.height * factor))
        image.convert("RGB").resize(size).save(target, quality=80, **options)
    return target


def names(group: DuplicateGroup) -> list[tuple[str, str]]:
    return [(Path(m.path).name, m.tier) for m in (group.keep, *group.others)]


def certain(index: SimilarityIndex) -> list[DuplicateGroup]:
    """The groups but the similar ones."""
    return index.duplicates(["same-bytes", "same-picture"])


def test_nothing_is_found_in_nothing_and_in_different_photos(index: SimilarityIndex, photos: Path) -> None:
    assert index.duplicates() == []
    index.sync(photos)
    assert certain(index) == []


def test_exact_copies_keep_the_oldest(index: SimilarityIndex, photos: Path) -> None:
    copy = Path(shutil.copy(photos / "cat_1.jpg", photos / "a copy.jpg"))
    os.utime(photos / "cat_1.jpg", (1e9, 1e9))
    index.sync(photos)
    (group,) = index.duplicates(["same-bytes"])
    assert names(group) == [("cat_1.jpg", "same-bytes"), ("a copy.jpg", "same-bytes")]
    assert group.tier == "same-bytes" and group.why.startswith("the oldest: 2001")
    assert group.others[0].score == 1 and group.others[0].metadata["bytes"] == copy.stat().st_size


def test_the_same_picture_in_another_file(index: SimilarityIndex, photos: Path) -> None:
    smaller(photos / "cat_1.jpg", photos / "small.webp")
    shutil.copy(photos / "cat_1.jpg", photos / "exact.jpg")
    shutil.copy(photos / "small.webp", photos / "small too.webp")
    index.sync(photos)
    before = tree_state(photos)
    (group,) = certain(index)
    assert group.tier == "same-picture" and "most pixels: 192 x 128, the next has 134 x 90" in group.why
    assert {tier for name, tier in names(group) if "small" in name} == {"same-picture"}
    assert sorted(tier for name, tier in names(group) if "small" not in name) == ["same-bytes", "same-bytes"]
    assert all(CORRELATION_ALONE < m.score < 1 for m in group.others if m.tier == "same-picture")
    assert tree_state(photos) == before
    # The surest tier alone has the exact copies of both.
    assert [len(g.others) for g in index.duplicates(["same-bytes"])] == [1, 1]


def test_more_names_of_one_file_are_no_copies(index: SimilarityIndex, photos: Path, tmp_path: Path) -> None:
    os.link(photos / "cat_1.jpg", photos / "a.jpg")
    os.link(photos / "boat_1.jpg", photos / "b.jpg")
    shutil.copy(photos / "boat_1.jpg", photos / "a copy of boat_1.jpg")
    os.link(photos / "a copy of boat_1.jpg", photos / "another copy of boat_1.jpg")
    smaller(photos / "hat_2.jpg", photos / "small.jpg")
    os.link(photos / "small.jpg", photos / "small too.jpg")
    index.sync(photos)
    boat, hat = certain(index)
    assert names(boat)[0][0] == "b.jpg" and boat.why.startswith("the oldest")
    assert {Path(m.path).name: m.same_file and Path(m.same_file).name for m in boat.others} == {
        "boat_1.jpg": "b.jpg",
        "a copy of boat_1.jpg": None,
        "another copy of boat_1.jpg": "a copy of boat_1.jpg",
    }
    assert [(Path(m.path).name, bool(m.same_file)) for m in hat.others] == [
        ("small.jpg", False),
        ("small too.jpg", True),
    ]
    # What is not there may be anything.
    photos.rename(tmp_path / "unplugged")
    assert [m.same_file for group in index.duplicates(["same-bytes"]) for m in group.others] == [None] * 5


def test_numbers_of_two_disks_are_not_one_file(
    index: SimilarityIndex, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(photos / "cat_1.jpg", photos / "copy.jpg")
    index.sync(photos)

    real = os.stat

    def numbered(**values: int) -> None:
        def stat(path: str | Path, **options: Any) -> Any:
            if not str(path).endswith(".jpg"):
                return real(path, **options)  # the index itself
            return SimpleNamespace(**{"st_dev": str(path).endswith("copy.jpg"), "st_ino": 7, **values})

        monkeypatch.setattr("simclr_hub.duplicates.find.os.stat", stat)

    found = []
    for values in ({}, {"st_dev": 1, "st_ino": 0}, {"st_dev": 1}):
        with monkeypatch.context():
            numbered(**values)
            found.append(len(index.duplicates(["same-bytes"])))
        monkeypatch.undo()
    assert found == [1, 1, 0]  # two disks; a file system without numbers; one file


@pytest.mark.parametrize("tier", TIERS)
def test_what_lies_outside_the_trash_comes_first_in_every_tier(
    index: SimilarityIndex, photos: Path, tmp_path: Path, tier: Tier
) -> None:
    aside = photos / ".Trash-1000"
    aside.mkdir()
    for path in sorted(photos.glob("*.jpg")):
        if path.stem not in NAMES[:3]:
            smaller(path, path, 0.5)
        elif tier == "same-bytes":
            os.utime(shutil.copy(path, aside), (1e9, 1e9))  # the oldest
        else:
            path.rename(aside / path.name)  # the larger ones are in the trash
            if tier == "same-picture":
                smaller(aside / path.name, path, 0.5)
    index.sync(photos, include_hidden=True)
    index.sync(aside, include_hidden=True)
    Thresholds(unmeasured(np.ones((1, 5), np.float32), FakeEmbedder().fingerprint).made_by, 1, 2.0, [(1, 0.2)]).save(
        index._store.file.with_name(THRESHOLDS_NAME)
    )
    groups = index.duplicates([tier])
    asides = [[".Trash" in member.path for member in (group.keep, *group.others)] for group in groups]
    assert any(any(some) for some in asides)
    assert not any(some[0] for some in asides if not all(some))


def test_photos_that_are_not_there_are_left_out(index: SimilarityIndex, photos: Path) -> None:
    smaller(photos / "cat_1.jpg", photos / "small.jpg").with_name("small.jpg")
    index.sync(photos)
    (photos / "small.jpg").unlink()
    index.sync(photos)
    assert certain(index) == []


def test_more_copies_than_neighbours_are_one_group(index: SimilarityIndex, photos: Path) -> None:
    for number in range(40):
        smaller(photos / "boat_1.jpg", photos / f"{number:02}.jpg", 0.5 + number / 100)
    index.sync(photos)
    (group,) = certain(index)
    assert len(group.others) == 40 and Path(group.keep.path).name == "boat_1.jpg"


def test_similar_groups_have_one_file_of_each_picture(index: SimilarityIndex, photos: Path) -> None:
    smaller(photos / "cat_1.jpg", photos / "small.jpg")
    index.sync(photos)
    # By the colours alone all of these photos are much alike.
    Thresholds(unmeasured(np.ones((1, 5), np.float32), FakeEmbedder().fingerprint).made_by, 1, 2.0, [(1, 0.2)]).save(
        index._store.file.with_name(THRESHOLDS_NAME)
    )
    found = index.duplicates(["similar"])
    assert found and {group.tier for group in found} == {"similar"}
    in_similar = [Path(m.path).name for group in found for m in (group.keep, *group.others)]
    assert "small.jpg" not in in_similar and len(in_similar) == len(set(in_similar))
    assert all(0.5 <= m.score <= 1 and m.tier == "similar" for group in found for m in group.others)


def test_raw_and_jpeg_of_one_shot_are_a_pair(index: SimilarityIndex, photos: Path) -> None:
    # The content decides how it is decoded, the name that it is a camera's RAW file.
    (photos / "cat_1.jpg").rename(photos / "IMG_1.CR2")
    smaller(photos / "IMG_1.CR2", photos / "img_1.jpg")
    index.sync(photos)
    assert certain(index) == []
    smaller(photos / "IMG_1.CR2", photos / "export.jpg", 0.5)
    index.sync(photos)
    (group,) = certain(index)
    assert names(group) == [("IMG_1.CR2", "same-bytes"), ("export.jpg", "same-picture")]
    assert group.keep.pair == str(photos / "img_1.jpg") and group.others[0].pair is None
    shutil.copy(photos / "img_1.jpg", photos / "a much longer name.jpg")
    index.sync(photos)
    pairs = {member.path: member.pair for g in certain(index) for member in (g.keep, *g.others)}
    assert pairs[str(photos / "img_1.jpg")] == str(photos / "IMG_1.CR2")


@pytest.mark.parametrize("larger_is_raw", [False, True])  # their hashes come in either order
def test_a_pair_is_none_of_duplicates_whichever_is_larger(
    index: SimilarityIndex, photos: Path, larger_is_raw: bool
) -> None:
    first, second = ("x.dng", "x.jpg") if larger_is_raw else ("x.jpg", "x.dng")
    (photos / "cat_1.jpg").rename(photos / first)
    smaller(photos / first, photos / "small.jpg").rename(photos / second)
    index.sync(photos)
    assert certain(index) == []


def test_a_raw_file_and_a_jpeg_elsewhere_are_no_pair(index: SimilarityIndex, photos: Path) -> None:
    (photos / "cat_1.jpg").rename(photos / "x.dng")
    (photos / "other").mkdir()
    smaller(photos / "x.dng", photos / "other/x.jpg")
    index.sync(photos)
    (group,) = certain(index)
    assert group.tier == "same-picture" and group.keep.pair is None


def test_a_time_with_and_one_without_its_zone_may_be_one_shot(index: SimilarityIndex, photos: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9003] = "2020:01:01 10:00:00"
    for name, zone in (("a.jpg", None), ("a.dng", "+02:00")):
        if zone:
            exif.get_ifd(0x8769)[0x9011] = zone
        with Image.open(photos / "cat_1.jpg") as image:
            image.save(photos / name, "JPEG", exif=exif, quality=85)
    (photos / "cat_1.jpg").unlink()
    index.sync(photos)
    assert certain(index) == []


def test_the_surest_groups_come_first_then_by_path(index: SimilarityIndex, photos: Path) -> None:
    for name in ("hat_2", "banana_1"):
        shutil.copy(photos / f"{name}.jpg", photos / f"{name} copy.jpg")
    for name in ("dress_1", "chess_1"):
        smaller(photos / f"{name}.jpg", photos / f"{name} small.jpg")
    index.sync(photos)
    found = [(group.tier, Path(group.keep.path).name.split("_")[0]) for group in certain(index)]
    pictures = [("same-picture", "chess"), ("same-picture", "dress")]
    assert found == [("same-bytes", "banana"), ("same-bytes", "hat"), *pictures]


def test_the_surest_copies_come_first(index: SimilarityIndex, photos: Path) -> None:
    for name, factor in (("a.jpg", 0.15), ("b.jpg", 0.3), ("c.jpg", 0.9)):
        smaller(photos / "cat_1.jpg", photos / name, factor)
    index.sync(photos)
    (group,) = certain(index)
    scores = [member.score for member in group.others]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) == 3
    assert Path(group.others[0].path).name == "c.jpg"


def test_two_shots_of_one_name_are_no_pair(index: SimilarityIndex, photos: Path) -> None:
    exif = Image.Exif()
    for name, taken in (("a.dng", "2020:01:01 10:00:00"), ("a.jpg", "2020:01:01 10:00:09")):
        exif.get_ifd(0x8769)[0x9003] = taken
        with Image.open(photos / "cat_1.jpg") as image:
            image.save(photos / name, "JPEG", exif=exif, quality=85)
    index.sync(photos)
    (group,) = certain(index)
    assert {"a.dng", "a.jpg"} < {name for name, _ in names(group)}


def test_not_duplicates_stay_apart_under_any_name(index: SimilarityIndex, photos: Path) -> None:
    smaller(photos / "cat_1.jpg", photos / "small.jpg")
    smaller(photos / "cat_1.jpg", photos / "smaller.jpg", 0.5)
    index.sync(photos)
    assert len(certain(index)[0].others) == 2
    index.not_duplicates(photos / "cat_1.jpg", photos / "small.jpg")
    (group,) = certain(index)
    assert names(group) == [("cat_1.jpg", "same-bytes"), ("smaller.jpg", "same-picture")]
    (photos / "small.jpg").rename(photos / "renamed.jpg")
    shutil.copy(photos / "cat_1.jpg", photos / "copied.jpg")
    index.sync(photos)
    assert "renamed.jpg" not in dict(names(certain(index)[0]))
    index.not_duplicates(photos / "smaller.jpg", photos / "cat_1.jpg", photos / "renamed.jpg")
    assert [group.tier for group in certain(index)] == ["same-bytes"]


def test_what_cannot_be_recorded_is_named(index: SimilarityIndex, photos: Path, tmp_path: Path) -> None:
    shutil.copy(photos / "cat_1.jpg", photos / "copy.jpg")
    index.sync(photos)
    for paths, message in (
        ((photos / "cat_1.jpg", photos / "none.jpg"), "none.jpg: not in the index"),
        ((photos / "cat_1.jpg", tmp_path / "elsewhere.jpg"), "elsewhere.jpg: not in the index"),
        ((photos / "cat_1.jpg", photos / "copy.jpg"), "same bytes"),
        ((photos / "cat_1.jpg",), "a pair needs two"),
    ):
        with pytest.raises(ValueError, match=message):
            index.not_duplicates(*paths)
    with pytest.raises(ValueError, match="samebytes"):
        index.duplicates(["samebytes"])  # type: ignore[list-item]


def test_photos_without_a_signature_are_still_compared_by_bytes(index: SimilarityIndex, photos: Path) -> None:
    shutil.copy(photos / "cat_1.jpg", photos / "copy.jpg")
    smaller(photos / "cat_1.jpg", photos / "small.jpg")
    index.sync(photos)
    store = index._store
    with store.writing(), store.transaction():
        for content_hash, details in list(store.details()):
            store.put_details(content_hash, details.info, b"")
    assert [group.tier for group in certain(index)] == ["same-bytes"]


def test_calibration_is_measured_stored_and_bound_to_the_model(index: SimilarityIndex, photos: Path) -> None:
    for path in sorted(SAMPLE_PHOTOS.glob("*.jpg"))[:14]:
        shutil.copy(path, photos)
    smaller(photos / "cat_1.jpg", photos / "small.jpg")  # is not taken for a different photo
    index.sync(photos)
    assert index.calibration().measured == {} and index.calibration().cosine > 1
    told: list[tuple[int, int]] = []
    calibration = index.calibrate(copies=12, progress=lambda done, total: told.append((done, total)))
    assert index.calibration() == calibration and told[-1][0] == told[-1][1] > 100
    same = calibration.measured["same_picture"]
    assert same["different_pairs_called_same"] == 0 and same["precision"] == 1
    assert same["recall"]["re-encoded"] == 1 and same["recall"]["mirrored"] == 1
    assert 0 < calibration.cosine <= 1
    file = index._store.file.with_name(THRESHOLDS_NAME)
    assert load_thresholds(file.parent, {"weights": "w2"}) is None
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"signature_version": 0}))
    assert index.calibration().measured == {}
    file.write_text("{")
    assert index.calibration().measured == {}


def test_calibration_needs_photos_that_can_be_read(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    with pytest.raises(ValueError, match="6 of 6 photos"):
        index.calibrate()


def test_from_where_on_two_are_similar_depends_on_how_many_there_are() -> None:
    calibration = Thresholds({}, 1, 0.9, [(100, 0.5), (200, 0.6), (400, 0.8)])
    assert calibration.similar(0) == calibration.similar(1) == calibration.similar(100) == 0.5
    assert calibration.similar(200) == pytest.approx(0.6) and calibration.similar(10**9) == 0.8
    assert calibration.similar(283) == pytest.approx(0.7, abs=0.001)
    same = calibration.is_same(np.array([0.954, 0.955, 0.955, 0.97]), np.array([1, 0.9, 0.89, -1]))
    assert same.tolist() == [False, True, False, True]


def test_the_default_checkpoint_comes_with_its_thresholds(tmp_path: Path) -> None:
    from simclr_hub import Embedder

    calibration = load_thresholds(tmp_path, Embedder().fingerprint)
    assert calibration is not None, "run scripts/ship_default.py for the new checkpoint"
    same = calibration.measured["same_picture"]
    assert same["precision"] >= 0.999 and np.mean(list(same["recall"].values())) > 0.95
    assert calibration.similar_from == sorted(calibration.similar_from)
    assert calibration.measured["similar"]["precision_same_class"] >= 0.88


def file(path: str = "/p/a.jpg", content: str = "", in_colour: bool = True, **info: Any) -> File:
    defaults = {"width": 400, "height": 300, "format": "JPEG", "bytes": 1000, "modified": 1e9}
    return File(path, (content or path).encode(), defaults | info, in_colour)


BETTER = [  # kept, other, in words
    (file(width=800), file("/p/b.jpg", format="PNG", bytes=9999, modified=1), "most pixels: 800 x 300"),
    (file(), file("/p/b.png", in_colour=False, format="PNG"), "in colour"),
    (file("/p/long name.dng", format="RAW"), file("/p/b.png", format="PNG"), "RAW rather than PNG"),
    (file(format="TIFF"), file("/p/b.jpg", camera="X"), "TIFF rather than JPEG"),
    (file(), file("/p/b.heic", format="HEIF", camera="X"), "JPEG rather than HEIF"),
    (file(format="AVIF"), file("/p/b.webp", format="WEBP"), "AVIF rather than WEBP"),
    (file(camera="X", taken="2024"), file("/p/b.jpg", bytes=9999), "its EXIF tells more: time and camera"),
    (file(bytes=2000, modified=2e9), file("/p/b.jpg"), "larger file: 2,000 bytes"),
    (file("/p/longer.jpg", modified=1), file("/p/b.jpg"), "the oldest: 1970-01-01 00:00:01"),
    (file("/p/longer.jpg", modified=1.1), file("/p/b.jpg", modified=1.2), "the oldest by less than a second"),
    (file("/p/z.jpg"), file("/p/copy of z.jpg"), "shortest path"),
    (file("/p/a.jpg"), file("/p/b.jpg"), "first by its path"),
]


@pytest.mark.parametrize(("kept", "other", "words"), BETTER)
def test_the_first_difference_decides_and_is_told(kept: File, other: File, words: str) -> None:
    assert sorted([other, kept], key=preference) == [kept, other]
    assert words in why_kept([kept, other])


def test_exact_copies_are_told_after_other_contents() -> None:
    kept, copy, small = file(content="x"), file("/p/b.jpg", content="x", modified=2e9), file("/p/s.jpg", width=40)
    why = why_kept([kept, copy, small])
    assert why.startswith("most pixels: 400 x 300, the next has 40 x 300; of its exact copies the oldest")
    assert why_kept([kept, copy]).startswith("the oldest")


def test_the_kept_one_is_compared_with_the_best_of_the_others() -> None:
    files = [file(), file("/p/b.jpg", width=200), file("/p/c.jpg", width=100)]
    assert why_kept(files) == "most pixels: 400 x 300, the next has 200 x 300"


def test_nothing_known_and_strange_times_are_words_too() -> None:
    unknown = [File("/p/a", b"1", {}), File("/p/b", b"2", {"modified": 1e300})]
    assert "an unknown time" in why_kept(unknown)
    assert "unknown number" in why_kept([file(), unknown[0]])
