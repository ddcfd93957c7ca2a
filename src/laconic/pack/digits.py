"""Stored numbers as digits, and back: int8 and int4 weights, several codes in a byte, codes to any base in a number.

A number of ``width`` bytes, little-endian and unsigned, holds as many digits to the base K as fit, the lowest first:
one of 8 bits, two of 4, five to the base 3 (Weights of 4 and 2 bits, and codebooks' indices, are stored so.) A digit d
stands for the integer (d + K/2) mod K - K/2 where it is a two's complement, else for d - ``origin``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from laconic.pack.arithmetic import Ints

_BLOCK = 1 << 16  # numbers that are taken apart at once


class Digits(NamedTuple):
    """How a stored number is taken apart."""

    width: int
    base: int
    origin: int
    twos: bool

    @property
    def digits(self) -> int:
        """Digits in a number; four bytes hold what a positive int32 does."""
        end = 2**31 if self.width == 4 else 256**self.width
        count = 1
        while self.base ** (count + 1) <= end:
            count += 1
        return count

    @property
    def top(self) -> int:
        """The largest magnitude of an integer."""
        return max(self.origin, self.base - 1 - self.origin)


def to_digits(payload: bytes, form: Digits) -> Ints | None:
    """The integers (numbers * count,) int16 in ``payload``; None if it holds a number that is too large for digits."""
    numbers = np.frombuffer(payload, f"<u{form.width}")
    count = form.digits
    if len(numbers) and int(numbers.max()) >= form.base**count:
        return None
    values = np.empty((len(numbers), count), np.int16)
    shift = form.base // 2 if form.twos else 0
    for start in range(0, len(numbers), _BLOCK):
        rest = numbers[start : start + _BLOCK].astype(np.int64)
        for k in range(count):
            rest, digit = np.divmod(rest, form.base)
            values[start : start + _BLOCK, k] = (digit + shift) % form.base - form.origin
    return values.ravel()


def from_digits(values: Ints, form: Digits) -> bytes | None:
    """The payload of integers (numbers * count,); None if one is no digit."""
    rows = values.reshape(-1, form.digits)
    numbers = np.empty(len(rows), f"<u{form.width}")
    shift = form.base // 2 if form.twos else 0
    for start in range(0, len(rows), _BLOCK):
        digits = rows[start : start + _BLOCK].astype(np.int64) + form.origin
        if digits.size and (digits.min() < 0 or digits.max() >= form.base):
            return None
        digits = (digits + shift) % form.base  # K is even where it is a two's complement
        numbers[start : start + _BLOCK] = digits @ form.base ** np.arange(form.digits)
    return numbers.tobytes()
