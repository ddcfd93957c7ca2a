"""Cutting where the modelled energy is, beside cutting the smallest magnitudes, without training.

The first is NetAdapt's search (:mod:`laconic.search.netadapt`), with the energy that :mod:`laconic.profile` models as
its cost (the 45 nm table, with DRAM traffic behind a cache of 1 MB), recovered by least squares from calibration
samples; the second removes the channels of the least L2 norm of all groups together, more and more of them, once as
they are, which is the order that is usual, and once recovered by the same least squares from the same samples. Every
network is deployed and scored; energies are *modelled*, of the whole network, none is measured. The model knows no
blocks of channels, so channels go one at a time. For each drop that is allowed on search, the file of least energy of
each is scored on the holdout.

``python -m benchmarks.energy NAME ...`` runs the networks whose names hold one of these words again; the rows of all
others stay in the record.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from benchmarks import records
from benchmarks.netadapt import NETWORKS, Bench
from laconic.core import JsonObject, Recipe, Task
from laconic.profile import profile
from laconic.search.netadapt import netadapt, spaced
from laconic.search.space import Allocation
from laconic.steps.prune.channels import PruneChannels, channels_kept
from laconic.steps.prune.groups import coupling, pruned

CHOSEN = ("ResNet-20, CIFAR-10", "VGG, Fashion-MNIST")
CALIBRATION, MULTIPLE = 512, 1
ALLOWED = (0.01, 0.02, 0.03)
ENOUGH = 0.04
CUT, SAVING = 0.01, 0.02
"""What a cut saves of the energy that is left, at the least, and what lies between two files."""
RATIOS = tuple(n / 50 for n in range(1, 50))
Recovery = Literal["none", "least_squares"]
MAGNITUDE: dict[str, Recovery] = {"magnitude": "none", "magnitude, least squares": "least_squares"}


def main(folder: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each network."""
    found: dict[str, Any] = {"calibration": CALIBRATION, "saving": SAVING, "skipped": {}, "rows": []}
    kept = records.read("energy") if words else {}
    if kept:
        found |= {key: kept[key] for key in ("skipped", "rows")}
    builders = {name: NETWORKS[name].build for name in CHOSEN}
    for name, (loaded, task) in records.opened(builders, words, found["skipped"]):
        network = NETWORKS[name]._replace(calibration=CALIBRATION)
        with tempfile.TemporaryDirectory() as scratch:
            bench = Energy(loaded, network.told(task), "onnxruntime", network, {}, Path(scratch), multiple=MULTIPLE)
            rows = [{"network": name, **row} for row in bench.rows()]
        found["rows"] = [row for row in found["rows"] if row["network"] != name] + rows
        records.write(folder, "energy", found)
    return found


class Modelled:
    """What an allocation costs: the energy of the network that it leaves, over the whole one's. Which channels go does
    not matter to it, nor what the rest becomes: no more data is asked than a step needs to run."""

    def __init__(self, bench: Energy) -> None:
        self.space, self._bench = bench.space, bench
        self._model = copy.deepcopy(bench.evaluator.model)  # coupling may change it
        self._graph = coupling(self._model, bench.example, (), tried=()).graph
        self._few = dataclasses.replace(bench.task, calibration=2)
        self._known: dict[str, float] = {}

    def of(self, allocation: Allocation) -> float:
        steps = self._bench.structure.steps(allocation)
        key = Recipe(steps).key
        if key not in self._known:
            self._known[key] = self._of(steps)
        return self._known[key]

    def _of(self, steps: Sequence[Any]) -> float:
        by_channels = any(isinstance(step, PruneChannels) for step in steps)
        model, others = copy.deepcopy(self._model if by_channels else self._bench.evaluator.model), []
        graph = copy.copy(self._graph)  # it goes with the model that is pruned
        for step in steps:
            if isinstance(step, PruneChannels):
                counts = {name: len(graph.units[name]) for name in step.layers}
                gone = {name: range(channels_kept(n, step.layers[name], MULTIPLE), n) for name, n in counts.items()}
                pruned(model, graph, {name: list(channels) for name, channels in gone.items() if channels})
            else:
                others.append(dataclasses.replace(step, recovery="none") if hasattr(step, "recovery") else step)
        return self._bench.energy(model, Recipe(tuple(others)), self._few)


class Energy(Bench):
    """One network; its costs are modelled picojoules."""

    def rows(self) -> Iterator[JsonObject]:
        self.structure.costs = Modelled(self)  # type: ignore[assignment]  # what a search of cuts alone asks of costs
        paths = {"energy": list(self._by_energy())}
        paths |= {name: list(self._by_magnitude(recovery)) for name, recovery in MAGNITUDE.items()}
        for name, path in paths.items():
            yield from ({"order": name, **row} for row in path)
        right = self._right(self.baseline)
        for allowed in ALLOWED:
            found: JsonObject = {"allowed": allowed, "n": len(right), "top1_float": float(right.mean())}
            for name, path in paths.items():
                holding = [row for row in path if row["drop_on_search"] <= allowed]
                best = min(holding, key=lambda row: row["energy"], default=None)
                if best is not None:
                    found[name] = {**best, "top1": float(self._right(self.evaluator.path(best["key"])).mean())}
            print(found, flush=True)
            yield found

    @cached_property
    def example(self) -> dict[str, torch.Tensor]:
        return {name: torch.as_tensor(x) for name, x in self.task.search.read([0]).inputs.items()}

    @cached_property
    def _whole(self) -> float:
        return profile(self.evaluator.model.eval(), self.example).energy.total_pj

    def energy(self, model: nn.Module, recipe: Recipe, task: Task) -> float:
        """Of what the recipe makes of ``model``, over the original's."""
        changed, _ = recipe.apply(model, task, self.evaluator.context)
        return profile(changed.eval(), self.example).energy.total_pj / self._whole

    def _by_energy(self) -> Iterator[JsonObject]:
        structure, costs = self.structure, self.structure.costs
        cuts = netadapt(Allocation(), costs, structure.damage, structure.probe, CUT)
        for allocation in spaced(cuts, costs, Allocation(), SAVING):
            row = self._row(Recipe(structure.steps(allocation)))
            yield row
            if row["drop_on_search"] > ENOUGH:
                return

    def _by_magnitude(self, recovery: Recovery) -> Iterator[JsonObject]:
        for ratio in RATIOS:
            row = self._row(Recipe((PruneChannels(ratio, scope="global", criterion="l2", recovery=recovery),)))
            yield row
            if row["drop_on_search"] > ENOUGH:
                return

    def _row(self, recipe: Recipe) -> JsonObject:
        whole = self.structure.judge.baseline.measurements["score"].value
        row = self.evaluator.trial(recipe.to_json(), recipe.key, [], 1.0)
        found = {"recipe": recipe.to_json(), "key": recipe.key, "macs": row["macs"]}
        found |= {
            "drop_on_search": round(whole - row["score"], 9),
            "energy": self.energy(self.evaluator.model, recipe, self.task),
        }
        print(found, flush=True)
        return found


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
