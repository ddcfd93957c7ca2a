"""The transformer of the other benchmarks: ``vit-fashion`` trained on Fashion-MNIST's 60,000 pictures by FineTune's
trainer, from seeded weights, into ``benchmarks/checkpoints/vit-fashion.safetensors`` (float32).

``python -m benchmarks.fashion`` makes the checkpoint anew: the whole training set, no augmentation, no teacher.
"""

from __future__ import annotations

import time
from pathlib import Path

import safetensors.torch

from benchmarks import records
from laconic import data, models
from laconic.core import Task
from laconic.steps.train.fit import Schedule, fit

NAME = "vit-fashion"
CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / f"{NAME}.safetensors"
TRAINING = Schedule(epochs=8, lr=1.5e-3, batch=128, weight_decay=0.05, distill=0.0, temperature=4.0)
SEED = 0


def load() -> tuple[models.LoadedModel, Task]:
    """The trained network and Fashion-MNIST as its task; skips the benchmark where the pictures are absent."""
    pictures = records.data("fashion-mnist")
    loaded = models.load(f"zoo:{NAME}@{CHECKPOINT}")
    return loaded, data.load(str(pictures), preprocess=loaded.preprocess)


def main() -> None:
    """Train and write the checkpoint."""
    loaded = models.load(f"zoo:{NAME}")
    task = data.load(str(records.data("fashion-mnist")), preprocess=loaded.preprocess)
    start = time.monotonic()
    said = -1

    def say(text: str, fraction: float) -> None:
        nonlocal said
        if int(fraction * 20) > said:
            said = int(fraction * 20)
            print(f"{fraction:.0%} {text}, {time.monotonic() - start:.0f} s", flush=True)

    fit(loaded.module, task.train, task.loss, None, TRAINING, SEED, say)
    notes = {"made by": "python -m benchmarks.fashion", "training": str(TRAINING), "seed": str(SEED)}
    safetensors.torch.save_file(loaded.module.state_dict(), CHECKPOINT, notes)


if __name__ == "__main__":
    main()
