"""Where values are while the model runs: the most that is alive at once, and what travels to and from DRAM.

**Peak.** A value is alive from the operator that first writes it to the one that last reads it; inputs from the
beginning, outputs to the end. Weights are not among them. It is what an allocator needs that reuses memory at once,
without working memory inside operators.

**DRAM.** The cache is one piece of memory that holds whole values and forgets the one that was not touched for longest
(fully associative LRU). A value is found in it if all that was touched since its last touch, itself included, fits: its
reuse distance. Distances do not depend on the cache's size, so a larger cache never means more traffic (Mattson et al.
1970, doi 10.1147/sj.92.0078). What is written goes to DRAM only if it is an output or if some later reader does not
find it in the cache. The model is run again and again: what is counted is a later run, in which the weights are found
if a whole run fits.

Before that the run is fused as every runtime fuses it: an elementwise operator, or a normalisation with known
statistics, that alone reads what another operator makes is computed there, and what lies between is never written.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Collection, Sequence

Touched = tuple[dict[int, int], dict[int, int]]
"""The bytes that an operator reads and writes, by value."""


def peak_bytes(run: Sequence[Touched], sizes: dict[int, int], inputs: Collection[int], outputs: Collection[int]) -> int:
    """The most bytes that are alive during an operator. ``sizes`` are the values that count, weights left out."""
    first: dict[int, int] = dict.fromkeys((value for value in inputs if value in sizes), 0)
    last = dict(first)
    for i, (reads, writes) in enumerate(run):
        for value in (*reads, *writes):
            if value in sizes:
                first.setdefault(value, i)
                last[value] = i
    last.update(dict.fromkeys((value for value in outputs if value in first), len(run) - 1))
    change: Counter[int] = Counter()
    for value, start in first.items():
        change[start] += sizes[value]
        change[last[value] + 1] -= sizes[value]
    alive = peak = 0
    for i in range(len(run)):
        alive += change[i]
        peak = max(peak, alive)
    return peak


def fused(run: Sequence[Touched], joined: Sequence[bool], outputs: Collection[int]) -> list[Touched]:
    """The run with each operator that is ``joined`` moved into the one that makes what it reads, where nobody else
    reads it; what was moved touches nothing any more. Of several such inputs the latest made is the one it follows."""
    found = [(dict(reads), dict(writes)) for reads, writes in run]
    host = list(range(len(run)))  # where each operator is computed
    maker, readers, final = _versions(run)
    for i, (reads, writes) in enumerate(run):
        made = [(host[maker[i, value]], maker[i, value], value) for value in reads if (i, value) in maker]
        if not joined[i] or not made:
            continue
        place, by, value = max(made)
        if readers[value, by] != [i] or (value in outputs and final[value] == by):
            continue
        there_reads, there_writes = found[place]
        there_writes.pop(value, None)
        there_reads.update({other: n for other, n in reads.items() if other != value and other not in there_writes})
        there_writes.update(writes)
        found[i], host[i] = ({}, {}), place
    return found


_Versions = tuple[dict[tuple[int, int], int], dict[tuple[int, int], list[int]], dict[int, int]]


def _versions(run: Sequence[Touched]) -> _Versions:
    """Who wrote what (operator, value) reads; who reads what (value, writer) left there; who writes a value last."""
    maker: dict[tuple[int, int], int] = {}
    readers: dict[tuple[int, int], list[int]] = {}
    final: dict[int, int] = {}
    for i, (reads, writes) in enumerate(run):
        for value in reads:
            if value in final:
                maker[i, value] = final[value]
                readers[value, final[value]].append(i)
        for value in writes:
            final[value] = i
            readers[value, i] = []
    return maker, readers, final


def dram_bytes(
    run: Sequence[Touched], cache_bytes: int, inputs: Collection[int], outputs: Collection[int]
) -> list[int]:
    """The bytes that each operator of a run moves from and to DRAM, through a cache of ``cache_bytes``."""
    cache = _Cache(cache_bytes)
    _once(run, cache, inputs, outputs)
    return _once(run, cache, inputs, outputs)


class _Cache:
    """The values touched last, the latest at the end."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self._touched: OrderedDict[int, int] = OrderedDict()

    def holds(self, value: int, size_bytes: int) -> bool:
        """Whether the value is found; it is touched now."""
        distance, found = size_bytes, False
        for other, size in reversed(self._touched.items()):
            if other == value or distance > self.size_bytes:
                found = other == value and distance <= self.size_bytes
                break
            distance += size
        self.touch(value, size_bytes)
        return found

    def touch(self, value: int, size_bytes: int) -> None:
        self._touched[value] = size_bytes
        self._touched.move_to_end(value)

    def forget(self, values: Collection[int]) -> None:
        for value in values:
            self._touched.pop(value, None)


def _once(run: Sequence[Touched], cache: _Cache, inputs: Collection[int], outputs: Collection[int]) -> list[int]:
    moved = [0] * len(run)
    maker: dict[int, tuple[int, int]] = {}
    returned: set[tuple[int, int]] = set()  # (value, operator that wrote it) that went to DRAM
    cache.forget(inputs)  # every run gets new ones
    for i, (reads, writes) in enumerate(run):
        for value, size in reads.items():
            if not cache.holds(value, size):
                moved[i] += size
                if value in maker and (value, maker[value][0]) not in returned:
                    returned.add((value, maker[value][0]))
                    moved[maker[value][0]] += maker[value][1]
        for value, size in writes.items():
            cache.touch(value, size)
            maker[value] = i, size
    for value, (i, size) in maker.items():
        if value in outputs and (value, i) not in returned:
            moved[i] += size
    return moved
