"""A weight that is looked up in a codebook: what the steps of this folder leave in the model.

W = C[I]: the weight is cut into sub-vectors of d consecutive numbers (d = 1: single numbers), I holds one code for
each and C the K sub-vectors that they stand for. The codes stay; the codebook is a parameter, and the gradient of an
entry is the sum of the gradients of the places that look it up (Han et al. 2016, arXiv 1510.00149, section 3.3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import weight_quantizer
from laconic.steps.prune.mask import mask_of

LARGEST = 256
"""Codes are bytes."""


class _LookUp(torch.autograd.Function):
    """``values[index]``, with a backward whose sums do not depend on the number of threads."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.entries = len(values)
        return values[index.long()]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        sums = grads[0].new_zeros(ctx.entries, grads[0].shape[1], dtype=torch.double)
        return sums.index_add_(0, index.long(), grads[0].double()).to(grads[0].dtype), None


def look_up(values: Tensor, index: Tensor) -> Tensor:
    """``values[index]``, (n, d) of (K, d) and (n,); its gradient is the same whatever the number of threads."""
    if torch.compiler.is_exporting():
        return values[index.long()]
    return _LookUp.apply(values, index)  # type: ignore[no-any-return]


class Codebook(nn.Module):
    """The parametrization: ``index`` (n / d,) uint8 and ``values`` (K, d) make a weight of ``shape`` (n numbers).

    The weight that it replaces is not kept: the model holds the codes and the codebook alone.
    """

    index: Tensor

    def __init__(self, index: Tensor, values: Tensor, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("index", index.to(torch.uint8))
        self.values = nn.Parameter(values.detach().clone())
        self.shape = tuple(shape)

    def codes(self) -> Tensor:
        """uint8, in the weight's shape for single numbers, (n / d,) for sub-vectors."""
        return self.index.reshape(self.shape) if self.values.shape[1] == 1 else self.index

    def codebook(self) -> Tensor:
        """(K,) for single numbers, (K, d) for sub-vectors."""
        return self.values.detach().squeeze(1)

    def forward(self) -> Tensor:
        return look_up(self.values, self.index).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """Nothing is kept of the weight."""
        return ()


class _Moving(nn.Module):
    """A codebook of numbers whose codes follow float weights that are trained behind them: each weight takes the value
    nearest to it, and its gradient, straight through, within the range of the values (Bengio et al. 2013, arXiv
    1308.3432)."""

    def __init__(self, weight: Tensor, book: Codebook) -> None:
        super().__init__()
        looked_up = book().detach()
        # where the values were multiplied by a gain after they were the means of their weights, this is the gain
        gain = looked_up.square().sum() / (looked_up * weight).sum()
        self.latent = nn.Parameter(weight * torch.where(torch.isfinite(gain), gain, 1.0))
        self.values = book.values

    def frozen(self) -> Codebook:
        """The codebook with the codes as they are now."""
        values, index = self._nearest()
        return Codebook(index.flatten(), values.detach(), self.latent.shape)

    def forward(self) -> Tensor:
        values, index = self._nearest()
        weight = look_up(values, index.flatten()).reshape(self.latent.shape)
        within = self.latent.clamp(values[0].detach(), values[-1].detach())
        return weight + (within - within.detach())  # adds exactly 0, and the gradient

    def _nearest(self) -> tuple[Tensor, Tensor]:
        """The values (K, 1), rising, and the number of the one nearest to each weight."""
        values = self.values.sort(0).values
        middles = (values.detach()[1:, 0] + values.detach()[:-1, 0]) / 2
        return values, torch.bucketize(self.latent.detach().contiguous(), middles, right=True)


@contextmanager
def moving(weights: Mapping[str, Tensor], layers: Mapping[str, surgery.Layer]) -> Iterator[None]:
    """While this lasts, the codes of ``layers`` are chosen anew whenever they are used, by float ``weights``, which are
    parameters; then they stay as they are."""
    places = []
    for name, layer in layers.items():
        chain: Any = layer.parametrizations["weight"]  # type: ignore[index]
        book = cast(Codebook, codebook_of(layer))
        places.append((chain, list(chain).index(book)))
        chain[places[-1][1]] = _Moving(weights[name], book)
    try:
        yield
    finally:
        for chain, i in places:
            chain[i] = chain[i].frozen()


def codebook_of(layer: nn.Module) -> Codebook | None:
    """The codebook that a layer's weight is looked up in, if there is one."""
    if not parametrize.is_parametrized(layer, "weight"):
        return None
    chain = layer.parametrizations["weight"]  # type: ignore[index]
    return next((link for link in chain if isinstance(link, Codebook)), None)


def install(layer: surgery.Layer, index: Tensor, values: Tensor) -> None:
    """Let the layer's weight be ``values[index]``, whatever gave it before; what pruning masked stays zero."""
    shape, masked = layer.weight.shape, mask_of(layer)
    surgery.own_class(layer)
    if parametrize.is_parametrized(layer, "weight"):
        parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    parametrize.register_parametrization(layer, "weight", Codebook(index, values, shape))
    if masked is not None:
        parametrize.register_parametrization(layer, "weight", masked)


def install_empty(layer: surgery.Layer, entries: int, length: int) -> None:
    """The structure that :func:`install` gives, for weights that are loaded afterwards."""
    codes = layer.weight.numel() // length
    install(layer, torch.zeros(codes, dtype=torch.uint8), layer.weight.new_zeros(entries, length))


def open_layers(model: nn.Module, left: Sequence[str], step: str) -> dict[str, surgery.Layer]:
    """The layers whose weights ``step`` may take: not those that match the globs ``left``, nor those whose weight is
    another layer's too. Raises :class:`RecipeError` where weights are integers already, :class:`TrialError` where a
    weight is not finite."""
    layers = surgery.weighted_layers(model)
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = {}
    for name, layer in layers.items():
        if surgery.matches(name, left):
            continue
        if weight_quantizer(layer) is not None:
            raise RecipeError(f"{step} behind a step that made {name} integer", fix=f"put {step} before it")
        if not parametrize.is_parametrized(layer, "weight") and owners[id(layer.weight)] > 1:
            continue
        if not bool(torch.isfinite(layer.weight).all()):
            raise TrialError(f"a weight of {name} is not finite")
        found[name] = layer
    return found
