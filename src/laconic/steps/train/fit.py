"""One trainer for every step that trains: AdamW (Loshchilov and Hutter 2017, arXiv 1711.05101), a warm-up and a cosine.

The loss is (1 - a) L(y, t) + a T^2 KL(p_T(teacher) || p_T(student)) (Hinton et al. 2015, arXiv 1503.02531), where p_T
is the softmax of the logits over T. Without labels a = 1. The order of samples, and with it the result, follows from
the seed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Split
from laconic.errors import DataError, TrialError

Loss = Callable[[Mapping[str, Tensor], Tensor], Tensor]
Teacher = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]

_WARM_UP = 0.05
_GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class Schedule:
    """``epochs`` over the data (fractions allowed) in batches of ``batch``, up to the learning rate ``lr``."""

    epochs: float
    lr: float
    batch: int
    weight_decay: float
    distill: float
    temperature: float


def fit(
    model: nn.Module,
    data: Split,
    loss: Loss | None,
    teacher: Teacher | None,
    schedule: Schedule,
    seed: int,
    progress: Callable[[str, float], None],
) -> dict[str, float]:
    """Train ``model`` in place; returns the mean loss of the first and the last tenth of the steps.

    Raises :class:`TrialError` where the loss is no longer finite, :class:`DataError` where neither labels nor a teacher
    say what is right.
    """
    if loss is None and teacher is None:
        raise DataError("nothing to train towards", wanted="labels or a teacher")
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    per_epoch = max(1, len(data) // schedule.batch)
    steps = max(1, round(schedule.epochs * per_epoch))
    optimizer = torch.optim.AdamW(model.parameters(), lr=schedule.lr, weight_decay=schedule.weight_decay)
    cosine = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    losses: list[float] = []
    order = rng.permutation(len(data))
    model.train()
    for step in range(steps):
        place = step % per_epoch
        if place == 0:
            order = rng.permutation(len(data))
        batch = data.read(order[place * schedule.batch : (place + 1) * schedule.batch].tolist())
        inputs = {name: torch.as_tensor(x) for name, x in batch.inputs.items()}
        targets = None if batch.targets is None else torch.as_tensor(batch.targets)
        optimizer.zero_grad(set_to_none=True)
        value = _loss(model, inputs, targets, loss, teacher, schedule)
        losses.append(float(value.detach()))
        if not math.isfinite(losses[-1]):
            raise TrialError(f"training diverged at step {step + 1} of {steps}; a smaller learning rate may help")
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), _GRADIENT_NORM)
        optimizer.step()
        cosine.step()
        progress(f"training, loss {losses[-1]:.3f}", (step + 1) / steps)
    model.eval()
    tenth = max(1, steps // 10)
    return {"first_loss": float(np.mean(losses[:tenth])), "last_loss": float(np.mean(losses[-tenth:])), "steps": steps}


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
