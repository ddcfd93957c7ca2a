"""What a machine can do at most, measured: bytes per second to and from its memory, operations per second.

The bandwidth is that of STREAM's add, c = a + b, over arrays far larger than any cache, counted as McCalpin (1995)
does: two arrays read, one written. The peak is that of a product of matrices on a runtime. Both are taken from many
short times, of which the fast ones count: other programs only ever take away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from laconic.core import Arrays, JsonObject, Predictor

_ARRAY_BYTES, _BLOCK_BYTES = 128 * 2**20, 2 * 2**20
_PASSES, _PEAK_CALLS = 4, 400
_UNDISTURBED = 0.05
"""The quantile of short times that counts: other programs only ever add to them."""


@dataclass(frozen=True)
class Roofline:
    """Bytes per second, and operations per second by precision (a MAC is two); measured with so many threads."""

    bandwidth: float
    peak: dict[str, float]
    threads: int

    def to_json(self) -> JsonObject:
        return asdict(self)


def bandwidth(threads: int, array_bytes: int = _ARRAY_BYTES, passes: int = _PASSES) -> float:
    """Bytes per second that ``threads`` threads move between the processor and its memory.

    The arrays are walked through in blocks that take well under a millisecond, each timed by itself; when a block is
    come to again, everything else has been through the caches.
    """
    with ThreadPoolExecutor(threads) as pool:
        rates = list(pool.map(_bandwidth, [array_bytes // threads] * threads, [passes] * threads))
    return sum(rates)


def _bandwidth(array_bytes: int, passes: int) -> float:
    """One thread's share."""
    a, b, c = (np.ones(array_bytes // 8) for _ in range(3))
    n = max(1, min(len(a), _BLOCK_BYTES // 8))
    blocks = [slice(start, start + n) for start in range(0, len(a) - n + 1, n)] * passes
    return 3 * 8 * n / _undisturbed([_seconds(partial(np.add, a[k], b[k], out=c[k])) for k in blocks])


def peak(predictor: Predictor, inputs: Arrays, operations: float, calls: int = _PEAK_CALLS) -> float:
    """Operations per second of a predictor that makes so many in a call of a few milliseconds."""
    predictor(inputs)
    return operations / _undisturbed([_seconds(lambda: predictor(inputs)) for _ in range(calls)])


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e9


def _undisturbed(seconds: list[float]) -> float:
    return float(np.quantile(seconds, _UNDISTURBED))
