"""How weights are stored: in how many bits, and how many of them are not zero."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic.fake_quantize import weight_quantizer

_CODES = 256
"""More distinct values than this are numbers, not codes."""


@dataclass(frozen=True)
class Stored:
    """A layer's weight: ``elements`` numbers of ``bits`` each, ``nonzero`` of them not zero."""

    elements: int
    nonzero: int
    bits: float


def stored_weights(model: nn.Module) -> dict[str, Stored]:
    """The weights that carry a parametrization (a quantizer, a codebook, a mask), by layer.

    Bits are those of the quantizer's levels, or what a parametrization says (``bits``); of others, enough to tell the
    distinct values of the fullest output channel apart, where these are at most 256, and those of the tensor's type
    where they are more.
    """
    return dict(_found(model))


@torch.no_grad()
def _found(model: nn.Module) -> Iterator[tuple[str, Stored]]:
    for name, layer in model.named_modules():
        if parametrize.is_parametrized(layer, "weight"):
            weight: Tensor = layer.weight
            yield name, Stored(weight.numel(), nonzero(weight), _bits(layer, weight))


def nonzero(weight: Tensor) -> int:
    """How many numbers are not zero; all of a tensor that has a shape only."""
    return weight.numel() if weight.is_meta else int(weight.count_nonzero())


def _bits(layer: nn.Module, weight: Tensor) -> float:
    quantizer, own = weight_quantizer(layer), 8 * weight.element_size()
    if quantizer is not None:
        return math.ceil(math.log2(quantizer.qmax - quantizer.qmin + 1))
    said: list[float] = [link.bits for link in layer.parametrizations["weight"] if hasattr(link, "bits")]  # type: ignore[index]
    if said:
        return min(said)
    if weight.is_meta:
        return own
    distinct = max((len(channel.unique()) for channel in weight), default=0)
    return max(1, math.ceil(math.log2(distinct))) if 0 < distinct <= min(_CODES, weight[0].numel() // 2) else own
