"""Integer weights of 2 to 6 bits: packed in the file, made int8 again when a runtime opens it, computed by the same
kernels.

ONNX has tensors of 4 bits (opset 21) and of 2 (opset 25; OpenVINO 2026.4 does not read them), and nothing between. Here
the codes of a b-bit weight are digits to the base 2^b, or 2^b - 1 where the lowest code, -2^(b-1), does not occur; as
many as fit a number of 16 or of 31 bits, whichever wastes less. In the graph Cast, Div, Mod and Sub take the digits of
all layers of a width apart, Split and Reshape give each layer its codes. All of it is constant: ONNX Runtime and
OpenVINO compute it once, while they open the file, and run the graph that they would have made of int8 codes. (OpenVINO
narrows int64 to int32, so no longer numbers.) 7 bits would gain nothing: four digits to the base 127 fill 28 of 32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from laconic.core import Array, Width
from laconic.runtime.onnx_codebook import digits

_NUMBERS: dict[type[np.unsignedinteger | np.signedinteger], int] = {np.uint16: 2**16, np.int32: 2**31}
"""The numbers that hold digits, and the end of their range; OpenVINO takes uint32 for signed."""
_PACKED = range(2, 7)
_BITS = {ir.DataType.INT8: 8, ir.DataType.INT4: 4}
_LEAST_OPSET = 13
_NODES_BYTES, _LAYER_BYTES = 380, 64  # what the nodes that decode, and a layer's own, weigh themselves, about
_MOST_TOGETHER = 2**22  # codes that are decoded at once: while a file is opened each takes a few times four bytes


def _form(base: int) -> tuple[type[np.unsignedinteger | np.signedinteger], int]:
    """The kind of number that holds most digits to ``base`` per bit, and how many one holds."""
    kind = max(_NUMBERS, key=lambda kind: digits(base, _NUMBERS[kind]) / np.dtype(kind).itemsize)
    return kind, digits(base, _NUMBERS[kind])


def _stored_bits(base: int) -> float:
    kind, count = _form(base)
    return 8 * np.dtype(kind).itemsize / count


WIDTHS = {b: Width(_stored_bits(2**b - 1), _LAYER_BYTES, _NODES_BYTES) for b in _PACKED} | {8: Width(8.0)}
"""What weights with symmetric codes take in the file, by the bits of these; 7 bits gain nothing."""


def store(model: ir.Model) -> dict[str, float]:
    """Pack the int8 and int4 weights of ``model`` whose codes are narrower, in place, where that makes the file
    smaller. Returns the bits that a code takes, by the names of what is stored."""
    graph, stored = model.graph, dict[str, float]()
    if model.opset_imports[""] < _LEAST_OPSET:
        return {}
    names = (f"k{i}" for i in range(10**9))
    taken = {str(value.name) for node in graph for value in node.outputs} | set(graph.initializers)
    fresh = (name for name in names if name not in taken)
    widths: dict[int, list[ir.Value]] = {}
    for value in graph.initializers.values():
        if _holds_codes(value) and (bits := _bits(value)) in _PACKED and _saved([value]) > _LAYER_BYTES:
            widths.setdefault(bits, []).append(value)
    for _, values in sorted(widths.items()):
        for together in _chunks(values):
            if _saved(together) > _NODES_BYTES + _LAYER_BYTES * len(together):
                base = _base(together)
                stored[_pack(graph, together, base, fresh)] = round(_stored_bits(base), 3)
    return stored


def _holds_codes(value: ir.Value) -> bool:
    """Whether a constant holds int8 or int4 codes that are dequantized, or widened, and nothing else."""
    if value.const_value is None or value.const_value.dtype not in _BITS:
        return False
    readers = {(use.node.op_type, use.idx) for use in value.uses()}
    whole = value.const_value.dtype == ir.DataType.INT8  # what becomes int8 may be widened, not dequantized
    return bool(readers) and readers <= {("Cast", 0), *([("DequantizeLinear", 0)] if whole else [])}


def _bits(value: ir.Value) -> int:
    """The least bits of two's complement that hold a constant's codes."""
    codes = _array(value).astype(np.int16)
    return int(np.maximum(codes, ~codes).max(initial=0)).bit_length() + 1


def _base(values: Sequence[ir.Value]) -> int:
    """How many different codes of their bits these constants have: one fewer where the lowest does not occur."""
    levels = 1 << max(map(_bits, values))
    return levels - int(all((_array(value).astype(np.int16) > -levels // 2).all() for value in values))


def _saved(values: Sequence[ir.Value]) -> float:
    """By how many bytes these constants shrink when they are packed together."""
    bits = _stored_bits(_base(values))
    return sum(_array(v).size * (_BITS[v.const_value.dtype] - bits) / 8 for v in values if v.const_value is not None)


def _chunks(values: Sequence[ir.Value]) -> Iterator[list[ir.Value]]:
    """``values`` in groups of at most :data:`_MOST_TOGETHER` codes, or of one."""
    chunk: list[ir.Value] = []
    for value in values:
        if chunk and sum(_array(v).size for v in (*chunk, value)) > _MOST_TOGETHER:
            yield chunk
            chunk = []
        chunk.append(value)
    if chunk:
        yield chunk


def _pack(graph: ir.Graph, values: Sequence[ir.Value], base: int, fresh: Iterator[str]) -> str:
    """Replace ``values`` by one constant and the nodes that decode it; the constant's name."""
    (kind, count), lowest = _form(base), -(base // 2)
    codes = np.concatenate([_array(value).ravel() for value in values]).astype(np.int64) - lowest
    padding = -codes.size % count
    powers = base ** np.arange(count)
    numbers = (np.pad(codes, (0, padding)).reshape(-1, count) @ powers).astype(kind)[:, None]
    made: list[ir.Node] = []

    def node(kind: str, *inputs: ir.Value, outputs: int = 1, **attributes: int) -> list[ir.Value]:
        made.append(ir.node(kind, inputs, attributes=attributes, num_outputs=outputs))
        for value in made[-1].outputs:
            value.name = next(fresh)
        made[-1].name = ""
        return list(made[-1].outputs)

    def constant(array: Array) -> ir.Value:
        return _constant(graph, next(fresh), array)

    value = packed = constant(numbers)
    if kind is not np.int32:
        (value,) = node("Cast", value, to=int(ir.DataType.INT32))
    (value,) = node("Div", value, constant(powers.astype(np.int32)))
    (value,) = node("Mod", value, constant(np.array(base, np.int32)))
    (value,) = node("Sub", value, constant(np.array(-lowest, np.int32)))
    (value,) = node("Cast", value, to=int(ir.DataType.INT8))
    (value,) = node("Reshape", value, constant(np.array([-1])))
    sizes = [_array(value).size for value in values] + [padding] * bool(padding)
    parts = node("Split", value, constant(np.array(sizes)), outputs=len(sizes))
    for part, weight in zip(parts, values, strict=False):  # what is left is padding
        (whole,) = node("Reshape", part, constant(np.array(_array(weight).shape)))
        weight.replace_all_uses_with(whole)
        del graph.initializers[str(weight.name)]
    graph.insert_before(graph[0], made)
    return str(packed.name)


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """A stored constant; shapes that are there already are not stored again."""
    for known in graph.initializers.values():
        if array.dtype != np.int64 or known.const_value is None or known.const_value.dtype != ir.DataType.INT64:
            continue
        if np.array_equal(known.const_value.numpy(), array):
            return known
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
