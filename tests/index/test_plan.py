import pytest
from hypothesis import given
from hypothesis import strategies as st

from simclr_hub.index.paths import is_below
from simclr_hub.index.store import Photo, Root
from simclr_hub.index.sync import make_plan, place
from simclr_hub.scan import GRANULARITY_NS, FileStat, Listing

OLD, NEW = FileStat(1, 1, 1, 1), FileStat(1, 1, 2, 1)


def photo(path: bytes, stat: FileStat = OLD, **fields: object) -> Photo:
    defaults = {"settled": True, "content_hash": b"h", "state": "live"}
    return Photo(1, path, stat, **{**defaults, **fields})  # type: ignore[arg-type]


def listing(photos: dict[bytes, FileStat], errors: tuple[bytes, ...] = ()) -> Listing:
    return Listing(photos, {}, dict.fromkeys(errors, "why"))


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
    plan = make_plan(listing(observed), {p.path: p for p in recorded})
    assert [p.path for p in plan.unchanged] == [b"failed", b"same"]
    assert [p.path for p in plan.came_back] == [b"back"]
    assert plan.rehash == [b"back edited", b"edited", b"young"]
    assert plan.new == [b"new"]
    assert [p.path for p in plan.missing] == [b"gone"]


@pytest.mark.parametrize(
    ("renumbered", "of", "believed"), [(20, 20, True), (18, 20, True), (17, 20, False), (9, 9, False)]
)
def test_new_inodes_of_nearly_all_are_the_file_systems(renumbered: int, of: int, believed: bool) -> None:
    recorded = {b"%02d" % i: photo(b"%02d" % i) for i in range(of)}
    observed = dict.fromkeys(recorded, OLD)
    observed |= {path: OLD._replace(inode=100 + i) for i, path in enumerate(list(recorded)[:renumbered])}
    observed |= {b"edited": NEW, b"other size": OLD._replace(size=2, inode=7)}
    recorded |= {path: photo(path) for path in (b"edited", b"other size")}
    plan = make_plan(listing(observed), recorded)
    changed = [b"edited", b"other size"]
    assert plan.rehash == (changed if believed else sorted(recorded)[:renumbered] + changed)
    if believed:  # with the stats of now
        assert all(p.stat == observed[p.path] for p in plan.unchanged) and len(plan.unchanged) == of


def test_what_could_not_be_listed_is_not_judged() -> None:
    recorded = {p: photo(p) for p in (b"x/a", b"x/y/b", b"x2/c", b"single", b"other")}
    plan = make_plan(listing({}, (b"x", b"single")), recorded)
    assert [p.path for p in plan.missing] == [b"other", b"x2/c"]


def test_only_the_folder_is_judged() -> None:
    recorded = {p: photo(p) for p in (b"x/a", b"x/y/b", b"xy/c", b"x")}
    assert [p.path for p in make_plan(listing({}), recorded, b"x/y").missing] == [b"x/y/b"]
    assert [p.path for p in make_plan(listing({}), recorded, b"x").missing] == [b"x", b"x/a", b"x/y/b"]


@given(
    st.dictionaries(st.sampled_from([b"a", b"b", b"d/a", b"d/e/a"]), st.sampled_from([OLD, NEW])),
    st.dictionaries(
        st.sampled_from([b"a", b"b", b"d/a", b"d/e/a"]),
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
    plan = make_plan(listing(observed), recorded, folder)
    seen = [*plan.new, *plan.rehash, *(p.path for p in plan.unchanged + plan.came_back)]
    assert sorted(seen) == sorted(observed)
    assert all(p.stat == observed[p.path] and p.settled for p in plan.unchanged + plan.came_back)
    for p in plan.missing:
        assert p.path not in observed and is_below(p.path, folder) and p.state != "missing"


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
