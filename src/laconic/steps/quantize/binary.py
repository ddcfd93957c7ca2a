"""Weights of one bit, and activations of one bit where wanted.

Weights: sign(w) alpha_c with alpha_c = mean|w_c| per output channel (Rastegari et al. 2016, arXiv 1603.05279, eq. 6);
the gradient goes straight through to the float weight behind it where |w| <= 1 (Courbariaux et al. 2015, arXiv
1511.00363; Hubara et al. 2016, arXiv 1602.02830, eq. 4). sign(0) is 1.

Activations: a layer reads g sign(x - a_c), a_c a trained threshold per input channel (RSign of Liu et al. 2020, arXiv
2003.03488, eq. 6), with the gradient 2 - 2|u| of Bi-Real's piecewise polynomial at u = (x - a) / g, 0 beyond |u| = 1
(Liu et al. 2018, arXiv 1808.00278, eq. 5). a starts as the channel's mean over the calibration samples and g, one
trained number per layer, as the root mean square of x - a: networks without batch norm need it, and the polynomial gets
inputs of its size. With the mean of |x - a| instead, activations that are mostly near 0 lie where the slope is 2, and
gradients grow from layer to layer until nothing is learned. A relu behind binary layers (with
a batch norm or an addition between them) becomes RPReLU, x - b_c + z_c where x > b_c, else s_c (x - b_c) + z_c (eq. 7),
s starting at 0.25 as in PReLU (He et al. 2015, arXiv 1502.01852), b and z at 0; one that is called on values of
different width stays a relu.

The first and the last layer stay in float. The runtimes have no kernel for one bit: weights are stored in 1 bit and
computed in float.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import MethodType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import RecipeError
from laconic.fake_quantize import attached
from laconic.steps.quantize.observe import calibration_inputs
from laconic.steps.quantize.trained import (
    check_data,
    check_training,
    computed_in_float,
    example_of,
    layers_to_change,
    per_channel,
    train,
)

_SIGN = "binary_input"
_RELUS = "shifted_relus"
_LEAST_GAIN = 1e-6
_SLOPE = 0.25


@dataclass(frozen=True)
class Binary:
    """Weights in {-alpha_c, alpha_c}, with ``activations`` also the inputs of these layers in two values, trained for
    ``epochs`` with AdamW at ``lr``; ``distill`` is the share of the distillation loss."""

    activations: bool = False
    epochs: float = 3.0
    lr: float = 1e-3
    batch: int = 64
    distill: float = 0.5

    version: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_training(self)

    def __call__(self, model: Any, task: Task, context: Context) -> tuple[Any, Facts]:
        check_data(self, task)
        if self.activations and (hasattr(model, "to_onnx") or attached(model) is not None):
            wanted = "a torch model whose values carry no quantizers"
            raise RecipeError("Binary with activations", got=type(model).__name__, wanted=wanted)
        inputs = calibration_inputs(task)
        graph = surgery.trace(model.eval(), example_of(inputs))
        layers = layers_to_change(self, model, graph, context.keep, keep_ends=True)
        if self.activations:  # a recurrent module does not call its children: what they read cannot be changed
            called = {call.module for call in graph.calls}
            layers = {name: layer for name, layer in layers.items() if name in called}
        relus = _relus_behind(layers, model, graph, inputs) if self.activations else {}
        facts = {"layers": list(layers), "relus": relus, **computed_in_float(1)}
        self.restore(model, facts)
        if self.activations:
            _calibrate(model, layers, inputs)
        return model, {**facts, **train(self, model, task, context)}

    def restore(self, model: Any, facts: Facts) -> Any:
        for name in facts["layers"]:
            layer = model.get_submodule(name)
            parametrize.register_parametrization(layer, "weight", BinaryWeight(layer.weight))
            if self.activations:
                layer.add_module(_SIGN, BinaryInput(layer))
                layer.register_forward_pre_hook(_binarized)
        for name, widths in facts["relus"].items():
            _replace_relus(model.get_submodule(name), widths)
        return model


# ------------------------------------------------------------------------------------------------------------- weights


class BinaryWeight(nn.Module):
    """A weight in {-alpha_c, alpha_c}, alpha_c = mean|w_c| of the float weight ``latent`` behind it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.latent = weight

    def codes(self) -> Tensor:
        """Which value of :meth:`codebook` each weight is: uint8, of the weight's shape."""
        return (self.latent >= 0).to(torch.uint8)

    def codebook(self) -> Tensor:
        """-alpha_c, alpha_c: (channels, 2)."""
        alpha = self.latent.detach().flatten(1).abs().mean(1)
        return torch.stack([-alpha, alpha], 1)

    def forward(self) -> Tensor:
        low, high = (per_channel(side, self.latent, 0) for side in self.codebook().unbind(1))
        binary = torch.where(self.latent >= 0, high, low)
        if not torch.is_grad_enabled():
            return binary
        within = self.latent * (self.latent.abs() <= 1)
        return binary + (within - within.detach())  # adds exactly 0, and the gradient

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, ...]:
        """The float weight is kept here, and nowhere else."""
        return ()


# --------------------------------------------------------------------------------------------------------- activations


class BinaryInput(nn.Module):
    """g sign(x - a_c): what a binary layer reads; ``threshold`` is (in channels,), ``gain`` a scalar."""

    def __init__(self, layer: surgery.Layer) -> None:
        super().__init__()
        self.axis, channels = (-1, layer.in_features) if isinstance(layer, nn.Linear) else (1, layer.in_channels)
        self.threshold = nn.Parameter(torch.zeros(channels))
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        moved = x - per_channel(self.threshold, x, self.axis)
        if torch.is_grad_enabled():
            return _Sign.apply(moved, self.gain)  # type: ignore[no-any-return]
        return _signs(moved, self.gain)

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Start from the mean of each channel and the root mean square of the distances from it."""
        self.threshold.copy_(x.mean([d for d in range(x.dim()) if d != self.axis % x.dim()]))
        distance = x - per_channel(self.threshold, x, self.axis)
        self.gain.copy_(distance.square().mean().sqrt().clamp_min(_LEAST_GAIN))


def _signs(x: Tensor, gain: Tensor) -> Tensor:
    return torch.where(x >= 0, gain, -gain)


class _Sign(torch.autograd.Function):
    """g sign(x), whose slope is 2 - 2|x / g|, and none beyond |x| = g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        ctx.save_for_backward(x, gain)
        return _signs(x, gain)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, gain = ctx.saved_tensors
        slope = (2 - x.abs() * (2 / gain.abs())).clamp_min(0)
        return grads[0] * slope, torch.where(x >= 0, grads[0], -grads[0]).sum()


def _binarized(layer: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (getattr(layer, _SIGN)(args[0]), *args[1:])


def _calibrate(model: nn.Module, layers: dict[str, surgery.Layer], inputs: dict[str, Tensor]) -> None:
    """One run over the calibration samples; each layer binarizes its input as soon as it has seen it once."""
    seen: set[str] = set()

    def see(name: str, layer: surgery.Layer, x: Tensor) -> None:
        if name not in seen:
            seen.add(name)
            getattr(layer, _SIGN).calibrate(x)

    hooks = [
        layer.register_forward_pre_hook(lambda module, args, name=name: see(name, module, args[0]), prepend=True)
        for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            surgery.call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()


# --------------------------------------------------------------------------------------------------------------- relus


class RPReLU(nn.Module):
    """x - b + z where x > b, else s (x - b) + z, with b, z, s (channels,); it starts as PReLU does."""

    def __init__(self, channels: int, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.before = nn.Parameter(torch.zeros(channels))
        self.after = nn.Parameter(torch.zeros(channels))
        self.slope = nn.Parameter(torch.full((channels,), _SLOPE))

    def forward(self, x: Tensor) -> Tensor:
        before, after, slope = (per_channel(p, x, self.axis) for p in (self.before, self.after, self.slope))
        moved = x - before
        return torch.where(moved > 0, moved, slope * moved) + after


Widths = dict[str, list[int]]
"""The relus that a module calls whenever it runs, by their count: the number of channels, and their axis."""


def _relus_behind(
    layers: Iterable[str], model: nn.Module, graph: surgery.Graph, inputs: dict[str, Tensor]
) -> dict[str, Widths]:
    """The relus to be replaced, by the module that calls them."""
    weighted, chosen = surgery.weighted_layers(model), set(layers)
    width: dict[str, list[int]] = {}  # of the values that binary layers give
    behind: dict[str, list[int]] = {}  # of the relus that read them
    for call in graph.calls:
        known = [width[name] for name in call.inputs if name in width]
        if call.module in chosen and call.family in ("conv", "linear"):
            channels = len(weighted[call.module].weight)
            width[call.outputs[0]] = [channels, -1 if call.family == "linear" else 1]
        elif known and call.family in ("batch_norm", "add"):
            width[call.outputs[0]] = known[0]
        elif known and call.family == "relu":
            behind[call.key] = known[0]
    calls = [(c.key, c.module) for c in graph.calls if c.family == "relu"]
    runs = _runs(model, {module for _, module in calls}, inputs)
    found: dict[str, Widths] = {}
    for module, times in Counter(module for _, module in calls).items():
        keys = [key for key, caller in calls if caller == module]
        each, rest = divmod(times, runs[module])
        for i in range(0 if rest else each):
            widths = [behind.get(key) for key in keys[i::each]]
            if widths[0] is not None and all(w == widths[0] for w in widths):
                found.setdefault(module, {})[str(i)] = widths[0]
    return found


def _runs(model: nn.Module, names: Iterable[str], inputs: dict[str, Tensor]) -> Counter[str]:
    """How often each module runs in one run of the model."""
    runs: Counter[str] = Counter()
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda module, args, name=name: runs.update([name]))
        for name in names
    ]
    try:
        with torch.no_grad():
            surgery.call(model, example_of(inputs))
    finally:
        for hook in hooks:
            hook.remove()
    return runs


def _replace_relus(module: nn.Module, widths: Widths) -> None:
    module.add_module(_RELUS, nn.ModuleDict({count: RPReLU(*width) for count, width in widths.items()}))
    module.forward = MethodType(_with_shifted_relus(type(module).forward), module)


@functools.cache
def _with_shifted_relus(forward: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(forward)
    def run(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        relus = getattr(self, _RELUS)

        def handler(key: str, module: str, func: Callable[..., Any], fargs: Any, fkwargs: Any) -> Any:
            name, _, count = key.partition("#")
            if name == "/relu" and count in relus:
                return relus[count](fargs[0] if fargs else fkwargs["input"])
            return func(*fargs, **fkwargs)

        with surgery.watched(self, handler):
            return forward(self, *args, **kwargs)

    return run
