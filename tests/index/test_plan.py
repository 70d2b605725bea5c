import tracemalloc
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclr_hub.index.paths import is_below
from simclr_hub.index.plan import Listed, make_plan
from simclr_hub.index.sandboxed_decode import DOES_NOT_END
from simclr_hub.index.store import Photo, Root
from simclr_hub.index.sync import place
from simclr_hub.scan import GRANULARITY_NS, FileStat

OLD, NEW = FileStat(1, 1, 1, 1), FileStat(1, 1, 2, 1)


def photo(path: bytes, stat: FileStat = OLD, **fields: object) -> Photo:
    defaults = {"settled": True, "content_hash": b"h", "state": "live"}
    return Photo(1, path, stat, **{**defaults, **fields})  # type: ignore[arg-type]


def judge(
    observed: dict[bytes, FileStat], recorded: Iterable[Photo], errors: Iterable[bytes] = (), folder: bytes = b""
) -> dict[str, list[bytes]]:
    """Return the paths by what is to be done with them."""
    listed = Listed()
    for path in sorted(observed, reverse=True):  # a scan's order is another than that of whole paths
        listed.add(path, observed[path])
    in_order = sorted(recorded, key=lambda photo: photo.path)
    plan = make_plan(listed.in_order(), in_order, dict.fromkeys(errors, "why"), folder)
    found = {"read": list(plan.todo()), "there": list(plan.there())}
    assert all(stat == observed[path] for some in found.values() for path, stat in some)
    assert len(found["read"]) == plan.to_read
    found["missing"] = list(plan.missing())
    paths = {what: [path for path, _ in some] for what, some in found.items()}
    assert all(some == sorted(some) for some in paths.values())
    unchanged = sum(photo.path in observed and is_below(photo.path, folder) for photo in in_order)
    assert plan.unchanged == unchanged - len(set(paths["read"] + paths["there"]) & {p.path for p in in_order})
    listed.close()
    plan.close()
    return paths


def test_each_case_once() -> None:
    recorded = [
        photo(b"same"),
        photo(b"failed", content_hash=None, state="failed"),
        photo(b"edited"),
        photo(b"young", settled=False),
        photo(b"back", state="missing"),
        photo(b"back edited", state="missing"),
        photo(b"gone"),
        photo(b"gone before", state="missing"),
    ]
    observed = dict.fromkeys([b"same", b"failed", b"young", b"back", b"new"], OLD)
    observed |= {b"edited": NEW, b"back edited": NEW}
    read = [b"back edited", b"edited", b"new", b"young"]
    assert judge(observed, recorded) == {"read": read, "there": [b"back"], "missing": [b"gone"]}


@pytest.mark.parametrize(
    ("renumbered", "of", "believed"), [(20, 20, True), (18, 20, True), (17, 20, False), (9, 9, False)]
)
def test_new_inodes_of_nearly_all_are_the_file_systems(renumbered: int, of: int, believed: bool) -> None:
    recorded = {b"%02d" % i: photo(b"%02d" % i) for i in range(of)}
    observed = dict.fromkeys(recorded, OLD)
    others = list(recorded)[:renumbered]
    observed |= {path: OLD._replace(inode=100 + i) for i, path in enumerate(others)}
    observed |= {b"edited": NEW, b"other size": OLD._replace(size=2, inode=7)}
    recorded |= {path: photo(path) for path in (b"edited", b"other size")}
    found = judge(observed, recorded.values())
    changed = [b"edited", b"other size"]
    assert found["read"] == (changed if believed else others + changed)
    assert found["there"] == (others if believed else [])  # with the stats of now


def test_what_could_not_be_listed_is_not_judged() -> None:
    recorded = [photo(p) for p in (b"x/a", b"x/y/b", b"x2/c", b"single", b"other")]
    assert judge({}, recorded, (b"x", b"single"))["missing"] == [b"other", b"x2/c"]


def test_only_the_folder_is_judged() -> None:
    recorded = [photo(p) for p in (b"x/a", b"x/y/b", b"xy/c", b"x")]
    assert judge({}, recorded, folder=b"x/y")["missing"] == [b"x/y/b"]
    assert judge({}, recorded, folder=b"x")["missing"] == [b"x", b"x/a", b"x/y/b"]


def test_those_that_ended_a_decoder_are_named() -> None:
    crashed = photo(b"bad", content_hash=None, state="failed", error=f"bad: {DOES_NOT_END}: signal 11")
    plan = make_plan([(b"bad", NEW), (b"good", OLD)], [crashed, photo(b"good")], {})
    assert plan.crashed == {b"bad"}
    plan.close()


@given(
    st.dictionaries(st.sampled_from([b"a", b"b", b"d/a", b"d.b", b"d/e/a"]), st.sampled_from([OLD, NEW])),
    st.dictionaries(
        st.sampled_from([b"a", b"b", b"d/a", b"d.b", b"d/e/a"]),
        st.tuples(st.sampled_from([OLD, NEW]), st.booleans(), st.sampled_from(["live", "missing", "failed"])),
    ),
    st.sampled_from([b"", b"d", b"d/e"]),
)
def test_every_observation_is_in_one_list_and_nothing_is_dropped(
    observed: dict[bytes, FileStat], rows: dict[bytes, tuple[FileStat, bool, str]], folder: bytes
) -> None:
    observed = {p: s for p, s in observed.items() if is_below(p, folder)}
    recorded = {
        p: photo(p, stat, settled=settled, state=state, content_hash=None if state == "failed" else b"h")
        for p, (stat, settled, state) in rows.items()
    }
    found = judge(observed, recorded.values(), folder=folder)
    same = {p for p in observed if p in recorded and recorded[p].stat == observed[p] and recorded[p].settled}
    assert set(found["there"]) == {p for p in same if recorded[p].state == "missing"}
    assert set(found["read"]) == observed.keys() - same
    gone = {p for p in recorded.keys() - observed.keys() if is_below(p, folder)}
    assert set(found["missing"]) == {p for p in gone if recorded[p].state != "missing"}


def test_memory_does_not_grow_with_the_photos() -> None:
    def most(number: int) -> int:
        tracemalloc.start()
        plan = make_plan(
            ((b"%07d" % i, OLD) for i in range(number)), (photo(b"%07d" % i, NEW) for i in range(number)), {}
        )
        assert sum(1 for _ in plan.todo()) == number
        plan.close()
        return tracemalloc.get_traced_memory()[1]

    try:
        few = most(10_000)
        tracemalloc.reset_peak()
        assert most(50_000) < 1.2 * few
    finally:
        tracemalloc.stop()


def test_a_file_stat_is_trusted_only_when_older_than_the_scan() -> None:
    now = 10**18
    old = FileStat(1, now - 2 * GRANULARITY_NS, now - 2 * GRANULARITY_NS, 1)
    assert old.settled(now)
    assert not old._replace(mtime_ns=now - GRANULARITY_NS).settled(now)  # within the tick
    assert not old._replace(mtime_ns=now + 10**15).settled(now)  # a clock that was set back
    assert not old._replace(ctime_ns=now).settled(now)  # replaced just now, with an old time
    assert old._replace(mtime_ns=-(10**18)).settled(now)  # before 1970


def test_the_place_of_a_folder() -> None:
    roots = [Root(1, b"/p/a", "ok"), Root(2, b"/p/b", "ok"), Root(3, b"/q", "ok")]
    inside = place(b"/p/a/x/y", roots)
    assert (inside.root, inside.folder, inside.absorbed) == (roots[0], b"x/y", [])
    assert place(b"/q", roots).folder == b"" and place(b"/q", roots).root == roots[2]
    parent = place(b"/p", roots)
    assert (parent.root, parent.absorbed) == (None, roots[:2])
    other = place(b"/p/ab", roots)  # not below /p/a
    assert (other.root, other.absorbed) == (None, [])
    top = place(b"/", roots)
    assert top.absorbed == roots
    below_top = place(b"/z/y", [Root(1, b"/", "ok")])
    assert (below_top.folder, below_top.absorbed) == (b"z/y", [])
