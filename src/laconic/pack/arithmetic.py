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
import hashlib
from collections.abc import Callable
from decimal import Decimal, localcontext
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numba
import numpy as np

F = TypeVar("F", bound=Callable[..., Any])
Ints = np.ndarray[Any, np.dtype[Any]]


@functools.cache
def _sources() -> str:
    """A hash of the files of this folder."""
    content = b"\0".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    return hashlib.sha256(content).hexdigest()[:12]


def compiled(function: F) -> F:
    """``function`` as machine code; it may use integers, arrays of integers with one axis, and tuples of these. What it
    calls of its kind becomes part of it: arrays need not be handed over at every decision. numba keeps it by the
    function's name and the date of its own file alone, and would go on using it when a function that it calls was
    changed: so the name says what all of this folder is."""
    function.__qualname__ += f"_{_sources()}"
    options: dict[str, Any] = {"cache": True, "forceinline": True, "error_model": "numpy", "no_cfunc_wrapper": True}
    options["_nrt"] = False  # no kernel makes arrays; counting their uses took most of the time
    return cast(F, numba.njit(**options)(function))


ENCODE, DECODE, LEARN = range(3)
LOW, RANGE, CODE, UNIT, PENDING, POSITION, END, MODE, FULL = range(9)
"""Where ``Coder.state`` holds the interval, what was read of the code, the last unit that is not written yet (-1: there
is none) and how many units of ones follow it, the place in the content, its end, what is done, and whether the content
was too short for what was written."""

INPUTS = 8  # contexts of one decision, at most
UNKNOWN = 1 << 29  # a slot: 20 bits of probability, 10 bits of how often it was used; this one is 1/2 and never was
_WEIGHT = 10923  # the mixing weights at first, of 65,536
_REACH = 2815  # of the logistic domain, in 1/256: probabilities down to 1/65,536
_STEP = 64  # squash is linear between its multiples
_MOST, _LEAST = 1 << 47, 1 << 31  # the width of the interval: at first; under which a unit is written
AHEAD = 6  # bytes that a decoder has read of what it has not decoded
_EDGE = 32  # how near a probability comes to 0 and to 1, of 2^20


class Coder(NamedTuple):
    """``state`` (9,) int64, see :data:`LOW`; ``content`` (bytes,) uint8, written or read."""

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
    rate: Ints

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
def _tables(first: int, limit: int) -> tuple[Ints, Ints, Ints, Ints]:
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
    rate = 10 + 240 // (np.arange(256) + 12)
    return squash.astype(np.int32), stretch.astype(np.int16), pace.astype(np.int32), rate.astype(np.int32)


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
    error = ((bit << 16) - p) * model.rate[seen]
    goal = (1 << 20) - _EDGE if bit == 1 else _EDGE
    for i in range(used):
        model.weights[base + i] += (model.inputs[i] * error + (1 << 19)) >> 20
        _learn(goal, model.at[i] + node, model)
    return bit


@compiled
def decide_alone(bit: int, slot: int, model: Model, coder: Coder) -> int:
    """The same by one slot, without weights."""
    bit = code_bit(bit, model.slots[slot] >> 14, coder)
    _learn((1 << 20) - _EDGE if bit == 1 else _EDGE, slot, model)
    return bit


@compiled
def _learn(goal: int, at: int, model: Model) -> int:
    slot = model.slots[at]
    seen, known = slot & 1023, slot >> 10
    known += ((goal - known) * model.pace[seen]) >> 16
    model.slots[at] = (known << 10) | min(seen + 1, 1023)
    return 0


@compiled
def code_bit(bit: int, p: int, coder: Coder) -> int:
    """Code ``bit``, or decode and return it; ``p`` of 65,536, neither 0 nor all, is the probability that it is 1."""
    state = coder.state
    width = state[RANGE]
    part = (width * p) >> 16
    if state[MODE] == DECODE:
        code = state[CODE]
        bit = 1 if code < part else 0
        state[CODE] = code if bit == 1 else code - part
    elif state[MODE] == ENCODE:
        state[LOW] += 0 if bit == 1 else part
    else:
        return bit
    width = part if bit == 1 else width - part
    state[RANGE] = width
    if width < _LEAST:
        _move(coder)
    return bit


@compiled
def code_bits(value: int, count: int, coder: Coder) -> int:
    """Code a number of ``count`` bits, at most 15, or decode and return it; all are as likely."""
    state = coder.state
    part = state[RANGE] >> count
    if state[MODE] == DECODE:
        value = min(state[CODE] // part, (1 << count) - 1)
        state[CODE] -= value * part
    else:
        state[LOW] += value * part
    state[RANGE] = part
    if part < _LEAST:
        _move(coder)
    return value


@compiled
def _move(coder: Coder) -> int:
    """Read or write a unit, and widen the interval."""
    state = coder.state
    state[RANGE] <<= 16
    if state[MODE] == DECODE:
        at = state[POSITION]
        code = state[CODE] << 16
        if at + 1 < state[END]:
            code |= (coder.content[at] << 8) | coder.content[at + 1]
        elif at < state[END]:
            code |= coder.content[at] << 8
        state[POSITION] = at + 2
        state[CODE] = code
    else:
        _put(state[LOW] >> 32, coder)
        state[LOW] = (state[LOW] & 0xFFFFFFFF) << 16
    return 0


@compiled
def _put(unit: int, coder: Coder) -> int:
    """Write a unit of 16 bits, whose 17th goes to those before; so the last that may still grow is kept back."""
    state = coder.state
    if unit == 0xFFFF:
        state[PENDING] += 1
        if state[POSITION] + 2 * state[PENDING] > state[END]:
            state[FULL] = 1
        return 0
    carry = unit >> 16
    if state[UNIT] >= 0:
        _put_bytes(state[UNIT] + carry, coder)
    for _ in range(state[PENDING]):
        _put_bytes((0xFFFF + carry) & 0xFFFF, coder)
    state[PENDING] = 0
    state[UNIT] = unit & 0xFFFF
    return 0


@compiled
def _put_bytes(unit: int, coder: Coder) -> int:
    state = coder.state
    at = state[POSITION]
    if at + 1 < state[END]:
        coder.content[at] = unit >> 8
        coder.content[at + 1] = unit & 255
    else:
        state[FULL] = 1
    state[POSITION] = at + 2
    return 0


# ------------------------------------------------------------------------------------------------ beginning and end


def encoder(capacity: int) -> Coder:
    """A coder that writes at most ``capacity`` bytes; ``state[FULL]`` is 1 if it wanted more."""
    return Coder(_state(ENCODE, capacity), np.zeros(capacity, np.uint8))


def decoder(content: bytes) -> Coder:
    """A coder that reads ``content``, and zeros behind its end."""
    state = _state(DECODE, len(content))
    state[CODE] = min(int.from_bytes(content[:AHEAD].ljust(AHEAD, b"\0"), "big"), _MOST - 1)
    state[POSITION] = AHEAD
    return Coder(state, np.frombuffer(bytearray(content), np.uint8))  # of the type that the encoder has


def learner() -> Coder:
    """A coder that writes nothing: models learn what is given to it."""
    return Coder(_state(LEARN, 0), np.zeros(0, np.uint8))


def _state(mode: int, end: int) -> Ints:
    state = np.zeros(9, np.int64)
    state[[RANGE, UNIT, END, MODE]] = _MOST, -1, end, mode
    return state


def finished(coder: Coder) -> bytes:
    """What was written, ended by as few bytes as tell the last interval from all others, zeros following."""
    low, last = int(coder.state[LOW]), int(coder.state[LOW] + coder.state[RANGE] - 1)
    head = b"" if coder.state[UNIT] < 0 else int(coder.state[UNIT]).to_bytes(2, "big")
    head += b"\xff\xff" * int(coder.state[PENDING])
    units = (1 << 8 * zeros for zeros in range(AHEAD, -1, -1))
    value = next(value for unit in units if (value := -(-low // unit) * unit) <= last)
    ended = ((int.from_bytes(head, "big") << 8 * AHEAD) + value).to_bytes(len(head) + AHEAD, "big")
    return coder.content[: coder.state[POSITION]].tobytes() + ended.rstrip(b"\0")
