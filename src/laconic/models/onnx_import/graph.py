"""An ONNX graph in plain Python: nodes with their attributes, constants as tensors, inputs with their dimensions."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper
from torch import Tensor

MAIN_DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class Node:
    """One node. ``name`` is the value that it gives first; attributes that hold graphs are left out."""

    name: str
    operator: str
    domain: str
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    def get(self, attribute: str, default: Any) -> Any:
        return self.attributes.get(attribute, default)


@dataclass(frozen=True)
class Input:
    """One input of the graph; a dimension that is not fixed is None."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]


def read_nodes(model: ModelProto) -> list[Node]:
    """The nodes of the main graph, in order."""
    versions = {entry.domain: entry.version for entry in model.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 1))
    return [_read_node(proto, opset) for proto in model.graph.node]


def _read_node(proto: NodeProto, opset: int) -> Node:
    plain = [a for a in proto.attribute if a.type not in (AttributeProto.GRAPH, AttributeProto.GRAPHS)]
    return Node(
        name=next(filter(None, proto.output), proto.name),
        operator=proto.op_type,
        domain="" if proto.domain in MAIN_DOMAINS else proto.domain,
        opset=opset,
        inputs=tuple(proto.input),
        outputs=tuple(proto.output),
        attributes={a.name: _value(a) for a in plain},
    )


def _value(attribute: AttributeProto) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return to_tensor(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return list(value) if attribute.type in (AttributeProto.INTS, AttributeProto.FLOATS) else value


def to_tensor(proto: TensorProto, folder: str = "") -> Tensor:
    """Its values, which may lie in a file in ``folder``."""
    return torch.from_numpy(np.array(numpy_helper.to_array(proto, folder)))  # a copy that may be written to


def read_inputs(model: ModelProto) -> list[Input]:
    """What must be fed: the graph's inputs that have no initializer."""
    given = {tensor.name for tensor in model.graph.initializer}
    return [_read_input(value) for value in model.graph.input if value.name not in given]


def _read_input(value: onnx.ValueInfoProto) -> Input:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") and d.dim_value > 0 else None for d in tensor.shape.dim)
    return Input(value.name, torch_dtype(tensor.elem_type), shape)


def torch_dtype(element: int) -> torch.dtype:
    """The torch type of an ONNX element type; KeyError for strings and the small floats."""
    return torch.from_numpy(np.empty(0, onnx.helper.tensor_dtype_to_np_dtype(element))).dtype


def onnx_dtype(dtype: torch.dtype) -> int:
    return int(onnx.helper.np_dtype_to_tensor_dtype(torch.empty(0, dtype=dtype).numpy().dtype))


def captured(proto: NodeProto) -> list[str]:
    """The outer values that the node's subgraphs read, in order."""
    return list(dict.fromkeys(name for graph in subgraphs(proto) for name in _free(graph)))


def subgraphs(proto: NodeProto) -> Iterator[GraphProto]:
    for attribute in proto.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        yield from attribute.graphs


def _free(graph: GraphProto) -> Iterator[str]:
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        yield from (name for name in (*node.input, *captured(node)) if name and name not in known)
        known.update(node.output)
    yield from (value.name for value in graph.output if value.name not in known)


def count_uses(model: ModelProto) -> Counter[str]:
    """How often each value is read: by nodes, by their subgraphs, as an output of the graph."""
    uses: Counter[str] = Counter()
    for node in model.graph.node:
        uses.update(name for name in node.input if name)
        uses.update(captured(node))
    uses.update(value.name for value in model.graph.output)
    return uses


def paths(names: Iterable[str], reserved: Container[str]) -> dict[str, str]:
    """A submodule's name for each value: letters, digits and underscores, unique, and none of those reserved."""
    taken: set[str] = set()
    found: dict[str, str] = {}
    for name in names:
        plain = re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_") or "value"
        plain = f"node_{plain}" if plain[0].isdigit() or plain in reserved else plain
        path, count = plain, 2
        while path in taken:
            path, count = f"{plain}_{count}", count + 1
        taken.add(path)
        found[name] = path
    return found
