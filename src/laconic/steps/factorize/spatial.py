"""Spatially separable convolutions: k x k as k x 1, then 1 x k, with R channels between them.

Jaderberg, Vedaldi and Zisserman 2014, arXiv 1405.3866, scheme 2:

    W[o, i, y, x] ~ sum_r H[o, r, x] V[r, i, y]

In closed form (Tai et al. 2016, arXiv 1511.06067): the SVD of the kernel laid out as (inputs y, outputs x), of which
the R leading terms are the least error. The vertical convolution has the stride, padding and dilation of the rows, the
horizontal one those of the columns. Groups are factorized each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from laconic.core import Context, Facts, Task
from laconic.steps.factorize.fitting import Factors, Modules, Rows, Technique, factorize, restored
from laconic.steps.factorize.sites import Site, check_settings, largest_rank, like, too_dear
from laconic.steps.settings import check_types
from laconic.surgery import Layer


@dataclass(frozen=True)
class SpatiallySeparable:
    """Write convolutions as a vertical and a horizontal one. ``ratio``: the share of each layer's MACs that goes;
    ``layers``: by name or glob another ratio or, from 1 on, the rank. ``exclude``: globs of layers left as they are.
    """

    ratio: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_settings(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        technique = Technique(_suits, _modules, partial(_factors, multiple=context.traits.channel_multiple))
        return factorize(self, technique, model, task, context, self.ratio)

    def restore(self, model: Any, facts: Facts) -> Any:
        return restored(Technique(_suits, _modules, _factors), model, facts)


def _suits(layer: Layer) -> bool:
    return isinstance(layer, nn.Conv2d) and min(layer.weight.shape[2:]) > 1


def _modules(layer: Layer, ranks: tuple[int, ...]) -> Modules:
    assert isinstance(layer, nn.Conv2d)
    inner = layer.groups * ranks[0]
    return {
        "vertical": like(layer, (layer.in_channels, inner), axes=(0,)),
        "horizontal": like(layer, (inner, layer.out_channels), axes=(1,), last=True),
    }


def _macs(site: Site, rank: int) -> int:
    height, width = site.kernel
    between = site.made[0] * site.given[1]
    return site.groups * rank * (site.inputs * height * between + site.outputs * width * math.prod(site.made))


def _factors(site: Site, wish: float, rows: Rows, multiple: int = 1) -> Factors | str:
    rank = largest_rank(site, wish, partial(_macs, site), multiple)
    reason = too_dear(site, _macs(site, rank))
    if reason:
        return reason
    horizontal, vertical = separable(site.weight(), rank)
    inner, last = as_matrices(horizontal, vertical)
    return Factors((rank,), _macs(site, rank), (vertical,), inner, last)


def separable(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """H (groups, outputs, rank, width) and V (groups, rank, inputs, height) nearest to ``weight`` (groups, outputs,
    inputs, height, width); both have columns of the same length."""
    g, o, i, height, width = weight.shape
    laid_out = weight.permute(0, 2, 3, 1, 4).reshape(g, i * height, o * width)
    u, s, v = torch.linalg.svd(laid_out, full_matrices=False)
    half = s[:, :rank].sqrt()
    vertical = (u[:, :, :rank] * half[:, None]).transpose(1, 2).reshape(g, -1, i, height)
    horizontal = (v[:, :rank] * half[:, :, None]).reshape(g, -1, o, width).transpose(1, 2)
    return horizontal, vertical


def as_matrices(horizontal: Tensor, vertical: Tensor) -> tuple[Tensor, Tensor]:
    """P (groups, rank x width, inputs x height x width) and L (groups, outputs, rank x width): a row of z is what the
    vertical convolution gives at the ``width`` places that the horizontal one reads."""
    width = horizontal.shape[3]
    inner = torch.einsum("griy,xz->grxiyz", vertical, torch.eye(width, dtype=vertical.dtype))
    return inner.flatten(3).flatten(1, 2), horizontal.flatten(2)
