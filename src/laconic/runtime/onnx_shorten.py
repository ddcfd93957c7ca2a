"""Names and notes of an ONNX graph: short, and after the layers they come from. In small files they weigh more than the
weights.

A node is called after its module, with a count where there are several: ``conv1``, ``conv1/1``. Runtimes name what they
fuse after the last value, so a batch norm or an activation fused to a layer goes by the layer's name; quantizers go by
``q``. The exporter's notes and the attributes that say what holds anyway are dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx
import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_WEIGHTED = frozenset({"Conv", "Gemm", "MatMul", "MatMulNBits"})
_ACTIVATIONS = frozenset({"Relu", "Clip"})
_QUANTIZERS = frozenset({"QuantizeLinear", "DequantizeLinear"})
_EVERYWHERE = {"strides": 1, "dilations": 1, "pads": 0}
"""What these are along every axis when they are not given: a schema says it in words only."""
_FREE, _BATCH = re.compile(r"s\d+"), "batch"  # the exporter numbers the one free size
_COUNTED = re.compile(r"val_\d+")
"""Constants that the exporter numbered: its number depends on all of the graph."""


def shorten(model: ir.Model) -> None:
    """Rename everything inside the graph and drop what nobody reads; inputs and outputs keep their names."""
    graph = model.graph
    ends = {id(v) for v in (*graph.inputs, *graph.outputs)}
    taken: dict[str, int] = {}
    for node in graph:
        node.name = _numbered(_path_of(node), taken)
    for node in graph:
        for i, value in enumerate(node.outputs):
            if id(value) not in ends:
                value.name, value.shape, value.type = f"{node.name}:{i}", None, None
        _drop_defaults(node, model.opset_imports)
        node.metadata_props.clear()
        node.doc_string = None
    _rename_constants(graph)
    for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
        if value.shape is not None:
            value.shape = ir.Shape(_BATCH if _FREE.fullmatch(str(size)) else size for size in value.shape)
        value.metadata_props.clear()
        value.doc_string = None
    model.functions.clear()
    model.metadata_props.clear()
    graph.metadata_props.clear()
    graph.doc_string = model.doc_string = None
    graph.name = "laconic"
    model.producer_name = model.producer_version = None


def _drop_defaults(node: ir.Node, opsets: Mapping[str, int]) -> None:
    """Drop the attributes that are what the operator's schema takes when they are not given."""
    if not onnx.defs.has(node.op_type, opsets.get(node.domain, 1), node.domain):
        return
    schema = onnx.defs.get_schema(node.op_type, opsets.get(node.domain, 1), node.domain)
    for name, attribute in list(node.attributes.items()):
        if name not in schema.attributes or attribute.is_ref():
            continue
        usual = schema.attributes[name].default_value
        if usual.type != onnx.AttributeProto.UNDEFINED:
            needless = ir.serde.deserialize_attribute(usual).value == attribute.value
        else:
            needless = name in _EVERYWHERE and set(attribute.as_ints()) == {_EVERYWHERE[name]}
        if needless:
            del node.attributes[name]
    if node.op_type == "Conv":
        node.attributes.pop("kernel_shape", None)  # the weight says it


def _numbered(path: str, taken: dict[str, int]) -> str:
    count = taken.get(path, 0)
    taken[path] = count + 1
    return f"{path}/{count}" if count else path


def _path_of(node: ir.Node) -> str:
    """The layer that a node belongs to, or the module that it was called in, or its operator."""
    if node.op_type in _QUANTIZERS:
        return "q"
    if node.op_type in _ACTIVATIONS:
        producer = node.inputs[0].producer() if node.inputs[0] is not None else None
        if producer is not None and producer.op_type in _WEIGHTED:
            return _path_of(producer)
    scopes = node.metadata_props.get(_SCOPES, "")
    if not scopes:  # it comes from a file, or is made here, and has its name already
        return (node.name or node.op_type.lower()).split("/")[0]
    names = [s.strip("'\" ") for s in scopes.strip("[]").split(",")]
    return _layer_of(node) or (names[-2] if len(names) > 1 else "") or node.op_type.lower()


def _layer_of(node: ir.Node) -> str | None:
    """``conv1`` of a node that reads ``conv1.weight``, whatever lies between them."""
    if node.op_type not in _WEIGHTED:
        return None
    value = node.inputs[1]
    while value is not None and (producer := value.producer()) is not None and producer.inputs:
        value = producer.inputs[0]
    found = re.fullmatch(
        r"(.+?)\.(parametrizations\.)?weight(\.original)?(\.codes)?(\.\d+)?", (value and value.name) or ""
    )
    return found[1] if found else None


def _rename_constants(graph: ir.Graph) -> None:
    """``conv1.weight`` stays; what only quantizers read, or has no name of its own, is counted."""
    constants = list(graph.initializers.values())
    graph.initializers.clear()
    count = 0
    for value in constants:
        name = value.name or ""
        plain = re.sub(r"parametrizations\.(\w+)\.original", r"\1", name).removesuffix(".codes")
        only_quantizers = all(use.node.op_type in _QUANTIZERS for use in value.uses())
        if (only_quantizers and not plain.endswith(".weight")) or _COUNTED.fullmatch(plain):
            plain, count = f"c{count}", count + 1
        while plain in graph.initializers:
            plain += "'"
        value.name = plain
        graph.register_initializer(value)
