"""NetAdapt on measured latency beside the same search on MACs, without training: on ONNX Runtime and OpenVINO.

Both searches have the same choices (channels of every group, layers as products), the same damages and the same code
(:mod:`laconic.search.netadapt`); what they count is the only difference: milliseconds from tables of the runtime's own
profile, or MACs. Every cut is deployed and scored on search, until it has lost more than :data:`ENOUGH`. Then, for each
drop allowed, the fastest file of either search that keeps it is taken, both are scored on the holdout, and timed
against each other and against the float file in turns, on one thread at batch 1. What is left of a network is recovered
by least squares from calibration samples.

``python -m benchmarks.netadapt NAME ...`` runs the networks whose names hold one of these words again; the rows of all
others stay in the record.
"""

from __future__ import annotations

import dataclasses
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import cifar, networks, peers, records, vgg
from laconic import measure, models, proof
from laconic.core import JsonObject, Measurement, Recipe, Target, Task, Trial
from laconic.data.source import Rows
from laconic.goal import Goal
from laconic.search.choose import Judge
from laconic.search.costs import Costs, counted
from laconic.search.netadapt import netadapt, spaced
from laconic.search.space import Allocation, Space
from laconic.search.structure import Structure
from laconic.search.tools import Tools
from laconic.steps import STEPS
from laconic.story.evaluate import Evaluator, Job

RUNTIMES = ("onnxruntime", "openvino")
ALLOWED = (0.01, 0.02, 0.03)
ENOUGH = 0.04


class Network(NamedTuple):
    """``saving``: of the cost that is left, between two files; ``probed``: whether a cut is chosen by probes of the
    whole, or by the damages of each alone, which is cheaper; ``scored``: at most so many samples of search choose among
    files; ``calibration``: so many recover them."""

    build: Callable[[], tuple[models.LoadedModel, Task]]
    saving: float
    probed: bool
    scored: int
    calibration: int

    def told(self, task: Task) -> Task:
        """The task as the benchmark has it: nothing is trained, and some samples alone choose."""
        some = Rows(task.search, np.arange(min(self.scored, len(task.search))))
        return dataclasses.replace(task, calibration=self.calibration, trainable=False, search=some)


def _resnet20() -> tuple[models.LoadedModel, Task]:
    loaded = models.load("zoo:cifar-resnet-20")
    trained, _, _ = cifar.trained("resnet20-cifar10")
    return dataclasses.replace(loaded, module=trained), cifar.load()


def _mobilenet() -> tuple[models.LoadedModel, Task]:
    network = networks.NETWORKS["MobileNetV1 0.75, ImageNet"]()
    return network.loaded, network.task


NETWORKS = {
    "ResNet-20, CIFAR-10": Network(_resnet20, 0.02, True, 1000, 128),
    "VGG, Fashion-MNIST": Network(partial(vgg.load, "fashion"), 0.02, True, 2000, 128),
    "MobileNetV1 0.75, ImageNet": Network(_mobilenet, 0.03, False, 300, 64),
}


def main(folder: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each network and runtime."""
    found: dict[str, Any] = {"skipped": {}, "networks": {}, "rows": []}
    kept = records.read("netadapt") if words else {}
    if kept:
        found |= {key: kept[key] for key in found}
    builders = {name: network.build for name, network in NETWORKS.items()}
    for name, (loaded, task) in records.opened(builders, words, found["skipped"]):
        network, known = NETWORKS[name], dict[str, float | None]()
        found["networks"][name] = {**network._asdict(), "build": None}
        found["rows"] = [row for row in found["rows"] if row["network"] != name]
        for runtime in RUNTIMES:
            with tempfile.TemporaryDirectory() as scratch:
                for row in Bench(loaded, network.told(task), runtime, network, known, Path(scratch)).rows():
                    found["rows"].append({"network": name, "target": runtime, **row})
                    print(found["rows"][-1], flush=True)
            records.write(folder, "netadapt", found)
    return found


class Bench:
    """One network on one runtime; ``known`` are its probes, which are the same on each. ``multiple``: of channels,
    where it is not to be the one that the runtime's kernels like."""

    def __init__(
        self,
        loaded: models.LoadedModel,
        task: Task,
        runtime: str,
        network: Network,
        known: dict[str, Any],
        work: Path,
        multiple: int | None = None,
    ) -> None:
        self.task, self.target, self.network, self.known = task, Target(runtime), network, known
        self.evaluator = Evaluator(Job(lambda progress: (loaded, task), self.target, 0, (), work), lambda text, f: None)
        if multiple:
            context = self.evaluator.context
            traits = dataclasses.replace(context.traits, channel_multiple=multiple)
            self.evaluator.context = dataclasses.replace(context, traits=traits)
        self.space = Space.of(self.evaluator.describe())
        self.baseline = self.evaluator.path(self.evaluator.baseline_key)
        goal = Goal()
        tools = Tools(
            STEPS, self._evaluate, self._probe, lambda *_: {}, self._layer_times, self._alignment, lambda: 0.0
        )
        judge = Judge(goal, ENOUGH, self._evaluate(Recipe()))
        self.structure = Structure(self.space, goal, judge, tools, self._attempt, lambda effort, macs: 0.0, tail=())

    def rows(self) -> Iterator[JsonObject]:
        """First every cut of both searches, then what is compared."""
        counts = {"latency": self.structure.costs, "MACs": counted(self.space, "macs")}
        paths = {name: list(self._path(costs)) for name, costs in counts.items()}
        for name, path in paths.items():
            for row in path:
                yield {"search": name, **row}
        for allowed in ALLOWED:
            best = {name: self._fastest(path, allowed) for name, path in paths.items()}
            if all(best.values()):
                yield {"allowed": allowed, **self._compared(best)}

    def _path(self, costs: Costs) -> Iterator[JsonObject]:
        """Cut after cut until enough is lost: what is predicted, and what the deployed file is."""
        structure = self.structure
        loses = structure.probe if self.network.probed else structure.damage.of
        whole = structure.judge.baseline.measurements["score"].value
        cuts = netadapt(Allocation(), costs, structure.damage, loses)
        for allocation in spaced(cuts, costs, Allocation(), self.network.saving):
            recipe = Recipe(structure.steps(allocation))
            row = self.evaluator.trial(recipe.to_json(), recipe.key, [], 1.0)
            drop = round(whole - row["score"], 9)
            speed = self._ratio(self.baseline, self.evaluator.path(recipe.key))
            counted = {"macs": row["macs"], "file_bytes": row["file_bytes"], "predicted": costs.of(allocation)}
            yield {"recipe": recipe.to_json(), "key": recipe.key, "drop_on_search": drop, "speed": speed, **counted}
            if drop > ENOUGH:
                return

    def _fastest(self, path: list[JsonObject], allowed: float) -> JsonObject | None:
        holding = [row for row in path if row["drop_on_search"] <= allowed]
        return max(holding, key=lambda row: row["speed"]["value"], default=None)

    def _compared(self, best: dict[str, Any]) -> JsonObject:
        """Both files on the holdout, and their speeds against the float file and against each other."""
        files = {name: self.evaluator.path(row["key"]) for name, row in best.items()}
        right = {name: self._right(path) for name, path in {"float": self.baseline, **files}.items()}
        found: JsonObject = {"n": len(right["float"]), "top1_float": float(right["float"].mean())}
        for name, path in files.items():
            drop, bound = proof.bound_drop(right["float"], right[name], 0.95, binary=True)
            speed = self._ratio(self.baseline, path)
            found[name] = {"top1": float(right[name].mean()), "drop": drop, "drop_at_most": bound, "speed": speed}
            found[name] |= {key: best[name][key] for key in ("macs", "file_bytes", "recipe")}
        return {**found, "latency_over_macs": self._ratio(files["MACs"], files["latency"])}

    def _right(self, path: Path) -> Any:
        session = self.evaluator.runtime.open_file(path, self.target)
        return np.asarray(measure.records(session, self.task.holdout, self.task.metric))

    def _ratio(self, baseline: Path, candidate: Path) -> JsonObject:
        before, after = (self.evaluator.runtime.open_file(path, self.target) for path in (baseline, candidate))
        return peers.ratio(before, after, self.task.search.read([0]).inputs)

    # ----------------------------------------------------------------------------------------------- the search's tools

    def _attempt(self, *steps: Any) -> Trial:
        return self._evaluate(Recipe(steps))

    def _evaluate(self, recipe: Recipe) -> Trial:
        """Deployed and scored; not timed."""
        key = recipe.key if recipe.steps else self.evaluator.baseline_key
        row = self.evaluator.trial(recipe.to_json(), key, [], 1.0)
        score = Measurement("score", "", row["score"], row["score"], row["score"], len(row["records"]), "measured")
        return Trial(recipe.key, recipe, self.target, measurements={"score": score})

    def _probe(self, recipe: Recipe) -> float | None:
        if recipe.key not in self.known:
            self.known[recipe.key] = self.evaluator.probe(recipe.to_json(), recipe.key)["damage"]
        damage: float | None = self.known[recipe.key]
        return damage

    def _layer_times(self, recipe: Recipe) -> dict[str, float]:
        key = recipe.key if recipe.steps else self.evaluator.baseline_key
        times: dict[str, float] = self.evaluator.profile(key)["layers"]
        return times

    def _alignment(self, recipe: Recipe) -> int:
        found: int = self.evaluator.alignment(recipe.to_json(), "alignment")["alignment"]
        return found


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
