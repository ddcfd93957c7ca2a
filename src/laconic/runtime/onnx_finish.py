"""The finishing of an exported ONNX graph, so that runtimes turn it into integer kernels and nothing is stored twice.

Weights are stored as the integer codes of their quantizer, biases as int32 with scale s_a s_w (a float bias keeps ONNX
Runtime's final Gemm in float: 0.94x), layers that were left in float stay so, zero padding moves into the convolution
behind it (a Pad between two quantizer pairs costs 0.83x), a mean over all of space is called GlobalAveragePool (the
only spelling with an integer kernel), a 1x1 convolution of the pooled map is called Gemm, names are short, and the
exporter's metadata is gone.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import onnx_ir as ir

from laconic.core import Array
from laconic.runtime.onnx_graph import constant_of, drop_unused, initializer
from laconic.runtime.onnx_shorten import shorten

_MOVES = ("MaxPool", "Flatten", "Reshape")
_LARGEST_BIAS = 2**30  # the other half of an int32 is for the products that are added to it


def finish(model: ir.Model) -> None:
    """Bring an exported graph into the form that the runtimes turn into integer kernels; in place."""
    _fold_padding(model.graph)
    _name_global_pooling(model.graph)
    _name_flatten(model.graph)
    _drop_clamps(model.graph)
    for node in list(model.graph):
        if node.op_type == "DequantizeLinear":
            _store_weight(model.graph, node)
    for node in list(model.graph):
        if node.op_type == "Conv":
            _name_linear(model.graph, node)
    for node in list(model.graph):
        if node.op_type in ("Conv", "Gemm"):
            _store_bias(model.graph, node)
            _keep_float(model.graph, node)
    drop_unused(model.graph)
    _share_equal(model.graph)
    shorten(model)


def _store_weight(graph: ir.Graph, dequantize: ir.Node) -> None:
    """QuantizeLinear of a constant becomes the constant's integer codes."""
    source = dequantize.inputs[0]
    quantize = source.producer() if source is not None else None
    if source is None or quantize is None or quantize.op_type != "QuantizeLinear" or len(quantize.inputs) < 3:
        return
    weight, scale, zero = (constant_of(v) for v in quantize.inputs)
    if weight is None or scale is None or zero is None:
        return
    axis = dequantize.attributes["axis"].as_int() if "axis" in dequantize.attributes else 1
    shape = [-1 if d == axis else 1 for d in range(weight.ndim)] if scale.ndim else []
    limits = np.iinfo(zero.dtype)
    codes = np.rint(weight / scale.reshape(shape)) + zero.astype(np.float32).reshape(shape)
    codes = np.clip(codes, -limits.max if limits.min < 0 else 0, limits.max).astype(zero.dtype)
    original = quantize.inputs[0]
    assert original is not None
    dequantize.replace_input_with(0, initializer(graph, f"{original.name}.codes", codes))


def _store_bias(graph: ir.Graph, node: ir.Node) -> None:
    """A float bias behind integer inputs becomes int32 codes with scale s_a s_w, as the integer kernels add it."""
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return
    (_, scale_x), (weight, scale_w) = (_stored(value) for value in node.inputs[:2])
    bias = constant_of(node.inputs[2])
    if scale_x is None or scale_w is None or weight is None or bias is None or bias.dtype != np.float32:
        return
    scale = np.broadcast_to((scale_x * scale_w).astype(np.float32), bias.shape)
    codes = np.rint(bias.astype(np.float64) / scale)
    if np.abs(codes).max(initial=0) > _LARGEST_BIAS:
        _add_bias_apart(graph, node, bias.reshape(-1, *[1] * (weight.ndim - 2)))
        return
    name = node.inputs[2].name
    stored = initializer(graph, f"{name}.codes", codes.astype(np.int32))
    scale_value = initializer(graph, f"{name}.scale", np.array(scale))
    dequantize = ir.node("DequantizeLinear", [stored, scale_value], attributes={"axis": 0})
    node.prepend(dequantize)
    node.replace_input_with(2, dequantize.outputs[0])


def _add_bias_apart(graph: ir.Graph, node: ir.Node, bias: Array) -> None:
    """A bias too large for its integers is added behind, in float: left where it is, ONNX Runtime clips it to them."""
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    value = initializer(graph, f"{node.name}.bias.apart", (bias * beta).astype(np.float32))
    product = _like(ir.Node("", node.op_type, node.inputs[:2], attributes=node.attributes.values()), node)
    add = _like(ir.node("Add", [product.outputs[0], value]), node)
    last = add.outputs[0]
    last.shape, last.type, last.name = node.outputs[0].shape, node.outputs[0].type, node.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, node, [node], [product, add], node.outputs, [last])


def _keep_float(graph: ir.Graph, node: ir.Node) -> None:
    """A layer with float weights behind a quantizer stays one: ONNX Runtime (1.31, WeightBiasQuantization) rounds its
    weights to 8 bits per tensor, unasked, unless what it reads is dequantized with a scale per channel."""
    reader, value = node, node.inputs[0]
    source = value.producer() if value is not None else None
    while source is not None and source.op_type in _MOVES and len(source.outputs[0].uses()) == 1:
        reader, value = source, source.inputs[0]  # the runtime would swap it with what dequantizes
        source = value.producer() if value is not None else None
    if value is None or source is None or source.op_type != "DequantizeLinear" or constant_of(node.inputs[1]) is None:
        return
    scale, zero = (constant_of(constant) for constant in source.inputs[1:3])
    channels = _channels(node, source.inputs[0])
    if scale is None or zero is None or scale.ndim or channels is None:
        return
    spread = [
        initializer(graph, f"{value.name}.{part}", np.full(channels, a))
        for part, a in (("scale", scale), ("zero", zero))
    ]
    dequantize = ir.node("DequantizeLinear", [source.inputs[0], *spread], attributes={"axis": 1})
    reader.prepend(_like(dequantize, source))
    reader.replace_input_with(0, dequantize.outputs[0])


def _channels(node: ir.Node, value: ir.Value | None) -> int | None:
    """The size of axis 1 of what a layer reads: by its shape, where that is known; of a convolution by its weight."""
    if value is not None and value.shape is not None and len(value.shape) > 1 and isinstance(value.shape[1], int):
        return value.shape[1]
    weight = constant_of(node.inputs[1])
    if node.op_type == "Gemm" or weight is None:
        return None
    return int(weight.shape[1]) * (node.attributes["group"].as_int() if "group" in node.attributes else 1)


def _stored(value: ir.Value | None) -> tuple[Array | None, Array | None]:
    """The codes and the scale that ``value`` is dequantized from, as far as they are constants."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None, None
    return constant_of(node.inputs[0]), constant_of(node.inputs[1])


def _fold_padding(graph: ir.Graph) -> None:
    """Zero padding of space in front of convolutions becomes their own padding."""
    for pad in list(graph):
        if pad.op_type != "Pad" or len(pad.inputs) > 3:  # the fourth input names axes
            continue
        amounts = constant_of(pad.inputs[1])
        fill = constant_of(pad.inputs[2]) if len(pad.inputs) > 2 and pad.inputs[2] is not None else np.zeros(1)
        mode = pad.attributes["mode"].as_string() if "mode" in pad.attributes else "constant"
        users = [use.node for use in pad.outputs[0].uses()]
        convolutions = bool(users) and all(u.op_type == "Conv" and "auto_pad" not in u.attributes for u in users)
        if amounts is None or fill is None or np.any(fill) or mode != "constant" or not convolutions:
            continue
        before, after = np.split(amounts, 2)
        if pad.outputs[0].is_graph_output() or before[:2].any() or after[:2].any() or min(*before, *after) < 0:
            continue
        for conv in users:
            spatial = len(before) - 2
            old = conv.attributes["pads"].as_ints() if "pads" in conv.attributes else [0] * (2 * spatial)
            pads = [int(p) + int(extra) for p, extra in zip(old, [*before[2:], *after[2:]], strict=True)]
            conv.attributes["pads"] = ir.AttrInt64s("pads", pads)
            conv.replace_input_with(0, pad.inputs[0])


def _name_global_pooling(graph: ir.Graph) -> None:
    """ReduceMean over every axis of space is GlobalAveragePool, and a Flatten where the axes were dropped.

    The quantizer behind the mean is then put on both sides of the Flatten: between them it is moved, not computed.
    """
    for node in list(graph):
        source, axes = node.inputs[0] if node.inputs else None, _axes_of_mean(node)
        if source is None or source.shape is None or axes is None:
            continue
        rank = len(source.shape)
        if sorted(axis % rank for axis in axes) != list(range(2, rank)):
            continue
        pool = _like(ir.node("GlobalAveragePool", [source]), node)
        chain = [pool]
        if "keepdims" in node.attributes and not node.attributes["keepdims"].as_int():
            users = [use.node for use in node.outputs[0].uses()]
            if len(users) == 1 and users[0].op_type == "QuantizeLinear":
                constants = users[0].inputs[1:]
                quantize = _like(ir.node("QuantizeLinear", [pool.outputs[0], *constants]), node)
                chain += [quantize, _like(ir.node("DequantizeLinear", [quantize.outputs[0], *constants]), node)]
            chain.append(_like(ir.node("Flatten", [chain[-1].outputs[0]]), node))
        last = chain[-1].outputs[0]
        last.shape, last.type, last.name = node.outputs[0].shape, node.outputs[0].type, node.outputs[0].name
        ir.convenience.replace_nodes_and_values(graph, node, [node], chain, node.outputs, [last])


def _name_flatten(graph: ir.Graph) -> None:
    """A Reshape of all axes but the first to one is Flatten: it needs no shape."""
    for node in list(graph):
        source, shape = node.inputs[0] if node.inputs else None, None
        if node.op_type == "Reshape" and node.inputs[1] is not None:
            shape = constant_of(node.inputs[1])
        if source is None or source.shape is None or shape is None or len(shape) != 2 or len(source.shape) < 2:
            continue
        giver = source.producer()
        if giver is not None and giver.op_type == "Squeeze" and len(giver.inputs) < 2:
            continue  # it drops the batch too where that is 1, whatever its shape says
        sizes = [size for size in source.shape[1:] if isinstance(size, int)]
        whole = len(sizes) == len(source.shape) - 1 and math.prod(sizes) == shape[1] > 0
        if whole and shape[0] in (-1, source.shape[0]):
            flatten = _like(ir.node("Flatten", [source]), node)
            last, old = flatten.outputs[0], node.outputs[0]
            last.shape, last.type, last.name = old.shape, old.type, old.name
            ir.convenience.replace_nodes_and_values(graph, node, [node], [flatten], [old], [last])


def _name_linear(graph: ir.Graph, conv: ir.Node) -> None:
    """A 1x1 convolution of the pooled map, in integers, whose floats are only flattened, is Gemm: the one layer that
    ONNX Runtime computes from integers to float. The quantizer in front stands on both sides of its Flatten."""
    read, weight = (value.producer() if value is not None else None for value in conv.inputs[:2])
    users = [use.node for use in conv.outputs[0].uses()]
    if read is None or weight is None or {read.op_type, weight.op_type} != {"DequantizeLinear"}:
        return
    pool = _before(read)
    while pool is not None and pool.op_type in ("QuantizeLinear", "Clip"):  # of codes of fewer bits
        pool = _before(pool)
    codes = constant_of(weight.inputs[0])
    if pool is None or pool.op_type != "GlobalAveragePool" or codes is None or any(_pads(conv)):
        return
    grouped = "group" in conv.attributes and conv.attributes["group"].as_int() != 1
    if grouped or codes[0, 0].size != 1 or len(users) != 1 or users[0].op_type not in ("Flatten", "Reshape", "Squeeze"):
        return
    flatten = _like(ir.node("Flatten", [read.outputs[0]]), users[0])
    again = _like(ir.node("QuantizeLinear", [flatten.outputs[0], *read.inputs[1:]]), read)
    pair = _like(ir.node("DequantizeLinear", [again.outputs[0], *read.inputs[1:]]), read)
    assert weight.inputs[0] is not None
    stored = initializer(graph, str(weight.inputs[0].name), codes.reshape(len(codes), -1))
    matrix = _like(ir.node("DequantizeLinear", [stored, *weight.inputs[1:]], attributes={"axis": 0}), weight)
    gemm = ir.node("Gemm", [pair.outputs[0], matrix.outputs[0], *conv.inputs[2:]], attributes={"transB": 1})
    chain, last, flat = [flatten, again, pair, matrix, _like(gemm, conv)], gemm.outputs[0], users[0].outputs[0]
    last.shape, last.type, last.name = flat.shape, flat.type, flat.name
    ir.convenience.replace_nodes_and_values(graph, conv, [conv, users[0]], chain, [flat], [last])


def _before(node: ir.Node) -> ir.Node | None:
    """What gives a node's first input."""
    return node.inputs[0].producer() if node.inputs[0] is not None else None


def _pads(conv: ir.Node) -> tuple[int, ...]:
    return tuple(conv.attributes["pads"].as_ints()) if "pads" in conv.attributes else ()


def _drop_clamps(graph: ir.Graph) -> None:
    """A clamp or relu in front of codes that are clipped to fewer bits goes where the codes' ends lie within it: ONNX
    Runtime drops it by itself only if all 256 codes do, and keeps the layer before it in float if it does not."""
    for clip in list(graph):
        quantize = clip.inputs[0].producer() if clip.op_type == "Clip" and clip.inputs[0] is not None else None
        clamp = quantize.inputs[0].producer() if quantize is not None and quantize.inputs[0] is not None else None
        if quantize is None or quantize.op_type != "QuantizeLinear" or clamp is None:
            continue
        if clamp.op_type not in ("Clip", "Relu") or len(clamp.outputs[0].uses()) > 1:
            continue
        scale, zero, least, most = (constant_of(v) for v in (*quantize.inputs[1:3], *clip.inputs[1:3]))
        ends = [constant_of(v) for v in clamp.inputs[1:3]] if clamp.op_type == "Clip" else [np.zeros(()), None]
        if scale is None or zero is None or least is None or most is None or scale.ndim:
            continue
        low, high = ends
        first = least if low is None else np.rint(low / scale) + zero
        last = most if high is None else np.rint(high / scale) + zero
        if first <= least and last >= most:
            quantize.replace_input_with(0, clamp.inputs[0])


def _axes_of_mean(node: ir.Node) -> list[int] | None:
    """The axes of a ReduceMean: an input since opset 18, an attribute before."""
    if node.op_type != "ReduceMean":
        return None
    if "axes" in node.attributes:
        return [int(axis) for axis in node.attributes["axes"].as_ints()]
    axes = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if axes is None else [int(axis) for axis in axes.ravel()]


def _like(node: ir.Node, model: ir.Node) -> ir.Node:
    """``node`` with the name and the origin of ``model``."""
    node.name = model.name
    node.metadata_props.update(model.metadata_props)
    return node


def _share_equal(graph: ir.Graph) -> None:
    """Equal constants (scales, zero points, the weights of a layer that is called again) are stored once."""
    seen: dict[tuple[str, bytes], ir.Value] = {}
    for name, value in list(graph.initializers.items()):
        array = constant_of(value)
        if array is None:
            continue
        key = (f"{array.dtype}{array.shape}", hashlib.sha256(array.tobytes()).digest())
        first = seen.setdefault(key, value)
        if first is not value:
            value.replace_all_uses_with(first)
            del graph.initializers[name]
