"""Binary arithmetic coding with mixed adaptive probabilities: one decision at a time, integers throughout.

A decision is predicted by several contexts, each with an adaptive probability of its own. The predictions are mixed in
the logistic domain by weights that are learned on the way (Mahoney 2005, "Adaptive weighing of context models for
lossless data compression"):

    p = squash(sum_i w_i s_i),  s_i = stretch(p_i) = ln(p_i / (1 - p_i)),  w_i += rate (bit - p) s_i,
    p_i += (bit - p_i) / (n_i + c)

and p drives a carry-less arithmetic coder (Rissanen and Langdon 1979, "Arithmetic coding"). Coding and decoding are one
code, so that both learn the same. There is no float, neither here nor in the making of the tables: a file decodes to
the same bytes on every machine.

What is :func:`compiled` is compiled by numba when it is first called, and kept in numba's cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
Ints = np.ndarray[Any, np.dtype[Any]]


def compiled(function: F) -> F:
    """``function`` as machine code; it may use integers, arrays of integers with one axis, and tuples of these."""
    return cast(F, numba.njit(cache=True)(function))


ENCODE, DECODE, LEARN = range(3)
LOW, HIGH, CODE, POSITION, END, MODE, FULL = range(7)
"""Where ``Coder.state`` holds the interval, what was read of the code, the place in the content, its end, what is done,
and whether the content was too short for what was written."""

INPUTS = 8  # contexts of one decision, at most
UNKNOWN = 1 << 29  # a slot: 20 bits of probability, 10 bits of how often it was used; this one is 1/2 and never was
_WEIGHT = 13107  # the mixing weights at first, of 65,536
_REACH = 2815  # of the logistic domain, in 1/256: probabilities down to 1/65,536
_STEP = 64  # squash is linear between its multiples
_EDGE = 32  # how near a probability comes to 0 and to 1, of 2^20


class Coder(NamedTuple):
    """``state`` (7,) int64, see :data:`LOW`; ``content`` (bytes,) uint8, written or read."""

    state: Ints
    content: Ints


class Model(NamedTuple):
    """What was learned, ``slots`` and ``weights`` (rows * (INPUTS + 1),) int32, a row's last being how often it was
    used; two scratch arrays (INPUTS,) int64, ``at`` the slots of a decision and ``inputs``; and the tables."""

    slots: Ints
    weights: Ints
    at: Ints
    inputs: Ints
    squash: Ints
    stretch: Ints
    pace: Ints

    def copy(self) -> Model:
        """The same knowledge, learning apart from now on."""
        return self._replace(slots=self.slots.copy(), weights=self.weights.copy())


def new_model(slots: int, rows: int, first: int = 30, limit: int = 255) -> Model:
    """A model that knows nothing, with so many slots, and rows of mixing weights. A probability that was used n times
    moves by 1 / (n + first/20), at least by 1 / (limit + first/20)."""
    weights = np.full((rows, INPUTS + 1), _WEIGHT, np.int32)
    weights[:, INPUTS] = 0
    scratch = np.zeros((2, INPUTS), np.int64)
    return Model(np.full(slots, UNKNOWN, np.int32), weights.ravel(), scratch[0], scratch[1], *_tables(first, limit))


@functools.cache
def _tables(first: int, limit: int) -> tuple[Ints, Ints, Ints]:
    """Squash: 16-bit probabilities by logistic value + reach; stretch: its inverse, by a probability's upper 12 bits;
    pace: how far a probability moves, of 65,536, by how often it was used."""
    with localcontext() as exact:
        exact.prec = 20  # decimal numbers are rounded by a standard, the same everywhere
        places = range(-_REACH - 1, _REACH + 2 * _STEP, _STEP)
        anchors = np.array([int(65536 / (1 + (Decimal(-place) / 256).exp())) for place in places])
    x = np.arange(2 * _REACH + 1) + 1
    low, high = anchors[x // _STEP], anchors[x // _STEP + 1]
    squash = np.clip(low + (high - low) * (x % _STEP) // _STEP, 1, 65535)
    stretch = np.clip(np.searchsorted(squash, np.arange(4096) * 16 + 8) - _REACH, -_REACH, _REACH)
    pace = 65536 * 20 // (20 * np.minimum(np.arange(1024), limit) + first)
    return squash.astype(np.int32), stretch.astype(np.int32), pace.astype(np.int32)


# ---------------------------------------------------------------------------------------------------- one decision


@compiled
def decide(bit: int, used: int, row: int, node: int, model: Model, coder: Coder) -> int:
    """Code ``bit``, or decode and return it, by the contexts ``model.at[:used]``: where each one's slots begin, of
    which a decision takes the one at ``node``. ``row`` says which weights mix them."""
    base = row * (INPUTS + 1)
    total = 0
    for i in range(used):
        s = model.stretch[model.slots[model.at[i] + node] >> 18]
        model.inputs[i] = s
        total += model.weights[base + i] * s
    p = model.squash[min(max(total >> 16, -_REACH), _REACH) + _REACH]
    bit = code_bit(bit, p, coder)
    seen = model.weights[base + INPUTS]
    model.weights[base + INPUTS] = min(seen + 1, 255)
    error = ((bit << 16) - p) * (6 + 240 // (seen + 12))
    goal = bit << 20
    for i in range(used):
        model.weights[base + i] += (model.inputs[i] * error + (1 << 19)) >> 20
        slot = model.slots[model.at[i] + node]
        seen = slot & 1023
        known = slot >> 10
        known += ((goal - known) * model.pace[seen]) >> 16
        model.slots[model.at[i] + node] = (min(max(known, _EDGE), (1 << 20) - _EDGE) << 10) | min(seen + 1, 1023)
    return bit


@compiled
def code_bit(bit: int, p: int, coder: Coder) -> int:
    """Code ``bit``, or decode and return it; ``p`` of 65,536, neither 0 nor all, is the probability that it is 1."""
    state = coder.state
    if state[MODE] == LEARN:
        return bit
    low, high = state[LOW], state[HIGH]
    width = high - low
    middle = low + (width >> 16) * p + (((width & 0xFFFF) * p) >> 16)
    if state[MODE] == DECODE:
        bit = 1 if state[CODE] <= middle else 0
    if bit == 1:
        high = middle
    else:
        low = middle + 1
    while ((low ^ high) & 0xFF000000) == 0:
        at = state[POSITION]
        if state[MODE] == ENCODE:
            if at < state[END]:
                coder.content[at] = high >> 24
            else:
                state[FULL] = 1
        else:
            following = coder.content[at] if at < state[END] else 0
            state[CODE] = ((state[CODE] << 8) & 0xFFFFFFFF) | following
        state[POSITION] = at + 1
        low = (low << 8) & 0xFFFFFFFF
        high = ((high << 8) & 0xFFFFFFFF) | 255
    state[LOW] = low
    state[HIGH] = high
    return bit


# ------------------------------------------------------------------------------------------------ beginning and end


def encoder(capacity: int) -> Coder:
    """A coder that writes at most ``capacity`` bytes; ``state[FULL]`` is 1 if it wanted more."""
    return Coder(np.array([0, 0xFFFFFFFF, 0, 0, capacity, ENCODE, 0], np.int64), np.zeros(capacity, np.uint8))


def decoder(content: bytes) -> Coder:
    """A coder that reads ``content``, and zeros behind its end."""
    first = int.from_bytes(content[:4].ljust(4, b"\0"), "big")
    state = np.array([0, 0xFFFFFFFF, first, 4, len(content), DECODE, 0], np.int64)
    return Coder(state, np.frombuffer(bytearray(content), np.uint8))  # of the type that the encoder has


def learner() -> Coder:
    """A coder that writes nothing: models learn what is given to it."""
    return Coder(np.array([0, 0xFFFFFFFF, 0, 0, 0, LEARN, 0], np.int64), np.zeros(0, np.uint8))


def finished(coder: Coder) -> bytes:
    """What was written, ended by as few bytes as tell the last interval from all others, zeros following."""
    low, high = int(coder.state[LOW]), int(coder.state[HIGH])
    last = b""
    for kept in range(5):
        unit = 1 << (32 - 8 * kept)
        value = -(-low // unit) * unit
        if value <= high:
            last = value.to_bytes(4, "big")[:kept]
            break
    return coder.content[: coder.state[POSITION]].tobytes() + last
