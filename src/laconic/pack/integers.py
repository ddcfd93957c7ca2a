"""Integer codes of weights: zero or not, sign, magnitude, each predicted from the weights around it.

The binarisation is that of DeepCABAC (Wiedemann et al. 2019, arXiv 1907.11900): a zero flag, the sign, then the
magnitude: how many bits it has, in unary, and the bits below its first. Where DeepCABAC has one context per decision,
here up to eight are mixed: the weights before, those beside and above it in its kernel, the same place of the filter
before, how large this filter's weights and this column's (the same input and place, in all filters) have been so far,
and which weights of the kernel are not zero.
"""

from __future__ import annotations

from typing import NamedTuple

from laconic.pack.arithmetic import Coder, Ints, Model, code_bits, compiled, decide, new_model
from laconic.pack.around import (
    ABOVE,
    BEFORE,
    BESIDE,
    LEFT,
    LEVELS,
    PAIRS,
    PLACES,
    SIZES,
    Around,
    code_sign,
    follow,
    look,
    new_signs,
    next_pattern,
    pair_of,
)  # fmt: skip

MOST = 255  # the largest magnitude
_UNARY = 16  # from this largest magnitude on, its number of bits is coded in binary
_DETAILED = 3  # how many bits below the first are predicted from what is around
_USED = 8
_ZERO, _LENGTH, _BELOW = 0, 1, 9
_NODES = 80  # decisions that are told apart
_MASKS = 1024
# Where the slots of each context begin; those of the place in the kernel, by sign, are the first.
_ROW = 2 * PLACES * _NODES
_PAIR = _ROW + LEVELS * _NODES
_COLUMN = _PAIR + PAIRS * _NODES
_ABOVE = _COLUMN + LEVELS * _NODES
_NEARBY = _ABOVE + SIZES * SIZES * _NODES
_BOTH = _NEARBY + LEVELS * _NODES
_MASK = _BOTH + LEVELS * LEVELS // 2 * _NODES
_SLOTS = _MASK + _MASKS * _NODES


class Models(NamedTuple):
    """What predicts magnitudes, and what predicts signs."""

    sizes: Model
    signs: Model

    def copy(self) -> Models:
        return Models(self.sizes.copy(), self.signs.copy())


def new_integers() -> Models:
    """Models for :func:`code_integers` that know nothing."""
    return Models(new_model(_SLOTS, _NODES, limit=127), new_signs())


@compiled
def code_integers(values: Ints, shape: Ints, around: Around, models: Models, coder: Coder) -> int:
    """Code ``values`` (rows * columns,) int16, or decode them in place; ``shape`` as :func:`.around.shape_of` gives it.
    Returns 0."""
    rows, columns, kernel, top = shape[0], shape[1], shape[2], shape[3]
    levels, model = around.levels, models.sizes
    mean, near = 128, 128  # magnitudes in 1/256: of the row before, of the last few weights
    for r in range(rows):
        total, count, i = 4 * mean, 4, r * columns
        place, inside, mask, signs = 0, 0, 1, 1  # in the kernel: the magnitudes so far, which are not zero, the signs
        for c in range(columns):
            look(values, i, c, place, shape, around)
            lately = near if kernel == 1 else min((inside << 8) // (place + 1), 65535)
            _contexts(place, c, levels[min(total // count, 65535)], levels[lately], shape, around, model)
            model.at[7] = _MASK + mask * _NODES
            value = 0
            if decide(1 if values[i] != 0 else 0, _USED, _ZERO, _ZERO, model, coder) == 1:
                negative = code_sign(1 if values[i] < 0 else 0, c, place, signs, around, models.signs, coder)
                magnitude = _code_magnitude(abs(values[i]), negative, top, model, coder)
                value = -magnitude if negative == 1 else magnitude
            values[i] = value
            size = follow(value, c, around)
            total += size
            count += 1
            near = min(near + ((size - near) >> 3), 65535)
            i += 1
            place += 1
            inside += abs(value)
            mask = 2 * mask + (1 if value != 0 else 0)
            mask = mask if mask < _MASKS else mask % (_MASKS // 2) + _MASKS // 2
            signs = next_pattern(signs, value)
            if place == kernel:
                place, inside, mask, signs = 0, 0, 1, 1
        mean = total // count
    return 0


@compiled
def _contexts(
    place: int, c: int, row: int, lately: int, shape: Ints, around: Around, model: Model
) -> int:  # fmt: skip
    """Where the slots of the first seven contexts begin. Returns 0."""
    at, near, sizes, levels = model.at, around.near, around.sizes, around.levels
    column = levels[around.means[c]]
    left, before, above, beside = abs(near[LEFT]), abs(near[BEFORE]), abs(near[ABOVE]), abs(near[BESIDE])
    at[0] = min(place, PLACES - 1) * _NODES
    at[1] = _ROW + row * _NODES
    at[2] = _PAIR + pair_of(place, shape[2], around) * _NODES
    at[3] = _COLUMN + column * _NODES
    at[4] = _ABOVE + (sizes[above] * SIZES + sizes[beside]) * _NODES
    at[5] = _NEARBY + levels[min((2 * left + before + 2 * above + beside) * 43, 65535)] * _NODES
    at[6] = _BOTH + ((lately >> 1) * LEVELS + column) * _NODES
    return 0


@compiled
def _code_magnitude(magnitude: int, negative: int, top: int, model: Model, coder: Coder) -> int:
    """A magnitude from 1 to at most twice ``top`` less one."""
    model.at[0] += negative * PLACES * _NODES
    bits = 0  # below the first
    if top < _UNARY:
        while (2 << bits) <= top:
            more = decide(1 if magnitude >= (2 << bits) else 0, _USED, _LENGTH + bits, _LENGTH + bits, model, coder)
            if more == 0:
                break
            bits += 1
    else:
        while (magnitude >> bits) > 1:
            bits += 1
        seen = 1
        for k in range(3):
            seen = 2 * seen + decide((bits >> (2 - k)) & 1, _USED, _LENGTH + seen, _LENGTH + seen, model, coder)
        bits = seen - 8
    found = 1
    while bits > 0 and found < (1 << _DETAILED):
        node = _BELOW + 8 * bits + found
        bits -= 1
        found = 2 * found + decide((magnitude >> bits) & 1, 4, node, node, model, coder)
    return (found << bits) + code_bits(magnitude & ((1 << bits) - 1), bits, coder) if bits > 0 else found
