"""LSTMs whose weights are rounded, as ONNX Runtime's DynamicQuantizeLSTM (domain ``com.microsoft``).

Its kernel multiplies the codes: 8 bits, signed, a scale per row. It rounds what it reads to 8 bits while it runs, as
MatMulNBits does (:mod:`.onnx_blocks`). Codes of fewer bits are stored in these and widened when the file is opened.
OpenVINO has no such node, and nobody one for a GRU: there weights are stored short, and computed in float32.

The exporter brings torch's gates into ONNX's order by slices of the weight; what they do to its rows is done here to
codes and scales.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import onnx_ir as ir

from laconic.core import Array, Facts
from laconic.runtime import onnx_blocks
from laconic.runtime.onnx_blocks import Rounded

_COMPUTED = "DynamicQuantizeLSTM"
_PUT_TOGETHER = ("Slice", "Concat", "Unsqueeze")
_INPUTS = 8  # of an LSTM; scales and zero points follow


def store(model: ir.Model) -> list[Facts]:
    """Turn every LSTM of which both weights are placeholders with a scale per row into the integer one, in place, and
    say what is stored, as :func:`.onnx_blocks.store` does."""
    rows: list[Facts] = []
    for node in [node for node in model.graph if node.op_type == "LSTM" and not node.domain]:
        if "layout" in node.attributes and node.attributes["layout"].as_int():
            continue
        sources = {source for value in node.inputs[1:3] for source in _sources(value)}
        found = {p: Rounded.of(p) for p in sources if p is not None and onnx_blocks.is_placeholder(p)}
        if len(found) < len(sources) or any(one.scale.shape[1] > 1 for one in found.values()):
            continue
        _replace(model, node, found)
        bits = max(one.bits for one in found.values())
        rows.append({"kind": "recurrent", "bits": bits, "group": 0, "layers": len(found)})
    _drop_unread(model.graph)
    return onnx_blocks.summed([{**row, "computed": _COMPUTED} for row in rows])


def _sources(value: ir.Value | None) -> Iterator[ir.Node | None]:
    """What a weight is put together from."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type not in _PUT_TOGETHER:
        yield node
        return
    for part in node.inputs if node.op_type == "Concat" else node.inputs[:1]:
        yield from _sources(part)


def _rows(value: ir.Value | None, of: Callable[[ir.Node], Array]) -> Array:
    """``value`` with each placeholder (rows, ...) in it replaced: cut, joined and stacked along the rows as there."""
    node = value.producer() if value is not None else None
    assert node is not None
    if onnx_blocks.is_placeholder(node):
        return of(node)
    if node.op_type == "Concat":
        return np.concatenate([_rows(part, of) for part in node.inputs], node.attributes["axis"].as_int())
    rows = _rows(node.inputs[0], of)
    if node.op_type == "Unsqueeze":
        return rows[None]
    first, last = (int(onnx_blocks.array(end).item()) for end in node.inputs[1:3])
    return rows[first:last]


def _replace(model: ir.Model, node: ir.Node, found: dict[ir.Node, Rounded]) -> None:
    """The integer LSTM in the place of ``node``."""
    graph, weights, scales = model.graph, [], []
    for value in node.inputs[1:3]:
        name = next(found[p].name for p in _sources(value) if p in found)
        codes = _rows(value, lambda p: found[p].codes).swapaxes(1, 2)  # directions, inputs, gates
        scale = _rows(value, lambda p: found[p].scale)[..., 0]  # directions, gates
        nodes, widened = onnx_blocks.stored_codes(model, codes, f"{name}.codes", ir.DataType.INT8)
        more, scale_value = onnx_blocks.stored_scale(graph, scale, f"{name}.scale")
        zero = onnx_blocks.constant(graph, f"{name}.zero", np.zeros(scale.shape, np.int8))
        graph.insert_before(node, [*nodes, *more])
        weights.append(widened)
        scales += [scale_value, zero]
    rest = [*node.inputs[3:], *[None] * (_INPUTS - len(node.inputs))]
    inputs = [node.inputs[0], *weights, *rest, *scales]
    attributes = [attribute for name, attribute in node.attributes.items() if name != "layout"]
    made = ir.Node(onnx_blocks.RUNTIME_DOMAIN, _COMPUTED, inputs, attributes, num_outputs=len(node.outputs))
    made.name = node.name
    made.metadata_props.update(node.metadata_props)
    for out, old in zip(made.outputs, node.outputs, strict=True):
        out.shape, out.type, out.name = old.shape, old.type, old.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], [made], node.outputs, made.outputs)
    model.opset_imports[onnx_blocks.RUNTIME_DOMAIN] = 1


def _drop_unread(graph: ir.Graph) -> None:
    """The placeholders that nobody reads any more, and what was between."""
    for node in reversed(list(graph)):
        puts_together = node.op_type in _PUT_TOGETHER or onnx_blocks.is_placeholder(node)
        if puts_together and not any(out.uses() or out.is_graph_output() for out in node.outputs):
            graph.remove(node, safe=True)
