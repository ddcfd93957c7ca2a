"""Cutting where the modelled energy is, beside cutting the smallest magnitudes, without training.

The first is NetAdapt's search (:mod:`laconic.search.netadapt`) with the energy of :mod:`laconic.profile` as its cost
(the 45 nm table, with DRAM traffic behind a cache of 1 MB), by layer at a few widths, recovered by least squares from
calibration samples; the second removes the channels of the least L2 norm of all groups together, more and more of them,
once as they are, which is the order that is usual, and once recovered by the same least squares. Every network is
deployed and scored; energies are *modelled*, of the whole network, none is measured. For each drop that is allowed on
search, the file of least energy of each is scored on the holdout.

``python -m benchmarks.energy NAME ...`` runs the networks whose names hold one of these words again; the rows of all
others stay in the record.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import records
from benchmarks.netadapt import NETWORKS, Bench
from laconic.core import JsonObject, Recipe
from laconic.profile import Profile, profile
from laconic.search.costs import Costs, tabulated
from laconic.search.space import PROBED_FORMS, Allocation
from laconic.search.structure import TIMED_KEEPS
from laconic.steps.prune.channels import PruneChannels

CHOSEN = ("ResNet-20, CIFAR-10", "VGG, Fashion-MNIST")
ALLOWED = (0.01, 0.02, 0.03)
ENOUGH, SAVING = 0.04, 0.03
RATIOS = tuple(n / 50 for n in range(1, 50))
Recovery = Literal["none", "least_squares"]
MAGNITUDE: dict[str, Recovery] = {"magnitude": "none", "magnitude, least squares": "least_squares"}


def main(folder: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each network."""
    found: dict[str, Any] = {"saving": SAVING, "skipped": {}, "rows": []}
    kept = records.read("energy") if words else {}
    if kept:
        found |= {key: kept[key] for key in found}
    builders = {name: NETWORKS[name].build for name in CHOSEN}
    for name, (loaded, task) in records.opened(builders, words, found["skipped"]):
        network = NETWORKS[name]
        with tempfile.TemporaryDirectory() as scratch:
            bench = Energy(loaded, network.told(task), "onnxruntime", network, {}, Path(scratch))
            rows = [{"network": name, **row} for row in bench.rows()]
        found["rows"] = [row for row in found["rows"] if row["network"] != name] + rows
        records.write(folder, "energy", found)
    return found


class Energy(Bench):
    """One network; its costs are modelled picojoules."""

    def rows(self) -> Iterator[JsonObject]:
        self.structure.costs = self._costs()
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

    def _costs(self) -> Costs:
        """Tables of the layers' energies, as the search has them of milliseconds."""
        widths = {1.0: self._table(Recipe())}
        widths |= {keep: self._table(Recipe((PruneChannels(1 - keep),))) for keep in TIMED_KEEPS}
        names = [layer.name for layer in self.space.factorable]
        forms = {form: self.structure.steps(Allocation(forms=dict.fromkeys(names, form))) for form in PROBED_FORMS}
        found = tabulated(self.space, widths, {form: self._table(Recipe(steps)) for form, steps in forms.items()})
        if found is None:
            raise RuntimeError("most of the energy is in no layer")
        return found

    def _table(self, recipe: Recipe) -> dict[str, float]:
        return {row.name: row.energy_pj for row in self._profile(recipe).layers}

    def _profile(self, recipe: Recipe) -> Profile:
        model, _ = recipe.apply(self.evaluator.model, self.task, self.evaluator.context)
        return profile(model.eval(), {n: torch.as_tensor(x) for n, x in self.task.search.read([0]).inputs.items()})

    def _by_energy(self) -> Iterator[JsonObject]:
        costs = self.structure.costs
        for allocation in self.structure.cuts(Allocation(), SAVING):
            row = self._row(Recipe(self.structure.steps(allocation))) | {"predicted": costs.of(allocation)}
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
        energy = self._profile(recipe).energy.total_pj / self._profile(Recipe()).energy.total_pj
        found = {"recipe": recipe.to_json(), "key": recipe.key, "macs": row["macs"]}
        found |= {"drop_on_search": whole - row["score"], "energy": energy}
        print(found, flush=True)
        return found


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
