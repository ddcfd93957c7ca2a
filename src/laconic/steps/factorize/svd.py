"""Low rank: a linear layer or convolution as two, the first to a few channels, the second a point in space.

W x ~ U V x of rank r. The least E |W x - U V x - b|^2 has a closed form: with A the r leading eigenvectors of the
covariance of the layer's outputs y = W x, U = A and V = A' W; what is lost is the sum of the other eigenvalues (Zhang,
Zou, He and Sun 2015, arXiv 1505.06798, eq. 4 to 6). It is the truncated SVD of W L with L L' the covariance of x, in
the words of SVD-LLM (Wang et al. 2024, arXiv 2403.07378), without an inverse; with white inputs it is the SVD of W. In
front of a convolution's point stands the whole kernel, with its stride, padding and dilation. Groups are factorized
each.

Deviations: 1 % of the mean variance of the inputs is added to each, for inputs that are never active; and the columns
of U are scaled so that what V gives has variance one, for one quantizer fits such channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.steps.factorize.fitting import Factors, Modules, Rows, Technique, damping, factorize, restored
from laconic.steps.factorize.sites import Site, check_settings, largest_rank, like, too_dear
from laconic.steps.settings import check_types
from laconic.surgery import Layer


@dataclass(frozen=True)
class LowRank:
    """Write linear layers and convolutions as two of low rank. ``ratio``: the share of each layer's MACs that goes;
    ``energy``, if it is not 0, the share of the outputs' variance that stays, instead. ``layers``: by name or glob
    another ratio or, from 1 on, the rank. ``exclude``: globs of layers left as they are.
    """

    ratio: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    energy: float = 0.0

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_settings(self)
        if not 0 <= self.energy < 1:
            raise RecipeError("energy of LowRank", got=self.energy, wanted="0 up to, not including, 1: the share kept")
        if self.energy and self.ratio:
            raise RecipeError("LowRank with a ratio and an energy", fix="set one of them")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        multiple = context.traits.channel_multiple
        technique = Technique(_suits, _modules, partial(_factors, multiple=multiple, energy=self.energy))
        # with an energy, what `layers` does not say is asked of a layer as a number that no ratio can be
        return factorize(self, technique, model, task, context, -1.0 if self.energy else self.ratio)

    def restore(self, model: Any, facts: Facts) -> Any:
        return restored(Technique(_suits, _modules, _factors), model, facts)


def _suits(layer: Layer) -> bool:
    return True


def _modules(layer: Layer, ranks: tuple[int, ...]) -> Modules:
    groups = getattr(layer, "groups", 1)
    inner = groups * ranks[0]
    return {
        "reduce": like(layer, (layer.weight.shape[1] * groups, inner)),
        "expand": like(layer, (inner, len(layer.weight)), axes=(), last=True),
    }


def _macs(site: Site, rank: int) -> int:
    per_place = site.groups * rank * (site.inputs * math.prod(site.kernel) + site.outputs)
    return per_place * math.prod(site.made)


def _factors(site: Site, wish: float, rows: Rows, multiple: int = 1, energy: float = 0.0) -> Factors | str:
    directions, variances = principal(site.weight().flatten(2), rows.x)
    if wish < 0:
        kept = variances.cumsum(1) / variances.sum(1, keepdim=True)  # g o
        rank = int((kept < energy).sum(1).max()) + 1
    else:
        rank = largest_rank(site, wish, partial(_macs, site), multiple)
    reason = too_dear(site, _macs(site, rank))
    if reason:
        return reason
    last, inner = low_rank(site.weight().flatten(2), directions, variances, rank)
    return Factors((rank,), _macs(site, rank), (inner,), inner, last)


def principal(weight: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The directions (groups, outputs, outputs) in which the outputs of ``weight`` (groups, outputs, inputs) vary when
    it reads ``x`` (groups, rows, inputs), in columns, the most first; and the variances (groups, outputs)."""
    centred = x - x.mean(1, keepdim=True)
    y = centred @ weight.transpose(1, 2)  # g r o
    covariance = y.transpose(1, 2) @ y / x.shape[1] + damping(centred.square()) * weight @ weight.transpose(1, 2)
    variances, directions = torch.linalg.eigh(covariance)
    return directions.flip(2), variances.flip(1).clamp_min(0)


def low_rank(weight: Tensor, directions: Tensor, variances: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """U (groups, outputs, rank) and V (groups, rank, inputs)."""
    a, scale = directions[:, :, :rank], variances[:, None, :rank].sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    return a * scale, (a.transpose(1, 2) @ weight) / scale.transpose(1, 2)
