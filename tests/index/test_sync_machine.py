"""Random edits of a folder and syncs, against a model that knows only what a user would expect."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from index_fakes import FakeEmbedder, expected_vector, make_photo

from simclr_hub.errors import RootUnavailableError
from simclr_hub.index import SimilarityIndex
from simclr_hub.scan import FileStat

FOLDERS = ["", "a", "a/b", "c"]
PATHS = st.sampled_from([f"{folder}/{n}.png".lstrip("/") for folder in FOLDERS for n in (1, 2)])
SEEDS = st.integers(0, 3)  # few, so that equal contents are common
BROKEN = b"broken"


class Folder(RuleBasedStateMachine):
    """`rows` is what the index must know after the syncs so far: the content of each path, and which are missing."""

    @initialize(trust=st.booleans())
    def start(self, trust: bool) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.photos = self.directory / "photos"
        for folder in FOLDERS:
            (self.photos / folder).mkdir(exist_ok=True)
        self.embedder = FakeEmbedder()
        self.index = SimilarityIndex.create(self.directory / "i", model=self.embedder)
        self.rows: dict[str, bytes] = {}
        self.missing: set[str] = set()
        self.patch = pytest.MonkeyPatch()
        if trust:  # otherwise all are too young, and hashed each time
            self.patch.setattr(FileStat, "settled", lambda self, scan_time_ns: True)

    def teardown(self) -> None:
        self.patch.undo()
        self.index.close()
        shutil.rmtree(self.directory)

    @rule(path=PATHS, seed=SEEDS)
    def write(self, path: str, seed: int) -> None:
        if (self.photos / path).parent.is_dir():
            make_photo(self.photos / path, seed)

    @rule(path=PATHS)
    def write_broken(self, path: str) -> None:
        if (self.photos / path).parent.is_dir():
            (self.photos / path).write_bytes(BROKEN)

    @rule(path=PATHS)
    def delete(self, path: str) -> None:
        (self.photos / path).unlink(missing_ok=True)

    @rule(source=PATHS, to=PATHS, how=st.sampled_from([os.replace, shutil.copy, shutil.copy2]))
    def move(self, source: str, to: str, how: object) -> None:
        if (self.photos / source).exists() and source != to and (self.photos / to).parent.is_dir():
            how(self.photos / source, self.photos / to)  # type: ignore[operator]

    @rule(folder=st.sampled_from(["a", "c"]))
    def unplug_or_plug(self, folder: str) -> None:
        here, away = self.photos / folder, self.directory / f"unplugged {folder}"
        if away.exists():
            if here.exists():
                shutil.rmtree(here)
            away.rename(here)
        else:
            here.rename(away)
            if folder == "a":
                here.mkdir()  # an empty mount point; c is not even there

    @rule(folder=st.sampled_from(FOLDERS))
    def sync(self, folder: str) -> None:
        self.embedder.embedded = 0
        if not (self.photos / folder).is_dir():
            with pytest.raises(RootUnavailableError):
                self.index.sync(self.photos / folder)
            return
        there = {os.path.relpath(p, self.photos): p.read_bytes() for p in (self.photos / folder).rglob("*.png")}
        known = set(self.rows.values())
        report = self.index.sync(self.photos / folder)
        assert report.found == len(there)
        assert report.failed == list(there.values()).count(BROKEN)
        assert report.embedded == self.embedder.embedded <= len(set(there.values()) - known)
        expected = self.rows | there
        held = self._held()
        # A row may go in one case: its file is gone, and its content was found under a new name.
        renamed = expected.keys() - held.keys()
        assert len(renamed) == report.renamed
        for path in renamed:
            assert not (self.photos / path).exists() and expected[path] in there.values()
        self.missing |= {path for path in self.rows if path.startswith(f"{folder}/".lstrip("/"))}
        self.missing -= there.keys() | renamed
        self.rows = {path: data for path, data in expected.items() if path not in renamed}
        assert report.missing == sum(path.startswith(f"{folder}/".lstrip("/")) for path in self.missing)

    @rule()
    def check_and_take_elsewhere(self) -> None:
        assert self.index.check().problems == []
        self.index.export(self.directory / "x.parquet")
        with SimilarityIndex.from_export(self.directory / "x.parquet", self.directory / "copy") as copy:
            assert copy.check().problems == []
            held = {path: row for path, row in self._held().items() if row[0] is not None}
            assert self._held(copy) == held
        shutil.rmtree(self.directory / "copy")
        (self.directory / "x.parquet").unlink()

    @rule()
    def prune(self) -> None:
        roots = [os.fsdecode(root.path) for root in self.index._store.roots().values() if root.listing != "ok"]
        lost = [f"{root}/" for root in roots if not os.path.isdir(root)]
        gone = {path for path in self.rows if path in self.missing or f"{self.photos}/{path}".startswith(tuple(lost))}
        assert self.index.prune(force=True) == len(gone)
        self.rows = {path: data for path, data in self.rows.items() if path not in gone}
        self.missing -= gone

    @invariant()
    def the_index_holds_what_is_expected(self) -> None:
        held = self._held()
        assert held.keys() == self.rows.keys()
        for path, (content_hash, state) in held.items():
            data = self.rows[path]
            assert content_hash == (None if data == BROKEN else hashlib.sha256(data).digest())
            assert state == ("missing" if path in self.missing else "failed" if data == BROKEN else "live")
        paths, vectors = self.index.vectors()
        for path, vector in zip(paths, vectors, strict=True):
            np.testing.assert_allclose(vector, self._vector(self.rows[os.path.relpath(path, self.photos)]), atol=1e-6)

    def _held(self, index: SimilarityIndex | None = None) -> dict[str, tuple[bytes | None, str]]:
        store = (self.index if index is None else index)._store  # an empty one is false
        roots, photos = store.roots(), store.photos()
        paths = [os.path.relpath(os.fsdecode(store.locate(p, roots)), self.photos) for p in photos]
        assert len(set(paths)) == len(paths)  # no photo twice, whatever the roots
        return {path: (p.content_hash, p.state) for path, p in zip(paths, photos, strict=True)}

    def _vector(self, data: bytes) -> np.ndarray:
        file = self.directory / "one.png"
        file.write_bytes(data)
        return expected_vector(file)


TestFolder = Folder.TestCase
TestFolder.settings = settings(
    max_examples=20, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


@pytest.mark.slow
def test_many_more() -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Folder, settings=settings(TestFolder.settings, max_examples=200, stateful_step_count=40)
    )
