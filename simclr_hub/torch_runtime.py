"""What runs a model with torch: as it is or compiled, on any device in any precision; and exporting it to ONNX."""

import copy
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from .configuration_simclr import SimCLRConfig
from .image_processing_simclr import SimCLRImageProcessor
from .images import load_image
from .loading import architecture_of, hashed_weights, load_folder, weights_hash
from .modeling_simclr import SimCLRConvLayer, SimCLRModel, SimCLRProjectionLayer
from .onnx_export import to_onnx
from .pixels import transform
from .runtimes import (
    DEFAULT_FOLDER,
    H_STAGE3,
    LIMITS,
    SHIPPED,
    Export,
    LayerFacts,
    OnnxRunner,
    Runner,
    keep_export,
)

T = TypeVar("T")


def fast_copy(model: SimCLRModel, device: torch.device, dtype: torch.dtype) -> SimCLRModel:
    """Copy a model for inference on `device`: BatchNorm folded, channels last; the model itself is left as it is.

    Drift from the eager float32 model: below 1e-6 relative in float32 (tests/test_torch_runtime.py).
    """
    fast: SimCLRModel = copy.deepcopy(model).eval().requires_grad_(False)
    for layer in fast.modules():
        if isinstance(layer, SimCLRConvLayer):
            layer.convolution = fuse_conv_bn_eval(layer.convolution, layer.normalization)
        elif isinstance(layer, SimCLRProjectionLayer):
            if layer.normalization.bias is None:  # the last one's
                zeros = torch.zeros_like(layer.normalization.weight)  # type: ignore[unreachable]
                layer.normalization.bias = nn.Parameter(zeros)
            layer.dense = fuse_linear_bn_eval(layer.dense, layer.normalization)
        else:
            continue
        layer.normalization = nn.Identity()  # type: ignore[assignment]
    fast.to(device=device, dtype=dtype, memory_format=torch.channels_last)  # type: ignore[call-arg]
    return fast


class Layer(nn.Module):
    """One layer of a model: pixel values (B, 3, H, W) to vectors (B, D).

    Args:
        model: the model.
        projection: 0 for h, j for g's layer j.
        stage3: h and, beside it, stage 3's map averaged.
    """

    def __init__(self, model: SimCLRModel, projection: int, *, stage3: bool = False):
        super().__init__()
        self.model, self.projection, self.stage3 = model, projection, stage3

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute the layer's vectors (B, D) of pixels (B, 3, H, W)."""
        output = self.model(
            pixels, output_projections=self.projection > 0, output_hidden_states=self.stage3, return_dict=True
        )
        if self.stage3:
            return torch.cat([output.pooler_output, output.hidden_states[3].mean((2, 3))], 1)
        vectors: Tensor = output.projections[self.projection - 1] if self.projection else output.pooler_output
        return vectors


def layer_of(model: SimCLRModel, layer: str) -> Layer:
    """Return a layer of a model by its name.

    Raises:
        ValueError: there is none.
    """
    return Layer(model, _projection_index(layer, model.config), stage3=layer == H_STAGE3)


class TorchRunner:
    """PyTorch. It can be pickled, with the weights.

    Args:
        layer: on `device`, of `dtype`.
        device: the layer's.
        dtype: the layer's.
    """

    def __init__(self, layer: nn.Module, device: torch.device, dtype: torch.dtype):
        self.layer, self.device, self.dtype = layer, device, dtype
        self.has_own_thread = device.type != "cpu"

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray, *, alone: bool = False) -> np.ndarray:
        """Turn pixels (B, 3, size, size) into vectors (B, D), both float32, on as many cores as the thread may use."""
        x = torch.from_numpy(pixels).to(self.device, self.dtype).contiguous(memory_format=torch.channels_last)
        vectors: np.ndarray = self.layer(x).float().cpu().numpy()
        return vectors


class CompiledRunner:
    """Compiled PyTorch, compared with plain PyTorch before it is used. It can be pickled; each process compiles anew.

    Args:
        plain: what is compiled.
        size: side of the images.
        batch_size: the one shape that is compiled: smaller batches are filled up.
    """

    has_own_thread = True

    def __init__(self, plain: TorchRunner, size: int, batch_size: int):
        self._plain, self._size, self._batch_size = plain, size, batch_size
        self._compiled: Callable[[np.ndarray], np.ndarray] | None = None
        self._compiling = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_compiling"} | {"_compiled": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _compiling=threading.Lock())

    def __call__(self, pixels: np.ndarray, *, alone: bool = False) -> np.ndarray:
        """Turn pixels (B, 3, size, size) into vectors (B, D), both float32."""
        with self._compiling:
            self._compiled = self._compiled or self._compile()
        return self._compiled(pixels)

    def _compile(self) -> Callable[[np.ndarray], np.ndarray]:
        layer, device, dtype = self._plain.layer, self._plain.device, self._plain.dtype
        compiled = TorchRunner(torch.compile(layer, dynamic=False), device, dtype)  # type: ignore[arg-type]

        def run(pixels: np.ndarray) -> np.ndarray:
            padded = F.pad(torch.from_numpy(pixels), (0, 0) * 3 + (0, self._batch_size - len(pixels)))
            return compiled(padded.numpy())[: len(pixels)]

        def in_batches(pixels: np.ndarray) -> np.ndarray:
            starts = range(0, len(pixels), self._batch_size)
            return np.concatenate([run(pixels[start : start + self._batch_size]) for start in starts])

        def compared() -> Callable[[np.ndarray], np.ndarray]:
            _refuse(drift(in_batches, self._plain, self._size), LIMITS[str(dtype).removeprefix("torch.")])
            return run

        return _unless_wrong("compile", compared) or self._plain


def facts_of(model: SimCLRModel | tuple[Path, str], layer: str) -> tuple[SimCLRModel, LayerFacts]:
    """Load a model, unless it is one, and collect what an `Embedder` must know of a layer.

    Args:
        model: a model, or what `loading.locate` found.
        layer: its name.

    Raises:
        CheckpointError: it cannot be loaded.
        ValueError: the model has no such layer.
    """
    if isinstance(model, tuple):
        model, processor = load_folder(*model)
    else:
        processor = SimCLRImageProcessor(size=model.config.image_size)
    config: SimCLRConfig = model.config
    projection = _projection_index(layer, config)
    dim = [config.hidden_size, *config.projection_sizes][projection]
    return model, LayerFacts(
        layer,
        architecture_of(config),
        weights_hash(model, with_projection=projection > 0),
        width_of_h=config.hidden_size,
        dim=dim + config.hidden_sizes[2] if layer == H_STAGE3 else dim,
        size=processor.size["height"],
        crop=processor.crop_proportion,
        exact=processor.exact,
        mean_std=(processor.image_mean, processor.image_std) if processor.do_normalize else None,
    )


def runner_of(
    model: SimCLRModel,
    facts: LayerFacts,
    runtime: str,
    *,
    device: str = "cpu",
    precision: str = "float32",
    batch_size: int = 1,
    threads: int = 1,
    folder: Path | None = None,
) -> Runner:
    """Make what runs a layer of a model; PyTorch, with a warning, where ONNX Runtime would give other vectors.

    Args:
        model: left as it is, and what changes in it later changes nothing here.
        facts: of the layer.
        runtime: one of `RUNTIMES`.
        device: of torch.
        precision: a dtype of torch, by its name.
        batch_size: the largest that will come.
        threads: that run one batch which is alone.
        folder: where the model is from, for which the export is kept.
    """

    def exported() -> OnnxRunner:
        private = model if folder else copy.deepcopy(model).eval().float().cpu()
        export, weights = export_layer(private, facts)
        if folder:
            keep_export(folder, export)
        _refuse(export.drift, LIMITS["float32"])
        return OnnxRunner(export, weights, threads)

    if runtime == "onnxruntime" and (faster := _unless_wrong(runtime, exported)):
        return faster
    place, dtype = torch.device(device), getattr(torch, precision)
    plain = TorchRunner(layer_of(fast_copy(model, place, dtype), facts.layer), place, dtype)
    return CompiledRunner(plain, facts.size, batch_size) if runtime == "compile" else plain


def export_layer(model: SimCLRModel, facts: LayerFacts) -> tuple[Export, dict[str, np.ndarray]]:
    """Export a layer of a model in eval mode, float32 and on the CPU, and compare it with PyTorch.

    Returns:
        The export, and the model's weights by their names, not copied.
    """
    weights = hashed_weights(model, with_projection=facts.layer not in SHIPPED)
    with torch.device("meta"):  # the graph is that of the config; nothing is computed for it
        empty = type(model)(model.config).eval()
    pixels = torch.empty(2, 3, facts.size, facts.size, device="meta")
    graph, used = to_onnx(layer_of(empty, facts.layer), empty.state_dict(keep_vars=True), pixels)
    export = Export(facts, {name: array.shape for name, array in weights.items()}, tuple(used), np.inf, graph)
    plain = TorchRunner(layer_of(model, facts.layer), torch.device("cpu"), torch.float32)
    return replace(export, drift=drift(OnnxRunner(export, weights), plain, facts.size)), weights


def drift(run: Callable[[np.ndarray], np.ndarray], plain: Runner, size: int) -> float:
    """Return the largest difference of vectors from plain PyTorch's, relative to their largest value.

    They are of a photo, the same mirrored, white and black.
    """
    photo = load_image(DEFAULT_FOLDER.parent / "sample-photos" / "cat_1.jpg").pixels
    pixels = transform(photo[None], size)
    pixels = np.concatenate([pixels, pixels[..., ::-1], np.ones_like(pixels), np.zeros_like(pixels)])
    expected = np.concatenate([plain(one[None]) for one in pixels])
    return float(np.abs(run(pixels) - expected).max() / np.abs(expected).max())


def _refuse(found: float, limit: float) -> None:
    if not found <= limit:  # NaN is not
        raise ValueError(f"its vectors differ by {found:.1e}, more than {limit:.0e}")


def _unless_wrong(runtime: str, make: Callable[[], T]) -> T | None:
    """Return what `make` does, or None with a warning after any error: compilers and runtimes raise anything."""
    try:
        return make()
    except Exception as e:
        why = " ".join((str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}").split())[:200]
        warnings.warn(f"{runtime} is not used for this model, but PyTorch: {why}", RuntimeWarning, stacklevel=4)
        return None


def _projection_index(layer: str, config: SimCLRConfig) -> int:
    """Return 0 for h, j for g's layer j."""
    layers, stage3 = config.projection_layers, [H_STAGE3] if len(config.depths) > 3 else []
    allowed = ["h", *(f"g{j}" for j in range(1, layers + 1)), *(["z"] if layers else []), *stage3]
    if layer not in allowed:
        raise ValueError(f"layer={layer!r} is not one of {', '.join(allowed)}: the layers of this model")
    return 0 if layer in ("h", H_STAGE3) else layers if layer == "z" else int(layer[1:])
