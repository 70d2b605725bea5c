"""Runs of a plan: processes that crash or are killed at any moment, and at the end every image exactly once."""

import json
import multiprocessing
import os
import random
import sys
import tarfile
import time
from multiprocessing import forkserver
from pathlib import Path

import pyarrow as pa
import pytest
from index.index_fakes import FakeEmbedder, make_photo
from parts_child import CrashingEmbedder, UnloadableEmbedder, make_all

from simclr_hub.errors import MissingExtraError, OutputError, PartsError
from simclr_hub.parts import attempts, ray
from simclr_hub.parts.attempts import Lost, hand_out
from simclr_hub.parts.check import check_parts
from simclr_hub.parts.part import Result
from simclr_hub.parts.plan import Plan, make_plan
from simclr_hub.parts.run import prepare, run_parts
from simclr_hub.parts.storage import Folder, open_file

KILLS = 20


def test_killed_at_random_moments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos, chance = tmp_path / "photos", random.Random(0)
    for i in range(120):
        make_photo(photos / f"{i}.png", i)
    plan = make_plan([str(photos)], tmp_path / "plan", images=10)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["parts_child"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.path.dirname(__file__), str(Path(__file__).parents[1])]))
    forkserver.ensure_running()
    rounds = killed = 0
    while killed < KILLS:
        rounds += 1
        out = tmp_path / f"out {rounds}"
        prepare(Folder(out), plan)
        while killed < KILLS:
            child = context.Process(target=make_all, args=(tmp_path / "plan", out))
            child.start()
            time.sleep(chance.uniform(0.02, 0.5))
            child.kill()
            child.join()
            if child.exitcode == 0:
                break
            killed += 1
            report = check_parts(plan, Folder(out))
            assert not (report.damaged or report.doubled or report.foreign)  # at each moment what is there is whole
        child = context.Process(target=make_all, args=(tmp_path / "plan", out))
        child.start()
        child.join()
        report = check_parts(plan, Folder(out))
        assert child.exitcode == 0 and report.complete and report.rows == 120


def test_a_crash_costs_one_image(many: Path, tmp_path: Path) -> None:
    (many / "1" / "crash.png").write_bytes(b"CRASH")
    plan = make_plan([str(many)], tmp_path / "plan", images=8)
    attempts = []
    report = run_parts(
        plan,
        tmp_path / "out",
        CrashingEmbedder,
        workers=2,
        progress=lambda result, _: result and attempts.append(result.attempt),
    )
    assert (report.made, report.rows, report.unusable, report.failed) == (4, 31, 3, {})
    assert sorted(attempts) == [1, 1, 1, 2]
    assert check_parts(plan, Folder(tmp_path / "out")).complete


def test_shares_are_the_whole_and_what_is_there_stays(many: Path, tmp_path: Path) -> None:
    plan, out = make_plan([str(many)], tmp_path / "plan", images=8), tmp_path / "out"
    first = run_parts(plan, out, FakeEmbedder, worker=(1, 3))
    assert (first.planned, first.made) == (2, 2)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    rest = run_parts(plan, out, FakeEmbedder, workers=1)
    assert (rest.planned, rest.there, rest.made) == (4, 2, 2)
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert check_parts(plan, Folder(out)).complete


class FakeCrew:
    """Workers in some places, whose answers to each part are given: a Result, or why they are lost."""

    def __init__(self, places: list[str], answers: dict[str | None, list[Result | str | None]]) -> None:
        self.where, self.answers, self.given = places, answers, list[str]()

    def places(self) -> list[str]:
        return self.where

    def start(self, place: str) -> tuple[str, None]:
        return place, None

    def wait(self, tickets: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
        return tickets[:1]

    def answer(self, ticket: tuple[str, str | None]) -> Result | str | None:
        said = self.answers[ticket[1]].pop(0) if self.answers.get(ticket[1]) else None
        if isinstance(said, str) and said.startswith("ended"):
            raise Lost(said)
        return said or (Result(ticket[1], "made") if ticket[1] else None)

    def give(self, ticket: tuple[str, str | None], name: str | None) -> tuple[str, str] | None:
        self.given += [name] if name else []
        return (ticket[0], name) if name else None


def test_a_part_is_given_up_after_three_attempts() -> None:
    told: list[Result] = []
    # One that another attempt cannot mend, such as another's folder, is not tried again.
    answers = {"a": ["ended with -9"] * 3, "b": [Result("b", "failed", attempt=0)], "c": ["ended", None]}
    crew = FakeCrew(["here"], answers)
    hand_out(["a", "b", "c"], told.append, crew)
    assert crew.given == ["a", "b", "c", "a", "c", "a"]
    assert [(one.name, one.state, one.attempt) for one in told] == [
        ("b", "failed", 0),
        ("c", "made", 1),
        ("a", "failed", 3),
    ]
    assert told[2].error == "its worker ended with -9"


def test_a_place_where_nothing_loads_is_left_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Result] = []
    crew = FakeCrew(["bad", "good"], {})
    loads = {"bad": 0, "good": 0}

    def answer(ticket: tuple[str, str | None]) -> Result | str | None:
        if ticket[1] is None:
            loads[ticket[0]] += 1
            if ticket[0] == "bad":
                raise Lost("a node has no module x")
        return FakeCrew.answer(crew, ticket)

    monkeypatch.setattr(crew, "answer", answer)
    hand_out([str(i) for i in range(9)], told.append, crew)
    assert len(told) == 9 and all(one.state == "made" for one in told)
    assert 1 <= loads["bad"] <= 3 and loads["good"] == 1
    crew.where = ["bad"]
    with pytest.raises(PartsError, match="a node has no module x"):
        hand_out(["a"], told.append, crew)
    crew.where = []
    monkeypatch.setattr(attempts, "PATIENCE", 0)
    with pytest.raises(PartsError, match="no place for a worker"):
        hand_out(["a"], told.append, crew)


def test_workers_of_ray_share_what_their_nodes_have() -> None:
    nodes = [
        {"NodeID": "gpus", "Alive": True, "Resources": {"CPU": 16.0, "GPU": 2.0}},
        {"NodeID": "cpus", "Alive": True, "Resources": {"CPU": 8.0}},
        {"NodeID": "head", "Alive": True, "Resources": {"memory": 1e9}},
        {"NodeID": "gone", "Alive": False, "Resources": {"CPU": 8.0}},
    ]
    assert dict(ray._slots(nodes, None)) == {
        ("gpus", 0): {"num_cpus": 8, "num_gpus": 1},
        ("gpus", 1): {"num_cpus": 8, "num_gpus": 1},
        ("cpus", 0): {"num_cpus": 8, "num_gpus": 0},
    }
    assert dict(ray._slots(nodes[:1], 4))["gpus", 3] == {"num_cpus": 4, "num_gpus": 0.5}


@pytest.mark.parametrize(("engine", "package"), [("ray", "ray"), ("spark", "pyspark")])
def test_an_engine_that_is_not_installed_names_its_extra(
    engine: str, package: str, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'simclr-hub\[{engine}\]'"):
        run_parts(make_plan([str(many)], tmp_path / "plan"), tmp_path / "out", FakeEmbedder, engine=engine)


def test_what_cannot_be_run_is_told(many: Path, shards: Path, tmp_path: Path) -> None:
    plan = make_plan([str(many)], tmp_path / "plan")
    with pytest.raises(PartsError, match="no such layer"):
        run_parts(plan, tmp_path / "out", UnloadableEmbedder)
    with pytest.raises(PartsError, match="give one of local"):
        run_parts(plan, tmp_path / "out", FakeEmbedder, engine="nothing")
    with pytest.raises(OutputError, match="in the photo folder"):
        run_parts(plan, many / "out", FakeEmbedder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    with pytest.raises(PartsError, match="mine: not a folder of parts"):
        run_parts(plan, tmp_path / "mine", FakeEmbedder)
    with pytest.raises(OutputError, match="Not a directory"):
        run_parts(plan, tmp_path / "mine" / "letter.txt", FakeEmbedder)
    other = make_plan([str(shards)], tmp_path / "other")
    with pytest.raises(PartsError, match="the parts of another plan"):
        run_parts(other, tmp_path / "out", FakeEmbedder)


def test_the_commands(run, many: Path, tmp_path: Path) -> None:
    code, out, _ = run("parts", "plan", many, "-o", "plan", "--images", "20")
    assert (code, out) == (0, f"2 parts to {tmp_path}/plan: 30 images\n")
    code, _, err = run("parts", "plan", many, "-o", "plan")
    assert code == 1 and "exists already" in err
    code, out, _ = run("parts", "check", "plan", "out")
    assert code == 1 and "not complete: 0 of 2 parts" in out
    made = ["parts", "run", "plan", "-o", "out"]
    code, out, _ = run(*made, "--worker", "2/2", "--json", "--strict")
    assert code == 3 and json.loads(out)["made"] == 1
    code, out, _ = run(*made)
    assert code == 0 and out == "2 parts: 1 were there, 1 made (20 images, 0 unusable), 0 failed\n"
    code, out, _ = run("parts", "check", "plan", "out", "--json")
    assert code == 0 and json.loads(out)["rows"] == 30
    assert run("import", "out", "new.index")[:2] == (0, "28 photos to new.index\n")
    assert "new.index exists already" in run("import", "out", "new.index")[2]


def test_places_with_any_bytes_in_their_names(run, tmp_path: Path) -> None:
    odd = os.fsdecode(b"photos \xff\xfe")
    for i in range(3):
        make_photo(tmp_path / odd / f"{i}.png", i)
    with tarfile.open(tmp_path / os.fsdecode(b"shard \xff.tar"), "w") as archive:
        archive.add(tmp_path / odd / "1.png", os.fsdecode(b"member \xff.png"))
    (tmp_path / "list.txt").write_bytes(os.fsencode(tmp_path / odd / "0.png") + b"\n")
    for number, source in enumerate((odd, os.fsdecode(b"shard \xff.tar"), f"{odd}/2.png", "list.txt")):
        plan, out = os.fsdecode(b"plan \xff%d" % number), os.fsdecode(b"out \xff%d" % number)
        assert run("parts", "plan", source, "-o", plan)[0] == 0
        made = run_parts(Plan.read(tmp_path / plan), tmp_path / out, FakeEmbedder)
        assert made.failed == {} and made.unusable == 0 and made.rows == (3 if number == 0 else 1)
        assert run("parts", "check", plan, out)[0] == 0
        assert run("import", out, os.fsdecode(b"index \xff%d" % number))[0] == 0


def test_a_folder_of_photos_is_not_called_wrong_parts(many: Path, tmp_path: Path, run) -> None:
    make_plan([str(many)], tmp_path / "plan", images=8)
    make_plan([str(many / "1")], tmp_path / "other", images=8)
    run_parts(Plan.read(tmp_path / "other"), tmp_path / "others", FakeEmbedder)
    for wrong, why in ((many, "not a folder of parts"), (tmp_path / "plan", "not a folder of parts")):
        code, out, err = run("parts", "check", "plan", wrong)
        assert code == 1 and why in err and "delete" not in out + err
    code, out, err = run("parts", "check", "plan", "others")
    assert code == 1 and "the parts of another plan" in err and "delete" not in out + err
    with pytest.raises(OutputError, match="in the folder of the plan"):
        run_parts(Plan.read(tmp_path / "plan"), tmp_path / "plan" / "out", FakeEmbedder)


def test_files_are_no_files_of_pythons(tmp_path: Path) -> None:
    # Arrow's threads let go of one when they like: while Python ends, that aborts the process.
    (tmp_path / "x").write_bytes(b"x")
    with open_file(str(tmp_path / "x")) as file:
        assert isinstance(file, pa.NativeFile) and file.read() == b"x"
