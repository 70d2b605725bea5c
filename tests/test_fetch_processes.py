"""A download under SIGKILL and beside another process; real clients of the local bucket."""

from pathlib import Path

import pytest
from bucket_server import bucket_server, checkpoint
from hub_client import client
from safetensors.torch import load_file
from tiny import tiny_config

from simclr_hub.checkpoints.catalog import entries
from simclr_hub.checkpoints.convert import convert

pytestmark = pytest.mark.slow  # a real server, and downloads in processes of their own

NAME = "simclr-v1-r50"
ENTRY = entries()[NAME]
CONFIG = {"projection_layers": 0, "num_labels": 5}
FILES = ("checkpoint", f"{ENTRY.step}.index", "of-00001")
#: Before a job's code: the small network is what the name stands for.
PREPARE = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent / "support")!r})
from tiny import tiny_config
from functools import partial
from simclr_hub.checkpoints import official as fetch
from simclr_hub.checkpoints import convert as converting
fetch.config_of = lambda entry: tiny_config(**{CONFIG!r})
converting.convert = partial(converting.convert, image_size=64)
"""
FETCH = "from simclr_hub.checkpoints.official import official; result = str(official(name))"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    checkpoint(folder, tiny_config(**CONFIG), ENTRY.step)
    convert(folder, folder / "expected", image_size=64)
    with bucket_server() as bucket:
        bucket.put(ENTRY.location, folder)
        bucket.expected = load_file(folder / "expected" / "model.safetensors")
        yield bucket


@pytest.fixture(scope="module")
def process(bucket, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    with client(bucket, home, SIMCLR_HUB_BUCKET=bucket.url) as process:
        process.home = home
        yield process


@pytest.fixture
def fetched(bucket, process, tmp_path):
    """Forget what was asked; give the code that fetches into a cache of its own, and that cache."""
    bucket.faults.clear()
    bucket.requests.clear()
    cache = tmp_path / "cache"
    elsewhere = f"""
import huggingface_hub
fetch.cached_assets_path = partial(huggingface_hub.cached_assets_path, assets_dir={str(cache)!r})
"""
    return PREPARE + elsewhere + FETCH, cache


def right(directory, bucket):
    found = load_file(Path(directory) / "model.safetensors")
    return found.keys() == bucket.expected.keys() and all((found[k] == v).all() for k, v in bucket.expected.items())


def test_the_cache_is_the_one_of_hub_users(bucket, process):
    bucket.requests.clear()
    directory = Path(process.result(PREPARE + FETCH, name=NAME))
    assert directory.parent == process.home / "assets" / "simclr_hub" / "official" / NAME
    assert right(directory, bucket)


@pytest.mark.parametrize("kind", ["kill", "kill-half"])
@pytest.mark.parametrize("n", range(3))
def test_a_kill_at_each_request_leaves_no_half_and_a_rerun_completes(bucket, process, fetched, n, kind):
    code, cache = fetched
    bucket.order(kind, FILES[n] + "$")
    assert process.run(code, name=NAME)["killed"]
    home = cache / "simclr_hub" / "official" / NAME
    assert not list(home.glob("step-*"))
    served = {path.rpartition("/")[2]: content for path, content in bucket.files.items()}
    for path in (home / "source").iterdir():
        assert path.suffix == ".partial" or path.read_bytes() == served[path.name]
    assert right(process.result(code, name=NAME), bucket)
    assert bucket.asked().count(f"model.ckpt-{ENTRY.step}.index") == (2 if n == 1 else 1)  # what was whole is kept


KILL_AT = """
import os, signal, sys
count = 0
def killed(event, args):
    global count
    written = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
    changed = event in ("os.rename", "os.mkdir", "os.rmdir", "os.remove")
    if (written or changed) and str(args[0]).startswith(cache):
        count += 1
        if count == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(killed)
"""


@pytest.mark.slow
def test_a_kill_at_each_change_of_the_cache_leaves_no_half_and_a_rerun_completes(bucket, process, fetched, tmp_path):
    code, cache = fetched
    at = 0
    while at == 0 or process.run(KILL_AT + code, name=NAME, at=at, cache=str(cache))["killed"]:
        for path in cache.glob("simclr_hub/official/*/step-*"):
            assert right(path, bucket), at
        directory = Path(process.result(code, name=NAME))
        assert right(directory, bucket), at
        assert {path.name for path in directory.parent.iterdir()} == {".lock", directory.name}, at  # nothing is left
        at += 1
        cache.rename(tmp_path / f"done-{at}")
    assert at > 20


def test_two_processes_that_ask_at_once_download_once(bucket, process, fetched):
    code, _ = fetched
    bucket.order("cut", "of-00001$")  # the first is a while about it
    both = f"""
import os
read, write = os.pipe()
child = os.fork()
{code}
os.write(write, result.encode())
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
found = os.read(read, 10**6).decode()
result = [result, found]
"""
    own, found = process.result(both, name=NAME)
    assert found == own * 2 and right(own, bucket)
    assert len(bucket.requests) == 4 and bucket.asked().count("checkpoint") == 1
