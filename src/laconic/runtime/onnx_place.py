"""Quantizers of an imported ONNX file's module, written into the file's own graph.

A module that came from an ONNX file brings ``to_onnx()``, the graph with its present weights, and ``value_name(path)``,
the name of the value that a submodule gives. Nothing is traced: whatever operators the file has stay as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import version_converter
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Array
from laconic.errors import DeployError
from laconic.fake_quantize import PER_TENSOR, FakeQuantize, GroupQuantize, attached, weight_quantizer
from laconic.runtime import onnx_blocks, onnx_codebook

_LEAST_OPSET, _OPSET = 13, 17  # quantization per channel came with opset 13


def graph_of(model: Any) -> ir.Model:
    """The ONNX graph of an imported module, with a QuantizeLinear -> DequantizeLinear pair for each quantizer."""
    proto = model.to_onnx()
    quantizers = attached(model)
    if quantizers is not None and _opset(proto) < _LEAST_OPSET:
        try:
            proto = version_converter.convert_version(proto, _OPSET)
        except Exception as error:  # the converter raises many kinds
            raise DeployError(f"opset {_opset(proto)} is too old to quantize, and does not convert: {error}") from error
    graph: ir.Model = ir.from_proto(proto)
    values = {value.name: value for node in graph.graph for value in node.outputs}
    values |= {value.name: value for value in graph.graph.inputs}
    for path, layer in surgery.weighted_layers(model).items():
        node = _product(values[model.value_name(path)])
        quantizer = weight_quantizer(layer)
        if node is not None:
            node.name = path
            transposed = node.op_type == "MatMul" or (node.op_type == "Gemm" and not _flag(node, "transB"))
            if quantizer is None and parametrize.is_parametrized(layer, "weight"):
                hashed = layer.parametrizations["weight"].hashed  # type: ignore[index, union-attr]  # frozen
                onnx_codebook.place(graph.graph, node, transposed, hashed)
            if quantizer is not None:
                _quantize_weight(graph.graph, node, quantizer, axis=1 if transposed else 0)
    if quantizers is not None:
        inputs = dict(zip(quantizers.input_names, model.input_names, strict=True))
        for key, quantizer in quantizers.by_value().items():
            place, _, name = key.partition("/")
            value = values[inputs[name] if place == "input" else model.value_name(place)]
            _quantize_value(graph.graph, value, quantizer)
    return graph


def _opset(proto: onnx.ModelProto) -> int:
    return max((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), default=1)


def _flag(node: ir.Node, name: str) -> bool:
    return bool(name in node.attributes and node.attributes[name].as_int())


def _product(value: ir.Value) -> ir.Node | None:
    """The convolution or product behind a layer's value: the value may be the addition of its bias."""
    node = value.producer()
    if node is not None and node.op_type == "Add":
        before = [source.producer() for source in node.inputs if source is not None]
        return next((n for n in before if n is not None and n.op_type in ("MatMul", "Gemm")), None)
    return node


def _pair(quantizer: FakeQuantize, value: ir.Value, axis: int) -> tuple[list[ir.Node], list[ir.Value]]:
    """QuantizeLinear -> DequantizeLinear on ``value``, with a Clip of the codes between them where these have fewer
    bits than QuantizeLinear clips to; and the constants that they need."""
    kind = np.uint8 if quantizer.qmin >= 0 else np.int8

    def constant(name: str, array: Array) -> ir.Value:
        tensor = ir.tensor(np.array(array), name=f"{value.name}.{name}")
        return ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )

    steps = [constant("scale", quantizer.scale.numpy()), constant("zero", quantizer.zero_point.numpy().astype(kind))]
    attributes = {} if quantizer.axis == PER_TENSOR else {"axis": axis}
    nodes, ends = [ir.node("QuantizeLinear", [value, *steps], attributes=attributes)], []
    if kind is np.uint8 and quantizer.qmax < np.iinfo(kind).max:
        ends = [constant(name, np.array(getattr(quantizer, name), kind)) for name in ("qmin", "qmax")]
        nodes.append(ir.node("Clip", [nodes[-1].outputs[0], *ends]))
    nodes.append(ir.node("DequantizeLinear", [nodes[-1].outputs[0], *steps], attributes=attributes))
    return nodes, steps + ends


def _quantize_weight(graph: ir.Graph, node: ir.Node, quantizer: FakeQuantize, axis: int) -> None:
    weight = node.inputs[1]
    assert weight is not None
    if isinstance(quantizer, GroupQuantize):
        onnx_blocks.place(graph, node, quantizer, transposed=axis == 1)
        return
    nodes, constants = _pair(quantizer, weight, axis)
    for constant in constants:
        graph.register_initializer(constant)
    graph.insert_before(node, nodes)
    node.replace_input_with(1, nodes[-1].outputs[0])


def _quantize_value(graph: ir.Graph, value: ir.Value, quantizer: FakeQuantize) -> None:
    """Every reader of ``value`` reads the quantized value instead, and so does the graph's output."""
    readers = list(value.uses())
    nodes, constants = _pair(quantizer, value, axis=0)
    for constant in constants:
        graph.register_initializer(constant)
    producer = value.producer()
    if producer is None:
        graph.insert_before(graph[0], nodes)
    else:
        graph.insert_after(producer, nodes)
    for user, index in readers:
        user.replace_input_with(index, nodes[-1].outputs[0])
    if value.is_graph_output():
        quantized = nodes[-1].outputs[0]
        quantized.shape, quantized.type = value.shape, value.type
        value.name, quantized.name = f"{value.name}.float", value.name
        graph.outputs[list(graph.outputs).index(value)] = quantized
