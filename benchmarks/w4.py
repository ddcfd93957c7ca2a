"""MobileNetV1 0.75 with 4-bit weights and 8-bit activations after training: what learning the rounding from 128
pictures brings, and what it costs; and INT8 with block reconstruction.

Agreement with the float network and top-1 are of the deployed files in ONNX Runtime, on the same 872 held-out pictures.
``uniform``: every layer's weights have 4 bits. ``ends``: the first layer, the last and the depthwise ones (together
about a third of the weights, nearly all of it in the last) keep 8. ``seconds`` and ``cpu_seconds`` are those of the
recipe.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import records
from laconic import data, machine, measure, models, proof
from laconic.core import Context, Recipe, Step, Target, Task
from laconic.runtime import onnxruntime
from laconic.steps.quantize.gptq import GPTQ
from laconic.steps.quantize.post_training import Quantize
from laconic.steps.quantize.reconstruct import Reconstruct

TARGET = Target("onnxruntime")
MIXED = {"conv1": 8, "conv_preds": 8, **{f"conv_dw_{i}": 8 for i in range(1, 14)}}
UNIFORM, ENDS = Quantize(bits=4, weight_ranges="mse"), Quantize(bits=4, weight_ranges="mse", layers=MIXED)
RECIPES: dict[str, tuple[Step, ...]] = {
    "float32": (),
    "uniform: nearest": (Quantize(bits=4, weight_ranges="mse", bias_correction=False),),
    "uniform: bias correction": (UNIFORM,),
    "uniform: GPTQ": (UNIFORM, GPTQ()),
    "uniform: Reconstruct": (UNIFORM, Reconstruct()),
    "ends: GPTQ": (ENDS, GPTQ()),
    "ends: Reconstruct": (ENDS, Reconstruct()),
    "INT8: bias correction": (Quantize(),),
    "INT8: GPTQ": (Quantize(), GPTQ()),
    "INT8: Reconstruct": (Quantize(), Reconstruct()),
}


def main(folder: Path) -> dict[str, Any]:
    weights = records.data("imagenet/mobilenet_v1_0.75_224.safetensors")
    pictures = records.data("imagenet/val1300_227.parquet")
    loaded = models.load(f"zoo:mobilenet-v1-0.75-224@{weights}")
    task = data.load(str(pictures), preprocess=loaded.preprocess, trainable=False)
    torch.set_num_threads(machine.cores())
    truth = np.concatenate([task.holdout.read(rows).targets for rows in measure.chunks(len(task.holdout))])
    rows: list[dict[str, Any]] = []
    decisions: dict[str, Any] = {}
    for name, steps in RECIPES.items():
        row, decisions[name] = _row(name, steps, loaded.module, task)
        agree = int((decisions[name] == decisions["float32"]).sum())
        row |= {
            "n": len(truth),
            "top1": float((decisions[name] == truth).mean()),
            "agreement": agree / len(truth),
            "agreement_interval": proof.proportion_interval(agree, len(truth)),
        }
        print(row, flush=True)
        rows.append(row)
    return records.write(folder, "w4", {"calibration": task.calibration, "rows": rows})


def _row(name: str, steps: tuple[Step, ...], model: Any, task: Task) -> tuple[dict[str, Any], Any]:
    """Apply a recipe, deploy, and decide on the holdout."""
    context = Context(traits=onnxruntime.traits(TARGET))
    wall, cpu = time.perf_counter(), time.process_time()
    changed, _ = Recipe(steps).apply(model, task, context)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        onnxruntime.deploy(changed, task.search.read([0, 1]).inputs, path, TARGET)
        session = onnxruntime.open_file(path, TARGET)
        size = path.stat().st_size
        chunks = measure.chunks(len(task.holdout))
        found = np.concatenate([task.metric.decide(session(task.holdout.read(rows).inputs)) for rows in chunks])
    recipe = Recipe(steps).to_json()
    return {"name": name, "recipe": recipe, "seconds": wall, "cpu_seconds": cpu, "file_bytes": size}, found


if __name__ == "__main__":
    main(records.FOLDER)
