"""ResNet-20 on CIFAR-10 with weights in 4 bits and fewer, down to 1: rounded, and trained.

All start from the float network of :mod:`benchmarks.cifar`, which was trained on the complete JPEG training set; what
is trained was trained there too, by the schedules in its ``TRAININGS``. Every file is scored on all 10,000 test
pictures, beside the float file's answers. Published results with binary weights and activations take hundreds of epochs
(ReCU, arXiv 2103.12369: 400 epochs, 87.5 % on the exact pixels).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import cifar, records
from laconic import measure, proof
from laconic.core import Array, Context, Facts, JsonObject, Recipe, Step, Target, Task
from laconic.pack import container
from laconic.runtime import onnxruntime
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.ternary import Ternary
from laconic.steps.quantize.weights import QuantizeWeights

TARGET = Target("onnxruntime")
FLOAT = "resnet20-cifar10"
ROUNDED: dict[str, tuple[Step, ...]] = {
    "4-bit weights": (QuantizeWeights(4),),
    "4-bit weights, GPTQ": (QuantizeWeights(4), GPTQ()),
    "3-bit weights": (QuantizeWeights(3),),
    "3-bit weights, GPTQ": (QuantizeWeights(3), GPTQ()),
    "2-bit weights": (QuantizeWeights(2),),
    "2-bit weights, 8-bit activations": (Quantize(bits=2, weight_ranges="mse"),),
    "ternary weights": (Ternary(epochs=0),),
}
TRAINED = {
    "2-bit weights, trained": "resnet20-w2",
    "ternary weights, trained": "resnet20-ternary",
    "binary weights, trained": "resnet20-binary-weights",
    "binary weights and activations, trained": "resnet20-binary",
    "weights at a price for bytes, trained": "resnet20-epr",
}


def main(folder: Path) -> dict[str, Any]:
    task = cifar.load()
    network, _, told = cifar.trained(FLOAT)
    context = Context(onnxruntime.traits(TARGET))
    rows: list[JsonObject] = []
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        whole, right, _ = scored(network, task, path)
        rows.append({"name": "float32", **sizes(path, whole), "training": told, **beside(right, right)})
        for name in (*ROUNDED, *TRAINED):
            try:
                model, facts, told = _made(name, network, task, context)
            except records.Skipped as reason:
                skipped[name] = str(reason)
                print(f"{name}: skipped: {reason}", flush=True)
                continue
            _, found, deployed = scored(model, task, path)
            row = {"name": name, **sizes(path, whole), "training": told, **beside(right, found)}
            row |= {key: value for fact in (*facts, deployed) for key, value in fact.items() if key in _TOLD}
            print(row, flush=True)
            rows.append(row)
    return records.write(folder, "resnet20", {"skipped": skipped, "rows": rows})


_TOLD = ("steps", "first_loss", "last_loss", "stored_bits", "computed", "codebook_bits")


def _made(name: str, network: Any, task: Task, context: Context) -> tuple[Any, list[Facts], JsonObject]:
    """The model of a row, what its steps told, and how it was trained."""
    if name in TRAINED:
        return cifar.trained(TRAINED[name])
    model, facts = Recipe(ROUNDED[name]).apply(network, task, context)
    return model, facts, {"recipe": Recipe(ROUNDED[name]).to_json()}


def sizes(path: Path, whole: int) -> JsonObject:
    """Bytes of the file and of the whole ``.lac``, and how much smaller that is than the float file."""
    packed = len(container.pack_file(path).content)
    return {"file_bytes": path.stat().st_size, "packed_bytes": packed, "ratio": whole / packed}


def scored(model: Any, task: Task, path: Path) -> tuple[int, Array, Facts]:
    """Deploy; the file's bytes, whether it is right about each test picture, and what deploying told."""
    deployed = onnxruntime.deploy(model, task.train.read([0, 1]).inputs, path, TARGET)
    session = onnxruntime.open_file(path, TARGET)
    parts = [measure.records(session, split, task.metric) for split in (task.search, task.holdout)]
    return path.stat().st_size, np.concatenate(parts), deployed


def beside(float_file: Array, found: Array) -> JsonObject:
    """Top-1, the points lost, and at most how many, at 95 %."""
    drop, bound = proof.bound_drop(float_file, found, 0.95, binary=True)
    return {"n": len(found), "top1": float(found.mean()), "drop": drop, "drop_at_most": bound}


if __name__ == "__main__":
    main(records.FOLDER)
