"""Sizes in Reshape nodes, said relative to what is reshaped, so that layers in front may become narrower.

Exporters write (0, 512) for what was ``flatten(1)``. Here a size that repeats the input's at the same place becomes 0
(ONNX: copy it), and one of those that are left becomes -1 (what is left over). For the sizes that the graph has now
that is the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, numpy_helper

from laconic.models.onnx_import.graph import Node, read_nodes, to_tensor

Sizes = list[int | None]


def relative(model: ModelProto) -> ModelProto:
    """A copy of ``model``; its first dimension is the batch."""
    changed = ModelProto()
    changed.CopyFrom(model)
    known = _sizes(onnx.shape_inference.infer_shapes(model))
    shapes = {
        t.name: to_tensor(t).tolist()
        for t in model.graph.initializer
        if len(t.dims) == 1 and t.data_type == TensorProto.INT64
    }
    nodes = read_nodes(model)
    constants = [node for node in nodes if node.operator == "Constant"]
    shapes.update((n.outputs[0], n.attributes["value"].tolist()) for n in constants if "value" in n.attributes)
    shapes.update(_put_together(nodes, shapes))
    for i, node in enumerate(changed.graph.node):
        wanted = shapes.get(node.input[1]) if node.op_type == "Reshape" else None
        given = known.get(node.input[0]) if wanted else None
        zero = any(a.name == "allowzero" and a.i for a in node.attribute)
        if not isinstance(wanted, list) or given is None or (zero and 0 in wanted):
            continue
        found = _relative(given, wanted)
        if found != wanted:
            name = f"{node.output[0]}/relative_{i}"
            changed.graph.initializer.append(numpy_helper.from_array(np.array(found, np.int64), name))
            node.input[1] = name
            kept = [attribute for attribute in node.attribute if attribute.name != "allowzero"]
            del node.attribute[:]
            node.attribute.extend(kept)
    return changed


def _put_together(nodes: Sequence[Node], shapes: Mapping[str, Any]) -> Iterator[tuple[str, list[int]]]:
    """Shapes that begin with a size computed from another's, the batch, and go on with constants."""
    sized = {node.outputs[0] for node in nodes if node.operator == "Shape" and node.get("end", 0) == 1}
    for node in nodes:
        if node.operator == "Concat" and node.inputs[0] in sized and all(name in shapes for name in node.inputs[1:]):
            yield node.outputs[0], [-1, *(size for name in node.inputs[1:] for size in shapes[name])]


def _sizes(model: ModelProto) -> dict[str, Sizes]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {
        value.name: [d.dim_value if d.HasField("dim_value") else None for d in value.type.tensor_type.shape.dim]
        for value in values
        if value.type.tensor_type.HasField("shape")
    }


def _relative(given: Sizes, wanted: list[int]) -> list[int]:
    """``wanted`` in terms of ``given``.

    >>> _relative([None, 512, 1, 1], [-1, 512])
    [0, 0]
    >>> _relative([None, 8, 8, 96], [0, 2, 4, 2, 4, 96])
    [0, 2, 4, 2, 4, -1]
    >>> _relative([None, 48, 12, 12], [0, 2, 24, 12, 12])
    [0, 2, -1, 12, 12]
    """
    found = list(wanted)
    behind, left = given[1:], wanted[1:]
    if found[:1] == [-1] and None not in behind and math.prod(s or 1 for s in behind) == math.prod(left):
        found[0] = 0
    for i, (size, other) in enumerate(zip(found, given, strict=False)):
        if size not in (0, other) or (size == 0 and i >= len(given)):
            break
        found[i] = 0
    open_places = [i for i, size in enumerate(found) if size > 0]
    if -1 in found or not open_places or not found or found[0] > 0:
        return found
    last, same = len(found) - 1, 0
    while same < min(len(open_places), len(given)) and found[last - same] == given[-1 - same]:
        same += 1
    if same > 1:  # maps behind the channels
        open_places = open_places[: len(open_places) - same] or [last]
    found[last if same == 1 else max(open_places, key=lambda i: found[i])] = -1
    return found
