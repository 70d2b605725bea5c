"""Plans: every image once, nothing else, never half of one, and nothing believed that does not match its hash."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from index.index_fakes import make_photo, tree_state

from simclr_hub.errors import OutputError, PartsError
from simclr_hub.parts import storage
from simclr_hub.parts.listing import image_column
from simclr_hub.parts.plan import ITEMS, PARTS, Plan, make_plan
from simclr_hub.parts.storage import as_place


def places(plan: Plan) -> list[str]:
    return [item.text for name in plan.parts for item in plan.items(name)]


def test_a_folder_in_parts_named_by_their_content(many: Path, tmp_path: Path) -> None:
    before = tree_state(many)
    plan = make_plan([str(many)], tmp_path / "plan", images=7)
    assert [part.images for part in plan.parts.values()] == [7, 7, 7, 7, 2] and plan.images == 30
    found = [path for path in many.rglob("*") if path.is_file()]
    assert places(plan) == sorted(map(str, found), key=os.fsencode)
    assert plan.roots == plan.folders == [str(many)]
    again = make_plan([str(many)], tmp_path / "again", images=7)
    assert (again.id, list(again.parts)) == (plan.id, list(plan.parts))
    make_photo(many / "zz.png", 99)
    more = make_plan([str(many)], tmp_path / "more", images=7)
    assert more.id != plan.id and list(more.parts)[:4] == list(plan.parts)[:4]
    (many / "zz.png").unlink()
    assert {path: stat for path, stat in tree_state(many).items() if path != str(many)} == {
        path: stat for path, stat in before.items() if path != str(many)
    }


def test_archives_tables_and_lists(shards: Path, table: Path, many: Path, tmp_path: Path) -> None:
    listed = sorted(many.rglob("*.jpg"))
    text = tmp_path / "list.txt"
    text.write_text(f"{listed[0]}\n\nfile://{str(listed[1]).replace(' ', '%20')}\r\n")
    plan = make_plan([str(shards), str(table), str(text)], tmp_path / "plan", images=8)
    assert [part.images for part in plan.parts.values()] == [None, None, 8, 3, 2] and plan.images is None
    assert places(plan) == [*map(str, sorted(shards.glob("*.tar"))), str(table), str(table), *map(str, listed)]
    assert plan.skipped == {
        "img2dataset's table beside an archive": 2,
        "not downloaded, as img2dataset's table says": 4,
        "not an image by its name": 2,
    }
    assert plan.roots == sorted([str(shards), str(table), str(many)]) and plan.folders == [str(shards)]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("nothing", "no such file or folder"),
        ("empty", "no image, archive or Parquet file in it"),
        ("notes.doc", "no folder, no image by its name"),
        ("bad.parquet", "damaged, or not a Parquet file"),
        ("texts.parquet", "no column of bytes; name the one"),
        ("s3://key:secret@bucket/a", "come from the environment"),
        ("s3://bucket?endpoint_override=x", "come from the environment"),
        ("https://example.org/a.jpg", "img2dataset"),
        ("ftp://example.org/a.jpg", "neither a path nor"),
        ("folder.txt", "a folder; give files"),
        ("binary.txt", "line 1: not a place"),
        ("long.txt", "line 1: not a place"),
    ],
)
def test_a_source_that_is_none_is_named(
    given: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.doc").write_text("text")
    Path("bad.parquet").write_text("text")
    pq.write_table(pa.table({"a": ["b"]}), "texts.parquet")
    Path("folder.txt").write_text("empty\n")
    Path("binary.txt").write_bytes(b"\0\0\n")
    Path("long.txt").write_bytes(b"a" * 10_000)
    with pytest.raises(PartsError, match=told) as error:
        make_plan([given], "plan")
    assert "secret" not in str(error.value)
    assert not Path("plan").exists()


def test_no_image_twice_and_nothing_below_photos(many: Path, tmp_path: Path) -> None:
    with pytest.raises(PartsError, match="one is in the other"):
        make_plan([str(many), str(many / "1")], tmp_path / "plan")
    with pytest.raises(OutputError, match="in the photo folder"):
        make_plan([str(many)], many / "plan")
    make_plan([str(many)], tmp_path / "plan")
    with pytest.raises(FileExistsError, match="exists already"):
        make_plan([str(many)], tmp_path / "plan")
    for bad in (0, 10**7):
        with pytest.raises(PartsError, match="a part holds"):
            make_plan([str(many)], tmp_path / "other", images=bad)


def test_an_interrupted_listing_leaves_nothing(many: Path, tmp_path: Path) -> None:
    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_plan([str(many)], tmp_path / "plan", images=3, progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == [many.name]


def changed(path: Path, column: str, value: object) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[0][column] = value
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path, row_group_size=len(rows))


def test_a_plan_from_elsewhere_is_not_believed(many: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    plan = make_plan([str(many)], folder, images=7)
    changed(folder / ITEMS, "place", b"/etc/passwd.jpg")
    first, second = list(plan.parts)[:2]
    with pytest.raises(PartsError, match="the items of part .* are others"):
        plan.items(first)
    assert len(plan.items(second)) == 7
    for column, value in (("name", "../" * 10 + "aa"), ("images", 3), ("group", 5)):
        other = tmp_path / column
        make_plan([str(many)], other, images=7)
        changed(other / PARTS, column, value)
        with pytest.raises(PartsError, match="do not match its hash"):
            Plan.read(other)
    (folder / PARTS).write_bytes(b"PAR1 and no more")
    with pytest.raises(PartsError, match=r"parts.parquet is damaged"):
        Plan.read(folder)
    pq.write_table(pa.table({"a": [1]}), folder / PARTS)
    with pytest.raises(PartsError, match="not a plan"):
        Plan.read(folder)
    with pytest.raises(PartsError, match="no plan there; make one"):
        Plan.read(tmp_path / "nothing")


def test_columns_with_images() -> None:
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert image_column(pa.schema([("image", struct), ("label", pa.int64())]), "x", None) == "image"
    assert image_column(pa.schema([("a", pa.large_binary()), ("b", pa.binary())]), "x", "b") == "b"
    for names in (["jpg", "png"], ["other"]):
        with pytest.raises(PartsError, match="columns of bytes .*--column"):
            image_column(pa.schema([(name, pa.binary()) for name in names]), "x", None)


def test_places() -> None:
    assert as_place("s3://bucket/a b%20?#") == "s3://bucket/a b%20?#"
    assert as_place("file:///a%20b") == "/a b"
    assert as_place("a") == os.path.abspath("a")


def test_a_bucket_that_nobody_answers_for_is_no_damage(run, monkeypatch: pytest.MonkeyPatch) -> None:
    storage._bucket.cache_clear()
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    code, _, err = run("parts", "check", "s3://bucket/plan", "s3://bucket/parts")
    assert code == 1 and "s3://bucket/plan: parts.parquet cannot be read now: " in err and "damaged" not in err
    storage._bucket.cache_clear()
