"""Tucker-2: a convolution as a point, the kernel between few channels, and a point.

Kim et al. 2015, "Compression of deep convolutional neural networks for fast and low power mobile applications", arXiv
1511.06530, eq. 4 and 5:

    W[o, i, y, x] ~ sum_{p, q} U[o, p] G[p, q, y, x] V[i, q]

U and V begin as the leading singular vectors of the kernel unfolded by outputs and by inputs, and are improved in turn,
each for the other (higher-order orthogonal iteration, De Lathauwer, De Moor and Vandewalle 2000). Ranks are one number,
or chosen so that the MACs fit and the two unfoldings lose the least together, or by variational Bayes (:mod:`.vbmf`),
as in the paper. The first point runs on the map that the layer reads, so behind a stride it costs more.
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
from laconic.errors import RecipeError
from laconic.steps.factorize import vbmf
from laconic.steps.factorize.fitting import Factors, Modules, Rows, Technique, factorize, restored
from laconic.steps.factorize.sites import Site, check_settings, like, liked, too_dear
from laconic.steps.settings import check_types
from laconic.surgery import Layer

_GAIN = 1e-7
_EQUAL = 1e-9  # of the kernel's square: what differs by less in what it leaves outside is as good


@dataclass(frozen=True)
class Tucker2:
    """Write convolutions as three. ``ratio``: the share of each layer's MACs that goes; or ``vbmf``: both ranks of each
    layer by variational Bayes. ``layers``: by name or glob another ratio or, from 1 on, both ranks. ``exclude``: globs
    of layers left as they are.
    """

    ratio: float = 0.0
    layers: Mapping[str, float] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    vbmf: bool = False

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        check_settings(self)
        if self.vbmf and self.ratio:
            raise RecipeError("Tucker2 with a ratio and vbmf", fix="set one of them")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        technique = Technique(_suits, _modules, partial(_factors, multiple=context.traits.channel_multiple))
        # with vbmf, what `layers` does not say is asked of a layer as a number that no ratio can be
        return factorize(self, technique, model, task, context, -1.0 if self.vbmf else self.ratio)

    def restore(self, model: Any, facts: Facts) -> Any:
        return restored(Technique(_suits, _modules, _factors), model, facts)


def _suits(layer: Layer) -> bool:
    return not isinstance(layer, nn.Linear) and math.prod(layer.kernel_size) > 1


def _modules(layer: Layer, ranks: tuple[int, ...]) -> Modules:
    assert not isinstance(layer, nn.Linear)
    q, p = (layer.groups * rank for rank in ranks)
    return {
        "reduce": like(layer, (layer.in_channels, q), axes=()),
        "core": like(layer, (q, p)),
        "expand": like(layer, (p, layer.out_channels), axes=(), last=True),
    }


def _macs(site: Site, ranks: tuple[int, int]) -> int:
    q, p = ranks
    here, there = site.groups * math.prod(site.given), site.groups * math.prod(site.made)
    return here * site.inputs * q + there * p * (q * math.prod(site.kernel) + site.outputs)


def _factors(site: Site, wish: float, rows: Rows, multiple: int = 1) -> Factors | str:
    weight = site.weight().flatten(3)  # g o i k
    if wish < 0:
        ranks = _bayesian(weight)
    elif wish >= 1:
        ranks = min(int(wish), site.inputs), min(int(wish), site.outputs)
    else:
        ranks = _fitting(site, (1 - wish) * site.macs, weight, multiple)
    reason = too_dear(site, _macs(site, ranks))
    if reason:
        return reason
    u, core, v = tucker2(weight, ranks)
    inner = torch.einsum("gpqk,giq->gpik", core, v).flatten(2)
    return Factors(ranks, _macs(site, ranks), (v.transpose(1, 2), core), inner, u)


def _bayesian(weight: Tensor) -> tuple[int, int]:
    """Ranks of inputs and outputs; of several groups the largest, and one at least."""
    by_inputs = [vbmf.rank(w.transpose(0, 1).flatten(1).numpy()) for w in weight]
    by_outputs = [vbmf.rank(w.flatten(1).numpy()) for w in weight]
    return max(1, *by_inputs), max(1, *by_outputs)


def _fitting(site: Site, budget: float, weight: Tensor, multiple: int) -> tuple[int, int]:
    """The ranks, of all whose MACs are within the ``budget``, that leave the least outside; (1, 1) without any."""
    outside = [
        torch.linalg.eigvalsh(_square(weight, mode)).clamp_min(0).sum(0).cumsum(0).flip(0).roll(-1).tolist()
        for mode in (2, 1)
    ]
    best, least, equal = (1, 1), math.inf, _EQUAL * float(weight.square().sum())
    for q in range(1, site.inputs + 1):
        p = site.outputs
        while p and _macs(site, (q, p)) > budget:
            p -= 1
        if liked(q, multiple) < q or not p:
            continue
        p = liked(p, multiple)
        lost = (outside[0][q - 1] if q < site.inputs else 0.0) + (outside[1][p - 1] if p < site.outputs else 0.0)
        if lost < least - equal:
            best, least = (q, p), lost
    return best


def tucker2(weight: Tensor, ranks: tuple[int, int], iterations: int = 50) -> tuple[Tensor, Tensor, Tensor]:
    """U (groups, outputs, p), G (groups, p, q, k) and V (groups, inputs, q) of ``weight`` (groups, outputs, inputs, k)
    for ``ranks`` (q, p)."""
    q, p = ranks
    u, v = _leading(_square(weight, 1), p), _leading(_square(weight, 2), q)
    core = torch.einsum("goik,gop,giq->gpqk", weight, u, v)
    for _ in range(iterations):
        before = float(core.square().sum())
        u = _leading(_square(torch.einsum("goik,giq->goqk", weight, v), 1), p)
        half = torch.einsum("goik,gop->gpik", weight, u)
        v = _leading(_square(half, 2), q)
        core = torch.einsum("gpik,giq->gpqk", half, v)
        if float(core.square().sum()) <= before * (1 + _GAIN):
            break
    return u, core, v


def _square(weight: Tensor, mode: int) -> Tensor:
    """The unfolding by ``mode`` times itself transposed: (groups, n, n)."""
    unfolded = weight.movedim(mode, 1).flatten(2)
    return unfolded @ unfolded.transpose(1, 2)


def _leading(square: Tensor, rank: int) -> Tensor:
    vectors: Tensor = torch.linalg.eigh(square).eigenvectors  # rising
    return vectors.flip(2)[:, :, :rank]
