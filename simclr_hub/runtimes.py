"""What runs a model: PyTorch, ONNX Runtime or compiled PyTorch; each compared with plain PyTorch before it is used.

Unusual: a runtime that drifts is not used, with a warning, instead of being trusted. The comparison is made on photos
of this package and flat pictures, when the runtime is built.
"""

import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import MissingExtraError
from .fast import Layer
from .image_processing_simclr import transform
from .images import load_image
from .onnx_export import to_onnx

#: Pixel values (B, 3, size, size), float32 on the CPU, to vectors (B, D) float32.
Runner = Callable[[Tensor], np.ndarray]
RUNTIMES = ("torch", "onnxruntime", "compile")
#: Largest difference from plain PyTorch's vectors at the same precision, relative to their largest value.
#: A deep network of random weights, where rounding grows from block to block, reaches 2e-5 in float32.
LIMITS = {torch.float32: 5e-5, torch.float64: 1e-5, torch.float16: 5e-3, torch.bfloat16: 3e-2}


def check_runtime(runtime: str | None, device: torch.device, dtype: torch.dtype) -> None:
    """Refuse what cannot run.

    Raises:
        ValueError: no such runtime, or not one for this device and precision.
        MissingExtraError: it is not installed.
    """
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r} is not one of {', '.join(RUNTIMES)}")
    if runtime == "onnxruntime":
        if device.type != "cpu" or dtype != torch.float32:
            raise ValueError(f"runtime='onnxruntime' is for float32 on the CPU, not {dtype} on {device}")
        if not is_installed():
            raise MissingExtraError("onnxruntime", "fast")


def is_installed() -> bool:
    """Whether ONNX Runtime is there."""
    return find_spec("onnxruntime") is not None


def torch_runner(layer: Layer, device: torch.device, dtype: torch.dtype) -> Runner:
    """Plain PyTorch."""

    @torch.inference_mode()
    def run(pixels: Tensor) -> np.ndarray:
        pixels = pixels.to(device, dtype).contiguous(memory_format=torch.channels_last)
        with _gate.running():
            array: np.ndarray = layer(pixels).float().cpu().numpy()
        return array

    return run


class _Gate:
    """PyTorch's tracer changes every module of the process while it works: networks run together or one is traced."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Wait for the end of tracing."""
        with self._changed:
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Wait until nothing runs, and let nothing start."""
        with self._changed:
            self._changed.wait_for(lambda: not self._running)
            yield


_gate = _Gate()


def build(runtime: str, layer: Layer, size: int, batch_size: int, device: torch.device, dtype: torch.dtype) -> Runner:
    """A runner, compared with plain PyTorch; that itself, with a warning, if the comparison or the building fails.

    Args:
        runtime: one of `RUNTIMES`.
        layer: on `device`, of `dtype`.
        size: side of the images.
        batch_size: the largest batch that will come.
        device: the layer's.
        dtype: the layer's.
    """
    plain = torch_runner(layer, device, dtype)
    if runtime == "torch":
        return plain
    try:
        run = _onnxruntime(layer, size) if runtime == "onnxruntime" else _compiled(layer, batch_size, device, dtype)
        drift = _drift(run, plain, _probe(size).split(batch_size))
        why = f"its vectors differ by {drift:.1e}, more than {LIMITS[dtype]:.0e}"
    except Exception as e:  # of a compiler or a runtime, which raise anything
        drift, why = np.inf, " ".join(f"{type(e).__name__}: {e}".split())[:200]
    if drift <= LIMITS[dtype]:  # NaN is not
        return run
    warnings.warn(f"{runtime} is not used for this model, but PyTorch: {why}", RuntimeWarning, stacklevel=2)
    return plain


def _onnxruntime(layer: Layer, size: int) -> Runner:
    """One thread a run, for many runs at the same time."""
    import onnxruntime

    with _gate.tracing():
        file, weights = to_onnx(layer, torch.zeros(2, 3, size, size))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    arrays = {name: weight.numpy() for name, weight in weights.items()}
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    options.add_external_initializers(list(arrays), values)
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])

    def run(pixels: Tensor) -> np.ndarray:
        vectors: np.ndarray = session.run(None, {"input.pixels": pixels.contiguous().numpy()})[0]
        return vectors

    return run


def _compiled(layer: Layer, batch_size: int, device: torch.device, dtype: torch.dtype) -> Runner:
    """One shape, which is compiled once: smaller batches are filled up."""
    plain = torch_runner(torch.compile(layer, dynamic=False), device, dtype)  # type: ignore[arg-type]

    def run(pixels: Tensor) -> np.ndarray:
        n = len(pixels)
        return plain(F.pad(pixels, (0, 0) * 3 + (0, batch_size - n)))[:n]

    return run


def _probe(size: int) -> Tensor:
    """A known photo, the same mirrored, white and black: (4, 3, size, size)."""
    photo = load_image(Path(str(files(__package__) / "assets" / "sample-photos" / "cat_1.jpg"))).pixels
    pixels = transform(photo[None], size)
    return torch.cat([pixels, pixels.flip(3), torch.ones_like(pixels), torch.zeros_like(pixels)])


def _drift(run: Runner, plain: Runner, batches: Sequence[Tensor]) -> float:
    expected = np.concatenate([plain(pixels) for pixels in batches])
    return float(np.abs(np.concatenate([run(pixels) for pixels in batches]) - expected).max() / np.abs(expected).max())
