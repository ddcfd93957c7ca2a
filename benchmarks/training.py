"""How fast laconic trains on this processor, and whether it trains as well: beside a plain loop of torch.

Speed: CPU seconds of a step of one network of each kind, by laconic's trainer and by what torch's tutorials show
(AdamW, float32, the layout that a model is made in), the same batches, in turns; the peer reads no pictures and lowers
no rate. Quality: ResNet-20 for CIFAR-10 changed by steps that train, once as laconic trains here and once in float32;
files are scored on all 10,000 test pictures. A processor that does not multiply bf16 trains in float32 anyway.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import cifar, records
from benchmarks.resnet20 import TARGET, beside, scored
from laconic import models
from laconic.core import Batch, Context, JsonObject, Recipe
from laconic.models.zoo.lenet import LeNet5Caffe, LeNet300100
from laconic.runtime import onnxruntime
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.quantize.epr import EPR
from laconic.steps.quantize.lsq import LSQ
from laconic.steps.quantize.weights import QuantizeWeights
from laconic.steps.train.device import Teacher
from laconic.steps.train.fine_tune import FineTune
from laconic.steps.train.fit import Schedule, fit

NAME = "training"
STEPS, ROUNDS = 8, 5


def _zoo(name: str) -> nn.Module:
    return models.load(f"zoo:{name}").module


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "LeNet-300-100": (LeNet300100, (1, 28, 28), 256),
    "LeNet-5": (LeNet5Caffe, (1, 28, 28), 256),
    "ResNet-20": (lambda: _zoo("cifar-resnet-20"), (3, 32, 32), 128),
    "VGG": (lambda: _zoo("vgg-cifar"), (3, 32, 32), 128),
    "transformer": (lambda: _zoo("vit-fashion"), (1, 28, 28), 128),
    "MobileNetV1 0.75": (lambda: _zoo("mobilenet-v1-0.75-224"), (3, 96, 96), 16),
}
"""The network, the shape of a picture, the batch."""
RECIPES = {
    "half of the channels, trained on": Recipe((PruneChannels(0.5, recovery="least_squares"), FineTune(epochs=1))),
    "2-bit weights, LSQ": Recipe((QuantizeWeights(2), LSQ(epochs=1, batch=128))),
    "at a price for bytes, EPR": Recipe((EPR(price=0.04, epochs=1, batch=128),)),
}


class Noise:
    """Pictures of noise with labels."""

    def __init__(self, shape: tuple[int, ...], count: int) -> None:
        rng = np.random.default_rng(0)
        self._x, self._y = rng.standard_normal((count, *shape), np.float32), rng.integers(0, 10, count)

    def __len__(self) -> int:
        return len(self._x)

    def read(self, indices: Any) -> Batch:
        return Batch({"x": self._x[indices]}, self._y[indices])


def main(folder: Path) -> dict[str, Any]:
    """Run the benchmark; what was found so far is written after each row."""
    speeds: list[JsonObject] = []
    rows: list[JsonObject] = []
    found: dict[str, Any] = {}
    for name, (build, shape, batch) in NETWORKS.items():
        speeds.append({"network": name, "batch": batch, "input": list(shape), **_speed(build(), shape, batch)})
        print(speeds[-1], flush=True)
        found = records.write(folder, NAME, {"steps": STEPS, "rounds": ROUNDS, "speeds": speeds, "rows": rows})
    for name, recipe in RECIPES.items():
        for numbers, capabilities in (("as here", torch.cpu.get_capabilities()), ("float32", {})):
            with mock.patch("torch.cpu.get_capabilities", lambda found=capabilities: found):
                rows.append({"name": name, "numbers": numbers, "recipe": recipe.to_json(), **_trained(recipe, name)})
            print(rows[-1], flush=True)
            found = records.write(folder, NAME, {"steps": STEPS, "rounds": ROUNDS, "speeds": speeds, "rows": rows})
    return found


def _speed(model: nn.Module, shape: tuple[int, ...], batch: int) -> JsonObject:
    """CPU seconds of a step, the medians of the rounds."""
    torch.manual_seed(0)
    noise = Noise(shape, batch * STEPS)
    schedule = Schedule(epochs=1, lr=1e-4, batch=batch, weight_decay=0.01, distill=0.0, temperature=4.0)

    def ours() -> None:
        fit(copy.deepcopy(model), noise, _loss, None, schedule, 0, lambda text, fraction: None)

    def peer() -> None:
        copied = copy.deepcopy(model).train()
        optimizer = torch.optim.AdamW(copied.parameters(), lr=1e-4, weight_decay=0.01)
        for start in range(0, len(noise), batch):
            read = noise.read(np.arange(start, start + batch))
            optimizer.zero_grad()
            loss = F.cross_entropy(copied(torch.as_tensor(read.inputs["x"])), torch.as_tensor(read.targets))
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    seconds: dict[str, list[float]] = {"seconds": [], "torch_seconds": []}
    for turn in range(ROUNDS + 1):
        for key, work in (("seconds", ours), ("torch_seconds", peer)):
            start = time.process_time()
            work()
            if turn:  # the first is for the libraries to choose their kernels
                seconds[key].append((time.process_time() - start) / STEPS)
    ratios = [b / a for a, b in zip(*seconds.values(), strict=True)]
    return {**{key: statistics.median(some) for key, some in seconds.items()}, "faster": statistics.median(ratios)}


def _loss(outputs: Any, targets: Tensor) -> Tensor:
    return F.cross_entropy(next(iter(outputs.values())), targets)


def _trained(recipe: Recipe, name: str) -> JsonObject:
    network, _, _ = cifar.trained("resnet20-cifar10")
    task = cifar.load()
    context = Context(onnxruntime.traits(TARGET), reference=Teacher(network), progress=records.progress(name))
    start = time.process_time()
    model, _ = recipe.apply(network, task, context)
    seconds = time.process_time() - start
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "model.onnx"
        right, after = scored(network, task, path)[1], scored(model, task, path)[1]
    return {"seconds": round(seconds, 1), **beside(right, after)}


if __name__ == "__main__":
    main(records.FOLDER)
