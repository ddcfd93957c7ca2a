"""What the records prove: exact tests, bounds, and the order in which candidates are tested.

Pure statistics on arrays: it knows no model, no metric, no split. The front takes two rows of per-sample records, one
record per sample in [0, 1], higher is better, the baseline's and the candidate's on the same samples in the same order,
and chooses the test: exact for 0/1 records (:mod:`~laconic.proof.paired`), betting for others
(:mod:`~laconic.proof.bounded`). A drop is baseline less candidate, a fraction: 0.01 is one point.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from laconic.errors import DataError
from laconic.proof import bounded, paired
from laconic.proof.interval import median_interval, proportion_interval
from laconic.proof.reach import expected_bound, least_floor, samples_needed
from laconic.proof.sequence import fixed_sequence

__all__ = [
    "bound_drop",
    "count_flips",
    "doubt_floor",
    "expected_bound",
    "fixed_sequence",
    "least_floor",
    "median_interval",
    "proportion_interval",
    "samples_needed",
]

Array = np.ndarray[Any, np.dtype[Any]]


def doubt_floor(baseline: Array, candidate: Array, floor: float, binary: bool) -> float:
    """The p-value of "the drop is ``floor`` or more": where it is small, the candidate stands above the floor.

    >>> doubt_floor(np.ones(400), np.ones(400), floor=0.01, binary=True) < 0.05
    True
    """
    if binary:
        return paired.p_value(*count_flips(baseline, candidate), len(baseline), floor)
    return bounded.p_value(_differences(baseline, candidate), floor)


def bound_drop(baseline: Array, candidate: Array, confidence: float, binary: bool) -> tuple[float, float]:
    """The observed drop, and its one-sided upper bound at ``confidence``: below 0 where the candidate won for certain.

    >>> drop, bound = bound_drop(np.ones(1000), np.ones(1000), confidence=0.95, binary=True)
    >>> drop, round(bound, 3)
    (0.0, 0.003)
    """
    drop = float(_differences(baseline, candidate).mean())
    if binary:
        return drop, paired.upper_bound(*count_flips(baseline, candidate), len(baseline), confidence)
    return drop, bounded.upper_bound(_differences(baseline, candidate), confidence)


def count_flips(baseline: Array, candidate: Array) -> tuple[int, int]:
    """(lost, won) of 0/1 records: samples that only the baseline has right, and that only the candidate has.

    >>> count_flips(np.array([1, 1, 1, 0]), np.array([1, 0, 0, 1]))
    (2, 1)
    """
    differences = _differences(baseline, candidate)
    for records in (baseline, candidate):
        other = ~np.isin(records, (0, 1))
        if other.any():
            raise DataError("a record that is not 0 or 1", got=np.asarray(records)[other][0])
    return int((differences > 0).sum()), int((differences < 0).sum())


def _differences(baseline: Array, candidate: Array) -> Array:
    rows = [np.asarray(records, dtype=np.float64) for records in (baseline, candidate)]
    if rows[0].ndim != 1 or rows[0].shape != rows[1].shape or not rows[0].size:
        raise DataError(
            "records do not pair",
            got=f"shapes {rows[0].shape} and {rows[1].shape}",
            wanted="the same number of records, at least one, for baseline and candidate",
        )
    for row in rows:
        outside = ~((row >= 0) & (row <= 1))  # true for NaN too
        if outside.any():
            raise DataError(
                "a record out of range", got=f"{row[outside][0]} in row {outside.argmax()}", wanted="0 to 1"
            )
    return np.asarray(rows[0] - rows[1])
