"""HashedNets beside pruning and clustering, LeNet-300-100 on MNIST: errors of packed files of the same size.

The float network, the pictures and the training are those of :mod:`benchmarks.deep_compression`, with fewer epochs, the
same for both. Densities were chosen so that a pruned and clustered file, packed, is smaller than the hashed one
or about as large.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks import deep_compression, records
from laconic.core import Recipe
from laconic.steps.cluster.hashed import HashedNets
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.prune.gradual import PruneGradually

NAME = "hashed"
SEEDS = (0, 1, 2)
EPOCHS = 12.0
_FLOAT = deep_compression.NETWORKS["LeNet-300-100"]
NETWORK = _FLOAT._replace(training=replace(_FLOAT.training, epochs=EPOCHS))


def _hashed(ratio: float) -> Recipe:
    return Recipe((HashedNets(ratio, epochs=EPOCHS, lr=2e-3, batch=128),))


def _pruned(density: float, bits: int) -> Recipe:
    prune = PruneGradually(density, layers={"fc3": 0.5}, rounds=4, epochs=EPOCHS - 1, lr=2e-3, batch=128)
    return Recipe((prune, Cluster(bits, iterations=1, epochs=1, lr=5e-4, batch=128)))


RECIPES = {
    "1/8 of the numbers, hashed": _hashed(1 / 8),
    "pruned and clustered, as large as 1/8": _pruned(0.45, 6),
    "1/64 of the numbers, hashed": _hashed(1 / 64),
    "pruned and clustered, as large as 1/64": _pruned(0.05, 5),
}


def main(folder: Path) -> dict[str, Any]:
    """Run what the record does not hold yet; it is written after each row."""
    task = deep_compression.load()
    settings = {name: recipe.to_json() for name, recipe in RECIPES.items()} | {"float": asdict(NETWORK.training)}
    before = records.read(NAME) or {}
    rows = list(before.get("rows", [])) if before.get("settings") == settings else []
    found: dict[str, Any] = before
    for seed in SEEDS:
        left = [name for name in RECIPES if (name, seed) not in {(row["name"], row["seed"]) for row in rows}]
        model = deep_compression.trained(NETWORK, task, seed) if left else None
        for name in left:
            assert model is not None
            small, _ = deep_compression.compressed(model, RECIPES[name], task, seed)
            row = deep_compression.measured(model, small, task)
            kept = (
                "n",
                "test_error_float",
                "test_error",
                "held_out_error",
                "file_bytes",
                "packed_bytes",
                "payload_bytes",
            )
            rows.append({"name": name, "seed": seed, **{key: row[key] for key in kept}})
            print(rows[-1], flush=True)
            found = records.write(folder, NAME, {"settings": settings, "rows": rows})
    return found


if __name__ == "__main__":
    main(records.FOLDER)
