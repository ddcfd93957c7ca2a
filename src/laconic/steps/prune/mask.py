"""A weight of which some numbers are zero and stay zero: what pruning of single weights leaves in the model.

The parametrization stands first in the chain, so what rounds a weight or shares its values comes behind it, and zero is
among the values of both. Training goes through: W = M * V, and the gradient of V is that of W where M is one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery


class Masked(nn.Module):
    """The parametrization: ``mask`` is one bool per weight, true where it stays."""

    mask: Tensor
    follows_gains = True

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask.to(torch.bool))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight that is written is taken as it is; what is masked is not read."""
        return weight


def mask_of(layer: nn.Module) -> Masked | None:
    """The mask on a layer's weight, if it carries one."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    chain = layer.parametrizations["weight"]  # type: ignore[index]
    return next((link for link in chain if isinstance(link, Masked)), None)


def only_masked(layer: nn.Module) -> bool:
    """Whether a layer's weight is plain, or masked and nothing else."""
    if not parametrize.is_parametrized(layer, "weight"):
        return True
    return all(isinstance(link, Masked) for link in layer.parametrizations["weight"])  # type: ignore[index]


@torch.no_grad()
def install(layer: surgery.Layer, mask: Tensor) -> None:
    """Let only the weights in ``mask``, of the weight's shape, stay; a mask that was there before is replaced."""
    carried = mask_of(layer)
    if carried is None:
        parametrize.register_parametrization(layer, "weight", Masked(mask))
    else:
        carried.mask.copy_(mask)
