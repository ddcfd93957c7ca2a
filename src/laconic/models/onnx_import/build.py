"""From an ONNX graph to an :class:`OnnxModule`, by running it once on an example.

Each node in turn becomes a constant (if all that it reads is constant), a layer, a plain node, or, if laconic does not
know it in this form, an opaque one; and it is run, so that the next one has something to be made on. A MatMul with a
constant and the addition of a constant row after it are one linear layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from onnx import ModelProto, NodeProto, TensorProto
from onnx.external_data_helper import load_external_data_for_model
from torch import Tensor, nn

from laconic.errors import ModelError
from laconic.models.onnx_import.graph import Node, captured, count_uses, paths, read_inputs, read_nodes, to_tensor
from laconic.models.onnx_import.layers import Layer, is_row, linear, make_layer
from laconic.models.onnx_import.module import RESERVED, OnnxModule, Run, Source
from laconic.models.onnx_import.nodes import OnnxNode
from laconic.models.onnx_import.opaque import OpaqueNode
from laconic.models.onnx_import.operators import OPERATORS, UnsupportedError
from laconic.models.onnx_import.operators.numbers import as_tensor
from laconic.models.onnx_import.write import Written

_NOT_OURS = (UnsupportedError, ArithmeticError, LookupError, RuntimeError, TypeError, ValueError)
"""What a plain node raises on a form of its operator that was not thought of: ONNX Runtime runs it then."""
_RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


@torch.no_grad()
def build(model: ModelProto, example: Sequence[Tensor], fixed_batch: int | None, folder: str = "") -> OnnxModule:
    """The module for ``model``, whose layers' data it takes over. ``example`` has one tensor per input; ``folder`` is
    where external data lies."""
    inputs = tuple(entry.name for entry in read_inputs(model))
    outputs = tuple(value.name for value in model.graph.output)
    builder = _Builder(model, dict(zip(inputs, example, strict=True)), folder)
    for index in range(len(builder.nodes)):
        builder.add(index)
    for name in builder.constants.intersection(outputs):
        builder.append(name, OnnxNode(_identity(name), {0: builder.values[name]}), (), (name,))
    builder.strip()
    source = Source(model, builder.written, builder.aliases)
    return OnnxModule(builder.modules, _with_last(builder.plan, outputs), inputs, outputs, source, fixed_batch).eval()


def _identity(name: str) -> Node:
    return Node(name, "Identity", "", 1, (name,), (name,), {})


def _with_last(plan: Sequence[Run], outputs: Sequence[str]) -> tuple[Run, ...]:
    """The plan in which each run names the values that it is the last to read."""
    read = set(outputs)
    runs = []
    for run in reversed(plan):
        last = tuple({name for name in (*run.inputs, *run.outputs) if name} - read)
        read.update(last)
        runs.append(Run(run.path, run.inputs, run.outputs, last))
    return tuple(reversed(runs))


class _Builder:
    """The graph while it is being gone through: ``values`` are what is known of it, on the example."""

    def __init__(self, model: ModelProto, inputs: Mapping[str, Tensor], folder: str) -> None:
        self.model, self.folder = model, folder
        self.nodes = read_nodes(model)
        names = [name for node in self.nodes for name in (node.name, f"{node.name}/pad")]
        self.paths = paths(dict.fromkeys((*names, *(value.name for value in model.graph.output))), RESERVED)
        self.remaining = count_uses(model)
        self.uses = Counter(self.remaining)
        self.readers = {name: i for i, node in enumerate(self.nodes) for name in node.inputs}
        self.initializers = {tensor.name: tensor for tensor in model.graph.initializer}
        self.values: dict[str, Any] = dict(inputs)
        self.values.update((name, to_tensor(tensor, folder)) for name, tensor in self.initializers.items())
        self.values.update((n.outputs[0], _stated(n)) for n in self.nodes if n.operator == "Constant")
        self.constants = set(self.values) - set(inputs)
        self.modules: dict[str, nn.Module] = {}
        self.plan: list[Run] = []
        self.written: dict[str, Written] = {}
        self.aliases: dict[str, str] = {}
        self.merged: set[int] = set()

    def add(self, index: int) -> None:
        node, proto = self.nodes[index], self.model.graph.node[index]
        if node.operator == "Constant" or index in self.merged:
            pass
        elif node.operator not in _RANDOM and self.constants.issuperset(filter(None, (*node.inputs, *captured(proto)))):
            module, given, outputs = self._node(node, proto)
            self._call(module, given, outputs)
            self.constants.update(filter(None, outputs))
            self.values.update((name, as_tensor(self.values[name])) for name in filter(None, outputs))
        elif not self._add_layer(index, node):
            module, given, outputs = self._node(node, proto)
            self.append(node.name, module, given, outputs)
            if isinstance(module, OnnxNode):
                self.written[self.paths[node.name]] = Written(index)
        for name in (*node.inputs, *captured(proto)):
            self.remaining[name] -= 1
            if name and not self.remaining[name]:
                self.values.pop(name, None)

    def append(self, name: str, module: nn.Module, given: tuple[str, ...], outputs: tuple[str, ...]) -> None:
        """Run ``module`` and make it part of the plan, at the path of the value ``name``."""
        self._call(module, given, outputs)
        self.modules[self.paths[name]] = module
        self.plan.append(Run(self.paths[name], given, outputs))

    def _call(self, module: nn.Module, given: tuple[str, ...], outputs: Sequence[str]) -> None:
        result = module(*(self.values[name] for name in given))
        results = result if isinstance(result, tuple) else (result,)
        self.values.update((name, value) for name, value in zip(outputs, results, strict=False) if name)

    def _constants_of(self, node: Node) -> dict[int, Tensor]:
        return {i: self.values[name] for i, name in enumerate(node.inputs) if name in self.constants}

    def _node(self, node: Node, proto: NodeProto) -> tuple[nn.Module, tuple[str, ...], tuple[str, ...]]:
        """A module for a node without weights, with what it takes and gives: ours if that runs, else ONNX Runtime's."""
        if not node.domain and node.operator in OPERATORS:
            plain = OnnxNode(node, self._constants_of(node))
            given = tuple(name for name in node.inputs if name and name not in self.constants)
            try:
                plain(*(self.values[name] for name in given))
            except _NOT_OURS:
                pass
            else:
                return plain, given, node.outputs
        try:
            opaque = OpaqueNode(proto, self.model, self.values, self.constants)
            opaque(*(self.values[name] for name in opaque.given))
        except Exception as error:  # ONNX Runtime's own exceptions have no common base
            raise ModelError(f"the ONNX node {node.name} ({node.operator}) cannot be run alone: {error}") from error
        return opaque, opaque.given, tuple(filter(None, node.outputs))

    def _add_layer(self, index: int, node: Node) -> bool:
        """Add the node as a layer with weights, if it is one."""
        source = node.inputs[0] if node.inputs else ""
        if not source or source in self.constants:
            return False
        constants = self._constants_of(node)
        layer = make_layer(node, constants, self.values[source])
        if layer is None:
            return False
        name, outputs, written = node.name, node.outputs, Written(index, layer.transposed)
        if node.operator == "MatMul":
            layer, written, outputs = self._with_bias(index, constants[1], layer)
            name = outputs[0]
        if layer.pad is not None:
            padded = f"{name}/pad"
            self.aliases[padded] = source
            self.append(padded, layer.pad, (source,), (padded,))
            source = padded
        self.append(name, layer.module, (source,), outputs[:1])
        self.written[self.paths[name]] = written
        return True

    def _with_bias(self, index: int, weight: Tensor, layer: Layer) -> tuple[Layer, Written, tuple[str, ...]]:
        """A MatMul's layer, joined with the addition of a bias if that is all that its product is used for."""
        node = self.nodes[index]
        after = self.readers.get(node.outputs[0])
        if after is not None and self.uses[node.outputs[0]] == 1 and self.nodes[after].operator == "Add":
            addition = self.nodes[after]
            position = 1 - addition.inputs.index(node.outputs[0])
            bias = addition.inputs[position]
            if bias in self.constants and is_row(self.values[bias], weight.shape[1]):
                joined = linear(weight, self.values[bias], transposed=True)
                assert joined is not None
                self.merged.add(after)
                return joined, Written(index, True, (after, position)), addition.outputs
        return layer, Written(index, True), node.outputs

    def strip(self) -> None:
        """Take out of the graph the tensors that the layers hold now, which writing puts back; the others are in it."""
        layers = [place for path, place in self.written.items() if not isinstance(self.modules[path], OnnxNode)]
        for place in layers:
            names = list(self.nodes[place.index].inputs[1:])
            if place.addition is not None:
                names.append(self.nodes[place.addition[0]].inputs[place.addition[1]])
            for tensor in (self.initializers[name] for name in names if name in self.initializers):
                if self.uses[tensor.name] == 1:
                    tensor.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims))
        load_external_data_for_model(self.model, self.folder)


def _stated(node: Node) -> Tensor:
    """The value of a Constant node."""
    value = next(iter(node.attributes.values()), None)
    if isinstance(value, Tensor):
        return value
    if not isinstance(value, (int, float, list)):
        raise ModelError(f"the ONNX constant {node.name} cannot be used", got=type(value).__name__, wanted="numbers")
    whole = isinstance(value, int) or (isinstance(value, list) and all(isinstance(item, int) for item in value))
    return torch.tensor(value, dtype=torch.int64 if whole else torch.float32)
