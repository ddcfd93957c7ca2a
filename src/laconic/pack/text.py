"""Bytes of any kind, above all a graph without its weights: names, operators, lengths.

Every bit of a byte is predicted from the bits above it together with the last 1, 2, 3, 4 and 6 bytes, the two bytes
before the last, and what followed when the last 5 bytes were seen before (as in PAQ; Mahoney 2005). ``primer.bin`` is
learned before anything is coded: the beginning of a small file is what most of it consists of.
"""

from __future__ import annotations

import functools
from importlib import resources

import numpy as np

from laconic.pack.arithmetic import Coder, Ints, Model, compiled, decide, learner, new_model

_USED = 8  # contexts, of which each has a hashed table of its own; the match has a small one
_INPUT = 1 << 18
_MATCH = 7 * _INPUT
_LONGEST = 31  # lengths of a match that are told apart
_RECENT = 1 << 16  # places that are remembered for matches
_HASHED = 5  # bytes that a match begins with


def new_text() -> Model:
    """A model for :func:`code_text` that has learned the primer."""
    return _primed().copy()


def no_matches() -> Ints:
    """The places that are remembered, before there is one."""
    return np.full(_RECENT, -1, np.int64)


@functools.cache
def _primed() -> Model:
    model = new_model(_MATCH + 130, 5, first=21, limit=30)
    content = np.frombuffer(resources.files("laconic.pack").joinpath("primer.bin").read_bytes(), np.uint8)
    values = content.astype(np.int16)
    code_text(values, len(values), no_matches(), np.zeros(7, np.int64), model, learner())
    return model


@compiled
def code_text(values: Ints, size: int, recent: Ints, hashes: Ints, model: Model, coder: Coder) -> int:
    """Code ``values`` (size,) int16 of bytes, or decode them in place. Scratch: ``recent`` (65536,) int64 of -1,
    ``hashes`` (7,) int64. Returns 0."""
    match, length, missed = -1, 0, 0
    for i in range(size):
        last, second, third = _back(values, i, 1), _back(values, i, 2), _back(values, i, 3)
        fourth, fifth, sixth = _back(values, i, 4), _back(values, i, 5), _back(values, i, 6)
        if match >= 0:  # what differs once is often a name or a number: behind it the match goes on
            missed = missed * 2 & 255
            if values[match] == last:
                length = min(length + 1, _LONGEST)
            else:
                length = 0
                missed |= 1
            match += 1
        if i >= _HASHED:
            place = _hash(_hash(last, second, third, 6), fourth, fifth, 6) & (_RECENT - 1)
            if recent[place] >= 0 and (match < 0 or length < 5):
                if recent[place] != match:
                    missed = 0
                match = recent[place]
                length = max(length, 1)
            recent[place] = i
        expected = values[match] | 256 if match >= 0 else 0
        hashes[0] = last
        hashes[1] = _hash(last, second, 0, 1)
        hashes[2] = _hash(last, second, third, 2)
        hashes[3] = _hash(_hash(last, second, third, 3), fourth, 0, 3)
        hashes[4] = _hash(_hash(last, second, third, 4), _hash(fourth, fifth, sixth, 4), 0, 4)
        hashes[5] = _hash(second, third, 0, 5)
        hashes[6] = _hash(expected, last, 0, 7)
        trust = min(length, 15) * 4 + _ones(missed)
        seen = 1
        for b in range(8):
            for k in range(7):
                model.at[k] = k * _INPUT + ((hashes[k] + seen * 0x3C6EF35F) & 0xFFFFFFFF) % (_INPUT - 1)
            model.at[7] = _MATCH
            row = 0
            if expected >> (8 - b) == seen:
                model.at[7] = _MATCH + 2 * trust + 2 + ((expected >> (7 - b)) & 1)
                row = 1 + min(length, 15) // 4
            bit = (values[i] >> (7 - b)) & 1
            seen = 2 * seen + decide(bit, _USED, row, 0, model, coder)
        values[i] = seen - 256
    return 0


@compiled
def _ones(value: int) -> int:
    """How many of the lowest 8 bits are 1, at most 3."""
    count = 0
    for k in range(8):
        count += (value >> k) & 1
    return min(count, 3)


@compiled
def _back(values: Ints, i: int, n: int) -> int:
    """The byte ``n`` before the ``i``th."""
    return values[i - n] if i >= n else 0


@compiled
def _hash(a: int, b: int, c: int, d: int) -> int:
    mixed = ((((a + 1) * 0x2F0B4F + b + 1) & 0xFFFFFFFF) * 0x1B873593 + (c + 1) * 0x5BD1E995 + d) & 0xFFFFFFFF
    return mixed ^ (mixed >> 15)
