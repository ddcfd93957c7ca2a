"""Weights in a shorter float: 16 bits (f16, bf16) or 8 (f8e4m3, f8e5m2), activations in float32. The file shrinks; on
processors without arithmetic in the format the runtime computes in float32, on what was stored.

f16 is IEEE 754's binary16 (5 bits of exponent, 10 of significand), bf16 is float32 cut to 8 and 7 (Kalamkar et al.
2019, arXiv 1905.12322), f8e4m3 and f8e5m2 are the two formats of Micikevicius et al. 2022, arXiv 2209.05433, table 1:
4 and 3 bits without infinities, the largest number 448; 5 and 2 bits, the largest 57344. Rounding is to the nearest,
ties to even.

Their 8-bit tensors carry a scale (section 3 there). Here each output channel has one, s, a power of two: the least for
which the largest |w| / s is within the format, and w becomes s round(w / s). A float's relative step is the same in
every binade, so any other factor would gain one of 15 (f8e4m3) or 30 (f8e5m2) binades at most, for the smallest
weights; and powers of two multiply without rounding, so the file holds the step's weights to the bit, whoever
multiplies.

No data is read. In training the gradient goes straight through to the float32 weight behind; the scale follows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import TrialError
from laconic.steps.prune.mask import only_masked
from laconic.steps.quantize.trained import computed_in_float
from laconic.steps.settings import check_types

_TYPES = {
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f8e4m3": torch.float8_e4m3fn,
    "f8e5m2": torch.float8_e5m2,
}
_LEAST_EXPONENT = -126  # of a float32 that is not subnormal


@dataclass(frozen=True)
class CastWeights:
    """Weights of all layers in ``precision``. Layers whose weights have another form already are left alone;
    ``exclude``: globs of layers left in float32."""

    precision: Literal["f16", "bf16", "f8e4m3", "f8e5m2"] = "f16"
    exclude: tuple[str, ...] = ()

    version: ClassVar[int] = 1

    def __post_init__(self) -> None:
        check_types(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        left = (*self.exclude, *context.keep)
        names = [
            name
            for name, layer in surgery.weighted_layers(model).items()
            if not surgery.matches(name, left) and only_masked(layer)
        ]
        facts = {"folded": [], "layers": names, **computed_in_float(8 * _TYPES[self.precision].itemsize)}
        if not names:
            return model, facts
        example = {name: torch.as_tensor(x) for name, x in task.train.read([0, 1]).inputs.items()}
        folded = surgery.fold_batch_norm(model.eval(), surgery.trace(model, example))
        for name in names:
            weight = model.get_submodule(name).weight
            if not bool(torch.isfinite(weight).all()):
                raise TrialError(f"weights that are not finite in {name}")
            if not bool(torch.isfinite(rounded(weight, _TYPES[self.precision])).all()):
                raise TrialError(f"weights of {name} too large for {self.precision}")
        facts["folded"] = [list(pair) for pair in folded]
        self._cast(model, names)
        return model, facts

    def restore(self, model: Any, facts: Facts) -> Any:
        for layer, norm in facts["folded"]:
            surgery.give_bias(model.get_submodule(layer))
            surgery.set_module(model, norm, nn.Identity())
        self._cast(model, facts["layers"])
        return model

    def _cast(self, model: nn.Module, names: list[str]) -> None:
        for name in names:
            layer = model.get_submodule(name)
            parametrize.register_parametrization(layer, "weight", CastWeight(_TYPES[self.precision]))


class CastWeight(nn.Module):
    """The parametrization: a weight (out, in, ...) as the numbers of a shorter float ``dtype`` that are nearest."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.bits = dtype, 8 * dtype.itemsize

    def extra_repr(self) -> str:
        return str(self.dtype)

    def forward(self, weight: Tensor) -> Tensor:
        return _StraightThrough.apply(weight, self.dtype)  # type: ignore[no-any-return]

    def right_inverse(self, weight: Tensor) -> Tensor:
        """A weight that is written is kept as it is."""
        return weight


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return rounded(weight, dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


@torch.no_grad()
def rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """``weight`` (out, in, ...) rounded to ``dtype`` and back; to 8 bits with a scale per output channel."""
    if dtype.itemsize > 1:
        return weight.to(dtype).to(weight.dtype)
    scale = scales(weight, dtype)
    return (weight / scale).to(dtype).to(weight.dtype) * scale


def scales(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The least power of two per output channel, (out, 1, ...), by which the largest weight, divided, is within
    ``dtype``; 1 of a channel of zeros."""
    largest = weight.detach().abs().amax(tuple(range(1, weight.dim())), keepdim=True)
    (part, exponent), (most, reach) = torch.frexp(largest), torch.frexp(torch.tensor(torch.finfo(dtype).max))
    exponent = (exponent - reach + (part > most)).clamp_min(_LEAST_EXPONENT)
    return torch.where(largest > 0, torch.ldexp(torch.ones_like(largest), exponent), 1.0)
