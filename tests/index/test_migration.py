import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder, check_index, make_photo

from simclr_hub.errors import IndexMismatchError
from simclr_hub.index import SimilarityIndex
from simclr_hub.index.store import SCHEMA_VERSION, STORE_NAME, Store, checksum

ROOT = b"/photos-of-layout1"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An index as layout 1 was written: a.png, b.png, below/c.png, and "copy of a.png"."""
    directory = tmp_path / "old.index"
    directory.mkdir()
    with closing(sqlite3.connect(directory / STORE_NAME)) as db:
        db.executescript((Path(__file__).parent / "layout1.sql").read_text())
    return directory


def layout(file: Path) -> int:
    with closing(sqlite3.connect(file)) as db:
        return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_an_old_index_opens_and_a_copy_is_kept(old: Path, embedder: FakeEmbedder) -> None:
    with SimilarityIndex.open(old, model=embedder) as index:
        assert len(index) == 4 and index.status()["layout"] == SCHEMA_VERSION
        paths, vectors = index.vectors()
        assert [Path(path).name for path in paths] == ["a.png", "b.png", "c.png", "copy of a.png"]
        assert len(index.search(vectors[1], k=2)) == 2
        assert index._store.without_details()
    assert layout(old / f"{STORE_NAME}.layout1") == 1
    SimilarityIndex.open(old, model=embedder).close()


def test_the_next_sync_reads_again_what_lacks_details(old: Path, tmp_path: Path, embedder: FakeEmbedder) -> None:
    folder = tmp_path / "photos"
    for seed, name in enumerate(("a.png", "b.png", "below/c.png")):
        make_photo(folder / name, seed)
    shutil.copy(folder / "a.png", folder / "copy of a.png")
    with SimilarityIndex.open(old, model=embedder) as index:
        store = index._store
        moved = (1, bytes(folder), "ok")  # as if the folder had always been here
        with store.writing(), store.transaction():
            store._execute("UPDATE roots SET path = ?, crc = ?", moved[1], checksum(*moved))
        report = index.sync(folder)
        assert (report.found, report.embedded, report.unchanged, report.copied) == (4, 3, 1, 0)
        assert not store.without_details()
        assert len(check_index(index)) == 4
        report = index.sync(folder)
        assert (report.embedded, report.unchanged, embedder.embedded) == (0, 4, 3)


def test_a_failed_migration_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements = ("CREATE TABLE details (x)", "CREATE TABLE photos (x)")  # the second is there
    monkeypatch.setattr("simclr_hub.index.store.Store.migrations", {1: statements})
    with pytest.raises(Exception, match="already exists"):
        Store(old / STORE_NAME)
    monkeypatch.undo()
    assert layout(old / STORE_NAME) == 1
    with closing(Store(old / STORE_NAME)) as store:
        assert store.counts()["live"] == 4


def test_an_old_index_on_a_read_only_medium(old: Path) -> None:
    with pytest.raises(IndexMismatchError, match="open it once where it can be written"):
        Store(old / STORE_NAME, read_only=True)
    assert layout(old / STORE_NAME) == 1
