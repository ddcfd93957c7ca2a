"""Weights that share values: ResNet-20 in 4 and 2 bits, MobileNetV1 with 32 values per layer, product quantization.

Every row is the deployed file in ONNX Runtime, beside the float file of the same network. Where a row says so,
ResNet-20 is trained on with the first 4000 training pictures, which the published weights have seen; the 1000 test
pictures are halved, and settings were chosen on the first half, ``search``. For MobileNetV1 nothing is trained and
nothing chosen.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import records
from laconic import data, measure, models, proof, surgery
from laconic.core import Context, Preprocess, Recipe, Step, Target, Task
from laconic.data.image import normalise
from laconic.runtime import onnxruntime, openvino
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.cluster.product import ProductQuantize
from laconic.steps.train.fine_tune import FineTune

TARGET = Target("onnxruntime")
RESNET: dict[str, tuple[Step, ...]] = {
    "4 bits": (Cluster(bits=4),),
    "4 bits, 1 epoch": (Cluster(bits=4, epochs=1),),
    "2 bits": (Cluster(bits=2),),
    "2 bits, 5 epochs": (Cluster(bits=2, epochs=5, lr=1e-2),),
    "product quantization, 2 epochs": (ProductQuantize(), FineTune(epochs=2, lr=1e-2)),
}
MOBILENET: dict[str, tuple[Step, ...]] = {
    "32 values, all layers": (Cluster(bits=5),),
    "32 values, depthwise layers left": (Cluster(bits=5, exclude=("conv_dw_*",)),),
}
PUBLISHED = {
    "who": "TensorFlow Model Optimization, guide of weight clustering, MobileNetV1, all Conv2D layers, 32 clusters",
    "address": "https://www.tensorflow.org/model_optimization/guide/clustering",
    "top1": 0.694,
    "top1_original": 0.70976,
    "zipped_mb": 4.43,
    "zipped_mb_original": 14.97,
}
"""Published; not run here. Their file is float32 with repeated values, as large as the original until it is zipped."""


def main(folder: Path) -> dict[str, Any]:
    rows = [*_rows("ResNet-20, CIFAR-10", *_resnet(), RESNET), *_rows("MobileNetV1 0.75", *_mobilenet(), MOBILENET)]
    return records.write(folder, "cluster", {"rows": rows, "published": PUBLISHED})


def _resnet() -> tuple[models.LoadedModel, Task]:
    """4000 training and 1000 test pictures with exact pixels."""
    loaded = models.load(f"zoo:cifar-resnet-20@{records.data('cifar10/resnet20.safetensors')}")
    assert loaded.preprocess is not None
    parts = {"train": _strip("train4000", loaded.preprocess), "val": _strip("test1000", loaded.preprocess)}
    return loaded, data.from_splits(parts, preprocess=loaded.preprocess)


def _strip(name: str, preprocess: Preprocess) -> tuple[Any, Any]:
    picture = Image.open(records.data(f"cifar10/lossless_{name}.png"))
    labels = np.load(records.data(f"cifar10/lossless_{name}_labels.npy"))
    return normalise(np.asarray(picture).reshape(-1, 32, 32, 3), preprocess), labels


def _mobilenet() -> tuple[models.LoadedModel, Task]:
    weights = records.data("imagenet/mobilenet_v1_0.75_224.safetensors")
    loaded = models.load(f"zoo:mobilenet-v1-0.75-224@{weights}")
    pictures = str(records.data("imagenet/val1300_227.parquet"))
    return loaded, data.load(pictures, preprocess=loaded.preprocess, trainable=False)


def _rows(network: str, loaded: models.LoadedModel, task: Task, recipes: dict[str, tuple[Step, ...]]) -> list[Any]:
    context = Context(
        onnxruntime.traits(TARGET), reference=lambda inputs: surgery.call(loaded.module, inputs), progress=_say()
    )
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        float_file = _File(loaded.module, task, Path(scratch) / "float.onnx")
        for name, steps in recipes.items():
            began = time.monotonic()
            model, facts = Recipe(steps).apply(loaded.module, task, context)
            seconds = time.monotonic() - began
            file = _File(model, task, Path(scratch) / "model.onnx")
            row = {
                "network": network,
                "name": name,
                "recipe": Recipe(steps).to_json(),
                **{split: _beside(float_file.right[split], file.right[split]) for split in ("search", "holdout")},
                "file_bytes": file.size,
                "file_bytes_float": float_file.size,
                "bits_per_weight": file.bits,
                "same_operators_as_float": file.operators == float_file.operators,
                "opened_by_openvino_error": file.elsewhere,
                "training": {key: facts[-1][key] for key in ("first_loss", "last_loss", "steps") if key in facts[-1]},
                "seconds": round(seconds, 1),
            }
            print(row, flush=True)
            found.append(row)
    return found


class _File:
    """A deployed file: its size, its operators once ONNX Runtime has opened it, and the records of its answers."""

    def __init__(self, model: Any, task: Task, path: Path) -> None:
        example = task.train.read([0, 1]).inputs
        stored = onnxruntime.deploy(model, example, path, TARGET).get("codebook_bits", {})
        self.bits = [min(stored.values()), max(stored.values())] if stored else [32.0, 32.0]
        self.size = path.stat().st_size
        self.operators = onnxruntime.optimized_operators(path, TARGET)
        session = onnxruntime.open_file(path, TARGET)
        splits = {"search": task.search, "holdout": task.holdout}
        self.right = {name: measure.records(session, split, task.metric) for name, split in splits.items()}
        ours, theirs = (next(iter(file(example).values())) for file in (session, openvino.open_file(path, TARGET)))
        self.elsewhere = float(np.abs(ours - theirs).max() / np.abs(ours).max())


def _beside(baseline: Any, candidate: Any) -> dict[str, Any]:
    """Top-1 of both, the drop, and its one-sided upper bound at 95 %."""
    drop, bound = proof.bound_drop(baseline, candidate, 0.95, binary=True)
    means = {"top1_float": float(np.mean(baseline)), "top1": float(np.mean(candidate))}
    return {"n": len(baseline), **means, "drop": drop, "drop_at_most": bound}


def _say() -> Any:
    said: dict[str, int] = {}

    def say(text: str, fraction: float) -> None:
        tenth = int(fraction * 10)
        if said.get("tenth") != tenth:
            said["tenth"] = tenth
            print(f"{fraction:.0%} {text}", flush=True)

    return say


if __name__ == "__main__":
    main(records.FOLDER)
