"""The n-th statement, write or commit fails: one clear error, the store as before, and the next sync completes."""

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from index_fakes import FakeEmbedder, check_index, make_photo

from simclr_hub.errors import IndexWriteError, OutputError
from simclr_hub.index import SimilarityIndex, plan, sync
from simclr_hub.parts.plan import make_plan


class Failing:
    """A connection whose n-th statement that matches fails, once or from then on."""

    def __init__(self, connection: sqlite3.Connection, word: str, n: int, message: str, *, once: bool):
        self._connection, self._word, self._n, self._message, self._once = connection, word, n, message, once
        self.failures = 0

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if sql.startswith(self._word):
            self._n -= 1
            if self._n == 0 or (self._n < 0 and not self._once):
                self.failures += 1
                raise sqlite3.OperationalError(self._message)
        return self._connection.execute(sql, *args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.fixture(autouse=True)
def no_suspects(monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that stays full keeps the record of what was in flight; trying that alone is another test's."""
    monkeypatch.setattr(sync, "decode_sandboxed", lambda paths: {})


@pytest.fixture
def many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder whose sync takes several transactions of every kind."""
    monkeypatch.setattr(sync, "BATCH_PHOTOS", 4)
    for i in range(10):
        make_photo(tmp_path / f"many/{i}.png", i)
    (tmp_path / "many/broken.jpg").write_bytes(b"broken")
    yield tmp_path / "many"


@pytest.mark.parametrize("once", [True, False])
@pytest.mark.parametrize(
    ("word", "step"),
    [("BEGIN IMMEDIATE", 1), ("COMMIT", 1), ("INSERT", 9), pytest.param("INSERT", 1, marks=pytest.mark.slow)],
)
def test_the_nth_fails(tmp_path: Path, many: Path, word: str, step: int, once: bool) -> None:
    message = "database or disk is full" if word == "INSERT" else "disk I/O error"
    for n in range(1, 200, step):
        with SimilarityIndex.create(tmp_path / f"{n}.index", model=FakeEmbedder()) as index:
            real = index._store._db
            failing = Failing(real, word, n, message, once=once)  # type: ignore[arg-type]
            index._store._db = failing  # type: ignore[assignment]
            try:
                index.sync(many)
            except IndexWriteError as e:
                assert message in str(e) and "what was committed before is safe" in str(e)
            index._store._db = real
            if not failing.failures:
                assert n > 3
                return
            check_index(index)
            report = index.sync(many)
            assert report.found == 11 and len(check_index(index)) == 10 and len(index.failures()) == 1
    pytest.fail("it never succeeded")


def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    """Where the system allows to mount one."""
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=700k", "none", mount], capture_output=True, check=False
    ).returncode:
        pytest.skip("mounting needs root")
    try:
        for i in range(600):
            make_photo(tmp_path / f"photos/{i}.png", i)
        with SimilarityIndex.create(mount / "i", model=FakeEmbedder()) as index:
            with pytest.raises(IndexWriteError, match="disk is full"):
                index.sync(tmp_path / "photos")
            held = len(check_index(index))
            assert 0 < held < 600
            subprocess.run(["mount", "-o", "remount,size=20m", mount], check=True, capture_output=True)
            report = index.sync(tmp_path / "photos")
            assert report.embedded == 600 - held and len(check_index(index)) == 600
    finally:
        subprocess.run(["umount", mount], check=True)


def test_no_room_for_a_new_index(tmp_path: Path) -> None:
    """At every size that is too small, whatever is made there is named, and nothing stays."""
    mount = tmp_path / "small"
    mount.mkdir()
    make_photo(tmp_path / "photos/1.png", 1)
    with SimilarityIndex.create(tmp_path / "i", model=FakeEmbedder()) as index:
        index.sync(tmp_path / "photos")
        index.export(tmp_path / "x.parquet")
    makers: list[Any] = [
        lambda: SimilarityIndex.create(mount / "n", model=FakeEmbedder()).close(),
        lambda: SimilarityIndex.from_export(tmp_path / "x.parquet", mount / "n").close(),
        lambda: make_plan([str(tmp_path / "photos")], mount / "n"),
    ]
    failed = 0
    for size in range(4, 300, 32):
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", mount], capture_output=True, check=False
        ).returncode:
            pytest.skip("mounting needs root")
        try:
            for make in makers:
                try:
                    make()
                except (OutputError, IndexWriteError) as e:
                    failed += 1
                    assert str(e).startswith(f"{mount}/n: ") and ("full" in str(e) or "No space left" in str(e))
                    assert list(mount.iterdir()) == []
                shutil.rmtree(mount / "n", ignore_errors=True)
        finally:
            subprocess.run(["umount", mount], check=True)
    assert failed > 10


def test_no_room_for_the_temporary_file(tmp_path: Path, many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = plan._temporary

    def small(table: str) -> sqlite3.Connection:
        db = real(table)
        db.execute("PRAGMA max_page_count = 2")
        return db

    with SimilarityIndex.create(tmp_path / "i", model=FakeEmbedder()) as index:
        index.sync(many)
        with monkeypatch.context() as patch:
            patch.setattr(plan, "_temporary", small)
            for i in range(300):
                (many / f"{i} {'x' * 200}.png").write_bytes(b"no photo")
            with pytest.raises(IndexWriteError, match="temporary file of a sync: .*full.*SQLITE_TMPDIR"):
                index.sync(many)
        assert len(check_index(index)) == 10
        assert index.sync(many).found == 311
