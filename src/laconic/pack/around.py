"""What is around an integer in a matrix of weights: its neighbours, and how large and of which sign they have been.

A matrix has a filter in each row; ``kernel`` columns after each other are one input's, a square of ``side`` by ``side``
where that is possible. Both coders of integers (:mod:`.integers`, :mod:`.dense`) predict from this.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from laconic.pack.arithmetic import Coder, Ints, Model, compiled, decide, new_model

LEFT, BEFORE, ABOVE, BESIDE, UP, BACK, UP_LEFT, UP_RIGHT = range(8)
"""Where ``Around.near`` holds the neighbours; 0 stands for one that there is not. The first four are the integer
before, the one before that, the one in the row above, and the one at the same place of the kernel before; the others
are in the same kernel."""
SIZES, LEVELS, PLACES = 12, 36, 16  # classes of magnitudes and of means; places of a kernel that are told apart
PAIRS = (1 + PLACES) * SIZES * SIZES
_EIGHT = 3**8
_MOST_PATTERN = 2 * _EIGHT
# Where the slots of each context of a sign begin; those of its place are the first.
_BEYOND = PLACES
_INSIDE = _BEYOND + 27 * PLACES
_PATTERNS = _INSIDE + 81 * PLACES
_MEAN = _PATTERNS + _MOST_PATTERN
_SIGN_SLOTS = _MEAN + 2 * LEVELS


class Around(NamedTuple):
    """The tables ``sizes`` and ``levels`` (int16), by which magnitudes are classed; of each column so far, the mean
    magnitude ``means`` and the mean ``signed``, both (columns,) int32 in 1/256; and ``near`` (8,) int64."""

    means: Ints
    signed: Ints
    near: Ints
    sizes: Ints
    levels: Ints

    @classmethod
    def of(cls, columns: int) -> Around:
        means = np.full(columns, 128, np.int32)
        return cls(means, np.zeros(columns, np.int32), np.zeros(8, np.int64), _sizes(), _levels())


def shape_of(rows: int, columns: int, kernel: int, top: int) -> Ints:
    """``shape`` (5,) int64 of a matrix: rows, columns, how many columns are one input's, the largest magnitude, and the
    side of a kernel."""
    side = math.isqrt(kernel)
    return np.array([rows, columns, kernel, top, side if side * side == kernel else kernel], np.int64)


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


def new_signs() -> Model:
    """A model for :func:`code_sign` that knows nothing."""
    return new_model(_SIGN_SLOTS, 1)


@compiled
def look(values: Ints, i: int, c: int, place: int, shape: Ints, around: Around) -> int:
    """Find the neighbours of the ``i``th of ``values``, in column ``c``, which is the ``place``th of its kernel."""
    columns, kernel, side, near = shape[1], shape[2], shape[4], around.near
    near[LEFT] = values[i - 1] if c > 0 else 0
    near[BEFORE] = values[i - 2] if c > 1 else 0
    near[ABOVE] = values[i - columns] if i >= columns else 0
    near[BESIDE] = values[i - kernel] if c >= kernel else 0
    if kernel > 1:
        across = place % side
        near[BACK] = values[i - 1] if across > 0 else 0
        near[UP] = values[i - side] if place >= side else 0
        near[UP_LEFT] = values[i - side - 1] if place >= side and across > 0 else 0
        near[UP_RIGHT] = values[i - side + 1] if place >= side and across + 1 < side else 0
    return 0


@compiled
def pair_of(place: int, kernel: int, around: Around) -> int:
    """Which of :data:`PAIRS` sizes of two neighbours: in the kernel, by place; without a kernel, the two before."""
    near, sizes = around.near, around.sizes
    if kernel == 1:
        two: int = sizes[abs(near[LEFT])] * SIZES + sizes[abs(near[BEFORE])]
        return two
    two = sizes[abs(near[UP])] * SIZES + sizes[abs(near[BACK])]
    return two + (1 + min(place, PLACES - 1)) * SIZES * SIZES


@compiled
def code_sign(negative: int, c: int, place: int, pattern: int, around: Around, model: Model, coder: Coder) -> int:
    """Code or decode whether an integer is negative, 1 if it is; ``pattern`` are the signs in its kernel so far."""
    near, at, place = around.near, model.at, min(place, PLACES - 1)
    beyond = (_sign(near[LEFT]) * 3 + _sign(near[ABOVE])) * 3 + _sign(near[BESIDE])
    inside = ((_sign(near[UP]) * 3 + _sign(near[BACK])) * 3 + _sign(near[UP_LEFT])) * 3 + _sign(near[UP_RIGHT])
    mean = around.signed[c]
    level = around.levels[min(abs(mean), 65535)]
    at[0] = place
    at[1] = _BEYOND + beyond * PLACES + place
    at[2] = _INSIDE + inside * PLACES + place
    at[3] = _PATTERNS + pattern
    at[4] = _MEAN + (level if mean >= 0 else LEVELS + level)
    return decide(negative, 5, 0, 0, model, coder)


@compiled
def next_pattern(pattern: int, value: int) -> int:
    """The signs of the last eight integers in a kernel, to the base 3; at its beginning 1."""
    pattern = pattern * 3 + _sign(value)
    return pattern if pattern < _MOST_PATTERN else pattern % _EIGHT + _EIGHT


@compiled
def _sign(value: int) -> int:
    return 1 if value > 0 else (2 if value < 0 else 0)


@compiled
def follow(value: int, c: int, around: Around) -> int:
    """Let the means of column ``c`` follow ``value``; returns its magnitude in 1/256."""
    means, signed, size = around.means, around.signed, abs(value) << 8
    means[c] = min(means[c] + ((size - means[c]) >> 3), 65535)
    signed[c] += ((value << 8) - signed[c]) >> 5
    return size
