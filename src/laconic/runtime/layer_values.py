"""The values of the same layers in two ONNX files, the original's and a compressed model's, made outputs of both.

A layer's value is taken behind its bias, batch norm and fused activation. In the compressed file it is taken behind its
quantizer too, through a DequantizeLinear of its own, so that what the runtime fuses stays fused.

:func:`cut` goes one step further: every layer of the compressed file reads values that are given from outside, in place
of what the layers before it made of them. Given the original's values, each layer shows the noise of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import onnx
from onnx import ModelProto, NodeProto, helper

_PRODUCTS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits"})
_OTHERS = frozenset({"Add", "LSTM", "GRU"})
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_GIVEN, _SEEN = "given", "seen"


@dataclass(frozen=True)
class Layer:
    """A layer of both files: what to call it, and the name of its value in each (before its quantizer)."""

    name: str
    original: str
    compressed: str


def matched(original: ModelProto, compressed: ModelProto) -> tuple[list[Layer], list[str]]:
    """The layers that both files have, in the compressed one's order, and the names of those that only one of them has.

    Layers match by the name of their module and their kind, call by call; a module that is not called equally often
    matches nothing.
    """
    before, after = _Graph(original).layers(), _Graph(compressed).layers()
    calls = Counter(key[:2] for key in before), Counter(key[:2] for key in after)
    layers: list[Layer] = []
    for key, stages in after.items():
        if calls[0][key[:2]] == calls[1][key[:2]]:
            stage = min(len(before[key]), len(stages)) - 1  # an activation that is fused in both, or in neither
            layers.append(Layer(_name(*key, calls[1][key[:2]]), before[key][stage], stages[stage]))
    unlike = [key for key in (*before, *after) if calls[0][key[:2]] != calls[1][key[:2]]]
    return layers, list(dict.fromkeys(_name(*key, 1) for key in unlike))


def _name(module: str, kind: str, call: int, calls: int) -> str:
    name = module if kind == "layer" or module == kind.lower() else f"{module} ({kind})" if module else kind
    return f"{name}, call {call + 1}" if calls > 1 else name


def observed(model: ModelProto, values: list[str]) -> tuple[ModelProto, dict[str, str]]:
    """A copy that gives ``values`` too, each as its readers see it: behind its quantizer, if it has one.

    Returns the copy and, for each value, the name of the output that shows it.
    """
    copy = _copy(model)
    graph = _Graph(copy)
    shown = {value: _show(copy, graph, value, graph.quantizer(value)) for value in dict.fromkeys(values)}
    _give_out(copy, shown)
    return copy, shown


def cut(model: ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> tuple[ModelProto, dict[str, str], dict[str, str]]:
    """A copy in which whoever reads one of the values named in ``shapes`` reads a new input of that shape instead.

    Returns the copy; for each value the name of the input that replaces it; and the name of the output that shows it.
    """
    copy = _copy(model)
    graph = _Graph(copy)
    given, shown = {}, {}
    for value, shape in shapes.items():
        if graph.is_output(value):
            shown[value] = value
            continue
        quantizer = graph.quantizer(value)
        if quantizer is not None:
            own = NodeProto()
            own.CopyFrom(quantizer)
            own.name, own.output[0] = f"{value}.{_SEEN}/q", f"{value}.{_SEEN}/q"
            copy.graph.node.append(own)
            quantizer = own
        given[value] = f"{value}.{_GIVEN}"
        for node in graph.readers.get(value, []):
            for i, name in enumerate(node.input):
                if name == value:
                    node.input[i] = given[value]
        shown[value] = _show(copy, graph, value, quantizer)
        copy.graph.input.append(helper.make_tensor_value_info(given[value], onnx.TensorProto.FLOAT, shape))
    _give_out(copy, shown)
    return copy, given, shown


def stored(model: ModelProto) -> dict[str, bool]:
    """For each layer with weights, in order: whether the file wants it in integers, weights and what it reads."""
    graph = _Graph(model)
    found: dict[str, bool] = {}
    for node in graph.nodes:
        if node.op_type in _PRODUCTS:
            makers = [graph.maker.get(name) for name in node.input[:2]]
            integer = all(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)
            found[node.name.split("/")[0]] = integer
    return found


def _copy(model: ModelProto) -> ModelProto:
    copy = ModelProto()
    copy.CopyFrom(model)
    return copy


def _show(model: ModelProto, graph: _Graph, value: str, quantizer: NodeProto | None) -> str:
    """The name of the output that shows ``value``, behind a DequantizeLinear of its own where it is quantized."""
    if quantizer is None or graph.is_output(value):
        return value
    shown = f"{value}.{_SEEN}"
    inputs = [quantizer.output[0], *quantizer.input[1:]]
    node = helper.make_node("DequantizeLinear", inputs, [shown], name=shown)
    node.attribute.extend(a for a in quantizer.attribute if a.name in ("axis", "block_size"))
    model.graph.node.append(node)
    return shown


def _give_out(model: ModelProto, shown: Mapping[str, str]) -> None:
    there = {output.name for output in model.graph.output}
    for name in shown.values():
        if name not in there:
            model.graph.output.append(helper.make_empty_tensor_value_info(name))


class _Graph:
    """Who makes and who reads each value of a file's graph."""

    def __init__(self, model: ModelProto) -> None:
        self.nodes = list(model.graph.node)
        self.maker = {name: node for node in self.nodes for name in node.output}
        self.readers: dict[str, list[NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                self.readers.setdefault(name, []).append(node)
        self.constants = {tensor.name for tensor in model.graph.initializer}
        self.outputs = {output.name for output in model.graph.output}

    def is_output(self, value: str) -> bool:
        return value in self.outputs

    def is_constant(self, value: str) -> bool:
        """Whether a value never changes: stored, and perhaps dequantized."""
        node = self.maker.get(value)
        if node is None:
            return value in self.constants
        return node.op_type == "Constant" or (node.op_type == "DequantizeLinear" and self.is_constant(node.input[0]))

    def only_reader(self, value: str) -> NodeProto | None:
        found = self.readers.get(value, [])
        return found[0] if len(found) == 1 and value not in self.outputs else None

    def quantizer(self, value: str) -> NodeProto | None:
        """The quantizer through which everybody reads ``value``."""
        found = self.only_reader(value)
        return found if found is not None and found.op_type == "QuantizeLinear" else None

    def layers(self) -> dict[tuple[str, str, int], list[str]]:
        """By module, kind and call: the layer's value, and its value behind a fused activation if it has one."""
        found: dict[tuple[str, str, int], list[str]] = {}
        calls: Counter[tuple[str, str]] = Counter()
        for node in self.nodes:
            if node.op_type not in _PRODUCTS | _OTHERS:
                continue
            value = node.output[0]
            if node.op_type in _PRODUCTS:
                value = self._behind_bias_and_norm(value)
            elif any(self.is_constant(name) for name in node.input) and node.op_type == "Add":
                continue
            stages = [value]
            behind = self.only_reader(value)
            if behind is not None and behind.op_type in _ACTIVATIONS:
                stages.append(behind.output[0])
            place = node.name.split("/")[0], "layer" if node.op_type in _PRODUCTS else node.op_type
            found[*place, calls[place]] = stages
            calls[place] += 1
        return found

    def _behind_bias_and_norm(self, value: str) -> str:
        while (node := self.only_reader(value)) is not None:
            bias = node.op_type == "Add" and any(self.is_constant(name) for name in node.input)
            if not bias and node.op_type != "BatchNormalization":
                break
            value = node.output[0]
        return value
