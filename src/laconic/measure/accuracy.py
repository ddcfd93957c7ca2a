"""Per-sample records of a predictor on a split."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from laconic.core import Metric, Predictor, Split
from laconic.errors import DataError

Vector = np.ndarray[Any, np.dtype[np.float64]]

_CHUNK = 64


def records(
    predictor: Predictor,
    split: Split,
    metric: Metric,
    *,
    stop: Callable[[Vector], bool] | None = None,
    progress: Callable[[float], None] | None = None,
) -> Vector:
    """One record per sample of ``split``, in order; fewer if ``stop(records so far)`` says that enough was seen."""
    parts: list[Vector] = []
    for indices in chunks(len(split)):
        batch = split.read(indices)
        if batch.targets is None:
            raise DataError("these samples have no labels", fix="score them by agreement with a reference model")
        parts.append(np.asarray(metric.records(predictor(batch.inputs), batch.targets), dtype=np.float64))
        if progress is not None:
            progress((indices[-1] + 1) / len(split))
        if stop is not None and stop(np.concatenate(parts)):
            break
    return np.concatenate(parts) if parts else np.empty(0)


def chunks(n: int, size: int = _CHUNK) -> list[Sequence[int]]:
    """The indices 0..n-1 in runs of ``size``."""
    return [range(start, min(start + size, n)) for start in range(0, n, size)]
