"""What every pass over an ONNX graph needs: constants read and stored, and what nobody reads dropped."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from laconic.core import Array


def constant_of(value: ir.Value | None) -> Array | None:
    """The array that a value always holds, if it does."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is not None and node.op_type == "Constant" and "value" in node.attributes:
        return node.attributes["value"].as_tensor().numpy()
    return None


def initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A stored constant called ``name``, or like it where that is taken, as where a layer is called again."""
    base, count = name, 0
    while name in graph.initializers:
        count += 1
        name = f"{base}.{count}"
    tensor = ir.tensor(np.ascontiguousarray(array).reshape(array.shape), name=name)  # a scalar stays one
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def drop_unused(graph: ir.Graph) -> None:
    """Take out nodes and constants that nobody reads."""
    for node in reversed(list(graph)):
        if not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
    for name, value in list(graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]
