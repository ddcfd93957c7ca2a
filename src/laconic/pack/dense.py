"""Integer codes of many bits, of which few are zero: fewer decisions than :mod:`.integers` takes, for faster decoding.

The number of a magnitude's bits takes three decisions, each predicted by four contexts mixed; then come the sign, two
bits by one context each, and the rest, which nothing predicts, at once.
"""

from __future__ import annotations

from laconic.pack.arithmetic import Coder, Ints, Model, code_bits, compiled, decide, decide_alone, new_model
from laconic.pack.around import (
    LEVELS,
    PAIRS,
    Around,
    code_sign,
    follow,
    look,
    new_signs,
    next_pattern,
    pair_of,
)  # fmt: skip
from laconic.pack.integers import Models

_USED = 4
_LONG, _BELOW = 8, 9  # the nodes of a magnitude above 127, and of the bits below the first
_NODES = 40  # decisions that are told apart
# Where the slots of each context begin; those of the mean of the row are the first.
_COLUMN = LEVELS * _NODES
_NEAR = _COLUMN + LEVELS * _NODES
_PAIR = _NEAR + LEVELS * _NODES
_SLOTS = _PAIR + PAIRS * _NODES


def new_dense() -> Models:
    """Models for :func:`code_dense` that know nothing."""
    return Models(new_model(_SLOTS, _NODES), new_signs())


@compiled
def code_dense(values: Ints, shape: Ints, around: Around, models: Models, coder: Coder) -> int:
    """Code ``values`` (rows * columns,) int16, or decode them in place; ``shape`` as :func:`.around.shape_of` gives it.
    Returns 0."""
    rows, columns, kernel = shape[0], shape[1], shape[2]
    levels, at = around.levels, models.sizes.at
    mean, near = 128, 128  # magnitudes in 1/256: of the row before, of the last few weights
    for r in range(rows):
        total, count, i = 4 * mean, 4, r * columns
        place, signs = 0, 1
        for c in range(columns):
            look(values, i, c, place, shape, around)
            at[0] = levels[min(total // count, 65535)] * _NODES
            at[1] = _COLUMN + levels[around.means[c]] * _NODES
            at[2] = _NEAR + levels[near] * _NODES
            at[3] = _PAIR + pair_of(place, kernel, around) * _NODES
            value = _code_magnitude(abs(values[i]), models.sizes, coder)
            if value > 0 and code_sign(1 if values[i] < 0 else 0, c, place, signs, around, models.signs, coder) == 1:
                value = -value
            values[i] = value
            size = follow(value, c, around)
            total += size
            count += 1
            near = min(near + ((size - near) >> 3), 65535)
            i += 1
            place += 1
            signs = next_pattern(signs, value)
            if place == kernel:
                place, signs = 0, 1
        mean = total // count
    return 0


@compiled
def _code_magnitude(magnitude: int, model: Model, coder: Coder) -> int:
    """A magnitude from 0 to 255."""
    length = 0  # how many bits it has, at most 7
    while length < 7 and (magnitude >> length) > 0:
        length += 1
    seen = 1
    for k in range(3):
        seen = 2 * seen + decide((length >> (2 - k)) & 1, _USED, seen, seen, model, coder)
    length = seen - 8
    if length == 7:
        length += decide_alone(1 if magnitude > 127 else 0, model.at[0] + _LONG, model, coder)
    if length <= 1:
        return length
    found, rest, node = 1, length - 1, model.at[0] + _BELOW + 4 * (length - 2)
    while rest > 0 and found < 4:
        rest -= 1
        found = 2 * found + decide_alone((magnitude >> rest) & 1, node + found, model, coder)
    return (found << rest) + code_bits(magnitude & ((1 << rest) - 1), rest, coder)
