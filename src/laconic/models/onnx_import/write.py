"""The weights of an imported module back into its ONNX graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper
from torch import Tensor, nn

from laconic.errors import DeployError
from laconic.models.onnx_import.graph import captured, count_uses, subgraphs
from laconic.models.onnx_import.nodes import OnnxNode


@dataclass(frozen=True)
class Written:
    """Where the tensors of a layer or a plain node lie: the ``index`` of its node, whether its weight lies
    ``transposed``, and for a MatMul the index of the addition that is its bias, with the position of the bias among
    that node's inputs."""

    index: int
    transposed: bool = False
    addition: tuple[int, int] | None = None


def write(model: ModelProto, written: Mapping[str, Written], module: nn.Module) -> ModelProto:
    """A copy of ``model`` in which the layers at the paths of ``written`` have the tensors of ``module``."""
    graph = _Graph(model)
    for path, place in written.items():
        layer = module.get_submodule(path)
        if isinstance(layer, nn.Identity):  # a batch norm that was folded
            graph.bypass(place.index, 0)
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
            for position, name in enumerate(("weight", "bias", "running_mean", "running_var"), start=1):
                graph.put(path, place.index, position, getattr(layer, name))
        elif isinstance(layer, OnnxNode):
            for position in layer.changed():
                graph.put(path, place.index, position, layer.get_buffer(f"constant_{position}"))
        elif isinstance(layer, (nn.modules.conv._ConvNd, nn.Linear)):
            graph.put(path, place.index, 1, layer.weight.T if place.transposed else layer.weight)
            graph.set_groups(place.index, getattr(layer, "groups", 1))
            _write_bias(graph, path, place, layer.bias)
        else:
            raise DeployError(f"layer {path} became a {type(layer).__name__}, which has no place in the ONNX graph")
    return graph.finish()


def _write_bias(graph: _Graph, path: str, place: Written, bias: Tensor | None) -> None:
    node = graph.nodes[place.index]
    if place.addition is not None:
        index, position = place.addition
        if bias is None:
            graph.bypass(index, 1 - position)
        else:
            graph.put(path, index, position, bias)
    elif bias is None:
        del node.input[2:]
    elif node.op_type == "MatMul":
        graph.add_bias(path, place.index, bias)
    else:
        graph.put(path, place.index, 2, bias)


class _Graph:
    """A graph being changed. Nodes keep the index that they have in the original until :meth:`finish`."""

    def __init__(self, model: ModelProto) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self.nodes = list(self.model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in self.model.graph.initializer}
        self.uses = count_uses(model)
        self.dropped: set[int] = set()
        self.after: dict[int, NodeProto] = {}

    def put(self, path: str, index: int, position: int, tensor: Tensor) -> None:
        """Make ``tensor`` the input number ``position`` of a node; in its old place, unless others read that too."""
        node = self.nodes[index]
        name = node.input[position] if len(node.input) > position else ""
        value = tensor.detach().cpu().contiguous().numpy()
        before = self.initializers.get(name)
        if before is not None and self.uses[name] == 1:
            self._add(name, value)
        elif before is None or not np.array_equal(numpy_helper.to_array(before).ravel(), value.ravel()):
            node.input.extend([""] * (position + 1 - len(node.input)))
            node.input[position] = self._add(f"{path}/input_{position}", value)

    def set_groups(self, index: int, groups: int) -> None:
        """Write how many groups a convolution has, where it says so."""
        for attribute in self.nodes[index].attribute:
            if attribute.name == "group":
                attribute.i = groups

    def add_bias(self, path: str, index: int, bias: Tensor) -> None:
        """Add ``bias`` after a MatMul that has none; what followed it reads the sum."""
        node = self.nodes[index]
        product, result = f"{path}/product", node.output[0]
        node.output[0] = product
        name = self._add(f"{path}/bias", bias.detach().cpu().numpy())
        self.after[index] = onnx.helper.make_node("Add", [product, name], [result], f"{path}/add")

    def bypass(self, index: int, position: int) -> None:
        """Take a node out: what it gave is what its input number ``position`` was."""
        node = self.nodes[index]
        source, result = node.input[position], node.output[0]
        if result in {value.name for value in self.model.graph.output}:
            node.CopyFrom(onnx.helper.make_node("Identity", [source], [result], node.name))
            return
        self.dropped.add(index)
        for other in self.nodes:
            _rename(other, result, source)

    def _add(self, name: str, value: np.ndarray[Any, Any]) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def finish(self) -> ModelProto:
        """The model, without the nodes and initializers that nothing reads any more."""
        pairs = ((node, self.after.get(i)) for i, node in enumerate(self.nodes) if i not in self.dropped)
        order = [node for pair in pairs for node in pair if node is not None]
        needed = {value.name for value in self.model.graph.output}
        kept = []
        for node in reversed(order):
            if needed.intersection(node.output):
                kept.append(node)
                needed.update((*node.input, *captured(node)))
        result = ModelProto()
        result.CopyFrom(self.model)
        del result.graph.node[:], result.graph.initializer[:], result.graph.value_info[:]
        result.graph.node.extend(reversed(kept))
        result.graph.initializer.extend(tensor for name, tensor in self.initializers.items() if name in needed)
        return result


def _rename(node: NodeProto, old: str, new: str) -> None:
    """Let ``node`` and its subgraphs read ``new`` where they read ``old``."""
    for i, name in enumerate(node.input):
        if name == old:
            node.input[i] = new
    for graph in subgraphs(node):
        for inner in graph.node:
            _rename(inner, old, new)
