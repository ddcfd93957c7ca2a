"""Canonical Huffman codes, of every symbol or with zeros as runs: the coder of Deep Compression.

Huffman 1952, "A method for the construction of minimum-redundancy codes". With runs (Han, Mao and Dally 2015, arXiv
1510.00149, sections 2 and 4) a weight that is not zero is coded behind the number of zeros in front of it, at most 31;
where there are more, a zero is coded like a weight. Runs and weights have a code each.

The lengths of the codes, 0 to 15 bits, are told first, in 4 bits each.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from laconic.pack.arithmetic import DECODE, MODE, Coder, Ints, code_bit, compiled

RUNS = 32
LONGEST = 15
_HALF = 32768


class Code(NamedTuple):
    """A canonical code: the ``lengths`` and ``codes`` (symbols,) int32, the ``symbols`` in the order of their codes
    (symbols,) int32, and how many have each length, ``counts`` (16,) int32."""

    lengths: Ints
    codes: Ints
    symbols: Ints
    counts: Ints

    @classmethod
    def of(cls, lengths: Ints) -> Code:
        """The canonical code of these lengths: shorter ones first, of one length by their symbols. Raises
        :class:`ValueError` for lengths that no code has (Kraft's inequality)."""
        used = np.flatnonzero(lengths)
        symbols = used[np.argsort(lengths[used], kind="stable")]
        counts = np.bincount(lengths[used], minlength=LONGEST + 1)
        if (counts[1:] << (LONGEST - np.arange(1, LONGEST + 1))).sum() > 1 << LONGEST:
            raise ValueError("no code has these lengths")
        codes, following = np.zeros(len(lengths), np.int32), 0
        for n in range(1, LONGEST + 1):
            here = symbols[lengths[symbols] == n]
            codes[here] = following + np.arange(len(here))
            following = (following + len(here)) * 2
        whole = np.zeros(len(lengths), np.int32)
        whole[: len(symbols)] = symbols
        return cls(lengths.astype(np.int32), codes, whole, counts.astype(np.int32))


def lengths_of(counts: Ints) -> Ints:
    """The lengths (symbols,) int32 of codes for symbols that occur ``counts`` times, 0 for those that do not; at most
    15, for which rare symbols are taken to be less rare.

    >>> lengths_of(np.array([4, 2, 1, 1, 0])).tolist()
    [1, 2, 3, 3, 0]
    """
    while True:
        found = np.zeros(len(counts), np.int32)
        heap = [(int(n), i, [i]) for i, n in enumerate(counts) if n > 0]
        found[[i for _, i, _ in heap]] = len(heap) == 1
        heapq.heapify(heap)
        while len(heap) > 1:
            (n, i, left), (m, _, right) = heapq.heappop(heap), heapq.heappop(heap)
            found[left + right] += 1
            heapq.heappush(heap, (n + m, i, left + right))
        if found.max(initial=0) <= LONGEST:
            return found
        counts = np.where(np.asarray(counts) > 0, np.asarray(counts) // 2 + 1, 0)


@compiled
def code_lengths(lengths: Ints, size: int, coder: Coder) -> int:
    """Code lengths (size,) int32 of codes, or decode them in place. Returns 0."""
    for i in range(size):
        found = 0
        for b in range(4):
            found = 2 * found + code_bit((lengths[i] >> (3 - b)) & 1, _HALF, coder)
        lengths[i] = found
    return 0


@compiled
def code_symbols(values: Ints, size: int, code: Code, coder: Coder) -> int:
    """Code symbols (size,) int16, or decode them in place. Returns 0, or -1 if bits are no code of a symbol."""
    for i in range(size):
        found = _code(values[i], code, coder)
        if found < 0:
            return -1
        values[i] = found
    return 0


@compiled
def code_runs(values: Ints, size: int, zero: int, runs: Code, code: Code, coder: Coder) -> int:
    """The same, the symbol ``zero`` as runs."""
    i = 0
    while i < size:
        run = 0
        if coder.state[MODE] != DECODE:
            while run < RUNS - 1 and i + run + 1 < size and values[i + run] == zero:
                run += 1
        run = _code(run, runs, coder)
        if run < 0 or i + run >= size:
            return -1
        found = _code(values[i + run], code, coder)
        if found < 0:
            return -1
        for k in range(run):
            values[i + k] = zero
        values[i + run] = found
        i += run + 1
    return 0


@compiled
def _code(symbol: int, code: Code, coder: Coder) -> int:
    """Code a symbol, or decode and return it; -1 if there is none of that code."""
    if coder.state[MODE] != DECODE:
        for k in range(code.lengths[symbol]):
            code_bit((code.codes[symbol] >> (code.lengths[symbol] - 1 - k)) & 1, _HALF, coder)
        return symbol
    found, first, index = 0, 0, 0
    for n in range(1, LONGEST + 1):
        found = 2 * found + code_bit(0, _HALF, coder)
        first *= 2
        if found - first < code.counts[n]:
            return int(code.symbols[index + found - first])
        index += code.counts[n]
        first += code.counts[n]
    return -1


def run_counts(values: Ints, zero: int, base: int) -> tuple[Ints, Ints]:
    """How often :func:`code_runs` codes each run (32,), and each symbol (base,)."""
    places = np.flatnonzero(values != zero)
    gaps = np.diff(np.concatenate([[-1], places])) - 1
    runs = np.bincount(gaps % RUNS, minlength=RUNS)
    symbols = np.bincount(values[places], minlength=base)
    behind = len(values) - 1 - int(places[-1]) if len(places) else len(values)
    full = int((gaps // RUNS).sum()) + behind // RUNS
    runs[RUNS - 1] += full
    if behind % RUNS:
        runs[behind % RUNS - 1] += 1
    symbols[zero] += full + bool(behind % RUNS)
    return runs, symbols
