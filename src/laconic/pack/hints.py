"""How the weights of an ONNX file are made of integers: read from its types and from the nodes that take them apart.

Only the packer asks: what it decides is told in the packed file. Known are int8, uint8, int4 and uint4 weights; the
codes of MatMulNBits; and codes that are digits of numbers, to the base that Mod divides by
(:mod:`laconic.runtime.onnx_codes`, :mod:`laconic.runtime.onnx_codebook`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, numpy_helper

from laconic.core import Array
from laconic.pack.digits import Digits
from laconic.pack.onnx_parts import WIDTHS
from laconic.pack.tensors import Layout, Segment

_TWOS = {int(TensorProto.INT8): 256, int(TensorProto.INT4): 16}
_UNSIGNED = {int(TensorProto.UINT8): 256, int(TensorProto.UINT4): 16}


def layouts(content: bytes) -> dict[str, list[Layout]]:
    """By the name of an initializer, the ways in which it may be made of integers."""
    try:
        graph = onnx.load_model_from_string(content).graph
    except (DecodeError, ValueError):
        return {}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return {name: list(_layouts(tensor, _Reader(constants, users))) for name, tensor in constants.items()}


class _Reader:
    """Follows values through the graph."""

    def __init__(self, constants: dict[str, TensorProto], users: dict[str, list[onnx.NodeProto]]) -> None:
        self.constants = constants
        self.users = users

    def numbers(self, name: str) -> Array | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def follow(self, name: str, kinds: tuple[str, ...]) -> onnx.NodeProto | None:
        """The next node of one of these kinds behind ``name``, through nodes that each have one user."""
        for _ in range(16):
            using = self.users.get(name, [])
            if len(using) != 1:
                return None
            if using[0].op_type in kinds:
                return using[0]
            name = using[0].output[0]
        return None


def _layouts(tensor: TensorProto, reader: _Reader) -> Iterator[Layout]:
    kind = tensor.data_type
    if kind in _TWOS:
        base = _TWOS[kind]
        yield Layout(Digits(1, base, base // 2, twos=True))
    for base, segments in _bases(tensor, reader):
        width = WIDTHS.get(kind, 0)
        if width and len(tensor.raw_data) % width == 0:
            numbers = np.frombuffer(tensor.raw_data, f"<u{width}").astype(np.int64)
            yield Layout(Digits(width, base, _most_frequent(numbers, Digits(width, base, 0, False)), False), segments)


def _bases(tensor: TensorProto, reader: _Reader) -> Iterator[tuple[int, tuple[Segment, ...]]]:
    """The bases to which a weight's numbers are digits, and the matrices of the digits."""
    if tensor.data_type in _UNSIGNED:
        yield _UNSIGNED[tensor.data_type], ()
    for node in reader.users.get(tensor.name, []):
        if node.op_type == "MatMulNBits" and node.input[1] == tensor.name:
            yield 2 ** next((a.i for a in node.attribute if a.name == "bits"), 4), ()
    first = reader.follow(tensor.name, ("Div",))
    last = reader.follow(tensor.name, ("Mod",))
    base = reader.numbers(last.input[1]) if first is not None and last is not None else None
    if last is not None and base is not None and base.size == 1 and 2 <= int(base.item()) <= 256:
        yield int(base.item()), tuple(_segments(last, reader))


def _segments(node: onnx.NodeProto, reader: _Reader) -> Iterator[Segment]:
    """The matrices that the digits behind ``node`` become: one, or several that Split gives."""
    split = reader.follow(node.output[0], ("Split",))
    if split is not None:
        sizes = reader.numbers(split.input[1]) if len(split.input) > 1 else None
        for size, name in zip(sizes.tolist() if sizes is not None else [], split.output, strict=False):
            yield _segment(reader.follow(name, ("Reshape",)), int(size), reader)
        return
    look_up = reader.follow(node.output[0], ("Gather", "GatherElements"))
    table = reader.numbers(look_up.input[0]) if look_up is not None else None
    if look_up is None or table is None:
        return
    shape = _shape(reader.follow(look_up.output[0], ("Reshape",)), reader)
    together = table.shape[1] if look_up.op_type == "Gather" and table.ndim == 2 else 1  # numbers in a sub-vector
    if shape and math.prod(shape) % together == 0:
        yield _matrix(shape, math.prod(shape) // together)


def _segment(reshape: onnx.NodeProto | None, size: int, reader: _Reader) -> Segment:
    shape = _shape(reshape, reader)
    return _matrix(shape, size) if shape and math.prod(shape) == size else Segment(1, size, 1)


def _shape(reshape: onnx.NodeProto | None, reader: _Reader) -> list[int]:
    """The shape that a Reshape gives; empty where it is not said."""
    numbers = reader.numbers(reshape.input[1]) if reshape is not None else None
    found: list[int] = numbers.tolist() if numbers is not None else []
    return found if all(n > 0 for n in found) else []


def _matrix(shape: list[int], size: int) -> Segment:
    rows = shape[0] if size % shape[0] == 0 else 1
    kernel = math.prod(shape[2:])
    columns = size // rows
    return Segment(rows, columns, kernel if columns % kernel == 0 else 1)


def _most_frequent(numbers: Array, form: Digits) -> int:
    """The digit that occurs most often."""
    counts = np.zeros(form.base, np.int64)
    for _ in range(form.digits):
        numbers, digits = np.divmod(numbers, form.base)
        counts += np.bincount(digits, minlength=form.base)
    return int(counts.argmax())
