"""From what was observed of a value to the range that its integers cover: pure functions of a histogram.

- *minmax*: everything that was seen.
- *percentile*: the range that leaves out a fraction 1 - p of the values, half of it on each side.
- *mse*: the range whose quantization error is least, sum_i h_i (x_i - Q(x_i))^2 over the histogram's bins, among ranges
  that shrink from minmax (the search of Nagel et al. 2021, arXiv 2106.08295, section 3.1, eq. 14).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Vector = np.ndarray[Any, np.dtype[np.float64]]

PERCENTILE = 0.9999
_SHRINKS = 80


@dataclass(frozen=True)
class Histogram:
    """Counts of values in equal bins between ``low`` and ``high``."""

    low: float
    high: float
    counts: Vector

    @property
    def centres(self) -> Vector:
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * np.arange(0.5, len(self.counts), dtype=np.float64)


def minmax(histogram: Histogram, levels: int) -> tuple[float, float]:
    return histogram.low, histogram.high


def percentile(histogram: Histogram, levels: int) -> tuple[float, float]:
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - PERCENTILE) / 2
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    low = edges[int(np.searchsorted(share, tail, side="right"))]
    high = edges[min(int(np.searchsorted(share, 1 - tail, side="left")) + 1, len(histogram.counts))]
    return float(low), float(high)


def mse(histogram: Histogram, levels: int) -> tuple[float, float]:
    centres, counts = histogram.centres, histogram.counts
    best, best_error = (histogram.low, histogram.high), np.inf
    for shrink in np.linspace(1.0, 0.2, _SHRINKS):
        low, high = histogram.low * shrink, histogram.high * shrink
        scale, zero_point = affine(low, high, levels)
        codes = np.clip(np.rint(centres / scale) + zero_point, 0, levels)
        error = float(counts @ np.square(centres - (codes - zero_point) * scale))
        if error < best_error:
            best, best_error = (low, high), error
    return best


RANGES = {"minmax": minmax, "percentile": percentile, "mse": mse}


def affine(low: float, high: float, levels: int) -> tuple[float, int]:
    """Scale and zero point of integers 0..``levels`` that cover ``low``..``high`` and represent 0 exactly."""
    low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-30:  # a value that is always zero
        return 1.0, 0
    scale = (high - low) / levels
    zero_point = int(np.clip(np.rint(-low / scale), 0, levels))
    if 0 < zero_point < levels:  # rounding the zero point must not push either end out of range
        scale = max(-low / zero_point, high / (levels - zero_point))
    return float(scale), zero_point
