"""Depthwise separable convolutions: every input channel filtered by itself, then mixed point by point.

The form is MobileNet's (Howard et al. 2017, arXiv 1704.04861), here with M filters per input channel, and it begins
where the convolution was: per input channel i the kernel W[:, i] (outputs x k^2) is replaced by the M leading terms of
its SVD (Guo et al. 2018, "Network decoupling", arXiv 1808.05517, section 3):

    W[o, i] ~ sum_m P[o, i, m] D[i, m]

M = 1 loses much; train behind it, with distillation (``FineTune``). M = k^2 is exact. Groups stay in the second
convolution.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from laconic.core import Context, Facts, Task
from laconic.steps.factorize.fitting import Factors, Modules, Rows, Technique, factorize, restored
from laconic.steps.factorize.sites import Site, check_settings, largest_rank, like, too_dear
from laconic.steps.settings import check_types
from laconic.surgery import Layer


@dataclass(frozen=True)
class DepthwiseSeparable:
    """Write convolutions as a depthwise and a pointwise one. ``ratio``: the share of each layer's MACs that goes, and
    so many filters per input channel stay, one at least; ``layers``: by name or glob another ratio or, from 1 on, the
    number of filters. ``exclude``: globs of layers left as they are.
    """

    ratio: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_settings(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        return factorize(self, Technique(_suits, _modules, _factors), model, task, context, self.ratio)

    def restore(self, model: Any, facts: Facts) -> Any:
        return restored(Technique(_suits, _modules, _factors), model, facts)


def _suits(layer: Layer) -> bool:
    return not isinstance(layer, nn.Linear) and math.prod(layer.kernel_size) > 1 and layer.weight.shape[1] > 1


def _modules(layer: Layer, ranks: tuple[int, ...]) -> Modules:
    assert not isinstance(layer, nn.Linear)
    inner = layer.in_channels * ranks[0]
    return {
        "depthwise": like(layer, (layer.in_channels, inner), groups=layer.in_channels),
        "pointwise": like(layer, (inner, layer.out_channels), axes=(), last=True),
    }


def _macs(site: Site, filters: int) -> int:
    per_place = site.groups * site.inputs * filters * (math.prod(site.kernel) + site.outputs)
    return per_place * math.prod(site.made)


def _factors(site: Site, wish: float, rows: Rows) -> Factors | str:
    filters = largest_rank(site, wish, partial(_macs, site), 1)
    reason = too_dear(site, _macs(site, filters))
    if reason:
        return reason
    pointwise, depthwise = separable(site.weight().flatten(3), filters)
    eye = torch.eye(site.inputs, dtype=depthwise.dtype)
    inner = torch.einsum("gimk,ij->gimjk", depthwise, eye).flatten(3).flatten(1, 2)
    return Factors((filters,), _macs(site, filters), (depthwise,), inner, pointwise.flatten(2))


def separable(weight: Tensor, filters: int) -> tuple[Tensor, Tensor]:
    """P (groups, outputs, inputs, filters) and D (groups, inputs, filters, k^2) nearest to ``weight`` (groups, outputs,
    inputs, k^2); both have columns of the same length, some of them zero where there are more filters than outputs."""
    by_input = weight.transpose(1, 2)  # g i o k
    _, s, v = torch.linalg.svd(by_input, full_matrices=True)
    v = v[:, :, :filters]  # g i m k
    half = F.pad(s, (0, max(0, filters - s.shape[2])))[:, :, :filters].sqrt()
    safe = torch.where(half > 0, half, 1.0)
    return (by_input @ v.transpose(2, 3) / safe[:, :, None]).transpose(1, 2), v * half[..., None]
