"""What a unit (a weight, a block, a kernel, a channel) is worth: the criteria of the field, a function and a line each.

A criterion is given the parts of each unit: of one layer, or, where units are channels, of every layer that takes part.
It answers with one score per unit; the lowest go first.

    l1, l2            sum |w|, sum w^2 (Han et al. 2015, arXiv 1506.02626; Li et al. 2016, arXiv 1608.08710)
    lamp              w_u^2 over the sum of w_v^2 >= w_u^2 in the layer (Lee et al. 2020, arXiv 2010.07611, eq. 4)
    bn_scale          |gamma| of the batch norms (Liu et al. 2017, arXiv 1708.06519)
    geometric_median  sum over the layer's other filters of |w_u - w_v| (He et al. 2018, arXiv 1811.00250, eq. 8)
    apoz              1 - share of zeros in the activation (Hu et al. 2016, arXiv 1607.03250)
    taylor, taylor_abs  E (sum g w)^2, E |sum g w| over samples (Molchanov et al. 2019, arXiv 1906.10771, eq. 8; 2016,
                      arXiv 1611.06440, eq. 7)
    obd               sum h w^2 / 2, h = E g^2, the Fisher diagonal (LeCun et al. 1989)
    obs               what its removal adds to the layer's output error when the others make up for it; of channels and
                      heads, when they go one after the other (:mod:`.obs`)
    woodfisher        w' ([F^-1]_uu)^-1 w / 2, F = lambda + E g g' (Singh and Alistarh 2020, arXiv 2004.14340, eq. 11)
    random            the control

A channel that is taken away is, for those who read it, zero. So the criteria that know of a loss or of inputs look at
the weights that read it, together: sum g w over them is what the channel gives times its gradient. Magnitude looks at
the weights on both sides (DepGraph, Fang et al. 2023, arXiv 2301.12900, eq. 4).

WoodFisher deviates in its blocks: the paper cuts a layer's Fisher matrix into blocks of a few dozen weights and inverts
each by a recursion over samples; with n samples, G (n, weights) and K = n lambda + G G', the inverse of the whole
layer's follows from Woodbury's identity, and ([F^-1]_uu)^-1 = lambda (1 + G_u' (K - G_u G_u')^-1 G_u).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.steps.prune import obs as surgeon
from laconic.steps.prune.cut import Cut
from laconic.steps.prune.evidence import Evidence

_DAMPING = 0.01  # lambda, as a share of the mean of the n eigenvalues that are not zero
_NUMBERS = 2**24


@dataclass(frozen=True)
class Part:
    """The share of one layer in each unit."""

    evidence: Evidence
    cut: Cut

    @property
    def weight(self) -> Tensor:
        """(units, numbers)."""
        return self.cut(self.evidence.weight)

    @property
    def gradients(self) -> Tensor:
        """(samples, units, numbers)."""
        assert self.evidence.gradients is not None
        return self.cut(self.evidence.gradients)


Score = Callable[[Sequence[Part], torch.Generator], Tensor]


@dataclass(frozen=True)
class Criterion:
    """``score(parts, generator)``: (units,). ``needs``: the evidence it reads. ``channels_alone``: it says nothing of
    smaller units. ``looks_at``: whose weights are a channel's parts: of layers that give it, read it, ``both``, or of
    its batch norms; ``each``: its parts are scored one by one, each to a mean of one, and the mean counts."""

    score: Score
    needs: frozenset[str] = frozenset()
    channels_alone: bool = False
    looks_at: str = "readers"
    each: bool = False


def l1(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return sum_of([part.weight.abs().sum(1) for part in parts])


def l2(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return sum_of([part.weight.square().sum(1) for part in parts])


def lamp(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return normalised(l2(parts, generator))


def normalised(magnitude: Tensor) -> Tensor:
    """Each over the sum of those at least as large, ties in order."""
    falling = magnitude.double().argsort(descending=True, stable=True)
    ordered = magnitude.double()[falling]
    scores = ordered / ordered.cumsum(0).clamp_min(torch.finfo(torch.float64).tiny)
    return torch.empty_like(scores).index_copy_(0, falling, scores)


def random(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return torch.rand(parts[0].cut.shape, generator=generator).flatten()


def geometric_median(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return sum_of([torch.cdist(part.weight, part.weight).sum(1) for part in parts])


def apoz(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return -sum_of([_zeros(part) for part in parts]) / len(parts)


def _zeros(part: Part) -> Tensor:
    zeros = part.evidence.zeros
    assert zeros is not None
    inputs = part.evidence.weight.shape[1]
    return zeros.repeat_interleave(inputs // len(zeros))[part.cut.columns].reshape(-1, part.cut.width).mean(1)


def changes(parts: Sequence[Part]) -> Tensor:
    """sum g w of each unit: (samples, units)."""
    return sum_of([(part.gradients * part.weight).sum(2) for part in parts])


def taylor(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return changes(parts).square().mean(0)


def taylor_abs(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return changes(parts).abs().mean(0)


def obd(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    return sum_of([(part.gradients.square().mean(0) * part.weight.square()).sum(1) for part in parts]) / 2


def obs(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    found = [(part.evidence.weight, part.evidence.moments, part.cut) for part in parts]
    known = [(weight, moments, cut) for weight, moments, cut in found if moments is not None]
    assert len(known) == len(found)
    if all(cut.shape[0] == 1 for _, _, cut in known):  # channels or heads, each all rows of some columns
        return surgeon.in_turn(known)
    return sum_of([surgeon.losses(*part) for part in known])


def woodfisher(parts: Sequence[Part], generator: torch.Generator) -> Tensor:
    """With u = G_u w_u: lambda / 2 (|w_u|^2 + u' (K - G_u G_u')^-1 u), by what is smaller: samples or numbers."""
    gradients = torch.cat([part.gradients for part in parts], 2).double()  # n u s
    weight = torch.cat([part.weight for part in parts], 1).double()  # u s
    n, units, size = gradients.shape
    flat = gradients.flatten(1)
    damping = (_DAMPING * flat.square().sum() / n**2).clamp_min(torch.finfo(torch.float64).tiny)
    kernel = n * damping * torch.eye(n, dtype=torch.float64) + flat @ flat.T
    moved = torch.einsum("nus,us->un", gradients, weight)
    inverse = torch.linalg.inv(kernel)
    found = []
    for some in torch.split(torch.arange(units), max(1, _NUMBERS // (n * size))):
        g, u = gradients[:, some].transpose(0, 1), moved[some]  # u n s
        if size <= n:  # ([F^-1]_uu)^-1 = lambda (1 - G_u' K^-1 G_u)^-1
            left = torch.eye(size, dtype=torch.float64) - g.transpose(1, 2) @ inverse @ g
            quadratic = (weight[some] * torch.linalg.solve(left, weight[some])).sum(1)
        else:
            rest = kernel - g @ g.transpose(1, 2)
            quadratic = weight[some].square().sum(1) + (u * torch.linalg.solve(rest, u)).sum(1)
        found.append(quadratic)
    return damping / 2 * torch.cat(found)


def sum_of(scores: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(scores)).sum(0)


_GRADIENTS = frozenset({"gradients"})
CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(l1, looks_at="both", each=True),
    "l2": Criterion(l2, looks_at="both", each=True),
    "lamp": Criterion(lamp, looks_at="both"),
    "bn_scale": Criterion(l1, channels_alone=True, looks_at="norms"),
    "geometric_median": Criterion(geometric_median, channels_alone=True, looks_at="givers", each=True),
    "apoz": Criterion(apoz, frozenset({"zeros"}), channels_alone=True),
    "taylor": Criterion(taylor, _GRADIENTS),
    "taylor_abs": Criterion(taylor_abs, _GRADIENTS),
    "obd": Criterion(obd, _GRADIENTS),
    "obs": Criterion(obs, frozenset({"moments"})),
    "woodfisher": Criterion(woodfisher, _GRADIENTS),
    "random": Criterion(random),
}
