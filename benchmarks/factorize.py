"""Factorization of a small VGG on Fashion-MNIST: every technique, fine-tuned with distillation, beside the float file.

Each row is the deployed file in ONNX Runtime. The first convolution and the head stay. Training sees the 60,000
training pictures; nothing is chosen on the 10,000 test pictures: all of them are scored. Timings are interleaved
(float, factorized, float) on one thread at batch 1. ``python -m benchmarks.vgg`` makes the network.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import peers, records, vgg
from laconic import measure, models, proof
from laconic.core import Context, Predictor, Recipe, Step, Target, Task
from laconic.profile import profile
from laconic.runtime import onnxruntime
from laconic.steps.factorize.cp import CP
from laconic.steps.factorize.separable import DepthwiseSeparable
from laconic.steps.factorize.spatial import SpatiallySeparable
from laconic.steps.factorize.svd import LowRank
from laconic.steps.factorize.tucker import Tucker2
from laconic.steps.train.device import Teacher
from laconic.steps.train.fine_tune import FineTune

TARGET = Target("onnxruntime")
ENDS = ("conv1", "head")
TECHNIQUES: dict[str, Step] = {
    "spatially separable": SpatiallySeparable(ratio=0.7, exclude=ENDS),
    "depthwise separable": DepthwiseSeparable(ratio=0.85, exclude=ENDS),
    "Tucker-2": Tucker2(ratio=0.7, exclude=ENDS),
    "low rank": LowRank(ratio=0.7, exclude=ENDS),
    "CP": CP(ratio=0.7, exclude=ENDS),
}
TRAINING = FineTune(epochs=1, lr=1e-3, batch=128)


def main(folder: Path, network: str = "fashion") -> dict[str, Any]:
    loaded, task = vgg.load(network)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "float.onnx"
        original = _opened(loaded.module, task, path)
        right = _right(original, task)
        first = _row("float32", loaded.module, task, path, right)
        print(first, flush=True)
        for name, step in TECHNIQUES.items():
            rows += _rows(name, step, loaded, task, original, right, Path(scratch))
    found = {"network": vgg.DATA[network], "training": str(vgg.TRAININGS[network]), "float": first, "rows": rows}
    return records.write(folder, "factorize", found)


def _rows(
    name: str, step: Step, loaded: models.LoadedModel, task: Task, original: Predictor, right: Any, scratch: Path
) -> list[dict[str, Any]]:
    """The technique alone, and trained behind; timed once, since training changes no structure."""
    context = Context(onnxruntime.traits(TARGET), reference=Teacher(loaded.module))
    factors, facts = Recipe((step,)).apply(loaded.module, task, context)
    trained, _ = Recipe((TRAINING,)).apply(factors, task, context)
    path, rows = scratch / "model.onnx", []
    for recipe, model in ((Recipe((step,)), factors), (Recipe((step, TRAINING)), trained)):
        candidate = _opened(model, task, path)
        found = _right(candidate, task)
        row = _row(name, model, task, path, found)
        drop, bound = proof.bound_drop(right, found, 0.95, binary=True)
        row |= {"recipe": recipe.to_json(), "facts": facts, "drop": drop, "drop_at_most": bound}
        if model is trained:
            row["speed_to_float"] = peers.ratio(original, candidate, task.search.read([0]).inputs)
        print({key: value for key, value in row.items() if key != "facts"}, flush=True)
        rows.append(row)
    return rows


def _opened(model: Any, task: Task, path: Path) -> Predictor:
    onnxruntime.deploy(model, task.train.read([0, 1]).inputs, path, TARGET)
    return onnxruntime.open_file(path, TARGET)


def _right(session: Predictor, task: Task) -> Any:
    """Whether each of the test pictures is told right, both halves."""
    return np.concatenate([measure.records(session, split, task.metric) for split in (task.search, task.holdout)])


def _row(name: str, model: Any, task: Task, path: Path, right: Any) -> dict[str, Any]:
    inputs = {key: torch.as_tensor(x) for key, x in task.search.read([0]).inputs.items()}
    counted = profile(model, inputs)
    sizes = {"macs": counted.macs, "params": counted.params, "file_bytes": path.stat().st_size}
    return {"name": name, "n": len(right), "top1": float(np.mean(right)), **sizes}


if __name__ == "__main__":
    main(records.FOLDER)
