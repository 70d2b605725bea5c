"""convert(): an official TensorFlow checkpoint of SimCLR v1 or v2 becomes a directory that `from_pretrained` loads.

PyTorch files are read in `pytorch.py`.

The architecture is read off the tensors' shapes. That reading may be rough, because the check after it is not: the
model it leads to must have exactly the checkpoint's weights, each of its shape, each used once.

Source: google-research/simclr, `resnet.py` and `model_util.py`; the names are TensorFlow 1's.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import count, pairwise
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn

from .._files import new_directory
from ..configuration_simclr import SimCLRConfig
from ..errors import CheckpointError
from ..image_processing_simclr import SimCLRImageProcessor
from ..modeling_simclr import SimCLRForImageClassification, SimCLRModel
from ..progress import quiet_transformers
from .fit import Model, Shapes, misfit, processor_for, ratio_of
from .pytorch import read
from .tf_bundle import TFBundle
from .torch_file import is_pytorch

_LOG = logging.getLogger(__name__)

_CLASSIFIER = "head_supervised/linear_layer/dense"
_LINEAR_HEAD = "head_contrastive/l_0/dense/kernel"
_DENSE = {"weight": "kernel", "bias": "bias"}
_BATCH_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def convert(
    source: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    ema: bool = False,
    classifier_layer: int | None = None,
    image_size: int | None = None,
    normalize: str | None = None,
    on_note: Callable[[str], None] = _LOG.warning,
) -> SimCLRConfig:
    """Write the checkpoint's model, config and image processor to the directory `out`, all of it or nothing.

    Args:
        source: the checkpoint's directory, its prefix (`.../model.ckpt-250228`) or its `.index` file; or a PyTorch
            file of a layout that docs/convert.md lists.
        out: a directory that does not exist yet, or is empty.
        ema: take the averaged encoder and head that v2's pretrained checkpoints carry; the classifier has no average.
        classifier_layer: what the classifier sits on, which shapes cannot reveal: 0 (default) = h, 1 = g's first
            layer (v2's 1 % and 10 % fine-tuned checkpoints).
        image_size: side in pixels of the processor's output; default 224, or 32 for the CIFAR stem.
        normalize: `"imagenet"`: the processor applies ImageNet's mean and std; `"none"`: it does not; default what the
            layout's trainings do (official ones: none).
        on_note: called with every sentence on what a PyTorch layout implies and was decided; default: the log.

    Returns:
        The config that was written. With a classifier the model is a `SimCLRForImageClassification`, else a
        `SimCLRModel`.

    Raises:
        CheckpointError: damaged, not a SimCLR checkpoint of a known layout, or without what was asked for.
        FileExistsError: something is at `out`.
    """
    if is_pytorch(source):
        if ema:
            raise CheckpointError(
                f"{os.fspath(source)}: averaged weights (ema) are known in v2's TensorFlow files only"
            )
        foreign = read(source, classifier_layer=classifier_layer, image_size=image_size, normalize=normalize)
        _write_model(foreign.model, foreign.weights(), Path(out), foreign.processor)
        for note in foreign.notes:
            on_note(note)
        return foreign.model.config
    bundle = TFBundle(source)
    sources = _sources(bundle.shapes, ema)
    shapes = {name: bundle.shapes[stored] for name, stored in sources.items()}
    try:
        if ema and not any(stored.startswith("ema_model/") for stored in sources.values()):
            raise ValueError("it has no averaged weights (ema_model/...); only v2's pretrained checkpoints do")
        config = infer_config(shapes, classifier_layer=classifier_layer, image_size=image_size)
        with torch.device("meta"):
            model = (SimCLRForImageClassification if f"{_CLASSIFIER}/kernel" in shapes else SimCLRModel)(config)
        names = dict(_tensor_names(model))
        _check_fit(model, names, shapes)
        processor = processor_for(config.image_size, normalize or "none")
    except (ValueError, StrictDataclassError) as e:  # the latter from the config; its cause says what does not fit
        raise CheckpointError(f"{bundle.prefix}: {e.__cause__ or e}") from e
    _write_model(model, ((key, _weight(bundle, sources[name])) for key, name in names.items()), Path(out), processor)
    return config


def _write_model(
    model: Model, weights: Iterable[tuple[str, torch.Tensor]], out: Path, processor: SimCLRImageProcessor
) -> None:
    """Give `model`, built on the meta device, its weights, keyed as its state_dict, and write it to `out`."""
    with new_directory(out) as directory:
        state = {key: torch.tensor(0) for key in model.state_dict() if key.endswith("num_batches_tracked")}
        model.load_state_dict(state | dict(weights), assign=True)
        with quiet_transformers():
            model.save_pretrained(directory)
            processor.save_pretrained(directory)


def infer_config(
    shapes: Shapes, *, classifier_layer: int | None = None, image_size: int | None = None
) -> SimCLRConfig:
    """Infer the architecture from the names and shapes of TensorFlow's tensors.

    Args:
        shapes: name -> shape of the weights, without `ema_model/` and without the optimiser's slots.
        classifier_layer: as in `convert`.
        image_size: as in `convert`.

    Raises:
        ValueError: they are not those of an official SimCLR network.
        StrictDataclassError: they, or `classifier_layer`, make no valid config.
    """
    for name, shape in shapes.items():
        if 0 in shape or (name.endswith("/kernel") and len(shape) != (2 if "/dense/" in name else 4)):
            raise ValueError(f"{name!r} has the impossible shape {shape}")
    numbered = _numbered(shapes, lambda n: f"base_model/conv2d{_suffix(n)}/kernel")
    kernels = list(numbered.values())  # HWIO
    deep_stem = [k[0] for k in kernels[:3]] == [3, 3, 3]
    stem, rest = kernels[: 3 if deep_stem else 1], kernels[3 if deep_stem else 1 :]
    if len(rest) < 3:  # a shortcut and a block
        raise ValueError(f"not an official SimCLR checkpoint: {len(kernels)} tensors base_model/conv2d[_N]/kernel")
    cifar = not deep_stem and stem[0][0] == 3
    width = stem[-1][3]
    basic = rest[1][0] == 3
    # A bottleneck's 3x3 keeps its channels; with selective kernels it has those of both streams.
    selective = not basic and rest[2][3] == 2 * rest[2][2]
    depths: list[int] = []
    while n := sum(k[0] == 3 and k[3] == (width << len(depths)) * (1 + selective) for k in rest):
        depths.append(n // 2 if basic else n)
    squeezes = [(k[3] // 2, following[3]) for k, following in pairwise(rest) if selective and k[0] == 3]
    biased = [k for n, k in numbered.items() if f"base_model/conv2d{_suffix(n)}/bias" in shapes]
    gates = [(k[2] // (1 if basic else 4), k[3]) for k in biased[::2]]
    linear = _LINEAR_HEAD in shapes
    layers = list(_numbered(shapes, lambda j: f"head_contrastive/nl_{j}/dense/kernel").values())
    head = [shapes[_LINEAR_HEAD]] if linear else layers
    classifier = shapes.get(f"{_CLASSIFIER}/kernel")
    if classifier_layer and not classifier:
        raise ValueError(f"classifier_layer={classifier_layer}, but it has no classifier ({_CLASSIFIER}/kernel)")
    config = SimCLRConfig(
        depths=depths,
        layer_type="basic" if basic else "bottleneck",
        width_multiplier=width / 64 if width % 64 else width // 64,
        sk_ratio=ratio_of(squeezes, minimum=32) if selective or deep_stem else 0.0,
        se_ratio=ratio_of(gates, minimum=1) if gates else 0.0,
        stem_type="cifar" if cifar else "imagenet",
        projection_layers=len(head),
        projection_type="linear" if linear else "nonlinear",
        projection_dim=head[-1][1] if head else 128,
        classifier_layer=classifier_layer or 0,
        image_size=(32 if cifar else 224) if image_size is None else image_size,
    )
    if classifier:
        config.num_labels = classifier[1]
    return config


def _sources(names: Iterable[str], ema: bool) -> dict[str, str]:
    """Map the name of every weight in a plain network to its name in the checkpoint."""
    prefix = "ema_model/" if ema else ""
    roots = (f"{prefix}base_model/", f"{prefix}head_contrastive/", "head_supervised/")
    return {n.removeprefix(prefix): n for n in names if n.startswith(roots) and not n.endswith("/Momentum")}


def _numbered(shapes: Shapes, name: Callable[[int], str]) -> dict[int, tuple[int, ...]]:
    return {n: shapes[name(n)] for n in range(len(shapes)) if name(n) in shapes}


def _suffix(n: int) -> str:
    return f"_{n}" if n else ""


def _tensor_names(model: Model) -> Iterator[tuple[str, str]]:
    """Yield every weight's key in the state_dict and its name in TensorFlow.

    TensorFlow numbers layers as they are created, which is the order of our modules: in a block the shortcut, then
    the main path, then the gate.
    """
    network, root = (model, "") if isinstance(model, SimCLRModel) else (model.simclr, "simclr.")
    layers: list[tuple[str, nn.Module, str]] = []
    convs, norms = count(), count()
    for path, module in network.encoder.named_modules(prefix=f"{root}encoder"):
        if isinstance(module, nn.Conv2d):
            layers.append((path, module, f"base_model/conv2d{_suffix(next(convs))}"))
        elif isinstance(module, nn.BatchNorm2d):
            layers.append((path, module, f"base_model/batch_normalization{_suffix(next(norms))}"))
    for j, layer in enumerate(network.projection.layers):
        scope = f"head_contrastive/{'l' if model.config.projection_type == 'linear' else 'nl'}_{j}"
        for ours, theirs in (("dense", "dense"), ("normalization", "batch_normalization")):
            layers.append((f"{root}projection.layers.{j}.{ours}", layer.get_submodule(ours), f"{scope}/{theirs}"))
    if isinstance(model, SimCLRForImageClassification):
        layers.append(("classifier", model.classifier, _CLASSIFIER))
    for path, module, scope in layers:
        kinds = _BATCH_NORM if isinstance(module, nn.modules.batchnorm._BatchNorm) else _DENSE
        for key in module.state_dict():
            if key in kinds:
                yield f"{path}.{key}", f"{scope}/{kinds[key]}"


def _check_fit(model: Model, names: Mapping[str, str], shapes: Shapes) -> None:
    state = model.state_dict()
    wrong = misfit({name: _tf_shape(tuple(state[key].shape)) for key, name in names.items()}, shapes)
    if wrong:
        config: SimCLRConfig = model.config
        raise ValueError(
            f"its weights are not those of an official SimCLR network; as a {config.layer_type} ResNet of blocks "
            f"{config.depths}, width {config.width_multiplier:g}, sk_ratio {config.sk_ratio:g}: {wrong}"
        )


def _tf_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Reorder a shape from OIHW to HWIO, or from OI to IO."""
    return shape[2:] + shape[1::-1] if len(shape) > 1 else shape


def _weight(bundle: TFBundle, name: str) -> torch.Tensor:
    """Read one tensor, reordered from HWIO to OIHW or from IO to OI.

    Raises:
        CheckpointError: damaged, not float32, or with values that no weight can have.
    """
    array = bundle.read(name)
    if array.dtype != np.float32:
        raise CheckpointError(f"{bundle.prefix}: {name} is {array.dtype}, not float32")
    if not np.isfinite(array).all() or (name.endswith("/moving_variance") and (array < 0).any()):
        raise CheckpointError(f"{bundle.prefix}: {name} has NaN, infinite or impossible values; training diverged?")
    if array.ndim > 1:
        array = np.moveaxis(array, (-1, -2), (0, 1))
    return torch.from_numpy(np.ascontiguousarray(array))
