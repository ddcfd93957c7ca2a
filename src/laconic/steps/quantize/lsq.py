"""Learned step size quantization: quantization-aware training in which the scales are trained with the weights.

Esser et al. 2020, arXiv 1902.08153. For levels Q_N .. Q_P around the zero point and v = x / s,

    dQ/ds = -v + round(v)  where Q_N < v < Q_P,  else the level that v was clamped to      (eq. 3)
    dQ/dx = 1              where Q_N < v < Q_P,  else 0                                    (eq. 5)

and the gradient of s is multiplied by 1 / sqrt(N Q_P), N the weights that share s or the features of one sample
(section 2.2). Three deviations: the range starts as the step before chose it; zero points stay; and, since the trainer
is AdamW, whose steps do not depend on the size of a gradient, s = s_0 exp(p) and p is trained, so that one learning
rate fits scales of every size (Jain et al. 2020, arXiv 1903.08066, section 3).

What is computed in training is computed by the quantizers themselves, so nothing changes when scales become constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.fake_quantize import PER_TENSOR, FakeQuantize, GroupQuantize, attached, weight_quantizer
from laconic.steps.quantize.trained import check_data, check_training, per_channel, train


@dataclass(frozen=True)
class LSQ:
    """Train weights and scales behind Quantize or QuantizeWeights: ``epochs`` over the train split with AdamW at
    ``lr``; ``distill`` is the share of the distillation loss."""

    epochs: float = 3.0
    lr: float = 3e-4  # Quantize folds batch norms, and without them 2e-3 ended in chance on a ResNet-20
    batch: int = 64
    distill: float = 0.5

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_training(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        if not _places(model):
            raise RecipeError("LSQ of a model without quantizers", fix="put Quantize or QuantizeWeights before it")
        with learning(model):
            return model, train(self, model, task, context)

    def restore(self, model: Any, facts: Facts) -> Any:
        return model


@contextmanager
def learning(model: nn.Module) -> Iterator[None]:
    """While this lasts, the scales of all quantizers are parameters; afterwards they are buffers with what was learned.

    A layer whose weight has no quantizer is left as it is.
    """
    places = _places(model)
    for held, index, count in places:
        held[index] = _LearnedScale(cast(FakeQuantize, held[index]), count)
    try:
        yield
    finally:
        for held, index, _ in places:
            held[index] = cast(_LearnedScale, held[index]).frozen()


def _places(model: nn.Module) -> list[tuple[nn.ModuleList, int, int | None]]:
    """Where the quantizers are: the list that holds each, its index, and how many weights share one of its scales
    (None on activations)."""
    places: list[tuple[nn.ModuleList, int, int | None]] = []
    for layer in surgery.weighted_layers(model).values():
        quantizer = weight_quantizer(layer)
        if quantizer is not None:
            chain = cast(nn.ModuleList, layer.parametrizations["weight"])  # type: ignore[index]
            places.append((chain, list(chain).index(quantizer), layer.weight.numel() // quantizer.scale.numel()))
    activations = attached(model)
    if activations is not None:
        places += [(activations.quantizers, i, None) for i in range(len(activations.quantizers))]
    return places


class _LearnedScale(nn.Module):
    """A quantizer whose scale is trained: s = s_0 exp(p)."""

    start: Tensor

    def __init__(self, quantizer: FakeQuantize, count: int | None) -> None:
        super().__init__()
        self.quantizer, self.count = quantizer, count
        self.register_buffer("start", quantizer.scale.clone())
        self.log_ratio = nn.Parameter(torch.zeros_like(quantizer.scale))

    def _scale(self) -> Tensor:
        return self.start * self.log_ratio.exp()

    def frozen(self) -> FakeQuantize:
        """The quantizer with the scale as it is now."""
        self.quantizer.scale = self._scale().detach()
        return self.quantizer

    def forward(self, x: Tensor) -> Tensor:
        quantizer, scale = self.frozen(), self._scale()
        with torch.no_grad():
            y: Tensor = quantizer(x)
        count = self.count or x[0].numel()
        damping = (count * quantizer.qmax) ** -0.5
        s = _spread(quantizer, scale.detach() + damping * (scale - scale.detach()), x)
        zero = _spread(quantizer, quantizer.zero_point, x)
        v = (x / s).clamp(quantizer.qmin - zero, quantizer.qmax - zero)
        smooth = (v + (v.round() - v).detach()) * s
        return y + (smooth - smooth.detach())  # adds exactly 0, and the gradients of eq. 3 and 5


def _spread(quantizer: FakeQuantize, parameter: Tensor, x: Tensor) -> Tensor:
    """A quantizer's scale or zero point, shaped so that it broadcasts over ``x``."""
    if isinstance(quantizer, GroupQuantize) and parameter.dim():  # (out, groups)
        inputs = x[0].numel()
        return parameter.repeat_interleave(quantizer.group or inputs, 1)[:, :inputs].reshape(x.shape)
    return parameter if quantizer.axis == PER_TENSOR else per_channel(parameter, x, quantizer.axis)
