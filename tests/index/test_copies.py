"""The query's own file is left out, and copies of one picture are one match."""

import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from index_fakes import DIM, FakeEmbedder, make_photo, put_vectors
from PIL import Image, ImageOps

from simclr_hub.index import SimilarityIndex
from simclr_hub.index.search import ann, find, segments
from simclr_hub.index.search.arrays import ArrayWriter
from simclr_hub.index.store import Photo
from simclr_hub.scan import FileStat
from simclr_hub.signature import picture_signature


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "photos"


def names(found: list[Any]) -> list[str]:
    return [Path(match.path).name for match in found]


def draw(seed: int) -> Image.Image:
    """A picture of large shapes."""
    cells = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((140, 100), Image.Resampling.BICUBIC)


def edits(folder: Path, seed: int) -> list[Path]:
    """One picture as six files of other bytes."""
    picture = draw(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, edited, options in (
        ("a.png", picture, {}),
        ("b.jpg", picture, {"quality": 60}),
        ("c.webp", picture, {"quality": 70}),
        ("d.jpg", picture.resize((70, 50)), {"quality": 90}),
        ("e.png", ImageOps.mirror(picture), {}),
        ("f.png", picture.rotate(90, expand=True), {}),
    ):
        edited.save(folder / f"{seed}{name}", **options)
    return sorted(folder.glob(f"{seed}[a-f].*"))


# The query's own file.


def test_the_querys_own_file_is_left_out_however_it_is_spelled(
    index: SimilarityIndex, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(12):
        make_photo(folder / f"{i}.png", i)
    index.sync(folder)
    (tmp_path / "link.png").symlink_to(folder / "3.png")
    (tmp_path / "folder").symlink_to(folder)
    os.link(folder / "3.png", tmp_path / "hard.png")
    monkeypatch.chdir(folder)
    own = folder / "3.png"
    for query in (own, str(own), "3.png", "../photos/3.png", f"{folder}//./3.png", *(
        tmp_path / name for name in ("link.png", "folder/3.png", "hard.png")
    )):  # fmt: skip
        found = index.search(query, k=11)
        assert len(found) == 11 and "3.png" not in names(found), query
        assert names(index.search(query, k=1, with_self=True)) == ["3.png"]
        assert len(index.search(query, k=12, all_copies=True)) == 11
    assert sorted(names(index.search(own, path="[1-3].png"))) == ["1.png", "2.png"]
    assert index.search(own, path="3.png") == []
    assert [len(many) for many in index.search([own, np.ones(DIM)], k=12)] == [11, 12]


def test_a_copy_is_another_file(index: SimilarityIndex, folder: Path, tmp_path: Path) -> None:
    for i in range(6):
        make_photo(folder / f"{i}.png", i)
    make_photo(folder / "copy.png", 3)
    outside = make_photo(tmp_path / "outside.png", 3)
    index.sync(folder)
    best = index.search(folder / "3.png", k=2)[0]
    assert (names([best]), best.copies, best.score) == (["copy.png"], [], pytest.approx(1))
    best = index.search(outside, k=2)[0]
    assert best.path == str(folder / "3.png") and best.copies == [str(folder / "copy.png")]
    for query in (outside.read_bytes(), Image.open(outside)):
        assert index.search(query, k=2)[0] == best  # they name no file
    assert names(index.search(folder / "3.png", k=1, all_copies=True)) == ["copy.png"]


def test_hard_links_are_one_file(index: SimilarityIndex, folder: Path) -> None:
    for i in range(4):
        make_photo(folder / f"{i}.png", i)
    os.link(folder / "3.png", folder / "linked.png")
    index.sync(folder)
    assert sorted(names(index.search(folder / "3.png"))) == ["0.png", "1.png", "2.png"]


def test_a_file_that_changed_since_the_sync_is_still_the_querys_own(index: SimilarityIndex, folder: Path) -> None:
    for i in range(4):
        make_photo(folder / f"{i}.png", i)
    index.sync(folder)
    make_photo(folder / "3.png", 50)
    assert sorted(names(index.search(folder / "3.png"))) == ["0.png", "1.png", "2.png"]


def test_a_missing_copy_is_not_found(index: SimilarityIndex, folder: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        make_photo(folder / name, 1)
    index.sync(folder)
    (folder / "a.png").unlink()
    index.sync(folder)
    (match,) = index.search(make_photo(tmp_path / "x.png", 1))
    assert names([match]) == ["b.png"] and match.copies == [str(folder / "c.png")]


# Copies.


def test_files_of_the_same_bytes_are_one_match(index: SimilarityIndex, folder: Path) -> None:
    for i in range(40):
        make_photo(folder / f"{i}.png", i % 30)
    index.sync(folder)
    queries = list(np.random.default_rng(0).normal(size=(25, DIM)))
    for query, found in zip(queries, index.search(queries, k=40), strict=True):
        every = index.search(query, k=40, all_copies=True)
        assert len(found) == 30 and sum(1 + len(m.copies) for m in found) == len(every) == 40
        assert {m.path for m in found} | {path for m in found for path in m.copies} == {m.path for m in every}
        assert [m.score for m in index.search(query, k=7)] == [m.score for m in found[:7]]
        assert all(m.copies == [] for m in every)
    (match,) = index.search(folder / "3.png", k=1, with_self=True)
    assert pickle.loads(pickle.dumps(match)) == match and match.copies == [str(folder / "33.png")]


@pytest.mark.parametrize("pairs", [find.PAIRS, 0])
@pytest.mark.parametrize("k", [1, 3, 10])
def test_one_picture_in_other_files_is_one_match(
    index: SimilarityIndex, folder: Path, k: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "PAIRS", pairs)  # compared at once, or as each line needs them
    for seed in range(12):
        edits(folder, 10 + seed)
    index.sync(folder)
    assert len(index) == 72
    query = folder / "15a.png"
    found = index.search(query, k=k)
    assert len(found) == k and len({name[:2] for name in names(found)}) == k
    assert names(found)[0][:2] == "15" and {name[:2] for name in map(os.path.basename, found[0].copies)} == {"15"}
    assert k < 10 or len(found[0].copies) == 4  # the fewer are wanted, the fewer are looked at
    assert str(query) not in [found[0].path, *found[0].copies]
    (everything,) = index.search([np.ones(DIM)], k=100)
    assert len(everything) == 12 and {len(m.copies) for m in everything} == {5}
    assert len(index.search(query, k=100, all_copies=True)) == 71
    only = index.search(query, k=100, path="*.png")
    assert len(only) == 12 and {Path(path).suffix for m in only for path in [m.path, *m.copies]} == {".png"}


def test_what_a_person_called_different_is_not_folded(index: SimilarityIndex, folder: Path) -> None:
    edits(folder, 10)
    index.sync(folder)
    assert len(index.search(np.ones(DIM))) == 1
    index.not_duplicates(folder / "10a.png", folder / "10b.jpg")
    found = index.search(np.ones(DIM))
    assert len(found) == 2 and sum(len(m.copies) for m in found) == 4


def test_crops_and_others_are_not_folded(index: SimilarityIndex, folder: Path) -> None:
    folder.mkdir()
    draw(1).save(folder / "a.png")
    draw(1).crop((30, 20, 140, 100)).save(folder / "crop.png")
    ImageOps.grayscale(draw(2)).save(folder / "b.png")
    Image.new("RGB", (50, 50), "red").save(folder / "red.png")
    Image.new("RGB", (50, 50), "blue").save(folder / "blue.png")
    index.sync(folder)
    assert len(index.search(np.ones(DIM))) == 5


def test_an_index_without_signatures_folds_the_same_bytes(index: SimilarityIndex) -> None:
    put_vectors(index, 30)
    assert len(index.search(np.ones(DIM), k=30)) == 30


def put_copies(index: SimilarityIndex, number: int, *, contents: int) -> None:
    """So many files of one picture, of so many contents with nearly one vector; and 30 other photos."""
    put_vectors(index, 30)
    store, random = index._store, np.random.default_rng(5)
    signature = picture_signature(picture(1))
    with store.writing():
        with store.transaction():
            root = store.put_root(b"/copies", "ok")
            for i in range(contents):
                vector = (np.ones(DIM) + 1e-4 * random.normal(size=DIM)).astype(np.float32)
                content = hashlib.sha256(b"copy %d" % i).digest()
                store.put_vector(content, vector / np.linalg.norm(vector))
                store.put_details(content, {}, signature)
            for i in range(number):
                content = hashlib.sha256(b"copy %d" % (i % contents)).digest()
                store.put(Photo(root.id, b"%d.jpg" % i, FileStat(1, 1, 1, i), True, content, "live"))
        index._write_cache()


def picture(seed: int) -> np.ndarray:
    return np.array(draw(seed)).transpose(2, 0, 1)


def test_many_files_of_the_same_bytes_cost_nothing(index: SimilarityIndex) -> None:
    put_copies(index, 2000, contents=1)
    found = index.search(np.ones(DIM), k=10)
    assert len(found) == 10 and len(found[0].copies) == 1999
    assert [len(m.copies) for m in found[1:]] == [0] * 9


@pytest.mark.parametrize("kind", ["exact", "approximate"])
def test_a_search_looks_deeper_where_copies_take_all_places(
    index: SimilarityIndex, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind == "approximate":
        monkeypatch.setattr(ann, "MAX_EXACT", 0)
    put_copies(index, 600, contents=300)
    for found in index.search([np.ones(DIM)] * 3, k=10):
        assert len(found) == 10 and sorted(len(m.copies) for m in found) == [0] * 9 + [599]
    depths: list[int] = []
    real = find.Search._nearest

    def nearest(self: find.Search, queries: np.ndarray, depth: int) -> Any:
        depths.append(depth)
        return real(self, queries, depth)

    monkeypatch.setattr(find.Search, "_nearest", nearest)
    monkeypatch.setattr(find, "DEEPEST", 100)
    (match,) = index.search(np.ones(DIM), k=10)  # more than that is not looked at
    assert depths == [18, 110] and len(match.copies) == 2 * 110 - 1


def test_an_older_cache_is_searched_and_renewed(
    index: SimilarityIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without shapes is not used: the store is, until the next sync writes another."""
    for seed in range(10, 13):
        edits(folder, seed)
    (folder / "copy.png").write_bytes((folder / "10a.png").read_bytes())
    with monkeypatch.context() as patch:
        add = ArrayWriter.add
        new = ("shapes", "pairs.cosines", "pairs.ranks")
        patch.setattr(ArrayWriter, "add", lambda self, name, *rest: name in new or add(self, name, *rest))
        index.sync(folder)
    for renewed in (False, True):
        with SimilarityIndex.open(index._store.file.parent, model=FakeEmbedder()) as again:
            assert (again._current().segments[0].file is not None) == renewed
            found = again.search(np.ones(DIM), k=50)
            assert len(found) == 3 and sum(1 + len(m.copies) for m in found) == 19
            assert None not in {m.closer_than for m in found}
            again.sync(folder)


@pytest.mark.parametrize("number", [1, find.BLOCK, 3 * find.BLOCK + 5])
def test_folding_is_that_of_the_plain_loop(number: int) -> None:
    random = np.random.default_rng(number)
    pictures = [picture_signature(picture(seed)) for seed in range(6)]
    of = random.integers(6, size=number)
    shapes = segments.make_shapes([pictures[i] for i in of])
    first = find.fold(shapes, np.arange(number), lambda a, b: of[a] == of[b], number)
    assert first.tolist() == [int(np.flatnonzero(of == one)[0]) for one in of]
    apart = find.fold(shapes, np.arange(number), lambda a, b: np.zeros(len(a), bool), number)
    assert apart.tolist() == list(range(number))


def test_copies_beside_the_large_part(index: SimilarityIndex, folder: Path, tmp_path: Path) -> None:
    """Files of one content, and of one picture, that were added since; of several segments."""
    for seed in range(40):
        make_photo(folder / f"{seed}.png", seed)
    first, second, *_ = edits(folder, 10)
    moved = second.rename(tmp_path / second.name)
    for path in folder.glob("10[c-f].*"):
        path.unlink()
    index.sync(folder)
    moved.rename(second)
    make_photo(folder / "copy.png", 5)
    index.sync(folder)
    with SimilarityIndex.open(index._store.file.parent, model=FakeEmbedder()) as again:
        assert len(again._current().segments) == 2
        (match,) = again.search(first, k=1, with_self=True)
        assert [match.path, *match.copies] == [str(first), str(second)]
        (match,) = again.search(folder / "5.png", k=1)
        assert match.path == str(folder / "copy.png") and match.copies == []
        assert len(again.search(np.ones(DIM), k=100)) == 41
