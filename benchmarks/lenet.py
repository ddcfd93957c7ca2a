"""LeNet-5-Caffe on MNIST: trained by FineTune's trainer, then shrunk with training, within half a point: the fastest
network of at most 6 % of the size.

Everything is run as a user would: the weights are a file, the rest is the command line.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import safetensors.torch

from benchmarks import records
from laconic import data, models
from laconic.steps.train.fit import Schedule, fit

TRAINING = Schedule(epochs=8, lr=2e-3, batch=128, weight_decay=1e-4, distill=0.0, temperature=4.0)
OPTIONS = ("--max-drop", "0.5%", "--max-size", "6%", "--budget", "20m")


def main(folder: Path) -> dict[str, Any]:
    mnist = records.data("mnist")
    with tempfile.TemporaryDirectory() as scratch:
        model = train(mnist, Path(scratch))
        summary = records.laconic("shrink", model, "--data", mnist, "--out", Path(scratch) / "out", *OPTIONS)
    return records.write(folder, "lenet", {"training": TRAINING.__dict__, "options": OPTIONS, "shrink": summary})


def train(mnist: Path, folder: Path) -> str:
    """Train from seeded weights into ``folder``; what to call the result on the command line."""
    loaded = models.load("zoo:lenet-5-caffe")
    task = data.load(str(mnist), preprocess=loaded.preprocess)
    fit(loaded.module, task.train, task.loss, None, TRAINING, 0, records.progress("float"))
    path = folder / "lenet-5-caffe.safetensors"
    safetensors.torch.save_file(loaded.module.state_dict(), path)
    return f"zoo:lenet-5-caffe@{path}"


if __name__ == "__main__":
    main(records.FOLDER)
