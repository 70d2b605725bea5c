"""A model for inference as an ONNX graph, written without the onnx package.

PyTorch's own exporter needs two more packages and takes many times as long. The operators of this family of networks
are few, and ONNX is a protocol buffer, of which a writer needs two kinds of field. The weights stay outside, as arrays
under the names that they have in the model, so that a graph is a few kB and holds for all weights.

Sources: onnx.proto (onnx/onnx, IR version 8), ONNX operators (opset 17).
"""

import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

IR_VERSION, OPSET = 8, 17
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_EXTERNAL = 1  # TensorProto.DataLocation


def to_onnx(
    model: Callable[[Tensor], Tensor], weights: Mapping[str, Tensor], pixels: Tensor
) -> tuple[bytes, dict[str, tuple[int, ...]]]:
    """Write what a model does: "pixels" (B, 3, H, W) to "vectors" (B, D), for any batch size.

    Args:
        model: one tensor to one tensor (B, D), in eval mode; nothing is computed if it lies on the device "meta".
        weights: the very tensors that it uses, by their names.
        pixels: an input, on the same device, B of 2 or more.

    Returns:
        The graph, and the shapes of the weights that it refers to by their names, as external data.

    Raises:
        NotImplementedError: a function that is not known here.
    """
    with torch.inference_mode(), _Recorder(weights, pixels) as recorder:
        output = model(pixels)
    recorder.graph.add("Identity", [recorder.name(output)], "vectors")
    return recorder.graph.file(recorder.weights, tuple(pixels.shape)), recorder.weights


class _Recorder(TorchFunctionMode):
    """Writes every function of torch that this thread calls; PyTorch's tracers change modules for all threads."""

    def __init__(self, weights: Mapping[str, Tensor], pixels: Tensor):
        super().__init__()
        self.graph = _Graph()
        self.weights: dict[str, tuple[int, ...]] = {}
        self._keys = {id(value): key for key, value in weights.items()}
        # Names by identity, which is one tensor's alone as long as that is kept.
        self._names, self._kept = {id(pixels): "pixels"}, [pixels]

    def name(self, value: Any) -> Any:
        """Give the name of a tensor; lists become lists of names, anything else stays as it is."""
        if isinstance(value, (list, tuple)):
            return [self.name(item) for item in value]
        if not isinstance(value, Tensor):
            return value
        if key := self._keys.get(id(value)):
            self.weights[key] = tuple(value.shape)
            return key
        if id(value) not in self._names:
            raise NotImplementedError("a constant inside the model has no ONNX form here")
        return self._names[id(value)]

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        parts = result if isinstance(result, (list, tuple)) else [result]
        if not parts or not all(isinstance(part, Tensor) for part in parts):
            return result  # a shape
        names = [f"{function.__name__}.{len(self._kept) + i}" for i in range(len(parts))]
        given = [self.name(arg) for arg in args]
        options = {key: self.name(arg) for key, arg in (kwargs or {}).items()}
        write = _FUNCTIONS.get(function.__name__)
        if write is None:
            raise NotImplementedError(f"{function.__name__} has no ONNX form here")
        write(self.graph, names if parts is result else names[0], *given, **options)
        self._names.update(zip(map(id, parts), names, strict=True))
        self._kept.extend(parts)
        return result


class _Graph:
    """Nodes and small constants, as encoded messages."""

    def __init__(self) -> None:
        self.nodes: list[bytes] = []
        self.constants: list[bytes] = []

    def add(self, operator: str, inputs: list[str], output: str | list[str], **attributes: Any) -> None:
        outputs = [output] if isinstance(output, str) else output
        body = b"".join(_text(1, name) for name in inputs) + b"".join(_text(2, name) for name in outputs)
        body += _text(4, operator)
        self.nodes.append(body + b"".join(_bytes(5, _attribute(k, v)) for k, v in attributes.items()))

    def integers(self, name: str, values: list[int]) -> str:
        """Add a constant."""
        raw = struct.pack(f"<{len(values)}q", *values)
        self.constants.append(_varint(1, len(values)) + _varint(2, _INT64) + _text(8, name) + _bytes(9, raw))
        return name

    def file(self, weights: dict[str, tuple[int, ...]], shape: tuple[int, ...]) -> bytes:
        """Encode a ModelProto."""
        graph = b"".join(_bytes(1, node) for node in self.nodes) + _text(2, "simclr")
        for name, sizes in weights.items():
            tensor = b"".join(_varint(1, n) for n in sizes) + _varint(2, _FLOAT) + _text(8, name)
            place = _text(1, "location") + _text(2, "weights")
            graph += _bytes(5, tensor + _bytes(13, place) + _varint(14, _EXTERNAL))
        graph += b"".join(_bytes(5, constant) for constant in self.constants)
        graph += _bytes(11, _value("pixels", ["batch", *shape[1:]]))
        graph += _bytes(12, _value("vectors", ["batch", "width"]))
        return _varint(1, IR_VERSION) + _text(2, "simclr-hub") + _bytes(7, graph) + _bytes(8, _varint(2, OPSET))


# torch's functions, with their arguments and defaults; each writes what gives `out`. Tensors are given by their names.


def _conv2d(
    graph: _Graph,
    out: str,
    x: str,
    weight: str,
    bias: str | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> None:
    if isinstance(padding, str):
        raise NotImplementedError(f"a convolution with padding={padding!r}")
    sizes = {"strides": _pair(stride), "pads": _pair(padding) * 2, "dilations": _pair(dilation), "group": groups}
    graph.add("Conv", [x, weight, bias] if bias else [x, weight], out, **sizes)


def _batch_norm(
    graph: _Graph,
    out: str,
    x: str,
    mean: str,
    variance: str,
    weight: str,
    bias: str | None,
    training: bool,
    momentum: float,
    eps: float,
) -> None:
    if training:
        raise NotImplementedError("BatchNorm that trains")
    if bias is None:  # g's last layer; zeros of the weight's shape
        bias = f"{out}.bias"
        graph.add("Sub", [weight, weight], bias)
    graph.add("BatchNormalization", [x, weight, bias, mean, variance], out, epsilon=eps)


def _max_pool2d(
    graph: _Graph,
    out: str,
    x: str,
    kernel: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    ceil_mode: bool,
    return_indices: bool,
) -> None:
    sizes = {"kernel_shape": _pair(kernel), "strides": _pair(stride), "pads": _pair(padding) * 2}
    graph.add("MaxPool", [x], out, **sizes, dilations=_pair(dilation), ceil_mode=int(ceil_mode))


def _avg_pool2d(graph: _Graph, out: str, x: str, kernel: Any, stride: Any) -> None:
    graph.add("AveragePool", [x], out, kernel_shape=_pair(kernel), strides=_pair(stride))


def _pad(graph: _Graph, out: str, x: str, pad: list[int], mode: str = "constant", value: float | None = None) -> None:
    left, right, top, bottom = pad
    pads = graph.integers(f"{out}.pads", [0, 0, top, left, 0, 0, bottom, right])
    graph.add("Pad", [x, pads], out, mode={"constant": "constant", "replicate": "edge"}[mode])


def _linear(graph: _Graph, out: str, x: str, weight: str, bias: str | None = None) -> None:
    graph.add("Gemm", [x, weight, bias] if bias else [x, weight], out, transB=1)


def _mean(graph: _Graph, out: str, x: str, axes: list[int], keepdim: bool = False) -> None:
    graph.add("ReduceMean", [x], out, axes=axes, keepdims=int(keepdim))


def _chunk(graph: _Graph, out: list[str], x: str, chunks: int, dim: int = 0) -> None:
    graph.add("Split", [x], out, axis=dim)  # without sizes: into equal parts


def _stack(graph: _Graph, out: str, parts: list[str], dim: int = 0) -> None:
    axes = graph.integers(f"{out}.axes", [dim])
    names = [f"{out}.{i}" for i in range(len(parts))]
    for part, name in zip(parts, names, strict=True):
        graph.add("Unsqueeze", [part, axes], name)
    graph.add("Concat", names, out, axis=dim)


def _cat(graph: _Graph, out: str, parts: list[str], dim: int = 0) -> None:
    graph.add("Concat", parts, out, axis=dim)


def _getitem(graph: _Graph, out: str, x: str, row: int) -> None:
    index, axes = graph.integers(f"{out}.index", [row]), graph.integers(f"{out}.axes", [0])
    graph.add("Gather", [x, index], f"{out}.row", axis=0)
    graph.add("Squeeze", [f"{out}.row", axes], out)


def _softmax(graph: _Graph, out: str, x: str, dim: int) -> None:
    graph.add("Softmax", [x], out, axis=dim)


def _relu(graph: _Graph, out: str, x: str, inplace: bool = False) -> None:
    graph.add("Relu", [x], out)


def _plain(operator: str) -> Callable[..., None]:
    """Return the writer of an operator of tensors alone."""

    def write(graph: _Graph, out: str, *inputs: str) -> None:
        graph.add(operator, list(inputs), out)

    return write


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, list) else [value] * 2


_FUNCTIONS: dict[str, Callable[..., None]] = {
    "__getitem__": _getitem,
    "add": _plain("Add"),
    "avg_pool2d": _avg_pool2d,
    "batch_norm": _batch_norm,
    "cat": _cat,
    "chunk": _chunk,
    "conv2d": _conv2d,
    "linear": _linear,
    "max_pool2d": _max_pool2d,
    "mean": _mean,
    "mul": _plain("Mul"),
    "pad": _pad,
    "relu": _relu,
    "sigmoid": _plain("Sigmoid"),
    "softmax": _softmax,
    "stack": _stack,
}


# The wire format: a field's number and kind, then a number, or a length and bytes.


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes((*out, value))


def _varint(field: int, value: int) -> bytes:
    return _number(field << 3) + _number(value)


def _bytes(field: int, value: bytes) -> bytes:
    return _number(field << 3 | 2) + _number(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _bytes(field, value.encode())


def _attribute(name: str, value: int | float | str | list[int]) -> bytes:
    """Encode an AttributeProto: an integer, a float, a text or integers."""
    if isinstance(value, float):
        return _text(1, name) + _number(2 << 3 | 5) + struct.pack("<f", value) + _varint(20, 1)
    if isinstance(value, int):
        return _text(1, name) + _varint(3, value) + _varint(20, 2)
    if isinstance(value, str):
        return _text(1, name) + _text(4, value) + _varint(20, 3)
    return _text(1, name) + b"".join(_varint(8, n) for n in value) + _varint(20, 7)


def _value(name: str, shape: list[str | int]) -> bytes:
    """Encode a ValueInfoProto of floats; a text is a size that is not fixed."""
    sizes = b"".join(_bytes(1, _varint(1, n) if isinstance(n, int) else _text(2, n)) for n in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _varint(1, _FLOAT) + _bytes(2, sizes)))
