"""A store copied or moved without its journal in the middle of a commit: some pages are new and some are old.

Whatever the mixture, what is read is damage that is named, or rows that were committed, each whole; and a search gives
a photo's own vector, from the store or from a cache, never another's.
"""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from index_fakes import FakeEmbedder, expected_vector, make_photo

from simclr_hub.errors import IndexDamagedError
from simclr_hub.index import SimilarityIndex, check_index
from simclr_hub.index.store import STORE_NAME

PAGE = 16384


def torn(tmp_path: Path, photos: Path, mixtures: int, seed: int) -> None:
    for i in range(60):
        make_photo(photos / f"a long name, so that there are several pages {'x' * 100} {i:03}.png", 100 + i)
    directory = tmp_path / "i"
    with SimilarityIndex.create(directory, model=FakeEmbedder()) as index:
        index.sync(photos)
    before = (directory / STORE_NAME).read_bytes()
    paths = sorted(photos.rglob("*.png"))
    old = {str(path): expected_vector(path) for path in paths}
    for n, path in enumerate(paths):  # as many contents as before: their number tells nothing
        if n % 3 == 0:
            make_photo(path, 1000 + n)
    new = {str(path): expected_vector(path) for path in paths}
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        index.sync(photos)
    after = (directory / STORE_NAME).read_bytes()
    size = max(len(before), len(after))
    before, after = before.ljust(size, b"\0"), after.ljust(size, b"\0")
    changed = [at for at in range(0, size, PAGE) if before[at : at + PAGE] != after[at : at + PAGE]]
    draw = random.Random(seed)
    noticed = 0
    for n in range(mixtures):
        mixed = bytearray(after)
        for at in draw.sample(changed, draw.randint(1, len(changed))):
            mixed[at : at + PAGE] = before[at : at + PAGE]
        mixture = Path(shutil.copytree(directory, tmp_path / f"mixture {n}"))
        (mixture / STORE_NAME).write_bytes(mixed)
        try:
            with SimilarityIndex.open(mixture, model=FakeEmbedder()) as index:
                found, vectors = index.vectors()
                for path, vector in zip(found, vectors, strict=True):
                    fits = [np.allclose(vector, one[path], atol=1e-6) for one in (old, new)]
                    assert any(fits), path
                    assert index.search(vector, k=1)[0].score > 0.999999
        except IndexDamagedError:
            noticed += 1
        assert check_index(mixture, repair=True).sound
        with SimilarityIndex.open(mixture, model=FakeEmbedder()) as index:
            index.sync(photos)
            found, vectors = index.vectors()
            assert found == sorted(new)
            assert all(np.allclose(vector, new[path], atol=1e-6) for path, vector in zip(found, vectors, strict=True))
        shutil.rmtree(mixture)
    assert noticed or mixtures < 50  # the cache, which is whole, serves most


@pytest.mark.usefixtures("settled")
def test_a_few_mixtures(tmp_path: Path, photos: Path) -> None:
    torn(tmp_path, photos, 3, seed=0)


@pytest.mark.slow
@pytest.mark.usefixtures("settled")
def test_many_mixtures(tmp_path: Path, photos: Path) -> None:
    torn(tmp_path, photos, 50, seed=1)


def test_a_journal_is_played_back(tmp_path: Path, photos: Path) -> None:
    """With its journal the same file is whole: the commit that was under way did not happen."""
    directory = tmp_path / "i"
    with SimilarityIndex.create(directory, model=FakeEmbedder()) as index:
        index.sync(photos)
        expected = index._store.photos()
    with closing(sqlite3.connect(directory / STORE_NAME, isolation_level=None)) as db:
        db.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
        db.execute("BEGIN")
        db.execute("UPDATE photos SET error = hex(zeroblob(30000))")
        db.execute("UPDATE vectors SET crc = 0")
        shutil.copytree(directory, tmp_path / "copy")
    assert (tmp_path / "copy" / f"{STORE_NAME}-journal").stat().st_size > 0
    assert check_index(tmp_path / "copy").sound
    with SimilarityIndex.open(tmp_path / "copy", model=FakeEmbedder()) as index:
        assert index._store.photos() == expected
