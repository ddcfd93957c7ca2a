"""What a layer gives, brought back to the mean and the spread that it had before its weights shared values.

The empirical bias correction of Nagel et al. 2019, arXiv 1906.04721, section 4.2, for batch norms that are not folded:
over calibration samples, without labels, while the changed network runs once, and layer after layer, so that each makes
up for those before it. Deviation: the spread is matched too, for few shared values widen or narrow what a layer gives,
and a mean alone moved by a bias then does more harm than good. With m, s a channel's mean and standard deviation before
and m', s' after:

- where a batch norm follows, its statistics take both: (y' - m') s / s' + m goes through the old batch norm;
- elsewhere the codebook is multiplied by the a that minimises sum over channels of (s - a s')^2, one number for the
  whole layer because all of it reads one codebook, and the bias takes the means. A layer without a bias gets one.

:mod:`laconic.steps.quantize.bias_correction` is the same for integer kernels: batch norms folded, means matched behind
the activation, biases whole multiples of a scale.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.errors import TrialError
from laconic.steps.cluster.codebook import codebook_of
from laconic.steps.quantize.observe import channel_axis
from laconic.steps.quantize.trained import per_channel

_WIDEST = 4.0  # what gets this much wider or narrower says more of the samples than of the weights
_Norm = nn.modules.batchnorm._BatchNorm


@dataclass(frozen=True)
class Before:
    """What the layer called ``module`` gave: ``mean`` and ``spread`` (channels,), and the batch norm behind it, if it
    has one."""

    module: str
    mean: Tensor
    spread: Tensor
    norm: _Norm | None


@torch.no_grad()
def remember(model: nn.Module, inputs: Mapping[str, Tensor], layers: Mapping[str, surgery.Layer]) -> dict[str, Before]:
    """Run ``model`` and note what each of ``layers`` gives, by the call's key. Left out are those that are called more
    than once, whose one correction could not be right for all calls, and those whose bias is another's too or is
    computed from something else.

    Raises :class:`TrialError` where a value is not finite.
    """
    graph = surgery.trace(model, {name: x[:2] for name, x in inputs.items()})
    called = [call for call in graph.calls if call.family in ("conv", "linear") and call.module in layers]
    times, norms = Counter(call.module for call in called), _norms(model, graph)
    owners = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    own = {n for n, x in layers.items() if owners[id(x.bias)] <= 1 and not parametrize.is_parametrized(x, "bias")}
    wanted = {call.key for call in called if times[call.module] == 1 and call.module in own}
    found: dict[str, Before] = {}

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if key in wanted:
            mean, spread = _moments(key, result)
            found[key] = Before(module, mean, spread, norms.get(key))
            if not bool(torch.isfinite(mean + spread).all()):
                raise TrialError(f"values that are not finite behind {module}")
        return result

    with surgery.watched(model, handler):
        surgery.call(model, inputs)
    return found


@torch.no_grad()
def match(key: str, layer: surgery.Layer, before: Before, result: Tensor) -> Tensor:
    """Correct the batch norm behind ``layer``, or its codebook and its bias, for what it gives now; returns what goes
    on from here."""
    mean, spread = _moments(key, result)
    norm = before.norm
    if norm is not None:
        if norm.running_mean is not None and norm.running_var is not None:  # else it normalises what it gets anyway
            alive = (before.spread > 0) & (spread > 0)
            ratio = torch.where(alive, spread / before.spread, 1.0).clamp(1 / _WIDEST, _WIDEST)
            norm.running_mean.copy_(mean - (before.mean - norm.running_mean) * ratio)
            norm.running_var.copy_(((norm.running_var + norm.eps) * ratio.square() - norm.eps).clamp_min(0.0))
        return result
    book = codebook_of(layer)
    assert book is not None
    surgery.give_bias(layer)
    assert layer.bias is not None
    bias, power = layer.bias.clone(), spread.square().sum()
    gain = (before.spread @ spread / power).clamp(1 / _WIDEST, _WIDEST) if power > 0 else torch.ones(())
    book.values.mul_(gain)
    layer.bias.copy_(before.mean - (mean - bias) * gain)
    axis = channel_axis(key, result)
    return (result - per_channel(bias, result, axis)) * gain + per_channel(layer.bias, result, axis)


def to_be_biased(before: Mapping[str, Before], layers: Mapping[str, surgery.Layer]) -> list[str]:
    """The layers that :func:`match` will give a bias."""
    return [b.module for b in before.values() if b.norm is None and layers[b.module].bias is None]


def _norms(model: nn.Module, graph: surgery.Graph) -> dict[str, _Norm]:
    """The batch norm that is all that reads a layer's value, over the layer's channels, and that reads nothing else;
    by the key of the layer's call."""
    times = Counter(call.module for call in graph.calls if call.family == "batch_norm")
    producer, found = graph.producer(), {}
    for key, users in graph.consumers().items():
        norm = model.get_submodule(users[0].module)
        alone = len(users) == 1 and key not in graph.outputs and times[users[0].module] == 1
        # a batch norm's channels are axis 1, a linear layer's the last
        over_channels = key in producer and (producer[key].family != "linear" or producer[key].dims == 2)
        if alone and over_channels and users[0].family == "batch_norm" and isinstance(norm, _Norm):
            found[key] = norm
    return found


def _moments(key: str, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel."""
    axis = channel_axis(key, x)
    deviation, mean = torch.std_mean(x, [d for d in range(x.dim()) if d != axis], correction=0)
    return mean, deviation
