"""``eval``: a score, latencies and a certificate for a package or a model, on data given now."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from laconic import measure, proof
from laconic.core import JsonObject, Predictor, Split, Target, Task
from laconic.data import with_reference
from laconic.errors import DeployError, TargetError
from laconic.goal import Goal
from laconic.models.loaded import LoadedModel
from laconic.pack.package import Package
from laconic.runtime import runtime_of
from laconic.story.inputs import require_fit


def package(package: Package, load: Callable[[Package], Task], target: str | None, goal: Goal) -> JsonObject:
    """Score, time and re-certify a package. On the data that it was made with, only its holdout is used, and that is
    said: it was opened before. On other data every sample is used.

    ``load`` gives the task, split and pre-processed as the package's own was. A ``goal`` without a floor takes the
    package's own.
    """
    stated = package.manifest
    where = Target.parse(target) if target else package.target
    runtime = runtime_of(where)
    name, suffix = package.model_path.name, runtime.SUFFIX
    if not name.endswith(suffix):
        raise TargetError(f"{where.runtime} does not read this package", got=name, wanted=f"a {suffix} file")
    task = load(package)
    known = task.fingerprint == stated["data"]["fingerprint"]
    try:
        original, mine = (runtime.open_file(path, where) for path in (package.baseline_path, package.model_path))
    except DeployError as error:
        raise TargetError(f"the package cannot be opened on {where}: {error}") from error
    task = with_reference(task, original)
    splits = [task.holdout] if known else [task.train, task.search, task.holdout]
    before, after = (np.concatenate([measure.records(p, s, task.metric) for s in splits]) for p in (original, mine))
    confidence, floor = goal.confidence, float(stated["goal"]["max_drop"])
    if goal.max_drop is not None:
        floor = goal.max_drop * (task.metric.aggregate(before) if goal.relative else 1.0)
    drop, bound = proof.bound_drop(before, after, confidence, task.metric.binary)
    p = proof.doubt_floor(before, after, floor, task.metric.binary)
    return {
        "subject": str(package.folder),
        "target": str(where),
        **_scored(task, after, mine),
        "agreement": _agreement(original, mine, splits, task),
        "certificate": {
            "metric": task.metric.name,
            "drop": drop,
            "bound": bound,
            "max_drop": floor,
            "confidence": confidence,
            "n": len(after),
            "passed": bool(p <= 1 - confidence),
            "independent": not known,
        },
    }


def packed(package: Package, load: Callable[[Package], Task], target: str | None) -> JsonObject:
    """Score and time a packed model without its package (:func:`laconic.story.packed.opened`), on the samples that are
    not for training; there is no original to certify it against."""
    where = Target.parse(target) if target else package.target
    runtime = runtime_of(where)
    if package.model_path.suffix != runtime.SUFFIX:
        raise TargetError(
            f"{where.runtime} does not read this file", got=package.model_path.suffix, wanted=runtime.SUFFIX
        )
    task = load(package)
    try:
        mine = runtime.open_file(package.model_path, where)
    except DeployError as error:
        raise TargetError(f"the file cannot be opened on {where}: {error}") from error
    task = with_reference(task, mine)
    records = np.concatenate([measure.records(mine, s, task.metric) for s in (task.search, task.holdout)])
    sizes = {name: package.manifest["file"][name] for name in ("packed_bytes", "payload_bytes")}
    found = {"target": str(where), **_scored(task, records, mine), "agreement": 1.0, "certificate": None}
    return {**found, "file_bytes": package.manifest["file"]["bytes"], **sizes}


def model(load: Callable[[], tuple[LoadedModel, Task]], target: Target) -> JsonObject:
    """Score and time a model as it is, on the samples that are not for training."""
    loaded, task = load()
    runtime = runtime_of(target)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{runtime.SUFFIX}"
        batch = task.train.read(range(min(8, len(task.train))))
        require_fit(loaded.module, {name: torch.as_tensor(x) for name, x in batch.inputs.items()})
        try:
            runtime.deploy(loaded.module, batch.inputs, path, target)
            mine = runtime.open_file(path, target)
        except DeployError as error:
            raise TargetError(f"the model cannot be deployed on {target}: {error}") from error
        with torch.no_grad():
            task = with_reference(task, mine)
            records = np.concatenate([measure.records(mine, s, task.metric) for s in (task.search, task.holdout)])
        return {
            "subject": loaded.source,
            "target": str(target),
            **_scored(task, records, mine),
            "agreement": 1.0,
            "certificate": None,
        }


def _scored(task: Task, records: Any, predictor: Any) -> JsonObject:
    times = measure.distribution(predictor, task.search.read(range(predictor.batch)).inputs)
    p50, p90, p99 = (float(q) for q in np.percentile(times, (50, 90, 99)))
    return {
        "metric": task.metric.name,
        "score": task.metric.aggregate(records),
        "n": len(records),
        "latency_ms": {"p50": p50, "p90": p90, "p99": p99},
    }


def _agreement(original: Predictor, mine: Predictor, splits: Sequence[Split], task: Task) -> float | None:
    """The share of samples on which both decide the same; None for a score that has no decisions."""
    if not task.metric.binary:
        return None
    same = []
    for split in splits:
        for indices in measure.chunks(len(split)):
            inputs = split.read(indices).inputs
            same.append(task.metric.decide(original(inputs)) == task.metric.decide(mine(inputs)))
    return float(np.concatenate(same).mean())
