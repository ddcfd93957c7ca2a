"""Integer codes of weights: zero or not, sign, magnitude, each predicted from the weights around it.

The binarisation is that of DeepCABAC (Wiedemann et al. 2019, arXiv 1907.11900): a zero flag, the sign, then the
magnitude: how many bits it has, in unary, and the bits below its first. Where DeepCABAC has one context per decision,
here up to seven are mixed: the weights before, the same place of the filter before, how large this filter's weights and
this column's (the same input and place, in all filters) have been so far, and what is near.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from laconic.pack.arithmetic import Coder, Ints, Model, compiled, decide, new_model

MOST = 255  # the largest magnitude
_UNARY = 16  # from this largest magnitude on, its number of bits is coded in binary
_DETAILED = 3  # how many bits below the first are predicted from what is around
_ZERO, _SIGN, _LENGTH, _BELOW, _FINE = 0, 1, 2, 10, 80
_NODES = 128  # decisions that are told apart
_SIZES, _LEVELS, _PLACES = 12, 36, 32
_SIGNED = _PLACES * _NODES  # from the contexts of positive weights to those of negative ones
# Where the slots of each context begin; those of the place in the kernel, by sign, are the first.
_ROW = 2 * _SIGNED
_LEFT = _ROW + _LEVELS * _NODES
_COLUMN = _LEFT + _SIZES * _SIZES * _NODES
_ABOVE = _COLUMN + _LEVELS * _NODES
_AROUND = _ABOVE + _SIZES * _SIZES * _NODES
_BOTH = _AROUND + _LEVELS * _NODES
_SIGNS = _BOTH + _LEVELS * _LEVELS // 4 * _NODES
_SLOTS = _SIGNS + 27 * _PLACES


def new_integers() -> Model:
    """A model for :func:`code_integers` that knows nothing."""
    return new_model(_SLOTS, _NODES)


@functools.cache
def _sizes() -> Ints:
    """Twelve classes of magnitudes up to 255."""
    return np.searchsorted([1, 2, 3, 4, 5, 7, 10, 15, 23, 41, 81], np.arange(256), side="right").astype(np.int16)


@functools.cache
def _levels() -> Ints:
    """Classes of mean magnitudes, in 1/256: two for each doubling."""
    x = np.arange(65536)
    bits = sum((x >> i > 0).astype(np.int64) for i in range(16))
    return (2 * bits + np.where(bits > 1, x >> np.maximum(bits - 2, 0) & 1, 0)).astype(np.int16)


class Around(NamedTuple):
    """What magnitudes are classed by: the tables ``sizes`` and ``levels`` (int16), and the mean of each column so far,
    ``means`` (columns,) int32."""

    means: Ints
    sizes: Ints
    levels: Ints

    @classmethod
    def of(cls, columns: int) -> Around:
        return cls(np.empty(columns, np.int32), _sizes(), _levels())


@compiled
def code_integers(values: Ints, shape: Ints, around: Around, model: Model, coder: Coder) -> int:
    """Code ``values`` (rows * columns,) int16, or decode them in place. ``shape`` (4,) int64 holds the rows, the
    columns, how many columns are one input's, and the largest magnitude. Returns 0."""
    rows, columns, kernel, top = shape[0], shape[1], shape[2], shape[3]
    means, sizes, levels = around.means, around.sizes, around.levels
    at = model.at
    mean, near = 128, 128  # magnitudes in 1/256: of the row before, of the last few weights
    for c in range(columns):
        means[c] = 128
    for r in range(rows):
        total, count = 4 * mean, 4
        for c in range(columns):
            i = r * columns + c
            left = values[i - 1] if c > 0 else 0
            before = values[i - 2] if c > 1 else 0
            above = values[i - columns] if r > 0 else 0
            beside = values[i - kernel] if c >= kernel else 0
            row, column = levels[min(total // count, 65535)], levels[means[c]]
            nearby = min((2 * abs(left) + abs(before) + 2 * abs(above) + abs(beside)) * 43, 65535)
            place = min(c % kernel, _PLACES - 1)
            at[0] = place * _NODES
            at[1] = _ROW + row * _NODES
            at[2] = _LEFT + (sizes[abs(left)] * _SIZES + sizes[abs(before)]) * _NODES
            at[3] = _COLUMN + column * _NODES
            at[4] = _ABOVE + (sizes[abs(above)] * _SIZES + sizes[abs(beside)]) * _NODES
            at[5] = _AROUND + levels[nearby] * _NODES
            at[6] = _BOTH + ((levels[near] >> 1) * (_LEVELS // 2) + (column >> 1)) * _NODES
            value = 0
            if decide(1 if values[i] != 0 else 0, 7, _ZERO, _ZERO, model, coder) == 1:
                signs = (_sign(left) * 3 + _sign(above)) * 3 + _sign(beside)
                negative = _code_sign(1 if values[i] < 0 else 0, signs * _PLACES + place, model, coder)
                magnitude = _code_magnitude(abs(values[i]), negative, top, model, coder)
                value = -magnitude if negative == 1 else magnitude
            values[i] = value
            size = abs(value) << 8
            total += size
            count += 1
            near = min(near + ((size - near) >> 3), 65535)
            means[c] = min(means[c] + ((size - means[c]) >> 3), 65535)
        mean = total // count
    return 0


@compiled
def _sign(value: int) -> int:
    return 1 if value > 0 else (2 if value < 0 else 0)


@compiled
def _code_sign(negative: int, around: int, model: Model, coder: Coder) -> int:
    """1 for a negative weight; ``around`` are the signs around it and its place."""
    kept = model.at[2]
    model.at[2] = _SIGNS + around - _SIGN
    negative = decide(negative, 3, _SIGN, _SIGN, model, coder)
    model.at[2] = kept
    return negative


@compiled
def _code_magnitude(magnitude: int, negative: int, top: int, model: Model, coder: Coder) -> int:
    """A magnitude from 1 to at most twice ``top`` less one."""
    model.at[0] += negative * _SIGNED
    bits = 0  # below the first
    if top < _UNARY:
        while (2 << bits) <= top:
            more = decide(1 if magnitude >= (2 << bits) else 0, 7, _LENGTH + bits, _LENGTH + bits, model, coder)
            if more == 0:
                break
            bits += 1
    else:
        while (magnitude >> bits) > 1:
            bits += 1
        seen = 1
        for k in range(3):
            seen = 2 * seen + decide((bits >> (2 - k)) & 1, 7, _LENGTH + seen, _LENGTH + seen, model, coder)
        bits = seen - 8
    found = 1
    for k in range(bits):
        rest = bits - 1 - k
        if k < _DETAILED:
            node, used = _BELOW + 8 * bits + found, 4
        else:
            node, used = _FINE + 5 * bits + rest, 2
        found = 2 * found + decide((magnitude >> rest) & 1, used, node, node, model, coder)
    return found
