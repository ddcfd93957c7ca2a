"""An ONNX file in the form that TensorRT reads as an explicitly quantized network, and the check of that form.

TensorRT takes QuantizeLinear and DequantizeLinear at their word and computes in INT8 between them. Its rules (NVIDIA,
TensorRT Developer Guide, "Working with Quantized Types", sections "Explicit Quantization" and "Q/DQ Layer-Placement
Recommendations"; the parser's refusals in github.com/NVIDIA/TensorRT issue 2774 and github.com/microsoft/onnxruntime
issue 14229):

- integers are signed and symmetric: int8, every zero point 0;
- activations have one scale, weights one or one per output channel;
- codes of weights are stored as int8, or as what a Q/DQ pair makes of floats; biases are not quantized, and there is no
  DequantizeLinear of int32;
- only operators of the ONNX standard.

:func:`translated` brings the files of this project into that form. What a file computes from constants alone (codes of
fewer bits, codebooks, integer biases) becomes constants. Unsigned activations, in a file that was made for another
runtime, get the symmetric grid that covers the same range, which is coarser: that is another model, and has to be
compared with the first.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from laconic.core import Array
from laconic.runtime.onnx_graph import constant_of, drop_unused, initializer

OLDEST_OPSET, NEWEST_OPSET = 13, 24  # per-channel quantization came with 13; what the parser of TensorRT 10 reads
_QUANTIZE, _DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
_WEIGHTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_SHORT_PRODUCT = "MatMulNBits"
_LARGEST = 127.0


# --------------------------------------------------------------------------------------------------------- translation


def translated(model: ir.Model) -> ir.Model:
    """``model``, changed in place, in TensorRT's form."""
    graph = model.graph
    for node in list(graph):
        if node.inputs and all(constant_of(value) is not None for value in node.inputs if value is not None):
            _fold(model, node)
    for node in list(graph):
        if node.op_type == _SHORT_PRODUCT:
            _lengthen_product(model, node)
    for node in list(graph):
        if node.op_type == _QUANTIZE:
            _make_symmetric(graph, node)
    for node in list(graph):
        if node.op_type == _DEQUANTIZE and constant_of(node.inputs[0]) is None:
            _one_scale(graph, node)
    drop_unused(graph)
    model.opset_imports.pop("com.microsoft", None)
    return model


def _lengthen_product(model: ir.Model, node: ir.Node) -> None:
    """A product with short codes becomes one with the float32 weights that they stand for, (in, out): they are what the
    runtime that has the operator gives for the identity."""
    graph = model.graph
    size = node.attributes["K"].as_int()
    constants = [None if value is None else constant_of(value) for value in node.inputs]
    held = [(i, a) for i, a in enumerate(constants) if a is not None and i != 5]  # the sixth is the bias
    exact = [a for a in node.attributes.values() if a.name != "accuracy_level"]
    values = {0: np.eye(size, dtype=np.float32), **dict(held)}
    (weight,) = _computed(model, node, values, exact, inputs=5)
    product = ir.node("MatMul", [node.inputs[0], initializer(graph, f"{node.name}.weight", weight)], name=node.name)
    bias = node.inputs[5] if len(node.inputs) > 5 else None
    made = [product] if bias is None else [product, ir.node("Add", [product.outputs[0], bias], name=f"{node.name}/1")]
    _replace(graph, node, made)


def _fold(model: ir.Model, node: ir.Node) -> None:
    """A node that reads constants alone gives a constant, unless it is what says that a weight is INT8."""
    kind = constant_of(node.inputs[0])
    if node.op_type == _DEQUANTIZE and kind is not None and kind.dtype == np.int8 and _is_weight(node.outputs[0]):
        _hold(model.graph, node)
        return
    values = {i: _known(value) for i, value in enumerate(node.inputs) if value is not None}
    results = _computed(model, node, values, list(node.attributes.values()), inputs=len(node.inputs))
    for old, result in zip(node.outputs, results, strict=True):
        made = initializer(model.graph, str(old.name), result)
        old.replace_all_uses_with(made, replace_graph_outputs=True)


def _hold(graph: ir.Graph, node: ir.Node) -> None:
    """Constants that a node reads are initializers, whatever they were."""
    for i, value in enumerate(node.inputs):
        if value is not None and value.name not in graph.initializers:
            node.replace_input_with(i, initializer(graph, str(value.name), _known(value)))


def _is_weight(value: ir.Value) -> bool:
    """Whether layers read it, as their second input, and nobody else does."""
    uses = list(value.uses())
    turned = [use for use in uses if use.node.op_type == "Transpose"]
    inner = all(_is_weight(use.node.outputs[0]) for use in turned)
    return bool(uses) and inner and all(u.node.op_type in _WEIGHTED and u.idx == 1 for u in uses if u not in turned)


def _make_symmetric(graph: ir.Graph, quantize: ir.Node) -> None:
    """A pair on an activation with unsigned codes, or a zero point, gets the symmetric grid of the same range."""
    scale, zero = (_known(value) for value in quantize.inputs[1:3])
    if zero.dtype == np.int8 and not zero.any():
        return
    limits = np.iinfo(zero.dtype)
    below, above = (np.abs(end - zero.astype(np.float64)) for end in (limits.min, limits.max))
    reach, name, source = np.maximum(below, above), str(quantize.outputs[0].name), quantize.inputs[0]
    if source is not None and source.is_graph_input():  # inputs may lie where the old codes ended and the new do not
        ends = {"low": -scale * below, "high": scale * above}
        held = [initializer(graph, f"{name}.{end}", value.astype(np.float32)) for end, value in ends.items()]
        clip = ir.node("Clip", [source, *held], name="clip")
        quantize.prepend(clip)
        quantize.replace_input_with(0, clip.outputs[0])
    values = [
        initializer(graph, f"{name}.scale", (scale * reach / _LARGEST).astype(np.float32)),
        initializer(graph, f"{name}.zero", np.zeros(zero.shape, np.int8)),
    ]
    for node in [quantize, *(use.node for use in list(quantize.outputs[0].uses()))]:
        if node.op_type in (_QUANTIZE, _DEQUANTIZE):
            for i, value in enumerate(values, 1):
                node.replace_input_with(i, value)


def _one_scale(graph: ir.Graph, node: ir.Node) -> None:
    """Equal scales of all channels are one scale."""
    scale, zero = (_known(value) for value in node.inputs[1:3])
    if scale.ndim and (scale == scale.flat[0]).all():
        parts = (scale.flat[0], zero.flat[0])
        for i, part in enumerate(parts, 1):
            node.replace_input_with(i, initializer(graph, f"{node.outputs[0].name}.{i}", np.array(part)))
        node.attributes.pop("axis", None)


def _computed(
    model: ir.Model, node: ir.Node, values: dict[int, Array], attributes: list[ir.Attr], inputs: int
) -> list[Array]:
    """What ``node`` gives for these inputs, by ONNX Runtime."""
    given = {i: ir.Value(name=f"x{i}", type=ir.TensorType(ir.tensor(a).dtype)) for i, a in values.items()}
    for i, value in given.items():
        value.const_value = ir.tensor(values[i], name=value.name)
        value.shape = ir.Shape(values[i].shape)
    sources, outputs = [given.get(i) for i in range(inputs)], len(node.outputs)
    alone = ir.Node(node.domain, node.op_type, sources, attributes=attributes, num_outputs=outputs)
    for i, value in enumerate(alone.outputs):
        value.name = f"y{i}"
    graph = ir.Graph(
        [], alone.outputs, nodes=[alone], initializers=list(given.values()), opset_imports=model.opset_imports, name="g"
    )
    proto = ir.to_proto(ir.Model(graph, ir_version=model.ir_version))
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, {})
    return found


# --------------------------------------------------------------------------------------------------------------- check


def problems(model: ir.Model) -> list[str]:
    """What in ``model`` is not in TensorRT's form, a line each; nothing if it is."""
    opset = model.opset_imports.get("", 0)
    found = [] if OLDEST_OPSET <= opset <= NEWEST_OPSET else [f"opset {opset}, not {OLDEST_OPSET} to {NEWEST_OPSET}"]
    for node in model.graph:
        name = node.name or node.op_type
        if node.domain not in ("", "ai.onnx"):
            found.append(f"{name} is {node.domain}.{node.op_type}, which is not of the ONNX standard")
        elif node.op_type in (_QUANTIZE, _DEQUANTIZE):
            found += [f"{name} ({node.op_type}) {reason}" for reason in _faults(node)]
    return found


def _faults(node: ir.Node) -> Iterator[str]:
    scale, zero = (constant_of(value) for value in (*node.inputs[1:3], None, None)[:2])
    if scale is None or zero is None:
        yield "has a scale or a zero point that is no constant"
        return
    if scale.dtype != np.float32 or not (np.isfinite(scale).all() and (scale > 0).all()):
        yield "has a scale that is not a positive float32"
    if zero.dtype != np.int8:
        yield f"has codes of type {zero.dtype}, not int8"
    if zero.any():
        yield "has a zero point other than 0"
    if node.op_type == _QUANTIZE:
        readers = [use.node.op_type for use in node.outputs[0].uses()]
        if not readers or set(readers) != {_DEQUANTIZE} or node.outputs[0].is_graph_output():
            yield "is not followed by DequantizeLinear alone, as activations of fewer than 8 bits are not"
    source = node.inputs[0]
    codes = None if source is None else constant_of(source)
    if node.op_type == _DEQUANTIZE and codes is None:
        maker = source.producer() if source is not None else None
        if maker is None or maker.op_type != _QUANTIZE:
            yield "dequantizes what no QuantizeLinear gave"
        elif not all(
            np.array_equal(_known(a), _known(b)) for a, b in zip(maker.inputs[1:3], node.inputs[1:3], strict=True)
        ):
            yield "has other scales than the QuantizeLinear in front of it"
    if codes is None:
        if scale.ndim:
            yield "gives an activation a scale per channel"
    elif scale.ndim and (axis := _axis(node)) != (wanted := _output_axis(node.outputs[0])):
        yield f"has a scale per index of axis {axis} of a weight whose output channels are axis {wanted}"


def _axis(node: ir.Node) -> int:
    return node.attributes["axis"].as_int() if "axis" in node.attributes else 1


def _output_axis(value: ir.Value) -> int | None:
    """Which axis of a weight is that of its output channels; None where its readers disagree or are no layers."""
    axes: set[int | None] = set()
    for use in value.uses():
        node, turned = use.node, False
        flipped = "transB" in node.attributes and bool(node.attributes["transB"].as_int())
        if node.op_type == "Transpose":
            inner = _output_axis(node.outputs[0])
            turned = True
            axes.add(None if inner is None else 1 - inner)
        if not turned:
            axis = {"Conv": 0, "ConvTranspose": 1, "Gemm": 0 if flipped else 1, "MatMul": 1}.get(node.op_type)
            axes.add(axis if use.idx == 1 else None)
    return axes.pop() if len(axes) == 1 else None


# ----------------------------------------------------------------------------------------------------------- the graph


def _known(value: ir.Value | None) -> Array:
    array = constant_of(value)
    assert array is not None
    return array


def _replace(graph: ir.Graph, node: ir.Node, made: list[ir.Node]) -> None:
    last, old = made[-1].outputs[0], node.outputs[0]
    last.shape, last.type, last.name = old.shape, old.type, old.name
    ir.convenience.replace_nodes_and_values(graph, node, [node], made, [old], [last])
