"""GPTQ: the error of each weight's rounding is passed on to the weights that are still to be rounded.

Frantar et al. 2022 (arXiv 2210.17323), algorithm 1, on the columns j of W (channels x inputs), with H = X X^T over the
layer's inputs and U the upper Cholesky factor of H^-1:

    q_j = round(w_j),  e = (w_j - q_j) / U_jj,  w_k -= e U_jk for k > j

It goes for the least |W X - Q X|^2. X is what the network gives whose layers before are quantized already. Convolutions
are rows of patches, per group. 1 % of H's mean diagonal is added to it; where that is not enough for its factorisation
ten times as much, and so on: the facts say so. The biases are corrected behind it (:mod:`.bias_correction`).

Cost: one run of the float and one of the quantized network, and inputs^3 per layer and group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from laconic.core import Context, Facts, Task
from laconic.errors import TrialError
from laconic.steps.quantize import rounding
from laconic.steps.quantize.layerwise import Rows, choose_codes, give_biases
from laconic.steps.settings import check_types

_DAMPING = 0.01
_MOST_DAMPING = 10.0
_BLOCK = 128


@dataclass(frozen=True)
class GPTQ:
    """Choose the codes of quantized weights by GPTQ. ``order``: the inputs with the largest activations go first."""

    order: bool = True

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        layers = rounding.rounded_layers(model, "GPTQ")
        names = {layer: name for name, layer in layers.items()}
        damped: dict[str, float] = {}

        def choose(layer: Any, rows: Rows) -> Tensor:
            weight, q = rounding.float_weight(layer), rounding.quantizer_of(layer)
            scale = rounding.scale_of(layer).expand_as(weight)
            zero = rounding.along_channels(q.zero_point, weight).expand_as(weight)
            codes, damping = gptq(
                rows.grouped(weight),
                rows.grouped(scale),
                rows.grouped(zero),
                (q.qmin, q.qmax),
                (rows.x.transpose(1, 2) @ rows.x).double(),
                self.order,
            )
            if damping > _DAMPING:
                damped[names[layer]] = damping
            return codes.reshape(weight.shape)

        left = choose_codes(model, layers, task, context, choose)
        return model, {"layers": len(layers) - len(left), "left": left, "damped": damped}

    def restore(self, model: Any, facts: Facts) -> Any:
        give_biases(rounding.rounded_layers(model, "GPTQ"))
        return model


Pick = Callable[[Tensor, int], Tensor]
"""The codes (groups, channels) of an input, by its place in the order, whose weights are so many scales, (groups,
channels): beside zero, without a zero point."""


class Columns:
    """The inputs of a layer in the order in which their weights are rounded.

    ``hessian`` (groups, inputs, inputs) is X X^T; with ``order`` the inputs of the largest diagonal go first. ``upper``
    is U, ``damping`` what the factorisation took. Raises :class:`TrialError` where no damping makes it positive
    definite.
    """

    def __init__(self, hessian: Tensor, order: bool = True) -> None:
        h = hessian.clone()
        diagonal = h.diagonal(dim1=1, dim2=2)  # g k, a view
        self.dead = diagonal <= 0
        diagonal[self.dead] = 1.0
        places = torch.arange(h.shape[2]).expand(len(h), -1)
        self.rank = diagonal.argsort(1, descending=True) if order else places
        h = h.gather(1, self.rank[:, :, None].expand_as(h)).gather(2, self.rank[:, None].expand_as(h))
        self.upper, self.damping = _factor(h)

    def ordered(self, of_weights: Tensor) -> Tensor:
        """What there is of each weight, (groups, channels, inputs), in the order of the inputs."""
        return of_weights.gather(2, self.rank[:, None].expand_as(of_weights))

    def codes(self, weight: Tensor, scale: Tensor, pick: Pick) -> Tensor:
        """The codes of ``weight`` (groups, channels, inputs), less the zero point; ``scale`` is of its shape."""
        u, kept = self.upper, self.ordered(weight != 0)  # zero is what pruning left, and stays
        w = self.ordered(weight.double().masked_fill(self.dead[:, None], 0.0))
        s = self.ordered(scale.double())
        codes = torch.empty_like(w)
        for start in range(0, w.shape[2], _BLOCK):
            stop = min(start + _BLOCK, w.shape[2])
            errors = torch.empty_like(w[:, :, start:stop])
            for j in range(start, stop):
                codes[:, :, j] = torch.where(kept[:, :, j], pick(w[:, :, j] / s[:, :, j], j), 0.0)
                e = (w[:, :, j] - codes[:, :, j] * s[:, :, j]) / u[:, j, j, None]  # g c
                w[:, :, j:stop] -= e[:, :, None] * u[:, None, j, j:stop]
                errors[:, :, j - start] = e
            w[:, :, stop:] -= errors @ u[:, start:stop, stop:]
        return torch.empty_like(codes).scatter(2, self.rank[:, None].expand_as(codes), codes).to(weight.dtype)


def gptq(
    weight: Tensor, scale: Tensor, zero_point: Tensor, limits: tuple[int, int], hessian: Tensor, order: bool = True
) -> tuple[Tensor, float]:
    """The codes of ``weight`` (groups, channels, inputs), and the damping that the factorisation took.

    ``scale`` and ``zero_point`` are of the weight's shape; codes lie in ``limits``; ``hessian`` and ``order`` as in
    :class:`Columns`.
    """
    columns = Columns(hessian, order)
    zero = columns.ordered(zero_point.double())

    def nearest(levels: Tensor, j: int) -> Tensor:
        return (torch.round(levels) + zero[:, :, j]).clamp(*limits) - zero[:, :, j]

    return columns.codes(weight, scale, nearest) + zero_point, columns.damping


def _factor(hessian: Tensor) -> tuple[Tensor, float]:
    """The upper Cholesky factor of the damped inverse, and the damping as a share of the mean diagonal."""
    eye = torch.eye(hessian.shape[1], dtype=hessian.dtype)
    mean = hessian.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
    damping = _DAMPING
    while damping <= _MOST_DAMPING:
        lower, failed = torch.linalg.cholesky_ex(hessian + damping * mean * eye)
        if not failed.any():
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed.any():
                return upper, damping
        damping *= 10
    raise TrialError("GPTQ cannot factorise a layer's X X^T: its inputs are not finite, or too large")
