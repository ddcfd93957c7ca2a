"""ResNet-20 on CIFAR-10 in 2 bits and fewer: binary and ternary weights, binary activations, LSQ.

All start from the published float weights, which were trained on exact pixels; the complete set at hand is JPEG, on
which they lose ten points. So the first row is the float network after the same training, and the others are read
beside it. A few epochs over half of the training pictures are what two CPU cores do in ten minutes; published results
take hundreds (ReCU, arXiv 2103.12369: 400 epochs, 87.5 % with binary weights and activations).
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import records
from laconic import data, measure, models, proof, surgery
from laconic.core import Context, Recipe, Step, Target, Task
from laconic.runtime import runtime_of
from laconic.steps.quantize.binary import Binary
from laconic.steps.quantize.lsq import LSQ
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.ternary import Ternary
from laconic.steps.train.fine_tune import FineTune

TARGET = Target("onnxruntime")
SCHEDULE: dict[str, Any] = {"epochs": 1.0, "lr": 2e-3, "batch": 64, "distill": 0.0}
W2 = Quantize(bits=2, weight_ranges="mse")
LEARN = LSQ(**{**SCHEDULE, "lr": 3e-4})
ROWS: dict[str, tuple[Step, ...]] = {
    "float32, as published": (),
    "float32": (FineTune(**SCHEDULE),),
    "2-bit weights, 8-bit activations, nearest": (W2,),
    "2-bit weights, 8-bit activations, LSQ": (W2, LEARN),
    "ternary weights, closed form": (Ternary(epochs=0),),
    "ternary weights": (Ternary(**SCHEDULE),),
    "binary weights": (Binary(**SCHEDULE),),
    "binary weights and activations": (Binary(activations=True, **SCHEDULE),),
}


def main(folder: Path) -> dict[str, Any]:
    loaded = models.load(f"zoo:cifar-resnet-20@{records.data('cifar10/resnet20.safetensors')}")
    task = load(loaded.preprocess)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, steps in ROWS.items():
            rows.append(score(name, Recipe(steps), loaded.module, task, Path(scratch)))
            print(rows[-1], flush=True)
    splits = {"train": len(task.train), "test": len(task.search) + len(task.holdout)}
    return records.write(folder, "binary", {"schedule": SCHEDULE, "splits": splits, "rows": rows})


def load(preprocess: Any) -> Task:
    """Half of the training pictures to train on; all test pictures but those of calibration, in two splits."""
    train = data.load(str(records.data("cifar10/train.parquet")), preprocess=preprocess)
    test = data.load(str(records.data("cifar10/test.parquet")), preprocess=preprocess, trainable=False)
    return dataclasses.replace(train, search=test.search, holdout=test.holdout)


def score(name: str, recipe: Recipe, model: Any, task: Task, scratch: Path) -> dict[str, Any]:
    """Apply the recipe, deploy, and count the right answers of the file on the test pictures."""
    runtime, path = runtime_of(TARGET), scratch / "model.onnx"
    context = Context(runtime.traits(TARGET), reference=lambda inputs: surgery.call(model, inputs), progress=_say())
    began = time.monotonic()
    changed, facts = recipe.apply(model, task, context)
    seconds = time.monotonic() - began
    runtime.deploy(changed, task.train.read([0, 1]).inputs, path, TARGET)
    session = runtime.open_file(path, TARGET)
    right = [measure.records(session, split, task.metric) for split in (task.search, task.holdout)]
    correct, n = int(sum(part.sum() for part in right)), sum(map(len, right))
    return {
        "name": name,
        "recipe": recipe.to_json(),
        "n": n,
        "top1": correct / n,
        "interval": proof.proportion_interval(correct, n),
        "file_bytes": path.stat().st_size,
        "training": {key: value for fact in facts for key, value in fact.items() if key in _TOLD},
        "seconds": round(seconds, 1),
    }


_TOLD = ("steps", "first_loss", "last_loss", "stored_bits", "computed")


def _say() -> Any:
    """Progress, once in ten seconds."""
    last = time.monotonic()

    def say(text: str, fraction: float) -> None:
        nonlocal last
        if time.monotonic() - last > 10:
            last = time.monotonic()
            print(f"{fraction:.0%} {text}", flush=True)

    return say


if __name__ == "__main__":
    main(records.FOLDER)
