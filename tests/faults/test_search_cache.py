"""The search cache damaged at any byte: a search finds what the store has, nothing else, and nothing crashes."""

import random
from pathlib import Path

import numpy as np
import pytest
from index_fakes import DIM, FakeEmbedder, put_vectors

from simclr_hub.index import SimilarityIndex
from simclr_hub.index.search import segments


def mutate(folder: Path, mutants: int, seed: int) -> None:
    directory = folder / "i"
    with SimilarityIndex.create(directory, model=FakeEmbedder()) as index:
        put_vectors(index, 400, seed=seed)
        with index._store.writing():
            segments.update_cache(index._store)
    queries = list(np.random.default_rng(seed).normal(size=(2, DIM)))
    (file,) = directory.glob("*.cache")
    data, draw = file.read_bytes(), random.Random(seed)

    def found() -> object:
        with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
            return index.search(queries, k=400), index.vectors()[0], index.vectors()[1].tobytes()

    expected = found()
    for n in range(mutants):
        damaged = bytearray(data)
        match n % 4:
            case 0:
                damaged[draw.randrange(len(data))] ^= draw.randrange(1, 256)
            case 1:
                start = draw.randrange(len(data))
                damaged[start : start + 4096] = bytes(len(damaged[start : start + 4096]))
            case 2:
                del damaged[draw.randrange(len(data)) :]
            case 3:
                at, other = (512 * draw.randrange(len(data) // 512) for _ in range(2))
                damaged[at : at + 512], damaged[other : other + 512] = data[other : other + 512], data[at : at + 512]
        file.write_bytes(damaged)
        assert found() == expected, n
    file.write_bytes(data)
    assert found() == expected


def test_a_few_mutants(tmp_path: Path) -> None:
    mutate(tmp_path, 12, seed=0)


@pytest.mark.slow
def test_many_mutants(tmp_path: Path) -> None:
    mutate(tmp_path, 500, seed=1)
