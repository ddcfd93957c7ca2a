"""Mixed precision beside uniform precision of the same file size: weights of 3 and 4 bits on every network of
:mod:`benchmarks.networks`, activations of 8.

The budget of a mixed file is the bytes of the uniform one, both as deployed for ONNX Runtime, where each width takes
what :data:`laconic.runtime.onnx_codes.WIDTHS` says. (2 bits are the least that a file can hold: of that size there is
the uniform one alone.) The layers' widths come from the functions that the search uses: the damage of each layer alone
in each width, measured on calibration samples, and the knapsack; where a file still comes out larger than it was
counted, its limit is lowered by what it was too much. Both sides are rounded by GPTQ with bias correction. Nothing is
searched and nothing is trained: so search and holdout are both unseen, and every file is compared with the float one on
all of their samples. Where there are calibration samples enough, both recipes are calibrated again with others (their
bits are those of the first), and a sample's record is the share of the files that agree with the float one on it.

``python -m benchmarks.mixed NAME ...`` runs the networks whose names hold one of these words again; the rows of all
others stay in the record.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import peers, records
from benchmarks.networks import NETWORKS, Network, in_order
from benchmarks.quantization import less
from laconic.core import Array, JsonObject, Recipe, Target, Task
from laconic.search.knapsack import least_damage
from laconic.search.precision import exchanged, near, sizes, with_bits
from laconic.search.space import Space
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.post_training import Quantize
from laconic.story.evaluate import Evaluator, Job

TARGET = Target("onnxruntime")
STEP, ROUNDING = Quantize(weight_ranges="mse"), GPTQ()
UNIFORM = (3, 4)
_ATTEMPTS = 6
_DRAWS = 5

Bits = Mapping[str, int]


def main(folder: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each network."""
    found: dict[str, Any] = {"recipe": Recipe((STEP, ROUNDING)).to_json(), "skipped": {}, "networks": {}, "rows": []}
    kept = records.read("mixed") if words else {}
    if kept and kept["recipe"] == found["recipe"]:
        found |= {key: kept[key] for key in found}
    for name, network in records.opened(NETWORKS, words, found["skipped"]):
        with tempfile.TemporaryDirectory() as scratch:
            bench = Bench(network, Path(scratch))
            found["networks"][name] = {"params": bench.params, "damage": bench.damage}
            rows = [{"network": name, **row} for row in bench.rows()]
        print(*rows, sep="\n", flush=True)
        found["rows"] = in_order([row for row in found["rows"] if row["network"] != name] + rows)
        records.write(folder, "mixed", found)
    return found


class Bench:
    """One network: what its layers bear, and its files."""

    def __init__(self, network: Network, work: Path) -> None:
        self.network = network
        tasks = (network.task, *network.draws)[:_DRAWS]
        self.evaluators = [self._evaluator(task, work / str(i)) for i, task in enumerate(tasks)]
        self.evaluator = self.evaluators[0]
        space = Space.of(self.evaluator.describe())
        self.params = {layer.name: layer.params for layer in space.layers}
        self.stored = {bits: width.bits for bits, width in space.widths.items()}
        self.cost, self.once = sizes(self.params, space.widths)
        self.damage = {
            width: exchanged((STEP, ROUNDING), self.params, near(space.widths, width), self._exchange)
            for width in UNIFORM
        }
        self.wanted = self._decisions(self.evaluator.path(self.evaluator.baseline_key))

    def rows(self) -> Iterator[JsonObject]:
        """For each uniform width the uniform file and the mixed one that is no larger."""
        for width in UNIFORM:
            uniform = self._file(dict.fromkeys(self.params, width))
            mixed = self._fitted(width, uniform["file_bytes"])
            both = {"uniform": self._agrees(uniform["bits"]), "mixed": self._agrees(mixed["bits"])}
            for name, found in (("uniform", uniform), ("mixed", mixed)):
                found |= {"agreement": float(both[name].mean()), "agreement_of_draws": both[name].mean(1).tolist()}
            agrees, same = both["mixed"].mean(0), both["uniform"].mean(0)
            yield {"width": width, "n": len(same), "uniform": uniform, "mixed": mixed, **less(agrees, same)}

    def _fitted(self, width: int, most: int) -> JsonObject:
        """The mixed file of least damage of at most ``most`` bytes, as the uniform one of ``width`` has."""
        limit = sum(of_layer[width] for of_layer in self.cost.values()) + self.once[width]
        for _ in range(_ATTEMPTS):
            damage = self.damage[width]
            cost = {name: {b: self.cost[name][b] for b in of_layer} for name, of_layer in damage.items()}
            bits = least_damage(damage, cost, limit, self.once)
            assert bits is not None
            found = self._file(bits)
            if found["file_bytes"] <= most:
                return found
            limit -= found["file_bytes"] - most
        raise RuntimeError(f"no mixed file of at most {most} bytes in {_ATTEMPTS} attempts")

    def _file(self, bits: Bits) -> JsonObject:
        """What a recipe's deployed file is."""
        row = self._deployed(self.evaluator, bits)
        stored = sum(self.stored[b] * self.params[name] for name, b in bits.items())
        return {
            "file_bytes": row["file_bytes"],
            "bits_per_weight": round(stored / sum(self.params.values()), 3),
            "layers": {str(b): count for b, count in sorted(Counter(bits.values()).items())},
            "bits": dict(bits),
        }

    def _agrees(self, bits: Bits) -> Array:
        """Where the file of each draw agrees with the float one: (draws, samples), 0 or 1."""
        rows = [(evaluator, self._deployed(evaluator, bits)["key"]) for evaluator in self.evaluators]
        return np.array([self._decisions(evaluator.path(key)) == self.wanted for evaluator, key in rows], float)

    def _deployed(self, evaluator: Evaluator, bits: Bits) -> JsonObject:
        recipe = Recipe((with_bits(STEP, bits), ROUNDING))
        row = evaluator.trial(recipe.to_json(), recipe.key, [], 1.0)
        if row["error"]:
            raise RuntimeError(f"{recipe}: {row['error']}")
        return row

    def _evaluator(self, task: Task, folder: Path) -> Evaluator:
        folder.mkdir()
        job = Job(lambda progress: (self.network.loaded, task), TARGET, 0, (), folder)
        return Evaluator(job, lambda text, fraction: None)

    def _decisions(self, path: Path) -> Array:
        task = self.network.task
        return peers.decisions(self.evaluator.runtime.open_file(path, TARGET), (task.search, task.holdout), task)

    def _exchange(self, recipes: Mapping[int, Recipe], base: int) -> dict[str, dict[int, float]]:
        rows = {str(width): recipe.to_json() for width, recipe in recipes.items()}
        found: dict[str, dict[str, float]] = self.evaluator.exchange(rows, str(base), "")["damages"]
        return {name: {int(width): d for width, d in of_layer.items()} for name, of_layer in found.items()}


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
