"""Weights rounded in groups, stored as short integers: what ``laconic::fake_quantize_groups`` becomes in an ONNX file.

A product with a constant becomes MatMulNBits (of ONNX Runtime's domain ``com.microsoft``): codes of 2, 4 or 8 bits, a
scale per block of inputs, and kernels that multiply the codes. Its accuracy level is 4, which the file says: ONNX
Runtime rounds the activations to 8 bits, per row and block, while it runs (0.2 to 0.7 % relative error of a layer); at
level 0 it computes in float32 and is slower on all but the smallest layers. OpenVINO reads the same node as compressed
weights. DequantizeLinear -> MatMul says the same in standard ONNX, but needs opset 21, and ONNX Runtime 1.31 overlooks
it where it fuses an activation to the product first. A convolution has no such kernel: its weights are stored short,
and computed in float32.

Scales that float16 holds exactly are stored in it, and a scale per output is stored once: the Cast and the Expand
behind them, like the Mul of a convolution's weights, are computed once, when a runtime opens the file.
"""

from __future__ import annotations

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
_RUNTIME_DOMAIN = "com.microsoft"
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
    scale = _constant(graph, f"{weight.name}.groups", quantizer.scale.numpy())
    levels = {name: getattr(quantizer, name) for name in _LEVELS}
    turn = [ir.node("Transpose", [weight], attributes={"perm": [1, 0]})] if transposed else []
    rounded = ir.node(_NAME, [turn[0].outputs[0] if turn else weight, scale], attributes=levels, domain=_DOMAIN)
    back = [ir.node("Transpose", [rounded.outputs[0]], attributes={"perm": [1, 0]})] if transposed else []
    graph.insert_before(node, [*turn, rounded, *back])
    node.replace_input_with(1, (back or [rounded])[0].outputs[0])


def store(model: ir.Model) -> list[Facts]:
    """Replace every placeholder in ``model``, in place, and say what is stored, for the facts of the file: the ``kind``
    of layer, the ``bits`` of the codes, the ``stored_bits``, the ``group`` (0: an output), how many ``layers``, and
    what they are ``computed`` in."""
    counts: dict[tuple[str, int, int, int], int] = {}
    for node in [node for node in model.graph if node.domain == _DOMAIN and node.op_type == _NAME]:
        qmin, qmax, group = (node.attributes[name].as_int() for name in _LEVELS)
        bits, products = (qmax - qmin).bit_length(), _products(node)
        weight, name = _weight(node)
        scale = _array(node.inputs[1])
        inputs = weight[0].size
        spread = np.repeat(scale, group or inputs, axis=1)[:, :inputs].reshape(weight.shape)
        codes = np.clip(np.rint(weight / spread), qmin, qmax).astype(np.int8)
        if products:
            stored = next(width for width in (2, 4, 8) if bits <= width)
            _as_products(model, products, codes, scale, group or _BLOCK, stored, name)
        else:
            stored = _as_float(model, node, codes, scale, name)
        row = ("linear" if products else "other", bits, stored, group)
        counts[row] = counts.get(row, 0) + 1
    names = ("kind", "bits", "stored_bits", "group")
    return [
        {**dict(zip(names, row, strict=True)), "layers": count, "computed": _COMPUTED[row[0]]}
        for row, count in counts.items()
    ]


def _weight(node: ir.Node) -> tuple[Array, str]:
    """The weight that a placeholder reads, (out, in, ...), and its name."""
    source = node.inputs[0]
    assert source is not None
    turn = source.producer()
    if turn is None:
        return _array(source), str(source.name)
    weight = turn.inputs[0]
    assert weight is not None
    return _array(weight).T, str(weight.name)


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


def _as_products(
    model: ir.Model, products: list[ir.Node], codes: Array, scale: Array, block: int, bits: int, name: str
) -> None:
    """A weight, once for all products that read it, each of which becomes MatMulNBits, with its bias."""
    graph, (n, k), half = model.graph, codes.shape, 2 ** (bits - 1)
    blocks = -(-k // block)
    full = np.pad(codes.astype(np.int16) + half, ((0, 0), (0, blocks * block - k)), constant_values=half)
    packed = _constant(graph, f"{name}.codes", _packed(full, bits).reshape(n, blocks, block * bits // 8))
    nodes, scales = _stored_scale(graph, scale, f"{name}.scale")
    if scale.shape[1] < blocks:  # an output is one group
        shape = _constant(graph, f"{name}.blocks", np.array([n, blocks], np.int64))
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
        made = ir.node("MatMulNBits", inputs, attributes=sizes, domain=_RUNTIME_DOMAIN)
        made.name = product.name
        made.metadata_props.update(product.metadata_props)
        out, old = made.outputs[0], last.outputs[0]
        out.shape, out.type, out.name = old.shape, old.type, old.name
        ir.convenience.replace_nodes_and_values(graph, last, list({product, last}), [made], [old], [out])
    model.opset_imports[_RUNTIME_DOMAIN] = 1


def _as_float(model: ir.Model, node: ir.Node, codes: Array, scale: Array, name: str) -> int:
    """A weight that becomes float32 when the file is opened; how many bits it is stored in."""
    graph, opset = model.graph, model.opset_imports[""]
    fits = codes.min(initial=0) >= -8 and codes.max(initial=0) <= 7
    short = fits and opset >= _INT4_OPSET - 1  # which differs from the one before in its types alone
    if short:
        model.opset_imports[""] = max(opset, _INT4_OPSET)
    stored = _constant(graph, f"{name}.codes", codes.astype(ml_dtypes.int4 if short else np.int8))
    nodes, scales = _stored_scale(graph, scale.reshape(-1, *[1] * (codes.ndim - 1)), f"{name}.scale")
    widen = ir.node("Cast", [stored], attributes={"to": ir.DataType.FLOAT}, name=_HELPER)
    weight = ir.node("Mul", [widen.outputs[0], scales], name=_HELPER)
    graph.insert_before(node, [*nodes, widen, weight])
    ir.convenience.replace_all_uses_with(node.outputs[0], weight.outputs[0])
    return 4 if short else 8


def _stored_scale(graph: ir.Graph, scale: Array, name: str) -> tuple[list[ir.Node], ir.Value]:
    """A constant of scales, in float16 and a Cast behind it where that holds them exactly."""
    half = scale.astype(np.float16)
    if not np.array_equal(half.astype(np.float32), scale):
        return [], _constant(graph, name, scale)
    cast = ir.node("Cast", [_constant(graph, name, half)], attributes={"to": ir.DataType.FLOAT}, name=_HELPER)
    return [cast], cast.outputs[0]


def _packed(codes: Array, bits: int) -> Array:
    """Unsigned codes, several in a byte, the first in its lowest bits: (n, k) -> (n, k bits / 8)."""
    parts = codes.astype(np.uint8).reshape(len(codes), -1, 8 // bits)
    shifted = parts << (bits * np.arange(8 // bits, dtype=np.uint8))
    packed: Array = np.bitwise_or.reduce(shifted, axis=-1)
    return packed


def _array(value: ir.Value | None) -> Array:
    assert value is not None
    assert value.const_value is not None
    array: Array = value.const_value.numpy()
    return array


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
