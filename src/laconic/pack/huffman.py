"""Canonical Huffman codes, with zeros as runs or not: the coder of Deep Compression.

Huffman 1952, "A method for the construction of minimum-redundancy codes". With ``runs`` (Han, Mao and Dally 2015, arXiv
1510.00149, section 3) the weights that are not zero are coded, each behind the zeros in front of it: at most 31, more
take a filler, a zero that is coded. Lengths of runs and weights have a code each.

The lengths of the codes, 0 to 15 bits, are told first, in 4 bits each.
"""

from __future__ import annotations

import heapq

import numpy as np

from laconic.pack.arithmetic import Coder, Ints, code_bit, compiled

RUNS = 32  # symbols of the code for runs; the last is a full run and a filler
_LONGEST = 15
_HALF = 32768


def lengths(counts: Ints) -> Ints:
    """Lengths of the codes (symbols,) of symbols that occur ``counts`` times; 0 for those that do not.

    A code longer than 15 bits is avoided by halving the counts, which costs little.

    >>> lengths(np.array([4, 2, 1, 1, 0])).tolist()
    [1, 2, 3, 3, 0]
    """
    counts = counts.astype(np.int64)
    while True:
        found = _lengths(counts)
        if found.max(initial=0) <= _LONGEST:
            return found
        counts = np.where(counts > 0, counts // 2 + 1, 0)


def _lengths(counts: Ints) -> Ints:
    found = np.zeros(len(counts), np.int16)
    heap = [(int(n), i, [i]) for i, n in enumerate(counts) if n > 0]
    if len(heap) == 1:
        found[heap[0][1]] = 1
        return found
    heapq.heapify(heap)
    while len(heap) > 1:
        (n, i, left), (m, _, right) = heapq.heappop(heap), heapq.heappop(heap)
        found[left + right] += 1
        heapq.heappush(heap, (n + m, i, left + right))
    return found


def bits_with_runs(symbols: Ints, zero: int, base: int) -> tuple[Ints, Ints]:
    """How often each run (32,) and each symbol (base,) is coded for ``symbols`` (n,), whose zero is ``zero``."""
    places = np.flatnonzero(symbols != zero)
    gaps = np.diff(np.concatenate([[-1], places, [len(symbols)]])) - 1
    fillers = int((gaps // RUNS).sum())
    runs = np.bincount(gaps % RUNS, minlength=RUNS)
    runs[gaps[-1] % RUNS] -= 1  # behind the last weight there is nothing to tell
    runs[RUNS - 1] += fillers
    counts = np.bincount(symbols[places], minlength=base)
    counts[zero] += fillers
    return runs, counts


@compiled
def code_lengths(found: Ints, size: int, coder: Coder) -> int:
    """Code the lengths (size,) int16, or decode them in place. Returns 0."""
    for i in range(size):
        value = 0
        for b in range(4):
            value = 2 * value + code_bit((found[i] >> (3 - b)) & 1, _HALF, coder)
        found[i] = value
    return 0
