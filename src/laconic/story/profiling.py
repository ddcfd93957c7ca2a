"""``profile``: what a model costs, counted and modelled, beside the milliseconds that its file takes on a target."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from laconic import machine, measure
from laconic.core import Arrays, JsonObject, Predictor, Recipe, Target
from laconic.errors import DeployError, InputError, TargetError
from laconic.models import load as load_model
from laconic.models.loaded import LoadedModel
from laconic.pack.package import Package
from laconic.profile import LayerProfile, bound_ms, profile
from laconic.runtime import runtime_of
from laconic.steps import STEPS
from laconic.story import roofline
from laconic.story.inputs import made_up, require_fit, stated
from laconic.story.reporter import Reporter

_SAMPLES = 8
_TIMED_S, _FEWEST, _MOST = 5.0, 20, 300


@dataclass(frozen=True)
class Subject:
    """What is profiled: a module, samples for it, and the file to time if there is one already.

    ``target``: where it runs unless another is asked for. ``weights_known`` is false where the structure was rebuilt
    and the weights are in the file alone. ``package`` is held because a file that it keeps packed goes with it.
    """

    name: str
    module: nn.Module
    example: Arrays
    note: str = ""
    file: Path | None = None
    target: Target = field(default_factory=lambda: Target("onnxruntime"))
    weights_known: bool = True
    package: Package | None = None


def of_model(loaded: LoadedModel, shape: tuple[int, ...] | None, example: Arrays | None, batch: int) -> Subject:
    """A model, on samples that are given, or on noise of ``shape`` (without the batch) or of the shape that it states.

    Raises :class:`InputError` where it states none.
    """
    if example is None:
        shape = shape or loaded.input_shape
        if shape is None or len(loaded.input_names) > 1:
            several = len(loaded.input_names) > 1
            raise InputError(
                "this model takes several inputs" if several else "this model does not say what its input is",
                fix="give --data" if several else "give --input, for example --input 3x224x224",
            )
        inputs = {loaded.input_names[0]: {"shape": list(shape), "dtype": "float32"}}
        example = made_up(inputs, max(_SAMPLES, batch))
    return Subject(loaded.source, loaded.module, example, loaded.note)


def of_package(package: Package, batch: int) -> Subject:
    """A package: its structure rebuilt from its recipe and facts, its own file to be timed."""
    stated_of = package.manifest
    module = load_model(stated_of["model"]["source"]).module
    module = Recipe.parse(stated_of["recipe"], STEPS).restore(module, stated_of["facts"])
    example = made_up(stated_of["inputs"], max(_SAMPLES, batch, package.target.batch))
    path, target = package.model_path, package.target
    return Subject(str(package.folder), module, example, "", path, target, weights_known=False, package=package)


def profiled(subject: Subject, target: Target, cache_bytes: int, reporter: Reporter) -> JsonObject:
    """Everything that ``laconic profile`` tells, as JSON.

    What cannot be deployed is counted and not timed: ``not_timed`` says why. The machine's roof, and with it the
    bounds, are left out where the target is not its processor.
    """
    runtime = runtime_of(target)
    if subject.file is not None and subject.file.suffix != runtime.SUFFIX:
        wanted = f"a {runtime.SUFFIX} file"
        raise TargetError(f"{target.runtime} does not read this package", got=subject.file.name, wanted=wanted)
    samples = {name: torch.as_tensor(x) for name, x in subject.example.items()}
    require_fit(subject.module, {name: x[:2] for name, x in samples.items()})
    reporter.progress("counting", 0.0)
    found = profile(subject.module, samples, cache_bytes)
    times = _times(subject, runtime, target, reporter)
    roof = roofline.measured(target.threads, reporter) if target.device == "cpu" else None
    layers = [_row(layer, times["layers"], roof) for layer in found.layers]
    named = {layer.name for layer in found.layers}
    if not subject.weights_known:
        layers = [{**row, "nonzero": None} for row in layers]
    return {
        "model": subject.name,
        "note": subject.note,
        "target": str(target),
        "inputs": stated({name: x[:1] for name, x in samples.items()}),
        **{**found.to_json(), "layers": layers},
        "nonzero": found.nonzero if subject.weights_known else None,
        "intensity": _finite(found.flops, found.dram_bytes),
        "bound_ms": sum(row["bound_ms"] for row in layers) if roof and _bounded(layers) else None,
        "latency_ms": times["latency_ms"],
        "per_second": times["per_second"],
        "file_bytes": times["file_bytes"],
        "not_timed": times["not_timed"],
        "other_ms": {name: ms for name, ms in times["layers"].items() if name not in named},
        "roofline": roof,
        "machine": machine.describe(),
    }


def _row(layer: LayerProfile, times: Mapping[str, float], roof: JsonObject | None) -> JsonObject:
    peak = roof["peak"].get(layer.precision) if roof else None
    row = {**layer.__dict__, "intensity": _finite(layer.flops, layer.dram_bytes), "time_ms": times.get(layer.name)}
    bound = bound_ms(layer.flops, layer.dram_bytes, peak, roof["bandwidth"]) if roof and peak else None
    return {**row, "bound_ms": bound}


def _bounded(layers: list[JsonObject]) -> bool:
    return all(row["bound_ms"] is not None for row in layers)


def _finite(flops: int, dram_bytes: int) -> float | None:
    """Operations per byte; None where nothing moves."""
    return flops / dram_bytes if dram_bytes else None


def _times(subject: Subject, runtime: Any, target: Target, reporter: Reporter) -> JsonObject:
    """Latency and throughput of the file on the target, and the runtime's own profile of it by layer."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            path = subject.file or _deployed(subject, runtime, target, Path(folder), reporter)
            session = runtime.open_file(path, target)
        except DeployError as error:
            if subject.file is not None:
                raise TargetError(f"the package cannot be opened on {target}: {error}") from error
            nothing = dict.fromkeys(("latency_ms", "per_second", "file_bytes"))
            return {**nothing, "layers": {}, "not_timed": f"it cannot be deployed on {target}: {error}"}
        reporter.progress(f"timing on {target}", 0.0)
        batch = {name: x[: session.batch] for name, x in subject.example.items()}
        times = measure.distribution(session, batch, _calls(session, batch))
        p10, p50, p90, p99 = (float(q) for q in np.percentile(times, (10, 50, 90, 99)))
        return {
            "latency_ms": {"p10": p10, "p50": p50, "p90": p90, "p99": p99, "n": len(times)},
            "per_second": 1e3 * session.batch / p50,
            "file_bytes": path.stat().st_size,
            "layers": runtime.layer_times(path, target, batch),
            "not_timed": "",
        }


def _deployed(subject: Subject, runtime: Any, target: Target, folder: Path, reporter: Reporter) -> Path:
    reporter.progress(f"deploying on {target}", 0.0)
    path = folder / f"model{runtime.SUFFIX}"
    runtime.deploy(subject.module, subject.example, path, target)
    return path


def _calls(session: Predictor, batch: Arrays) -> int:
    """So many calls that timing them takes some seconds."""
    session(batch)
    start = time.perf_counter()
    session(batch)
    return int(min(max(_TIMED_S / (time.perf_counter() - start), _FEWEST), _MOST))
