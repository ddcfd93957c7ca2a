"""How outputs become records: classes (top 1), agreement with the original model, or a score of the caller's own.

Conventions. A classifier has one output, ``(n, classes)``; its decision is the largest entry, the first of equals, and
-1 where the row holds NaN, so a broken model never scores. A record is 1.0 where the decision equals the target. The
aggregate is the mean. Chance is the share of the most frequent class: what guessing one class always would score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from laconic.core import Arrays, Batch, Metric, Predictor, Split, Task
from laconic.data.source import as_rows
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array
    from laconic.data.source import Score

_CHUNK = 256


def top1(chance: float | None = None) -> Metric:
    """Right or wrong, where the targets are class numbers."""
    return Metric("top1", _right, _decide, _mean, binary=True, chance=chance)


def agreement() -> Metric:
    """The same decision as the original model's, or not; its decisions are the targets (:func:`with_reference`)."""
    return Metric("agreement", _right, _decide, _mean, binary=True)


def scored(score: Score) -> Metric:
    """A score per sample of the caller's own; it has no decisions, so ``decide`` refuses."""
    name = getattr(score, "__name__", "score")

    def records(outputs: Arrays, targets: Array) -> Array:
        found = np.asarray(score(outputs, targets), dtype=np.float64)
        if found.shape != (len(targets),):
            raise DataError(f"the score {name} gives a wrong shape", got=found.shape, wanted=(len(targets),))
        if not np.all((found >= 0) & (found <= 1)):  # NaN fails too
            raise DataError(f"the score {name} leaves 0..1", got=f"{found.min()} to {found.max()}", wanted="0 to 1")
        return found

    def decide(outputs: Arrays) -> Array:
        raise DataError(f"the score {name} has no decisions", fix="compare its records")

    return Metric(name, records, decide, _mean, binary=False)


def cross_entropy(outputs: Any, targets: Any) -> Any:
    """The loss of classes on torch tensors: a tensor, or a mapping or tuple that holds just one."""
    from torch.nn.functional import cross_entropy as loss

    if isinstance(outputs, Mapping):
        outputs = tuple(outputs.values())
    if isinstance(outputs, (tuple, list)):
        if len(outputs) != 1:
            raise _several(len(outputs))
        outputs = outputs[0]
    if outputs.ndim != 2:
        raise _not_classes(tuple(outputs.shape))
    return loss(outputs, targets.long())


def with_reference(task: Task, predictor: Predictor) -> Task:
    """The task with ``predictor``'s decisions as targets; a task that has targets is returned as it is.

    Decisions are made in chunks as they are first read, and kept: always the same chunks, whatever is asked for first,
    because a runtime may round differently in batches of another composition.
    """
    if task.search.read([0]).targets is not None:
        return task
    decided = (_Decided(split, predictor, task.metric) for split in (task.train, task.search, task.holdout))
    train, search, holdout = decided
    return replace(task, train=train, search=search, holdout=holdout)


class _Decided:
    """A split whose targets are a model's decisions."""

    def __init__(self, split: Split, predictor: Predictor, metric: Metric) -> None:
        self._split = split
        self._predictor = predictor
        self._metric = metric
        self._targets: Array = np.full(len(split), -1, np.int64)

    def __len__(self) -> int:
        return len(self._split)

    def read(self, indices: Sequence[int]) -> Batch:
        rows = as_rows(indices)
        for chunk in np.unique(rows[self._targets[rows] < 0] // _CHUNK).tolist():
            self._fill(chunk * _CHUNK)
        return Batch(self._split.read(indices).inputs, self._targets[rows])

    def _fill(self, start: int) -> None:
        rows = range(start, min(start + _CHUNK, len(self)))
        found = self._metric.decide(self._predictor(self._split.read(rows).inputs))
        if found.min() < 0:
            raise DataError("the original model gives NaN", got=f"{int((found < 0).sum())} of {len(rows)} samples")
        self._targets[start : start + len(rows)] = found


def _right(outputs: Arrays, targets: Array) -> Array:
    values = _classes(outputs)
    if len(values) != len(targets):
        raise DataError("not one output per sample", got=len(values), wanted=len(targets))
    bad = targets[(targets < 0) | (targets >= values.shape[1])]
    if len(bad):
        got, wanted = int(bad[0]), f"0..{values.shape[1] - 1}, since the model has {values.shape[1]} outputs"
        raise DataError("a label outside the model's classes", got=got, wanted=wanted)
    return np.asarray(_decide(outputs) == targets, np.float64)


def _decide(outputs: Arrays) -> Array:
    values = _classes(outputs)
    decided: Array = np.where(np.isnan(values).any(axis=1), -1, values.argmax(axis=1))
    return decided


def _mean(records: Array) -> float:
    return float(np.mean(records))


def _classes(outputs: Arrays) -> Array:
    if len(outputs) != 1:
        raise _several(len(outputs))
    values: Array = next(iter(outputs.values()))
    if values.ndim != 2 or values.shape[1] < 2:
        raise _not_classes(values.shape)
    return values


def _several(n: int) -> DataError:
    return DataError(
        "a model whose output is not what the task needs",
        got=f"{n} outputs",
        wanted="one, of shape (n, classes)",
        fix="return one from the model, or give a score of your own: from_arrays(..., score=...)",
    )


def _not_classes(shape: tuple[int, ...]) -> DataError:
    return DataError(
        "a model whose output is not what the task needs",
        got=f"shape {tuple(shape)}",
        wanted="(n, classes) with at least 2 classes",
        fix="or give a score of your own: from_arrays(..., score=...)",
    )
