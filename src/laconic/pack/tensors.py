"""One weight after the other through one arithmetic coder: each by the method that makes it smallest.

A method is tried on copies of what the models know; the one that wrote least is kept, with what it has learned. So
every weight of a file is coded with what was learned from those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeVar, cast

import numpy as np

from laconic.pack import dense, elements, huffman, integers, numbers
from laconic.pack.arithmetic import (
    DECODE,
    END,
    FULL,
    MODE,
    PENDING,
    POSITION,
    Coder,
    Ints,
    Model,
    decoder,
    encoder,
    finished,
)
from laconic.pack.around import Around, shape_of
from laconic.pack.digits import Digits, from_digits, to_digits
from laconic.pack.onnx_parts import WIDTHS, Part

METHODS = ("plain", "bytes in context", "integers in context", "dense integers", "Huffman", "Huffman with runs")
_PLAIN, _ELEMENTS, _INTEGERS, _DENSE, _HUFFMAN, _RUNS = range(6)
_IN_CONTEXT, _BY_CODE = (_INTEGERS, _DENSE), (_HUFFMAN, _RUNS)
_METHOD, _BASE, _ORIGIN, _SEGMENTS, _SHAPE, _NOISE = range(6)  # the kinds of numbers
_MOST_SEGMENTS, _MOST_AXES = 4096, 8
_SPARE = 64  # bytes that a method may take beyond the weight's own
_SLOWER = {_INTEGERS: 1 / 256, _ELEMENTS: 1 / 128}
"""How much smaller than dense integers has to be what decodes twice as slowly, or four times."""
_DENSE_FROM = 16  # the largest magnitude from which on a weight's integers may be dense
M = TypeVar("M", Model, integers.Models)


class CorruptError(ValueError):
    """The content is not what was written."""


class Segment(NamedTuple):
    """A matrix among the integers of a weight: ``kernel`` columns are one input's."""

    rows: int
    columns: int
    kernel: int


class Layout(NamedTuple):
    """How a weight may be taken apart into integers; without ``segments`` it has the shape that the file says."""

    digits: Digits
    segments: tuple[Segment, ...] = ()


class Stream:
    """An arithmetic coder and the models that its content was coded with."""

    def __init__(self, coder: Coder, models: dict[tuple[str, int], Model | integers.Models]) -> None:
        self.coder = coder
        self._models = models
        self._borrowed: dict[tuple[str, int], Model | integers.Models] = {}
        self._written: list[bytes] = []

    @classmethod
    def writing(cls) -> Stream:
        return cls(encoder(0), {})

    @classmethod
    def reading(cls, content: bytes) -> Stream:
        return cls(decoder(content), {})

    def model(self, kind: str, key: int, new: Callable[[], M]) -> M:
        """The model of this kind and key; one that knows nothing if there is none."""
        name = (kind, key)
        if name not in self._models:
            self._models[name] = self._borrowed[name].copy() if name in self._borrowed else new()
        return cast(M, self._models[name])

    def number(self, value: int, kind: int) -> int:
        """Code a small number, or decode and return it."""
        return int(numbers.code_number(value, kind, self.model("numbers", 0, numbers.new_numbers), self.coder))

    def attempt(self, write: Callable[[Stream], object], capacity: int) -> Stream | None:
        """What ``write`` would append, in at most ``capacity`` bytes; this stream is not changed."""
        kept_back = 2 * int(self.coder.state[PENDING])
        coder = Coder(self.coder.state.copy(), np.zeros(capacity + kept_back, np.uint8))
        coder.state[POSITION], coder.state[END] = 0, capacity + kept_back
        trial = Stream(coder, {})
        trial._borrowed = {**self._borrowed, **self._models}
        write(trial)
        return None if coder.state[FULL] else trial

    def append(self, trial: Stream) -> int:
        """Go on from a trial; the bytes that it wrote."""
        size = trial.taken - 2 * int(self.coder.state[PENDING])
        self._written.append(trial.coder.content[: trial.coder.state[POSITION]].tobytes())
        self.coder = trial.coder
        self._models |= trial._models
        return size

    def finished(self) -> bytes:
        """All that was appended, and its end."""
        self.coder.state[POSITION] = 0
        return b"".join(self._written) + finished(self.coder)

    @property
    def is_reading(self) -> bool:
        return bool(self.coder.state[MODE] == DECODE)

    @property
    def taken(self) -> int:
        """Bytes that this trial wrote, or keeps back."""
        return int(self.coder.state[POSITION] + 2 * self.coder.state[PENDING])

    @property
    def size(self) -> int:
        """Bytes that were appended."""
        return sum(map(len, self._written))


def write(stream: Stream, payload: bytes, part: Part, layouts: Sequence[Layout]) -> tuple[int, str]:
    """Append a weight by the method that makes it smallest; the bytes that it took, and the method's name."""
    ways: list[tuple[int, Callable[[Stream], object]]] = [
        (_PLAIN, lambda s: _plain(s, _bytes(payload))),
        (_ELEMENTS, lambda s: _elements(s, _bytes(payload), part)),
    ]
    for layout in layouts:
        values = to_digits(payload, layout.digits)
        if values is not None:
            methods = (_INTEGERS, *(_DENSE,) * (layout.digits.top >= _DENSE_FROM), *_BY_CODE)
            ways += [(m, partial(_write_integers, m, part, layout, values)) for m in methods]

    def attempt(method: int, way: Callable[[Stream], object]) -> Stream | None:
        def whole(trial: Stream) -> None:
            trial.number(method, _METHOD)
            way(trial)

        return stream.attempt(whole, len(payload) + len(payload) // 8 + _SPARE)

    trials = [(method, attempt(method, way)) for method, way in ways]
    done = [(_cost(method, trial), method, trial) for method, trial in trials if trial is not None]
    _, method, best = min(done, key=lambda found: found[:2])
    return stream.append(best), METHODS[method]


def _cost(method: int, trial: Stream) -> float:
    return trial.taken * (1 + _SLOWER.get(method, 0))


def read(stream: Stream, part: Part) -> bytes:
    """A weight; raises :class:`CorruptError`."""
    method = stream.number(0, _METHOD)
    if method == _PLAIN:
        return _plain(stream, np.zeros(part.size, np.int16))
    if method == _ELEMENTS:
        return _elements(stream, np.zeros(part.size, np.int16), part)
    if method in (*_IN_CONTEXT, *_BY_CODE):
        return _read_integers(method, stream, part)
    raise CorruptError("a weight is coded by a method that does not exist")


def _bytes(payload: bytes) -> Ints:
    return np.frombuffer(payload, np.uint8).astype(np.int16)


def _plain(stream: Stream, values: Ints) -> bytes:
    numbers.code_plain(values, len(values), stream.coder)
    return values.astype(np.uint8).tobytes()


def _elements(stream: Stream, values: Ints, part: Part) -> bytes:
    width = WIDTHS[part.kind]
    count = len(values) // width
    noise = stream.number(0 if stream.is_reading else elements.noise_in(values, width), _NOISE)
    model = stream.model("elements", width, elements.new_elements)
    elements.code_elements(values, count, width, _segment(part, count).columns, noise, model, stream.coder)
    return values.astype(np.uint8).tobytes()


def _write_integers(method: int, part: Part, layout: Layout, values: Ints, stream: Stream) -> None:
    digits, segments = layout
    stream.number(2 * (digits.base - 2) + digits.twos, _BASE)
    stream.number(digits.origin, _ORIGIN)
    if method not in _IN_CONTEXT:
        _huffman(method, stream, values + digits.origin, digits)
        return
    if len(segments) > _MOST_SEGMENTS or sum(s.rows * s.columns for s in segments) > len(values):
        segments = ()
    stream.number(len(segments), _SEGMENTS)
    for segment in segments:
        for number in segment:
            stream.number(number, _SHAPE)
    _integers(method, stream, values.copy(), part, digits, segments)


def _read_integers(method: int, stream: Stream, part: Part) -> bytes:
    base, origin = stream.number(0, _BASE), stream.number(0, _ORIGIN)
    digits = Digits(WIDTHS[part.kind], 2 + base // 2, origin, bool(base % 2))
    if digits.base > 256 or origin >= digits.base or (digits.twos and digits.base % 2):
        raise CorruptError("a weight's integers are of a form that does not exist")
    values = np.zeros(part.size // digits.width * digits.digits, np.int16)
    if method in _IN_CONTEXT:
        segments = _read_segments(stream)
        if sum(s.rows * s.columns for s in segments) > len(values):
            raise CorruptError("a weight's matrices are larger than the weight")
        _integers(method, stream, values, part, digits, segments)
    else:
        _huffman(method, stream, values, digits)
        values -= digits.origin
    payload = from_digits(values, digits)
    if payload is None:
        raise CorruptError("a weight holds an integer that has no code")
    return payload


def _read_segments(stream: Stream) -> list[Segment]:
    count = stream.number(0, _SEGMENTS)
    if count > _MOST_SEGMENTS:
        raise CorruptError("a weight is made of too many matrices")
    return [Segment(*(stream.number(0, _SHAPE) for _ in Segment._fields)) for _ in range(count)]


def _integers(
    method: int, stream: Stream, values: Ints, part: Part, digits: Digits, segments: Sequence[Segment]
) -> None:  # fmt: skip
    """Code ``values``, or decode them in place."""
    done, key = 0, digits.base.bit_length()
    for rows, columns, kernel in matrices(part, segments, len(values)):
        if not rows * columns:
            continue
        if not 1 <= kernel <= columns:
            raise CorruptError("a weight's matrix has a kernel that is larger than its rows")
        here = values[done : done + rows * columns]
        shape, around = shape_of(rows, columns, kernel, digits.top), Around.of(columns)
        if method == _DENSE:
            dense.code_dense(here, shape, around, stream.model("dense", key, dense.new_dense), stream.coder)
        else:
            models = stream.model("integers", key, integers.new_integers)
            integers.code_integers(here, shape, around, models, stream.coder)
        done += rows * columns


def _huffman(method: int, stream: Stream, values: Ints, digits: Digits) -> None:
    """Code the symbols ``values``, from 0 to the base less one, or decode them in place; with their codes' lengths."""
    size, origin = len(values), digits.origin
    if stream.is_reading:
        runs, counts = np.zeros(huffman.RUNS, np.int64), np.zeros(digits.base, np.int64)
    elif method == _RUNS:
        runs, counts = huffman.run_counts(values, origin, digits.base)
    else:
        runs, counts = np.zeros(huffman.RUNS, np.int64), np.bincount(values, minlength=digits.base)
    try:
        codes = [_code(stream, c) for c in ((runs, counts) if method == _RUNS else (counts,))]
    except ValueError as error:
        raise CorruptError("a weight's Huffman code is none") from error
    if method == _RUNS:
        failed = huffman.code_runs(values, size, origin, codes[0], codes[1], stream.coder)
    else:
        failed = huffman.code_symbols(values, size, codes[0], stream.coder)
    if failed:
        raise CorruptError("a weight's Huffman code has no such word")


def _code(stream: Stream, counts: Ints) -> huffman.Code:
    lengths = huffman.lengths_of(counts)
    huffman.code_lengths(lengths, len(lengths), stream.coder)
    return huffman.Code.of(lengths)


def matrices(part: Part, segments: Sequence[Segment], count: int) -> tuple[Segment, ...]:
    """The matrices of a weight of ``count`` integers, in their order; what no segment holds is one more, of one row."""
    rest = count - sum(s.rows * s.columns for s in segments)
    return (*segments, Segment(1, rest, 1)) if segments else (_segment(part, count),)


def _segment(part: Part, count: int) -> Segment:
    """The shape of a weight of so many numbers: its first axis are the rows, the third and more the kernel."""
    dims = part.dims
    if not 1 <= len(dims) <= _MOST_AXES or not dims[0] or count % dims[0]:
        return Segment(1, max(count, 1), 1)
    columns, kernel = count // dims[0], math.prod(dims[2:])
    return Segment(dims[0], columns, kernel if 0 < kernel <= columns and columns % kernel == 0 else 1)
