"""Weights alone in 2 to 8 bits, activations in float: the file shrinks, and where a runtime has kernels for it
(:mod:`laconic.runtime.onnx_blocks`), so does the time that reading the weights takes.

The weights of a linear layer are rounded in groups of consecutive inputs, each with a scale of its own, as in GPTQ
(Frantar et al. 2022, arXiv 2210.17323, section 4 "grouping") and AWQ (Lin et al. 2023, arXiv 2306.00978); those of a
convolution per output channel. Codes are the b-bit two's complement numbers -2^(b-1) .. 2^(b-1) - 1, without a zero
point. The scale s of a group w minimises ||w - s q||^2, q = clamp(round(w / s)): for each of a row of shrinks f, of
both signs, s_f = +-f max|w| / 2^(b-1) gives codes q, for which the best scale is <w, q> / <q, q> and leaves the error
||w||^2 - <w, q>^2 / <q, q>; the best of them is taken. A negative scale turns the side that has a level more.

No data is read. The codes follow the weights in training (straight-through); the scales stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError, TrialError
from laconic.fake_quantize import GroupQuantize
from laconic.steps.prune.mask import only_masked
from laconic.steps.settings import check_types

_LEAST_SHRINK = 0.35
_SHRINKS = 40
_GROUPS = (0, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class QuantizeWeights:
    """Weights of linear layers in ``bits`` bits, a scale per ``group`` inputs (0: per output, as for convolutions).

    Layers whose weights have another form already are left alone; ``exclude``: globs of layers left in float.
    """

    bits: int = 4
    group: int = 32
    exclude: tuple[str, ...] = ()

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)
        if not 2 <= self.bits <= 8:
            raise RecipeError("bits of QuantizeWeights", got=self.bits, wanted="2 to 8")
        if self.group not in _GROUPS:
            raise RecipeError("group of QuantizeWeights", got=self.group, wanted=f"one of {_GROUPS}")

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        left_float = (*self.exclude, *context.keep)
        names = [
            name
            for name, layer in surgery.weighted_layers(model).items()
            if not surgery.matches(name, left_float) and only_masked(layer)
        ]
        if not names:
            return model, {"folded": [], "layers": []}
        example = {name: torch.as_tensor(x) for name, x in task.train.read([0, 1]).inputs.items()}
        model.eval()
        folded = [list(pair) for pair in surgery.fold_batch_norm(model, surgery.trace(model, example))]
        for name in names:
            layer = model.get_submodule(name)
            if not bool(torch.isfinite(layer.weight).all()):
                raise TrialError(f"weights that are not finite in {name}")
            self._quantize(layer, least_squares(_groups_of(layer, self.group), self.bits))
        return model, {"folded": folded, "layers": names}

    def restore(self, model: Any, facts: Facts) -> Any:
        for layer, norm in facts["folded"]:
            surgery.give_bias(model.get_submodule(layer))
            surgery.set_module(model, norm, nn.Identity())
        for name in facts["layers"]:
            layer = model.get_submodule(name)
            self._quantize(layer, torch.ones(_groups_of(layer, self.group).shape[:2]))
        return model

    def _quantize(self, layer: nn.Module, scale: Tensor) -> None:
        half = 2 ** (self.bits - 1)
        quantizer = GroupQuantize(scale, -half, half - 1, _group_in(layer, self.group))
        parametrize.register_parametrization(layer, "weight", quantizer)


def _group_in(layer: nn.Module, group: int) -> int:
    """The size of the groups in a layer; 0 where an output is one group."""
    return group if isinstance(layer, nn.Linear) and layer.in_features > group else 0


@torch.no_grad()
def _groups_of(layer: Any, group: int) -> Tensor:
    """The weights of a layer as (out, groups, weights of a group), the last group filled up with zeros."""
    rows: Tensor = layer.weight.detach().flatten(1)  # (out, in)
    size = _group_in(layer, group) or rows.shape[1]
    return F.pad(rows, (0, -rows.shape[1] % size)).reshape(len(rows), -1, size)


@torch.no_grad()
def least_squares(weights: Tensor, bits: int) -> Tensor:
    """The scale of each group that leaves the least squared error: (out, groups, n) -> (out, groups)."""
    half = 2 ** (bits - 1)
    weights = weights.double()
    widest = weights.abs().amax(-1) / half
    best, scale = torch.full_like(widest, -1.0), torch.ones_like(widest)
    for shrink in torch.linspace(_LEAST_SHRINK, half / (half - 1), _SHRINKS).tolist():
        for sign in (1.0, -1.0):
            tried = (sign * shrink * widest)[..., None]
            codes = torch.where(tried != 0, torch.round(weights / tried), 0.0).clamp(-half, half - 1)
            product, norm = (weights * codes).sum(-1), codes.square().sum(-1)
            explained = torch.where(norm > 0, product.square() / norm, 0.0)
            better = explained > best
            best = torch.where(better, explained, best)
            scale = torch.where(better & (norm > 0), product / norm, scale)
    short = scale.half()
    exact = (short.abs() >= torch.finfo(torch.float16).tiny) & torch.isfinite(short)
    scale = torch.where(exact, short.double(), scale).float()
    return torch.where(scale.abs() < torch.finfo(torch.float32).tiny, 1.0, scale)
