"""What the steps share that choose the codes of weights from data.

They come behind Quantize. The scales stay; what is chosen is which level each weight goes to, and it is written back
where the float weight was, as what its code stands for: rounded again it gives the same code.

The soft rounding is that of AdaRound (Nagel et al. 2020, arXiv 2004.10568):

    W~ = s clip(floor(W / s) + h(V), n, p)                                       (eq. 22)
    h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1), zeta = 1.1, gamma = -0.1    (eq. 23)
    f_reg(V) = sum 1 - |2 h(V) - 1|^beta                                         (eq. 24)
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.errors import RecipeError
from laconic.fake_quantize import FakeQuantize, GroupQuantize, attached, weight_quantizer
from laconic.steps.prune.mask import Masked, mask_of
from laconic.steps.quantize.bias_correction import whole_bias

_ZETA, _GAMMA = 1.1, -0.1
_BETA_START, _BETA_END = 20.0, 2.0
WARM_UP = 0.2  # of the iterations, without the regulariser


def rounded_layers(model: nn.Module, step: str) -> dict[str, surgery.Layer]:
    """The layers whose float weights are rounded to integers; :class:`RecipeError` where there are none. A weight of
    few values (ternary, say) that was then rounded is none of them: its codes follow from those values."""
    layers = surgery.weighted_layers(model)
    found = {name: layer for name, layer in layers.items() if _rounds_float(layer)}
    if not found:
        raise RecipeError(f"{step} finds no weights that are rounded", fix="put Quantize before it in the recipe")
    return found


def _rounds_float(layer: surgery.Layer) -> bool:
    quantizer = weight_quantizer(layer)
    if quantizer is None:
        return False
    first = next(link for link in layer.parametrizations["weight"] if not isinstance(link, Masked))  # type: ignore[index]
    return first is quantizer


def quantizer_of(layer: surgery.Layer) -> FakeQuantize:
    """The quantizer on the weight of a layer that has one."""
    quantizer = weight_quantizer(layer)
    assert quantizer is not None
    return quantizer


def float_weight(layer: surgery.Layer) -> Tensor:
    """The weight as it is in front of its quantizer; what pruning masked is zero."""
    original, masked = surgery.parameter_of(layer).detach(), mask_of(layer)
    return original if masked is None else original * masked.mask


@torch.no_grad()
def write_codes(layer: surgery.Layer, codes: Tensor) -> None:
    """Let the weight be what ``codes``, of its shape, stand for."""
    quantizer = quantizer_of(layer)
    assert int(codes.min()) >= quantizer.qmin
    assert int(codes.max()) <= quantizer.qmax
    surgery.parameter_of(layer).copy_((codes - along_channels(quantizer.zero_point, codes)) * scale_of(layer))


def scale_of(layer: surgery.Layer) -> Tensor:
    """The scale of each weight, shaped so that it broadcasts along them."""
    quantizer, weight = quantizer_of(layer), float_weight(layer)
    if isinstance(quantizer, GroupQuantize):
        inputs = weight[0].numel()
        return quantizer.scale.repeat_interleave(quantizer.group or inputs, 1)[:, :inputs].reshape(weight.shape)
    return along_channels(quantizer.scale, weight)


def along_channels(parameter: Tensor, weight: Tensor) -> Tensor:
    return parameter.reshape(-1, *[1] * (weight.dim() - 1))  # (channels or 1, 1, ...)


@torch.no_grad()
def float_network(model: nn.Module) -> nn.Module:
    """A copy of ``model`` that computes in float: no quantizers, what is masked is plainly zero, and biases are as they
    were before their correction."""
    twin = copy.deepcopy(model)
    carried = attached(twin)
    if carried is not None:
        carried.groups, carried.active, carried.passive = (), {}, {}
    for layer in surgery.weighted_layers(twin).values():
        if weight_quantizer(layer) is not None:  # removing the parametrization would reach the original's class
            chain: nn.ModuleList = layer.parametrizations["weight"]  # type: ignore[index, assignment]
            for i, one in enumerate(chain):
                if isinstance(one, Masked):
                    surgery.parameter_of(layer).mul_(one.mask)
                if isinstance(one, (Masked, FakeQuantize)):
                    chain[i] = nn.Identity()
        shift = getattr(layer, "bias_correction", None)
        if shift is not None and layer.bias is not None:
            layer.bias -= shift
    return twin.requires_grad_(False)


def input_scales(model: nn.Module, graph: surgery.Graph) -> dict[str, float]:
    """The scale of what each layer reads, at its first call, as far as it is rounded; ``graph`` is of the float
    network."""
    carried, producer = attached(model), graph.producer()
    quantizers = {} if carried is None else carried.by_value()
    found: dict[str, float] = {}
    for call in graph.calls:
        if call.family not in ("conv", "linear"):
            continue
        name = call.inputs[0]
        while name not in quantizers and name in producer and producer[name].family in ("pad", "dropout"):
            name = producer[name].inputs[0]
        if name in quantizers:
            found.setdefault(call.module, float(quantizers[name].scale))
    return found


@torch.no_grad()
def write_bias(layer: surgery.Layer, bias: Tensor, exact: Tensor, input_scale: float | None) -> None:
    """Give a layer its corrected bias, in whole multiples of s_a s_w where it runs in integers; ``exact`` is the float
    one."""
    assert layer.bias is not None
    layer.bias.copy_(bias if input_scale is None else whole_bias(layer, bias, input_scale))
    layer.bias_correction = layer.bias.detach() - exact


class SoftRounding(nn.Module):
    """A weight on its way to one of the two levels beside it; begins as the float weight.

    ``weight``, ``scale`` and ``zero_point`` broadcast against each other.
    """

    def __init__(self, weight: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int) -> None:
        super().__init__()
        self.scale, self.zero_point, self.qmin, self.qmax = scale, zero_point, qmin, qmax
        self.free = weight != 0  # zero is what pruning left, and stays
        self.floor = torch.floor(weight / scale) + zero_point
        rest = (weight / scale + zero_point - self.floor).clamp(1e-4, 1 - 1e-4)
        share = (rest - _GAMMA) / (_ZETA - _GAMMA)
        self.v = nn.Parameter(torch.log(share / (1 - share)))

    @classmethod
    def of(cls, layer: surgery.Layer) -> SoftRounding:
        quantizer = quantizer_of(layer)
        zero_point = along_channels(quantizer.zero_point, layer.weight)
        return cls(float_weight(layer), scale_of(layer), zero_point, quantizer.qmin, quantizer.qmax)

    def h(self) -> Tensor:
        return (torch.sigmoid(self.v) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1) * self.free

    def forward(self) -> Tensor:
        codes = (self.floor + self.h()).clamp(self.qmin, self.qmax)
        return (codes - self.zero_point) * self.scale

    def codes(self) -> Tensor:
        """Each weight's level, decided."""
        return (self.floor + (self.h() >= 0.5)).clamp(self.qmin, self.qmax).detach()

    def undecided(self, beta: float) -> Tensor:
        """The mean of 1 - |2h - 1|^beta over the weights."""
        return (1 - (2 * self.h() - 1).abs().pow(beta)).mean()


def beta_at(progress: float) -> float | None:
    """The regulariser's exponent when ``progress`` (0..1) of the iterations are done; None while it does not count."""
    if progress < WARM_UP:
        return None
    done = (progress - WARM_UP) / (1 - WARM_UP)
    return _BETA_END + (_BETA_START - _BETA_END) * (1 - done)
