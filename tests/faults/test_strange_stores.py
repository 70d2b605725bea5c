"""An index that somebody else prepared, or replaced."""

import json
import os
import sqlite3
import struct
from contextlib import closing
from pathlib import Path

import pytest
from index_fakes import FakeEmbedder

from simclr_hub.errors import IndexDamagedError, IndexWriteError
from simclr_hub.index import SimilarityIndex, sandboxed_decode
from simclr_hub.index.check import check_index
from simclr_hub.index.store import STORE_NAME, checksum


def super_journal(name: bytes) -> bytes:
    """A journal's end that names a file, with a sound checksum."""
    checksum = sum(struct.unpack(f"{len(name)}b", name)) & 0xFFFFFFFF
    magic = bytes.fromhex("d9d505f920a163d7")
    return struct.pack(">I", 0x40000000 // 4096 + 1) + name + struct.pack(">II", len(name), checksum) + magic


@pytest.mark.parametrize("begin", [b"", bytes.fromhex("d9d505f920a163d7") + bytes(504), os.urandom(700)])
def test_a_journal_that_names_another_file_deletes_nothing(
    index: SimilarityIndex, photos: Path, tmp_path: Path, begin: bytes
) -> None:
    index.sync(photos)
    directory = index._store.file.parent
    index.close()
    victim = photos / "a.png"
    (directory / f"{STORE_NAME}-journal").write_bytes(begin + super_journal(os.fsencode(victim)))
    for use in (
        lambda: SimilarityIndex.open(directory, model=FakeEmbedder()),
        lambda: check_index(directory),
        lambda: check_index(directory, repair=True),
    ):
        try:
            report = use()
        except IndexDamagedError as e:
            assert "names another file" in str(e)
        else:
            assert not getattr(report, "sound", True)
        assert victim.exists()


def test_an_interrupted_write_on_a_medium_that_is_read_only_says_what_to_do(
    index: SimilarityIndex, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.sync(photos)
    file = index._store.file
    index.close()
    copy = tmp_path / "copy"
    copy.mkdir()
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA cache_spill = 1")
        db.execute("PRAGMA cache_size = 1")
        db.execute("BEGIN IMMEDIATE")
        db.execute("UPDATE photos SET crc = crc + 1")
        db.execute("UPDATE vectors SET crc = crc + 1")
        db.execute("INSERT INTO in_flight SELECT randomblob(3000) FROM vectors")
        for name in (STORE_NAME, f"{STORE_NAME}-journal"):
            (copy / name).write_bytes((file.parent / name).read_bytes())
        db.execute("ROLLBACK")
    real = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK and real(path, mode))
    with pytest.raises(IndexWriteError, match="a write to it was interrupted.*copy the index to another place"):
        with SimilarityIndex.open(copy, model=FakeEmbedder()) as opened:
            opened.status()


def test_a_store_that_was_replaced_is_noticed_by_the_next_search(index: SimilarityIndex, photos: Path) -> None:
    index.sync(photos)
    assert index.search(photos / "a.png")
    file = index._store.file
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    os.replace(other, file)
    with pytest.raises(IndexDamagedError, match="replaced while it was open; open the index again"):
        index.search(photos / "a.png")


@pytest.mark.parametrize("name", ["shutil", "json", "faulthandler", "simclr_hub"])
def test_children_load_nothing_from_the_current_folder(
    tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / f"{name}.py").write_text("open('canary', 'w').close()")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert sandboxed_decode.decode_sandboxed([os.fsencode(photos / "a.png")]) == {}
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize(
    "change", [{"exclude": 5}, {"exclude": [5]}, {"exclude": ["[z-a]"]}, {"include_hidden": "yes"}, {"new": 1}]
)
def test_a_record_of_a_strangers_making_is_damage(index: SimilarityIndex, change: dict[str, object]) -> None:
    file = index._store.file
    with index._store.writing(), index._store.transaction():
        text = json.dumps(index._store._meta("about") | change)
        index._store._execute("UPDATE meta SET value = ?, crc = ? WHERE key = 'about'", text, checksum("about", text))
    index.close()
    with pytest.raises(IndexDamagedError, match="record of what made it"):
        SimilarityIndex.open(file.parent, model=FakeEmbedder())
