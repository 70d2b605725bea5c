"""PyTorch files that people hold: where their weights belong in our model, and what else must be said of them.

The names say which network it is, the shapes how large; the check after that demands every weight of our model, each
of its shape, and nothing left over but what is skipped by name. An encoder is a `_Trunk`: a prefix and a way to name
layers. What is beside it is a classifier, or g, or unknown. What a layout computes and its names do not show (padding,
input, activations) becomes a note for people.

Sources: torchvision's `resnet.py`; lightly's `heads.py`; solo-learn's `base.py` and `simclr.py`; VISSL's `mlp.py` and
its conversion to torchvision; MMSelfSup's `NonLinearNeck`; FastSSL's `simclr.py`; `convert.py` of
tonylins/simclr-converter and of Separius/SimCLRv2-Pytorch.
"""

import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration_simclr import SimCLRConfig
from ..errors import CheckpointError
from ..image_processing_simclr import SimCLRImageProcessor
from ..modeling_simclr import SimCLRForImageClassification, SimCLRModel
from .fit import Model, Shapes, misfit, processor_for, ratio_of
from .torch_file import KNOWN, state_dict


@dataclass(frozen=True)
class Foreign:
    """A file's network in our terms.

    Attributes:
        model: on the meta device.
        processor: gives the pixels that its weights want.
        notes: for people, one sentence each, that begin with what they are about.
        path: the file.
        named: key in the model's state_dict -> name in the file, tensor.
    """

    model: Model
    processor: SimCLRImageProcessor
    notes: list[str]
    path: Path
    named: Mapping[str, tuple[str, Tensor]]

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every weight by its key in the model's state_dict, as float32 in memory of its own.

        Raises:
            CheckpointError: values that no weight can have.
        """
        for key, (name, tensor) in self.named.items():
            value = tensor.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
            if not value.isfinite().all() or (key.endswith("running_var") and (value < 0).any()):
                raise CheckpointError(
                    f"{self.path}: {name} has NaN, infinite or impossible values; training diverged?"
                )
            yield key, value


def read(
    source: str | os.PathLike[str],
    *,
    classifier_layer: int | None = None,
    image_size: int | None = None,
    normalize: str | None = None,
) -> Foreign:
    """Find out what network a PyTorch file holds; arguments and errors are those of `convert`."""
    path = Path(source)
    notes: list[str] = []
    tensors = state_dict(path, notes)
    try:
        return _read(path, tensors, notes, classifier_layer, image_size, normalize)
    except (ValueError, StrictDataclassError) as e:
        raise CheckpointError(f"{path}: {e.__cause__ or e}") from e


def _read(
    path: Path,
    tensors: dict[str, Tensor],
    notes: list[str],
    classifier_layer: int | None,
    image_size: int | None,
    normalize: str | None,
) -> Foreign:
    counters = {name for name in tensors if name.endswith("num_batches_tracked")}
    # No training step in PyTorch: a converter from TensorFlow filled it; or a torchvision, with weights older than the
    # count.
    uncounted = bool(counters) and not any(bool(tensors[name].any()) for name in counters)
    skipped = {name for name in tensors if _SKIPPED.match(name)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in counters | skipped}
    trunk = _find_trunk(tensors)
    architecture = _architecture_of(trunk, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    # Wide ones, and the order of names, are simclr-converter's own; safetensors files have lost the order.
    wide = architecture["width_multiplier"] > 1
    official = trunk.port or (uncounted and (wide or _shortcut_is_first(trunk, tensors)))
    cifar = architecture["stem_type"] == "cifar"
    architecture["image_size"] = (32 if cifar else 224) if image_size is None else image_size
    encoder = SimCLRConfig(**architecture, projection_layers=0)
    modules = dict(_encoder_modules(encoder, trunk))

    shortcut = "encoder.stages.0.0.shortcut.projection"
    identity = encoder.layer_type == "basic" and f"{modules[f'{shortcut}.convolution']}.weight" not in tensors
    if identity and not trunk.port:
        notes.append(_IDENTITY)
        for module, values in _identity_shortcut(encoder).items():
            tensors |= {f"{modules[f'{shortcut}.{module}']}.{kind}": value for kind, value in values.items()}

    theirs = set(modules.values())
    rest = {name.removeprefix(trunk.root): name for name in tensors if _module_of(name) not in theirs}
    classifier = _classifier_of({local: tensors[name] for local, name in rest.items()}, trunk)
    head = {local: name for local, name in rest.items() if _HEAD.match(local) and _module_of(local) != classifier}
    g = _projection_of({local: tensors[name] for local, name in head.items()}, encoder.hidden_size)
    if isinstance(g, str) and trunk.port:
        raise ValueError(f"its head is not SimCLR's g: {g}; save it without 'head'")
    if isinstance(g, str):
        notes.append(f"g: left out, the model has projection_layers=0: {g}, which SimCLR's g cannot express")
        skipped |= set(head.values())
        g = []
    for j, (dense, norm) in enumerate(g):
        modules[f"projection.layers.{j}.dense"] = _module_of(head[f"{dense}.weight"])
        modules[f"projection.layers.{j}.normalization"] = _module_of(head[f"{norm}.weight"])
    if g and (beta := f"{modules[f'projection.layers.{len(g) - 1}.normalization']}.bias") in tensors:
        del tensors[beta]  # all zero
    if classifier_layer and not classifier:
        raise ValueError(f"classifier_layer={classifier_layer}, but it has no classifier (fc.weight)")
    config = SimCLRConfig(
        **architecture,
        projection_layers=len(g),
        projection_type="linear" if len(g) == 1 else "nonlinear",
        projection_dim=len(tensors[head[f"{g[-1][0]}.weight"]]) if g else 128,
        classifier_layer=classifier_layer or 0,
    )
    if classifier:
        config.num_labels = len(tensors[rest[f"{classifier}.weight"]])
        modules = {f"simclr.{module}": name for module, name in modules.items()}
        modules["classifier"] = _module_of(rest[f"{classifier}.weight"])
    with torch.device("meta"):
        model = (SimCLRForImageClassification if classifier else SimCLRModel)(config)
    ours = {key: tuple(t.shape) for key, t in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    named = {key: f"{modules[_module_of(key)]}.{key.rpartition('.')[2]}" for key in ours}
    wrong = misfit(
        {named[key]: shape for key, shape in ours.items()},
        {name: tuple(tensor.shape) for name, tensor in tensors.items() if name not in skipped},
    )
    if wrong:
        raise ValueError(
            f"its weights are not those of a known layout; as a {config.layer_type} ResNet of blocks {config.depths}, "
            f"width {config.width_multiplier:g}, sk_ratio {config.sk_ratio:g}: {wrong}. Known: {KNOWN}"
        )
    notes[:0] = _about(config, trunk, official, uncounted, normalize)
    if classifier:
        notes.append(
            f"classifier: {rest[f'{classifier}.weight']}, {config.num_labels} classes, taken to sit on "
            f"{f'layer {classifier_layer} of g' if classifier_layer else 'h'}"
            + (_FROM_1_PCT if g and not classifier_layer else "")
            + (_RANDOM_BIAS if official and not trunk.port else "")
        )
    if skipped:
        parts = sorted({name.split(".")[0] for name in skipped})
        notes.append(f"left out: {len(skipped)} tensors of {', '.join(parts)}")
    if strange := [f"{name} ({t.dtype})" for name, t in tensors.items() if not t.is_floating_point()]:
        raise ValueError(f"{', '.join(strange[:4])}: weights must be floating-point numbers")
    if kinds := sorted({str(t.dtype) for name, t in tensors.items() if t.dtype != torch.float32}):
        notes.append(f"dtype: {', '.join(kinds).replace('torch.', '')} became float32")
    processor = processor_for(config.image_size, normalize or ("none" if official else "imagenet"))
    return Foreign(model, processor, notes, path, {key: (name, tensors[name]) for key, name in named.items()})


def _about(
    config: SimCLRConfig, trunk: "_Trunk", official: bool, uncounted: bool, normalize: str | None
) -> Iterator[str]:
    """Note what the layout implies and no weight shows."""
    if trunk.port:
        name = "SimCLRv2-Pytorch's names"
    else:
        name = "torchvision's names" + (" in an nn.Sequential" if trunk.first is not None else "")
        if official:
            name += ", as simclr-converter fills them from TensorFlow: no training step is counted"
    yield f"layout: {name}"
    if config.stem_type == "cifar":
        yield _CIFAR
    elif official:
        yield _POOL + _TRAINED_HERE
    else:
        yield _POOL + _TRAINED_THERE
    if config.sk_ratio:
        yield _SK_POOL + _TRAINED_HERE
    if normalize:
        yield f"input: {'[0, 1] without' if normalize == 'none' else 'ImageNet'} mean and std, as asked"
    elif official:
        yield _OFFICIAL_INPUT
    else:
        yield _IMAGENET + (_CIFAR_MEAN if config.stem_type == "cifar" else _UNCOUNTED if uncounted else "")


_GROUP_1 = re.compile(r"((?:.*\.)?)(layer1|\d)\.0\.(?:conv1|bn1)\.weight")
_PORT_GROUP_1 = re.compile(r"((?:.*\.)?)net\.1\.blocks\.0\.net\.(?:0|1\.0)\.weight")
# What belongs to training, to an evaluation beside it, or to other methods than SimCLR.
_SKIPPED = re.compile(
    r"(momentum_\w+|\w+_momentum|encoder_k|teacher\w*|target_\w+|criterion|predictor|prediction_head|prototypes?"
    r"|online_evaluator|non_linear_evaluator)\.|queue\w*$"
)
_CLASSIFIER = re.compile(
    r"(fc|classifier|linear|(?:online_classifier\.)?classification_head|heads\.0\.clf\.0)\.weight"
)
_DENSE = ({"weight"}, {"weight", "bias"})
_STATISTICS = {"running_mean", "running_var"}
_HEAD = re.compile(r"(projection_head|projector|projection|heads?|neck|fc|g)\.")


@dataclass(frozen=True)
class _Trunk:
    """Where an encoder's weights are: their common prefix, and what its layers are called."""

    root: str
    port: bool  # SimCLRv2-Pytorch's names, not torchvision's
    first: int | None  # of an nn.Sequential: the place of its first group
    shortcut: str

    def block(self, group: int, block: int) -> str:
        """Return the prefix of a block's names; both count from 0."""
        if self.port:
            return f"{self.root}net.{group + 1}.blocks.{block}"
        return f"{self.root}{f'layer{group + 1}' if self.first is None else self.first + group}.{block}"


def _module_of(name: str) -> str:
    """Drop the last part of a weight's name."""
    return name.rpartition(".")[0]


def _find_trunk(names: Collection[str]) -> _Trunk:
    """Find the one encoder among these names.

    Raises:
        ValueError: there is none, or more than one.
    """
    found: dict[str, tuple[bool, int | None]] = {}
    for name in names:
        if match := _PORT_GROUP_1.fullmatch(name):
            found[match[1]] = (True, None)
        elif match := _GROUP_1.fullmatch(name):
            place = None if match[2] == "layer1" else int(match[2])
            before = found.get(match[1], (False, place))[1]
            found[match[1]] = (False, None if place is None or before is None else min(place, before))
    if not found:
        raise ValueError(f"unknown layout, with {', '.join(list(names)[:4])}; known: {KNOWN}")
    if len(found) > 1:
        roots = ", ".join(repr(root) for root in sorted(found))
        raise ValueError(f"it holds several networks, under {roots}: save the state_dict of the one that you want")
    root, (port, first) = found.popitem()
    lightly = any(name.startswith(root) and name.endswith(".shortcut.0.weight") for name in names)
    return _Trunk(root, port, first, "shortcut" if lightly else "downsample")


def _shortcut_is_first(trunk: _Trunk, names: Iterable[str]) -> bool:
    """Tell whether a block's shortcut precedes its convolutions, as in TensorFlow, which simclr-converter follows."""
    block = trunk.block(0, 0)
    ends = (f"{block}.{trunk.shortcut}.0.weight", f"{block}.conv1.weight")
    return next((name for name in names if name in ends), "") == ends[0]


def _stem(trunk: _Trunk, n: int) -> tuple[str, str]:
    """Name the stem's n-th convolution and BatchNorm."""
    if trunk.port:
        return f"{trunk.root}net.0.{2 * n}", f"{trunk.root}net.0.{2 * n + 1}.0"
    return (f"{trunk.root}conv1", f"{trunk.root}bn1") if trunk.first is None else (f"{trunk.root}0", f"{trunk.root}1")


def _architecture_of(trunk: _Trunk, shapes: Shapes) -> dict[str, Any]:
    """Infer the config from the encoder's shapes; it may be rough, since every shape is compared afterwards."""
    first = "net.0.weight" if trunk.port else "conv1.weight"
    parts = {name[: dot.start()] for name in shapes for dot in re.finditer(r"\.", name)}
    depths: list[int] = []
    while there := [n for n in range(len(parts)) if trunk.block(len(depths), n) in parts]:
        depths.append(there[-1] + 1)
    deep = trunk.port and f"{_stem(trunk, 1)[0]}.weight" in shapes
    stem = [f"{_stem(trunk, n)[0]}.weight" for n in range(3 if deep else 1)]
    for name in (*stem, f"{trunk.block(0, 0)}.{first}"):
        if len(shapes.get(name, ())) != 4 or 0 in shapes[name]:
            raise ValueError(f"{name} is {shapes.get(name, 'missing')}, not a convolution's kernel; known: {KNOWN}")
    width = shapes[stem[-1]][0]
    squeezes = [
        (shape[1], shape[0]) for name, shape in shapes.items() if name.endswith(".mixing_conv.0.weight") and shape[1:]
    ]
    if trunk.port:
        basic = not squeezes and shapes[f"{trunk.block(0, 0)}.{first}"][2] == 3
    else:
        basic = not any(name.startswith(trunk.root) and name.endswith(".conv3.weight") for name in shapes)
    return {
        "depths": depths,
        "layer_type": "basic" if basic else "bottleneck",
        "width_multiplier": width / 64 if width % 64 else width // 64,
        "sk_ratio": ratio_of(squeezes, minimum=32) if squeezes else 0.0,
        "stem_type": "cifar" if not deep and shapes[stem[0]][2] == 3 else "imagenet",
    }


def _encoder_modules(config: SimCLRConfig, trunk: _Trunk) -> Iterator[tuple[str, str]]:
    """Yield our path and the file's path of every module of the encoder that has weights."""

    def layer(ours: str, convolution: str, normalization: str) -> Iterator[tuple[str, str]]:
        yield f"{ours}.convolution", convolution
        yield f"{ours}.normalization", normalization

    selective = config.sk_ratio > 0
    for n in range(3 if selective and config.stem_type == "imagenet" else 1):
        yield from layer(f"encoder.stem.layers.{n}", *_stem(trunk, n))
    last = 1 if config.layer_type == "basic" else 2
    for group, depth in enumerate(config.depths):
        for block in range(depth):
            ours, theirs = f"encoder.stages.{group}.{block}", trunk.block(group, block)
            if block == 0:
                down = f"{theirs}.{trunk.shortcut}"
                names = (f"{down}.0", f"{down}.1")
                if trunk.port:
                    names = f"{theirs}.projection.shortcut{'.2' * selective}", f"{theirs}.projection.bn.0"
                yield from layer(f"{ours}.shortcut.projection", *names)
            for n in range(last + 1):
                place = f"{ours}.layers.{n}"
                if not trunk.port:
                    yield from layer(place, f"{theirs}.conv{n + 1}", f"{theirs}.bn{n + 1}")
                elif selective and n == 1:
                    kernel = f"{theirs}.net.2"
                    yield from layer(f"{place}.streams", f"{kernel}.main_conv.0", f"{kernel}.main_conv.1.0")
                    yield from layer(f"{place}.squeeze", f"{kernel}.mixing_conv.0", f"{kernel}.mixing_conv.1.0")
                    yield f"{place}.excite", f"{kernel}.mixing_conv.2"
                else:
                    at = 2 * n - (selective and n == 2)
                    yield from layer(place, f"{theirs}.net.{at}", f"{theirs}.net.{at + 1}.0")


def _identity_shortcut(config: SimCLRConfig) -> dict[str, dict[str, Tensor]]:
    """Return the weights with which a shortcut's 1x1 convolution and BatchNorm give their input."""
    ones, zeros = torch.ones(config.embedding_size), torch.zeros(config.embedding_size)
    norm = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones - config.batch_norm_eps}
    return {"convolution": {"weight": torch.diag(ones)[:, :, None, None]}, "normalization": norm}


def _classifier_of(rest: Mapping[str, Tensor], trunk: _Trunk) -> str | None:
    """Find the module that classifies, by its name without the encoder's prefix.

    Raises:
        ValueError: more than one.
    """
    found = {m[1] for local, tensor in rest.items() if (m := _CLASSIFIER.fullmatch(local)) and tensor.ndim == 2}
    if any(local.startswith("heads.") and not local.startswith("heads.0.clf.0.") for local in rest):
        found.discard("heads.0.clf.0")  # the first layer of a head
    # MoCo's names, and FastSSL's, whose projector begins with the BatchNorm behind it: a projection.
    if re.search(r"(encoder_q|base_encoder)\.$", trunk.root) or "projector.0.running_mean" in rest:
        found.discard("fc")
    if len(found) > 1:
        raise ValueError(f"it has several classifiers: {', '.join(sorted(found))}; save it without all but one")
    return found.pop() if found else None


def _projection_of(head: Mapping[str, Tensor], width: int) -> list[tuple[str, str]] | str:
    """List the dense layer and BatchNorm of every layer of g, or say why SimCLR's g cannot express this head.

    Args:
        head: its weights.
        width: of h.

    Raises:
        ValueError: it is not made of whole dense layers and BatchNorms.
    """
    kinds: dict[str, set[str]] = {}
    for name in head:
        kinds.setdefault(_module_of(name), set()).add(name.rpartition(".")[2])
    # MMSelfSup's fc0, bn0, fc1, bn1 are steps as if 0, 1, 3, 4 of an nn.Sequential, with a ReLU between.
    step = {m: re.sub(r"\b(fc|bn)(\d+)$", lambda x: str(3 * int(x[2]) + (x[1] == "bn")), m) for m in kinds}
    order = sorted(kinds, key=lambda m: [(not part.isdigit(), part.zfill(9)) for part in step[m].split(".")])
    dense = [m for m in order if kinds[m] in _DENSE and head[f"{m}.weight"].ndim == 2]
    norms = [m for m in order if _STATISTICS <= kinds[m] <= _STATISTICS | {"weight", "bias"}]
    if any(kinds[m] == {"weight", "bias"} and head[f"{m}.weight"].ndim == 1 for m in order):
        return "it has a LayerNorm"
    for module in order:
        if module not in dense and module not in norms:
            raise ValueError(f"{module} ({', '.join(sorted(kinds[module]))}) is neither a dense layer nor a BatchNorm")
    if any("bias" in kinds[m] for m in dense):
        return "its dense layers have a bias"
    if order[::2] != dense or order[1::2] != norms or len(norms) != len(dense):
        return "its layers are not dense and BatchNorm by turns"
    if any("weight" not in kinds[m] for m in norms) or any("bias" not in kinds[m] for m in norms[:-1]):
        return "a BatchNorm has no scale or shift"
    # dense, BatchNorm, ReLU: the ReLU has no weights, but its place is left out.
    places = [step[m].rpartition(".") for m in order]
    steps = [int(b[2]) - int(a[2]) if a[0] == b[0] and (a[2] + b[2]).isdigit() else 0 for a, b in pairwise(places)]
    if steps != ([1, 2] * len(dense))[:-1]:
        return "its layers are not dense, BatchNorm, ReLU in a row"
    widths = [tuple(head[f"{m}.weight"].shape) for m in dense]
    if any(shape[1] != width for shape in widths) or any(shape[0] != width for shape in widths[:-1]):
        return f"its widths {', '.join(map(str, [widths[0][1], *(shape[0] for shape in widths)]))} are not h's {width}"
    if dense and f"{norms[-1]}.bias" in head and bool(head[f"{norms[-1]}.bias"].any()):
        return "its last BatchNorm has a shift"
    return list(zip(dense, norms, strict=True))


# Notes.
_POOL = "padding: the layout's max-pool pads (1, 1), ours as the official code: an even side at its end only"
_SK_POOL = (
    "padding: the layout's shortcuts at stride 1 divide their average pool by 4, ours as the official code by the "
    "number of real pixels"
)
_TRAINED_HERE = ", with which these weights were trained"
_TRAINED_THERE = (
    ". These weights were trained with the former: where the map before the pool is even (at 224 pixels, 112), h is "
    "about that of the original network for an image moved by 2 pixels; where it is odd, as at --image-size 225, h is "
    "the original's"
)
_CIFAR = (
    "stem: a first convolution of 3x3 is taken for the CIFAR stem: stride 1, padding 1, no max-pool. solo-learn pads "
    "it by 2: of its networks h is not the original's"
)
_IMAGENET = (
    "input: ImageNet's mean and std, assumed as torchvision, lightly, solo-learn and VISSL use them; the processor "
    "applies them (--normalize none if it was trained without)"
)
_OFFICIAL_INPUT = (
    "input: [0, 1] without mean and std, assumed as in the official code (--normalize imagenet if it was trained with)"
)
_UNCOUNTED = ". No training step is counted: if it is simclr-converter's, give --normalize none"
_CIFAR_MEAN = ". CIFAR's own are as usual: set image_mean and image_std in preprocessor_config.json"
_IDENTITY = (
    "shortcut: the first block has none to learn in this layout; ours has one that is the identity. h is the same; "
    "training goes on with a shortcut that learns"
)
_FROM_1_PCT = "; the official 1 % and 10 % fine-tuned ones sit on layer 1 of g: --classifier-layer 1"
_RANDOM_BIAS = "; simclr-converter leaves its bias at random values"
