"""From a source to a :class:`laconic.core.Task`: splits, metric, loss, fingerprint and provenance."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

from laconic.core import JsonObject, Metric, Task, digest
from laconic.data.metrics import agreement, cross_entropy, scored, top1
from laconic.data.source import SPLITS, Request, Rows, Source
from laconic.data.splits import CALIBRATION, Plan, plan
from laconic.errors import DataError

if TYPE_CHECKING:
    from laconic.core import Array


def make_task(name: str, source: Source, request: Request) -> Task:
    """The task that ``source`` makes for ``request``; ``name`` is what the user called the data."""
    for part, found in source.parts.items():
        if not len(found.samples):
            raise DataError(f"no samples in {part} of {name}")
    chosen = plan(source.parts, request.trainable, request.seed)
    splits = {split: Rows(source.parts[part].samples, rows) for split, (part, rows) in chosen.chosen.items()}
    _check_shape(splits["search"], request)
    metric = _metric(source, chosen, request)
    indices = _indices_hash(chosen)
    applied = source.applied.to_json() if source.applied else None
    content = {part: found.content for part, found in source.parts.items()}
    provenance: JsonObject = {
        "source": name,
        "kind": source.kind,
        "n": {split: len(rows) for split, rows in splits.items()},
        "seed": request.seed,
        "labelled": source.labelled,
        "indices": indices,
        "preprocess": "applied" if source.applied else "not applied: the arrays are ready for the model",
        "corrupt": {"count": 0, "names": []},
        "content_hash": "all bytes",
        **chosen.notes,
        **source.notes,
    }
    return Task(
        name=name,
        metric=metric,
        train=splits["train"],
        search=splits["search"],
        holdout=splits["holdout"],
        loss=request.loss or (cross_entropy if request.classify else None),
        trainable=request.trainable,
        fingerprint=digest([content, indices, applied, metric.name]),
        labels=source.classes,
        preprocess=request.preprocess,
        calibration=min(CALIBRATION, len(splits["train"])),
        provenance=provenance,
    )


def _metric(source: Source, chosen: Plan, request: Request) -> Metric:
    if request.score is not None:
        return scored(request.score)
    if not source.labelled:
        return agreement()
    return top1(source.chance if source.chance is not None else _chance(source, chosen))


def _chance(source: Source, chosen: Plan) -> float | None:
    """The share of the most frequent class in search and holdout."""
    found: list[Array] = []
    for split in ("search", "holdout"):
        part, rows = chosen.chosen[split]
        labels = source.parts[part].labels
        if labels is None:
            return None
        found.append(labels[rows])
    return float(np.bincount(np.concatenate(found)).max() / sum(map(len, found)))


def _check_shape(split: Rows, request: Request) -> None:
    inputs = split.read([0]).inputs
    if request.input_shape is not None and len(inputs) == 1:
        shape = next(iter(inputs.values())).shape[1:]
        if shape != tuple(request.input_shape):
            raise DataError(
                "wrong image size or channels", got=shape, wanted=f"{tuple(request.input_shape)}, the model's input"
            )


def _indices_hash(chosen: Plan) -> str:
    found = hashlib.sha256()
    for split in SPLITS:
        part, rows = chosen.chosen[split]
        found.update(f"{split} from {part}:".encode() + rows.astype("<i8").tobytes())
    return found.hexdigest()[:16]
