"""PyTorch files of other projects become loadable directories that compute the same, or are refused by name."""

import argparse
import json
import os
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_official import relative
from tiny import tiny_config
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.transforms.v2.functional import normalize as torchvision_normalize

from simclr_hub import Embedder, SimCLRForImageClassification, SimCLRImageProcessor, SimCLRModel
from simclr_hub.checkpoints import pytorch
from simclr_hub.checkpoints.convert import convert
from simclr_hub.checkpoints.torch_file import SUFFIXES
from simclr_hub.cli import main
from simclr_hub.errors import CheckpointError, IndexMismatchError
from simclr_hub.index.similarity_index import SimilarityIndex

IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
ODD, EVEN = (33, 41), (32, 44)  # sides whose maps before the pool are odd, even


class OfficialPool(nn.Module):
    """Max-pool 3x3, stride 2, with TensorFlow's SAME padding, by its formula."""

    def forward(self, x):
        pads = []
        for n in (x.shape[-1], x.shape[-2]):
            total = max((-(-n // 2) - 1) * 2 + 3 - n, 0)
            pads += [total // 2, total - total // 2]
        return F.max_pool2d(F.pad(x, pads, value=-torch.inf), 3, 2)


@torch.no_grad()
def randomized(net):
    """Statistics and scales as of a trained network."""
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, value in (*module.named_parameters(), *module.named_buffers()):
                if name == "num_batches_tracked":
                    value.fill_(7)
                else:
                    low = 0.5 if name in ("weight", "running_var") else -0.2
                    value.uniform_(low, low + 0.5, generator=generator)
    return net.eval()


def resnet(block=Bottleneck, depths=(1, 2, 1, 1), width=8, cifar=False, classes=5, **kinds):
    """torchvision's ResNet with other widths."""
    torch.manual_seed(0)
    with torch.device("meta"):
        net = ResNet(block, [1, 1, 1, 1], **kinds)
    net.inplanes = width
    net.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False) if cifar else nn.Conv2d(3, width, 7, 2, 3, bias=False)
    net.bn1 = nn.BatchNorm2d(width)
    if cifar:
        net.maxpool = nn.Identity()
    for i, depth in enumerate(depths):
        setattr(net, f"layer{i + 1}", net._make_layer(block, width << i, depth, stride=1 + (i > 0)))
    net.fc = nn.Linear(width * 8 * block.expansion, classes)
    return randomized(net)


@torch.no_grad()
def h_of(net, x, pool=None):
    """Before the classifier, with another pool if one is given."""
    own, fc, net.fc = net.maxpool, net.fc, nn.Identity()
    net.maxpool = pool or own
    h = net(x)
    net.maxpool, net.fc = own, fc
    return h


def image(size, n=2):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(1))


def prefixed(prefix, state):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def without_fc(net):
    return {name: tensor for name, tensor in net.state_dict().items() if not name.startswith("fc.")}


def uncounted(net):
    return {name: t.zero_() if name.endswith("num_batches_tracked") else t for name, t in net.state_dict().items()}


def sequential(net):
    return nn.Sequential(*list(net.children())[:-1]).state_dict()


def dense_norm(*widths, last_shift=False, bias=False, relu=True):
    """Dense layer, BatchNorm and ReLU in a row, as lightly's heads."""
    layers = []
    for a, b in zip(widths, widths[1:], strict=False):
        layers += [nn.Linear(a, b, bias=bias), nn.BatchNorm1d(b), *([nn.ReLU()] if relu else [])]
    head = randomized(nn.Sequential(*(layers[:-1] if relu else layers)))
    if not last_shift:
        nn.init.zeros_(head[-1].bias)
    return head


def mlp(*widths):
    """Dense layers with bias and ReLU between, as solo-learn's projector."""
    return nn.Sequential(nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]))


def saved(path, content, **options):
    path.parent.mkdir(exist_ok=True)
    torch.save(content, path, **options)
    return path


def converted(source, **options):
    """The model, its processor and the notes."""
    notes = []
    out = source.parent / f"{source.name}.out"
    config = convert(source, out, on_note=notes.append, **options)
    kind = json.loads((out / "config.json").read_text())["architectures"][0]
    model = {"SimCLRModel": SimCLRModel, "SimCLRForImageClassification": SimCLRForImageClassification}[kind]
    loaded = model.from_pretrained(out).eval()
    assert loaded.config.to_diff_dict().keys() == config.to_diff_dict().keys()
    return loaded, SimCLRImageProcessor.from_pretrained(out), notes


def encoder(model):
    return model.simclr if isinstance(model, SimCLRForImageClassification) else model


@torch.no_grad()
def assert_same_h(model, net, cifar=False):
    x, y = image(ODD), image(EVEN)
    assert relative(encoder(model)(x).pooler_output, h_of(net, x)) < 1e-5
    pool = None if cifar else OfficialPool()
    assert relative(encoder(model)(y).pooler_output, h_of(net, y, pool)) < 1e-5
    if not cifar:
        assert relative(encoder(model)(y).pooler_output, h_of(net, y)) > 1e-3, "the test's pool sees no difference"


def noted(notes, *patterns):
    for pattern in patterns:
        assert sum(bool(re.search(pattern, note)) for note in notes) == 1, (pattern, notes)


# ---- layouts with torchvision's names


@pytest.mark.parametrize(("depths", "width"), [((1, 2, 1, 1), 8), ((2, 1, 1, 3), 24)])
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_torchvision(tmp_path, block, depths, width):
    net = resnet(block, depths, width)
    model, processor, notes = converted(saved(tmp_path / "x.pth", net.state_dict()))
    assert_same_h(model, net)
    config = model.config
    assert (config.depths, config.width_multiplier, config.image_size) == (list(depths), width / 64, 224)
    assert (config.layer_type, config.num_labels) == ("basic" if block is BasicBlock else "bottleneck", 5)
    x = image(ODD)
    with torch.no_grad():
        assert relative(model(x).logits, net(x)) < 1e-5
    assert processor.do_normalize
    assert [list(processor.image_mean), list(processor.image_std)] == [*IMAGENET]
    noted(notes, "^layout: torchvision's names$", r"^padding: .*\(1, 1\).*trained with the former", "^input: ImageNet")
    noted(notes, "^classifier: fc.weight, 5 classes, taken to sit on h$")
    assert sum(note.startswith("shortcut:") for note in notes) == (block is BasicBlock)


def test_the_side_that_the_note_names_gives_the_original_network(tmp_path):
    net = resnet(BasicBlock, (1, 1, 1, 1))
    model, _, notes = converted(saved(tmp_path / "x.pth", net.state_dict()), image_size=225)
    noted(notes, "--image-size 225")
    x = image((225, 225), n=1)
    with torch.no_grad():
        assert relative(encoder(model)(x).pooler_output, h_of(net, x)) < 1e-5


def test_the_shortcut_that_torchvision_has_not_is_the_identity(tmp_path):
    model, _, _ = converted(saved(tmp_path / "x.pth", resnet(BasicBlock).state_dict()))
    x = torch.randn(2, 8, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model.simclr.encoder.stages[0][0].shortcut(x), x, rtol=3e-7, atol=0)


PREFIXES = {
    "": lambda s: s,
    "imagenet example": lambda s: {"epoch": 3, "arch": "r", "state_dict": prefixed("module.", s), "optimizer": {}},
    "compiled": lambda s: {"model": prefixed("_orig_mod.module.", s)},
    "backbone.": lambda s: prefixed("backbone.", s),
    "encoder.": lambda s: {"model_state_dict": prefixed("encoder.", s), "loss": 0.5},
    "online_network.encoder.": lambda s: prefixed("model.online_network.encoder.", s),
    "parameters": lambda s: OrderedDict((k, nn.Parameter(v) if v.is_floating_point() else v) for k, v in s.items()),
    "tensor beside": lambda s: {"state_dict": s, "epoch": torch.tensor(3)},
}


@pytest.mark.parametrize("kind", PREFIXES)
def test_prefixes_and_wrappers(tmp_path, kind):
    net = resnet()
    model, _, notes = converted(saved(tmp_path / "x.pth.tar", PREFIXES[kind](net.state_dict())))
    assert_same_h(model, net)
    assert isinstance(model, SimCLRForImageClassification)
    if kind == "imagenet example":
        noted(notes, "^left out: epoch, arch, optimizer, which are no weights$")


def test_every_suffix_and_the_format_before_torch_1_6(tmp_path):
    net = resnet(BasicBlock, (1, 1, 1, 1))
    for suffix in SUFFIXES:
        path = tmp_path / f"x{suffix}"
        if suffix == ".safetensors":
            save_file(net.state_dict(), path)
        else:
            torch.save(net.state_dict(), path)
        assert_same_h(converted(path)[0], net)
    old = saved(tmp_path / "old.pth", {"state_dict": net.state_dict()}, _use_new_zipfile_serialization=False)
    assert_same_h(converted(old)[0], net)


def test_simclr_converter(tmp_path):
    """In a block its shortcut comes first."""
    net = resnet()
    state = uncounted(net)
    first = {name: tensor for name, tensor in state.items() if "downsample" in name}
    model, processor, notes = converted(saved(tmp_path / "resnet50-1x.pth", {"state_dict": first | state}))
    assert_same_h(model, net)
    assert not processor.do_normalize
    noted(notes, "^layout: .*simclr-converter", "^padding: .*with which these weights were trained$")
    noted(notes, r"^input: \[0, 1\]", "^classifier: .*random values$")


def test_simclr_converter_wide_in_safetensors_which_has_lost_the_order(tmp_path):
    state = {k: t for k, t in uncounted(resnet(depths=(1,), width=128)).items() if not t.is_meta and k[:2] != "fc"}
    save_file(state, tmp_path / "x.safetensors")
    _, processor, notes = converted(tmp_path / "x.safetensors")
    assert not processor.do_normalize
    noted(notes, "^layout: .*simclr-converter")
    trained = {name: t + 3 if name.endswith("num_batches_tracked") else t for name, t in state.items()}
    assert converted(saved(tmp_path / "vissl.pth", trained))[1].do_normalize


def test_torchvision_weights_older_than_the_count_of_steps(tmp_path):
    """A network that loaded such has zeros there, and is not Google's for that."""
    net = resnet()
    state = net.state_dict()
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for name, content in (("old", old), ("saved again", uncounted(net))):
        _, processor, notes = converted(saved(tmp_path / f"{name}.pth", content))
        assert processor.do_normalize
        noted(notes, "^layout: torchvision's names$", "^padding: .*trained with the former", "^input: ImageNet")
        noted(notes, "^classifier: .*taken to sit on h$")
    noted(notes, "No training step is counted: .*--normalize none$")


def test_without_counters_no_converter_is_assumed(tmp_path):
    """torchvision's own files of 2018 have none."""
    state = {name: t for name, t in resnet().state_dict().items() if not name.endswith("tracked")}
    _, processor, notes = converted(saved(tmp_path / "x.pth", state))
    assert processor.do_normalize
    noted(notes, "^layout: torchvision's names$", "^classifier: .*on h$")


def test_lightly(tmp_path):
    """A Lightning checkpoint: nn.Sequential backbone, projection head, and a probe beside."""
    net, width = resnet(), 8 * 8 * 4
    parts = {"backbone.": sequential(net), "online_classifier.classification_head.": net.fc.state_dict()}
    for last_shift in (False, True):
        head = dense_norm(width, width, 16, last_shift=last_shift)
        state = {
            k: v
            for p, s in (*parts.items(), ("projection_head.layers.", head.state_dict()))
            for k, v in prefixed(p, s).items()
        }
        content = {"state_dict": state, "hyper_parameters": {"lr": 0.1}, "pytorch-lightning_version": "2.0"}
        model, processor, notes = converted(saved(tmp_path / f"{last_shift}.ckpt", content))
        assert_same_h(model, net)
        assert processor.do_normalize
        noted(
            notes,
            "^layout: torchvision's names in an nn.Sequential",
            "^classifier: online_classifier.classification_head.weight",
        )
        if last_shift:
            assert model.config.projection_layers == 0
            noted(notes, "^g: left out.*its last BatchNorm has a shift", "^left out: 10 tensors of projection_head$")
        else:
            assert (model.config.projection_layers, model.config.projection_dim) == (2, 16)
            h = h_of(net, image(ODD))
            with torch.no_grad():
                z = encoder(model)(image(ODD), output_projections=True).projections
                assert relative(z[0], head[:3](h)) < 1e-5 and relative(z[1], head(h)) < 1e-5


def mmselfsup(net, last_shift=True):
    """A checkpoint of mmcv's runner, and its neck: fc0, bn0, ReLU, fc1, bn1."""
    neck = dense_norm(256, 256, 16, last_shift=last_shift)
    names = {"0": "fc0", "1": "bn0", "3": "fc1", "4": "bn1"}
    named = {f"neck.{names[k.split('.')[0]]}.{k.split('.')[1]}": t for k, t in neck.state_dict().items()}
    moments = {"state": {0: {"momentum_buffer": torch.rand(3)}}, "param_groups": [{"lr": 0.3, "params": [0]}]}
    meta = {"mmselfsup_version": "0.9.1", "config": "model = dict(type='SimCLR')", "epoch": 800, "hook_msgs": {}}
    state = OrderedDict(prefixed("backbone.", without_fc(net)) | named)
    return {"meta": meta, "state_dict": state, "optimizer": moments}, neck


def test_mmselfsup(tmp_path):
    net = resnet(depths=(1, 1, 1, 1))
    model, processor, notes = converted(saved(tmp_path / "latest.pth", mmselfsup(net)[0]))
    assert_same_h(model, net)
    assert processor.do_normalize and type(model) is SimCLRModel
    noted(notes, "^g: left out.*its last BatchNorm has a shift", "^left out: meta, optimizer")
    content, neck = mmselfsup(net, last_shift=False)
    model, _, _ = converted(saved(tmp_path / "affine.pth", content))
    with torch.no_grad():
        z = model(image(ODD), output_projections=True).projections[-1]
        assert relative(z, neck(h_of(net, image(ODD)))) < 1e-5


def fastssl(net):
    """FastSSL's: the backbone's fc is the projection's first layer, and the command line lies beside."""
    width = net.fc.in_features
    net.fc = nn.Linear(width, width)
    projector = nn.Sequential(
        nn.BatchNorm1d(width),
        nn.ReLU(),
        nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 16, bias=False)),
        nn.LayerNorm(16),
    )
    state = prefixed("backbone.", net.state_dict()) | prefixed("projector.", randomized(projector).state_dict())
    args = argparse.Namespace(batch_size=1024, output_dir="out", lr=None, betas=(0.9, 0.999))
    return {"model": state, "optimizer": {"state": {}}, "epoch": 965, "scaler": {"scale": 1.0}, "args": args}


@pytest.mark.parametrize("zipped", [True, False])
def test_fastssl(tmp_path, zipped):
    net = resnet()
    path = saved(tmp_path / "checkpoint.pth", fastssl(net), _use_new_zipfile_serialization=zipped)
    model, processor, notes = converted(path)
    assert type(model) is SimCLRModel and model.config.projection_layers == 0 and processor.do_normalize
    assert_same_h(model, net)
    noted(
        notes, "^g: left out.*it has a LayerNorm", r"^left out: \d+ tensors of backbone, projector", "args, which are"
    )


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
@pytest.mark.parametrize("first", [2, 3])
def test_cifar_resnets_of_lightly(tmp_path, block, first):
    """ResNetGenerator's: `shortcut`, no max-pool; in an nn.Sequential from place 2 or, with the ReLU, 3."""
    net = resnet(block, cifar=True)
    state = {}
    for name, tensor in without_fc(net).items():
        head, _, tail = name.replace("downsample", "shortcut").partition(".")
        place = {"conv1": 0, "bn1": 1}.get(head, first - 1 + int(head[-1]))
        state[f"backbone.{place}.{tail}"] = tensor
    model, _, notes = converted(saved(tmp_path / "x.ckpt", {"state_dict": state}))
    assert_same_h(model, net, cifar=True)
    assert (model.config.stem_type, model.config.image_size) == ("cifar", 32)
    assert type(model) is SimCLRModel
    noted(notes, "^stem: ", "^input: .*CIFAR's own")
    assert not any(note.startswith("padding") for note in notes)


@pytest.mark.parametrize("root", ["backbone.", "encoder."])
def test_solo_learn(tmp_path, root):
    net = resnet(BasicBlock, cifar=True)
    state = prefixed(root, without_fc(net)) | prefixed("classifier.", net.fc.state_dict())
    state |= prefixed("projector.", mlp(64, 2048, 128).state_dict())
    state |= prefixed(f"momentum_{root}", without_fc(resnet(BasicBlock, cifar=True)))
    state |= {"queue": torch.rand(4, 8), "queue_ptr": torch.zeros(1, dtype=torch.long)}
    model, processor, notes = converted(saved(tmp_path / "x.ckpt", {"state_dict": state, "callbacks": {}}))
    assert_same_h(model, net, cifar=True)
    with torch.no_grad():
        assert relative(model(image(EVEN)).logits, net(image(EVEN))) < 1e-5
    assert processor.do_normalize and processor.size["height"] == 32
    noted(notes, "solo-learn pads it by 2", "^g: left out.*dense layers have a bias")
    noted(notes, rf"^left out: \d+ tensors of momentum_{root[:-1]}, projector, queue, queue_ptr$")


def test_vissl(tmp_path):
    net = resnet()

    def content(heads):
        model = {"trunk": prefixed("_feature_blocks.", without_fc(net)), "heads": heads}
        return {"classy_state_dict": {"base_model": {"model": model, "meta": {}}}, "phase_idx": 9}

    linear = prefixed("0.clf.0.", net.fc.state_dict())
    model, _, notes = converted(saved(tmp_path / "supervised.torch", content(linear)))
    assert_same_h(model, net)
    with torch.no_grad():
        assert relative(model(image(ODD)).logits, net(image(ODD))) < 1e-5
    two = prefixed("0.clf.0.", nn.Linear(256, 256).state_dict()) | prefixed(
        "1.clf.0.", nn.Linear(256, 16).state_dict()
    )
    model, processor, notes = converted(saved(tmp_path / "simclr.torch", content(two)))
    assert type(model) is SimCLRModel and processor.do_normalize
    assert_same_h(model, net)
    noted(notes, "^g: left out.*bias", "^left out: phase_idx", "^left out: 4 tensors of heads$")
    model, _, _ = converted(saved(tmp_path / "trunk.torch", content(None)))
    assert type(model) is SimCLRModel


MOCO = {
    "v2": ("module.", "encoder_q.", lambda: prefixed("encoder_q.fc.", mlp(256, 256, 16).state_dict()), "encoder_k."),
    "v1": ("module.", "encoder_q.", lambda: prefixed("encoder_q.fc.", nn.Linear(256, 16).state_dict()), "encoder_k."),
    "v3": (
        "module.",
        "base_encoder.",
        lambda: (
            prefixed("base_encoder.fc.", dense_norm(256, 512, 16).state_dict())
            | prefixed("predictor.", dense_norm(16, 16).state_dict())
        ),
        "momentum_encoder.",
    ),
}


@pytest.mark.parametrize("kind", MOCO)
def test_moco(tmp_path, kind):
    outer, root, heads, copy = MOCO[kind]
    net = resnet()
    state = prefixed(root, without_fc(net)) | heads() | prefixed(copy, net.state_dict())
    state["queue"] = torch.rand(16, 4)
    content = {"epoch": 1, "state_dict": prefixed(outer, state), "optimizer": {"state": {}}}
    model, _, notes = converted(saved(tmp_path / "x.pth.tar", content))
    assert type(model) is SimCLRModel and model.config.projection_layers == 0
    assert_same_h(model, net)
    noted(notes, "^g: left out", rf"^left out: \d+ tensors of .*{copy[:-1]}.*queue")


def test_a_head_within_the_backbone(tmp_path):
    """`resnet.fc = nn.Sequential(...)`, a common SimCLR repository's way."""
    net = resnet()
    state = prefixed("backbone.", without_fc(net)) | prefixed("backbone.fc.", dense_norm(256, 256, 16).state_dict())
    model, _, _ = converted(saved(tmp_path / "x.pth.tar", {"state_dict": state}))
    assert type(model) is SimCLRModel and model.config.projection_layers == 2


HEADS = {
    "a bias": (lambda: dense_norm(256, 256, 16, bias=True), "have a bias"),
    "wide": (lambda: dense_norm(256, 512, 16), "256, 512, 16 are not h's 256"),
    "from elsewhere": (lambda: dense_norm(128, 256, 16), "128, 256, 16 are not h's 256"),
    "no ReLU": (lambda: dense_norm(256, 256, 16, relu=False), "dense, BatchNorm, ReLU in a row"),
    "no BatchNorm": (lambda: nn.Sequential(nn.Linear(256, 256, bias=False)), "by turns"),
    "no scale": (
        lambda: nn.Sequential(nn.Linear(256, 16, bias=False), nn.BatchNorm1d(16, affine=False)),
        "no scale or shift",
    ),
    "BatchNorm first": (lambda: nn.Sequential(nn.BatchNorm1d(256), nn.Linear(256, 16, bias=False)), "by turns"),
}


@pytest.mark.parametrize("kind", HEADS)
def test_heads_that_g_cannot_express_are_left_out_with_the_reason(tmp_path, kind):
    make, reason = HEADS[kind]
    net = resnet(depths=(1, 1, 1, 1))
    state = prefixed("backbone.", without_fc(net)) | prefixed("projector.", make().state_dict())
    model, _, notes = converted(saved(tmp_path / "x.pth", state))
    assert model.config.projection_layers == 0
    assert_same_h(model, net)
    noted(notes, f"^g: left out.*{reason}", r"^left out: \d+ tensors of projector$")


@pytest.mark.parametrize("layers", [1, 3])
def test_heads_of_one_and_three_layers(tmp_path, layers):
    net, head = resnet(depths=(1, 1, 1, 1)), dense_norm(*[256] * layers, 16)
    state = prefixed("encoder.", without_fc(net)) | prefixed("projector.", head.state_dict())
    model, _, _ = converted(saved(tmp_path / "x.pth", state))
    assert model.config.projection_layers == layers
    with torch.no_grad():
        z = model(image(ODD), output_projections=True).projections[-1]
        assert relative(z, head(h_of(net, image(ODD)))) < 1e-5


@pytest.mark.parametrize(
    ("name", "width"),
    [
        ("resnet18", 1),
        ("resnet34", 2),
        ("resnet50", 1),
        ("resnet50", 2),
        ("resnet50", 4),
        ("resnet101", 2),
        ("resnet152", 1),
    ],
)
def test_full_sizes_are_recognised(name, width):
    block, depths = {
        "resnet18": (BasicBlock, [2, 2, 2, 2]),
        "resnet34": (BasicBlock, [3, 4, 6, 3]),
        "resnet50": (Bottleneck, [3, 4, 6, 3]),
        "resnet101": (Bottleneck, [3, 4, 23, 3]),
        "resnet152": (Bottleneck, [3, 8, 36, 3]),
    }[name]
    with torch.device("meta"):
        net = resnet(block, depths, 64 * width, classes=1000)
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("tracked")}
    found = pytorch._read(Path("x"), state, [], None, None, None).model.config
    assert (found.depths, found.width_multiplier, found.num_labels) == (depths, width, 1000)


# ---- SimCLRv2-Pytorch


class Norm(nn.Sequential):
    def __init__(self, channels, relu=True):
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU() if relu else nn.Identity())


def conv(a, b, k=3, stride=1):
    return nn.Conv2d(a, b, k, stride, (k - 1) // 2, bias=False)


class PortShortcutPool(nn.AvgPool2d):
    """The port divides by 4 everywhere; the official code, at stride 1, by the real pixels."""

    official = False

    def forward(self, x):
        padded = F.pad(x, (0, 1, 0, 1))
        pooled = F.avg_pool2d(padded, 2, self.stride)
        if self.official and self.stride == 1:
            pooled = pooled / F.avg_pool2d(F.pad(torch.ones_like(x), (0, 1, 0, 1)), 2, 1)
        return pooled


class PortShortcut(nn.Module):
    def __init__(self, a, b, stride, sk):
        super().__init__()
        pool = [nn.Identity(), PortShortcutPool(2, stride)]
        self.shortcut = nn.Sequential(*pool, conv(a, b, 1)) if sk else conv(a, b, 1, stride)
        self.bn = Norm(b, relu=False)

    def forward(self, x):
        return self.bn(self.shortcut(x))


class PortKernel(nn.Module):
    def __init__(self, channels, stride):
        super().__init__()
        self.main_conv = nn.Sequential(conv(channels, 2 * channels, 3, stride), Norm(2 * channels))
        mid = max(channels // 16, 32)
        self.mixing_conv = nn.Sequential(conv(channels, mid, 1), Norm(mid), conv(mid, 2 * channels, 1))

    def forward(self, x):
        a, b = self.main_conv(x).chunk(2, 1)
        m, n = self.mixing_conv((a + b).mean((2, 3), keepdim=True)).chunk(2, 1)
        share = (m - n).sigmoid()  # a softmax over two
        return share * a + (1 - share) * b


class PortBlock(nn.Module):
    def __init__(self, a, c, stride, sk, first, basic):
        super().__init__()
        b = c if basic else 4 * c
        self.projection = PortShortcut(a, b, stride, sk) if first else nn.Identity()
        middle = [PortKernel(c, stride)] if sk else [conv(c, c, 3, stride), Norm(c)]
        layers = [conv(a, c, 1), Norm(c), *middle, conv(c, b, 1), Norm(b, relu=False)]
        if basic:
            layers = [conv(a, c, 3, stride), Norm(c), conv(c, c), Norm(c, relu=False)]
        self.net = nn.Sequential(*layers)

    def forward(self, x):
        return F.relu(self.projection(x) + self.net(x))


class PortGroup(nn.Module):
    def __init__(self, a, c, depth, stride, sk, basic):
        super().__init__()
        b = c if basic else 4 * c
        blocks = [PortBlock(a if i == 0 else b, c, stride if i == 0 else 1, sk, i == 0, basic) for i in range(depth)]
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


class Port(nn.Module):
    def __init__(self, sk, width=8, depths=(1, 2, 1, 1), basic=False, cifar=False):
        super().__init__()
        c, half = width, width // 2
        stem = [conv(3, c, 7, 2)]
        if sk:
            stem = [conv(3, half, 3, 2), Norm(half), conv(half, half), Norm(half), conv(half, c)]
        if cifar:
            stem = [conv(3, c)]
        self.net = nn.Sequential(nn.Sequential(*stem, Norm(c), *([] if cifar else [OfficialPool()])))
        a = c
        for i, depth in enumerate(depths):
            self.net.append(PortGroup(a, c << i, depth, 1 + (i > 0), sk, basic))
            a = (c << i) * (1 if basic else 4)
        self.fc = nn.Linear(a, 5)

    def forward(self, x):
        return self.net(x).mean((2, 3))


def port(sk, layers=3, **options):
    torch.manual_seed(0)
    net = randomized(Port(sk, **options))
    return net, dense_norm(*[net.fc.in_features] * layers, 16)


def port_content(net, head):
    return {"resnet": net.state_dict(), "head": prefixed("layers.", head.state_dict())}


@pytest.mark.parametrize("sk", [False, True])
@pytest.mark.parametrize("options", [{}, {"width": 16, "depths": (2, 1, 1, 1)}, {"cifar": True}])
def test_simclr_v2_pytorch(tmp_path, sk, options):
    net, head = port(sk, **options)
    model, processor, notes = converted(saved(tmp_path / "r50_1x_sk1.pth", port_content(net, head)))
    assert not processor.do_normalize
    assert (model.config.projection_layers, model.config.sk_ratio > 0) == (3, sk)
    for module in net.modules():
        if isinstance(module, PortShortcutPool):
            module.official = True
    with torch.no_grad():
        for size in (ODD, EVEN):
            x = image(size)
            out, h = model.simclr(x, output_projections=True), net(x)
            assert relative(out.pooler_output, h) < 1e-5
            assert relative(out.projections[0], head[:3](h)) < 1e-5
            assert relative(out.projections[2], head(h)) < 1e-5
            assert relative(model(x).logits, net.fc(h)) < 1e-5
    noted(notes, "^layout: SimCLRv2-Pytorch", r"^input: \[0, 1\] without", "^classifier: .*--classifier-layer 1")
    assert any("divide" in note for note in notes) == sk
    assert any("max-pool pads" in note for note in notes) == ("cifar" not in options)


def test_simclr_v2_pytorch_basic_and_the_classifier_on_g(tmp_path):
    net, head = port(False, basic=True, layers=3)
    model, _, notes = converted(saved(tmp_path / "x.pth", port_content(net, head)), classifier_layer=1)
    assert model.config.layer_type == "basic" and model.config.classifier_layer == 1
    with torch.no_grad():
        assert relative(model(image(EVEN)).logits, net.fc(head[:3](net(image(EVEN))))) < 1e-5
    noted(notes, "^classifier: .*sit on layer 1 of g$")
    assert not any(note.startswith("shortcut:") for note in notes)


def test_a_port_keeps_its_own_sk_ratio():
    with torch.device("meta"):
        net = Port(True, width=192, depths=(1, 1, 1, 1))  # mixing of 32, 32, 48, 96: 1/16 where 32 does not bind
    state = {name: tensor for name, tensor in net.state_dict().items() if not name.endswith("tracked")}
    assert pytorch._read(Path("x"), state, [], None, None, None).model.config.sk_ratio == 0.0625


# ---- refusals


def state_of(net=None):
    return (net or resnet()).state_dict()


def renamed(old, new):
    return lambda s: {name.replace(old, new): tensor for name, tensor in s.items()}


def dropped(name):
    return lambda s: {k: v for k, v in s.items() if k != name}


def changed(name, change):
    return lambda s: {k: change(v) if k == name else v for k, v in s.items()}


WRONG = {
    "renamed": (
        renamed("layer2.0.conv2.weight", "layer2.0.convX.weight"),
        r"1 missing \(layer2.0.conv2.weight\); 1 left over \(layer2.0.convX.weight\)",
    ),
    "renamed BatchNorm": (renamed("layer3.0.bn2.", "layer3.0.bm2."), r"4 missing \(layer3.0.bn2.bias.*4 left over"),
    "dropped": (dropped("layer4.0.bn3.running_mean"), r"1 missing \(layer4.0.bn3.running_mean\)\. Known: ResNets"),
    "dropped shortcut": (dropped("layer1.0.downsample.0.weight"), r"1 missing \(layer1.0.downsample.0.weight\)"),
    "dropped stem": (dropped("conv1.weight"), "conv1.weight is missing"),
    "dropped classifier weight": (dropped("fc.weight"), r"fc \(bias\) is neither"),
    "dropped classifier bias": (dropped("fc.bias"), r"1 missing \(fc.bias\)"),
    "a block": (
        lambda s: {k: v for k, v in s.items() if not k.startswith("layer2.0.")},
        r"of blocks \[1, 2, 1, 1\].* 20 missing \(layer2.0.bn1.bias",
    ),
    "dropped first block": (dropped("layer1.0.conv1.weight"), "layer1.0.conv1.weight is missing"),
    "dropped second group": (dropped("layer2.0.conv1.weight"), r": 1 missing \(layer2.0.conv1.weight\)"),
    "left over": (lambda s: {**s, "fpn.inner.0.weight": torch.ones(2)}, r"1 left over \(fpn.inner.0.weight\)"),
    "another net": (
        lambda s: {"patch_embed.weight": torch.ones(2), "blocks.0.norm": torch.ones(2)},
        "unknown layout, with patch_embed.weight, blocks.0.norm; known: ResNets with torchvision",
    ),
    "two": (lambda s: prefixed("student.", s) | prefixed("other.", s), "several networks, under 'other.', 'student.'"),
    "two classifiers": (
        lambda s: {**s, "classifier.weight": torch.ones(5, 256), "classifier.bias": torch.ones(5)},
        "several classifiers: classifier, fc",
    ),
    "transposed dense": (changed("fc.weight", lambda t: t.T.contiguous()), r"of another shape \(fc.weight"),
    "transposed kernel": (
        changed("layer1.0.conv1.weight", lambda t: t.permute(2, 3, 1, 0).contiguous()),
        r"of another shape \(layer1.0.conv1.weight",
    ),
    "transposed stem": (changed("conv1.weight", lambda t: t.permute(2, 3, 1, 0).contiguous()), "of another shape"),
    "grey": (
        changed("conv1.weight", lambda t: t[:, :1].contiguous()),
        r"conv1.weight: \(8, 1, 7, 7\), not \(8, 3, 7, 7\)",
    ),
    "short": (changed("layer1.0.bn1.weight", lambda t: t[:-1]), r"layer1.0.bn1.weight: \(7,\), not \(8,\)"),
    "empty": (changed("conv1.weight", lambda t: t[:0]), r"conv1.weight is \(0, 3, 7, 7\), not"),
    "flat stem": (changed("conv1.weight", lambda t: t.flatten()), "not a convolution's kernel"),
    "scalar classifier": (changed("fc.weight", lambda t: t[0, 0].clone()), "neither a dense layer nor"),
    "NaN": (changed("layer3.0.conv1.weight", lambda t: t * torch.nan), "layer3.0.conv1.weight has NaN"),
    "infinite": (changed("fc.bias", lambda t: t + torch.inf), "fc.bias has NaN, inf"),
    "variance": (changed("layer3.0.bn1.running_var", lambda t: -t), "layer3.0.bn1.running_var has"),
    "integers": (
        changed("layer3.0.conv1.weight", lambda t: t.to(torch.int8)),
        r"layer3.0.conv1.weight \(torch.int8\)",
    ),
    "complex": (
        changed("layer3.0.conv1.weight", lambda t: t.to(torch.complex64)),
        "layer3.0.conv1.weight is not a plain",
    ),
    "sparse": (changed("fc.weight", lambda t: t.to_sparse()), "fc.weight is not a plain"),
    "repeated": (changed("fc.weight", lambda t: t[:1, :1].clone().expand(5, 256)), "fc.weight repeats its values"),
    "no tensors": (lambda s: {"epoch": 3, "lr": 0.1}, r"no state_dict is in it, but epoch \(int\), lr \(float\)"),
    "nothing": (lambda s: {}, "no state_dict is in it, but dict"),
    "a tensor": (lambda s: torch.ones(3), "no state_dict is in it, but Tensor"),
    "a list": (lambda s: [s], "no state_dict is in it, but list"),
    "text among weights": (lambda s: {**s, "arch": "resnet50"}, r"but arch \(str\)"),
    "odd VISSL": (lambda s: {"classy_state_dict": {"base_model": 3}}, "no state_dict"),
    "wide_resnet50_2": (
        lambda s: state_of(resnet(width_per_group=128)),
        r"of another shape \(layer1.0.conv1.weight: \(16, 8, 1, 1\), not",
    ),
    "resnext": (
        lambda s: state_of(resnet(groups=4, width_per_group=16)),
        "of another shape",
    ),
    "BatchNorm before the stem": (
        lambda s: {"f.0.weight": torch.ones(3), **prefixed("f.", {"4.0.conv1.weight": torch.ones(8, 8, 1, 1)})},
        r"f.0.weight is \(3,\), not a convolution",
    ),
}


@pytest.mark.filterwarnings("ignore:Validating sparse", "ignore:Sparse invariant")
@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_refused_and_leaves_nothing(tmp_path, kind):
    change, message = WRONG[kind]
    path = saved(tmp_path / "x.pth", change(state_of()))
    with pytest.raises(CheckpointError, match=message) as e:
        convert(path, tmp_path / "out")
    assert str(path) in str(e.value) and "\n" not in str(e.value)
    assert os.listdir(tmp_path) == ["x.pth"]


PORT_WRONG = {
    "renamed": (
        "resnet",
        renamed("net.2.blocks.0.net.2.mixing_conv.2", "net.2.more"),
        r"1 missing \(net.2.*mixing_conv.2.weight\); 1 left",
    ),
    "dropped": (
        "resnet",
        dropped("net.4.blocks.0.projection.bn.0.bias"),
        "1 missing .net.4.blocks.0.projection.bn.0.bias",
    ),
    "left over": ("resnet", lambda s: {**s, "net.9.weight": torch.ones(1)}, "1 left over .net.9.weight"),
    "head dropped": ("head", dropped("layers.3.weight"), "head is not SimCLR's g"),
    "head statistics dropped": (
        "head",
        dropped("layers.4.running_var"),
        "head.layers.4 .*is neither a dense layer nor",
    ),
    "head renamed": ("head", renamed("layers.6.weight", "layers.6.wieght"), "head.layers.6 .wieght. is neither"),
    "head transposed": (
        "head",
        changed("layers.6.weight", lambda t: t.T.contiguous()),
        "head is not SimCLR's g: its widths",
    ),
    "head shift": (
        "head",
        changed("layers.7.bias", lambda t: t + 1),
        "last BatchNorm has a shift; save it without 'head'",
    ),
    "head scale short": (
        "head",
        changed("layers.7.weight", lambda t: t[1:]),
        r"of another shape \(head.layers.7.weight",
    ),
}


@pytest.mark.parametrize("kind", PORT_WRONG)
def test_what_does_not_fit_the_port_is_refused(tmp_path, kind):
    part, change, message = PORT_WRONG[kind]
    content = port_content(*port(True))
    content[part] = change(content[part])
    with pytest.raises(CheckpointError, match=message):
        convert(saved(tmp_path / "x.pth", content), tmp_path / "out")
    assert os.listdir(tmp_path) == ["x.pth"]


class Evil:
    def __reduce__(self):
        return (Path("owned").touch, ())


def evil_function():
    return (Path.touch, (Path("owned"),))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("suffix", [".pth", ".bin", ".ckpt"])
def test_code_in_a_file_does_not_run(tmp_path, monkeypatch, zipped, suffix):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # must not reach this
    content = {"state_dict": state_of(), "callback": Evil()}
    path = saved(tmp_path / f"x{suffix}", content, _use_new_zipfile_serialization=zipped)
    assert not Path("owned").exists()
    with pytest.raises(CheckpointError, match="objects besides tensors .*weights_only=False.*safetensors") as e:
        convert(path, "out")
    assert "\n" not in str(e.value)
    assert os.listdir(tmp_path) == [path.name]
    torch.load(path, weights_only=False)
    assert Path("owned").exists(), "the test's file is harmless"


@pytest.mark.parametrize("kind", ["zip", "old", "safetensors"])
def test_cut_files_are_one_clear_error(tmp_path, kind):
    state = state_of(resnet(BasicBlock, (1, 1, 1, 1)))
    path = tmp_path / ("x.safetensors" if kind == "safetensors" else "x.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=kind == "zip")
    whole = path.read_bytes()
    for n in (0, 1, 3, 7, 100, 1000, len(whole) // 2, len(whole) - 4000, len(whole) - 1):
        path.write_bytes(whole[:n])
        with pytest.raises(CheckpointError, match=re.escape(str(path))) as e:
            convert(path, tmp_path / "out")
        assert (
            not str(e.value).endswith(": ")
            and "damaged" in str(e.value)
            and "\n" not in str(e.value)
            and "PyTorch 2.6" not in str(e.value)
        ), n
    assert os.listdir(tmp_path) == [path.name]


def test_a_flipped_bit_in_a_weight_is_found(tmp_path):
    path = saved(tmp_path / "x.pth", state_of(resnet(BasicBlock, (1, 1, 1, 1))))
    whole = path.read_bytes()
    for place in np.random.default_rng(0).integers(len(whole) // 10, len(whole) * 8 // 10, 8):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        with pytest.raises(CheckpointError, match="damaged"):
            convert(path, tmp_path / "out")
    assert os.listdir(tmp_path) == ["x.pth"]


def test_what_is_asked_for_must_be_there(tmp_path):
    net = resnet()
    path = saved(tmp_path / "x.pth", net.state_dict())
    for options, message in (
        ({"ema": True}, "averaged weights"),
        ({"classifier_layer": 1}, "classifier_layer=1 must be 0"),
        ({"normalize": "cifar"}, "normalize='cifar' is neither 'imagenet' nor 'none'"),
        ({"image_size": 0}, "image_size=0"),
    ):
        with pytest.raises(CheckpointError, match=message):
            convert(path, tmp_path / "out", **options)
    with pytest.raises(CheckpointError, match="classifier_layer=1, but it has no classifier"):
        convert(saved(tmp_path / "bare.pth", without_fc(net)), tmp_path / "out", classifier_layer=1)
    with pytest.raises(CheckpointError, match="No such file"):
        convert(tmp_path / "absent.pth", tmp_path / "out")
    with pytest.raises(CheckpointError, match="No such file"):
        convert(tmp_path / "absent.safetensors", tmp_path / "out")
    (tmp_path / "text.pth").write_text("<!DOCTYPE html>")
    with pytest.raises(CheckpointError, match="not a file of PyTorch"):
        convert(tmp_path / "text.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_small_file_does_not_become_a_large_model(tmp_path):
    state = state_of(resnet(BasicBlock, (1, 1, 1, 12)))
    one = torch.zeros(max(t.numel() for t in state.values()))
    tied = {name: one[: t.numel()].view(t.shape) if t.is_floating_point() else t for name, t in state.items()}
    with pytest.raises(CheckpointError, match="share their values"):
        convert(saved(tmp_path / "tied.pth", tied), tmp_path / "out")
    path = saved(tmp_path / "x.pth", state)
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as small:
        for member in whole.infolist():
            small.writestr(member.filename, whole.read(member))
    with pytest.raises(CheckpointError, match="compressed"):
        convert(tmp_path / "y.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["layer1.0.conv3.weight", "layer2.1.conv1.weight", "layer4.0.conv1.weight"])
def test_what_tells_the_size_is_named_when_it_is_missing(tmp_path, name):
    state = state_of()
    del state[name]
    with pytest.raises(CheckpointError, match=rf"1 missing \({name}\)\. Known"):
        convert(saved(tmp_path / "x.pth", state), tmp_path / "out")


def test_a_file_that_holds_itself_ends(tmp_path):
    content = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match="no state_dict"):
        convert(saved(tmp_path / "x.pth", content), tmp_path / "out")


def test_half_precision_becomes_float32_and_says_so(tmp_path):
    net = resnet(depths=(1, 1, 1, 1)).bfloat16()
    model, _, notes = converted(saved(tmp_path / "x.pt", net.state_dict()))
    assert_same_h(model, net.float())
    assert model.dtype == torch.float32
    noted(notes, "^dtype: bfloat16 became float32")


def test_tied_tensors_are_written_each(tmp_path):
    state = state_of()
    state["layer1.0.bn2.weight"] = state["layer1.0.bn1.weight"]
    model, _, _ = converted(saved(tmp_path / "x.pth", state))
    layers = model.simclr.encoder.stages[0][0].layers
    assert torch.equal(layers[0].normalization.weight, layers[1].normalization.weight)


def test_notes_reach_the_log_of_whoever_does_not_take_them(tmp_path, caplog):
    convert(saved(tmp_path / "x.pth", state_of()), tmp_path / "out")
    assert any(record.message.startswith("padding: ") for record in caplog.records)


def test_the_page_explains_every_note_and_names_every_suffix():
    page = (Path(__file__).parents[1] / "docs" / "convert.md").read_text()
    constants = {v.partition(":")[0] for v in vars(pytorch).values() if isinstance(v, str) and re.match("[a-z]+: ", v)}
    for topic in {"layout", "input", "g", "classifier", "left out", "dtype"} | constants:
        assert f"| `{topic}` | " in page, topic
    for suffix in SUFFIXES:
        assert f"`{suffix}`" in page


# ---- mean and std


def test_the_command_line_tells_the_notes_and_takes_normalize(tmp_path, capsys):
    source = str(saved(tmp_path / "x.pth", state_of()))

    def run(*arguments):
        with pytest.raises(SystemExit) as e:
            main(["convert", *map(str, arguments)])
        printed = capsys.readouterr()
        return e.value.code, printed.out, printed.err

    for value, expected in ((None, True), ("none", None), ("imagenet", True)):
        out = tmp_path / str(value)
        code, text, _ = run(source, out, "--json", *([] if value is None else ["--normalize", value]))
        told = json.loads(text)
        assert code == 0 and told["config"]["depths"] == [1, 2, 1, 1]
        noted(told["notes"], "^padding: ", "^input: .*as asked$" if value else "^input: ImageNet's")
        assert SimCLRImageProcessor.from_pretrained(out).do_normalize is expected
    _, text, _ = run(source, tmp_path / "text")
    assert "- padding: " in text and "- input: " in text
    code, _, error = run("simclr-v2-r50", tmp_path / "named", "--normalize", "imagenet")
    assert code == 2 and "without mean and std" in error


def test_the_processor_normalizes_last_and_only_when_told(tmp_path):
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    plain = SimCLRImageProcessor(size=40)
    assert "image_mean" not in json.loads(plain.to_json_string())
    pixels = plain(images=photo, return_tensors="pt").pixel_values
    processor = SimCLRImageProcessor(size=40, do_normalize=True, image_mean=IMAGENET[0], image_std=IMAGENET[1])
    processor.save_pretrained(tmp_path)
    for p in (processor, SimCLRImageProcessor.from_pretrained(tmp_path)):
        found = p(images=photo, return_tensors="pt").pixel_values
        torch.testing.assert_close(found, torchvision_normalize(pixels, *IMAGENET), rtol=0, atol=1e-6)
        assert torch.equal(p(images=photo, do_normalize=False, return_tensors="pt").pixel_values, pixels)
    one = SimCLRImageProcessor(size=40, do_normalize=True, image_mean=0.5, image_std=0.25)
    assert torch.equal(one(images=photo, return_tensors="pt").pixel_values, (pixels - 0.5) / 0.25)
    for bad in ({}, {"image_mean": [0.5, 0.5], "image_std": 0.5}, {"image_mean": 0.5, "image_std": [1, 0, 1]}):
        with pytest.raises(ValueError, match="image_mean|image_std"):
            SimCLRImageProcessor(size=40, do_normalize=True, **bad)(images=photo)


@pytest.fixture
def two_models(tmp_path):
    """The same weights, with and without mean and std."""
    torch.manual_seed(0)
    model = SimCLRModel(tiny_config()).eval()
    for name, options in (
        ("plain", {}),
        ("mean", {"do_normalize": True, "image_mean": IMAGENET[0], "image_std": IMAGENET[1]}),
    ):
        model.save_pretrained(tmp_path / name)
        SimCLRImageProcessor(size=64, **options).save_pretrained(tmp_path / name)
    return model, tmp_path / "plain", tmp_path / "mean"


def test_the_embedder_applies_mean_and_std_and_its_fingerprint_tells(two_models):
    model, plain, mean = two_models
    photo = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    vectors = {}
    for path in (plain, mean):
        pixels = SimCLRImageProcessor.from_pretrained(path)(images=photo, return_tensors="pt").pixel_values
        with torch.no_grad():
            expected = model(pixels).pooler_output[0]
        vectors[path] = next(Embedder(path).stream([photo])).vector
        np.testing.assert_allclose(vectors[path], expected, rtol=1e-4, atol=1e-5)
    assert np.abs(vectors[plain] - vectors[mean]).max() > 1e-3
    without, with_ = (Embedder(path).fingerprint["preprocessing"] for path in (plain, mean))
    assert without == "size 64, crop 0.875, antialiased"
    assert with_ == f"size 64, crop 0.875, mean {IMAGENET[0]}, std {IMAGENET[1]}, antialiased"
    assert Embedder(mean, exact=True).fingerprint["preprocessing"].endswith(", exact")
    settings = json.loads((mean / "preprocessor_config.json").read_text())
    (mean / "preprocessor_config.json").write_text(json.dumps(settings | {"image_std": [0.2, 0.2, 0.3]}))
    assert Embedder(mean).fingerprint["preprocessing"] not in (without, with_)
    (mean / "preprocessor_config.json").write_text(json.dumps(settings | {"image_std": 0}))
    with pytest.raises(ValueError, match="image_std=0"):
        Embedder(mean)


@pytest.mark.parametrize("exact", [False, True])
def test_an_index_knows_mean_and_std(tmp_path, two_models, exact):
    _, plain, mean = two_models
    SimilarityIndex.create(tmp_path / "photos.index", model=Embedder(mean, exact=exact)).close()
    photo = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)
    again = SimilarityIndex.open(tmp_path / "photos.index")
    assert again.search(photo) == []  # the recorded model is loaded, and fits
    SimilarityIndex.open(tmp_path / "photos.index", model=mean)
    with pytest.raises(IndexMismatchError, match="preprocessing"):
        SimilarityIndex.open(tmp_path / "photos.index", model=plain)
