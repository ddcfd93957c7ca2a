"""Bytes of any kind by the smaller of two coders: contexts mixed (:mod:`.text`) for up to 4 MiB, and LZMA."""

from __future__ import annotations

import lzma

import numpy as np

from laconic.pack import numbers, text
from laconic.pack.arithmetic import Ints
from laconic.pack.tensors import CorruptError, Stream

_TEXT, _LZMA = range(2)
_METHOD, _SIZE = 6, 7  # the kinds of numbers
_MOST_TEXT = 2**22
_FILTERS = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 2**23}]


def write(stream: Stream, content: bytes) -> int:
    """Append ``content``; the bytes that it took."""
    packed = lzma.compress(content, lzma.FORMAT_RAW, filters=_FILTERS)
    capacity = len(packed) + 64
    trials = [stream.attempt(lambda s: _code_lzma(s, packed), capacity)]
    if len(content) <= _MOST_TEXT:
        trials.append(stream.attempt(lambda s: _code_text(s, content), capacity))
    done = [trial for trial in trials if trial is not None]
    return stream.append(min(done, key=lambda trial: trial.taken))


def read(stream: Stream, size: int) -> bytes:
    """The ``size`` bytes that were appended; raises :class:`CorruptError`."""
    method = stream.number(0, _METHOD)
    if method == _TEXT and size <= _MOST_TEXT:
        return _text(stream, np.zeros(size, np.int16))
    if method == _LZMA:
        packed = stream.number(0, _SIZE)
        if packed <= 2 * size + 64:
            return _unpacked(_plain(stream, np.zeros(packed, np.int16)), size)
    raise CorruptError("the structure is coded in a way that does not exist")


def _code_text(stream: Stream, content: bytes) -> None:
    stream.number(_TEXT, _METHOD)
    _text(stream, np.frombuffer(content, np.uint8).astype(np.int16))


def _text(stream: Stream, values: Ints) -> bytes:
    model = stream.model("text", 0, text.new_text)
    text.code_text(values, len(values), text.no_matches(), np.zeros(7, np.int64), model, stream.coder)
    return values.astype(np.uint8).tobytes()


def _code_lzma(stream: Stream, packed: bytes) -> None:
    stream.number(_LZMA, _METHOD)
    stream.number(len(packed), _SIZE)
    _plain(stream, np.frombuffer(packed, np.uint8).astype(np.int16))


def _plain(stream: Stream, values: Ints) -> bytes:
    numbers.code_plain(values, len(values), stream.coder)
    return values.astype(np.uint8).tobytes()


def _unpacked(packed: bytes, size: int) -> bytes:
    try:
        found = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_FILTERS).decompress(packed, size)
    except lzma.LZMAError as error:
        raise CorruptError("the structure cannot be decompressed") from error
    if len(found) != size:
        raise CorruptError("the structure is shorter than it says")
    return found
