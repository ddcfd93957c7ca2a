"""The network of the factorization benchmark: the zoo's small VGG trained by FineTune's trainer from seeded weights, on
Fashion-MNIST or CIFAR-10, into ``benchmarks/checkpoints/vgg-*.safetensors`` (float32).

``python -m benchmarks.vgg [fashion|cifar]`` makes a checkpoint anew, on a graphics card if there is one: the whole
training set, no teacher. CIFAR-10 is that of :mod:`benchmarks.cifar`, its pictures moved and mirrored.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import safetensors.torch
import torch

from benchmarks import cifar, records
from laconic import data, models
from laconic.core import Preprocess, Task
from laconic.steps.train.fit import Schedule, fit

CHECKPOINTS = Path(__file__).resolve().parent / "checkpoints"
TRAININGS = {
    "fashion": Schedule(epochs=4, lr=3e-3, batch=128, weight_decay=0.05, distill=0.0, temperature=4.0),
    "cifar": Schedule(epochs=60, lr=4e-3, batch=256, weight_decay=0.05, distill=0.0, temperature=4.0),
}
SEED = 0
DATA = {"fashion": "Fashion-MNIST", "cifar": "CIFAR-10"}


def load(name: str) -> tuple[models.LoadedModel, Task]:
    """The trained network and its data; skips the benchmark where the checkpoint or the pictures are absent."""
    checkpoint = CHECKPOINTS / f"vgg-{name}.safetensors"
    if not checkpoint.exists():
        raise records.Skipped(f"{checkpoint.name} is not there: python -m benchmarks.vgg {name}")
    loaded = models.load(f"zoo:vgg-{name}@{checkpoint}")
    assert loaded.preprocess is not None
    return loaded, _task(name, loaded.preprocess)


def _task(name: str, preprocess: Preprocess) -> Task:
    """All training pictures to train; the test pictures halved: ``search`` and ``holdout``."""
    if name == "fashion":
        return data.load(str(records.data("fashion-mnist")), preprocess=preprocess)
    return cifar.load()


def train(name: str) -> None:
    """Train on ``fashion`` or ``cifar`` and write the checkpoint."""
    torch.manual_seed(SEED)  # the first weights too
    loaded = models.load(f"zoo:vgg-{name}")
    assert loaded.preprocess is not None
    task = _task(name, loaded.preprocess)
    start, said = time.monotonic(), -1

    def say(text: str, fraction: float) -> None:
        nonlocal said
        if int(fraction * 20) > said:
            said = int(fraction * 20)
            print(f"{fraction:.0%} {text}, {time.monotonic() - start:.0f} s", flush=True)

    model = loaded.module
    fit(model, task.train, task.loss, None, TRAININGS[name], SEED, say, augment=task.augment)
    notes = {"made by": f"python -m benchmarks.vgg {name}", "training": str(TRAININGS[name]), "seed": str(SEED)}
    safetensors.torch.save_file(model.state_dict(), CHECKPOINTS / f"vgg-{name}.safetensors", notes)


if __name__ == "__main__":
    train(*(sys.argv[1:] or ["fashion"]))
