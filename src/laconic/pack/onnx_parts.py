"""An ONNX file as its structure and its weights, without a library: which bytes of it are the weights' own.

The file is a protobuf message: fields, each a number and a kind in front of its value (see docs/format.md). Weights are
the ``raw_data`` of a graph's initializers. They are cut out, and everything else, the lengths included, stays as it is;
so whoever walks over what is left meets the same places in the same order, and can put the weights back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_GRAPH, _INITIALIZER, _DIMS, _TYPE, _NAME, _RAW = 7, 5, 1, 2, 8, 9  # the numbers of the fields, from onnx.proto
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
LEAST = 4  # bytes of a weight that is cut out
WIDTHS = {1: 4, 2: 1, 3: 1, 4: 2, 5: 2, 6: 4, 10: 2, 12: 4, 16: 2, 21: 1, 22: 1}
"""Bytes that are one number, by TensorProto.DataType: float, (u)int8, (u)int16, int32, float16, uint32, bfloat16, and
(u)int4, two in a byte. Other types, such as the int64 of shapes, stay in the structure."""
INT4, INT8 = 22, 3


@dataclass(frozen=True)
class Part:
    """A weight: ``at`` the place of its bytes, ``size`` how many; ``kind`` its DataType."""

    at: int
    size: int
    kind: int
    dims: tuple[int, ...]
    name: bytes


class MalformedError(ValueError):
    """Not a protobuf message, or one whose lengths do not fit each other."""


@dataclass
class _Walk:
    """Reads fields; ``hidden`` bytes of the file are not in ``content`` (they were cut out before ``at``)."""

    content: bytes
    is_cut: bool
    at: int = 0
    hidden: int = 0

    def varint(self) -> int:
        value = 0
        for shift in range(0, 64, 7):
            if self.at >= len(self.content):
                raise MalformedError("it ends inside a number")
            byte = self.content[self.at]
            self.at += 1
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise MalformedError("a number of more than 64 bits")

    def fields(self, end: int) -> Iterator[tuple[int, int, int]]:
        """The number, the kind and the value (bytes: the end) of each field up to ``end``, a place in the whole file.
        Whoever takes a field of bytes moves past it or leaves ``at`` at its beginning, to be moved here."""
        while self.at + self.hidden < end:
            tag = self.varint()
            kind = tag & 7
            if kind == _VARINT:
                yield tag >> 3, kind, self.varint()
            elif kind == _BYTES:
                size = self.varint()
                begin = self.at + self.hidden
                stop = begin + size
                if stop > end:
                    raise MalformedError("a field is longer than what holds it")
                yield tag >> 3, kind, stop
                if self.at + self.hidden == begin:
                    self.at += size
            elif kind in (_FIXED32, _FIXED64):
                self.at += 4 if kind == _FIXED32 else 8
            else:
                raise MalformedError("a field of a kind that does not exist")
            if self.at > len(self.content):
                raise MalformedError("it ends inside a field")
        if self.at + self.hidden != end:
            raise MalformedError("a field is longer than what holds it")

    def graph(self, end: int) -> Iterator[Part]:
        for number, kind, stop in self.fields(end):
            if (number, kind) == (_INITIALIZER, _BYTES):
                yield from self.tensor(stop)

    def tensor(self, end: int) -> Iterator[Part]:
        dims: list[int] = []
        data_type, name = 0, b""
        for number, kind, value in self.fields(end):
            if number == _DIMS and kind == _VARINT:
                dims.append(value)
            elif number == _DIMS and kind == _BYTES:
                while self.at + self.hidden < value:
                    dims.append(self.varint())
            elif (number, kind) == (_TYPE, _VARINT):
                data_type = value
            elif (number, kind) == (_NAME, _BYTES):
                name = self.content[self.at : value - self.hidden]
            elif (number, kind) == (_RAW, _BYTES):
                size = value - self.at - self.hidden
                if size < LEAST or size % WIDTHS.get(data_type, size + 1):
                    continue
                yield Part(self.at, size, data_type, tuple(dims), name)
                if self.is_cut:
                    self.hidden += size
                else:
                    self.at += size


def parts(content: bytes) -> list[Part]:
    """The weights in an ONNX file, in its order; raises :class:`MalformedError`."""
    return list(_parts(_Walk(content, is_cut=False), len(content)))


def places(structure: bytes, whole_size: int) -> list[Part]:
    """The same, from the structure of a file of ``whole_size`` bytes, ``at`` counted in the structure."""
    return list(_parts(_Walk(structure, is_cut=True), whole_size))


def _parts(walk: _Walk, end: int) -> Iterator[Part]:
    for number, kind, stop in walk.fields(end):
        if (number, kind) == (_GRAPH, _BYTES):
            yield from walk.graph(stop)
