"""One trainer for every step that trains: AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), a warm-up and a cosine.

The loss is (1 - a) L(y, t) + a T^2 KL(p_T(teacher) || p_T(student)) (Hinton et al. 2015, arXiv 1503.02531), where p_T
is the softmax of the logits over T. Without labels a = 1. The order of samples, and with it the result, follows from
the seed. Where training runs, and in what numbers: :mod:`.device`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Batch, Split
from laconic.errors import DataError, TrialError
from laconic.steps.train.device import Recorded, moved, placed, precision, training_device

Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]
Teacher = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]
Augment = Callable[[Mapping[str, Tensor], torch.Generator], Mapping[str, Tensor]]

_WARM_UP = 0.05
_GRADIENT_NORM = 5.0
_LOOK = 50  # steps on a card between two looks at the losses: to look is to wait for it


@dataclass(frozen=True)
class Schedule:
    """``epochs`` over the data (fractions allowed) in batches of ``batch``, up to the learning rate ``lr``."""

    epochs: float
    lr: float
    batch: int
    weight_decay: float
    distill: float
    temperature: float


class Penalised(nn.Module):
    """A module that costs something: ``penalty`` is what it was when the module last ran, in units of the loss."""

    penalty: Tensor


def fit(
    model: nn.Module,
    data: Split,
    loss: Loss | None,
    teacher: Teacher | None,
    schedule: Schedule,
    seed: int,
    progress: Callable[[str, float], None],
    *,
    augment: Augment | None = None,
) -> dict[str, float]:
    """Train ``model`` in place; returns the mean loss of the first and the last tenth of the steps.

    ``augment(inputs, generator)`` gives what a batch is turned into before each step. What the model has of
    :class:`Penalised` adds its penalty to the loss. Raises :class:`TrialError` where
    the loss is no longer finite, :class:`DataError` where neither labels nor a teacher say what is right.
    """
    if loss is None and teacher is None:
        raise DataError("nothing to train towards", wanted="labels or a teacher")
    rng, device = np.random.default_rng(seed), training_device()
    torch.manual_seed(seed)
    generator = torch.Generator(device).manual_seed(seed)
    steps = max(1, round(schedule.epochs * _per_epoch(data, schedule.batch)))
    losses = _Losses(steps, 1 if device.type == "cpu" else _LOOK, progress)
    batches = _batches(data, schedule.batch, steps, rng)
    first = next(batches)
    with placed(model, device, first.inputs):
        model.train()
        optimizer = _optimizer(model, schedule, device)
        cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
        one_step = _step(model, optimizer, loss, teacher, schedule)
        run = one_step if device.type == "cpu" else Recorded(one_step)
        for batch in itertools.chain([first], batches):
            inputs: Mapping[str, Tensor] = {name: moved(x, device) for name, x in batch.inputs.items()}
            targets = None if batch.targets is None else moved(batch.targets, device)
            losses.add(run(inputs if augment is None else augment(inputs, generator), targets))
            cosine.step()
        model.eval()
    return losses.ends()


def _per_epoch(data: Split, size: int) -> int:
    return max(1, len(data) // size)


def _batches(data: Split, size: int, steps: int, rng: np.random.Generator) -> Iterator[Batch]:
    """So many batches of ``size`` samples, in a new order in every epoch; what is left of an epoch is left out."""
    for step in range(steps):
        place = step % _per_epoch(data, size)
        if place == 0:
            order = rng.permutation(len(data))
        yield data.read(order[place * size : (place + 1) * size].tolist())


def _optimizer(model: nn.Module, schedule: Schedule, device: torch.device) -> torch.optim.Optimizer:
    """AdamW; on a card with its rate there too, so that a recorded step reads it anew."""
    if device.type == "cpu":
        return torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    rate = torch.tensor(schedule.lr, device=device)
    decay = schedule.weight_decay
    return torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=decay, fused=True, capturable=True)


def _step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Loss | None,
    teacher: Teacher | None,
    schedule: Schedule,
) -> Callable[[Mapping[str, Tensor], Tensor | None], Tensor]:
    penalised = [module for module in model.modules() if isinstance(module, Penalised)]

    def step(inputs: Mapping[str, Tensor], targets: Tensor | None) -> Tensor:
        optimizer.zero_grad(set_to_none=True)
        with precision(next(iter(inputs.values())).device):
            value = _loss(model, inputs, targets, loss, teacher, schedule)
            for part in penalised:
                value = value + part.penalty
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
        optimizer.step()
        return value.detach()

    return step


class _Losses:
    """The losses of all steps, looked at once in ``look`` of them: told as progress, and refused if not finite."""

    def __init__(self, steps: int, look: int, progress: Callable[[str, float], None]) -> None:
        self._steps, self._look, self._progress = steps, look, progress
        self._seen: list[float] = []
        self._unseen: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        self._unseen.append(loss.clone())
        done = len(self._seen) + len(self._unseen)
        if len(self._unseen) < self._look and done < self._steps:
            return
        for value in torch.stack(self._unseen).tolist():
            self._seen.append(value)
            if not math.isfinite(value):
                where = f"step {len(self._seen)} of {self._steps}"
                raise TrialError(f"training diverged at {where}; a smaller learning rate may help")
        self._unseen.clear()
        self._progress(f"training, loss {self._seen[-1]:.3f}", done / self._steps)

    def ends(self) -> dict[str, float]:
        """The mean of the first tenth and of the last, and the number of steps."""
        tenth = max(1, self._steps // 10)
        first, last = float(np.mean(self._seen[:tenth])), float(np.mean(self._seen[-tenth:]))
        return {"first_loss": first, "last_loss": last, "steps": self._steps}


def _rate(step: int, steps: int) -> float:
    warm = max(1, round(_WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _loss(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    targets: Tensor | None,
    loss: Loss | None,
    teacher: Teacher | None,
    schedule: Schedule,
) -> Tensor:
    outputs = surgery.call(model, inputs)
    supervised = loss(outputs, targets) if loss is not None and targets is not None else None
    if supervised is not None and (teacher is None or schedule.distill == 0):
        return supervised
    if teacher is None:
        raise DataError("nothing to train towards", wanted="labels or a teacher")
    with torch.no_grad():
        wanted = teacher(inputs)
    distilled = distillation(outputs, wanted, schedule.temperature)
    return distilled if supervised is None else (1 - schedule.distill) * supervised + schedule.distill * distilled


def distillation(student: Mapping[str, Any], teacher: Mapping[str, Any], temperature: float) -> Tensor:
    """T^2 KL(p_T(teacher) || p_T(student)) over the last axis of the first output, the mean over samples."""
    s, t = next(iter(student.values())), next(iter(teacher.values()))  # (n, ..., classes)
    divergence = F.kl_div(
        F.log_softmax(s / temperature, -1), F.log_softmax(t / temperature, -1), log_target=True, reduction="none"
    )
    return divergence.sum(-1).mean() * temperature**2
