"""Whatever is added, renamed and deleted beside a large part, a search finds what comparing with all finds."""

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from index_fakes import DIM, FakeEmbedder, put_vectors

from simclr_hub.errors import IndexDamagedError
from simclr_hub.index import SimilarityIndex
from simclr_hub.index.search import ann, segments, snapshot
from simclr_hub.index.store import Photo
from simclr_hub.scan import FileStat


@pytest.fixture(params=["exact", "approximate"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Either kind of index, also for a few hundred vectors."""
    if request.param == "approximate":
        monkeypatch.setattr(ann, "MAX_EXACT", 300 * DIM)
    return str(request.param)


def write(index: SimilarityIndex) -> None:
    """What a sync does at its end."""
    with index._store.writing():
        index._write_cache()


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int | None]:
    """How many contents are read from the store by searches from now on, each time; None for all."""
    reads: list[int | None] = []
    real = snapshot.make_segment

    def make(store: object, contents: list[bytes] | None = None, *beside: object) -> object:
        reads.append(None if contents is None else len(contents))
        return real(store, contents, *beside)  # type: ignore[arg-type]

    monkeypatch.setattr(snapshot, "make_segment", make)
    return reads


def sizes(index: SimilarityIndex) -> list[int]:
    return [len(segment.vectors) for segment in index._current().segments]


def forget(index: SimilarityIndex, numbers: range) -> None:
    store = index._store
    with store.writing(), store.transaction():
        for i in numbers:
            for photo in store.photos_with(hashlib.sha256(b"0 %d" % i).digest()):
                store.forget(photo)
        store.forget_vectors()


def test_few_changes_do_not_rebuild(index: SimilarityIndex, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put_vectors(index, 1000)
    write(index)
    assert sizes(index) == [1000] and (index._current().segments[0].ivf is not None) == (kind != "exact")
    built: list[int] = []
    monkeypatch.setattr("simclr_hub.index.search.segments.build_ivf", lambda vectors: built.append(len(vectors)))
    put_vectors(index, 20, seed=1)
    write(index)
    forget(index, range(10))
    write(index)
    assert built == [20, 20] and sizes(index) == [1000, 20]
    with SimilarityIndex.open(index._store.file.parent, model=FakeEmbedder()) as other:
        reads = count_reads(monkeypatch)
        found = other.search(list(other.vectors()[1][:3]), k=2000)
        assert [len(matches) for matches in found] == [1010] * 3 and reads == []
    put_vectors(index, 71, seed=2)  # with those before more than a tenth
    write(index)
    assert built[-1] == 1081 and sizes(index) == [1081]


def test_hidden_neighbours_do_not_hide_the_others(index: SimilarityIndex, kind: str) -> None:
    """The nearest hundred of a query are deleted: the next ones are found."""
    vectors = put_vectors(index, 2000)
    write(index)
    nearest = np.argsort(-(vectors @ vectors[0]))[:100]
    store = index._store
    with store.writing(), store.transaction():
        for i in nearest.tolist():
            for photo in store.photos_with(hashlib.sha256(b"0 %d" % i).digest()):
                store.forget(photo)
    write(index)
    assert len(sizes(index)) == 2
    left = np.delete(np.arange(2000), nearest)
    truth = set(left[np.argsort(-(vectors[left] @ vectors[0]))[:10]].tolist())
    found = {m.metadata["width"] for m in index.search(vectors[0], k=10)}
    assert len(found) == 10 and len(found & truth) == 10


def test_what_is_added_to_many_is_sorted_into_their_lists(
    index: SimilarityIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In memory and in the cache; it is found as if it had been there from the first."""
    monkeypatch.setattr(ann, "MAX_EXACT", 300 * DIM)
    put_vectors(index, 2500)
    write(index)
    monkeypatch.setattr(segments, "_MAX_EXACT_DELTA", 100 * DIM)
    put_vectors(index, 99, seed=1)
    assert index._current().segments[1].delta is None  # so few are all compared
    added = put_vectors(index, 150, seed=2)
    lists = []
    for written in (False, True):
        if written:
            write(index)
        with SimilarityIndex.open(index._store.file.parent, model=FakeEmbedder()) as other:
            base, delta = other._current().segments
            assert base.delta is None and delta.delta is not None and (delta.file is not None) == written
            lists.append(delta.delta.lists.tolist())
            hits = 0
            with monkeypatch.context() as patch:
                patch.delattr(segments, "search_exact")  # neither part is compared wholly
                found = other.search(list(added), k=10)
            for query, matches in zip(added, found, strict=True):
                assert matches[0].score == pytest.approx(1, abs=1e-6) and len(matches) == 10
                hits += len({m.path for m in matches} & {m.path for m in other.search(query, k=10, path="**")})
            assert hits >= 10 * len(added) * ann.RECALL
    assert lists[0] == lists[1] and len(lists[0]) == 249


def test_where_few_are_left_beside_many_added_all_are_found(
    index: SimilarityIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ann, "MAX_EXACT", 300 * DIM)
    monkeypatch.setattr(segments, "_MAX_EXACT_DELTA", 0)
    put_vectors(index, 2000)
    write(index)
    forget(index, range(1995))
    added = put_vectors(index, 60, seed=1)
    first, second = index._current().segments
    assert first.ivf and second.delta
    assert [len(matches) for matches in index.search(list(added), k=100)] == [65] * 60
    truth = index.search(added[0], k=10, path="**")
    assert [m.path for m in index.search(added[0], k=10)] == [m.path for m in truth]


def test_what_was_committed_is_read_once(index: SimilarityIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader beside a long sync reads what changed, not all, at each commit."""
    put_vectors(index, 200)
    write(index)
    with SimilarityIndex.open(index._store.file.parent, model=FakeEmbedder()) as other:
        other.search(np.ones(DIM))
        reads = count_reads(monkeypatch)
        for step in range(1, 33):
            put_vectors(index, 8, seed=step)
            assert len(other.search(np.ones(DIM), k=1000)) == 200 + 8 * step
            assert len(sizes(other)) <= 7
        total = sum(n or 10**9 for n in reads)
        assert total < 8 * 32 * 6, reads  # each a few times, as they are read again to make larger segments
        write(index)
        reads.clear()
        assert len(other.search(np.ones(DIM), k=1000)) == 456 and reads == []  # now from the new file
        assert len(sizes(other)) == 1


def test_a_lost_photo_is_noticed(index: SimilarityIndex) -> None:
    put_vectors(index, 50)
    write(index)
    index.search(np.ones(DIM))
    put_vectors(index, 1, seed=1)
    with index._store.lock:
        index._store._connection().execute("DELETE FROM photos WHERE path = ?", (b"1/0/0.jpg",))
    with pytest.raises(IndexDamagedError, match="photos are there"):
        index.search(np.ones(DIM))


def test_a_damaged_record_of_changes_is_noticed(index: SimilarityIndex) -> None:
    put_vectors(index, 50)
    write(index)
    index.search(np.ones(DIM))
    put_vectors(index, 2, seed=1)
    db = index._store._connection()
    db.execute("DELETE FROM changes WHERE rowid = (SELECT max(rowid) FROM changes)")
    with pytest.raises(IndexDamagedError, match="record of changes"):
        index.search(np.ones(DIM))


def test_a_search_beside_writers_sees_one_state(index: SimilarityIndex, kind: str) -> None:
    """Two photos are moved together between two folders in one transaction: never three or one of them is seen."""
    vectors = put_vectors(index, 500)
    write(index)
    store, root = index._store, 1
    contents = [hashlib.sha256(b"0 %d" % i).digest() for i in (3, 4)]
    done = threading.Event()
    problems: list[object] = []

    def search() -> None:
        try:
            while not done.is_set():
                found = index.search(list(vectors[:5]), k=600, path="0/**") + index.search([vectors[3]], k=600)
                for matches in found:
                    there = [m.path for m in matches if m.metadata["width"] in (3, 4)]
                    if len(matches) != 500 or len({path.split("/")[-2] for path in there}) != 1:
                        problems.append(there)
        except Exception as e:
            problems.append(repr(e))

    threads = [threading.Thread(target=search) for _ in range(2)]
    with store.writing(), store.transaction():  # both into one folder first
        for content in contents:
            (photo,) = store.photos_with(content)
            store.forget(photo)
            store.put(Photo(root, b"0/x/%s.jpg" % content.hex().encode(), FileStat(1, 1, 1, 1), True, content, "live"))
    for thread in threads:
        thread.start()
    for step in range(12):
        with store.writing():
            with store.transaction():
                for content in contents:
                    (photo,) = store.photos_with(content)
                    store.forget(photo)
                    path = b"0/%d/%s.jpg" % (step, content.hex().encode())
                    store.put(Photo(root, path, FileStat(1, 1, 1, 1), True, content, "live"))
            if step % 3 == 0:
                index._write_cache()
    done.set()
    for thread in threads:
        thread.join()
    assert problems == []


class Changes(RuleBasedStateMachine):
    """Random changes of a store, beside a plain list of what is live."""

    index: SimilarityIndex
    other: SimilarityIndex

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[bytes, tuple[bytes, np.ndarray]] = {}  # path -> content, vector
        self.known: dict[bytes, np.ndarray] = {}
        self.draw = np.random.default_rng(0)
        store = self.index._store
        with store.writing(), store.transaction():
            self.root = store.put_root(b"/r", "ok")
            for photo in store.photos():
                store.forget(photo)
            store.forget_vectors()

    def put(self, path: bytes, content: bytes) -> None:
        store = self.index._store
        if content not in self.known:
            vector = self.draw.normal(size=DIM)
            self.known[content] = (vector / np.linalg.norm(vector)).astype(np.float32)
        if store.vector(content) is None:
            store.put_vector(content, self.known[content])
        store.put(Photo(self.root.id, path, FileStat(1, 1, 1, 1), True, content, "live"))
        self.live[path] = content, self.known[content]

    @rule(number=st.integers(1, 60), start=st.integers(0, 3), contents=st.integers(1, 400))
    def add(self, number: int, start: int, contents: int) -> None:
        with self.index._store.writing(), self.index._store.transaction():
            for i in range(number):
                self.put(b"%d/%d.jpg" % (start, i), hashlib.sha256(b"%d" % ((i * 7 + start) % contents)).digest())

    @rule(every=st.integers(2, 9))
    def delete(self, every: int) -> None:
        store = self.index._store
        with store.writing(), store.transaction():
            for path in sorted(self.live)[::every]:
                photo = store.photo(self.root.id, path)
                assert photo
                store.forget(photo)
                del self.live[path]

    @rule(every=st.integers(2, 9))
    def rename(self, every: int) -> None:
        store = self.index._store
        with store.writing(), store.transaction():
            for path in sorted(self.live)[::every]:
                photo = store.photo(self.root.id, path)
                assert photo and photo.content_hash
                store.forget(photo)
                del self.live[path]
                self.put(b"x/" + path[-40:], photo.content_hash)

    @rule()
    def forget_vectors(self) -> None:
        with self.index._store.writing(), self.index._store.transaction():
            self.index._store.forget_vectors()

    @rule()
    def write(self) -> None:
        write(self.index)

    @rule()
    def reopen(self) -> None:
        self.other._snapshot = None

    @invariant()
    def finds_what_is_live(self) -> None:
        query = self.draw.normal(size=DIM)
        query /= np.linalg.norm(query)
        truth = {f"/r/{path.decode()}": float(vector @ query) for path, (_, vector) in self.live.items()}
        for index in (self.index, self.other):
            found = index.search(query, k=1000, all_copies=True)
            assert {m.path: pytest.approx(m.score, abs=1e-5) for m in found} == truth
            assert [m.score for m in found] == sorted((m.score for m in found), reverse=True)
            folded = index.search(query, k=1000)
            assert {path: m.score for m in folded for path in [m.path, *m.copies]} == {m.path: m.score for m in found}
            assert len(folded) == len({content for content, _ in self.live.values()})
            few = index.search([query] * 25, k=3, path="x/**", all_copies=True)[7]
            best = sorted((score for path, score in truth.items() if path.startswith("/r/x/")), reverse=True)[:3]
            assert [m.score for m in few] == pytest.approx(best, abs=1e-5)
            assert len(index) == len(self.live)


def run_changes(index: SimilarityIndex, examples: int) -> None:
    with SimilarityIndex.open(index._store.file.parent, model=FakeEmbedder()) as other:
        machine = type("Machine", (Changes,), {"index": index, "other": other})
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            machine,
            settings=settings(
                max_examples=examples, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)
            ),
        )


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Lists of near vectors from 40 vectors on."""
    monkeypatch.setattr(ann, "MAX_EXACT", 40 * DIM)
    yield


def test_random_changes(index: SimilarityIndex, small: None) -> None:
    run_changes(index, 5)


@pytest.mark.slow
def test_many_random_changes(index: SimilarityIndex, small: None) -> None:
    run_changes(index, 60)


def test_paths_of_vectors(index: SimilarityIndex, tmp_path: Path) -> None:
    vectors = put_vectors(index, 100)
    write(index)
    more = put_vectors(index, 5, seed=1)
    paths, found = index.vectors()
    assert len(sizes(index)) == 2 and paths == sorted(paths) and len(paths) == 105
    for path, vector in zip(paths, found, strict=True):
        seed, _, name = path.removeprefix("/elsewhere/").split("/")
        np.testing.assert_array_equal(vector, (vectors if seed == "0" else more)[int(name[:-4])])
