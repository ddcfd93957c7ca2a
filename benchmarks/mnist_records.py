"""The smallest networks for MNIST, as ``.lac`` files: LeNet-300-100 and LeNet-5-Caffe, pruned, and others.

A row is a procedure: random weights from the seed, training towards a teacher (:mod:`benchmarks.mnist`), channels
pruned where the network is a LeNet, :class:`EPR`, the ONNX file, the packed file. What was chosen (widths, the price of
a kilobyte, epochs) was chosen by the error on 5,000 of the training pictures; but settings that these replaced had been
scored on the test pictures too (docs/results.md). The test pictures are read once, at the end of a procedure: the
packed file is decoded, and ONNX Runtime answers from what it decodes to.

The record is written after every procedure; one that it holds already, of the same settings, is not run again.
``python -m benchmarks.mnist_records NAME ...`` runs the rows alone whose names hold one of these words.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from benchmarks import mnist, records
from laconic import measure, surgery
from laconic.core import Context, JsonObject, Recipe, Split, Target, Task, digest
from laconic.models.zoo.lenet import LeNet5Caffe, LeNet300100
from laconic.pack import container
from laconic.runtime import onnx_file, onnxruntime
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.quantize.epr import EPR
from laconic.steps.train.fine_tune import FineTune

NAME = "mnist_records"
TARGET = Target("onnxruntime")
COPIES = 8
SEEDS = (0, 1, 2)


class Row(NamedTuple):
    """A procedure, and what it is to reach: at most ``bytes`` at an error of at most ``error``."""

    table: Literal["fixed", "free"]
    name: str
    build: Callable[[], nn.Module]
    recipe: Recipe
    bytes: int
    error: float


class Conv(nn.Sequential):
    """Three convolutions and a linear layer, (n, 1, 28, 28) -> (n, 10), with as many channels as said."""

    def __init__(self, a: int, b: int, c: int) -> None:
        super().__init__(
            *(nn.Conv2d(1, a, 5), nn.ReLU(), nn.MaxPool2d(2)),  # 12 x 12
            *(nn.Conv2d(a, b, 5), nn.ReLU(), nn.MaxPool2d(2)),  # 4 x 4
            *(nn.Conv2d(b, c, 3), nn.ReLU()),  # 2 x 2
            *(nn.Flatten(), nn.Linear(4 * c, 10)),
        )


class Dense(nn.Sequential):
    """Three linear layers on pixels that are averaged in fours, (n, 1, 28, 28) -> (n, 10), with widths as said."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(
            nn.AvgPool2d(2),  # 14 x 14
            nn.Flatten(),
            *(nn.Linear(196, a), nn.ReLU(), nn.Linear(a, b), nn.ReLU(), nn.Linear(b, 10)),
        )


def _dense(epochs: float, batch: int = 256) -> FineTune:
    return FineTune(epochs=epochs, lr=2e-3, batch=batch, weight_decay=0.01, distill=0.0)


def _priced(price: float, epochs: float) -> EPR:
    return EPR(price=price, epochs=epochs, bias_bits=5, lr=4e-3, batch=256, distill=0.0)


def _lenet(dense: float, widths: dict[str, float], again: float, price: float, epochs: float) -> Recipe:
    """Trained as it is, most channels pruned, trained on, then priced."""
    return Recipe((_dense(dense), PruneChannels(layers=widths), _dense(again), _priced(price, epochs)))


ROWS = [
    Row(
        "fixed", "LeNet-300-100", LeNet300100, _lenet(1.0, {"fc1": 0.68, "fc2": 0.52}, 1.0, 0.13, 8.0), 5_000, 0.016
    ),
    Row(
        "fixed", "LeNet-5-Caffe", LeNet5Caffe,
        _lenet(0.25, {"conv1": 0.7, "conv2": 0.76, "fc1": 0.952}, 2.0, 0.275, 24.0), 1_520, 0.0096,
    ),
    Row("free", "convolutional", lambda: Conv(6, 12, 20), Recipe((_dense(0.5), _priced(0.42, 8.0))), 1_300, 0.0096),
    Row("free", "fully connected", lambda: Dense(64, 32), Recipe((_dense(1.0), _priced(0.19, 12.0))), 3_000, 0.016),
    Row(
        "free", "convolutional, larger", lambda: Conv(10, 20, 28), Recipe((_dense(0.5), _priced(0.2, 3.0))),
        2_500, 0.0069,
    ),
]  # fmt: skip


def main(folder: Path, words: tuple[str, ...] = ()) -> dict[str, Any]:
    """Run what the record lacks, the first seed of all rows first."""
    path = folder / f"{NAME}.json"
    runs: list[JsonObject] = json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []
    found: dict[str, Any] = {}
    current = {_key(row, seed): row for seed in SEEDS for row in ROWS}
    runs = [run for run in runs if run["key"] in current]
    for (key, row), seed in zip(current.items(), [seed for seed in SEEDS for _ in ROWS], strict=True):
        chosen = not words or any(word in row.name for word in words)
        if chosen and all(run["key"] != key for run in runs):
            runs.append({"key": key, **procedure(row, seed)})
            print(runs[-1], flush=True)
        found = records.write(folder, NAME, {"runs": runs, **_settings()})
    return found


def _key(row: Row, seed: int) -> str:
    return digest([row.table, row.name, str(row.build()), row.recipe.key, COPIES, seed])


def _settings() -> JsonObject:
    return {"copies": COPIES, "chosen_on": mnist.CHOSEN_ON, "teacher": mnist.TEACHER.__dict__}


def procedure(row: Row, seed: int) -> JsonObject:
    """One run of a row: from random weights to the answers of the packed file."""
    task = mnist.taught(COPIES)
    torch.manual_seed(seed)
    traits = replace(onnxruntime.traits(TARGET), channel_multiple=1)  # a file does not mind what kernels like
    context = Context(traits, seed=seed, progress=records.progress(f"{row.name}, seed {seed}"))
    model, _ = row.recipe.apply(row.build(), task, context)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        onnx_file.deploy(model, task.search.read([0, 1]).inputs, path, short_codes=False)
        packed, file_bytes = container.pack_file(path), path.stat().st_size
        path.write_bytes(container.unpack(packed.content).content)
        wrong = {name: _wrong(path, split, task) for name, split in (("search", task.search), ("test", task.holdout))}
    return {
        "table": row.table,
        "name": row.name,
        "seed": seed,
        "recipe": row.recipe.to_json(),
        "wanted_bytes": row.bytes,
        "wanted_error": row.error,
        "file_bytes": file_bytes,
        "packed_bytes": len(packed.content),
        "payload_bytes": packed.payload,
        "layers": _layers(model, packed),
        "n": {"search": len(task.search), "test": len(task.holdout)},
        "wrong": wrong,
    }


def _wrong(path: Path, split: Split, task: Task) -> int:
    answers = measure.records(onnxruntime.open_file(path, TARGET), split, task.metric)
    return int((answers == 0).sum())


def _layers(model: nn.Module, packed: container.Packed) -> list[JsonObject]:
    """The shape of each weight, how many of its integers are not zero, and the bytes that they take."""
    sizes = {row.name: row.packed for row in packed.rows}
    return [
        {
            "name": name,
            "shape": list(layer.weight.shape),
            "used": int((layer.weight != 0).sum()),
            "bytes": sizes[f"{name}.weight"],
        }
        for name, layer in surgery.weighted_layers(model).items()
    ]


if __name__ == "__main__":
    main(records.FOLDER, tuple(sys.argv[1:]))
