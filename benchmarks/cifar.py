"""Networks trained on the complete CIFAR-10 (JPEG, 50,000 pictures), kept in ``benchmarks/checkpoints``.

``python -m benchmarks.cifar NAME ...`` trains, on a graphics card if there is one, and writes
``benchmarks/checkpoints/NAME.safetensors`` with the recipe, what its steps told and the schedule in the metadata. Other
benchmarks read them by :func:`trained`, deploy them and score the file. The test pictures are not looked at here.

The float network starts from seeded random weights; the others start from it, by laconic's own steps, and are taught by
it.
"""

from __future__ import annotations

import functools
import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from PIL import Image
from torch import nn

from benchmarks import records
from laconic import data, measure, models, surgery
from laconic.core import Context, Facts, JsonObject, Preprocess, Recipe, Target, Task
from laconic.data.augment import shift_and_flip
from laconic.data.image import normalise
from laconic.runtime import onnxruntime
from laconic.steps import STEPS
from laconic.steps.cluster.kmeans import Cluster
from laconic.steps.cluster.product import ProductQuantize
from laconic.steps.prune.channels import PruneChannels
from laconic.steps.prune.weights import PruneWeights
from laconic.steps.quantize.binary import Binary
from laconic.steps.quantize.epr import EPR
from laconic.steps.quantize.lsq import LSQ
from laconic.steps.quantize.ternary import Ternary
from laconic.steps.quantize.weights import QuantizeWeights
from laconic.steps.train.device import Teacher, placed, training_device
from laconic.steps.train.fine_tune import FineTune

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"


class Training(NamedTuple):
    """What is trained: the network, the recipe, what it starts from (a checkpoint, a file of weights among the public
    data, or random weights), and the float checkpoint that teaches it, where it starts from one that is not float."""

    network: str
    recipe: Recipe
    start: str | None = "resnet20-cifar10"
    teacher: str | None = None


def _inner(*ratios: float) -> dict[str, float]:
    """The ratio of each stage of ResNet-56, for the channels between the two convolutions of its nine blocks."""
    return {f"layer{stage}.{block}.conv1": ratio for stage, ratio in enumerate(ratios, 1) for block in range(9)}


_RECOVER = FineTune(epochs=71, lr=2e-3, batch=256, weight_decay=0.02)
TRAININGS = {
    "resnet20-cifar10": Training(
        "cifar-resnet-20", Recipe((FineTune(epochs=60, lr=4e-3, batch=256, weight_decay=0.05, distill=0.0),)), None
    ),
    "resnet20-w2": Training("cifar-resnet-20", Recipe((QuantizeWeights(2), LSQ(epochs=2, lr=1e-3, batch=128)))),
    "resnet20-ternary": Training("cifar-resnet-20", Recipe((Ternary(epochs=2, lr=2e-3, batch=128),))),
    "resnet20-binary-weights": Training("cifar-resnet-20", Recipe((Binary(epochs=2, lr=2e-3, batch=128),))),
    "resnet20-binary": Training("cifar-resnet-20", Recipe((Binary(activations=True, epochs=4, lr=2e-3, batch=128),))),
    "resnet20-epr": Training("cifar-resnet-20", Recipe((EPR(price=0.04, epochs=4, lr=1e-3, batch=128),))),
    "resnet20-cluster4": Training(
        "cifar-resnet-20", Recipe((Cluster(bits=4, codes="trained", epochs=1, lr=2e-4, batch=128),))
    ),
    "resnet20-cluster2": Training("cifar-resnet-20", Recipe((Cluster(bits=2, codes="trained", epochs=5, batch=128),))),
    "resnet20-product": Training("cifar-resnet-20", Recipe((ProductQuantize(), FineTune(epochs=2, lr=3e-3)))),
    "resnet20-2of4": Training(
        "cifar-resnet-20", Recipe((PruneWeights(granularity="2:4"), FineTune(epochs=2, lr=1e-3, batch=128)))
    ),
    "resnet56-cifar10": Training(
        "cifar-resnet-56",
        Recipe((FineTune(epochs=30, lr=2e-3, batch=256, weight_decay=0.05, distill=0.0),)),
        "cifar10/resnet56.safetensors",
    ),
    "resnet56-2.1x": Training(
        "cifar-resnet-56",
        Recipe(
            (PruneChannels(layers=_inner(0.5, 0.5, 0.6), recovery="least_squares"), replace(_RECOVER, epochs=16)),
        ),
        "resnet56-cifar10",
    ),
    "resnet56-2.55x": Training(
        "cifar-resnet-56",
        Recipe((PruneChannels(layers=_inner(0.6, 0.6, 0.6), recovery="least_squares"), _RECOVER)),
        "resnet56-cifar10",
    ),
    "resnet56-2.55x-again": Training(
        "cifar-resnet-56", Recipe((replace(_RECOVER, epochs=36),)), "resnet56-2.55x", "resnet56-cifar10"
    ),
}


@functools.cache
def load() -> Task:
    """All training pictures, moved and mirrored as they are trained on; the test pictures in two halves."""
    preprocess = models.load("zoo:cifar-resnet-20").preprocess
    assert preprocess is not None
    parts = {part: _pictures(f"cifar10/{file}.parquet", preprocess) for part, file in _PARTS.items()}
    return replace(data.from_splits(parts, preprocess=preprocess), augment=shift_and_flip(4))


_PARTS = {"train": "train", "val": "test"}


def _pictures(name: str, preprocess: Preprocess) -> tuple[Any, Any]:
    from pyarrow import parquet

    table = parquet.read_table(records.data(name))
    pixels = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for content in table["image"].to_pylist()]
    return normalise(np.stack(pixels), preprocess), np.asarray(table["label"].to_pylist())


def trained(name: str) -> tuple[nn.Module, list[Facts], JsonObject]:
    """The network of a checkpoint, what its steps told, and how it was trained; skips the benchmark without one."""
    path = CHECKPOINTS / f"{name}.safetensors"
    if not path.exists():
        raise records.Skipped(f"{path.name} is not there: python -m benchmarks.cifar {name}")
    with safetensors.safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["training"])
    model = models.load(f"zoo:{told['network']}").module
    facts: list[Facts] = told.pop("facts")
    model = Recipe.parse(told["recipe"], STEPS).restore(model, facts)
    model.load_state_dict(safetensors.torch.load_file(path))
    return model.eval(), facts, told


def train(name: str) -> None:
    """Train, say how well it does on search, and write the checkpoint."""
    network, recipe, start, teacher = TRAININGS[name]
    task = load()
    model, facts_before, before = _start(network, start, made=teacher is not None)
    context = Context(
        onnxruntime.traits(Target("onnxruntime")),
        reference=Teacher(trained(teacher)[0] if teacher else model),
        progress=records.progress(name),
    )
    began = time.monotonic()
    changed, facts = recipe.apply(model, task, context)
    told = {
        "network": network,
        "recipe": [*before, *recipe.to_json()],
        "start": start,
        "facts": [*facts_before, *facts],
        "seconds": round(time.monotonic() - began, 1),
        "device": _device(),
        "libraries": {"torch": torch.__version__},
    }
    CHECKPOINTS.mkdir(exist_ok=True)
    safetensors.torch.save_file(
        changed.state_dict(), CHECKPOINTS / f"{name}.safetensors", {"training": json.dumps(told)}
    )
    print(f"{name}: {_accuracy(changed, task):.4f} on search, {told['seconds']} s", flush=True)


def _start(network: str, start: str | None, made: bool) -> tuple[nn.Module, list[Facts], list[JsonObject]]:
    """What is trained on; where it was ``made`` of a float network, by which steps, and what these told."""
    if start in TRAININGS:
        model, facts, told = trained(start)
        return (model, facts, told["recipe"]) if made else (model, [], [])
    weights = "" if start is None else f"@{records.data(start)}"
    return models.load(f"zoo:{network}{weights}").module, [], []


def _device() -> str:
    return torch.cuda.get_device_name() if training_device().type == "cuda" else "cpu"


def _accuracy(model: nn.Module, task: Task) -> float:
    """Top-1 on search, in torch."""
    device, right = training_device(), 0
    with torch.no_grad(), placed(model, device, task.search.read([0]).inputs):
        for rows in measure.chunks(len(task.search)):
            batch = task.search.read(rows)
            found = surgery.call(model, {name: torch.as_tensor(x).to(device) for name, x in batch.inputs.items()})
            right += int((next(iter(found.values())).argmax(1).cpu().numpy() == batch.targets).sum())
    return right / len(task.search)


if __name__ == "__main__":
    for chosen in sys.argv[1:] or TRAININGS:
        train(chosen)
