"""Weights that share values: ResNet-20 in 4 and 2 bits, MobileNetV1 with 32 values per layer, product quantization.

Every row is the deployed file in ONNX Runtime, beside the float file of the same network. ResNet-20 comes from
:mod:`benchmarks.cifar`, where a row's training was done too, and is scored on all 10,000 test pictures. For MobileNetV1
nothing is trained, and it is scored on the 872 pictures of ``holdout``.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn

from benchmarks import cifar, records
from laconic import data, measure, models, proof
from laconic.core import Array, Context, JsonObject, Recipe, Split, Target, Task
from laconic.runtime import onnxruntime, openvino
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.cluster.product import ProductQuantize

TARGET = Target("onnxruntime")
PUBLISHED = {
    "who": "TensorFlow Model Optimization",
    "address": "https://www.tensorflow.org/model_optimization/guide/clustering",
    "name": "MobileNetV1, all Conv2D layers, 32 clusters",
    "top1": 0.694,
    "top1_original": 0.70976,
    "zipped_mb": 4.43,
    "zipped_mb_original": 14.97,
}
"""Published; not run here. Their file is float32 with repeated values, as large as the original until it is zipped."""


class Network(NamedTuple):
    """A network, how it is opened, the splits that it is scored on, and its rows: a recipe or a checkpoint of
    :mod:`benchmarks.cifar`."""

    name: str
    open: Callable[[], tuple[nn.Module, Task]]
    splits: Callable[[Task], list[Split]]
    rows: dict[str, Recipe | str]


def _mobilenet() -> tuple[nn.Module, Task]:
    weights = records.data("imagenet/mobilenet_v1_0.75_224.safetensors")
    loaded = models.load(f"zoo:mobilenet-v1-0.75-224@{weights}")
    pictures = str(records.data("imagenet/val1300_227.parquet"))
    return loaded.module, data.load(pictures, preprocess=loaded.preprocess, trainable=False)


NETWORKS = [
    Network(
        "ResNet-20, CIFAR-10 (JPEG)",
        lambda: (cifar.trained("resnet20-cifar10")[0], cifar.load()),
        lambda task: [task.search, task.holdout],
        {
            "4 bits": Recipe((Cluster(bits=4),)),
            "4 bits, trained": "resnet20-cluster4",
            "2 bits": Recipe((Cluster(bits=2),)),
            "2 bits, trained": "resnet20-cluster2",
            "256 sub-vectors": Recipe((ProductQuantize(),)),
            "256 sub-vectors, trained": "resnet20-product",
        },
    ),
    Network(
        "MobileNetV1 0.75, ImageNet",
        _mobilenet,
        lambda task: [task.holdout],
        {
            "32 values, all layers": Recipe((Cluster(bits=5),)),
            "32 values, depthwise layers left": Recipe((Cluster(bits=5, exclude=("conv_dw_*",)),)),
        },
    ),
]


def main(folder: Path) -> dict[str, Any]:
    """Run the benchmark; a network or a row whose files are absent is skipped, and the record says so."""
    found: dict[str, Any] = {"rows": [], "skipped": {}, "published": PUBLISHED}
    for network in NETWORKS:
        try:
            found["rows"] += _rows(network, found["skipped"])
        except records.Skipped as reason:
            found["skipped"][network.name] = str(reason)
    for name, why in found["skipped"].items():
        print(f"{name}: skipped: {why}", flush=True)
    if not found["rows"]:
        raise records.Skipped("; ".join(found["skipped"].values()))
    return records.write(folder, "cluster", found)


def _rows(network: Network, skipped: dict[str, str]) -> Iterator[JsonObject]:
    """The rows of one network; those without their checkpoint go into ``skipped``."""
    module, task = network.open()
    context, splits = Context(onnxruntime.traits(TARGET)), network.splits(task)
    with tempfile.TemporaryDirectory() as scratch:
        whole = _File(module, task, splits, Path(scratch) / "float.onnx")
        for name, made in network.rows.items():
            try:
                model, told = _made(made, module, task, context)
            except records.Skipped as reason:
                skipped[f"{network.name}, {name}"] = str(reason)
                continue
            file = _File(model, task, splits, Path(scratch) / "model.onnx")
            drop, bound = proof.bound_drop(whole.right, file.right, 0.95, binary=True)
            row = {
                "network": network.name,
                "name": name,
                "n": len(file.right),
                "top1_float": float(whole.right.mean()),
                "top1": float(file.right.mean()),
                "drop": drop,
                "drop_at_most": bound,
                "file_bytes": file.size,
                "file_bytes_float": whole.size,
                "bits_per_weight": file.bits,
                "same_operators_as_float": file.operators == whole.operators,
                "opened_by_openvino_error": file.elsewhere,
                "training": told,
            }
            print(row, flush=True)
            yield row


def _made(made: Recipe | str, module: nn.Module, task: Task, context: Context) -> tuple[Any, JsonObject]:
    """The model of a row, and how it was made."""
    if isinstance(made, str):
        model, _, told = cifar.trained(made)
        return model, told
    return made.apply(module, task, context)[0], {"recipe": made.to_json()}


class _File:
    """A deployed file: its size, its operators once ONNX Runtime has opened it, whether it is right about each sample
    of the splits, and how far OpenVINO's answers are from ONNX Runtime's."""

    def __init__(self, model: Any, task: Task, splits: list[Split], path: Path) -> None:
        example = task.train.read([0, 1]).inputs
        stored = onnxruntime.deploy(model, example, path, TARGET).get("codebook_bits", {})
        self.bits = [min(stored.values()), max(stored.values())] if stored else [32.0, 32.0]
        self.size = path.stat().st_size
        self.operators = onnxruntime.optimized_operators(path, TARGET)
        session = onnxruntime.open_file(path, TARGET)
        self.right: Array = np.concatenate([measure.records(session, split, task.metric) for split in splits])
        ours, theirs = (next(iter(file(example).values())) for file in (session, openvino.open_file(path, TARGET)))
        self.elsewhere = float(np.abs(ours - theirs).max() / np.abs(ours).max())


if __name__ == "__main__":
    main(records.FOLDER)
