"""A model for inference as an ONNX file's bytes, written without the onnx package.

Unusual: PyTorch's own exporter needs two more packages and takes many times as long. The operators of this family of
networks are few, and ONNX is a protocol buffer, of which a writer needs two kinds of field. The weights stay outside,
as arrays, so that the 2 GiB that a protocol buffer can hold are no limit.

Sources: onnx.proto (onnx/onnx, IR version 8), ONNX operators (opset 17).
"""

import struct
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

IR_VERSION, OPSET = 8, 17
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_EXTERNAL = 1  # TensorProto.DataLocation


def to_onnx(model: nn.Module, example: Tensor) -> tuple[bytes, dict[str, Tensor]]:
    """Trace a model and write its graph: "input.pixels" (B, 3, H, W) to "output.vectors" (B, D), of any batch size.

    Args:
        model: one tensor to one tensor (B, D), in eval mode, float32, on the CPU; what it does must not depend on B.
        example: an input, B of 2 or more.

    Returns:
        The ONNX file, and the weights by the names under which it refers to them as external data.

    Raises:
        NotImplementedError: an operator that is not known here.
    """
    program = torch.export.export(model, (example,), strict=False)
    graph = _Graph()
    signature = program.graph_signature
    names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    weights: dict[str, Tensor] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in names:
            if node.users:  # not the rest of g
                weights[node.name] = program.state_dict[names[node.name]].detach().contiguous()
        elif node.op == "placeholder":
            graph.add("Identity", ["input.pixels"], node.name)
        elif node.op == "call_function":
            write = _OPERATORS.get(str(node.target))
            if write is None:
                raise NotImplementedError(f"{node.target} has no ONNX form here")
            write(graph, node.name, [_name(a) for a in node.args], node)
        elif node.op == "output":
            graph.add("Identity", [node.args[0][0].name], "output.vectors")
    return graph.file(weights, tuple(example.shape)), weights


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
        """A constant."""
        raw = struct.pack(f"<{len(values)}q", *values)
        self.constants.append(_varint(1, len(values)) + _varint(2, _INT64) + _text(8, name) + _bytes(9, raw))
        return name

    def file(self, weights: dict[str, Tensor], shape: tuple[int, ...]) -> bytes:
        """A ModelProto."""
        graph = b"".join(_bytes(1, node) for node in self.nodes) + _text(2, "simclr")
        for name, value in weights.items():
            tensor = b"".join(_varint(1, n) for n in value.shape) + _varint(2, _FLOAT) + _text(8, name)
            place = _text(1, "location") + _text(2, "weights")
            graph += _bytes(5, tensor + _bytes(13, place) + _varint(14, _EXTERNAL))
        graph += b"".join(_bytes(5, constant) for constant in self.constants)
        graph += _bytes(11, _value("input.pixels", ["batch", *shape[1:]]))
        graph += _bytes(12, _value("output.vectors", ["batch", "width"]))
        return _varint(1, IR_VERSION) + _text(2, "simclr-hub") + _bytes(7, graph) + _bytes(8, _varint(2, OPSET))


# Operators of PyTorch's traced graphs. Each writes what gives `out`; `args` are the arguments, tensors by their names.


def _complete(args: list[Any], count: int, *defaults: Any) -> list[Any]:
    """All `count` arguments, the last of them by their defaults where they were not given."""
    return args + list(defaults)[len(args) - count :] if len(args) < count else args


def _convolution(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    x, weight, bias, stride, padding, dilation, groups = _complete(args, 7, None, [1, 1], [0, 0], [1, 1], 1)
    if isinstance(padding, str):
        raise NotImplementedError(f"a convolution with padding={padding!r}")
    inputs = [x, weight] if bias is None else [x, weight, bias]
    graph.add("Conv", inputs, out, strides=stride, pads=padding * 2, dilations=dilation, group=groups)


def _max_pool(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    x, kernel, stride, padding, dilation, ceil = _complete(args, 6, [0, 0], [1, 1], False)
    sizes = {"kernel_shape": kernel, "strides": stride, "pads": padding * 2, "dilations": dilation}
    graph.add("MaxPool", [x], out, ceil_mode=int(ceil), **sizes)


def _average_pool(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    if len(args) != 3:
        raise NotImplementedError("an average pool with padding")
    graph.add("AveragePool", args[:1], out, kernel_shape=args[1], strides=args[2])


def _pad(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    left, right, top, bottom = args[1]
    pads = graph.integers(f"{out}_pads", [0, 0, top, left, 0, 0, bottom, right])
    mode = {"constant": "constant", "replicate": "edge"}[args[2] if len(args) > 2 else "constant"]
    graph.add("Pad", [args[0], pads], out, mode=mode)


def _linear(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    graph.add("Gemm", args, out, transB=1)


def _mean(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    graph.add("ReduceMean", args[:1], out, axes=args[1], keepdims=int(len(args) > 2 and args[2]))


def _chunk(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    sizes = graph.integers(f"{out}_sizes", [value.shape[args[2]] for value in node.meta["val"]])
    graph.add("Split", [args[0], sizes], [f"{out}.{i}" for i in range(len(node.meta["val"]))], axis=args[2])


def _getitem(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    graph.add("Identity", [f"{args[0]}.{args[1]}"], out)


def _stack(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    axis = args[1] if len(args) > 1 else 0
    axes = graph.integers(f"{out}_axes", [axis])
    parts = [f"{out}.{i}" for i in range(len(args[0]))]
    for name, part in zip(args[0], parts, strict=True):
        graph.add("Unsqueeze", [name, axes], part)
    graph.add("Concat", parts, out, axis=axis)


def _concatenate(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    graph.add("Concat", args[0], out, axis=args[1] if len(args) > 1 else 0)


def _select(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    index = graph.integers(f"{out}_index", [args[2]])
    axes = graph.integers(f"{out}_axes", [args[1]])
    graph.add("Gather", [args[0], index], f"{out}.kept", axis=args[1])
    graph.add("Squeeze", [f"{out}.kept", axes], out)


def _plain(operator: str, **attributes: Any) -> "_Writer":
    def write(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
        graph.add(operator, [a for a in args if isinstance(a, str)], out, **attributes)

    return write


def _softmax(graph: _Graph, out: str, args: list[Any], node: Any) -> None:
    graph.add("Softmax", args[:1], out, axis=args[1])


_Writer = Callable[[_Graph, str, list[Any], Any], None]
_OPERATORS: dict[str, _Writer] = {
    "aten.conv2d.default": _convolution,
    "aten.relu.default": _plain("Relu"),
    "aten.sigmoid.default": _plain("Sigmoid"),
    "aten.add.Tensor": _plain("Add"),
    "aten.mul.Tensor": _plain("Mul"),
    "aten.max_pool2d.default": _max_pool,
    "aten.avg_pool2d.default": _average_pool,
    "aten.pad.default": _pad,
    "aten.linear.default": _linear,
    "aten.mean.dim": _mean,
    "aten.softmax.int": _softmax,
    "aten.chunk.default": _chunk,
    "<built-in function getitem>": _getitem,
    "aten.stack.default": _stack,
    "aten.cat.default": _concatenate,
    "aten.select.int": _select,
}


def _name(argument: Any) -> Any:
    if isinstance(argument, torch.fx.Node):
        return argument.name
    return [_name(a) for a in argument] if isinstance(argument, (list, tuple)) else argument


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


def _attribute(name: str, value: int | str | list[int]) -> bytes:
    """An AttributeProto: an integer, a text or integers."""
    if isinstance(value, int):
        return _text(1, name) + _varint(3, value) + _varint(20, 2)
    if isinstance(value, str):
        return _text(1, name) + _text(4, value) + _varint(20, 3)
    return _text(1, name) + b"".join(_varint(8, n) for n in value) + _varint(20, 7)


def _value(name: str, shape: list[str | int]) -> bytes:
    """A ValueInfoProto of floats; a text is a size that is not fixed."""
    sizes = b"".join(_bytes(1, _varint(1, n) if isinstance(n, int) else _text(2, n)) for n in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _varint(1, _FLOAT) + _bytes(2, sizes)))
