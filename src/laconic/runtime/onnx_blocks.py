"""Weights rounded in groups, stored as short integers: what ``laconic::fake_quantize_groups`` becomes in an ONNX file.

A product with a constant becomes MatMulNBits (of ONNX Runtime's domain ``com.microsoft``): codes of 2, 4 or 8 bits, a
scale per block of inputs, and kernels that multiply the codes. Its accuracy level is 4, which the file says: ONNX
Runtime rounds the activations to 8 bits, per row and block, while it runs (0.2 to 0.7 % relative error of a layer); at
level 0 it computes in float32 and is slower on all but the smallest layers. OpenVINO reads the same node as compressed
weights. DequantizeLinear -> MatMul says the same in standard ONNX, but needs opset 21, and ONNX Runtime 1.31 overlooks
it where it fuses an activation to the product first. Convolutions, and recurrent layers but for
:mod:`.onnx_recurrent`, have no such kernel: their weights are stored short, and computed in float32.

Scales that float16 holds exactly are stored in it, and a scale per output is stored once: the Cast and the Expand
behind them, like the Mul of a convolution's weights, are computed once, when a runtime opens the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
from onnx.defs import OpSchema
from onnxscript.values import Op, Opset

from laconic.core import Array, Facts
from laconic.fake_quantize import GroupQuantize

_DOMAIN, _NAME = "laconic", "FakeQuantizeGroups"
_LEVELS = ("qmin", "qmax", "group")
RUNTIME_DOMAIN = "com.microsoft"
_ACCURACY_LEVEL = 4
_BLOCK = 32  # of an output that is one group
_INT4_OPSET = 21
_HELPER = "q"  # the name of what is computed when the file is opened, like that of quantizers
_COMPUTED = {"linear": f"MatMulNBits, accuracy level {_ACCURACY_LEVEL}", "other": "float32"}
_SCHEMA = OpSchema(
    _NAME,
    _DOMAIN,
    1,
    inputs=[OpSchema.FormalParameter(name, "tensor(float)") for name in ("x", "scale")],
    outputs=[OpSchema.FormalParameter("y", "tensor(float)")],
    attributes=[OpSchema.Attribute(name, OpSchema.AttrType.INT) for name in _LEVELS],
)
_placeholder = Op(Opset(_DOMAIN, 1), _NAME, _SCHEMA)


def exported(x: Any, scale: Any, qmin: int, qmax: int, group: int) -> Any:
    """The exporter's translation of ``laconic::fake_quantize_groups``, a node that :func:`store` replaces."""
    return _placeholder(x, scale, qmin=qmin, qmax=qmax, group=group)


def place(graph: ir.Graph, node: ir.Node, quantizer: GroupQuantize, transposed: bool) -> None:
    """The same for a ``node`` that is not exported: its weight, (in, out) if ``transposed``, gets a placeholder."""
    weight = node.inputs[1]
    assert weight is not None
    scale = constant(graph, f"{weight.name}.groups", quantizer.scale.numpy())
    levels = {name: getattr(quantizer, name) for name in _LEVELS}
    turn = [ir.node("Transpose", [weight], attributes={"perm": [1, 0]})] if transposed else []
    rounded = ir.node(_NAME, [turn[0].outputs[0] if turn else weight, scale], attributes=levels, domain=_DOMAIN)
    back = [ir.node("Transpose", [rounded.outputs[0]], attributes={"perm": [1, 0]})] if transposed else []
    graph.insert_before(node, [*turn, rounded, *back])
    node.replace_input_with(1, (back or [rounded])[0].outputs[0])


@dataclass(frozen=True)
class Rounded:
    """What a placeholder holds: ``codes`` (out, in, ...) int8 of ``bits`` bits, ``scale`` (out, groups) and the
    weight's ``name``; ``group`` inputs share a scale, all of an output where it is 0."""

    codes: Array
    scale: Array
    bits: int
    group: int
    name: str

    @classmethod
    def of(cls, node: ir.Node) -> Rounded:
        qmin, qmax, group = (node.attributes[name].as_int() for name in _LEVELS)
        weight, name = _weight(node)
        scale = array(node.inputs[1])
        inputs = weight[0].size
        spread = np.repeat(scale, group or inputs, axis=1)[:, :inputs].reshape(weight.shape)
        codes = np.clip(np.rint(weight / spread), qmin, qmax).astype(np.int8)
        return cls(codes, scale, (qmax - qmin).bit_length(), group, name)


def is_placeholder(node: ir.Node | None) -> bool:
    return node is not None and node.domain == _DOMAIN and node.op_type == _NAME


def store(model: ir.Model) -> list[Facts]:
    """Replace every placeholder in ``model``, in place, and say what is stored, for the facts of the file: the ``kind``
    of layer, the ``bits`` of the codes, the ``group`` (0: an output), how many ``layers``, and what they are
    ``computed`` in."""
    rows = []
    for node in [node for node in model.graph if is_placeholder(node)]:
        found, products = Rounded.of(node), _products(node)
        if products:
            _as_products(model, products, found, next(width for width in (2, 4, 8) if found.bits <= width))
        else:
            _as_float(model, node, found)
        kind = "linear" if products else "other"
        rows.append({"kind": kind, "bits": found.bits, "group": found.group, "layers": 1})
    return summed([{**row, "computed": _COMPUTED[str(row["kind"])]} for row in rows])


def summed(rows: Sequence[Facts]) -> list[Facts]:
    """Rows that differ in their number of layers alone, as one."""
    found: dict[tuple[Any, ...], Facts] = {}
    for row in rows:
        key = tuple(value for name, value in row.items() if name != "layers")
        layers = row["layers"] + (found[key]["layers"] if key in found else 0)
        found[key] = {**row, "layers": layers}
    return list(found.values())


def _weight(node: ir.Node) -> tuple[Array, str]:
    """The weight that a placeholder reads, (out, in, ...), and its name."""
    source = node.inputs[0]
    assert source is not None
    turn = source.producer()
    if turn is None:
        return array(source), str(source.name)
    weight = turn.inputs[0]
    assert weight is not None
    return array(weight).T, str(weight.name)


def _products(node: ir.Node) -> list[ir.Node]:
    """The products that read a weight (out, in) as (in, out); none where anything else reads it."""
    found: list[ir.Node] = []
    for use in node.outputs[0].uses():
        turned = use.node.op_type == "Transpose"
        for reader in use.node.outputs[0].uses() if turned else (use,):
            user = reader.node
            if reader.idx != 1 or user.op_type not in ("MatMul", "Gemm"):
                return []
            options = {name: user.attributes[name].value for name in user.attributes}
            if user.op_type == "MatMul":
                plain = turned
            else:
                plain = bool(options.get("transB", 0)) != turned and not options.get("transA", 0)
                plain &= options.get("alpha", 1.0) == options.get("beta", 1.0) == 1.0
            if not plain:
                return []
            found.append(user)
    return found


def _as_products(model: ir.Model, products: list[ir.Node], found: Rounded, bits: int) -> None:
    """A weight, once for all products that read it, each of which becomes MatMulNBits, with its bias."""
    graph, (n, k), half, block = model.graph, found.codes.shape, 2 ** (bits - 1), found.group or _BLOCK
    blocks = -(-k // block)
    full = np.pad(found.codes.astype(np.int16) + half, ((0, 0), (0, blocks * block - k)), constant_values=half)
    packed = constant(graph, f"{found.name}.codes", _packed(full, bits).reshape(n, blocks, block * bits // 8))
    nodes, scales = stored_scale(graph, found.scale, f"{found.name}.scale")
    if found.scale.shape[1] < blocks:  # an output is one group
        shape = constant(graph, f"{found.name}.blocks", np.array([n, blocks], np.int64))
        nodes.append(ir.node("Expand", [scales, shape], name=_HELPER))
        scales = nodes[-1].outputs[0]
    graph.insert_before(products[0], nodes)
    sizes = {"K": k, "N": n, "bits": bits, "block_size": block, "accuracy_level": _ACCURACY_LEVEL}
    for product in products:
        last, bias = product, product.inputs[2] if len(product.inputs) > 2 else None
        uses = list(product.outputs[0].uses())
        if bias is None and len(uses) == 1 and uses[0].node.op_type == "Add":
            added = uses[0].node.inputs[1 - uses[0].idx]
            if added is not None and added.const_value is not None and added.const_value.shape == (n,):
                last, bias = uses[0].node, added
        inputs = [product.inputs[0], packed, scales, *([None, None, bias] if bias is not None else [])]
        made = ir.node("MatMulNBits", inputs, attributes=sizes, domain=RUNTIME_DOMAIN)
        made.name = product.name
        made.metadata_props.update(product.metadata_props)
        out, old = made.outputs[0], last.outputs[0]
        out.shape, out.type, out.name = old.shape, old.type, old.name
        ir.convenience.replace_nodes_and_values(graph, last, list({product, last}), [made], [old], [out])
    model.opset_imports[RUNTIME_DOMAIN] = 1


def _as_float(model: ir.Model, node: ir.Node, found: Rounded) -> None:
    """A weight that becomes float32 when the file is opened."""
    codes, n = found.codes, len(found.codes)
    rest, grouped = 0, found.scale.shape[1] > 1
    if grouped:  # only of a matrix: the last group is filled up
        rest = found.scale.shape[1] * found.group - codes.shape[1]
        codes = np.pad(codes, ((0, 0), (0, rest))).reshape(n, -1, found.group)
    scale = found.scale[..., None] if grouped else found.scale.reshape(-1, *[1] * (codes.ndim - 1))
    nodes, widened = stored_codes(model, codes, f"{found.name}.codes", ir.DataType.FLOAT)
    more, scales = stored_scale(model.graph, scale, f"{found.name}.scale")
    nodes += [*more, ir.node("Mul", [widened, scales], name=_HELPER)]
    if grouped:
        shape = constant(model.graph, f"{found.name}.shape", np.array([n, -1], np.int64))
        nodes.append(ir.node("Reshape", [nodes[-1].outputs[0], shape], name=_HELPER))
    if rest:
        ends = [
            constant(model.graph, f"{found.name}.{end}", np.array([i], np.int64))
            for end, i in (("first", 0), ("last", found.codes.shape[1]), ("axis", 1))
        ]
        nodes.append(ir.node("Slice", [nodes[-1].outputs[0], *ends], name=_HELPER))
    model.graph.insert_before(node, nodes)
    ir.convenience.replace_all_uses_with(node.outputs[0], nodes[-1].outputs[0])


def stored_codes(model: ir.Model, codes: Array, name: str, to: ir.DataType) -> tuple[list[ir.Node], ir.Value]:
    """Codes as a constant, in 4 bits where they fit, and widened ``to`` another type by a Cast: the nodes, and the
    value that they give. Codes of 2, 3, 5 and 6 bits are packed afterwards (:mod:`.onnx_codes`)."""
    opset = model.opset_imports[""]
    short = codes.min(initial=0) >= -8 and codes.max(initial=0) < 8 and opset >= _INT4_OPSET - 1
    if short:  # the newer opset differs from the one before in its types alone
        model.opset_imports[""] = max(opset, _INT4_OPSET)
    stored = constant(model.graph, name, codes.astype(ml_dtypes.int4 if short else np.int8))
    if not short and to == ir.DataType.INT8:
        return [], stored
    widen = ir.node("Cast", [stored], attributes={"to": to}, name=_HELPER)
    return [widen], widen.outputs[0]


def stored_scale(graph: ir.Graph, scale: Array, name: str) -> tuple[list[ir.Node], ir.Value]:
    """A constant of scales, in float16 and a Cast behind it where that holds them exactly."""
    half = scale.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), scale):
        return [], constant(graph, name, scale)
    cast = ir.node("Cast", [constant(graph, name, half)], attributes={"to": ir.DataType.FLOAT}, name=_HELPER)
    return [cast], cast.outputs[0]


def _packed(codes: Array, bits: int) -> Array:
    """Unsigned codes, several in a byte, the first in its lowest bits: (n, k) -> (n, k bits / 8)."""
    parts = codes.astype(np.uint8).reshape(len(codes), -1, 8 // bits)
    shifted = parts << (bits * np.arange(8 // bits, dtype=np.uint8))
    packed: Array = np.bitwise_or.reduce(shifted, axis=-1)
    return packed


def array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    found: Array = value.const_value.numpy()
    return found


def constant(graph: ir.Graph, name: str, number: Array) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(number), name=name)
    value = ir.Value(name=name, shape=ir.Shape(number.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
