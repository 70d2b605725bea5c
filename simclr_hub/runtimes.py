"""What runs a model without torch: ONNX Runtime, and a checkpoint's graph, exported once and kept in a file.

The file holds what an `Embedder` needs of a checkpoint beside its weights, a few kB of JSON. The default checkpoint's
lie beside its weights; those of others in

    HF_HOME/assets/simclr_hub/onnx/KEY-WEIGHTS.json

which HF_ASSETS_CACHE moves. A file is used only for weights whose hash it names, and none from a model's own folder.
"""

import base64
import glob
import hashlib
import json
import os
import sys
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ._files import write_file
from .model_folder import read_json, weight_files

RUNTIMES = ("torch", "onnxruntime", "compile")
#: Largest difference from plain PyTorch's vectors at the same precision, relative to their largest value.
#: A deep network of random weights, where rounding grows from block to block, reaches 2e-5 in float32.
LIMITS = {"float32": 5e-5, "float64": 1e-5, "float16": 5e-3, "bfloat16": 3e-2}
#: h, and stage 3's map averaged, beside each other, each scaled to length 1.
H_STAGE3 = "h+stage3"
#: Layers of the default checkpoint whose exports are shipped.
SHIPPED = ("h", H_STAGE3)
DEFAULT_FOLDER = Path(str(files(__package__) / "assets" / "default"))

_FORMAT = 1


class Runner(Protocol):
    """Runs one layer of a model.

    Attributes:
        has_own_thread: it is called on one thread alone, which is not the main one.
    """

    has_own_thread: bool

    def __call__(self, pixels: np.ndarray, *, alone: bool = False) -> np.ndarray:
        """Turn pixels (B, 3, size, size) into vectors (B, D), both float32; `alone`: on all cores, else on one."""


@dataclass(frozen=True)
class LayerFacts:
    """What an `Embedder` must know of a model and its processor to embed with one layer.

    Attributes:
        layer: "h", "h+stage3", "g1", ..., "z".
        architecture: what identifies it, see `hash_weights`.
        weights: their hash.
        width_of_h: of h alone.
        dim: width of the layer.
        size: side of the images in pixels.
        crop: share of the shorter side that is kept.
        exact: the processor's choice.
        mean_std: means and standard deviations that the processor applies last, if it does.
    """

    layer: str
    architecture: dict[str, Any]
    weights: str
    width_of_h: int
    dim: int
    size: int
    crop: float
    exact: bool
    mean_std: tuple[Any, Any] | None


@dataclass(frozen=True)
class Export:
    """A layer as an ONNX graph.

    Attributes:
        facts: of the layer.
        shapes: of the weights that the hash covers, by their names in the state_dict.
        used: names of the weights that the graph refers to.
        drift: its largest difference from PyTorch's vectors on known pictures, relative to their largest value.
        graph: see `onnx_export.to_onnx`.
    """

    facts: LayerFacts
    shapes: dict[str, tuple[int, ...]]
    used: tuple[str, ...]
    drift: float
    graph: bytes

    @property
    def is_right(self) -> bool:
        """Tell whether it gives PyTorch's vectors."""
        return self.drift <= LIMITS["float32"]  # NaN is not


class OnnxRunner:
    """ONNX Runtime, in float32 on the CPU. It can be pickled, with the weights.

    Args:
        export: the graph.
        weights: float32 arrays by their names.
        threads: that run one batch which is alone.
    """

    has_own_thread = False

    def __init__(self, export: Export, weights: Mapping[str, np.ndarray], threads: int = 1):
        self._graph = export.graph
        self._weights = {name: weights[name] for name in export.used}
        self._threads = threads
        self._sessions: dict[tuple[int, int], Any] = {}
        self._making = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("_sessions", "_making")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _sessions={}, _making=threading.Lock())

    def __call__(self, pixels: np.ndarray, *, alone: bool = False) -> np.ndarray:
        """Turn pixels (B, 3, size, size) into vectors (B, D), both float32; `alone`: on all cores, else on one."""
        session = self._session(self._threads if alone else 1)
        vectors: np.ndarray = session.run(None, {"pixels": np.ascontiguousarray(pixels)})[0]
        return vectors

    def _session(self, threads: int) -> Any:
        key = os.getpid(), threads  # a session's threads are not there in a forked process
        with self._making:
            if key not in self._sessions:
                import onnxruntime

                options = onnxruntime.SessionOptions()
                options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
                options.add_session_config_entry("session.intra_op.allow_spinning", "0")
                options.log_severity_level = 3
                values = [onnxruntime.OrtValue.ortvalue_from_numpy(array) for array in self._weights.values()]
                options.add_external_initializers(list(self._weights), values)
                self._sessions[key] = onnxruntime.InferenceSession(
                    self._graph, options, providers=["CPUExecutionProvider"]
                )
            return self._sessions[key]


def check_runtime(runtime: str | None, device: str, precision: str) -> None:
    """Refuse what cannot run.

    Raises:
        ValueError: no such precision or runtime, or not one for this device and precision.
    """
    if precision not in LIMITS:
        raise ValueError(f"dtype={precision} is not one of {', '.join(LIMITS)}")
    if runtime is not None and runtime not in RUNTIMES:
        raise ValueError(f"runtime={runtime!r} is not one of {', '.join(RUNTIMES)}")
    if runtime == "onnxruntime" and (device != "cpu" or precision != "float32"):
        raise ValueError(f"runtime='onnxruntime' is for float32 on the CPU, not {precision} on {device}")


def may_have_gpu() -> bool:
    """Tell whether a GPU would be taken, asking torch only where it is imported or there is a sign of a GPU."""
    signs = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", r"C:\Windows\System32\nvcuda.dll")
    if "torch" not in sys.modules and not any(map(os.path.exists, signs)):
        return False
    import torch

    return torch.cuda.is_available()


def cores() -> int:
    """Return how many threads to use on a CPU: as many as torch would, or what OMP_NUM_THREADS says."""
    if "torch" in sys.modules:
        return int(sys.modules["torch"].get_num_threads())
    if (wanted := os.environ.get("OMP_NUM_THREADS", "")).isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus() -> list[str]:
    """Return the numbers of the NVIDIA GPUs that may be used."""
    if (told := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [number for number in told.split(",") if number]
    return [path.removeprefix("/dev/nvidia") for path in sorted(glob.glob("/dev/nvidia[0-9]*"))]


def hash_weights(architecture: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 over an architecture and float32 weights, wherever they lie."""
    digest = hashlib.sha256(json.dumps(architecture).encode())
    for key, value in sorted(weights.items()):
        digest.update(f"{key} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def find_export(folder: Path, layer: str) -> tuple[Export, dict[str, np.ndarray]] | None:
    """Return the export of a model's layer with the weights that the model's folder holds, if it is there and fits."""
    try:
        of = weights = found = None
        for path in _places(folder, layer):
            with suppress(KeyError, TypeError, ValueError, OSError, zlib.error):  # damaged: as if it were not there
                export = read_export(path)
                if (export.facts.architecture, export.shapes) != of:  # hashed once for all trainings of a network
                    weights = _read_weights(folder, export.shapes)
                    found = hash_weights(export.facts.architecture, weights)
                    of = export.facts.architecture, export.shapes
                if weights and export.facts.weights == found and export.facts.layer == layer:
                    return export, weights
    except (ValueError, OSError):  # of the model's folder, about which `load` tells more
        pass
    return None


def keep_export(folder: Path, export: Export) -> None:
    """Keep an export where `find_export` finds it; what cannot be written is made anew when it is needed."""
    with suppress(OSError, ValueError):
        path = _cache() / f"{_key(folder, export.facts.layer)}-{export.facts.weights[:16]}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_export(path, export)


def write_export(path: Path, export: Export) -> None:
    """Write an export."""
    about = asdict(export) | {"graph": base64.b64encode(zlib.compress(export.graph, 9)).decode(), "format": _FORMAT}
    text = json.dumps({"sha256": _checksum(about), "export": about}) + "\n"
    write_file(path, lambda file: file.write(text.encode()))


def shipped_export(layer: str) -> Path:
    """Return where the default checkpoint's export of a layer lies."""
    return DEFAULT_FOLDER / f"onnx-{layer.replace('+', '-')}.json"


def _places(folder: Path, layer: str) -> Iterator[Path]:
    """List the files that may be the export of a model's layer."""
    if folder == DEFAULT_FOLDER and layer in SHIPPED:
        yield shipped_export(layer)
    yield from sorted(_cache().glob(f"{_key(folder, layer)}-*.json"))


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "simclr_hub" / "onnx"


def _key(folder: Path, layer: str) -> str:
    """Identify a layer by all that a folder says of it beside the weights."""
    digest = hashlib.sha256(f"{_FORMAT} {layer}".encode())
    for name in ("config.json", "preprocessor_config.json"):
        settings = read_json(folder / name) if os.path.lexists(folder / name) else {}
        digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()[:16]


def _checksum(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def read_export(path: Path) -> Export:
    """Read what `write_export` wrote.

    Raises:
        KeyError, TypeError, ValueError, OSError, zlib.error: it did not.
    """
    found = read_json(path)
    about = found["export"]
    if _checksum(about) != found["sha256"] or about.pop("format") != _FORMAT:
        raise ValueError("damaged, or of another version")
    facts = LayerFacts(**about.pop("facts"))
    shapes = {name: tuple(shape) for name, shape in about.pop("shapes").items()}
    graph = zlib.decompress(base64.b64decode(about.pop("graph")))
    return Export(facts, shapes, tuple(about.pop("used")), graph=graph, **about)


def _read_weights(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Read the weights of these names and shapes as float32, also out of a classifier's.

    Raises:
        ValueError: one is missing or of another shape, or numpy cannot read them.
    """
    from safetensors import SafetensorError, safe_open

    found: dict[str, np.ndarray] = {}
    try:
        for path in weight_files(folder):
            with safe_open(path, "numpy") as file:
                for key in file.keys():
                    if (name := key.removeprefix("simclr.")) in shapes:
                        found[name] = np.asarray(file.get_tensor(key), np.float32)
    except (SafetensorError, TypeError) as e:  # bfloat16
        raise ValueError(str(e)) from e
    if {name: array.shape for name, array in found.items()} != shapes:
        raise ValueError("weights of other names or shapes")
    return found
