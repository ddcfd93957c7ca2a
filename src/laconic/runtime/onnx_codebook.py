"""Weights of few different values, stored as small codes and a codebook, and made float32 again when a runtime opens
the file: the file is small, the computation is as fast as that of any float file.

Whichever step gave a weight few values (k-means, product quantization, ternary or binary weights), here they are found
in the weight itself: single numbers of which a layer has at most 256, or each output channel has, or sub-vectors.
What is decoded is what was there, to the bit. Of numbers that a hash spreads, the placeholder says how many there are
(:mod:`.onnx_hashed`).

A weight that a shorter float holds exactly is stored in that, where it takes fewer bytes (:mod:`.onnx_floats`).

Codes below K are digits of numbers to the base K, as many as fit 16 bits: 1 bit each for K = 2, 1.6 for 3, 2 for 4, 4
for 16, 5.3 for 32. (Not 32 bits: OpenVINO 2026.4 takes them for signed.) In the graph Cast, Div and Mod take the digits
apart, Gather looks them up, Reshape gives the weight's shape. All of it is constant, so ONNX Runtime and OpenVINO
compute it once, while they open the file; 4-bit tensor types would need a newer opset and serve 16 values only.

While a model is exported such a weight is hidden in a placeholder, ``laconic::Weight``: the exporter would multiply the
batch norm behind it into its channels, and few values would become many. That batch norm is folded here, as a factor
per channel.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from laconic.core import Array
from laconic.runtime import onnx_floats, onnx_hashed
from laconic.runtime.onnx_floats import ShortFloat, shortest
from laconic.runtime.onnx_graph import constant_of, initializer
from laconic.runtime.onnx_hashed import Hashed

_DOMAIN, _NAME, _HASHED = "laconic", "Weight", "hashed"
_LEAST_OPSET = 13
_MOST_ENTRIES = 256
_LONGEST = 25  # numbers in a sub-vector: a kernel of 5 x 5
_SAMPLE = 4096
_PREDICTED = 0.75  # of their entropy, about, is what codes in order take
_NODES_BYTES = 500  # what the nodes that decode a weight, and their constants, weigh themselves, about
_INT64 = ir.DataType.INT64


def hidden(weight: Tensor, hashed: int) -> Tensor:
    """``weight`` as the exporter is to see it: in a placeholder, which :func:`store` replaces, and which says over how
    many numbers the weight is ``hashed``."""
    name, shape = f"{_DOMAIN}::{_NAME}", tuple(weight.shape)
    return torch.onnx.ops.symbolic(name, (weight,), {_HASHED: hashed}, dtype=weight.dtype, shape=shape, version=1)


def place(graph: ir.Graph, node: ir.Node, transposed: bool, hashed: int) -> None:
    """The same for a ``node`` that is not exported: its weight, (in, out) if ``transposed``, gets a placeholder."""
    weight = node.inputs[1]
    assert weight is not None
    if transposed:  # channels first, as every step has them
        held = constant_of(weight)
        assert held is not None
        weight = initializer(graph, str(weight.name), held.T)
    chain = [ir.node(_NAME, [weight], domain=_DOMAIN, attributes={_HASHED: hashed})]
    if transposed:
        chain.append(ir.node("Transpose", [chain[-1].outputs[0]], attributes={"perm": [1, 0]}))
    graph.insert_before(node, chain)
    node.replace_input_with(1, chain[-1].outputs[0])


# ---------------------------------------------------------------------------------------------------------- batch norms


def fold_norms(model: ir.Model) -> None:
    """Fold the batch norm behind each convolution whose weight is hidden: w = w g, b = (b - m) g + beta with
    g = gamma / sqrt(v + eps)."""
    for node in _placeholders(model):
        source = node.inputs[0]
        assert source is not None
        node.outputs[0].const_value = source.const_value  # a constant, for whoever finishes the graph
    for node in list(model.graph):
        if node.op_type == "BatchNormalization":
            _fold_norm(model.graph, node)


def _fold_norm(graph: ir.Graph, norm: ir.Node) -> None:
    conv = norm.inputs[0].producer() if norm.inputs[0] is not None else None
    if conv is None or conv.op_type != "Conv" or len(list(conv.outputs[0].uses())) > 1:
        return
    weight, constants = conv.inputs[1], [_array(value) for value in norm.inputs[1:]]
    if weight is None or not _is_placeholder(weight.producer()) or conv.outputs[0].is_graph_output():
        return
    old = _array(conv.inputs[2]) if len(conv.inputs) > 2 and conv.inputs[2] is not None else np.zeros(1)
    dense = _array(weight)
    if old is None or dense is None or any(array is None for array in constants):
        return
    gamma, beta, mean, variance = (np.asarray(array, np.float64) for array in constants)
    eps = norm.attributes["epsilon"].as_float() if "epsilon" in norm.attributes else 1e-5
    gain = gamma / np.sqrt(variance + eps)
    factor = gain.reshape(-1, *[1] * (dense.ndim - 1)).astype(np.float32)
    bias = ((old - mean) * gain + beta).astype(np.float32)
    multiply = ir.node("Mul", [weight, initializer(graph, f"{_stem(weight)}.gain", factor)])
    multiply.outputs[0].const_value = ir.tensor(dense * factor)
    inputs = [conv.inputs[0], multiply.outputs[0], initializer(graph, f"{_stem(weight)}.bias", bias)]
    folded = ir.Node("", "Conv", inputs, attributes=conv.attributes.values(), name=conv.name)
    folded.metadata_props.update(conv.metadata_props)
    last = folded.outputs[0]
    last.shape, last.type, last.name = norm.outputs[0].shape, norm.outputs[0].type, norm.outputs[0].name
    ir.convenience.replace_nodes_and_values(graph, norm, [norm], [multiply, folded], norm.outputs[:1], [last])
    graph.remove(conv, safe=True)


# -------------------------------------------------------------------------------------------------------------- storing


@dataclass(frozen=True)
class Form:
    """How a weight is stored: ``codes`` (...) into ``table``, which is (K,) of single numbers, (channels, K) of single
    numbers by output channel, or (K, d) of sub-vectors."""

    codes: Array
    table: Array
    by_channel: bool = False

    @property
    def entries(self) -> int:
        return int(self.table.shape[1 if self.by_channel else 0])

    @property
    def size_bytes(self) -> int:
        return int(self.table.nbytes + 2 * -(-self.codes.size // digits(self.entries)))

    @property
    def packed_bytes(self) -> float:
        """About what an entropy coder makes of it: the entropy of the codes, and the table. Codes of single numbers are
        in their numbers' order, from which it predicts them (:mod:`laconic.pack.integers`)."""
        counts = np.bincount(self.codes.ravel())
        shares = counts[counts > 0] / self.codes.size
        entropy = -float((shares * np.log2(shares)).sum())
        return float(self.table.nbytes) + (_PREDICTED if self.table.ndim == 1 else 1) * self.codes.size * entropy / 8


def store(model: ir.Model) -> dict[str, float]:
    """Replace every placeholder in ``model``, in place: by codes and a codebook, or by a shorter float, where that is
    smaller, else by the weight as it is. Returns the bits per weight of those with a codebook, this included, by the
    weights' names."""
    writer, stored = _Writer(model), {}
    nodes: dict[ir.Value, list[ir.Node]] = {}  # a layer that is called again has a placeholder for each call
    for node in _placeholders(model):
        assert node.inputs[0] is not None
        nodes.setdefault(node.inputs[0], []).append(node)
    for source, hiding in nodes.items():
        name, array, result = str(source.name), _array(source), source
        scaled = [use.node for node in hiding for use in node.outputs[0].uses() if use.node.op_type == "Mul"]
        form = None
        if array is not None and model.opset_imports[""] >= _LEAST_OPSET:
            form = smallest(array, hiding[0].attributes[_HASHED].as_int())
        if form is not None and array is not None:
            del model.graph.initializers[name]
            result = writer.decoded(hiding[0], form, array.shape, name)
        if isinstance(form, (Form, Hashed)) and array is not None:
            stored[name] = round(8 * form.size_bytes / array.size, 3)
        for node in scaled:
            node.name, node.outputs[0].name = "", writer.name()
            product = _array(node.outputs[0])
            if form is None and product is not None:
                node.outputs[0].replace_all_uses_with(initializer(model.graph, name, product))
                model.graph.remove(node, safe=True)
        for node in hiding:
            node.outputs[0].replace_all_uses_with(result)
            model.graph.remove(node, safe=True)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and not value.is_graph_output():
            del model.graph.initializers[name]
    model.opset_imports.pop(_DOMAIN, None)
    return stored


def digits(base: int, end: int = 2**16) -> int:
    """How many digits to ``base``, at least 2, a number below ``end`` holds: one of 16 bits if nothing else is said.

    >>> [digits(k) for k in (2, 3, 4, 16, 32, 256)]
    [16, 10, 8, 4, 3, 2]
    """
    return max(count for count in range(1, end.bit_length()) if base**count <= end)


def smallest(weight: Array, hashed: int = 0) -> Form | Hashed | ShortFloat | None:
    """The form in which a float32 weight takes the fewest bytes, or None if that is the weight itself; ``hashed`` as in
    :func:`hidden`."""
    found = [_smallest_shared(weight), onnx_hashed.shared(weight, hashed) if hashed else None]
    short = shortest(weight)
    shared = min((form for form in found if form is not None), key=lambda form: form.size_bytes, default=None)
    most = weight.nbytes if short is None else min(weight.nbytes, short.size_bytes)
    if shared is not None and shared.size_bytes + _NODES_BYTES < most:
        return shared
    return short if short is not None and short.size_bytes < weight.nbytes else None


def _smallest_shared(weight: Array) -> Form | None:
    """The codes and the codebook that take the fewest bytes when they are packed, if the weight has so few values. (In
    the file itself others may take fewer: numbers of a channel of their own, which few weights of a pruned layer share,
    or pairs of them. Packed, their tables cost more than their codes save.)"""
    if weight.dtype != np.float32 or weight.size == 0 or not np.isfinite(weight).all():
        return None
    lengths = [d for d in range(2, _LONGEST + 1) if weight[0].size % d == 0]
    found = [_single(weight), _by_channel(weight), *(_vectors(weight, d) for d in lengths)]
    return min((form for form in found if form is not None), key=lambda form: form.packed_bytes, default=None)


def _single(weight: Array) -> Form | None:
    if len(np.unique(weight.ravel()[:_SAMPLE])) > _MOST_ENTRIES:
        return None
    table, codes = np.unique(weight.ravel(), return_inverse=True)
    return Form(codes, table) if 1 < len(table) <= _MOST_ENTRIES else None


def _by_channel(weight: Array) -> Form | None:
    rows = weight.reshape(len(weight), -1)
    found = []
    for row in rows:
        found.append(np.unique(row, return_inverse=True))
        if len(found[-1][0]) > _MOST_ENTRIES:
            return None
    entries = max(2, *(len(values) for values, _ in found))
    table = np.stack([np.pad(values, (0, entries - len(values)), "edge") for values, _ in found])
    return Form(np.stack([codes for _, codes in found]), table, by_channel=True)


def _vectors(weight: Array, length: int) -> Form | None:
    vectors = np.ascontiguousarray(weight.reshape(-1, length) + np.float32(0))  # -0 is 0, also as bytes
    as_bytes = vectors.view(np.dtype((np.void, 4 * length))).ravel()
    if len(np.unique(as_bytes[:_SAMPLE])) > _MOST_ENTRIES:
        return None
    _, first, codes = np.unique(as_bytes, return_index=True, return_inverse=True)
    return Form(codes, vectors[first]) if 1 < len(first) <= _MOST_ENTRIES else None


class _Writer:
    """Writes the nodes that decode; equal constants are written once, names are short."""

    def __init__(self, model: ir.Model) -> None:
        graph = self.graph = model.graph
        self.model = model
        self.opset = model.opset_imports[""]
        self.constants: dict[tuple[int, ...], ir.Value] = {}
        self.taken = {str(value.name) for node in graph for value in node.outputs} | set(graph.initializers)
        self.hashes: ir.Value | None = None

    def decoded(self, before: ir.Node, form: Form | Hashed | ShortFloat, shape: tuple[int, ...], name: str) -> ir.Value:
        """The weight, decoded by nodes in front of ``before``."""
        if isinstance(form, Form):
            return self._looked_up(before, form, shape, name)
        if isinstance(form, Hashed):
            return self._hashed(before, form, shape, name)
        nodes = onnx_floats.decoded(self.graph, form, name, self.opset)
        self.graph.insert_before(before, nodes)
        for node in nodes:
            node.name, node.outputs[0].name = "", self.name()
        return nodes[-1].outputs[0]

    def _looked_up(self, before: ir.Node, form: Form, shape: tuple[int, ...], name: str) -> ir.Value:
        base, count = form.entries, digits(form.entries)
        padding = -form.codes.size % count
        codes = np.pad(form.codes.ravel(), (0, padding)).reshape(-1, count)
        powers = base ** np.arange(count)
        packed = (codes @ powers).astype(np.uint16)[:, None]
        value = initializer(self.graph, name, packed)
        value = self._node(before, "Cast", value, to=int(_INT64))
        value = self._node(before, "Div", value, self._numbers(*map(int, powers)))
        value = self._node(before, "Mod", value, self._numbers(base))
        if padding:
            value = self._node(before, "Reshape", value, self._numbers(-1))
            value = self._node(before, "Slice", value, self._numbers(0), self._numbers(form.codes.size))
        if form.by_channel:
            value = self._node(before, "Reshape", value, self._numbers(*form.codes.shape))
        table = initializer(self.graph, self.name(), form.table)
        look_up = "GatherElements" if form.by_channel else "Gather"
        value = self._node(before, look_up, table, value, axis=int(form.by_channel))
        return self._node(before, "Reshape", value, self._numbers(*shape))

    def _hashed(self, before: ir.Node, form: Hashed, shape: tuple[int, ...], name: str) -> ir.Value:
        if self.hashes is None:  # of as many places as the largest such weight has
            weights = [_array(n.inputs[0]) for n in _placeholders(self.model) if n.attributes[_HASHED].as_int()]
            most = max(weight.size for weight in weights if weight is not None)
            self.hashes = onnx_hashed.hashes(partial(self._node, self.graph[0]), self._numbers, most)
        node, table = partial(self._node, before), initializer(self.graph, name, form.table)
        value = onnx_hashed.looked_up(node, self._numbers, form, self.hashes, table)
        return node("Reshape", value, self._numbers(*shape))

    def _node(self, before: ir.Node, kind: str, *inputs: ir.Value, **attributes: int) -> ir.Value:
        node = ir.node(kind, inputs, attributes=attributes)
        self.graph.insert_before(before, node)
        node.name, node.outputs[0].name = "", self.name()
        return node.outputs[0]

    def _numbers(self, *numbers: int) -> ir.Value:
        if numbers not in self.constants:
            self.constants[numbers] = initializer(self.graph, self.name(), np.array(numbers, np.int64))
        return self.constants[numbers]

    def name(self) -> str:
        """A short one that nobody has."""
        name = next(name for name in (f"w{i}" for i in range(len(self.taken), 10**9)) if name not in self.taken)
        self.taken.add(name)
        return name


def _is_placeholder(node: ir.Node | None) -> bool:
    return node is not None and node.domain == _DOMAIN and node.op_type == _NAME


def _placeholders(model: ir.Model) -> Iterator[ir.Node]:
    yield from [node for node in model.graph if _is_placeholder(node)]


def _array(value: ir.Value | None) -> Array | None:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _stem(weight: ir.Value) -> str:
    """``conv1`` of a weight hidden in a placeholder."""
    node = weight.producer()
    assert node is not None
    assert node.inputs[0] is not None
    return re.sub(r"(\.parametrizations)?\.weight(\.original)?$", "", str(node.inputs[0].name))
