"""From a recipe to a row: apply its steps, deploy on the target, open the file, score it, time it.

An :class:`Evaluator` lives in the worker process. Everything it takes and gives is JSON, except the model and the task
that it was built with.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from laconic import machine, measure, surgery
from laconic.core import Arrays, Context, Facts, JsonObject, Recipe, Target, Task, digest
from laconic.data import with_reference
from laconic.errors import DeployError, LaconicError, TargetError
from laconic.fake_quantize import PER_TENSOR, attached, weight_quantizer
from laconic.models.loaded import LoadedModel
from laconic.profile import profile
from laconic.runtime import runtime_of
from laconic.runtime.difference import first_difference, relative_error
from laconic.steps import STEPS
from laconic.steps.train.device import Teacher
from laconic.steps.train.fit import Schedule, fit
from laconic.story import alignment
from laconic.story.inputs import require_fit, require_layers, stated
from laconic.story.probes import Probes
from laconic.story.space import space

Progress = Callable[[str, float], None]

BASELINE = Recipe()
LIBRARIES = (
    *("laconic", "torch", "onnx", "onnxruntime", "openvino", "litert-torch", "ai-edge-litert", "executorch"),
    *("tensorrt", "numpy"),
)
_SAMPLES = 8
_PREFIXES_KEPT = 4
_TOLERANCES = {"float": 1e-3, "bf16": 2e-1, "integer": 2e-1}
"""How far a deployed file may be from the model it was made from, ||y - y'|| / ||y||."""


@dataclass(frozen=True)
class Job:
    """What is to be shrunk, and where. ``load`` gives the model and its task; ``folder`` holds the deployed files."""

    load: Callable[[Progress], tuple[LoadedModel, Task]]
    target: Target
    seed: int
    keep: tuple[str, ...]
    folder: Path


class Evaluator:
    """Applies, deploys, scores and times recipes of one model on one target."""

    def __init__(self, job: Job, progress: Progress) -> None:
        torch.set_num_threads(machine.cores())
        self.job, self.progress = job, progress
        self.runtime = runtime_of(job.target)
        progress("loading the model and the data", 0.0)
        self.loaded, self.task = job.load(progress)
        self.model = self.loaded.module
        require_fit(self.model, self._example(2))
        require_layers(self.model, job.keep)
        self.context = Context(
            traits=self.runtime.traits(job.target),
            seed=job.seed,
            keep=job.keep,
            reference=Teacher(self.model),
            progress=progress,
        )
        self._prefixes: dict[str, tuple[nn.Module, list[Facts]]] = {}

    # ------------------------------------------------------------------------------------------------------ describing

    def describe(self) -> JsonObject:
        """What is known before anything is measured: model, data, versions, and the space of the search."""
        one = {name: x[:1] for name, x in self._example().items()}
        return {**self._identity(), "space": space(self.model, one, self.job.keep, self.context.traits)}

    def _identity(self) -> JsonObject:
        task = self.task
        return {
            "model": {"source": self.loaded.source, "fingerprint": self.loaded.fingerprint, "note": self.loaded.note},
            "data": {"fingerprint": task.fingerprint, **task.provenance},
            "metric": {"name": task.metric.name, "binary": task.metric.binary, "chance": task.metric.chance},
            "splits": {name: len(split) for name, split in self._splits().items()},
            "calibration": min(task.calibration, len(task.train)),
            "trainable": task.trainable,
            "labels": list(task.labels or self.loaded.labels),
            "inputs": stated(self._example(1)),
            "input_shape": list(next(iter(self._example(1).values())).shape[1:]),
            "preprocess": task.preprocess.to_json() if task.preprocess else None,
            "seed": self.job.seed,
            "keep": list(self.job.keep),
            "libraries": versions(),
            "machine": machine.describe(),
            "machine_key": machine.fingerprint(),
        }

    def _splits(self) -> dict[str, Any]:
        return {"train": self.task.train, "search": self.task.search, "holdout": self.task.holdout}

    def _example(self, n: int = _SAMPLES) -> dict[str, torch.Tensor]:
        batch = self.task.train.read(range(min(n, len(self.task.train))))
        return {name: torch.as_tensor(x) for name, x in batch.inputs.items()}

    # ---------------------------------------------------------------------------------------------------------- trials

    def path(self, key: str) -> Path:
        """Where a trial's deployed file lies."""
        return self.job.folder / f"{key}{self.runtime.SUFFIX}"

    @functools.cached_property
    def baseline_key(self) -> str:
        """The original's key. On first use it is deployed, if it is not there yet; and where there are no labels, its
        decisions become the targets."""
        key = trial_key(self._identity(), BASELINE, self.job.target)
        if not self.path(key).exists():
            try:
                self._deploy(self.model, self.path(key))
            except DeployError as error:
                raise TargetError(f"the original cannot be deployed on {self.job.target}: {error}") from error
        self.task = with_reference(self.task, self._open(key))
        return key

    def rebuild(self, rows: list[JsonObject], key: str) -> None:
        """Deploy a trial's file again if it is gone."""
        if not self.path(key).exists():
            model, _ = self._apply(Recipe.parse(rows, STEPS))
            self._deploy(model, self.path(key))

    def trial(self, rows: list[JsonObject], key: str, baseline: Sequence[float], floor: float) -> JsonObject:
        """Apply, deploy, compare and score a recipe. Scoring ends early where the drop clearly exceeds ``floor``;
        ``baseline`` are the original's records on search (empty for the original itself)."""
        start = time.monotonic()
        row: JsonObject = {"row": "trial", "key": key, "recipe": rows, "target": str(self.job.target)}
        row |= {"error": None, "rejected": None}
        original = key == self.baseline_key
        try:
            model, facts = self._apply(Recipe.parse(rows, STEPS))
            deployed = {} if original else self._deploy(model, self.path(key))
            row |= {"facts": facts, "deployed": deployed, **self._size(model, key)}
            row |= self._score(key, np.asarray(baseline), floor)
        except LaconicError as error:
            if original:
                raise
            row |= {"error": str(error), "kind": type(error).__name__}
        return {**row, "seconds": round(time.monotonic() - start, 3)}

    def _apply(self, recipe: Recipe) -> tuple[nn.Module, list[Facts]]:
        """Apply a recipe, beginning from the longest prefix that was applied lately."""
        model, facts, done = self.model, [], 0
        for length in range(len(recipe.steps), 0, -1):
            known = self._prefixes.get(Recipe(recipe.steps[:length]).key)
            if known is not None:
                model, facts, done = known[0], known[1], length
                break
        facts = list(facts)
        for length in range(done, len(recipe.steps)):
            self.progress(f"applying {type(recipe.steps[length]).__name__}", 0.0)
            model, new = Recipe(recipe.steps[length : length + 1]).apply(model, self.task, self.context)
            facts += new
            self._prefixes[Recipe(recipe.steps[: length + 1]).key] = (model, list(facts))
            while len(self._prefixes) > _PREFIXES_KEPT:
                del self._prefixes[next(iter(self._prefixes))]
        return model, facts

    def _deploy(self, model: nn.Module, path: Path) -> Facts:
        """Write the file under another name first, open it, compare it with the model, then give it its name."""
        self.progress("deploying", 0.0)
        example = {name: x.numpy() for name, x in self._example().items()}
        part = path.with_name(f"part-{path.name}")
        try:
            facts = self.runtime.deploy(model, example, part, self.job.target)
            facts["difference"] = self._compare(model, part, example)
            part.rename(path)
        finally:
            part.unlink(missing_ok=True)
        return facts

    def _compare(self, model: nn.Module, path: Path, example: Arrays) -> float:
        found = self.runtime.open_file(path, self.job.target)(example)
        with torch.no_grad():
            wanted = surgery.call(model.eval(), {name: torch.as_tensor(x) for name, x in example.items()})
        pairs = zip(found.values(), wanted.values(), strict=True)  # by position: an ONNX file has names of its own
        errors = [relative_error(y, y_wanted.numpy()) for y, y_wanted in pairs]
        tolerance = _TOLERANCES[_arithmetic(model)]
        if max(errors) <= tolerance:
            return max(errors)
        if path.suffix == ".onnx":
            where = first_difference(model, path, example, tolerance, self._open_path)
            beginning = f"it begins at layer {where}" if where else "no single layer differs"
        else:
            beginning = (
                f"at which layer is not known, since {self.job.target.runtime} does not show its layers' values: "
                "deploy the recipe with --target onnxruntime, which does"
            )
        found_error = f"relative error {max(errors):.2g}, allowed {tolerance:g}"
        raise DeployError(f"the deployed file does not agree with the model ({found_error}); {beginning}")

    def _size(self, model: nn.Module, key: str) -> JsonObject:
        path = self.path(key)
        found = profile(model, {name: x[:1] for name, x in self._example().items()})
        content = path.read_bytes()
        return {
            "file_bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
            "macs": found.macs,
            "params": found.params,
            "unsupported": found.unsupported,
            "layers": [[row.name, row.macs, row.params] for row in found.layers if row.macs or row.params],
        }

    def _score(self, key: str, baseline: Any, floor: float) -> JsonObject:
        def hopeless(records: Any) -> bool:
            if not len(baseline) or len(records) < 100:
                return False
            lost = baseline[: len(records)] - records
            return bool(lost.mean() - 3 * lost.std(ddof=1) / np.sqrt(len(lost)) > floor)

        self.progress("scoring on search", 0.0)
        metric, search = self.task.metric, self.task.search
        records = measure.records(
            self._open(key), search, metric, stop=hopeless, progress=lambda f: self.progress("scoring on search", f)
        )
        early = len(records) < len(search)
        return {
            "score": metric.aggregate(records),
            "records": pack_records(records, metric.binary),
            "rejected": f"after {len(records)} of {len(search)} samples its drop was clear" if early else None,
        }

    # ------------------------------------------------------------------------------------------------- times and proof

    def latency(self, key: str, rounds: int) -> JsonObject:
        """Time a trial's file against the original's, interleaved."""
        start = time.monotonic()
        self.progress("timing", 0.0)
        found = measure.paired(self._open(self.baseline_key), self._open(key), self._one_batch(), rounds)
        raw = {"before_ms": found.before_ms, "candidate_ms": found.candidate_ms, "after_ms": found.after_ms}
        return {
            "row": "latency",
            "key": key,
            "machine": machine.fingerprint(),
            "calls_per_burst": found.calls_per_burst,
            "raw": {name: [round(float(t), 6) for t in times] for name, times in raw.items()},
            "wall_ratio": [round(float(r), 5) for r in found.wall_ratio],
            "drift": round(found.drift, 4),
            "clocks": round(found.clocks, 4),
            "noisy": found.noisy,
            "seconds": round(time.monotonic() - start, 3),
        }

    def profile(self, key: str) -> JsonObject:
        """Milliseconds in each layer of a trial's file, from the runtime's own profile."""
        start = time.monotonic()
        self.progress("profiling", 0.0)
        layers = self.runtime.layer_times(self.path(key), self.job.target, self._one_batch())
        seconds = round(time.monotonic() - start, 3)
        return {"row": "profile", "key": key, "machine": machine.fingerprint(), "layers": layers, "seconds": seconds}

    def alignment(self, rows: list[JsonObject], key: str) -> JsonObject:
        """To what multiple the target's kernels fill channels up, in the arithmetic of these steps: 1 where they
        cannot be applied to :class:`.alignment.Widths`."""
        start = time.monotonic()
        self.progress("measuring which counts of channels are fast", 0.0)
        row: JsonObject = {"row": "probe", "key": key, "machine": machine.fingerprint(), "alignment": 1, "error": None}
        try:
            row["alignment"] = alignment.measured(Recipe.parse(rows, STEPS), self.job.target)
        except LaconicError as error:
            row["error"] = str(error)
        return {**row, "seconds": round(time.monotonic() - start, 3)}

    def _one_batch(self) -> Arrays:
        """Samples of search for one call at the target's batch."""
        return self.task.search.read([i % len(self.task.search) for i in range(self.job.target.batch)]).inputs

    def holdout(self, keys: Sequence[str]) -> dict[str, str | list[float]]:
        """The records of the original's and these trials' files on the holdout."""
        found: dict[str, str | list[float]] = {}
        for key in (self.baseline_key, *keys):
            self.progress("opening the holdout", len(found) / (len(keys) + 1))
            records = measure.records(self._open(key), self.task.holdout, self.task.metric)
            found[key] = pack_records(records, self.task.metric.binary)
        return found

    def samples(self) -> JsonObject:
        """What the original's file says of the first samples of search, beside what it should say."""
        outputs_of = self._open(self.baseline_key)
        batch = self.task.search.read(range(min(_SAMPLES, len(self.task.search))))
        outputs = outputs_of(batch.inputs)
        if not self.task.metric.binary or batch.targets is None:
            return {"predicted": [], "wanted": []}
        return {"predicted": self.task.metric.decide(outputs).tolist(), "wanted": batch.targets.tolist()}

    # ---------------------------------------------------------------------------------------------------------- probes

    @functools.cached_property
    def _probes(self) -> Probes:
        return Probes(self.model, self.task, self.context)

    def probe(self, rows: list[JsonObject], key: str) -> JsonObject:
        """How far a recipe moves the outputs (:meth:`Probes.damage`)."""
        start = time.monotonic()
        row: JsonObject = {"row": "probe", "key": key, "recipe": rows, "damage": None, "error": None}
        try:
            row["damage"] = self._probes.damage(rows)
        except LaconicError as error:
            row["error"] = str(error)
        return {**row, "seconds": round(time.monotonic() - start, 3)}

    def exchange(self, recipes: dict[str, list[JsonObject]], base: str, key: str) -> JsonObject:
        """How far single layers do, as others have them (:meth:`Probes.exchange`)."""
        start = time.monotonic()
        damages, error = self._probes.exchange(recipes, base)
        row = {"row": "probe", "key": key, "damages": damages, "error": error}
        return {**row, "seconds": round(time.monotonic() - start, 3)}

    def probe_training(self) -> JsonObject:
        """Seconds that training takes per sample of the original network, distillation included."""
        model, train = copy.deepcopy(self.model), self.task.train
        batch, start = min(64, len(train)), time.monotonic()
        for steps in (2, 8):  # the first steps of a network are slow: memory is found, kernels are chosen
            few = Schedule(steps * batch / len(train), lr=1e-6, batch=batch, weight_decay=0, distill=0.5, temperature=4)
            began = time.monotonic()
            fit(model, train, self.task.loss, self.context.reference, few, self.job.seed, lambda text, f: None)
        per_sample, spent = (time.monotonic() - began) / (8 * batch), time.monotonic() - start
        return {"row": "probe", "key": "training", "seconds_per_sample": per_sample, "seconds": round(spent, 3)}

    def _open(self, key: str) -> Any:
        return self._open_path(self.path(key))

    def _open_path(self, path: Path) -> Any:
        return self.runtime.open_file(path, self.job.target)


def _arithmetic(model: nn.Module) -> str:
    weights = filter(None, map(weight_quantizer, surgery.weighted_layers(model).values()))
    if attached(model) is not None or any(quantizer.axis != PER_TENSOR for quantizer in weights):
        return "integer"  # kernels for weights with a scale per output or block round the activations while they run
    return "float" if getattr(model, "precision", "f32") == "f32" else "bf16"


def trial_key(described: JsonObject, recipe: Recipe, target: Target) -> str:
    """A trial's key: everything that its result depends on, the machine's speed excepted."""
    inputs = [described["model"]["fingerprint"], described["data"]["fingerprint"], recipe.key, str(target)]
    return digest([*inputs, described["seed"], described["keep"], described["libraries"]])


def pack_records(records: Any, binary: bool) -> str | list[float]:
    """Records as JSON: a string of 0 and 1, or a list."""
    return "".join("1" if r else "0" for r in records) if binary else [float(r) for r in records]


def versions() -> dict[str, str]:
    """The versions of the libraries that a result depends on; those not installed are left out."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
