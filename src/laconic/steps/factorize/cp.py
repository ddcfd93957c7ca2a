"""CP: a convolution as a point, a vertical and a horizontal filter per channel, and a point.

Lebedev et al. 2014, "Speeding-up convolutional neural networks using fine-tuned CP-decomposition", arXiv 1412.6553,
eq. 3:

    W[o, i, y, x] ~ sum_r A[o, r] B[i, r] C[y, r] D[x, r]

by alternating least squares: each factor in turn solves its normal equations while the others stay. A best CP need not
exist, and terms may grow without end against each other; so every solution is held near the one before it, by a share
of the normal equations' mean diagonal that falls from sweep to sweep (proximal, Navasca, De Lathauwer and Kindermann
2008), and the factors of a term are given equal lengths after each sweep (the paper used non-linear least squares).
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

_SWEEPS = 100
_HELD_FIRST, _HELD_LAST = 0.1, 1e-6
_GAIN = 1e-3


@dataclass(frozen=True)
class CP:
    """Write convolutions as four. ``ratio``: the share of each layer's MACs that goes; ``layers``: by name or glob
    another ratio or, from 1 on, the rank. ``exclude``: globs of layers left as they are.
    """

    ratio: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_settings(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        multiple = context.traits.channel_multiple
        technique = Technique(_suits, _modules, partial(_factors, multiple=multiple, seed=context.seed))
        return factorize(self, technique, model, task, context, self.ratio)

    def restore(self, model: Any, facts: Facts) -> Any:
        return restored(Technique(_suits, _modules, _factors), model, facts)


def _suits(layer: Layer) -> bool:
    return isinstance(layer, nn.Conv2d) and min(layer.weight.shape[2:]) > 1


def _modules(layer: Layer, ranks: tuple[int, ...]) -> Modules:
    assert isinstance(layer, nn.Conv2d)
    inner = layer.groups * ranks[0]
    return {
        "reduce": like(layer, (layer.in_channels, inner), axes=()),
        "vertical": like(layer, (inner, inner), axes=(0,), groups=inner),
        "horizontal": like(layer, (inner, inner), axes=(1,), groups=inner),
        "expand": like(layer, (inner, layer.out_channels), axes=(), last=True),
    }


def _macs(site: Site, rank: int) -> int:
    height, width = site.kernel
    given, between, made = math.prod(site.given), site.made[0] * site.given[1], math.prod(site.made)
    return site.groups * rank * (site.inputs * given + height * between + (width + site.outputs) * made)


def _factors(site: Site, wish: float, rows: Rows, multiple: int = 1, seed: int = 0) -> Factors | str:
    rank = largest_rank(site, wish, partial(_macs, site), multiple)
    reason = too_dear(site, _macs(site, rank))
    if reason:
        return reason
    found = [cp(weight, rank, seed) for weight in site.weight()]
    a, b, c, d = (torch.stack(f) for f in zip(*found, strict=True))  # g n r each
    inner = torch.einsum("gir,gyr,gxr->griyx", b, c, d).flatten(2)
    weights = tuple(f.transpose(1, 2) for f in (b, c, d))  # g r n
    return Factors((rank,), _macs(site, rank), weights, inner, a)


def cp(tensor: Tensor, rank: int, seed: int = 0) -> list[Tensor]:
    """The factors (n, rank), one for each of ``tensor``'s modes, balanced."""
    generator = torch.Generator().manual_seed(seed)
    factors = [torch.randn(n, rank, generator=generator, dtype=tensor.dtype) for n in tensor.shape]
    unfolded = [tensor.movedim(mode, 0).flatten(1) for mode in range(tensor.dim())]
    total, error = float(tensor.square().sum()), math.inf
    for sweep in range(_SWEEPS):
        held = max(_HELD_LAST, _HELD_FIRST * 0.6**sweep)
        for mode, matrix in enumerate(unfolded):
            others = [f for m, f in enumerate(factors) if m != mode]
            square = torch.stack([f.T @ f for f in others]).prod(0)  # r r
            near = held * square.diagonal().mean().clamp_min(torch.finfo(tensor.dtype).tiny)
            wanted = matrix @ _khatri_rao(others) + near * factors[mode]  # n r
            system = square + near * torch.eye(rank, dtype=tensor.dtype)
            factors[mode] = torch.linalg.solve(system, wanted.T).T
        factors = _balanced(factors)
        now = float((unfolded[0] - factors[0] @ _khatri_rao(factors[1:]).T).square().sum()) / max(total, 1e-300)
        if held == _HELD_LAST and now > error * (1 - _GAIN):
            break
        error = now
    return factors


def _khatri_rao(factors: list[Tensor]) -> Tensor:
    """The columns' outer products, flattened: (the product of all n, rank)."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None] * factor[None]).flatten(0, 1)
    return product


def _balanced(factors: list[Tensor]) -> list[Tensor]:
    lengths = [f.norm(dim=0).clamp_min(1e-150) for f in factors]
    mean = torch.stack(lengths).prod(0) ** (1 / len(factors))  # r
    return [f / length * mean for f, length in zip(factors, lengths, strict=True)]
