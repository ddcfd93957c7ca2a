"""Weights of three values per layer, -W_n, 0 and W_p: trained ternary quantization.

Zhu et al. 2017, arXiv 1612.01064: w becomes W_p where w > t, -W_n where w < -t, else 0 (eq. 6), t = 0.05 max|w|
(eq. 9). W_p and W_n are trained, each by the sum of its weights' gradients (eq. 7); a float weight behind W_p gets W_p
times its gradient, behind -W_n W_n times, behind 0 the gradient itself (eq. 8).

Without training the closed form of Li et al. 2016, arXiv 1605.04711: t = 0.7 mean|w| (eq. 6 there), and W_p, W_n the
means of what lies beyond (eq. 5). That differs from the paper, where both sides share one mean: with two values the
least squares are the mean of each side. The same means at t = 0.05 max|w| are where training starts.

The first and the last layer stay in float, as in the paper. Runtimes have no kernel for three values: they are stored
in 2 bits and computed in float.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.quantize.trained import (
    check_data,
    check_training,
    computed_in_float,
    example_of,
    layers_to_change,
    train,
)

_OF_LARGEST = 0.05
_OF_MEAN = 0.7


@dataclass(frozen=True)
class Ternary:
    """Weights in {-W_n, 0, W_p} per layer, trained for ``epochs`` with AdamW at ``lr``; ``distill`` is the share of the
    distillation loss. ``keep_ends``: the first and the last layer stay in float."""

    epochs: float = 3.0
    lr: float = 1e-3
    batch: int = 64
    distill: float = 0.5
    keep_ends: bool = True

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_training(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        graph = surgery.trace(model.eval(), example_of(calibration_inputs(task)))
        layers = layers_to_change(self, model, graph, context.keep, self.keep_ends)
        facts = {"layers": list(layers), **computed_in_float(2)}
        self.restore(model, facts)
        return model, {**facts, **train(self, model, task, context)}

    def restore(self, model: Any, facts: Facts) -> Any:
        for name in facts["layers"]:
            layer = model.get_submodule(name)
            parametrize.register_parametrization(layer, "weight", TernaryWeight(layer.weight, trained=self.epochs > 0))
        return model


class TernaryWeight(nn.Module):
    """A weight in {-W_n, 0, W_p}; ``latent`` is the float weight behind it, ``trained`` chooses the threshold."""

    def __init__(self, weight: nn.Parameter, trained: bool) -> None:
        super().__init__()
        self.latent, self.trained = weight, trained
        codes, weight_now = self.codes(), weight.detach()
        self.positive = nn.Parameter(_mean(weight_now[codes == 2]))
        self.negative = nn.Parameter(_mean(-weight_now[codes == 0]))

    def _sides(self) -> tuple[Tensor, Tensor]:
        """What lies above t, and what below -t."""
        size = self.latent.detach().abs()
        t = _OF_LARGEST * size.max() if self.trained else _OF_MEAN * size.mean()
        return self.latent > t, self.latent < -t

    def codes(self) -> Tensor:
        """Which value of :meth:`codebook` each weight is: uint8, of the weight's shape."""
        above, below = self._sides()
        return 1 + above.to(torch.uint8) - below.to(torch.uint8)

    def codebook(self) -> Tensor:
        """-W_n, 0, W_p: (3,)."""
        return torch.stack([-self.negative, torch.zeros_like(self.positive), self.positive]).detach()

    def forward(self) -> Tensor:
        above, below = self._sides()
        ternary = torch.where(above, self.positive, torch.where(below, -self.negative, 0.0))
        if not torch.is_grad_enabled():
            return ternary
        factor = torch.where(above, self.positive, torch.where(below, self.negative, 1.0)).detach()
        return ternary + (self.latent - self.latent.detach()) * factor  # adds exactly 0, and the gradient of eq. 8

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The float weight is kept here, and nowhere else."""
        return ()


def _mean(values: Tensor) -> Tensor:
    """Their mean; 0 of none."""
    return values.mean() if len(values) else values.sum()
