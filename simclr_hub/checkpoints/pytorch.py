"""PyTorch files that people hold: where their weights belong in our model, and what else must be said of them.

The names say which network it is, the shapes how large; the check after that demands every weight of our model, each
of its shape, and nothing left over but what is skipped by name.

Unusual: what a layout computes and its names do not show (padding, input, activations) becomes a note for people.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor

from ..configuration_simclr import SimCLRConfig
from ..errors import CheckpointError
from ..image_processing_simclr import SimCLRImageProcessor
from ..modeling_simclr import SimCLRForImageClassification, SimCLRModel
from .convert import Model, misfit, processor_for
from .layouts import (
    HEAD,
    SKIPPED,
    Trunk,
    architecture_of,
    classifier_of,
    encoder_modules,
    find_trunk,
    identity_shortcut,
    module_of,
    projection_of,
    shortcut_is_first,
)
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
        """Every weight by its key in the model's state_dict, float32, in memory of its own.

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
    skipped = {name for name in tensors if SKIPPED.match(name)}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in counters | skipped}
    trunk = find_trunk(tensors)
    architecture = architecture_of(trunk, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    # Wide ones, and the order of names, are simclr-converter's own; safetensors files have lost the order.
    wide = architecture["width_multiplier"] > 1
    official = trunk.port or (uncounted and (wide or shortcut_is_first(trunk, tensors)))
    cifar = architecture["stem_type"] == "cifar"
    architecture["image_size"] = (32 if cifar else 224) if image_size is None else image_size
    encoder = SimCLRConfig(**architecture, projection_layers=0)
    modules = dict(encoder_modules(encoder, trunk))

    shortcut = "encoder.stages.0.0.shortcut.projection"
    identity = encoder.layer_type == "basic" and f"{modules[f'{shortcut}.convolution']}.weight" not in tensors
    if identity and not trunk.port:
        notes.append(_IDENTITY)
        for module, values in identity_shortcut(encoder).items():
            tensors |= {f"{modules[f'{shortcut}.{module}']}.{kind}": value for kind, value in values.items()}

    theirs = set(modules.values())
    rest = {name.removeprefix(trunk.root): name for name in tensors if module_of(name) not in theirs}
    classifier = classifier_of({local: tensors[name] for local, name in rest.items()}, trunk)
    head = {local: name for local, name in rest.items() if HEAD.match(local) and module_of(local) != classifier}
    g = projection_of({local: tensors[name] for local, name in head.items()}, encoder.hidden_size)
    if isinstance(g, str) and trunk.port:
        raise ValueError(f"its head is not SimCLR's g: {g}; save it without 'head'")
    if isinstance(g, str):
        notes.append(f"g: left out, the model has projection_layers=0: {g}, which SimCLR's g cannot express")
        skipped |= set(head.values())
        g = []
    for j, (dense, norm) in enumerate(g):
        modules[f"projection.layers.{j}.dense"] = module_of(head[f"{dense}.weight"])
        modules[f"projection.layers.{j}.normalization"] = module_of(head[f"{norm}.weight"])
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
        modules["classifier"] = module_of(rest[f"{classifier}.weight"])
    with torch.device("meta"):
        model = (SimCLRForImageClassification if classifier else SimCLRModel)(config)
    ours = {key: tuple(t.shape) for key, t in model.state_dict().items() if not key.endswith("num_batches_tracked")}
    named = {key: f"{modules[module_of(key)]}.{key.rpartition('.')[2]}" for key in ours}
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
    config: SimCLRConfig, trunk: Trunk, official: bool, uncounted: bool, normalize: str | None
) -> Iterator[str]:
    """What the layout implies that no weight shows."""
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
