"""From what was observed to the range that integers cover: pure functions, of a histogram for values, of the numbers
themselves for weights.

- *minmax*: everything that was seen.
- *percentile*: the range that leaves out a fraction 1 - p of the values, half of it on each side.
- *mse*: the range whose quantization error is least, sum_i h_i (x_i - Q(x_i))^2 over the histogram's bins, among ranges
  that shrink from minmax (the search of Nagel et al. 2021, arXiv 2106.08295, section 3.1, eq. 14).
- *entropy*: the range whose codes tell most of what the values told: the least Kullback-Leibler divergence between the
  histogram, with what lies outside added to its ends, and the histogram inside merged into as many bins as there are
  codes (Migacz 2017, "8-bit inference with TensorRT"; ONNX Runtime's calibrator), among ranges that shrink likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

Vector = np.ndarray[Any, np.dtype[np.float64]]

PERCENTILE = 0.9999
_SHRINKS = 80
_EMPTY = 1e-10  # the share of a bin in which the codes say that nothing is
_WEIGHT_SHRINKS = 91


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


Grid = Callable[[float, float, int], tuple[float, int]]
"""``(low, high, levels) -> (scale, zero point)``: how integers 0..``levels`` lie on a range."""


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


def symmetric(low: float, high: float, levels: int) -> tuple[float, int]:
    """Scale and zero point of integers 0..``levels`` (odd) that cover ``low``..``high``, 0 in the middle: taken off, it
    leaves signed integers without a zero point. Values of one sign get half."""
    middle = (levels + 1) // 2
    reach = max(-low, high)
    return (reach / (levels - middle) if reach > 1e-30 else 1.0), middle


def minmax(histogram: Histogram, levels: int, grid: Grid = affine) -> tuple[float, float]:
    return histogram.low, histogram.high


def percentile(histogram: Histogram, levels: int, grid: Grid = affine) -> tuple[float, float]:
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    tail = (1 - PERCENTILE) / 2
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    low = edges[int(np.searchsorted(share, tail, side="right"))]
    high = edges[min(int(np.searchsorted(share, 1 - tail, side="left")) + 1, len(histogram.counts))]
    return float(low), float(high)


def mse(histogram: Histogram, levels: int, grid: Grid = affine) -> tuple[float, float]:
    centres, counts = histogram.centres, histogram.counts
    best, best_error = (histogram.low, histogram.high), np.inf
    for shrink in np.linspace(1.0, 0.2, _SHRINKS):
        low, high = histogram.low * shrink, histogram.high * shrink
        scale, zero_point = grid(low, high, levels)
        codes = np.clip(np.rint(centres / scale) + zero_point, 0, levels)
        error = float(counts @ np.square(centres - (codes - zero_point) * scale))
        if error < best_error:
            best, best_error = (low, high), error
    return best


def entropy(histogram: Histogram, levels: int, grid: Grid = affine) -> tuple[float, float]:
    counts, bins, codes = histogram.counts, len(histogram.counts), levels + 1
    if grid is symmetric:  # some of its codes lie where no values are
        codes = round((histogram.high - histogram.low) / symmetric(histogram.low, histogram.high, levels)[0]) + 1
    width = (histogram.high - histogram.low) / bins
    zero = float(np.clip(-histogram.low / width, 0, bins))
    best, least = (histogram.low, histogram.high), np.inf
    for shrink in np.linspace(1.0, codes / bins, 2 * _SHRINKS):
        first, last = int(zero - zero * shrink), math.ceil(zero + (bins - zero) * shrink)
        divergence = _divergence(counts, first, last, codes)
        if divergence < least:
            best, least = (histogram.low + first * width, histogram.low + last * width), divergence
    return best


def _divergence(counts: Vector, first: int, last: int, codes: int) -> float:
    """KL(P || Q): P the bins ``first``..``last`` with all that lies outside in the ends, Q what codes keep of them."""
    inside = counts[first:last]
    seen = inside.copy()
    seen[0] += counts[:first].sum()
    seen[-1] += counts[last:].sum()
    alive = seen > 0
    code = np.arange(len(inside)) * codes // len(inside)
    merged, members = np.bincount(code, inside), np.bincount(code, alive)
    kept = (merged / np.maximum(members, 1))[code][alive]
    p, q = seen[alive] / seen.sum(), np.maximum(kept / max(kept.sum(), 1), _EMPTY)
    return float(p @ np.log(p / q))


RANGES = {"minmax": minmax, "percentile": percentile, "mse": mse, "entropy": entropy}


def _largest(rows: Tensor, qmax: int) -> Tensor:
    return rows.abs().amax(1) / qmax


def _least_error(rows: Tensor, qmax: int) -> Tensor:
    """The scale of least sum (w - Q(w))^2 among those that shrink from the largest weight's."""
    largest = _largest(rows, qmax)
    best, least = largest, torch.full_like(largest, math.inf)
    for shrink in torch.linspace(1.0, 0.1, _WEIGHT_SHRINKS).tolist():
        scale = (largest * shrink)[:, None].clamp_min(torch.finfo(rows.dtype).tiny)
        error = (rows / scale).round_().clamp_(-qmax, qmax).mul_(scale).sub_(rows).square_().sum(1)
        best, least = torch.where(error < least, largest * shrink, best), torch.minimum(error, least)
    return best


WEIGHT_SCALES = {"minmax": _largest, "mse": _least_error}
"""Scales of symmetric codes -qmax..qmax: ``(rows (channels, weights), qmax) -> (channels,)``; 0 where all is 0."""
