"""What is left of a network learns again, without labels, what the whole one gave: layer by layer, by least squares.

The original runs once, and what its layers give is kept at some places, drawn at random. Then the pruned network runs
once. In front of each layer its inputs are laid out in rows x, its weights are changed by ``revise``, and the run goes
on with the new ones, so that each layer makes up for the errors of those before it. (He, Zhang and Sun 2017, arXiv
1707.06168, eq. 1, second step; ThiNet, Luo et al. 2017, arXiv 1707.06342, eq. 7.) With y what the original gives:

    W' = W + E[(y - W x) x'] (E[x x'] + lambda)^-1

which minimises E|y - W' x|^2 + lambda |W' - W|^2: with few samples the weights stay near to what they were, where the
papers pull them to zero. Batch norm and relu between the layers need no care: x is what comes behind them.

Batch norms are estimated again, in the same run, by what has changed: m + E[x'] - E[x] and v Var[x'] / Var[x], x the
original's values and x' the pruned network's, on the same samples. (The usual estimate takes E[x'] and Var[x'], with
the sampling error of few samples; here it cancels, and nothing changes where nothing was pruned.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from laconic import surgery
from laconic.core import Context, Facts, Task
from laconic.errors import TrialError
from laconic.steps.prune.cut import matrix_of
from laconic.steps.prune.evidence import calls_layer, drawn_places
from laconic.steps.quantize.layerwise import _rows
from laconic.steps.quantize.observe import calibration_inputs

_RIDGE = 0.01  # of the mean square of the inputs
_LEAST_VARIANCE = 1e-12


@dataclass(frozen=True)
class Rows:
    """What a layer is revised from: ``x`` (groups, rows, inputs), what it reads in the pruned network, and ``wanted``
    (rows, out), what the original gives, of the channels that are left."""

    layer: surgery.Layer
    x: Tensor
    wanted: Tensor

    def moments(self) -> Tensor:
        """E[x x'], or, where a bias makes up for the means, the covariance of x: (groups, inputs, inputs)."""
        x = self._centred()
        return x.transpose(1, 2) @ x / x.shape[1]

    def _centred(self) -> Tensor:
        x = self.x.double()
        return x if self.layer.bias is None else x - x.mean(1, keepdim=True)

    def outputs(self, weight: Tensor) -> Tensor:
        """What the layer gives with ``weight`` (out, inputs): (rows, out)."""
        grouped = weight.reshape(len(self.x), -1, self.x.shape[2])
        y = torch.bmm(self.x, grouped.transpose(1, 2)).transpose(0, 1).flatten(1)
        return y if self.layer.bias is None else y + self.layer.bias

    def regressed(self) -> Tensor:
        """W': (out, inputs)."""
        weight = matrix_of(surgery.parameter_of(self.layer).detach())
        missing = (self.wanted - self.outputs(weight)).double()  # r gc
        x = self._centred()
        if self.layer.bias is not None:
            missing = missing - missing.mean(0)
        missing = missing.reshape(len(missing), len(x), -1).transpose(0, 1)  # g r c
        matrix = x.transpose(1, 2) @ x
        ridge = _RIDGE * x.shape[1] * self.x.double().square().mean((1, 2))
        ridge = ridge.clamp_min(torch.finfo(torch.float64).tiny)[:, None, None] * torch.eye(x.shape[2]).double()
        change = torch.linalg.solve(matrix + ridge, x.transpose(1, 2) @ missing)  # g k c
        fitted: Tensor = weight + change.transpose(1, 2).reshape(weight.shape).to(weight.dtype)
        return fitted

    def correct_bias(self, weight: Tensor) -> None:
        """Let the means of the outputs be the original's, where the layer has a bias."""
        if self.layer.bias is not None:
            self.layer.bias += (self.wanted - self.outputs(weight)).mean(0)


Revise = Callable[[str, surgery.Layer, Rows], None]


def least_squares(name: str, layer: surgery.Layer, rows: Rows) -> None:
    """Write W' into the layer."""
    weight = rows.regressed()
    surgery.parameter_of(layer).copy_(weight.reshape(layer.weight.shape))
    rows.correct_bias(weight)


@torch.no_grad()
def follow(
    original: nn.Module,
    pruned: nn.Module,
    revise: Mapping[str, Revise],
    kept: Mapping[str, Tensor],
    task: Task,
    context: Context,
) -> Facts:
    """Revise the layers of ``pruned`` in the order in which they run, and estimate its batch norms again; in place.

    ``kept``: the channels (indices) of layers and batch norms that are left of the original's, where some went. A layer
    or batch norm that is called again keeps what it got at its first call. Returns, as facts, the mean squared error of
    each revised layer's output over its mean square.
    """
    inputs = calibration_inputs(task)
    originals, layers = surgery.weighted_layers(original), surgery.weighted_layers(pruned)
    norms = {name: m for name, m in pruned.named_modules() if _has_statistics(m)}
    generator = torch.Generator().manual_seed(context.seed)
    places: dict[str, Tensor] = {}
    wanted: dict[str, Tensor] = {}
    spread: dict[str, tuple[Tensor, Tensor]] = {}

    def remember(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        if module in norms and "/batch_norm" in key and module not in spread:
            spread[module] = tuple(_left(t, module, kept) for t in _mean_and_variance(args[0]))  # type: ignore[assignment]
        result = func(*args, **kwargs)
        if module in revise and calls_layer(key) and module not in wanted:
            places[module] = drawn_places(originals[module], result, generator)
            found = _at(result, originals[module], places[module])
            if not bool(torch.isfinite(found).all()):
                raise TrialError(f"values that are not finite behind {module}")
            wanted[module] = _left(found.movedim(1, 0), module, kept).movedim(0, 1)
        return result

    context.progress("running the original", 0.0)
    with surgery.watched(original.eval(), remember):
        surgery.call(original, inputs)
    errors: dict[str, float] = {}

    def handler(key: str, module: str, func: Any, args: Any, kwargs: Any) -> Any:
        if module in spread and "/batch_norm" in key:
            _estimate(norms[module], spread.pop(module), _mean_and_variance(args[0]))
            return func(*args, **kwargs)
        if module not in wanted or not calls_layer(key):
            return func(*args, **kwargs)
        layer, target = layers[module], wanted.pop(module)
        rows = Rows(layer, _rows(layer, args, kwargs, places[module]), target)
        revise[module](module, layer, rows)
        left = (rows.outputs(matrix_of(layer.weight)) - target).square().mean()
        errors[module] = round(float(left / target.square().mean().clamp_min(_LEAST_VARIANCE)), 6)
        context.progress(f"reconstructing {module}", len(errors) / len(revise))
        return func(args[0], layer.weight, layer.bias, *args[3:], **kwargs)

    with surgery.watched(pruned.eval(), handler):
        surgery.call(pruned, inputs)
    return {"errors": errors}


def _left(values: Tensor, name: str, kept: Mapping[str, Tensor]) -> Tensor:
    return values[kept[name]] if name in kept else values


def _at(result: Tensor, layer: surgery.Layer, places: Tensor) -> Tensor:
    """(rows, channels) of a layer's output."""
    maps = result if isinstance(layer, nn.Linear) else result.movedim(1, -1)
    return maps[torch.unravel_index(places, maps.shape[:-1])]


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _mean_and_variance(x: Tensor) -> tuple[Tensor, Tensor]:
    dims = [d for d in range(x.dim()) if d != 1]
    return x.mean(dims), x.var(dims, unbiased=False)


def _estimate(norm: nn.Module, before: tuple[Tensor, Tensor], now: tuple[Tensor, Tensor]) -> None:
    norm = cast(nn.modules.batchnorm._BatchNorm, norm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.running_mean += now[0] - before[0]
    alive = (before[1] > _LEAST_VARIANCE) & (now[1] > _LEAST_VARIANCE)
    norm.running_var *= torch.where(alive, now[1] / before[1].clamp_min(_LEAST_VARIANCE), 1.0)
