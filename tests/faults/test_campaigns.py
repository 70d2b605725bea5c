"""What happens to photo folders in the long run, at random, and how much an index lost of it: nothing, to the row.

Each round is a mishap and a sync or more; then every photo that was ever acknowledged must have its row, and every
content that a row names its own vector. `benchmarks/faults.py` runs a thousand rounds of each.
"""

import hashlib
import multiprocessing
import os
import random
import shutil
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
from index_fakes import FakeEmbedder, expected_vector, make_photo

from simclr_hub.errors import IndexLockedError, PruneRefusedError, RootUnavailableError, UnreadableImageError
from simclr_hub.index import SimilarityIndex, sync

CONTEXT = multiprocessing.get_context("fork")


@dataclass
class Ledger:
    """What an index must hold: the content of each photo that it was shown, and each content's vector."""

    contents: dict[str, bytes] = field(default_factory=dict)
    vectors: dict[bytes, np.ndarray] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def saw(self, path: Path) -> None:
        """This photo was read by a sync that said it was done."""
        content = hashlib.sha256(path.read_bytes()).digest()
        if content not in self.vectors:
            self.vectors[content] = expected_vector(path)
        self.contents[str(path)] = content

    def count_losses(self, index: SimilarityIndex) -> None:
        """Count photos without their row, and rows without the vector of their content."""
        store = index._store
        with store.reading():
            roots = store.roots()
            rows = {os.fsdecode(store.locate(photo, roots)): photo.content_hash for photo in store.photos()}
            held = dict(pair for hashes, vectors in store.vector_pages() for pair in zip(hashes, vectors, strict=True))
        for path, content in self.contents.items():
            self.counts["lost rows"] += rows.get(path) != content
            vector = held.get(content)
            self.counts["lost vectors"] += vector is None or not np.allclose(vector, self.vectors[content], atol=1e-6)
        self.counts["rows compared"] += len(self.contents)


def pruned(index: SimilarityIndex, ledger: Ledger) -> None:
    """Try to forget what is missing, as a user does who does not look; nothing may be."""
    try:
        ledger.counts["forgotten"] += index.prune()
    except PruneRefusedError:
        ledger.counts["prunes refused"] += 1


def unreadable(folder: Path, rounds: int, seed: int) -> dict[str, int]:
    """Photos change, are touched, and cannot be read for a while, all mixed; each sync is followed by a prune."""
    chance, ledger = random.Random(seed), Ledger()
    photos = [make_photo(folder / f"photos/{i % 3}/{i}.png", seed * 1000 + i) for i in range(20)]
    broken: set[bytes] = set()
    real = sync.read_file

    def read_file(path: bytes, **settings: bool) -> object:
        if path in broken:
            code = chance.choice([5, 13, 110, 116])  # EIO, EACCES, ETIMEDOUT, ESTALE
            raise UnreadableImageError(f"{os.fsdecode(path)}: {os.strerror(code)}") from OSError(code, "x")
        return real(path, **settings)

    with pytest.MonkeyPatch.context() as patch, SimilarityIndex.create(folder / "i", model=FakeEmbedder()) as index:
        patch.setattr(sync, "read_file", read_file)
        index.sync(folder / "photos")
        for path in photos:
            ledger.saw(path)
        for number in range(rounds):
            share = chance.choice([0, 0.05, 0.3, 1])
            broken = {bytes(path) for path in photos if chance.random() < share}
            for path in photos:
                if chance.random() < 0.2:
                    make_photo(path, 10_000 + number * 100 + chance.randrange(3))  # three are often equal
                elif chance.random() < 0.5:
                    os.utime(path, ns=(1, chance.randrange(10**18)))
            report = index.sync(folder / "photos")
            ledger.counts["unreadable"] += report.failed
            for path in photos:
                if bytes(path) not in broken:
                    ledger.saw(path)
            pruned(index, ledger)
            ledger.count_losses(index)
            assert len(index) == report.found == 20
    return dict(ledger.counts)


def roots(folder: Path, rounds: int, seed: int) -> dict[str, int]:
    """Root folders are renamed away, leave an empty mount point, come back, and copies of them appear and go."""
    chance, ledger = random.Random(seed), Ledger()
    names = ("a", "b", "c", "copy of a", "copy of b")
    for name in names[:3]:
        for i in range(8):
            make_photo(folder / name / f"{i % 2}/{i}.png", seed * 1000 + i + 3 * ord(name))  # some are in two roots
    embedder = FakeEmbedder()
    with SimilarityIndex.create(folder / "i", model=embedder) as index:
        for name in names[:3]:
            index.sync(folder / name)
            for path in (folder / name).rglob("*.png"):
                ledger.saw(path)
        embedded = embedder.embedded
        for _ in range(rounds):
            name = chance.choice(names)
            root, away = folder / name, folder / f"away/{name}"
            away.parent.mkdir(exist_ok=True)
            original = folder / name.removeprefix("copy of ")
            if away.exists():
                with suppress(OSError):
                    root.rmdir()  # the mount point
                away.rename(root)
            elif root.exists():
                root.rename(away)
                if chance.random() < 0.5:
                    root.mkdir()
            elif original.exists():
                shutil.copytree(original, root, copy_function=chance.choice([shutil.copy, shutil.copy2]))
            for name in chance.sample(names, 2):
                try:
                    report = index.sync(folder / name)
                except RootUnavailableError:
                    ledger.counts["unavailable"] += 1
                    continue
                ledger.counts["copied"] += report.copied
                ledger.counts["came back"] += report.came_back
                for path in (folder / name).rglob("*.png"):
                    ledger.saw(path)
            if chance.random() < 0.3:
                pruned(index, ledger)
            ledger.count_losses(index)
        ledger.counts["embedded again"] = embedder.embedded - embedded
    return dict(ledger.counts)


def serve(directory: Path, what: Path | None, pipe: Connection) -> None:
    """Sync a folder, or prune, each time it is told, with an index of its own; tell how often another wrote."""
    with SimilarityIndex.open(directory, model=FakeEmbedder()) as index:
        while pipe.recv():
            refused = 0
            while True:
                try:
                    index.sync(what) if what else index.prune()
                    break
                except IndexLockedError:
                    refused += 1
                except PruneRefusedError:
                    break
            pipe.send(refused)


def together(folder: Path, rounds: int, seed: int) -> dict[str, int]:
    """Two processes sync a folder each and a third prunes, all at once, while photos come, move, change and go."""
    chance, ledger, number = random.Random(seed), Ledger(), seed * 10_000
    folders = [folder / "a", folder / "b"]
    for i in range(40):
        make_photo(folders[i % 2] / f"{i}.png", seed * 1000 + i)
    SimilarityIndex.create(folder / "i", model=FakeEmbedder()).close()
    pipes = []
    for what in (*folders, None):
        ours, theirs = CONTEXT.Pipe()
        CONTEXT.Process(target=serve, args=(folder / "i", what, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    with SimilarityIndex.open(folder / "i", model=FakeEmbedder()) as index:
        for _ in range(rounds):
            photos = sorted(path for root in folders for path in root.iterdir())
            gone = chance.choice(photos)
            gone.unlink()
            ledger.contents.pop(str(gone), None)
            moved = chance.choice([path for path in photos if path != gone])
            ledger.contents.pop(str(moved), None)
            moved.rename(chance.choice(folders) / f"{(number := number + 1)}.png")
            make_photo(chance.choice(folders) / f"{(number := number + 1)}.png", number)
            changed = chance.choice(sorted(path for root in folders for path in root.iterdir()))
            make_photo(changed, (number := number + 1))
            for pipe in pipes:
                pipe.send(True)
            ledger.counts["another wrote"] += sum(pipe.recv() for pipe in pipes)
            for root in folders:
                for path in root.iterdir():
                    ledger.saw(path)
            ledger.count_losses(index)
        for pipe in pipes:
            pipe.send(False)
        assert index.check().sound
    return dict(ledger.counts)


@pytest.mark.parametrize(("campaign", "rounds", "seen"), [
    (unreadable, 12, "unreadable"), (roots, 25, "copied"), (together, 8, "another wrote"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_nothing_is_lost(tmp_path: Path, campaign: object, rounds: int, seen: str) -> None:
    result = campaign(tmp_path, rounds, 1)  # type: ignore[operator]
    assert (result["lost rows"], result["lost vectors"]) == (0, 0), result
    assert result["rows compared"] and result[seen], result
