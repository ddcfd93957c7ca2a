"""Entropy-penalised reparameterization: weights trained under a price for the bits that they will be coded in.

Oktay, Balle, Singh and Shrivastava 2019, arXiv 1906.06624. A layer's weights are W = s K with a step s, which is
trained, and integers K, which follow float weights straight-through; what is minimised is the rate-distortion objective

    L + lambda * sum_k -log2 p(k)

over all layers, p a model of each layer's integers. Deviations:

- p is no trained density but the frequencies of the integers as they are (:mod:`.code_length`): for given integers no
  other p gives less, and an adaptive coder comes to it.
- -log2 p is taken at W / s itself, linear between integers, instead of at integers with noise: the pull of a weight to
  the next integer is the difference of the two integers' bits.
- Batch norms are folded first, so that a layer has one step and no gains.

For the last share of the epochs, ``frozen``, the integers stay as they are; steps and biases are trained on, and all
else. From then on biases are integers too, of ``bias_bits`` bits, times a power of two for each layer: stored as
float32 their last bytes are zeros, which cost nothing in a packed file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.fake_quantize import FakeQuantize, weight_quantizer
from laconic.steps.cluster.codebook import open_layers
from laconic.steps.prune.mask import only_masked
from laconic.steps.quantize.code_length import lengths
from laconic.steps.quantize.trained import check_data, check_training, computed_in_float, train
from laconic.steps.train.fit import Penalised

_KILOBYTE = 8000.0  # bits


@dataclass(frozen=True)
class EPR:
    """Train weights as integers of at most ``bits`` bits times a step per layer, for ``epochs`` with AdamW at ``lr``;
    ``price`` is what a kilobyte (1000 bytes) of them costs in units of the loss.

    ``frozen``: the share of the epochs, the last, for which the integers stay; ``bias_bits``: of the biases, 0 leaves
    them in float; ``distill`` is the share of the distillation loss; ``exclude``: globs of layers left as they are.
    """

    price: float = 0.02
    bits: int = 4
    bias_bits: int = 6
    frozen: float = 0.25
    exclude: tuple[str, ...] = ()
    epochs: float = 4.0
    lr: float = 1e-3
    batch: int = 64
    distill: float = 0.5

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_training(self)
        if self.price < 0:
            raise RecipeError("price of EPR", got=self.price, wanted="0 or more")
        if not 2 <= self.bits <= 8:
            raise RecipeError("bits of EPR", got=self.bits, wanted="2 to 8")
        if self.bias_bits != 0 and not 2 <= self.bias_bits <= 16:
            raise RecipeError("bias_bits of EPR", got=self.bias_bits, wanted="2 to 16, or 0 for float")
        if not 0 <= self.frozen < 1:
            raise RecipeError("frozen of EPR", got=self.frozen, wanted="0 up to, not including, 1")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        left = (*self.exclude, *context.keep)
        layers = {name: x for name, x in open_layers(model, left, "EPR").items() if only_masked(x)}
        if not layers:
            return model, {"folded": [], "layers": []}
        example = {name: torch.as_tensor(x) for name, x in task.train.read([0, 1]).inputs.items()}
        folded = [list(pair) for pair in surgery.fold_batch_norm(model.eval(), surgery.trace(model, example))]
        for layer in layers.values():
            self._quantize(layer, _first_step(layer.weight.detach(), self._top))
        facts = {"folded": folded, "layers": list(layers), **computed_in_float(self.bits)}
        with _swapped(layers, partial(_Priced, price=self.price / _KILOBYTE)):
            facts |= train(self, model, task, context, 1 - self.frozen)
        with _swapped(layers, _Fixed), _rounded_biases(layers, self.bias_bits):
            facts["frozen"] = train(self, model, task, context, self.frozen)
        return model, facts

    @property
    def _top(self) -> int:
        return int(2 ** (self.bits - 1)) - 1

    def restore(self, model: Any, facts: Facts) -> Any:
        for layer, norm in facts["folded"]:
            surgery.give_bias(model.get_submodule(layer))
            surgery.set_module(model, norm, nn.Identity())
        for name in facts["layers"]:
            self._quantize(model.get_submodule(name), torch.ones(()))
        return model

    def _quantize(self, layer: nn.Module, step: Tensor) -> None:
        quantizer = FakeQuantize(step, torch.zeros(()), -self._top, self._top)
        parametrize.register_parametrization(layer, "weight", quantizer)


def _first_step(weight: Tensor, top: int) -> Tensor:
    """The step at which the largest weight is the largest integer."""
    largest = weight.abs().max()
    return torch.where(largest > 0, largest / top, 1.0)


class _Learned(nn.Module):
    """Stands in for a quantizer while its step is trained: s = s_0 exp(p), as in :mod:`.lsq`."""

    start: Tensor

    def __init__(self, quantizer: FakeQuantize, weight: Tensor) -> None:
        super().__init__()
        self.quantizer = quantizer
        self.damping = weight.numel() ** -0.5
        self.register_buffer("start", quantizer.scale.clone())
        self.log_ratio = nn.Parameter(torch.zeros(()))

    def step(self) -> Tensor:
        ratio = self.log_ratio.detach() + self.damping * (self.log_ratio - self.log_ratio.detach())
        step: Tensor = self.start * ratio.exp()
        return step

    def frozen(self) -> FakeQuantize:
        """The quantizer with the step as it is now."""
        self.quantizer.scale = self.step().detach()
        return self.quantizer


class _Priced(_Learned, Penalised):
    """Weights follow straight-through, and a bit costs ``price``."""

    def __init__(self, quantizer: FakeQuantize, weight: Tensor, price: float) -> None:
        super().__init__(quantizer, weight)
        self.price, self.penalty = price, torch.zeros(())

    def forward(self, weight: Tensor) -> Tensor:
        step, top = self.step(), self.quantizer.qmax
        levels = (weight / step).clamp(-top, top)
        self.penalty = self.price * code_length(levels, top)
        codes = levels.detach().round()
        smooth = (levels + (codes - levels.detach())) * step
        return codes * step.detach() + (smooth - smooth.detach())  # adds exactly 0, and the gradients


class _Fixed(_Learned):
    """The integers are what they were at the beginning."""

    codes: Tensor

    def __init__(self, quantizer: FakeQuantize, weight: Tensor) -> None:
        super().__init__(quantizer, weight)
        self.register_buffer("codes", quantizer.codes(weight))

    def forward(self, weight: Tensor) -> Tensor:
        return self.codes * self.step()


def code_length(levels: Tensor, top: int) -> Tensor:
    """Bits that weights of (out, ...) take whose ``levels``, W / s, are at most ``top`` in magnitude: (). Exact where
    they are integers, linear between; the frequencies are constants to the gradient."""
    rows = levels.flatten(1).abs()
    low = rows.detach().floor().clamp(max=top - 1)
    with torch.no_grad():
        zero, other, magnitudes = lengths(rows.round(), top)
        below = torch.where(low == 0, zero, other + magnitudes[low.long()])
        above = other + magnitudes[low.long() + 1]
    return (below + (rows - low) * (above - below)).sum()


@contextmanager
def _swapped(layers: Mapping[str, surgery.Layer], kind: Callable[[FakeQuantize, Tensor], _Learned]) -> Iterator[None]:
    """While this lasts, the quantizers of ``layers`` are of a ``kind`` that is trained; afterwards they hold the steps
    that were learned, and the weights are the integers times these."""
    chains: list[Any] = [layer.parametrizations["weight"] for layer in layers.values()]  # type: ignore[index]
    learned = []
    for layer, chain in zip(layers.values(), chains, strict=True):
        quantizer = cast(FakeQuantize, weight_quantizer(layer))
        learned.append(kind(quantizer, surgery.parameter_of(layer).detach()))
        chain[len(chain) - 1] = learned[-1]
    try:
        yield
    finally:
        for layer, chain, found in zip(layers.values(), chains, learned, strict=True):
            with torch.no_grad():
                weight = layer.weight.detach().clone()
            chain[len(chain) - 1] = found.frozen()
            surgery.parameter_of(layer).data.copy_(weight)


class _Rounded(nn.Module):
    """A bias that is integers times ``step``; straight-through."""

    step: Tensor

    def __init__(self, bias: Tensor, bits: int) -> None:
        super().__init__()
        self.top = 2 ** (bits - 1) - 1
        largest = bias.detach().abs().max()
        exponent = torch.ceil(torch.log2(largest / self.top))
        self.register_buffer("step", torch.where(largest > 0, torch.exp2(exponent), 1.0))

    def forward(self, bias: Tensor) -> Tensor:
        levels = (bias / self.step).clamp(-self.top, self.top)
        return (levels + (levels.round() - levels).detach()) * self.step


@contextmanager
def _rounded_biases(layers: Mapping[str, surgery.Layer], bits: int) -> Iterator[None]:
    """While this lasts, the biases of ``layers`` are rounded whenever they are used; afterwards they are what they were
    rounded to. Nothing is done to biases of 0 ``bits``."""
    changed = [layer for layer in layers.values() if bits and layer.bias is not None]
    for layer in changed:
        surgery.own_class(layer)
        parametrize.register_parametrization(layer, "bias", _Rounded(cast(Tensor, layer.bias), bits))
    try:
        yield
    finally:
        for layer in changed:
            parametrize.remove_parametrizations(layer, "bias", leave_parametrized=True)
