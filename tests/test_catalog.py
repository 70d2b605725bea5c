"""The catalog says what its sources say: names, places, steps, selectors, numbers, and the architectures."""

import re

import pytest
import torch
from official_graph import OfficialGraph

from simclr_hub import SimCLRConfig, SimCLRModel
from simclr_hub.checkpoints.catalog import config_of, entries
from simclr_hub.checkpoints.convert import infer_config

# arXiv 2006.10029, table 1: millions of parameters, then top-1 at 1 %, 10 %, 100 %, linear, supervised.
TABLE = """
r50_1x_sk0 24 57.9 68.4 76.3 71.7 76.6
r50_1x_sk1 35 64.5 72.1 78.7 74.6 78.5
r50_2x_sk0 94 66.3 73.9 79.1 75.6 77.8
r50_2x_sk1 140 70.6 77.0 81.3 77.7 79.3
r101_1x_sk0 43 62.1 71.4 78.2 73.6 78.0
r101_1x_sk1 65 68.3 75.1 80.6 76.3 79.6
r101_2x_sk0 170 69.1 75.8 80.7 77.0 78.9
r101_2x_sk1 257 73.2 78.8 82.4 79.0 80.1
r152_1x_sk0 58 64.0 73.0 79.3 74.5 78.3
r152_1x_sk1 89 70.0 76.5 81.3 77.2 79.9
r152_2x_sk0 233 70.2 76.6 81.1 77.4 79.1
r152_2x_sk1 354 74.2 79.4 82.9 79.4 80.4
r152_3x_sk1 795 74.9 80.1 83.1 79.8 80.5
"""
# Set -> folder, step, what the classifier sits on, layers of g, column of the table above.
V2 = {
    "": ("pretrained", 250228, 0, 3, "linear"),
    "-finetuned-1pct": ("finetuned_1pct", 751, 1, 3, "1%"),
    "-finetuned-10pct": ("finetuned_10pct", 3754, 1, 3, "10%"),
    "-finetuned-100pct": ("finetuned_100pct", 37535, 0, 3, "100%"),
    "-supervised": ("supervised", 28151, 0, 0, "supervised"),
}
V1 = {  # folder, steps and top-1 of 1x, 2x, 4x
    "": ("pretrain", (225206, 225206, 225206), (69.1, 74.2, 76.6), "linear"),
    "-finetuned-10pct": ("finetune_10pct", (939, 939, 470), (65.8, 71.6, 74.5), "10%"),
    "-finetuned-100pct": ("finetune_100pct", (9384, 18768, 4692), (75.6, 79.2, 80.8), "100%"),
}
DISTILLED = "simclr-v2-r152-3x-sk-distilled-1pct"


def expected():
    """Name -> (location, step, classifier layer, layers of g, depth, width, sk, millions, top-1)."""
    found = {}
    for line in TABLE.split("\n")[1:-1]:
        directory, millions, *accuracies = line.split()
        depth, width, sk = map(int, re.fullmatch(r"r(\d+)_(\d)x_sk(\d)", directory).groups())
        top1 = dict(zip(("1%", "10%", "100%", "linear", "supervised"), map(float, accuracies), strict=True))
        base = f"simclr-v2-r{depth}" + (f"-{width}x" if width > 1 else "") + ("-sk" if sk else "")
        for suffix, (folder, step, layer, g, protocol) in V2.items():
            place = f"simclr-checkpoints/simclrv2/{folder}/{directory}"
            found[base + suffix] = (
                place,
                step,
                layer,
                g,
                depth,
                width,
                bool(sk),
                int(millions),
                {protocol: top1[protocol]},
            )
    place = "simclr-checkpoints/simclrv2/distill_1pct/r152_3x_sk1/r152_3x_sk1"
    found[DISTILLED] = (place, None, 0, 3, 152, 3, True, 795, {})
    for suffix, (folder, steps, accuracies, protocol) in V1.items():
        for width, millions, step, top1 in zip((1, 2, 4), (24, 94, 376), steps, accuracies, strict=True):
            name = "simclr-v1-r50" + (f"-{width}x" if width > 1 else "") + suffix
            place = f"simclr-checkpoints/simclrv1/{folder}/{width}x"
            found[name] = (place, step, 0, 0, 50, width, False, millions, {protocol: top1})
    return found


def test_the_74_confirmed_and_the_distilled_one_are_as_published():
    assert len(entries()) == 75
    assert {
        entry.name: (
            entry.location,
            entry.step,
            entry.classifier_layer,
            config_of(entry).projection_layers,
            entry.depth,
            entry.width_multiplier,
            entry.selective_kernel,
            entry.parameters / 10**6,
            entry.top1,
        )
        for entry in entries().values()
    } == expected()
    assert all(name == entry.name for name, entry in entries().items())
    assert [name for name in entries() if "tuned" not in name][:13] == [n for n in entries() if "v2" in n][:13]


def test_every_fact_has_its_source_and_what_is_not_confirmed_says_so():
    for entry in entries().values():
        assert entry.sources.keys() == {"top1", "parameters", "location", "step", "classifier_layer"}
        for fact, source in entry.sources.items():
            known = re.match(r"arXiv \d{4}\.\d{5}, |.+: https://|.+: `.+`$", source)
            assert known or source == "unverified", (entry.name, fact)
        steps_of_v1 = entry.version == 1 and entry.training != "pretrained"
        assert (entry.sources["step"] == "unverified") == (steps_of_v1 or entry.name == DISTILLED)


@pytest.mark.parametrize("name", [name for name, entry in entries().items() if entry.training == "pretrained"])
def test_the_parameters_are_those_of_the_architecture(name):
    entry = entries()[name]
    with torch.device("meta"):
        encoder = SimCLRModel(config_of(entry)).encoder
    weights = [value for key, value in encoder.state_dict().items() if not key.endswith("num_batches_tracked")]
    assert round(sum(value.numel() for value in weights), -6) == entry.parameters


@pytest.mark.parametrize("name", expected())
def test_the_official_graph_of_each_is_recognised_as_its_config(name):
    _, _, layer, g, depth, width, sk, *_ = expected()[name]
    config = SimCLRConfig.v2(depth, width, sk, projection_layers=g, classifier_layer=layer)
    found = infer_config(shapes(depth, width, sk, g), classifier_layer=layer)
    for key in (*SimCLRConfig.__annotations__, "num_labels"):
        wanted = 1000 if key == "num_labels" else getattr(config, key)
        assert getattr(found, key) == getattr(config_of(entries()[name]), key) == wanted, key


_shapes = {}


def shapes(*key):
    """Names and shapes of the official graph, at full size."""
    if key not in _shapes:
        depth, width, sk, g = key
        graph = OfficialGraph(SimCLRConfig.v2(depth, width, sk, projection_layers=g), num_classes=1000, device="meta")
        graph(torch.empty(1, 3, 64, 64, device="meta"))
        _shapes[key] = graph.shapes
    return _shapes[key]
