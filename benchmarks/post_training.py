"""How small a packed file gets without training and without labels: weights rounded at a price for their bytes, beside
uniform weights of 4 and 5 bits rounded by GPTQ, all in the ``.lac`` file.

Activations stay in float. Labels are hidden from every step and choose nothing: search and holdout are both unseen, and
say what a file loses. Sizes are whole files, beside the original's ONNX file in float32.

``python -m benchmarks.post_training NAME ...`` runs the networks whose names hold one of these words again; the rows of
all others stay in the record.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import peers, records
from benchmarks.networks import NETWORKS, Network, in_order
from laconic import measure, proof
from laconic.core import Array, JsonObject, Recipe, Step, Target
from laconic.pack import container
from laconic.search.space import Space
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.rate_distortion import RateDistortion
from laconic.steps.quantize.weights import QuantizeWeights
from laconic.story.evaluate import Evaluator, Job

TARGET = Target("onnxruntime")
NAMES = ("ResNet-20", "transformer", "MobileNetV1", "SqueezeNet")
BITS = (4, 5)
PRICES = (0.0015, 0.003, 0.006, 0.012)  # of all weights at one bit each, in units of the loss


def main(folder: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each network."""
    found: dict[str, Any] = {"skipped": {}, "rows": []}
    kept = records.read("post_training") if words else {}
    if kept:
        found |= {key: kept[key] for key in found}
    for name, network in records.opened(NETWORKS, words or NAMES, found["skipped"]):
        with tempfile.TemporaryDirectory() as scratch:
            rows = [{"network": name, **row} for row in _rows(network, Path(scratch))]
        print(*rows, sep="\n", flush=True)
        found["rows"] = in_order([row for row in found["rows"] if row["network"] != name] + rows)
        records.write(folder, "post_training", found)
    return found


def _rows(network: Network, work: Path) -> Iterator[JsonObject]:
    task, splits = network.task, {"search": network.task.search, "holdout": network.task.holdout}
    hidden = replace(task, loss=None)  # what asks for labels gets those that the original gives
    evaluator = Evaluator(Job(lambda progress: (network.loaded, hidden), TARGET, 0, (), work), lambda text, f: None)
    kilobytes = sum(layer.params for layer in Space.of(evaluator.describe()).layers) / 8000  # of one bit per weight
    recipes: dict[str, tuple[Step, ...]] = {
        f"{bits} bits, GPTQ": (QuantizeWeights(bits, group=0), GPTQ()) for bits in BITS
    }  # fmt: skip
    recipes |= {f"priced, {p:g}": (RateDistortion(price=float(f"{p / kilobytes:.2g}")),) for p in PRICES}

    def scores(path: Path) -> tuple[Array, dict[str, Array]]:
        file = evaluator.runtime.open_file(path, TARGET)
        right = {name: measure.records(file, split, task.metric) for name, split in splits.items()}
        return peers.decisions(file, tuple(splits.values()), task), right

    original = evaluator.path(evaluator.baseline_key)
    wanted, before = scores(original)
    for name, steps in recipes.items():
        recipe = Recipe(steps)
        trial = evaluator.trial(recipe.to_json(), recipe.key, [], 1.0)
        if trial["error"]:
            raise RuntimeError(f"{recipe}: {trial['error']}")
        packed = container.pack_file(evaluator.path(recipe.key))
        decided, after = scores(evaluator.path(recipe.key))
        row = {"name": name, "recipe": recipe.to_json(), "seconds": trial["seconds"]}
        row |= {"packed_bytes": len(packed.content), "payload_bytes": packed.payload}
        row |= {"float_bytes": original.stat().st_size, "ratio": original.stat().st_size / len(packed.content)}
        row |= {"agreement": float((decided == wanted).mean()), "n": len(wanted), "n_holdout": len(task.holdout)}
        row["search_drop"] = float((before["search"] - after["search"]).mean())
        row["drop"], row["bound"] = proof.bound_drop(before["holdout"], after["holdout"], 0.95, binary=True)
        yield row


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
