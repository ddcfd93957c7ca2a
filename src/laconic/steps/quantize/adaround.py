"""AdaRound: whether each weight goes up or down is learned from what its layer then gives.

Nagel et al. 2020 (arXiv 2004.10568), eq. 25: over V of the soft rounding W~ (:mod:`.rounding`), minimise

    |f_a(W x) - f_a(W~ x^)|^2 + lambda f_reg(V)

with x the float network's inputs, x^ those that the network gives whose layers before are quantized already, and f_a
the relu or clamp behind the layer. beta goes from 20 to 2; the regulariser waits for the first fifth.

Deviations: the first term is a share of what rounding to nearest gives, the second a mean over weights, so that one
lambda fits all layers; minibatches are of places (rows of patches), not of pictures; in the end each output channel
keeps the better of the learned and the nearest codes; biases are corrected behind it (:mod:`.bias_correction`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.quantize import rounding
from laconic.steps.quantize.layerwise import Rows, choose_codes, give_biases
from laconic.steps.quantize.rounding import SoftRounding, along_channels
from laconic.steps.settings import check_types

_LAMBDA = 1.0
_RATE = 0.02
_BATCH = 256  # rows


@dataclass(frozen=True)
class AdaRound:
    """Learn the rounding of quantized weights, layer by layer, in ``iterations`` steps of Adam for each."""

    iterations: int = 300

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        if self.iterations < 1:
            raise RecipeError("iterations of AdaRound", got=self.iterations, wanted="1 or more")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        layers = rounding.rounded_layers(model, "AdaRound")
        generator = torch.Generator().manual_seed(context.seed)
        gains: list[float] = []

        def choose(layer: surgery.Layer, rows: Rows) -> Tensor:
            nearest = rounding.quantizer_of(layer).codes(rounding.float_weight(layer))
            learned = learn(SoftRounding.of(layer), rows, nearest, self.iterations, generator)
            before, after = (rows.errors(decoded(layer, codes)) for codes in (nearest, learned))
            gains.append(float(after.minimum(before).sum() / before.sum().clamp_min(1e-30)))
            return torch.where(along_channels(after < before, learned), learned, nearest)

        left = choose_codes(model, layers, task, context, choose)
        rest = sum(gains) / len(gains) if gains else 1.0
        return model, {"layers": len(layers) - len(left), "left": left, "error_left": rest}

    def restore(self, model: Any, facts: Facts) -> Any:
        give_biases(rounding.rounded_layers(model, "AdaRound"))
        return model


def decoded(layer: surgery.Layer, codes: Tensor) -> Tensor:
    """What codes of a layer's weight stand for."""
    zero_point = along_channels(rounding.quantizer_of(layer).zero_point, codes)
    return (codes - zero_point) * rounding.scale_of(layer)


def learn(soft: SoftRounding, rows: Rows, nearest: Tensor, iterations: int, generator: torch.Generator) -> Tensor:
    """The learned codes, in the weight's shape; ``nearest`` are those to do better than."""
    wanted = rows.wanted.clamp(*rows.bounds)
    start = soft.scale * (nearest - soft.zero_point)
    unit = rows.errors(start).sum().clamp_min(1e-12)
    bias = torch.zeros_like(rows.bias).requires_grad_()
    optimizer = torch.optim.Adam(
        [{"params": [soft.v], "lr": _RATE}, {"params": [bias], "lr": 1e-3 * float(wanted.std())}]
    )
    n = len(wanted)
    with torch.enable_grad():
        for i in range(iterations):
            some = torch.randint(n, (min(_BATCH, n),), generator=generator)
            y = (Rows(rows.x[:, some], wanted, rows.bounds, rows.bias).outputs(soft()) + bias).clamp(*rows.bounds)
            loss = (y - wanted[some]).square().sum(1).mean() / unit
            beta = rounding.beta_at(i / iterations)
            if beta is not None:
                loss = loss + _LAMBDA * soft.undecided(beta)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return soft.codes()
