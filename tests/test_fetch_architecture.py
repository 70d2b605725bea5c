"""Which weights an official name accepts: those of its architecture, with what their files kept around f."""

from functools import partial

import huggingface_hub
import pytest
import tf_writer
import torch
from bucket_server import bucket_server
from official_graph import OfficialGraph
from test_catalog import expected
from test_official import relative

from simclr_hub import SimCLRConfig, SimCLRForImageClassification, load
from simclr_hub.checkpoints import official as fetch
from simclr_hub.checkpoints.catalog import config_of
from simclr_hub.checkpoints.official import official
from simclr_hub.errors import CheckpointError

pytestmark = pytest.mark.slow  # a real server

# Stand-ins keep depth, kernels, g, selector and step, but are this many times narrower.
NARROWER = 16


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """An empty bucket and an empty cache, for stand-ins."""

    def narrow(entry):
        config = config_of(entry)
        config.width_multiplier /= NARROWER
        return config

    with bucket_server() as bucket:
        monkeypatch.setenv("SIMCLR_HUB_BUCKET", bucket.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        assets = partial(huggingface_hub.cached_assets_path, assets_dir=tmp_path / "cache")
        monkeypatch.setattr(fetch, "cached_assets_path", assets)
        monkeypatch.setattr(fetch, "config_of", narrow)
        yield bucket


def serve(bucket, folder, name, *, of=None, layers=None, classes=1000):
    """Put at the place of NAME what the sources say of it or `of` another; layers of g and classes may differ."""
    place, step, *_ = expected()[name]
    _, _, layer, g, depth, width, sk, *_ = expected()[of or name]
    g = g if layers is None else layers
    config = SimCLRConfig.v2(depth, width / NARROWER, sk, projection_layers=g, classifier_layer=min(layer, g))
    graph = OfficialGraph(config, num_classes=classes)
    graph(torch.zeros(1, 3, 33, 33))
    tf_writer.write_bundle(folder / f"model.ckpt-{step}", graph.drawn)
    bucket.put(place, folder)
    return graph


@pytest.mark.parametrize("name", ["simclr-v1-r50-4x", "simclr-v2-r50-sk", "simclr-v2-r50-finetuned-1pct"])
def test_its_own(bucket, tmp_path, name):
    """Three of the 75; test_official_names.py has all."""
    graph = serve(bucket, tmp_path / "source", name)
    x = torch.rand(2, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    model = SimCLRForImageClassification.from_pretrained(official(name)).eval()
    with torch.no_grad():
        assert relative(model(x).logits, graph(x)["logits"]) < 1e-4


@pytest.mark.parametrize(
    ("name", "layers", "classes"),
    [
        ("simclr-v1-r50", 2, 1000),
        ("simclr-v1-r50", 0, 0),
        ("simclr-v2-r50", 0, 1000),
        ("simclr-v2-r50", 3, 0),
        ("simclr-v2-r50-finetuned-100pct", 0, 1000),
        ("simclr-v2-r50-supervised", 3, 1000),
    ],
)
def test_with_or_without_what_no_source_confirms(bucket, tmp_path, name, layers, classes):
    graph = serve(bucket, tmp_path / "source", name, layers=layers, classes=classes)
    model, _ = load(name)
    x = torch.rand(2, 3, 33, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert relative(model(x).pooler_output, graph(x)["h"]) < 1e-4
    assert model.config.projection_layers == layers


@pytest.mark.parametrize(
    ("name", "what", "message"),
    [
        ("simclr-v2-r50", {"of": "simclr-v2-r50-2x"}, "width_multiplier 0.125, not 0.0625"),
        ("simclr-v2-r50-sk", {"of": "simclr-v2-r50"}, "sk_ratio"),
        ("simclr-v2-r50", {"of": "simclr-v2-r101"}, "depths"),
        ("simclr-v2-r50", {"layers": 2}, "projection_layers 2, not 3"),
        ("simclr-v2-r50-supervised", {"layers": 2}, "projection_layers 2, not 3"),
        ("simclr-v1-r50", {"layers": 3}, "projection_layers 3, not 2"),
        ("simclr-v2-r50", {"classes": 10}, "num_labels 10, not 1000"),
        ("simclr-v2-r50-supervised", {"classes": 0}, "num_labels 2, not 1000"),
        ("simclr-v2-r50-finetuned-1pct", {"layers": 0}, "classifier_layer"),
        ("simclr-v2-r50-finetuned-1pct", {"classes": 0}, "has no classifier"),
    ],
)
def test_anothers_is_refused(bucket, tmp_path, name, what, message):
    serve(bucket, tmp_path / "source", name, **what)
    with pytest.raises(CheckpointError, match=message):
        official(name)
    assert {path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()} == {".lock"}


@pytest.mark.parametrize(
    "mirror", ["mirror", "ftp://mirror", "http://[::1", "http://user:secret@mirror", "http://m?x"]
)
def test_an_impossible_mirror_is_told_at_once(bucket, monkeypatch, mirror):
    monkeypatch.setenv("SIMCLR_HUB_BUCKET", mirror)
    with pytest.raises(CheckpointError, match="SIMCLR_HUB_BUCKET="):
        official("simclr-v2-r50")


def test_a_mirror_may_end_in_a_slash(bucket, tmp_path, monkeypatch):
    serve(bucket, tmp_path / "source", "simclr-v2-r50")
    monkeypatch.setenv("SIMCLR_HUB_BUCKET", f"{bucket.url}/")
    official("simclr-v2-r50")
