"""An official name becomes a model: once, never by halves, from a local bucket with the faults that networks have."""

import hashlib
import json
import os
import shutil
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import tf_writer
import torch
from bucket_server import bucket_server, checkpoint
from PIL import Image
from safetensors.torch import load_file
from test_official import relative
from tiny import tiny_config

from simclr_hub import Embedder, SimCLRForImageClassification, SimilarityIndex, embed, load
from simclr_hub.checkpoints import convert as converting
from simclr_hub.checkpoints import download
from simclr_hub.checkpoints import official as fetch
from simclr_hub.checkpoints.catalog import entries
from simclr_hub.checkpoints.convert import convert
from simclr_hub.checkpoints.official import convert_official, official
from simclr_hub.cli import main
from simclr_hub.errors import CheckpointError

pytestmark = pytest.mark.slow  # a real server

NAME = "simclr-v2-r50-finetuned-10pct"
PLACE, STEP = entries()[NAME].location, entries()[NAME].step
PREFIX = f"model.ckpt-{STEP}"
INDEX, DATA = f"{PREFIX}.index", f"{PREFIX}.data-00000-of-00001"
# What is served under NAME: a small network with a g of three layers and the classifier on the first.
CONFIG = tiny_config(projection_layers=3, projection_dim=16, classifier_layer=1, num_labels=5)


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """(Folder of the checkpoint, its graph, the weights that it must become)."""
    folder = tmp_path_factory.mktemp("source")
    graph = checkpoint(folder, CONFIG, STEP)
    out = folder.with_name("expected")
    convert(folder, out, classifier_layer=1, image_size=CONFIG.image_size)
    return folder, graph, load_file(out / "model.safetensors")


@pytest.fixture
def bucket(source, tmp_path, monkeypatch):
    """A bucket with NAME, and an empty cache below `tmp_path / "cache"`; waits are recorded in `bucket.waits`."""
    with bucket_server() as bucket:
        bucket.put(PLACE, source[0])
        bucket.waits = []
        monkeypatch.setenv("SIMCLR_HUB_BUCKET", bucket.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.5)
        assets = partial(huggingface_hub.cached_assets_path, assets_dir=tmp_path / "cache")
        monkeypatch.setattr(fetch, "cached_assets_path", assets)
        monkeypatch.setattr(fetch, "config_of", lambda entry: CONFIG)
        monkeypatch.setattr(converting, "convert", partial(convert, image_size=CONFIG.image_size))
        monkeypatch.setattr(download, "time", SimpleNamespace(sleep=bucket.waits.append))
        yield bucket


def same(directory, source):
    found = load_file(directory / "model.safetensors")
    return found.keys() == source[2].keys() and all(torch.equal(found[k], v) for k, v in source[2].items())


def whole(tmp_path, source):
    """Whether the model is there; and what else has its final name is as it was served."""
    served = {path.name: path.read_bytes() for path in source[0].iterdir()}
    for path in (home(tmp_path) / "source").glob("*"):
        assert path.suffix == ".partial" or path.read_bytes() == served[path.name] or path.name == "checkpoint"
    found = list(home(tmp_path).glob("step-*"))
    return len(found) == 1 and same(found[0], source)


def home(tmp_path):
    return tmp_path / "cache" / "simclr_hub" / "official" / NAME


def test_a_name_is_downloaded_and_converted_once(bucket, source, tmp_path, monkeypatch):
    directory = official(NAME)
    assert bucket.asked() == ["checkpoint", INDEX, DATA]
    assert same(directory, source) and directory.parent == home(tmp_path)
    digest = hashlib.sha256((source[0] / DATA).read_bytes()).hexdigest()
    size = (source[0] / DATA).stat().st_size
    url = f"{bucket.url}/{PLACE}/{DATA}"
    about = {"name": NAME, "url": url, "step": STEP, "sha256": digest, "size": size}
    assert json.loads((directory / "source.json").read_text()) == about
    assert directory.name == f"step-{STEP}-{digest[:12]}"
    assert sorted(p.name for p in directory.parent.iterdir()) == [
        ".lock",
        directory.name,
    ]  # TensorFlow's files are gone
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert official(NAME) == official(f"{NAME}@step-{STEP}") == directory
    assert len(bucket.requests) == 3


def test_the_classifier_of_1_and_10_percent_sits_on_gs_first_layer(bucket, source):
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = source[1](x)
    model = SimCLRForImageClassification.from_pretrained(official(NAME)).eval()
    with torch.no_grad():
        logits = model(x).logits
    assert relative(logits, expected["logits"]) < 1e-5
    weights = {k: torch.from_numpy(v).double() for k, v in source[1].drawn.items()}
    scope = "head_supervised/linear_layer/dense"
    on = {k: expected[k] @ weights[f"{scope}/kernel"] + weights[f"{scope}/bias"] for k in ("h", "proj_1")}
    assert relative(logits, on["proj_1"]) < 1e-5 < 0.1 < relative(logits, on["h"])


def test_a_name_works_wherever_a_model_does(bucket, source, photos, tmp_path, monkeypatch, capsys):
    model, processor = load(NAME)
    assert processor.size["height"] == CONFIG.image_size and model.config.name_or_path == f"{NAME}@step-{STEP}"
    photo = str(photos / "0.jpg")
    pixels = processor(images=Image.open(photo), return_tensors="pt").pixel_values
    vectors = embed(photo, model=NAME)
    assert relative(vectors, source[1](pixels)["h"]) < 1e-4
    assert Embedder(NAME).fingerprint["model"] == f"{NAME}@step-{STEP}"
    monkeypatch.chdir(tmp_path)
    SimilarityIndex.create("photos.index", model=NAME).sync(photos)
    assert SimilarityIndex.open("photos.index").search(photo, k=1, with_self=True)[0].score == pytest.approx(
        1, abs=1e-5
    )

    def run(*args):
        with pytest.raises(SystemExit) as exit:
            main([*map(str, args)])
        assert not exit.value.code, capsys.readouterr().err

    run("embed", photo, "-o", "v.npz", "--model", NAME)
    np.testing.assert_array_equal(np.load("v.npz")["vectors"], vectors)
    run("convert", NAME, "out")
    run("embed", photo, "-o", "w.npz", "--model", "out")
    np.testing.assert_array_equal(np.load("w.npz")["vectors"], vectors)
    assert json.loads(Path("out/config.json").read_text())["classifier_layer"] == 1
    assert bucket.asked() == ["checkpoint", INDEX, DATA]


PASSING = [  # every fault on the largest file, the commonest on each
    *((kind, DATA) for kind in ("cut", "drop", "stall", "flip", "longer", "shorter", 408, 429, 500, 503)),
    *((kind, file) for kind in ("cut", "flip", 503) for file in ("checkpoint", INDEX)),
]


@pytest.mark.parametrize(("kind", "file"), PASSING)
def test_what_passes_is_tried_again(bucket, source, tmp_path, kind, file):
    bucket.order(kind, f"/{file}$", times=2)
    started = time.monotonic()
    assert same(official(NAME), source)
    assert bucket.asked().count(file) >= 3 and bucket.waits[0] == 1
    assert time.monotonic() - started < 25  # a stalled server would be silent for 30 seconds
    assert whole(tmp_path, source)


@pytest.mark.parametrize(("kind", "file"), [case for case in PASSING if case[0] != "stall"])
def test_what_does_not_pass_is_one_error_and_a_rerun_completes(bucket, source, tmp_path, kind, file):
    bucket.order(kind, f"/{file}$", times=100)
    with pytest.raises(CheckpointError) as caught:
        official(NAME)
    assert f"{bucket.url}/{PLACE}/{file}" in str(caught.value) and "simclr-hub convert" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not whole(tmp_path, source)
    assert bucket.waits[-4:] == [1, 2, 4, 8]
    assert len(bucket.waits) == 4 or kind == "cut"  # where half of the rest arrives each time, down to one byte
    bucket.faults.clear()
    official(NAME)
    assert whole(tmp_path, source)


@pytest.mark.parametrize("status", [400, 403, 404, 410])
def test_what_is_not_there_is_not_tried_again(bucket, status):
    bucket.order(status, f"/{DATA}$", times=100)
    with pytest.raises(CheckpointError, match=f"{DATA}: the server answers {status} "):
        official(NAME)
    assert bucket.asked().count(DATA) == 1 and not bucket.waits


def test_a_server_that_asks_to_wait_is_heard(bucket):
    bucket.order(429, DATA, retry_after="17")
    bucket.order(503, DATA, retry_after="100000")
    bucket.order(503, DATA, retry_after="Wed, 21 Oct 2026 07:28:00 GMT")
    official(NAME)
    assert bucket.waits == [17, download.LONGEST_WAIT, 4]


def test_a_cut_download_goes_on_where_it_stopped(bucket, source):
    size = (source[0] / DATA).stat().st_size
    for _ in range(9):  # more than the attempts that may bring nothing
        bucket.order("cut", DATA)
    assert same(official(NAME), source)
    ranges = [asked for request, asked in bucket.requests if request.endswith(DATA)]
    starts = [int(asked[6:-1]) for asked in ranges[1:]]
    assert len(ranges) == 10 and ranges[0] == "" and starts == sorted(set(starts)) and starts[0] == size // 2 - 1
    assert bucket.waits == [1] * 9


def test_an_interrupted_call_leaves_what_the_next_goes_on_with(bucket, source, tmp_path, monkeypatch):
    def interrupt(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=interrupt))
    bucket.order("cut", DATA)
    with pytest.raises(KeyboardInterrupt):
        official(NAME)
    assert not whole(tmp_path, source) and len(list((home(tmp_path) / "source").glob("*.partial"))) == 1
    assert same(official(NAME), source)
    assert bucket.asked() == ["checkpoint", INDEX, DATA, "checkpoint", DATA] and bucket.requests[-1][1]


def test_a_whole_part_that_was_not_renamed_is_not_downloaded_again(bucket, source, tmp_path, monkeypatch):
    path, url = tmp_path / "data", f"{bucket.url}/{PLACE}/{DATA}"
    with monkeypatch.context() as patch:
        patch.setattr(download, "fsync_file", lambda path: 1 / 0)  # as if killed when all had arrived
        with pytest.raises(ZeroDivisionError):
            download.download(url, path)
    download.download(url, path)
    content = (source[0] / DATA).read_bytes()
    assert path.read_bytes() == content and bucket.requests[-1][1] == f"bytes={len(content) - 1}-"


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("change", ["no-range", "later-range", "half-range", "changed", "shrunk"])
def test_a_part_of_something_else_is_never_gone_on_with(bucket, source, tmp_path, change, etags):
    bucket.etags = etags
    path, url = tmp_path / "file", f"/{PLACE}/{DATA}"
    content = bucket.files[url]
    bucket.order("cut", DATA, times=1)
    bucket.order(404, DATA)
    with pytest.raises(CheckpointError):
        download.download(bucket.url + url, path)
    if change.endswith("range"):
        bucket.order(change, DATA)
    else:
        content = bytes(reversed(content[: len(content) // (3 if change == "shrunk" else 1)]))
        bucket.files[url] = content
    bucket.hashes = False  # not even then
    before = len(bucket.requests)
    download.download(bucket.url + url, path)
    assert len(bucket.requests) == before + (1 if change == "no-range" else 2)
    assert path.read_bytes() == content and not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("file", ["checkpoint", INDEX, DATA])
def test_damage_is_found_without_the_buckets_checksums_and_a_rerun_completes(bucket, source, tmp_path, file):
    bucket.hashes = False
    bucket.order("flip", f"/{file}$")
    with pytest.raises(CheckpointError):
        official(NAME)
    assert not any(home(tmp_path).glob("step-*"))
    assert same(official(NAME), source)


def test_the_remote_step_is_trusted_over_the_table(bucket, source, tmp_path):
    folder = tmp_path / "other"
    tf_writer.write_bundle(folder / "model.ckpt-77", source[1].drawn)
    bucket.files = {}
    bucket.put(PLACE, folder)
    assert official(NAME).name.startswith("step-77-")
    assert load(NAME)[0].config.name_or_path == f"{NAME}@step-77"
    with pytest.raises(CheckpointError, match=f"{NAME}@step-{STEP}: .* has step 77 now"):
        official(f"{NAME}@step-{STEP}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\0" * 100,
        "<html>sign in first</html>",
        'model_checkpoint_path: "../../model.ckpt-3754"',
        'model_checkpoint_path: "/etc/model.ckpt-3754"',
        'model_checkpoint_path: "model.ckpt-3754.index"',
        'model_checkpoint_path: "model.ckpt-3754/x"',
        'model_checkpoint_path: "model.ckpt-"',
        'model_checkpoint_path: "model.ckpt--1"',
        'model_checkpoint_path: "model.ckpt-' + "9" * 40 + '"',
        'all_model_checkpoint_paths: "model.ckpt-3754"',
    ],
)
def test_a_listing_that_names_no_step_is_refused(bucket, text):
    bucket.files[f"/{PLACE}/checkpoint"] = text.encode()
    with pytest.raises(CheckpointError, match="checkpoint: has no line model_checkpoint_path"):
        official(NAME)
    assert bucket.asked() == ["checkpoint"]


@pytest.mark.parametrize("change", [{"projection_layers": 2}, {"num_labels": 6}, {"depths": (1, 1, 2, 1)}])
def test_another_model_at_its_place_is_refused(bucket, tmp_path, monkeypatch, change):
    config = tiny_config(
        **{"projection_layers": 3, "projection_dim": 16, "classifier_layer": 1, "num_labels": 5, **change}
    )
    monkeypatch.setattr(fetch, "config_of", lambda entry: config)
    with pytest.raises(CheckpointError, match=f"{NAME}: .*{next(iter(change))} "):
        official(NAME)
    assert [p.name for p in home(tmp_path).iterdir()] == [".lock"]


def test_offline_is_heard(bucket, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=f"{NAME}: not in the cache, and HF_HUB_OFFLINE is set"):
        load(NAME)
    assert not bucket.requests


def test_a_full_disk_is_one_error_and_what_arrived_is_kept(bucket, source, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        with pytest.raises(CheckpointError, match=rf"{NAME}: .*bytes are needed.*HF_HOME"):
            official(NAME)
    with monkeypatch.context() as patch:
        patch.setattr(converting, "convert", lambda *args, **kwargs: os.write(-1, b""))
        with pytest.raises(CheckpointError, match=f"{NAME}: .*HF_HOME"):
            official(NAME)
    before = len(bucket.requests)
    assert same(official(NAME), source)
    assert bucket.asked()[before:] == ["checkpoint"]


def test_what_a_killed_process_left_makes_room(bucket, source, tmp_path):
    for name in (".step-77-0123.x1", "..step-77-0123.x1.y2"):  # new_directory's of the model, and `convert`'s within
        (home(tmp_path) / name).mkdir(parents=True)
        (home(tmp_path) / name / "model.safetensors").write_bytes(b"half")
    directory = official(NAME)
    assert {path.name for path in home(tmp_path).iterdir()} == {".lock", directory.name}


def test_a_cache_that_is_a_file_is_one_error(bucket, tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(CheckpointError, match=f"{NAME}: .*HF_HOME"):
        official(NAME)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("simclr-v2-r50-sk1", "is it simclr-v2-r50-sk"),
        ("simclrv2-r152-3x-sk", "is it simclr-v2-r152-3x-sk"),
        ("simclr-v2-r50@main", "is it simclr-v2-r50"),
        ("resnet", "simclr-hub models"),
    ],
)
def test_an_unknown_name_tells_the_close_ones(bucket, name, message):
    for call in (load, official):
        with pytest.raises(CheckpointError, match=message) as caught:
            call(name)
        assert str(caught.value).startswith(f"{name}: ")
    assert not bucket.requests


def test_the_command_that_converts_tells_the_close_names_too(bucket, source, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["convert", "simclr-v2-r50-sk1", str(tmp_path / "out")])
    assert exit.value.code == 1 and "is it simclr-v2-r50-sk" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    tf_writer.write_bundle(Path("simclr-v2-mine"), source[1].drawn)  # a prefix of files that are here
    with pytest.raises(SystemExit) as exit:
        main(["convert", "simclr-v2-mine", "out"])
    assert not exit.value.code and Path("out/config.json").exists()


def test_converting_otherwise_than_the_cache_has_it(bucket, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    config = convert_official(NAME, out, classifier_layer=0, image_size=96)
    assert (config.classifier_layer, config.image_size) == (0, 96) and same(out, source)
    assert not any(home(tmp_path).glob("step-*")) and not (home(tmp_path) / "source").exists()
    with pytest.raises(FileExistsError):
        convert_official(NAME, out)
    before = len(bucket.requests)
    with pytest.raises(CheckpointError, match="classifier_layer=4"):
        convert_official(NAME, tmp_path / "no", classifier_layer=4)
    with pytest.raises(CheckpointError, match="averaged"):
        convert_official(NAME, tmp_path / "no", ema=True)
    assert len(bucket.requests) == before  # what is impossible costs no download
    name = "simclr-v2-r50"
    graph = checkpoint(tmp_path / "pretrained", CONFIG, 250228, ema=True)
    bucket.put(entries()[name].location, tmp_path / "pretrained")
    convert_official(name, tmp_path / "averaged", ema=True)
    kernel = load_file(tmp_path / "averaged" / "model.safetensors")["simclr.projection.layers.0.dense.weight"]
    torch.testing.assert_close(kernel.T.numpy(), 2 * graph.drawn["head_contrastive/nl_0/dense/kernel"])


def test_a_trailing_slash_and_a_directory_of_that_name(bucket, source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert_official(NAME, NAME)
    count = len(bucket.requests)
    assert load(NAME)[0].config.name_or_path == str(tmp_path / NAME)  # what is here comes first
    assert len(bucket.requests) == count
