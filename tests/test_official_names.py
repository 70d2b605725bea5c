"""Each of the 74 names, and the distilled one, from a local bucket to a model that computes the official graph.

A network of an eighth of the width stands for each, with its own depth, kernels, head, selector and step; ResNet-50 at
full size stands for itself. Slow.
"""

from functools import partial

import huggingface_hub
import pytest
import tf_writer
import torch
from bucket_server import bucket_server, checkpoint
from official_graph import OfficialGraph
from test_catalog import DISTILLED, expected
from test_official import relative

from simclr_hub import SimCLRConfig, SimCLRForImageClassification, load
from simclr_hub.checkpoints import official as fetch
from simclr_hub.checkpoints.catalog import config_of, entries
from simclr_hub.checkpoints.official import official

pytestmark = pytest.mark.slow


def stand_in(name):
    """An eighth of the width of what the table in test_catalog.py says of this name."""
    _, _, layer, g, depth, width, sk, *_ = expected()[name]
    head = {"projection_layers": g, "classifier_layer": layer, "num_labels": 1000}
    return SimCLRConfig.v2(depth, width / 8, sk, **head)


@pytest.fixture(scope="module")
def bucket():
    with bucket_server() as bucket:
        yield bucket


@pytest.fixture
def empty(bucket, tmp_path, monkeypatch):
    """The bucket, without files, and an empty cache."""
    bucket.files.clear()
    bucket.requests.clear()
    monkeypatch.setenv("SIMCLR_HUB_BUCKET", bucket.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    assets = partial(huggingface_hub.cached_assets_path, assets_dir=tmp_path / "cache")
    monkeypatch.setattr(fetch, "cached_assets_path", assets)
    return bucket


_graphs = {}


def graph_of(name):
    """A random official graph for a name; names of one architecture and head share its weights."""
    config = stand_in(name)
    key = (*config.depths, config.width_multiplier, config.sk_ratio, config.projection_layers)
    if key not in _graphs:
        _graphs[key] = OfficialGraph(config, num_classes=1000)
        _graphs[key](torch.rand(1, 3, 33, 33))
    return OfficialGraph(config, _graphs[key].drawn, num_classes=1000)


@pytest.mark.parametrize("name", expected())
def test_a_name_gives_its_files_its_selector_and_its_network(empty, tmp_path, monkeypatch, name):
    place, step, layer, *_ = expected()[name]
    step = 1251 if name == DISTILLED else step  # of which only the place is known
    graph = graph_of(name)
    tf_writer.write_bundle(tmp_path / "tf" / f"model.ckpt-{step}", graph.drawn)
    empty.put(place, tmp_path / "tf")
    real = config_of(entries()[name])

    def narrow(entry):  # everything but the width is the catalog's
        config = config_of(entry)
        keys = {key: getattr(config, key) for key in SimCLRConfig.__annotations__}
        return SimCLRConfig(**keys | {"width_multiplier": config.width_multiplier / 8, "num_labels": 1000})

    monkeypatch.setattr(fetch, "config_of", narrow)
    directory = official(name)
    prefix = f"GET /{place}/model.ckpt-{step}"
    wanted = [f"GET /{place}/checkpoint", f"{prefix}.index", f"{prefix}.data-00000-of-00001"]
    assert [request for request, _ in empty.requests] == wanted
    model = SimCLRForImageClassification.from_pretrained(directory).eval()
    assert model.config.depths == real.depths and model.config.classifier_layer == layer
    x = torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    outputs = graph(x)
    with torch.no_grad():
        logits, h = model(x).logits, model.simclr(x).pooler_output
    assert relative(h, outputs["h"]) < 1e-5 and relative(logits, outputs["logits"]) < 2e-5
    assert load(name)[0].config.name_or_path == f"{name}@step-{step}"


@pytest.mark.parametrize(
    "name", ["simclr-v1-r50", "simclr-v2-r50", "simclr-v2-r50-finetuned-1pct", "simclr-v2-r50-sk"]
)
def test_resnet_50_at_full_size(empty, tmp_path, name):
    entry = entries()[name]
    graph = checkpoint(tmp_path / "tf", config_of(entry), entry.step, ema=name == "simclr-v2-r50")
    empty.put(entry.location, tmp_path / "tf")
    directory = official(name)
    model = SimCLRForImageClassification.from_pretrained(directory).eval()
    parameters = sum(v.numel() for k, v in model.simclr.encoder.state_dict().items() if "tracked" not in k)
    assert round(parameters, -6) == entry.parameters
    x = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    outputs = graph(x)
    with torch.no_grad():
        logits, h = model(x).logits, model.simclr(x).pooler_output
    assert relative(h, outputs["h"]) < 1e-5 and relative(logits, outputs["logits"]) < 2e-5
