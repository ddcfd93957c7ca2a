"""MNIST as the records use it: a split of the training set to choose on, and a teacher's answers to distorted pictures.

``python -m benchmarks.mnist`` trains the teacher, a convolutional network of 76,666 weights, on the 55,000 pictures of
``train`` and writes it to ``benchmarks/checkpoints/mnist-teacher.safetensors`` (float16). It reads neither the 5,000
pictures that are chosen on nor the test pictures.

A student learns from :class:`Distorted`: every training picture as it is and in seven distorted copies, each with what
the teacher says of it, told once. A student is then trained as fast as without a teacher.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import records
from laconic import data
from laconic.core import Batch, Preprocess, Split, Task
from laconic.data.augment import rotate_and_scale
from laconic.data.source import Rows
from laconic.steps.train.fit import Schedule, distillation, fit

CHECKPOINT = Path(__file__).resolve().parent / "checkpoints" / "mnist-teacher.safetensors"
TEACHER = Schedule(epochs=10, lr=4e-3, batch=128, weight_decay=0.02, distill=0.0, temperature=4.0)
PREPROCESS = Preprocess(channels="L")
CHOSEN_ON, SPLIT_SEED = 5_000, 12345
TEMPERATURE, TAUGHT = 3.0, 0.9
_CHUNK = 500
distort = partial(rotate_and_scale, degrees=12.0, scale=0.12, shear=0.12, pixels=1.5)


class Teacher(nn.Sequential):
    """Four convolutions with batch norm and a linear layer: (n, 1, 28, 28) -> (n, 10)."""

    def __init__(self) -> None:
        super().__init__(
            *_block(1, 16, 5, stride=2, padding=2),  # 14 x 14
            *_block(16, 32, 3, padding=1),
            nn.MaxPool2d(2),  # 7 x 7
            *_block(32, 64, 3, padding=1),
            *_block(64, 64, 3),  # 5 x 5
            nn.Flatten(),
            nn.Linear(64 * 25, 10),
        )


def _block(inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0) -> list[nn.Module]:
    return [nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]


@functools.cache
def load() -> Task:
    """``train`` 55,000 of the training pictures, ``search`` the other 5,000, ``holdout`` the 10,000 test pictures."""
    task = data.load(str(records.data("mnist")), preprocess=PREPROCESS)
    rows = np.random.RandomState(SPLIT_SEED).permutation(len(task.train))
    return replace(
        task,
        train=Rows(task.train, rows[CHOSEN_ON:]),
        search=Rows(task.train, rows[:CHOSEN_ON]),
        holdout=Joined([task.search, task.holdout]),
    )


class Joined:
    """Splits one after the other."""

    def __init__(self, parts: Sequence[Split]) -> None:
        self._places = [(part, row) for part in parts for row in range(len(part))]

    def __len__(self) -> int:
        return len(self._places)

    def read(self, indices: Sequence[int]) -> Batch:
        read = [part.read([row]) for part, row in (self._places[i] for i in indices)]
        inputs = {name: np.concatenate([batch.inputs[name] for batch in read]) for name in read[0].inputs}
        return Batch(inputs, np.concatenate([batch.targets for batch in read if batch.targets is not None]))


def teacher() -> nn.Module:
    """The trained teacher; skips the benchmark without its checkpoint."""
    if not CHECKPOINT.exists():
        raise records.Skipped(f"{CHECKPOINT.name} is not there: python -m benchmarks.mnist")
    model = Teacher()
    stored = safetensors.torch.load_file(CHECKPOINT)
    model.load_state_dict({name: x.float() if x.is_floating_point() else x for name, x in stored.items()})
    return model.eval()


class Distorted:
    """Training pictures in ``copies``, all but the first distorted, with ten logits of the teacher and the label."""

    def __init__(self, pictures: Split, taught_by: nn.Module, copies: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        bytes_, told = [], []
        for copy in range(copies):
            for start in range(0, len(pictures), _CHUNK):
                batch = pictures.read(range(start, min(start + _CHUNK, len(pictures))))
                inputs: Mapping[str, Tensor] = {name: torch.as_tensor(x) for name, x in batch.inputs.items()}
                (x,) = (inputs if copy == 0 else distort()(inputs, generator)).values()
                whole = (255 * x).round().clamp(0, 255).to(torch.uint8)  # n 1 28 28
                with torch.no_grad():
                    logits = taught_by(whole.float() / 255).numpy()
                bytes_.append(whole.numpy())
                told.append(np.column_stack([logits, np.asarray(batch.targets)]).astype(np.float32))
        self._names = list(batch.inputs)
        self._bytes, self._told = np.concatenate(bytes_), np.concatenate(told)

    def __len__(self) -> int:
        return len(self._bytes)

    def read(self, indices: Sequence[int]) -> Batch:
        rows = np.asarray(indices)
        return Batch({self._names[0]: self._bytes[rows].astype(np.float32) / 255}, self._told[rows])


@functools.cache
def taught(copies: int) -> Task:
    """The task with :class:`Distorted` pictures to train on, and the loss that goes with them."""
    task = load()
    return replace(task, train=Distorted(task.train, teacher(), copies, seed=1), loss=_towards_teacher)


def _towards_teacher(outputs: Any, told: Tensor) -> Tensor:
    """(1 - a) cross-entropy + a T^2 KL, as in :mod:`laconic.steps.train.fit`."""
    logits = next(iter(outputs.values()))
    towards = distillation({"y": logits}, {"y": told[:, :10]}, TEMPERATURE)
    return TAUGHT * towards + (1 - TAUGHT) * F.cross_entropy(logits, told[:, 10].long())


def main() -> None:
    """Train the teacher and write the checkpoint."""
    torch.manual_seed(0)
    task, model = load(), Teacher()
    fit(model, task.train, task.loss, None, TEACHER, 0, lambda text, fraction: None, augment=distort())
    wrong = sum(
        int((model(torch.as_tensor(batch.inputs["input"])).argmax(1).numpy() != batch.targets).sum())
        for batch in (task.search.read(range(i, i + _CHUNK)) for i in range(0, CHOSEN_ON, _CHUNK))
    )
    half = {name: x.half() if x.is_floating_point() else x for name, x in model.state_dict().items()}
    notes = {"made by": "python -m benchmarks.mnist", "training": str(TEACHER), "errors of 5,000": str(wrong)}
    safetensors.torch.save_file(half, CHECKPOINT, notes)


if __name__ == "__main__":
    main()
