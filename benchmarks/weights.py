"""Short weights on the transformer: ``vit-fashion`` at 4 and 3 bits without training, at 2 bits with a little.

Each file is scored on Fashion-MNIST's 10,000 test pictures in each runtime, and timed there beside the float file,
interleaved, on one thread at batch 1, if the runtime has a kernel that multiplies its codes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import fashion, records
from laconic import measure, proof, surgery
from laconic.core import Array, Context, Predictor, Recipe, Target, Task
from laconic.runtime import onnxruntime, openvino
from laconic.steps.quantize.weights import QuantizeWeights
from laconic.steps.train.fine_tune import FineTune

ROUNDS = 51
BITS = (4, 3, 2)
TRAINING = FineTune(epochs=2.0, lr=1e-3, batch=128, distill=0.5)
RUNTIMES = {"onnxruntime": onnxruntime, "openvino": openvino}
_KERNELS = {"onnxruntime": ("MatMulNBits",), "openvino": ("FullyConnected:u4", "FullyConnected:u2")}


def main(folder: Path) -> dict[str, Any]:
    loaded, task = fashion.load()
    recipes = {"float32": Recipe(), **{f"{bits} bits": Recipe((QuantizeWeights(bits),)) for bits in BITS}}
    recipes["2 bits, trained"] = Recipe((QuantizeWeights(2), TRAINING))
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        files = {name: Path(scratch) / f"{name}.onnx" for name in recipes}
        for runtime, file in RUNTIMES.items():
            target = Target(runtime)
            context = Context(traits=file.traits(target), reference=lambda inputs: surgery.call(loaded.module, inputs))
            for name, recipe in recipes.items():
                if not files[name].exists():  # both runtimes read the same file
                    model, _ = recipe.apply(loaded.module, task, context)
                    file.deploy(model, task.calibration_batch().inputs, files[name], target)
            float_file = file.open_file(files["float32"], target)
            correct = _correct(float_file, task)
            for name, recipe in recipes.items():
                found = file.open_file(files[name], target)
                row: dict[str, Any] = {
                    **{"target": str(target), "name": name, "recipe": recipe.to_json()},
                    "file_bytes": files[name].stat().st_size,
                    "operators": file.optimized_operators(files[name], target),
                }
                row |= _scores(_correct(found, task), correct)
                if any(kernel in row["operators"] for kernel in _KERNELS[runtime]):
                    row["speed_to_float"] = _speed(float_file, found, task)
                print(row, flush=True)
                rows.append(row)
    return records.write(
        folder, "weights", {"network": {"name": fashion.NAME, "training": str(fashion.TRAINING)}, "rows": rows}
    )


def _correct(predict: Predictor, task: Task) -> Array:
    """Whether each of the test pictures, which are search and holdout together, is told right."""
    parts = (measure.records(predict, split, task.metric) for split in (task.search, task.holdout))
    return np.concatenate(list(parts))


def _scores(found: Array, reference: Array) -> dict[str, Any]:
    """Top-1, and the points lost to the float file with the 95 % interval of the paired difference."""
    lost = 100 * (reference - found)
    half = 1.96 * lost.std(ddof=1) / np.sqrt(len(lost))
    interval = [lost.mean() - half, lost.mean() + half]
    return {
        "n": len(found),
        "top1": float(found.mean()),
        "points_lost": float(lost.mean()),
        "points_lost_interval": interval,
    }


def _speed(reference: Any, found: Any, task: Task) -> dict[str, Any]:
    timed = measure.paired(reference, found, task.search.read([0]).inputs, ROUNDS)
    value, low, high = proof.median_interval(timed.wall_ratio)
    return {"value": value, "low": low, "high": high, "noisy": timed.noisy}


if __name__ == "__main__":
    main(records.FOLDER)
