"""Numbers as bytes, the highest first: floats, 32-bit integers, and symbols without an order.

A byte is coded from its highest bit down, each bit predicted from the bits above it together with: the byte's place in
its number, the bytes above it, the same byte of the number before, of the one above (the same column of the row before)
and of the column. Exponents of neighbouring floats are alike, and so are the upper bytes of neighbouring integers; what
is noise costs eight bits.
"""

from __future__ import annotations

import numpy as np

from laconic.pack.arithmetic import Coder, Ints, Model, code_bit, compiled, decide, new_model

_NODES = 256  # bits of a byte that were seen, with a 1 before them
_BLOCKS = 1024  # contexts that one input tells apart
_INPUT = _NODES * _BLOCKS
_USED = 6
WIDEST = 4  # bytes of a number
_ENOUGH, _NOISE_BITS = 8192, 7.98  # numbers whose entropy can be told, and from which on a byte is noise


def new_elements() -> Model:
    """A model for :func:`code_elements` that knows nothing."""
    return new_model(_USED * _INPUT, WIDEST * 8)


def noise_in(values: Ints, width: int) -> int:
    """Which bytes of numbers (numbers * width,) nothing can be said of: their entropy is nearly 8 bits. A bit each."""
    found = 0
    for plane in range(width):
        counts = np.bincount(values[plane::width], minlength=256)
        shares = counts[counts > 0] / counts.sum()
        if counts.sum() >= _ENOUGH and -(shares * np.log2(shares)).sum() > _NOISE_BITS:
            found |= 1 << plane
    return found


@compiled
def code_elements(values: Ints, numbers: int, width: int, columns: int, noise: int, model: Model, coder: Coder) -> int:
    """Code ``values`` (numbers * width,) int16, bytes of little-endian numbers, or decode them in place. ``columns``
    numbers are a row. Bytes whose bit in ``noise`` is set are coded as they are. Returns 0."""
    at = model.at
    for n in range(numbers):
        for k in range(width):
            plane = width - 1 - k
            i = n * width + plane
            higher = values[i + 1] if k > 0 else 0
            highest = values[i + 2] if k > 1 else 0
            left = values[i - width] if n > 0 else 0
            before = values[i - 2 * width] if n > 1 else 0
            above = values[i - columns * width] if n >= columns else 0
            at[0] = plane * _NODES
            at[1] = _INPUT + (plane * 256 + higher) * _NODES
            at[2] = 2 * _INPUT + (plane * 256 + left) * _NODES
            at[3] = 3 * _INPUT + (plane * 256 + above) * _NODES
            at[4] = 4 * _INPUT + _block(plane, higher, left, highest) * _NODES
            at[5] = 5 * _INPUT + _block(plane, left, before, n % columns if width == 1 else higher) * _NODES
            seen = 1
            for b in range(8):
                bit = (values[i] >> (7 - b)) & 1
                if (noise >> plane) & 1 == 1:
                    seen = 2 * seen + code_bit(bit, 32768, coder)
                    continue
                seen = 2 * seen + decide(bit, _USED, plane * 8 + b, seen, model, coder)
            values[i] = seen - 256
    return 0


@compiled
def _block(a: int, b: int, c: int, d: int) -> int:
    """A number below 1,024 of four."""
    mixed = (((a * 257 + b) * 257 + c) * 257 + d) & 0xFFFFFFFF
    return ((mixed * 0x2C1B3C6D) & 0xFFFFFFFF) >> 22
