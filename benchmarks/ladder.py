"""The ladder for targets with one scale per weight tensor: MobileNetV1 0.75 on ImageNet pictures, no training.

Nearest rounding, then cross-layer equalization, absorption of high biases and bias correction, one upon the other
(Nagel et al. 2019, arXiv 1906.04721, table 2, for another network). Each rung is deployed and scored in ONNX Runtime:
agreement with the float file and top-1 on the held-out pictures. Beside it: bias correction alone, and a scale per
channel. In all of these dead channels stay as they are (:mod:`laconic.steps.quantize.spare`), since emptying them alone
takes the largest weights out of the scales; the last rungs put them to use, which is how Quantize is by itself.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import records
from laconic import data, measure, models, proof
from laconic.core import Array, Context, Recipe, Step, Target, Task
from laconic.runtime import runtime_of
from laconic.steps.quantize.equalize import Equalize
from laconic.steps.quantize.post_training import Quantize

TARGET = Target("onnxruntime")
NEAREST = Quantize(per_channel=False, bias_correction=False, spare_channels=False)
CORRECTED = Quantize(per_channel=False, spare_channels=False)
RUNGS: dict[str, tuple[Step, ...]] = {
    "nearest": (NEAREST,),
    "+ equalization": (Equalize(absorb=False), NEAREST),
    "+ absorption": (Equalize(), NEAREST),
    "+ bias correction": (Equalize(), CORRECTED),
    "equalization and bias correction": (Equalize(absorb=False), CORRECTED),
    "bias correction alone": (CORRECTED,),
    "a scale per channel, bias correction": (Quantize(spare_channels=False),),
    "nearest, dead channels put to use": (Quantize(per_channel=False, bias_correction=False),),
    "all of it": (Equalize(), Quantize(per_channel=False)),
}


def main(folder: Path) -> dict[str, Any]:
    weights = records.data("imagenet/mobilenet_v1_0.75_224.safetensors")
    pictures = records.data("imagenet/val1300_227.parquet")
    loaded = models.load(f"zoo:mobilenet-v1-0.75-224@{weights}")
    task = data.load(str(pictures), preprocess=loaded.preprocess, trainable=False)
    truth = np.concatenate([_targets(task, rows) for rows in measure.chunks(len(task.holdout))])
    wanted, _ = _run(loaded.module, (), task)
    n = len(wanted)
    rows = [{"name": "float32", "recipe": [], "top1": float((wanted == truth).mean())}]
    for name, steps in RUNGS.items():
        found, facts = _run(loaded.module, steps, task)
        agree = int((found == wanted).sum())
        row = {
            "name": name,
            "recipe": Recipe(steps).to_json(),
            "top1": float((found == truth).mean()),
            "agreement": agree / n,
            "agreement_interval": proof.proportion_interval(agree, n),
            **facts,
        }
        print(row, flush=True)
        rows.append(row)
    return records.write(folder, "ladder", {"calibration": task.calibration, "n": n, "rows": rows})


def _run(model: Any, steps: tuple[Step, ...], task: Task) -> tuple[Array, dict[str, Any]]:
    """What the deployed file of a recipe decides on the holdout; the seconds of processor time that the steps took, and
    how many channels were absorbed."""
    runtime = runtime_of(TARGET)
    start = time.process_time()
    changed, facts = Recipe(steps).apply(model.eval(), task, Context(traits=runtime.traits(TARGET)))
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"model{runtime.SUFFIX}"
        runtime.deploy(changed, task.search.read([0, 1]).inputs, path, TARGET)
        session = runtime.open_file(path, TARGET)
        chunks = measure.chunks(len(task.holdout))
        found = [task.metric.decide(session(task.holdout.read(rows).inputs)) for rows in chunks]
    absorbed = sum(sum(fact.get("absorbed", {}).values()) for fact in facts)
    return np.concatenate(found), {"cpu_seconds": round(seconds, 1), "channels_absorbed": absorbed}


def _targets(task: Task, rows: Any) -> Any:
    return task.holdout.read(rows).targets


if __name__ == "__main__":
    main(records.FOLDER)
