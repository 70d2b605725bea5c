"""What other people's PyTorch networks call their weights, and where those belong in our model.

An encoder is a `Trunk`: a prefix and a way to name layers. What is beside it is a classifier, or g, or unknown.

Sources: torchvision's `resnet.py`; lightly's `heads.py`; solo-learn's `base.py` and `simclr.py`; VISSL's `mlp.py` and
its conversion to torchvision; `convert.py` of tonylins/simclr-converter and of Separius/SimCLRv2-Pytorch.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..configuration_simclr import SimCLRConfig
from .convert import Shapes, ratio_of
from .torch_file import KNOWN

_GROUP_1 = re.compile(r"((?:.*\.)?)(layer1|\d)\.0\.(?:conv1|bn1)\.weight")
_PORT_GROUP_1 = re.compile(r"((?:.*\.)?)net\.1\.blocks\.0\.net\.(?:0|1\.0)\.weight")
# What belongs to training, to an evaluation beside it, or to other methods than SimCLR.
SKIPPED = re.compile(
    r"(momentum_\w+|\w+_momentum|encoder_k|teacher\w*|target_\w+|criterion|predictor|prediction_head|prototypes?"
    r"|online_evaluator|non_linear_evaluator)\.|queue\w*$"
)
_CLASSIFIER = re.compile(
    r"(fc|classifier|linear|(?:online_classifier\.)?classification_head|heads\.0\.clf\.0)\.weight"
)
_DENSE = ({"weight"}, {"weight", "bias"})
_STATISTICS = {"running_mean", "running_var"}
HEAD = re.compile(r"(projection_head|projector|projection|heads?|fc|g)\.")


@dataclass(frozen=True)
class Trunk:
    """Where an encoder's weights are: their common prefix, and what its layers are called."""

    root: str
    port: bool  # SimCLRv2-Pytorch's names, not torchvision's
    first: int | None  # of an nn.Sequential: the place of its first group
    shortcut: str

    def block(self, group: int, block: int) -> str:
        """The prefix of a block's names; both count from 0."""
        if self.port:
            return f"{self.root}net.{group + 1}.blocks.{block}"
        return f"{self.root}{f'layer{group + 1}' if self.first is None else self.first + group}.{block}"


def module_of(name: str) -> str:
    """A weight's name without its last part."""
    return name.rpartition(".")[0]


def find_trunk(names: Collection[str]) -> Trunk:
    """The one encoder among these names.

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
    return Trunk(root, port, first, "shortcut" if lightly else "downsample")


def shortcut_is_first(trunk: Trunk, names: Iterable[str]) -> bool:
    """Whether a block's shortcut comes before its convolutions, as in TensorFlow, which simclr-converter follows."""
    block = trunk.block(0, 0)
    ends = (f"{block}.{trunk.shortcut}.0.weight", f"{block}.conv1.weight")
    return next((name for name in names if name in ends), "") == ends[0]


def _stem(trunk: Trunk, n: int) -> tuple[str, str]:
    """Names of the stem's n-th convolution and BatchNorm."""
    if trunk.port:
        return f"{trunk.root}net.0.{2 * n}", f"{trunk.root}net.0.{2 * n + 1}.0"
    return (f"{trunk.root}conv1", f"{trunk.root}bn1") if trunk.first is None else (f"{trunk.root}0", f"{trunk.root}1")


def architecture_of(trunk: Trunk, shapes: Shapes) -> dict[str, Any]:
    """What of the config the encoder's shapes suggest; may be rough, since every shape is compared afterwards."""
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


def encoder_modules(config: SimCLRConfig, trunk: Trunk) -> Iterator[tuple[str, str]]:
    """Our path and the file's of every module of the encoder that has weights."""

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


def identity_shortcut(config: SimCLRConfig) -> dict[str, dict[str, Tensor]]:
    """Weights with which a shortcut's 1x1 convolution and BatchNorm give their input."""
    ones, zeros = torch.ones(config.embedding_size), torch.zeros(config.embedding_size)
    norm = {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones - config.batch_norm_eps}
    return {"convolution": {"weight": torch.diag(ones)[:, :, None, None]}, "normalization": norm}


def classifier_of(rest: Mapping[str, Tensor], trunk: Trunk) -> str | None:
    """The module that classifies, by its name without the encoder's prefix.

    Raises:
        ValueError: more than one.
    """
    found = {m[1] for local, tensor in rest.items() if (m := _CLASSIFIER.fullmatch(local)) and tensor.ndim == 2}
    if any(local.startswith("heads.") and not local.startswith("heads.0.clf.0.") for local in rest):
        found.discard("heads.0.clf.0")  # the first layer of a head
    if re.search(r"(encoder_q|base_encoder)\.$", trunk.root):
        found.discard("fc")  # MoCo's names: a projection
    if len(found) > 1:
        raise ValueError(f"it has several classifiers: {', '.join(sorted(found))}; save it without all but one")
    return found.pop() if found else None


def projection_of(head: Mapping[str, Tensor], width: int) -> list[tuple[str, str]] | str:
    """Dense layer and BatchNorm of every layer of g, or why this head is none that SimCLR's g can express.

    Args:
        head: its weights.
        width: of h.

    Raises:
        ValueError: it is not made of whole dense layers and BatchNorms.
    """
    kinds: dict[str, set[str]] = {}
    for name in head:
        kinds.setdefault(module_of(name), set()).add(name.rpartition(".")[2])
    order = sorted(kinds, key=lambda m: [(not part.isdigit(), part.zfill(9)) for part in m.split(".")])
    dense = [m for m in order if kinds[m] in _DENSE and head[f"{m}.weight"].ndim == 2]
    norms = [m for m in order if _STATISTICS <= kinds[m] <= _STATISTICS | {"weight", "bias"}]
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
    places = [m.rpartition(".") for m in order]
    steps = [int(b[2]) - int(a[2]) if a[0] == b[0] and (a[2] + b[2]).isdigit() else 0 for a, b in pairwise(places)]
    if steps != ([1, 2] * len(dense))[:-1]:
        return "its layers are not dense, BatchNorm, ReLU in a row"
    widths = [tuple(head[f"{m}.weight"].shape) for m in dense]
    if any(shape[1] != width for shape in widths) or any(shape[0] != width for shape in widths[:-1]):
        return f"its widths {', '.join(map(str, [widths[0][1], *(shape[0] for shape in widths)]))} are not h's {width}"
    if dense and f"{norms[-1]}.bias" in head and bool(head[f"{norms[-1]}.bias"].any()):
        return "its last BatchNorm has a shift"
    return list(zip(dense, norms, strict=True))
