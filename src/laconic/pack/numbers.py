"""Small numbers that say how a weight is coded, and bits that nothing predicts."""

from __future__ import annotations

from laconic.pack.arithmetic import Coder, Ints, Model, code_bit, compiled, decide, new_model

KINDS, _BITS = 8, 48
_HALF = 32768


def new_numbers() -> Model:
    """A model for :func:`code_number` that knows nothing."""
    return new_model(KINDS * _BITS, 1)


@compiled
def code_number(value: int, kind: int, model: Model, coder: Coder) -> int:
    """Code a number from 0 to 2^48 - 2, or decode and return it: exponential Golomb, whose length is learned for each
    of :data:`KINDS` kinds."""
    value += 1
    model.at[0] = kind * _BITS
    bits = 0
    while bits < _BITS - 1 and decide(1 if value >= (2 << bits) else 0, 1, 0, bits, model, coder) == 1:
        bits += 1
    found = 1
    for k in range(bits):
        found = 2 * found + code_bit((value >> (bits - 1 - k)) & 1, _HALF, coder)
    return found - 1


@compiled
def code_plain(values: Ints, size: int, coder: Coder) -> int:
    """Code ``values`` (size,) int16 of bytes as they are, or decode them in place. Returns 0."""
    for i in range(size):
        value = 0
        for b in range(8):
            value = 2 * value + code_bit((values[i] >> (7 - b)) & 1, _HALF, coder)
        values[i] = value
    return 0
