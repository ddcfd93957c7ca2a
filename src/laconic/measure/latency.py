"""Latency of one predictor beside another: baseline, candidate, baseline, candidate, ..., baseline.

Two files of equal content measured 0.78 to 1.14 of each other on a busy machine; ratios taken inside one round stay
true. A round is a burst A, a burst B and the next A', of equally many calls; its ratio is (A + A') / 2B. The rounds
share their ends, so that each burst follows one of the other kind: where A followed A', and so found its weights in the
caches, a file timed against itself came out 6 % slower. Wall time and the process's CPU time are both taken: where they
tell different ratios, or A' differs from A, somebody else was working, and it is done again.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from laconic.core import Arrays, Predictor

Vector = np.ndarray[Any, np.dtype[np.float64]]

DRIFT = 0.03
"""How far A' may be from A, and one clock's ratio from the other's, before the row counts as noisy."""
_BURST_S = 0.004
_ATTEMPTS = 3
_PAUSE_S = 0.5


@dataclass(frozen=True)
class Paired:
    """Per round: ms per call of A, B and A' by the wall clock, and the ratios by both clocks (``rounds`` of each)."""

    before_ms: Vector
    candidate_ms: Vector
    after_ms: Vector
    wall_ratio: Vector
    cpu_ratio: Vector
    calls_per_burst: int

    @property
    def drift(self) -> float:
        return float(np.median(self.after_ms / self.before_ms))

    @property
    def clocks(self) -> float:
        """CPU time's ratio over wall time's: 1 on a quiet machine."""
        return float(np.median(self.cpu_ratio) / np.median(self.wall_ratio))

    @property
    def noisy(self) -> bool:
        return abs(self.drift - 1) > DRIFT or abs(self.clocks - 1) > DRIFT


def paired(
    baseline: Predictor,
    candidate: Predictor,
    inputs: Arrays,
    rounds: int = 25,
    pause: Callable[[float], None] = time.sleep,
) -> Paired:
    """Time ``candidate`` against ``baseline`` on ``inputs``; waits and repeats while the machine is noisy, then
    returns the attempt whose clocks and ends agreed best."""
    calls = _calls_per_burst(baseline, inputs)
    attempts: list[Paired] = []
    for attempt in range(_ATTEMPTS):
        if attempt:
            pause(_PAUSE_S * attempt)
        attempts.append(_attempt(baseline, candidate, inputs, rounds, calls))
        if not attempts[-1].noisy:
            return attempts[-1]
    return min(attempts, key=lambda p: abs(p.drift - 1) + abs(p.clocks - 1))


def distribution(predictor: Predictor, inputs: Arrays, calls: int = 300) -> Vector:
    """Wall times of single calls, in ms, warm."""
    _calls_per_burst(predictor, inputs)
    with _no_garbage_collection():
        return np.array([_burst(predictor, inputs, 1)[0] for _ in range(calls)])


def _attempt(baseline: Predictor, candidate: Predictor, inputs: Arrays, rounds: int, calls: int) -> Paired:
    wall, cpu = np.empty(2 * rounds + 1), np.empty(2 * rounds + 1)  # A B A B ... A
    with _no_garbage_collection():
        _burst(candidate, inputs, calls)
        for i in range(2 * rounds + 1):
            wall[i], cpu[i] = _burst(candidate if i % 2 else baseline, inputs, calls)
    wall_ratio, cpu_ratio = ((t[:-1:2] + t[2::2]) / (2 * t[1::2]) for t in (wall, cpu))
    return Paired(wall[:-1:2], wall[1::2], wall[2::2], wall_ratio, cpu_ratio, calls)


def _burst(predictor: Predictor, inputs: Arrays, calls: int) -> tuple[float, float]:
    """Milliseconds per call by the wall clock and by the process's CPU clock, after a call that is not counted: it
    brings the predictor's weights back into the caches, which the other predictor had filled with its own."""
    predictor(inputs)
    wall, cpu = time.perf_counter_ns(), time.process_time_ns()
    for _ in range(calls):
        predictor(inputs)
    return (time.perf_counter_ns() - wall) / calls / 1e6, max(time.process_time_ns() - cpu, 1) / calls / 1e6


def _calls_per_burst(predictor: Predictor, inputs: Arrays) -> int:
    """So many calls that a burst takes a few milliseconds; warms the predictor up."""
    predictor(inputs)
    times = [_burst(predictor, inputs, 1)[0] for _ in range(5)]
    return max(1, int(np.ceil(_BURST_S * 1e3 / max(float(np.median(times)), 1e-4))))


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
