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

import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import records
from benchmarks.netadapt import NETWORKS, Bench
from laconic.core import JsonObject, Recipe
from laconic.profile import Profile, profile
from laconic.search.netadapt import netadapt, spaced
from laconic.search.space import Allocation
from laconic.steps.prune.channels import PruneChannels

CHOSEN = ("ResNet-20, CIFAR-10", "VGG, Fashion-MNIST")
CALIBRATION = 512
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
            bench = Energy(loaded, network.told(task), "onnxruntime", network, {}, Path(scratch), multiple=1)
            rows = [{"network": name, **row} for row in bench.rows()]
        found["rows"] = [row for row in found["rows"] if row["network"] != name] + rows
        records.write(folder, "energy", found)
    return found


class Modelled:
    """What an allocation costs: the energy of the network that it leaves, over the whole one's."""

    def __init__(self, bench: Energy) -> None:
        self.space, self._bench = bench.space, bench
        self._known: dict[str, float] = {}

    def of(self, allocation: Allocation) -> float:
        steps = [_unrecovered(step) for step in self._bench.structure.steps(allocation)]
        recipe = Recipe(tuple(steps))
        if recipe.key not in self._known:
            self._known[recipe.key] = self._bench.energy(recipe)
        return self._known[recipe.key]


def _unrecovered(step: Any) -> Any:
    """The step, leaving as much, but without asking data which and what the rest becomes."""
    plain = {"criterion": "l2", "recovery": "none"}
    return dataclasses.replace(step, **{name: value for name, value in plain.items() if hasattr(step, name)})


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

    def energy(self, recipe: Recipe) -> float:
        """Of the network that the recipe leaves, over the original's."""
        return self._profile(recipe).energy.total_pj / self._whole

    @cached_property
    def _whole(self) -> float:
        return self._profile(Recipe()).energy.total_pj

    def _profile(self, recipe: Recipe) -> Profile:
        model, _ = recipe.apply(self.evaluator.model, self.task, self.evaluator.context)
        return profile(model.eval(), {n: torch.as_tensor(x) for n, x in self.task.search.read([0]).inputs.items()})

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
        found |= {"drop_on_search": round(whole - row["score"], 9), "energy": self.energy(recipe)}
        print(found, flush=True)
        return found


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
